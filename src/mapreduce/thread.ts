/**
 * What runs in a worker thread: loads a job's module by the URL that its own node registered, and runs one task at a time with it.
 *
 * Invariants: 1. user code never leaves this thread with an exception: failures are answers; 2. large results are transferred, never copied.
 */
import { move, transferableSymbol, valueSymbol } from 'piscina'
import { InvalidArgumentError, QuorateError } from '../base/errors.js'
import { type AnyJob, isJob } from './job.js'
import { RunDamagedError } from './run-reader.js'
import {
  type MapTaskOptions,
  type MapTaskResult,
  type ReduceTaskOptions,
  type ReduceTaskResult,
  runMapTask,
  runReduceTask,
  TaskFailure,
} from './task.js'
import { bytesToValue } from './value-codec.js'

/** What is sent to a thread in place of the job's functions and parameters. */
export interface JobReference {
  /** Of the module, from this node's own registry. */
  readonly url: string
  readonly name: string
  /** MessagePack. */
  readonly params: Uint8Array
}

/** What a coordinator has to know of a job without loading it. */
export interface JobDescription {
  readonly input: 'lines' | 'files' | undefined
  readonly keys: 'text' | 'bytes'
}

type Without<T> = Omit<T, 'job' | 'params'>

export type ThreadTask =
  | { readonly kind: 'describe'; readonly job: JobReference }
  | { readonly kind: 'map'; readonly job: JobReference; readonly options: Without<MapTaskOptions> }
  | { readonly kind: 'reduce'; readonly job: JobReference; readonly options: Without<ReduceTaskOptions> }

/** A failure in a form that crosses threads and nodes. */
export interface Failure {
  readonly code: string
  readonly message: string
  readonly stack?: string | undefined
  readonly at?: string | undefined
  /** The map whose output was damaged. */
  readonly damagedMap?: number | undefined
}

export type ThreadAnswer =
  | { readonly kind: 'described'; readonly description: JobDescription }
  | { readonly kind: 'mapped'; readonly result: MapTaskResult }
  | { readonly kind: 'reduced'; readonly result: ReduceTaskResult }
  | { readonly kind: 'failed'; readonly failure: Failure }

/** Loads a job's module. @throws InvalidArgumentError `INVALID_JOB` */
export async function loadJob(url: string, name: string): Promise<AnyJob> {
  let job: unknown
  try {
    job = ((await import(url)) as { default?: unknown }).default
  } catch (cause) {
    throw new InvalidArgumentError(
      `the module of job ${name} cannot be loaded: ${cause instanceof Error ? cause.message : String(cause)}`,
      'INVALID_JOB',
      {
        cause,
      },
    )
  }
  if (!isJob(job)) throw new InvalidArgumentError(`the default export of the module of job ${name} was not made by defineJob`, 'INVALID_JOB')
  if (job.name !== name) throw new InvalidArgumentError(`the module registered as ${name} is job ${job.name}`, 'INVALID_JOB')
  return job
}

export function describeJob(job: AnyJob): JobDescription {
  return { input: job.input, keys: job.keys ?? 'text' }
}

/** An error as a failure. */
export function toFailure(error: unknown): Failure {
  if (error instanceof TaskFailure) return { ...toFailure(error.cause), at: error.at }
  if (error instanceof RunDamagedError) return { code: error.code, message: error.message, damagedMap: error.map }
  if (error instanceof QuorateError) return { code: error.code, message: error.message, stack: error.stack }
  if (error instanceof Error) {
    const code = (error as NodeJS.ErrnoException).code
    return { code: typeof code === 'string' ? code : 'USER_ERROR', message: `${error.name}: ${error.message}`, stack: error.stack }
  }
  return { code: 'USER_ERROR', message: String(error) }
}

async function run(task: ThreadTask): Promise<ThreadAnswer> {
  const job = await loadJob(task.job.url, task.job.name)
  switch (task.kind) {
    case 'describe':
      return { kind: 'described', description: describeJob(job) }
    case 'map':
      return { kind: 'mapped', result: await runMapTask({ ...task.options, job, params: bytesToValue(task.job.params) }) }
    case 'reduce':
      return { kind: 'reduced', result: await runReduceTask({ ...task.options, job, params: bytesToValue(task.job.params) }) }
  }
}

function buffersOf(answer: ThreadAnswer): ArrayBuffer[] {
  if (answer.kind === 'mapped') return answer.result.segments.flatMap(({ data }) => ('bytes' in data ? [data.bytes.buffer] : []))
  if (answer.kind === 'reduced' && 'bytes' in answer.result.output) return [answer.result.output.bytes.buffer]
  return []
}

/** The thread's entry, called by the pool. */
export default async function answer(task: ThreadTask): Promise<unknown> {
  let result: ThreadAnswer
  try {
    result = await run(task)
  } catch (error) {
    result = { kind: 'failed', failure: toFailure(error) }
  }
  const buffers = buffersOf(result)
  if (buffers.length === 0) return result
  // The pool takes any object with these two as "result, and what of it to transfer".
  return move({ [transferableSymbol]: buffers, [valueSymbol]: result } as unknown as Parameters<typeof move>[0])
}
