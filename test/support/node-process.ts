/**
 * A quorate node in a process of its own, for tests that kill, stop and starve it. Started by NodeProcess with its options as JSON in the first argument; says
 * `ready` over IPC when it is open, or why it could not be opened, answers commands, and tells its `failure` and `refused` events.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { type BootstrapOptions, type EngineTuning, type NodeStatus, openNode, QuorateError, type Refusal } from '../../src/index.js'
import { type TcpRefusal, tcp } from '../../src/transport/tcp.js'
import type { Undertaker } from './undertaker.js'

export interface NodeProcessOptions {
  readonly id: string
  readonly location: string
  readonly listen: string
  /** The address that the others use, when it is not `listen`: a proxy's. */
  readonly advertise?: string
  readonly bootstrap?: BootstrapOptions
  readonly tuning?: Partial<EngineTuning>
}

/** An error as it crosses the channel. */
export interface ErrorNote {
  readonly name: string
  readonly code: string | null
  readonly message: string
  readonly cause?: string
}

/** What a node process says of itself: its status, with the failure in a form that crosses the channel. */
export interface ProcessStatus extends Omit<NodeStatus, 'failure'> {
  readonly failure: ErrorNote | null
}

/** The node could not be opened; `code` is the code of its error. */
export class StartFailedError extends Error {
  readonly code: string | null

  constructor({ name, code, message }: ErrorNote) {
    super(`${name}: ${message}`)
    this.code = code
  }
}

type FromChild =
  | { readonly type: 'ready' }
  | { readonly type: 'broken'; readonly error: ErrorNote }
  | { readonly type: 'failure'; readonly error: ErrorNote }
  | { readonly type: 'refused'; readonly kind: Refusal['kind'] | TcpRefusal; readonly detail: string }
  | { readonly type: 'status'; readonly status: ProcessStatus }

const file = fileURLToPath(import.meta.url)

export class NodeProcess {
  readonly options: NodeProcessOptions
  /** Failure events since the last start. */
  readonly failures: ErrorNote[] = []
  /** What the node refused, or was refused, since the last start: its own events, and why its transport closed connections. */
  readonly refusals: { readonly kind: Refusal['kind'] | TcpRefusal; readonly detail: string }[] = []
  readonly #environment: Readonly<Record<string, string>>
  readonly #undertaker: Undertaker | null
  #child: ChildProcess | null = null
  #isPaused = false
  #waitingForStatus: ((status: ProcessStatus) => void)[] = []

  constructor(options: NodeProcessOptions, surroundings: { environment?: Readonly<Record<string, string>>; undertaker?: Undertaker } = {}) {
    this.options = options
    this.#environment = surroundings.environment ?? {}
    this.#undertaker = surroundings.undertaker ?? null
  }

  get id(): string {
    return this.options.id
  }

  get running(): boolean {
    return this.#child !== null
  }

  get paused(): boolean {
    return this.#isPaused
  }

  get pid(): number | undefined {
    return this.#child?.pid
  }

