/** What a caller says of a job to run, its result, and the checking of both against the limits. */
import { encode } from '@msgpack/msgpack'
import { InvalidArgumentError } from '../base/errors.js'
import type { JobInput } from './input.js'
import { isJobName } from './job.js'
import type { JobOutput, ResultOf } from './output.js'
import { limits } from './protocol.js'

export interface JobOptions<Output extends JobOutput = JobOutput> {
  /** The name under which nodes have registered the job's module. */
  readonly job: string
  /** `fromFiles`, `fromKv`, `fromItems`. */
  readonly input: JobInput
  /** `toFolder`, `toKv`, `toArray`. */
  readonly output: Output
  /** Plain data for the job's functions, as MessagePack carries it; at most 1 MiB. */
  readonly params?: unknown
  /** Parts of the output, and reduce tasks. Default 8. Not by the size of the cluster: the same job gives the same parts wherever it runs. */
  readonly reducers?: number | undefined
  /** Input of a map task, about. Default 8 MiB. */
  readonly splitBytes?: number | undefined
  /** A task that takes longer loses its thread and fails. Default 10 minutes. */
  readonly taskTimeoutMs?: number | undefined
  /** Tries of a task before the job fails. Losing a node does not count. Default 4. */
  readonly maxAttempts?: number | undefined
  /** Waits between the tries of a task. Default 100 ms, doubled each time up to 5 s. */
  readonly backoff?: { readonly initialMs?: number; readonly factor?: number; readonly maxMs?: number } | undefined
  /** `inline` runs everything in the calling thread, one task after the other, with the same output byte for byte: for tests and debugging. Default `threads`. */
  readonly engine?: 'threads' | 'inline' | undefined
  /** Cancels the job. */
  readonly signal?: AbortSignal | undefined
  /** Fails the job when it takes longer. Default: no limit. */
  readonly timeoutMs?: number | undefined
}

export interface JobStats {
  readonly maps: number
  readonly reducers: number
  /** Attempts started. */
  readonly attempts: number
  /** Attempts that failed or were lost. */
  readonly retried: number
  readonly inputBytes: number
  readonly inputRecords: number
  /** Pairs emitted by maps, before they were combined. */
  readonly mapPairs: number
  /** Bytes of sorted runs that reduces read. */
  readonly shuffledBytes: number
  readonly spilledBytes: number
  readonly outputBytes: number
  readonly outputPairs: number
  readonly elapsedMs: number
}

export interface JobResult<Output extends JobOutput = JobOutput> {
  readonly jobId: string
  readonly output: ResultOf<Output>
  /** Sums of the counters of all attempts whose result was used. */
  readonly counters: Readonly<Record<string, number>>
  readonly stats: JobStats
  /** What could not be cleaned up now, and the like. */
  readonly warnings: readonly string[]
}

/** The options with their defaults. */
export interface CheckedOptions {
  readonly job: string
  readonly input: JobInput
  readonly output: JobOutput
  readonly params: Uint8Array
  readonly reducers: number
  readonly splitBytes: number
  readonly taskTimeoutMs: number
  readonly maxAttempts: number
  readonly backoff: { readonly initialMs: number; readonly factor: number; readonly maxMs: number }
  readonly engine: 'threads' | 'inline'
  readonly signal: AbortSignal | undefined
  readonly timeoutMs: number | undefined
}

function whole(name: string, value: number | undefined, byDefault: number, min: number, max: number): number {
  const checked = value ?? byDefault
  if (!Number.isSafeInteger(checked) || checked < min || checked > max) {
    throw new InvalidArgumentError(`${name} must be a whole number from ${min} to ${max}, not ${checked}`)
  }
  return checked
}

/** @throws InvalidArgumentError */
export function checkOptions(options: JobOptions): CheckedOptions {
  if (!isJobName(options.job)) throw new InvalidArgumentError(`${String(options.job)} is no name of a job`, 'UNKNOWN_JOB')
  const inputKinds: unknown[] = ['files', 'kv', 'items']
  if (!inputKinds.includes(options.input?.kind)) throw new InvalidArgumentError('the input must be made by fromFiles, fromKv or fromItems')
  const outputKinds: unknown[] = ['folder', 'kv', 'array']
  if (!outputKinds.includes(options.output?.kind)) throw new InvalidArgumentError('the output must be made by toFolder, toKv or toArray')
  if (options.engine !== undefined && options.engine !== 'threads' && options.engine !== 'inline')
    throw new InvalidArgumentError('engine is neither threads nor inline')
  let params: Uint8Array
  try {
    params = encode(options.params ?? null, { maxDepth: 32 })
  } catch (cause) {
    throw new InvalidArgumentError('params must be plain data, as MessagePack carries it', 'INVALID_ARGUMENT', { cause })
  }
  if (params.length > limits.maxParamsBytes)
    throw new InvalidArgumentError(`params take ${params.length} bytes, over the limit of ${limits.maxParamsBytes}`)
  const backoff = { initialMs: 100, factor: 2, maxMs: 5000, ...options.backoff }
  if (!(backoff.initialMs >= 0 && backoff.factor >= 1 && backoff.maxMs >= 0 && backoff.maxMs <= 3_600_000))
    throw new InvalidArgumentError('backoff is out of range')
  return {
    job: options.job,
    input: options.input,
    output: options.output,
    params,
    reducers: whole('reducers', options.reducers, 8, 1, limits.maxReducers),
    splitBytes: whole('splitBytes', options.splitBytes, 8 * 1024 * 1024, 1, limits.maxSplitBytes / 2),
    taskTimeoutMs: whole('taskTimeoutMs', options.taskTimeoutMs, 600_000, 1, 7 * 86_400_000),
    maxAttempts: whole('maxAttempts', options.maxAttempts, 4, 1, 1000),
    backoff,
    engine: options.engine ?? 'threads',
    signal: options.signal,
    timeoutMs: options.timeoutMs === undefined ? undefined : whole('timeoutMs', options.timeoutMs, 0, 1, 7 * 86_400_000),
  }
}

/** Adds up what attempts report. */
export class StatsCollector {
  readonly counters: Record<string, number> = Object.create(null)
  inputBytes = 0
  inputRecords = 0
  mapPairs = 0
  shuffledBytes = 0
  spilledBytes = 0
  outputBytes = 0
  outputPairs = 0
  attempts = 0
  retried = 0

  count(counters: readonly { readonly name: string; readonly sum: number }[]): void {
    for (const { name, sum } of counters) this.counters[name] = (this.counters[name] ?? 0) + sum
  }

  finish(maps: number, reducers: number, elapsedMs: number): JobStats {
    const { inputBytes, inputRecords, mapPairs, shuffledBytes, spilledBytes, outputBytes, outputPairs, attempts, retried } = this
    return { maps, reducers, attempts, retried, inputBytes, inputRecords, mapPairs, shuffledBytes, spilledBytes, outputBytes, outputPairs, elapsedMs }
  }
}
