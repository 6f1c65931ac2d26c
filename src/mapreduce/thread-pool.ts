/**
 * ThreadPool: a node's worker threads (piscina), where all user code runs.
 *
 * Invariants: 1. at most `workers` tasks run at a time, and callers beyond that wait in order, in a bounded queue; 2. a task that takes longer than its
 * time, or is aborted, loses its thread: the only way to stop user code that hangs; 3. a dead thread fails its own task alone.
 */
import { fileURLToPath } from 'node:url'
import PQueue from 'p-queue'
import { Piscina } from 'piscina'
import { ClosedError, OverloadedError, QuorateError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { anySignal, sharedController } from './sleep.js'
import type { ThreadAnswer, ThreadTask } from './thread.js'

const entry = fileURLToPath(new URL('./thread.js', import.meta.url))
/** A thread without work stays so long; starting one takes 40 ms. */
const idleMs = 10_000

export class ThreadPool {
  readonly workers: number
  readonly #runtime: Runtime
  readonly #heapBytes: number
  readonly #queue: PQueue
  readonly #closing = sharedController()
  #pool: Piscina | undefined

  constructor(options: { workers: number; runtime: Runtime; heapBytes: number }) {
    this.workers = options.workers
    this.#heapBytes = options.heapBytes
    this.#runtime = options.runtime
    this.#queue = new PQueue({ concurrency: Math.max(1, options.workers) })
  }

  /** Tasks that wait or run. */
  get load(): number {
    return this.#queue.size + this.#queue.pending
  }

  /**
   * Waits for a thread, lets `prepare` get the task together, and runs it.
   * @throws QuorateError `TASK_TIMEOUT`, `WORKER_CRASHED`; OverloadedError; ClosedError; the signal's reason.
   */
  async run(
    prepare: () => Promise<{ task: ThreadTask; transfer: ArrayBuffer[] }>,
    options: { timeoutMs: number; signal: AbortSignal },
  ): Promise<ThreadAnswer> {
    if (this.workers === 0) throw new QuorateError('NO_WORKERS', 'this node runs no tasks', false)
    if (this.#closing.signal.aborted) throw new ClosedError('the node is closed')
    if (this.#queue.size >= this.workers * 8) throw new OverloadedError(`${this.#queue.size} tasks wait for a worker thread already`)
    const signal = anySignal(options.signal, this.#closing.signal)
    const result = await this.#queue.add(
      async () => {
        const { task, transfer } = await prepare()
        signal.throwIfAborted()
        return await this.#runInThread(task, transfer, options.timeoutMs, signal)
      },
      { signal },
    )
    return result as ThreadAnswer
  }

  async #runInThread(task: ThreadTask, transfer: ArrayBuffer[], timeoutMs: number, signal: AbortSignal): Promise<ThreadAnswer> {
    this.#pool ??= this.#makePool()
    const expiry = new AbortController()
    const cancel = this.#runtime.schedule(timeoutMs, () => expiry.abort())
    try {
      return (await this.#pool.run(task, { transferList: transfer as never, signal: anySignal(signal, expiry.signal) })) as ThreadAnswer
    } catch (cause) {
      signal.throwIfAborted()
      if (expiry.signal.aborted) throw new QuorateError('TASK_TIMEOUT', `the task took more than ${timeoutMs} ms: its thread was stopped`, true)
      throw new QuorateError('WORKER_CRASHED', `the worker thread died: ${cause instanceof Error ? cause.message : String(cause)}`, true, { cause })
    } finally {
      cancel()
    }
  }

  #makePool(): Piscina {
    const pool = new Piscina({
      filename: entry,
      minThreads: 0,
      maxThreads: this.workers,
      idleTimeout: idleMs,
      // The queue is ours, and so is the count of running tasks.
      maxQueue: this.workers * 2,
      recordTiming: false,
      // What user code takes beyond this costs it its thread, not the node its life.
      resourceLimits: { maxOldGenerationSizeMb: Math.ceil(this.#heapBytes / (1024 * 1024)) },
    })
    // A thread that dies between tasks harms nobody: the next task gets another.
    pool.on('error', () => {})
    return pool
  }

  /** Stops all threads, whatever they do. Idempotent. */
  async close(): Promise<void> {
    this.#closing.abort(new ClosedError('the node is closed'))
    await this.#queue.onIdle()
    await this.#pool?.destroy()
    this.#pool = undefined
  }
}
