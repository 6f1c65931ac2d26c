/**
 * Where a job's output goes, as the caller says it, and the interface behind which it is written: a sink.
 *
 * Invariants of every sink: 1. it gets each part whole and checked, as a file, at most once successfully; 2. nothing is visible before `commit`, and
 * `commit` makes all of it visible at once or nothing; 3. after `abort` nothing of the job is left.
 */
import { InvalidArgumentError } from '../base/errors.js'
import type { KeyLike } from '../engine/kv.js'
import type { JobKey } from './job.js'

export interface FolderOutput {
  readonly kind: 'folder'
  readonly path: string
  readonly overwrite: boolean
}

export interface KvOutput {
  readonly kind: 'kv'
  readonly prefix: KeyLike
  readonly overwrite: boolean
}

export interface ArrayOutput {
  readonly kind: 'array'
  readonly maxBytes: number
}

export type JobOutput = FolderOutput | KvOutput | ArrayOutput

/**
 * A folder that appears whole when the job has succeeded: `part-00000` and so on, in byte order of the keys within a part, and `_SUCCESS`, a JSON manifest with
 * the size, pairs and CRC-32 of each part. It must not exist yet, or be empty, unless `overwrite`.
 */
export function toFolder(path: string, options: { readonly overwrite?: boolean } = {}): FolderOutput {
  if (typeof path !== 'string' || path === '') throw new InvalidArgumentError('toFolder needs a path')
  return { kind: 'folder', path, overwrite: options.overwrite ?? false }
}

/**
 * Keys of the store, read with `openOutput`: made visible by a single conditional write when the job has succeeded. All keys that begin with the
 * prefix belong to the output. One job at a time writes to a prefix. A key that the job emits twice has the later value.
 */
export function toKv(options: { readonly prefix: KeyLike; readonly overwrite?: boolean }): KvOutput {
  if (options.prefix.length === 0) throw new InvalidArgumentError('toKv needs a prefix of its own')
  return { kind: 'kv', prefix: options.prefix, overwrite: options.overwrite ?? false }
}

/** All pairs in the result, part after part. The job fails when they take more than `maxBytes` as MessagePack. Default 64 MiB. */
export function toArray(options: { readonly maxBytes?: number } = {}): ArrayOutput {
  const maxBytes = options.maxBytes ?? 64 * 1024 * 1024
  if (!Number.isSafeInteger(maxBytes) || maxBytes < 0) throw new InvalidArgumentError(`maxBytes must be a whole number from 0 on, not ${maxBytes}`)
  return { kind: 'array', maxBytes }
}

/** What a part turned out to be. */
export interface PartInfo {
  readonly bytes: number
  readonly pairs: number
  /** CRC-32. */
  readonly checksum: number
}

/** A file of the folder output, as its manifest tells of it. */
export interface OutputFile extends PartInfo {
  readonly name: string
}

export interface FolderResult {
  readonly kind: 'folder'
  readonly path: string
  readonly files: readonly OutputFile[]
}

export interface KvResult {
  readonly kind: 'kv'
  /** Names this output among those that the prefix has had. */
  readonly generation: string
  /** The fencing token that its commit record holds. */
  readonly fence: number
  readonly pairs: number
}

export interface ArrayResult<Key extends JobKey = JobKey, Value = unknown> {
  readonly kind: 'array'
  readonly pairs: readonly (readonly [Key, Value])[]
}

export type OutputResult = FolderResult | KvResult | ArrayResult

/** The result that an output has. */
export type ResultOf<Output extends JobOutput> = Output extends FolderOutput ? FolderResult : Output extends KvOutput ? KvResult : ArrayResult

export interface Sink {
  /** What reduce tasks have to make for it. */
  readonly format: 'lines' | 'pairs'
  /** Where the collected parts are put: a folder that the sink has made. Throws OutputExistsError when there is an output already. */
  prepare(signal: AbortSignal): Promise<string>
  /** Takes a part that lies, whole and checked, in a file of that folder. */
  accept(part: number, path: string, info: PartInfo, signal: AbortSignal): Promise<void>
  commit(signal: AbortSignal): Promise<OutputResult>
  /** Takes everything back; gives what could not be, as warnings. */
  abort(): Promise<string[]>
}

/** The name of a part's file. */
export function partName(part: number): string {
  return `part-${String(part).padStart(5, '0')}`
}
