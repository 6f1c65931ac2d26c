/**
 * What a running job tells: typed events, and the stream that carries them to whoever iterates.
 *
 * Invariants: 1. each iterator sees every event from the moment it was made, in order, `job-finished` last; 2. of `progress` events only the newest waits for
 * a slow iterator; all others wait, and there are at most a few for each attempt of a task; 3. without an iterator nothing is kept.
 */

export type JobEvent =
  | { readonly type: 'job-started'; readonly jobId: string; readonly maps: number; readonly reducers: number }
  | { readonly type: 'task-started'; readonly taskId: string; readonly attempt: number; readonly nodeId: string }
  | { readonly type: 'task-finished'; readonly taskId: string; readonly attempt: number; readonly nodeId: string; readonly durationMs: number }
  | {
      readonly type: 'task-failed'
      readonly taskId: string
      readonly attempt: number
      readonly nodeId: string
      readonly code: string
      readonly message: string
      /** Undefined: the job ends. */
      readonly willRetryInMs: number | undefined
    }
  /** A node does not answer: its tasks, and its finished maps that are still needed, run again elsewhere. */
  | { readonly type: 'worker-lost'; readonly nodeId: string; readonly tasks: readonly string[] }
  | {
      readonly type: 'progress'
      readonly phase: 'map' | 'reduce'
      readonly done: number
      /** Grows while a range of keys proves larger than thought. */
      readonly total: number
      /** Bytes of input read by maps, or fetched by reduces. */
      readonly bytes: number
      readonly elapsedMs: number
    }
  | { readonly type: 'job-finished'; readonly outcome: 'succeeded' | 'failed' | 'cancelled'; readonly elapsedMs: number }

export class JobEvents {
  readonly #listeners = new Set<Listener>()
  #ended = false

  emit(event: JobEvent): void {
    for (const listener of this.#listeners) listener.add(event)
    if (event.type === 'job-finished') {
      this.#ended = true
      this.#listeners.clear()
    }
  }

  /** An iterator over the events from now on. */
  iterate(): AsyncIterableIterator<JobEvent> {
    const listener = new Listener(() => this.#listeners.delete(listener))
    if (this.#ended) listener.end()
    else this.#listeners.add(listener)
    return listener
  }
}

class Listener implements AsyncIterableIterator<JobEvent> {
  readonly #remove: () => void
  #events: JobEvent[] = []
  #waiting: ((result: IteratorResult<JobEvent, undefined>) => void)[] = []
  #ended = false

  constructor(remove: () => void) {
    this.#remove = remove
  }

  add(event: JobEvent): void {
    if (this.#ended) return
    const waiting = this.#waiting.shift()
    if (waiting !== undefined) waiting({ done: false, value: event })
    else {
      if (event.type === 'progress') this.#events = this.#events.filter(({ type }) => type !== 'progress')
      this.#events.push(event)
    }
    if (event.type === 'job-finished') this.end()
  }

  end(): void {
    this.#ended = true
    this.#remove()
    for (const waiting of this.#waiting.splice(0)) waiting({ done: true, value: undefined })
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<IteratorResult<JobEvent, undefined>> {
    const event = this.#events.shift()
    if (event !== undefined) return { done: false, value: event }
    if (this.#ended) return { done: true, value: undefined }
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  async return(): Promise<IteratorResult<JobEvent, undefined>> {
    this.#events = []
    this.end()
    return { done: true, value: undefined }
  }
}