  /** Starts the process and resolves when its node is open; rejects with StartFailedError when it cannot be opened. */
  async start(): Promise<void> {
    if (this.#child !== null) throw new Error(`node process ${this.id} runs already`)
    this.failures.length = 0
    this.refusals.length = 0
    const child = fork(file, [JSON.stringify(this.options)], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: { ...process.env, ...this.#environment },
      // Ctrl-C reaches only the harness, which takes its nodes down in order.
      detached: true,
    })
    this.#child = child
    const { pid } = child
    if (pid !== undefined) this.#undertaker?.add('process', pid)
    child.once('exit', () => {
      if (pid !== undefined) this.#undertaker?.remove('process', pid)
      if (this.#child === child) this.#child = null
    })
    await new Promise<void>((resolve, reject) => {
      let broken: ErrorNote | null = null
      child.on('message', (message) => {
        const said = message as FromChild
        if (said.type === 'ready') resolve()
        else if (said.type === 'broken') broken = said.error
        else this.#hear(said)
      })
      child.once('error', reject)
      child.once('exit', (code, signal) => {
        // Only now is its folder free again.
        if (broken !== null) reject(new StartFailedError(broken))
        else reject(new Error(`node process ${this.id} ended with ${signal ?? code} before it was open`))
        for (const answer of this.#waitingForStatus.splice(0)) answer(goneStatus(this.id))
      })
    })
  }

  #hear(said: Exclude<FromChild, { type: 'ready' } | { type: 'broken' }>): void {
    if (said.type === 'failure') this.failures.push(said.error)
    else if (said.type === 'refused') this.refusals.push({ kind: said.kind, detail: said.detail })
    else for (const answer of this.#waitingForStatus.splice(0)) answer(said.status)
  }

  /** What the node says of itself; a paused one answers when it goes on, one that dies meanwhile as a node without replicas. */
  status(): Promise<ProcessStatus> {
    const child = this.#child
    if (child === null) return Promise.resolve(goneStatus(this.id))
    return new Promise((resolve) => {
      this.#waitingForStatus.push(resolve)
      child.send('status', () => {})
    })
  }

  /** Sends a signal and waits for the end of the process. */
  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const child = this.#child
    if (child === null) return
    const ended = once(child, 'exit')
    child.kill(signal)
    this.#isPaused = false
    await ended
  }

  /** A planned end: the node is closed, and the process exits by itself. Resolves to its exit code: 0 when all could be written. */
  async close(): Promise<number | null> {
    const child = this.#child
    if (child === null) return 0
    const ended = once(child, 'exit')
    child.kill('SIGTERM')
    const [code] = await ended
    return code as number | null
  }

  /** SIGSTOP: the process stands still, its connections stay open. */
  pause(): void {
    this.#isPaused = true
    this.#child?.kill('SIGSTOP')
  }

  /** SIGCONT. */
  resume(): void {
    this.#isPaused = false
    this.#child?.kill('SIGCONT')
  }
}

function goneStatus(id: string): ProcessStatus {
  return {
    id,
    role: 'member',
    state: 'member',
    clusterId: '',
    groups: [],
    failure: { name: 'Gone', code: 'GONE', message: 'the process does not run' },
    logWrites: 0,
  }
}

function describe(error: unknown): ErrorNote {
  if (!(error instanceof Error)) return { name: 'unknown', code: null, message: String(error) }
  const code = error instanceof QuorateError ? error.code : null
  const { cause } = error
  return { name: error.name, code, message: error.message, ...(cause instanceof Error ? { cause: cause.message } : {}) }
}

async function main({ id, location, listen, advertise, bootstrap, tuning }: NodeProcessOptions): Promise<void> {
  const tell = (message: FromChild) => {
    if (process.connected) process.send!(message)
  }
  process.on('disconnect', () => process.exit(0))
  try {
    const node = await openNode({
      id,
      location,
      transport: tcp({ listen, advertise, onRefused: (kind, _remote, detail) => tell({ type: 'refused', kind, detail }) }),
      ...(bootstrap === undefined ? {} : { bootstrap }),
      ...(tuning === undefined ? {} : { tuning }),
    })
    const { failure } = node.status()
    if (failure !== null) tell({ type: 'failure', error: describe(failure) })
    node.on('failure', (error) => tell({ type: 'failure', error: describe(error) }))
    node.on('refused', ({ kind, detail }) => tell({ type: 'refused', kind, detail }))
    process.on('message', () => {
      const status = node.status()
      tell({ type: 'status', status: { ...status, failure: status.failure === null ? null : describe(status.failure) } })
    })
    process.on('SIGTERM', () => {
      node.close().then(
        () => process.exit(0),
        () => process.exit(3),
      )
    })
    tell({ type: 'ready' })
  } catch (error) {
    process.send!({ type: 'broken', error: describe(error) } satisfies FromChild, () => process.exit(1))
  }
}

if (process.argv[1] === file) await main(JSON.parse(process.argv[2]!))
