/**
 * The errors of jobs, beside those of base. One class per decision of the caller:
 *
 * | class | decision |
 * |---|---|
 * | JobFailedError | look at the cause: the job's code, its input, or the cluster |
 * | JobCancelledError | none: it was asked for |
 * | OutputExistsError | choose another output, or say `overwrite` |
 */
import { QuorateError, type QuorateErrorOptions } from '../base/errors.js'

/** One try of a task that did not succeed. */
export interface AttemptRecord {
  readonly attempt: number
  readonly nodeId: string
  /** Stable: `USER_ERROR`, `TASK_TIMEOUT`, `WORKER_CRASHED`, `WORKER_LOST`, … */
  readonly code: string
  readonly message: string
  /** The record or key that it happened at. */
  readonly at?: string | undefined
  readonly stack?: string | undefined
  readonly durationMs: number
}

export interface JobFailure {
  /** `map-3`, `reduce-0`; undefined when it was not a task that failed. */
  readonly taskId?: string | undefined
  readonly attempts?: readonly AttemptRecord[]
}

/**
 * The job ended without output; nothing of it is visible. Codes: `TASK_FAILED` (a task failed `maxAttempts` times: see `attempts`), `NO_WORKERS` (no
 * node could run it), `OUTPUT_FAILED` (the output could not be written), `JOB_TIMEOUT`.
 */
export class JobFailedError extends QuorateError {
  readonly jobId: string
  readonly taskId: string | undefined
  /** What happened at each try of that task, the first first. */
  readonly attempts: readonly AttemptRecord[]

  constructor(code: string, message: string, jobId: string, failure: JobFailure = {}, options?: QuorateErrorOptions) {
    super(code, message, false, options)
    this.jobId = jobId
    this.taskId = failure.taskId
    this.attempts = failure.attempts ?? []
  }
}

/** The job was cancelled by `cancel`, its signal or its node's close; nothing of it is visible. Code `JOB_CANCELLED`; the cause is the reason. */
export class JobCancelledError extends QuorateError {
  readonly jobId: string

  constructor(jobId: string, reason: unknown) {
    super('JOB_CANCELLED', `job ${jobId} was cancelled`, false, { cause: reason })
    this.jobId = jobId
  }
}

/** The output is there already, or another job is making it. Code `OUTPUT_EXISTS`. */
export class OutputExistsError extends QuorateError {
  constructor(message: string, options?: QuorateErrorOptions) {
    super('OUTPUT_EXISTS', message, false, options)
  }
}

/** What user code threw in a worker thread, as the cause of a JobFailedError. Code: that of the attempt. */
export class TaskError extends QuorateError {
  /** The record or key that it happened at. */
  readonly at: string | undefined

  constructor(record: AttemptRecord) {
    super(record.code, record.at === undefined ? record.message : `${record.message} (at ${record.at})`, false)
    this.at = record.at
    if (record.stack !== undefined) this.stack = record.stack
  }
}
