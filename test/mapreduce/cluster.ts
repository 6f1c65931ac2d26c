/** A cluster of JobRunners in this process, over a real transport, with real worker threads and a model store: for the tests of MapReduce. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemRuntime } from '../../src/base/runtime.js'
import type { JobEvent, JobHandle, JobRunnerOptions, JobTiming } from '../../src/mapreduce/index.js'
import { JobRunner } from '../../src/mapreduce/index.js'
import { ModelKV } from '../../src/testing/model-kv.js'
import { ModelStore } from '../../src/testing/model-store.js'
import { MemoryNetwork } from '../../src/transport/memory.js'
import { Messenger } from '../../src/transport/messenger.js'
import { tcp } from '../../src/transport/tcp.js'

export const clusterId = Buffer.from('mapredte')

/** The jobs of test/fixtures/jobs and examples/jobs by their names. */
export const jobs: Readonly<Record<string, URL>> = Object.fromEntries([
  ...['word-count', 'inverted-index'].map((name) => [name, new URL(`../../examples/jobs/${name}.js`, import.meta.url)]),
  ...['concatenate', 'byte-keys', 'steered', 'timing', 'markers', 'wide', 'faulty', 'not-a-job', 'broken'].map((name) => [
    name,
    new URL(`../fixtures/jobs/${name}.js`, import.meta.url),
  ]),
])

/** Short, as everything is on this machine; long enough for a busy one. */
export const fastTiming: Partial<JobTiming> = {
  heartbeatMs: 50,
  nodeTimeoutMs: 1000,
  noWorkersTimeoutMs: 5000,
  coordinatorTimeoutMs: 3000,
  claim: { renewMs: 200, expiryMs: 1000 },
}

export interface TestNode {
  readonly id: string
  readonly runner: JobRunner
  readonly messenger: Messenger
  readonly kv: ModelKV
  readonly folder: string
}

export interface ClusterOptions {
  readonly nodes?: number
  readonly workers?: number
  readonly transport?: 'memory' | 'tcp'
  /** More options for some nodes. */
  readonly options?: (number: number) => Partial<JobRunnerOptions>
}

export class TestCluster {
  readonly network = new MemoryNetwork({ seed: 1 })
  readonly store = new ModelStore()
  readonly nodes: TestNode[] = []
  /** For the inputs and outputs of a test. */
  readonly folder: string
  readonly #options: ClusterOptions

  private constructor(folder: string, options: ClusterOptions) {
    this.folder = folder
    this.#options = options
  }

  static async start(options: ClusterOptions = {}): Promise<TestCluster> {
    const cluster = new TestCluster(await mkdtemp(join(tmpdir(), 'quorate-mapreduce-')), options)
    for (let number = 0; number < (options.nodes ?? 3); number++) await cluster.add()
    return cluster
  }

  get first(): TestNode {
    return this.nodes[0] as TestNode
  }

  /** Adds a node that all others know of at once. */
  async add(id = `node-${this.nodes.length}`): Promise<TestNode> {
    const { transport = 'memory', workers = 2, options } = this.#options
    const number = this.nodes.length
    const messenger = new Messenger({
      transport: transport === 'memory' ? this.network.transport(id) : tcp({ listen: '127.0.0.1:0' }),
      runtime: systemRuntime,
      clusterId,
      nodeId: id,
    })
    await messenger.open()
    const kv = new ModelKV({ runtime: systemRuntime, store: this.store, requestTimeoutMs: 5000 })
    const folder = join(this.folder, `temporary-${number}`)
    const runner = new JobRunner({
      ...{ messenger, kv, nodeId: id, jobs, temporaryFolder: folder, workers, timing: fastTiming },
      peers: () => this.nodes.map((node) => ({ id: node.id, address: node.messenger.address })),
      ...options?.(number),
    })
    const node: TestNode = { id, runner, messenger, kv, folder }
    this.nodes.push(node)
    return node
  }

  /** The process of a node dies, as far as the others can tell: nothing comes from it any more, and nothing of it is told. */
  async silence(node: TestNode): Promise<void> {
    this.network.isolate(node.id)
  }

  /** Files that runners have left in their temporary folders. */
  async leftovers(): Promise<string[]> {
    const left: string[] = []
    for (const { folder } of this.nodes) {
      for (const entry of await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])) {
        if (!entry.isDirectory()) left.push(join(entry.parentPath, entry.name))
      }
    }
    return left
  }

  async close(): Promise<void> {
    await Promise.all(this.nodes.map(({ runner }) => runner.close()))
    await Promise.all(this.nodes.map(({ messenger }) => messenger.close()))
    await rm(this.folder, { recursive: true, force: true })
  }
}

/** All events of a job, and its result or error. */
export async function watch(job: JobHandle): Promise<{ events: JobEvent[]; error: unknown }> {
  const events: JobEvent[] = []
  for await (const event of job) events.push(event)
  const error = await job.result().then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  return { events, error }
}

/** The parts of a folder output, one behind the other, and each by itself. */
export async function readParts(folder: string): Promise<{ all: string; parts: string[] }> {
  const names = (await readdir(folder)).filter((name) => name.startsWith('part-')).sort()
  const parts = await Promise.all(names.map((name) => readFile(join(folder, name), 'utf8')))
  return { all: parts.join(''), parts }
}

/** Lines sorted, without empty ones: as the labs compare. */
export function sortedLines(text: string): string[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .sort()
}
