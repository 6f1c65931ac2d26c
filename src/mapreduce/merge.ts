/**
 * Merging sorted runs: MergedGroups goes through the groups of many runs in order of their keys, with all values of a key as one iterable that is
 * never in memory as a whole.
 *
 * Invariants: 1. keys come in byte order, each once; 2. values of a key come in the order of the runs, which is the order of the input;
 * 3. at most `maxFanIn` runs are open at a time: more are first merged into longer ones, neighbours with neighbours, so that 2 holds.
 */
import { closeSync, openSync, writeSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { ByteBuilder } from './byte-builder.js'
import { RunReader, type RunSource } from './run-reader.js'

export const maxFanIn = 128
/** Windows over runs in files take this much together. */
const windowsBytes = 16 * 1024 * 1024

export class MergedGroups {
  /** A binary heap, the least key at the top; equal keys by order of the runs. */
  readonly #heap: RunReader[] = []
  /** The runs that have the current key, in order. */
  #current: RunReader[] = []

  constructor(sources: readonly RunSource[]) {
    const windowBytes = Math.min(256 * 1024, Math.max(16 * 1024, Math.floor(windowsBytes / Math.max(1, sources.length))))
    sources.forEach((source, order) => {
      if (source.length === 0) return
      const reader = new RunReader(source, order, windowBytes)
      if (reader.next()) this.#push(reader)
    })
  }

  #before(left: RunReader, right: RunReader): boolean {
    const order = left.compareKey(right)
    return order !== 0 ? order < 0 : left.order < right.order
  }

  #push(reader: RunReader): void {
    const heap = this.#heap
    let at = heap.push(reader) - 1
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!this.#before(reader, heap[parent] as RunReader)) break
      heap[at] = heap[parent] as RunReader
      at = parent
    }
    heap[at] = reader
  }

  #pop(): RunReader {
    const heap = this.#heap
    const top = heap[0] as RunReader
    const last = heap.pop() as RunReader
    const length = heap.length
    if (length > 0) {
      let at = 0
      for (;;) {
        let child = 2 * at + 1
        if (child >= length) break
        if (child + 1 < length && this.#before(heap[child + 1] as RunReader, heap[child] as RunReader)) child++
        if (!this.#before(heap[child] as RunReader, last)) break
        heap[at] = heap[child] as RunReader
        at = child
      }
      heap[at] = last
    }
    return top
  }

  /** Moves to the next key; false at the end. Values of the last key that were not read are passed over. */
  next(): boolean {
    for (const reader of this.#current) if (reader.next()) this.#push(reader)
    this.#current = []
    if (this.#heap.length === 0) return false
    const first = this.#pop()
    this.#current.push(first)
    while (this.#heap.length > 0 && (this.#heap[0] as RunReader).compareKey(first) === 0) this.#current.push(this.#pop())
    return true
  }

  /** The runs that have the current key, each at its first value. */
  get readers(): readonly RunReader[] {
    return this.#current
  }

  keyAsText(): string {
    return (this.#current[0] as RunReader).keyAsText()
  }

  keyAsBytes(): Uint8Array {
    return (this.#current[0] as RunReader).keyAsBytes()
  }
}

/** The values of one key, over all runs that have it. Can be gone through once, and not after its `reduce` has ended. */
export class GroupValues<Value> implements Iterable<Value>, Iterator<Value> {
  #readers: readonly RunReader[]
  #at = 0

  constructor(readers: readonly RunReader[]) {
    this.#readers = readers
  }

  [Symbol.iterator](): this {
    return this
  }

  next(): IteratorResult<Value, undefined> {
    for (;;) {
      const reader = this.#readers[this.#at]
      if (reader === undefined) return { done: true, value: undefined }
      if (reader.valuesLeft > 0) return { done: false, value: reader.readValue() as Value }
      this.#at++
    }
  }

  /** Whoever kept the iterable gets nothing more from it: the runs now stand at another key. */
  end(): void {
    this.#readers = []
  }
}

/** Merges neighbouring runs into files, round by round, until at most `maxFanIn` are left. `makePath` names the files; their descriptors go to `opened`. */
export function reduceFanIn(sources: readonly RunSource[], makePath: () => string, opened: number[], fanIn = maxFanIn): readonly RunSource[] {
  let runs = sources.filter((source) => source.length > 0)
  while (runs.length > fanIn) {
    const next: RunSource[] = []
    for (let at = 0; at < runs.length; at += fanIn) {
      const batch = runs.slice(at, at + fanIn)
      next.push(batch.length === 1 ? (batch[0] as RunSource) : mergeToFile(batch, makePath(), opened))
    }
    runs = next
  }
  return runs
}

const flushBytes = 1024 * 1024

function mergeToFile(batch: readonly RunSource[], path: string, opened: number[]): RunSource {
  const file = openSync(path, 'wx+')
  opened.push(file)
  const builder = new ByteBuilder(flushBytes)
  let length = 0
  let checksum = 0
  const flush = (): void => {
    const view = builder.view()
    let done = 0
    while (done < view.length) done += writeSync(file, view, done, view.length - done, length + done)
    checksum = crc32(view, checksum)
    length += view.length
    builder.reset()
  }
  const groups = new MergedGroups(batch)
  while (groups.next()) {
    const key = groups.keyAsBytes()
    builder.varint(key.length)
    builder.raw(key)
    let count = 0
    for (const reader of groups.readers) count += reader.valuesLeft
    builder.varint(count)
    for (const reader of groups.readers) {
      while (reader.valuesLeft > 0) {
        const value = reader.readValueBytes()
        builder.varint(value.length)
        builder.raw(value)
        if (builder.length >= flushBytes) flush()
      }
    }
  }
  flush()
  return { file, offset: 0, length, checksum }
}

/** Closes files, whatever happens to any of them. */
export function closeFiles(files: readonly number[]): void {
  for (const file of files) {
    try {
      closeSync(file)
    } catch {
      // It was closed already: that is all we want.
    }
  }
}
