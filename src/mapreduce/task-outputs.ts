/**
 * TaskOutputs: what the attempts of a node made and others still want: map runs, and parts of the output. Kept in memory up to a bound over
 * all jobs, beyond it in files of the job's temporary folder.
 *
 * Invariants: 1. an output is written once and never changed; 2. what is read is what was stored, or an error; 3. after `drop` nothing of an attempt is left
 * in memory or on disk once reads under way have ended.
 */
import { mkdir, open, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { QuorateError } from '../base/errors.js'
import type { SegmentIndex } from './map-buffer.js'
import type { ReadItem } from './protocol.js'
import type { TaskBytes } from './task.js'

/** Bytes of task outputs that a node keeps in memory, over all its jobs. */
export class MemoryBudget {
  readonly maxBytes: number
  usedBytes = 0

  constructor(maxBytes: number) {
    this.maxBytes = maxBytes
  }

  take(bytes: number): boolean {
    if (this.usedBytes + bytes > this.maxBytes) return false
    this.usedBytes += bytes
    return true
  }
}

interface Blob {
  data: TaskBytes
  /** Where each part begins, and where the last ends; [0, length] for a reduce. */
  readonly starts: readonly number[]
}

/** What one attempt made. */
export interface AttemptName {
  readonly kind: 'map' | 'reduce'
  readonly taskId: number
  readonly attempt: number
}

export function attemptKey({ kind, taskId, attempt }: AttemptName): string {
  return `${kind}-${taskId}-${attempt}`
}

export class TaskOutputs {
  /** The job's temporary folder on this node. */
  readonly folder: string
  readonly #budget: MemoryBudget
  readonly #blobs = new Map<string, Blob[]>()
  #made: Promise<unknown> | undefined
  #spilled = 0

  constructor(folder: string, budget: MemoryBudget) {
    this.folder = folder
    this.#budget = budget
  }

  /** Makes the folder when it is first needed. */
  async makeFolder(): Promise<void> {
    this.#made ??= mkdir(this.folder, { recursive: true })
    await this.#made
  }

  async storeMap(name: AttemptName, segments: readonly { data: TaskBytes; index: SegmentIndex }[]): Promise<void> {
    await this.#store(
      name,
      segments.map(({ data, index }) => {
        const starts = [0]
        for (const length of index.lengths) starts.push((starts[starts.length - 1] as number) + length)
        return { data, starts }
      }),
    )
  }

  async storeReduce(name: AttemptName, data: TaskBytes, length: number): Promise<void> {
    await this.#store(name, [{ data, starts: [0, length] }])
  }

  async #store(name: AttemptName, blobs: Blob[]): Promise<void> {
    for (const blob of blobs) {
      if (!('bytes' in blob.data) || this.#budget.take(blob.data.bytes.length)) continue
      await this.makeFolder()
      const path = join(this.folder, `kept-${this.#spilled++}`)
      const { bytes } = blob.data
      await writeFile(path, bytes, { flag: 'wx' })
      blob.data = { path, length: bytes.length }
    }
    this.#blobs.set(attemptKey(name), blobs)
  }

  has(name: AttemptName): boolean {
    return this.#blobs.has(attemptKey(name))
  }

  #range(item: ReadItem): { blob: Blob; start: number; length: number } {
    const blob = this.#blobs.get(attemptKey(item))?.[item.segment]
    const start = blob?.starts[item.part]
    const end = blob?.starts[item.part + 1]
    if (blob === undefined || start === undefined || end === undefined) {
      throw new QuorateError('NO_OUTPUT', `no output of ${attemptKey(item)} here`, false)
    }
    if (item.offset + item.length > end - start) throw new QuorateError('NO_OUTPUT', `${attemptKey(item)} has no such bytes`, false)
    return { blob, start: start + item.offset, length: item.length }
  }

  /** Where a run lies, for a reduce on the same node: no copy then. */
  locate(item: ReadItem): { readonly path: string; readonly offset: number } | undefined {
    const { blob, start } = this.#range(item)
    return 'path' in blob.data ? { path: blob.data.path, offset: start } : undefined
  }

  /** The bytes of the items, one behind the other. @throws QuorateError `NO_OUTPUT` */
  async read(items: readonly ReadItem[]): Promise<Uint8Array> {
    const ranges = items.map((item) => this.#range(item))
    const result = new Uint8Array(ranges.reduce((sum, { length }) => sum + length, 0))
    let at = 0
    for (const { blob, start, length } of ranges) {
      if ('bytes' in blob.data) result.set(blob.data.bytes.subarray(start, start + length), at)
      else await readRange(blob.data.path, result.subarray(at, at + length), start)
      at += length
    }
    return result
  }

  /** Forgets what an attempt made. */
  async drop(name: AttemptName): Promise<void> {
    const blobs = this.#blobs.get(attemptKey(name)) ?? []
    this.#blobs.delete(attemptKey(name))
    for (const { data } of blobs) {
      if ('bytes' in data) this.#budget.usedBytes -= data.bytes.length
      else await rm(data.path, { force: true })
    }
  }

  /** Forgets everything and removes the folder. */
  async clear(): Promise<void> {
    for (const blobs of this.#blobs.values()) for (const { data } of blobs) if ('bytes' in data) this.#budget.usedBytes -= data.bytes.length
    this.#blobs.clear()
    // A thread that was just stopped may write once more: try again then.
    await rm(this.folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 })
    this.#made = undefined
  }
}

/** Whatever keeps the bytes from being read, they are not to be had here: the task runs again. */
async function readRange(path: string, into: Uint8Array, position: number): Promise<void> {
  try {
    const file = await open(path, 'r')
    try {
      for (let done = 0; done < into.length; ) {
        const { bytesRead } = await file.read(into, done, into.length - done, position + done)
        if (bytesRead === 0) throw new Error('the file is shorter than it was')
        done += bytesRead
      }
    } finally {
      await file.close()
    }
  } catch (cause) {
    throw new QuorateError('NO_OUTPUT', `a kept output cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`, false, { cause })
  }
}
