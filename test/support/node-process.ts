/**
 * A quorate node in a process of its own, for tests that kill it. Started by NodeProcess with its options as JSON in the first argument;
 * says `ready` over IPC when it is open and answers `status`.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { type BootstrapOptions, type NodeStatus, openNode } from '../../src/index.js'
import { tcp } from '../../src/transport/tcp.js'

export interface NodeProcessOptions {
  readonly id: string
  readonly location: string
  readonly listen: string
  readonly bootstrap: BootstrapOptions
}

const file = fileURLToPath(import.meta.url)

export class NodeProcess {
  readonly options: NodeProcessOptions
  #child: ChildProcess | null = null

  constructor(options: NodeProcessOptions) {
    this.options = options
  }

  get running(): boolean {
    return this.#child !== null
  }

  /** Starts the process and resolves when its node is open. */
  async start(): Promise<void> {
    const child = fork(file, [JSON.stringify(this.options)], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    this.#child = child
    const died = once(child, 'exit').then(([code, signal]) => {
      throw new Error(`node ${this.options.id} ended with ${code ?? signal} before it was open`)
    })
    await Promise.race([once(child, 'message'), died])
    died.catch(() => {})
  }

  async status(): Promise<NodeStatus> {
    const child = this.#child!
    child.send('status')
    const [status] = await once(child, 'message')
    return status as NodeStatus
  }

  /** Sends a signal and waits for the end of the process. */
  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const child = this.#child
    if (child === null) return
    this.#child = null
    if (child.exitCode !== null || child.signalCode !== null) return
    const ended = once(child, 'exit')
    child.kill(signal)
    await ended
  }
}

async function main(options: NodeProcessOptions): Promise<void> {
  const { id, location, listen, bootstrap } = options
  const node = await openNode({ id, location, bootstrap, transport: tcp({ listen }) })
  process.on('message', () => process.send!(node.status()))
  process.on('disconnect', () => process.exit(0))
  process.on('SIGTERM', () => void node.close().then(() => process.exit(0)))
  process.send!('ready')
}

if (process.argv[1] === file) await main(JSON.parse(process.argv[2]!))
