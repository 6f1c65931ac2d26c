/**
 * Runs one map task or one reduce task, start to end, in the thread that calls it: a worker thread, or the caller's own with `engine: 'inline'`.
 * This is the only place where user code is called.
 *
 * Invariants: 1. a task's result depends on its input, the job and the parameters alone; 2. memory is bounded: what a task makes goes to files of the
 * given folder beyond the given bounds; 3. an error of user code is told with the record or key it happened at.
 */
import { closeSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { InvalidArgumentError } from '../base/errors.js'
import { ByteBuilder } from './byte-builder.js'
import { RecordReader } from './entries.js'
import type { AnyJob, Counter, InputRecord, JobKey, TaskContext } from './job.js'
import { MapBuffer, maxKeyBytes, type SegmentIndex } from './map-buffer.js'
import { closeFiles, GroupValues, MergedGroups, reduceFanIn } from './merge.js'
import { RunDamagedError, type RunSource } from './run-reader.js'
import { writeValue } from './value-codec.js'

/** Bytes that a task made: in memory, or in a file of its folder. */
export type TaskBytes = { readonly bytes: Uint8Array<ArrayBuffer> } | { readonly path: string; readonly length: number }

interface TaskOptions {
  readonly job: AnyJob
  readonly params: unknown
  readonly taskId: string
  readonly attempt: number
  /** Where this attempt may write, under names that begin with `fileName`. */
  readonly folder: string
  readonly fileName: string
  /** What the result may leave in memory; the rest goes to files. */
  readonly keepBytes: number
}

export interface MapTaskOptions extends TaskOptions {
  readonly split: Uint8Array
  readonly records: 'lines' | 'whole'
  readonly partitions: number
  /** The map buffer's bound. */
  readonly memoryBytes: number
}

export interface MapTaskResult {
  readonly segments: readonly { readonly data: TaskBytes; readonly index: SegmentIndex }[]
  readonly records: number
  readonly pairs: number
  readonly spilledBytes: number
  readonly counters: Readonly<Record<string, number>>
}

/** A run for a reduce task: in memory, or a range of a file of this machine. */
export type ReduceRun = { readonly map: number; readonly length: number; readonly checksum: number } & (
  | { readonly bytes: Uint8Array }
  | { readonly path: string; readonly offset: number }
)

export interface ReduceTaskOptions extends TaskOptions {
  readonly runs: readonly ReduceRun[]
  /** `lines`: as `format` writes; `pairs`: key and value in binary, for a store or an array. */
  readonly output: 'lines' | 'pairs'
}

export interface ReduceTaskResult {
  readonly output: TaskBytes
  readonly length: number
  readonly checksum: number
  /** Keys reduced. */
  readonly groups: number
  /** Pairs in the output. */
  readonly pairs: number
  readonly spilledBytes: number
  readonly counters: Readonly<Record<string, number>>
}

/** User code failed; `at` says on what. */
export class TaskFailure extends Error {
  readonly at: string

  constructor(at: string, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
    this.name = 'TaskFailure'
    this.at = at
  }
}

const maxCounters = 1000

class Counters {
  readonly #sums = new Map<string, number>()

  counter(name: string): Counter {
    if (typeof name !== 'string' || name === '' || name.length > 200) throw new InvalidArgumentError('a counter needs a name of 1 to 200 characters')
    if (!this.#sums.has(name)) {
      if (this.#sums.size >= maxCounters) throw new InvalidArgumentError(`a job has at most ${maxCounters} counters`)
      this.#sums.set(name, 0)
    }
    return {
      add: (amount) => {
        if (!Number.isFinite(amount)) throw new InvalidArgumentError(`counter ${name}: ${amount} is not a finite number`)
        this.#sums.set(name, (this.#sums.get(name) ?? 0) + amount)
      },
    }
  }

  sums(): Record<string, number> {
    return Object.fromEntries(this.#sums)
  }
}

function makeContext(options: TaskOptions, counters: Counters): TaskContext {
  return { params: options.params, taskId: options.taskId, attempt: options.attempt, counter: (name) => counters.counter(name) }
}

/** Runs a map task: every record of the split through `map`, all it emits grouped, combined, sorted and cut into parts. */
export async function runMapTask(options: MapTaskOptions): Promise<MapTaskResult> {
  const { job } = options
  const counters = new Counters()
  const segments: { data: TaskBytes; index: SegmentIndex }[] = []
  let spilledBytes = 0
  const spill = (at: number): void => {
    const segment = segments[at]
    if (segment === undefined || !('bytes' in segment.data)) return
    const path = join(options.folder, `${options.fileName}-${at}`)
    const length = segment.data.bytes.length
    writeFile(path, segment.data.bytes)
    segments[at] = { data: { path, length }, index: segment.index }
    spilledBytes += length
  }
  const buffer = new MapBuffer({
    job,
    partitions: options.partitions,
    memoryBytes: options.memoryBytes,
    onSegment: (segment) => {
      // The last one may stay in memory; that another comes shows that this one was not the last.
      spill(segments.length - 1)
      segments.push({ data: { bytes: segment.bytes }, index: segment.index })
    },
  })
  let current: InputRecord | undefined
  const context = { ...makeContext(options, counters), emit: buffer.emit }
  const records = new RecordReader(options.split, options.records)
  try {
    await records.each((record) => {
      current = record
      return job.map(record, context)
    })
    current = undefined
    buffer.end()
  } catch (error) {
    if (current === undefined) throw new TaskFailure('the end of the split', error)
    throw new TaskFailure(`${current.key} at byte ${current.offset}`, error)
  }
  const last = segments[segments.length - 1]
  if (last !== undefined && 'bytes' in last.data && last.data.bytes.length > options.keepBytes) spill(segments.length - 1)
  return { segments, records: records.records, pairs: buffer.pairs, spilledBytes, counters: counters.sums() }
}

/** Runs a reduce task: merges the runs of its part and calls `reduce` for each key. */
export async function runReduceTask(options: ReduceTaskOptions): Promise<ReduceTaskResult> {
  const { job } = options
  const counters = new Counters()
  const opened: number[] = []
  const files = new Map<string, number>()
  const output = new TaskOutput(join(options.folder, `${options.fileName}-out`), options.keepBytes)
  let groups = 0
  let merges = 0
  let currentKey: JobKey | undefined
  try {
    const sources = options.runs.map((run): RunSource => {
      const { map, length, checksum } = run
      if ('bytes' in run) return { map, length, checksum, bytes: run.bytes }
      let file = files.get(run.path)
      if (file === undefined) {
        try {
          file = openSync(run.path, 'r')
        } catch (cause) {
          throw new RunDamagedError({ map, length, checksum }, `its file cannot be opened: ${cause instanceof Error ? cause.message : String(cause)}`)
        }
        opened.push(file)
        files.set(run.path, file)
      }
      return { map, length, checksum, file, offset: run.offset }
    })
    const merged = new MergedGroups(reduceFanIn(sources, () => join(options.folder, `${options.fileName}-merge-${merges++}`), opened))
    const emit = options.output === 'lines' ? lineWriter(job, output) : pairWriter(job, output)
    const context = { ...makeContext(options, counters), emit }
    const bytesAsKeys = job.keys === 'bytes'
    while (merged.next()) {
      const key: JobKey = bytesAsKeys ? merged.keyAsBytes() : merged.keyAsText()
      currentKey = key
      groups++
      const values = new GroupValues(merged.readers)
      let result: unknown = job.reduce(key, values, context)
      if (isPromise(result)) result = await result
      values.end()
      if (result !== undefined) emit(key, result)
    }
    currentKey = undefined
    return { ...output.finish(), groups, counters: counters.sums() }
  } catch (error) {
    if (currentKey === undefined) throw error
    throw new TaskFailure(`key ${typeof currentKey === 'string' ? JSON.stringify(currentKey) : Buffer.from(currentKey).toString('hex')}`, error)
  } finally {
    output.close()
    closeFiles(opened)
  }
}

function isPromise(value: unknown): value is Promise<unknown> {
  return value !== null && typeof value === 'object' && typeof (value as { then?: unknown }).then === 'function' && value instanceof Promise
}

type Emit = (key: JobKey, value: unknown) => void

function checkKey(job: AnyJob, key: JobKey): void {
  if ((job.keys === 'bytes') !== key instanceof Uint8Array || (typeof key !== 'string' && !(key instanceof Uint8Array))) {
    throw new InvalidArgumentError(`emit: the key must be ${job.keys === 'bytes' ? 'bytes' : 'text'}`, 'INVALID_KEY')
  }
}

function lineWriter(job: AnyJob, output: TaskOutput): Emit {
  const format = job.format?.bind(job)
  return (key, value) => {
    checkKey(job, key)
    const { builder } = output
    if (format !== undefined) {
      const formatted = format(key, value)
      if (typeof formatted === 'string') builder.utf8(formatted)
      else if (formatted instanceof Uint8Array) builder.raw(formatted)
      else throw new InvalidArgumentError('format() gave neither text nor bytes')
    } else {
      if (typeof key === 'string') builder.utf8(key)
      else builder.raw(key)
      builder.byte(0x20)
      if (typeof value === 'string') builder.utf8(value)
      else if (value instanceof Uint8Array) builder.raw(value)
      else builder.utf8(JSON.stringify(value) ?? 'null')
      builder.byte(0x0a)
    }
    output.wrote()
  }
}

/** Pairs for a store or an array: `keyLength varint, key, valueLength varint, MessagePack`. */
function pairWriter(job: AnyJob, output: TaskOutput): Emit {
  const scratch = new ByteBuilder()
  return (key, value) => {
    checkKey(job, key)
    const { builder } = output
    scratch.reset()
    if (typeof key === 'string') scratch.utf8(key)
    else scratch.raw(key)
    if (scratch.length > maxKeyBytes) throw new InvalidArgumentError(`emit: a key of more than ${maxKeyBytes} bytes`, 'KEY_TOO_LARGE')
    builder.varint(scratch.length)
    builder.raw(scratch.view())
    writeValue(builder, value)
    output.wrote()
  }
}

/** The output of a reduce: in memory up to a bound, then all of it in a file. */
class TaskOutput {
  readonly builder = new ByteBuilder(16 * 1024)
  readonly #path: string
  readonly #keepBytes: number
  #file: number | undefined
  #fileBytes = 0
  #checksum = 0
  #pairs = 0

  constructor(path: string, keepBytes: number) {
    this.#path = path
    this.#keepBytes = Math.min(keepBytes, 64 * 1024 * 1024)
  }

  /** A pair was appended to the builder. */
  wrote(): void {
    this.#pairs++
    if (this.builder.length > (this.#file === undefined ? this.#keepBytes : 1024 * 1024)) this.#flush()
  }

  #flush(): void {
    this.#file ??= openSync(this.#path, 'wx')
    const view = this.builder.view()
    writeFully(this.#file, view)
    this.#checksum = crc32(view, this.#checksum)
    this.#fileBytes += view.length
    this.builder.reset()
  }

  finish(): { output: TaskBytes; length: number; checksum: number; pairs: number; spilledBytes: number } {
    if (this.#file === undefined) {
      const bytes = this.builder.take()
      return { output: { bytes }, length: bytes.length, checksum: crc32(bytes), pairs: this.#pairs, spilledBytes: 0 }
    }
    this.#flush()
    const length = this.#fileBytes
    return { output: { path: this.#path, length }, length, checksum: this.#checksum, pairs: this.#pairs, spilledBytes: length }
  }

  close(): void {
    if (this.#file !== undefined) closeFiles([this.#file])
    this.#file = undefined
  }
}

function writeFully(file: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done, bytes.length - done)
}

function writeFile(path: string, bytes: Uint8Array): void {
  const file = openSync(path, 'wx')
  try {
    writeFully(file, bytes)
  } finally {
    closeSync(file)
  }
}
