/** JobHandle: a running job in the hands of whoever started it. */
import type { JobEvent, JobEvents } from './events.js'
import type { JobResult } from './job-options.js'
import type { JobOutput } from './output.js'

/**
 * A job that was started.
 *
 * ```ts
 * const job = node.mapReduce({ job: 'word-count', input: fromFiles('texts'), output: toFolder('counts') })
 * for await (const event of job) if (event.type === 'progress') console.log(event.phase, event.done, event.total)
 * const { stats } = await job.result()
 * ```
 */
export class JobHandle<Output extends JobOutput = JobOutput> implements AsyncIterable<JobEvent> {
  readonly jobId: string
  readonly #events: JobEvents
  readonly #result: Promise<JobResult<Output>>
  readonly #cancel: (reason: unknown) => void

  constructor(options: { jobId: string; events: JobEvents; result: Promise<JobResult<Output>>; cancel: (reason: unknown) => void }) {
    this.jobId = options.jobId
    this.#events = options.events
    this.#result = options.result
    this.#cancel = options.cancel
    // Whoever only looks at the events must not be hit by an unhandled rejection.
    this.#result.catch(() => {})
  }

  /**
   * Resolves when the output is committed and what the job left is removed.
   * @throws JobFailedError, JobCancelledError, OutputExistsError, InvalidArgumentError (`UNKNOWN_JOB`, `INVALID_JOB`, `INPUT_UNREADABLE`, …),
   * OutcomeUnknownError when the store was unreachable at the very commit.
   */
  result(): Promise<JobResult<Output>> {
    return this.#result
  }

  /** Stops the job everywhere and takes back what it wrote. Resolves when that is done. Does nothing once the output is committed. */
  async cancel(reason?: unknown): Promise<void> {
    this.#cancel(reason)
    await this.#result.catch(() => {})
  }

  /** The events from now on: all of them, when called in the turn that started the job. */
  [Symbol.asyncIterator](): AsyncIterableIterator<JobEvent> {
    return this.#events.iterate()
  }

  /** Cancels the job if it still runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.cancel(new Error('the job was disposed of'))
  }
}
