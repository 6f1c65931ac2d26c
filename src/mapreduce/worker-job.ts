/**
 * WorkerJob: what a node keeps of one job that it works for: which coordinator it belongs to, its attempts and their outputs.
 *
 * Invariants: 1. a job belongs to the node that named it first; 2. a message of an older session is refused, one of a newer session ends all that
 * was done in the older; 3. a job that hears nothing of its coordinator for long is over; 4. after `close` nothing of it is left on this node.
 */
import { QuorateError } from '../base/errors.js'
import type { Sender } from '../transport/messenger.js'
import { sharedController } from './sleep.js'
import { type AttemptName, attemptKey, type MemoryBudget, TaskOutputs } from './task-outputs.js'

interface RunningAttempt extends AttemptName {
  readonly controller: AbortController
  readonly done: Promise<void>
}

export class WorkerJob {
  readonly id: string
  readonly coordinator: Sender
  readonly outputs: TaskOutputs
  /** Where in the store the coordinator writes. */
  readonly outputPrefix: Uint8Array | undefined
  session: number
  #lastHeardMs: number
  #overdue = 0
  readonly #attempts = new Map<string, RunningAttempt>()
  #closed = false
  #clearing: Promise<void> = Promise.resolve()

  constructor(options: {
    id: string
    coordinator: Sender
    session: number
    nowMs: number
    folder: string
    budget: MemoryBudget
    outputPrefix: Uint8Array | undefined
  }) {
    this.id = options.id
    this.coordinator = options.coordinator
    this.session = options.session
    this.#lastHeardMs = options.nowMs
    this.outputPrefix = options.outputPrefix
    this.outputs = new TaskOutputs(options.folder, options.budget)
  }

  get closed(): boolean {
    return this.#closed
  }

  /** Attempts that were started and not yet reported. */
  get running(): readonly AttemptName[] {
    return [...this.#attempts.values()].map(({ kind, taskId, attempt }) => ({ kind, taskId, attempt }))
  }

  knows(name: AttemptName): boolean {
    return this.#attempts.has(attemptKey(name)) || this.outputs.has(name)
  }

  /** Checks and notes a message of the coordinator. */
  hear(from: Sender, session: number | undefined, nowMs: number): void {
    if (from.nodeId !== this.coordinator.nodeId) throw new QuorateError('NOT_COORDINATOR', `job ${this.id} is another node's`, false)
    if (session !== undefined && session < this.session) throw new QuorateError('STALE_SESSION', `job ${this.id} is in a later session`, false)
    this.#lastHeardMs = nowMs
    this.#overdue = 0
    if (session !== undefined && session > this.session) {
      this.session = session
      this.#clearing = this.#clear(new QuorateError('STALE_SESSION', 'the coordinator gave this node up meanwhile', false))
    }
  }

  /** Looked at from time to time: whether the coordinator is given up. Not at the first look that finds it overdue: after a stall of this process its messages wait to be read. */
  isAbandoned(nowMs: number, timeoutMs: number): boolean {
    if (nowMs - this.#lastHeardMs < timeoutMs) return false
    return ++this.#overdue > 1
  }

  /** Starts an attempt, once. `run` must not throw. */
  start(name: AttemptName, run: (signal: AbortSignal) => Promise<void>): void {
    const key = attemptKey(name)
    const controller = sharedController()
    const { signal } = controller
    const cleared = this.#clearing
    const done = (async () => {
      await cleared
      if (!signal.aborted) await run(signal)
    })().finally(() => this.#attempts.delete(key))
    this.#attempts.set(key, { ...name, controller, done })
  }

  async #clear(reason: unknown): Promise<void> {
    const running = [...this.#attempts.values()]
    for (const { controller } of running) controller.abort(reason)
    await this.#clearing
    await Promise.allSettled(running.map(({ done }) => done))
    await this.outputs.clear()
  }

  /** Stops every attempt and removes everything. */
  async close(reason: unknown): Promise<void> {
    this.#closed = true
    this.#clearing = this.#clear(reason)
    await this.#clearing
  }
}
