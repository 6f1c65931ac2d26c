/**
 * What a job is: the functions that a user writes, the contexts that they are called with, and `defineJob`, which checks them. A job lives in
 * a module of its own as the default export, because worker threads and other nodes can load a module by its registered name but never a closure.
 *
 * Invariants: 1. nothing here runs user code: definitions are only checked; 2. keys are text or bytes for the whole job, never both, and
 * everywhere ordered by their UTF-8 (or own) bytes.
 */
import { InvalidArgumentError } from '../base/errors.js'

/** What a job emits as keys and gets in `reduce`: a string, or bytes when the job says `keys: 'bytes'`. */
export type JobKey = string | Uint8Array

/** One piece of input: a line, a whole file, a key of the KV store with its value, or an item of a list. */
export interface InputRecord {
  /** Where it comes from: the file's path, the key in the store as text, or the item's position in the list. */
  readonly key: string
  /** The key's own bytes. */
  readonly keyBytes: Uint8Array
  /** The content as text (invalid UTF-8 becomes U+FFFD). A line comes without its line end. */
  readonly text: string
  /** The content as bytes. */
  readonly bytes: Uint8Array
  /** Where the content begins within its file, in bytes; 0 for what is not a line. */
  readonly offset: number
}

/** A named sum over the whole job. Only attempts whose result was used count. */
export interface Counter {
  add(amount: number): void
}

export interface TaskContext<Params = unknown> {
  /** The plain data that the caller gave as `params`. */
  readonly params: Params
  /** `map-3`, `reduce-0`. */
  readonly taskId: string
  /** 1 for the first try of this task. */
  readonly attempt: number
  /** The counter of that name; made when it is first asked for. At most 1,000 names in a job. */
  counter(name: string): Counter
}

export interface MapContext<Key extends JobKey, Value, Params = unknown> extends TaskContext<Params> {
  /** Hands a pair to the reduce of its key. Values are what MessagePack carries: null, booleans, numbers, text, bytes, arrays and plain objects of these. */
  readonly emit: (key: Key, value: Value) => void
}

export interface ReduceContext<Key extends JobKey, Out, Params = unknown> extends TaskContext<Params> {
  /** Adds a pair to the output, beside or instead of a returned value. Pairs stand in the output in the order emitted. */
  readonly emit: (key: Key, value: Out) => void
}

/** The functions of a job. */
export interface JobDefinition<Key extends JobKey = string, Value = unknown, Out = Value, Params = unknown> {
  /** Must be the name under which nodes register the module. */
  readonly name: string
  /** What one record of a file is. Default: lines for files; values of a store and items of a list come whole unless this says `lines`. */
  readonly input?: 'lines' | 'files'
  /** Whether keys are text (default) or bytes. */
  readonly keys?: Key extends Uint8Array ? 'bytes' : 'text'
  /** Called for each record of the input; emits pairs. May be asynchronous. Runs at least once for each record, once when nothing fails. */
  map(record: InputRecord, context: MapContext<Key, Value, Params>): void | Promise<void>
  /**
   * Joins two values of a key before they travel; must be associative, and is called any number of times, in the order of the emits.
   * The largest single saving for sums, counts and the like.
   */
  combine?(left: Value, right: Value, key: Key): Value
  /**
   * Called once for each key with all its values, in the order of the input. `values` can be read once and is not all in memory. What it
   * returns is the key's output; undefined adds nothing. May be asynchronous.
   */
  // biome-ignore lint/suspicious/noConfusingVoidType: a reduce that only emits returns nothing.
  reduce(key: Key, values: Iterable<Value>, context: ReduceContext<Key, Out, Params>): Out | undefined | void | Promise<Out | undefined | void>
  /** Which of the `reducers` parts a key belongs to, from 0; must always say the same for a key. Default: FNV-1a of the key's bytes. */
  partition?(key: Key, reducers: number): number
  /** How a pair of the output is written to a folder. Default: key, a space, the value (text as it is, else JSON), a line end. */
  format?(key: Key, value: Out): string | Uint8Array
}

const marker = Symbol.for('quorate.mapreduce.job')

/** A checked definition: what a job's module exports by default. */
export type Job<Key extends JobKey = string, Value = unknown, Out = Value, Params = unknown> = JobDefinition<Key, Value, Out, Params>

/** Any job, whatever its types. */
// biome-ignore lint/suspicious/noExplicitAny: the functions of a job are contravariant in its types; only any lets all of them in.
export type AnyJob = Job<any, any, any, any>

const namePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/

/** Whether a name can be a job's: letters, digits, `.`, `_` and `-`, at most 100, beginning with a letter or digit. */
export function isJobName(name: unknown): name is string {
  return typeof name === 'string' && namePattern.test(name)
}

/**
 * Makes a job of its functions, checked.
 *
 * ```ts
 * // word-count.ts
 * export default defineJob<string, number>({
 *   name: 'word-count',
 *   map({ text }, { emit }) {
 *     for (const word of text.toLowerCase().split(/[^a-z]+/)) if (word !== '') emit(word, 1)
 *   },
 *   combine: (left, right) => left + right,
 *   reduce(word, counts) {
 *     let total = 0
 *     for (const count of counts) total += count
 *     return total
 *   },
 * })
 * ```
 *
 * @throws InvalidArgumentError `INVALID_JOB` when a function is missing or an option is not one of those allowed.
 */
export function defineJob<Key extends JobKey = string, Value = unknown, Out = Value, Params = unknown>(
  definition: JobDefinition<Key, Value, Out, Params>,
): Job<Key, Value, Out, Params> {
  const refuse = (why: string): never => {
    throw new InvalidArgumentError(`this is not a job: ${why}`, 'INVALID_JOB')
  }
  if (definition === null || typeof definition !== 'object') refuse('the definition is not an object')
  if (!isJobName(definition.name)) refuse('its name is not of letters, digits, ".", "_" and "-", at most 100')
  for (const required of ['map', 'reduce'] as const) if (typeof definition[required] !== 'function') refuse(`${required} is not a function`)
  for (const optional of ['combine', 'partition', 'format'] as const) {
    if (definition[optional] !== undefined && typeof definition[optional] !== 'function') refuse(`${optional} is not a function`)
  }
  if (definition.input !== undefined && definition.input !== 'lines' && definition.input !== 'files') refuse('input is neither "lines" nor "files"')
  if (definition.keys !== undefined && definition.keys !== 'text' && definition.keys !== 'bytes') refuse('keys is neither "text" nor "bytes"')
  return Object.freeze(Object.assign(Object.create(null), definition, { [marker]: true })) as Job<Key, Value, Out, Params>
}

/** Whether a module's export was made by `defineJob`, of this or another copy of the package. */
export function isJob(value: unknown): value is AnyJob {
  return value !== null && typeof value === 'object' && (value as Record<symbol, unknown>)[marker] === true
}
