/** Job nodes as real processes over TCP, to be killed and stopped. The test's own process has a runner without workers, to coordinate. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { systemRuntime } from '../../src/base/runtime.js'
import { JobRunner } from '../../src/mapreduce/index.js'
import { ModelKV } from '../../src/testing/model-kv.js'
import { Messenger } from '../../src/transport/messenger.js'
import { tcp } from '../../src/transport/tcp.js'
import { clusterId, fastTiming, jobs } from './cluster.js'

export type ChildMessage = { readonly type: 'address'; readonly address: string }
export type ParentMessage =
  | { readonly type: 'peers'; readonly peers: readonly { readonly id: string; readonly address: string }[] }
  | { readonly type: 'run'; readonly items: readonly string[]; readonly output: string; readonly params: unknown }

const script = fileURLToPath(new URL('./child-node.js', import.meta.url))

export interface ProcessNode {
  readonly id: string
  readonly child: ChildProcess
  readonly address: string
  readonly folder: string
}

export class ProcessCluster {
  readonly folder: string
  readonly nodes = new Map<string, ProcessNode>()
  readonly #messenger: Messenger
  readonly runner: JobRunner

  private constructor(folder: string, messenger: Messenger) {
    this.folder = folder
    this.#messenger = messenger
    this.runner = new JobRunner({
      ...{ messenger, nodeId: 'coordinator', jobs, temporaryFolder: join(folder, 'coordinator'), workers: 0, timing: fastTiming },
      kv: new ModelKV({ runtime: systemRuntime }),
      peers: () => this.#peers(),
    })
  }

  static async start(nodes: number): Promise<ProcessCluster> {
    const messenger = new Messenger({ transport: tcp({ listen: '127.0.0.1:0' }), runtime: systemRuntime, clusterId, nodeId: 'coordinator' })
    await messenger.open()
    const cluster = new ProcessCluster(await mkdtemp(join(tmpdir(), 'quorate-processes-')), messenger)
    await Promise.all(Array.from({ length: nodes }, (_, number) => cluster.spawn(`child-${number}`)))
    return cluster
  }

  #peers(): { id: string; address: string }[] {
    return [...this.nodes.values()].map(({ id, address }) => ({ id, address }))
  }

  /** Starts a node, again under the same id and folder if it was there before. */
  async spawn(id: string): Promise<ProcessNode> {
    const folder = join(this.folder, id)
    const child = fork(script, [id, folder])
    const [message] = (await once(child, 'message')) as [ChildMessage]
    const node: ProcessNode = { id, child, address: message.address, folder }
    this.nodes.set(id, node)
    for (const { child: other } of this.nodes.values()) this.#tell(other, { type: 'peers', peers: this.#peers() })
    return node
  }

  #tell(child: ChildProcess, message: ParentMessage): void {
    // One that was killed and not yet replaced hears nothing.
    if (child.connected) child.send(message, () => {})
  }

  /** Lets a node coordinate a job of its own. */
  run(id: string, job: { readonly items: readonly string[]; readonly output: string; readonly params: unknown }): void {
    this.#tell((this.nodes.get(id) as ProcessNode).child, { type: 'run', ...job })
  }

  async kill(id: string): Promise<void> {
    const { child } = this.nodes.get(id) as ProcessNode
    if (child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }

  async close(): Promise<void> {
    await this.runner.close()
    await Promise.all([...this.nodes.keys()].map((id) => this.kill(id)))
    await this.#messenger.close()
    await rm(this.folder, { recursive: true, force: true })
  }
}
