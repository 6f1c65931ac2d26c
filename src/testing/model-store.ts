/**
 * ModelStore: the semantics of the KV interface in their simplest form: one synchronous map in memory. What a real store answers is right when this one
 * could have answered it.
 *
 * Invariants: 1. the revision rises by one with each effective write, deletes included, and never otherwise; 2. a key's version counts its writes since it was
 * created; 3. bytes are copied on the way in and on the way out, so that no caller shares memory with the store.
 */
import { ConditionFailedError } from '../base/errors.js'
import type { DeleteResult, KeyValue, WriteResult } from '../engine/kv.js'

export interface ModelCondition {
  readonly ifVersion?: number | undefined
  readonly ifRevision?: number | undefined
}

/** A range of keys: every bound that is given holds. Keys are latin1 texts (`modelKey`), whose order is the order of their bytes. */
export interface ModelRange {
  readonly prefix: string
  readonly gt?: string | undefined
  readonly gte?: string | undefined
  readonly lt?: string | undefined
  readonly lte?: string | undefined
  readonly reverse: boolean
}

/** One effective write, as it happened: the truth that a test may compare a history with. */
export interface ModelWrite {
  readonly key: Uint8Array
  /** undefined for a delete. */
  readonly value: Uint8Array | undefined
  readonly version: number
  readonly revision: number
}

interface Entry {
  readonly value: Uint8Array
  readonly version: number
  readonly revision: number
}

/** Bytes as a text that compares as they do. */
export function modelKey(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
}

function keyBytes(key: string): Uint8Array {
  return new Uint8Array(Buffer.from(key, 'latin1'))
}

export class ModelStore {
  readonly #entries = new Map<string, Entry>()
  /** All keys in order; null after a change of the set of keys. */
  #sortedKeys: string[] | null = []
  #revision = 0
  readonly #onWrite: ((write: ModelWrite) => void) | undefined

  constructor(options: { readonly onWrite?: (write: ModelWrite) => void } = {}) {
    this.#onWrite = options.onWrite
  }

  get revision(): number {
    return this.#revision
  }

  /** How many keys there are. */
  get size(): number {
    return this.#entries.size
  }

  read(key: Uint8Array): KeyValue | undefined {
    const text = modelKey(key)
    const entry = this.#entries.get(text)
    return entry && present(text, entry)
  }

  write(key: Uint8Array, value: Uint8Array, condition: ModelCondition = {}): WriteResult {
    const text = modelKey(key)
    const before = this.#entries.get(text)
    check(before, condition)
    const entry: Entry = { value: value.slice(), version: (before?.version ?? 0) + 1, revision: ++this.#revision }
    if (before === undefined) this.#sortedKeys = null
    this.#entries.set(text, entry)
    this.#onWrite?.({ key: keyBytes(text), value: entry.value.slice(), version: entry.version, revision: entry.revision })
    return { version: entry.version, revision: entry.revision }
  }

  remove(key: Uint8Array, condition: ModelCondition = {}): DeleteResult {
    const text = modelKey(key)
    const before = this.#entries.get(text)
    check(before, condition)
    if (before === undefined) return { deleted: false, revision: this.#revision }
    this.#entries.delete(text)
    this.#sortedKeys = null
    this.#revision++
    this.#onWrite?.({ key: keyBytes(text), value: undefined, version: 0, revision: this.#revision })
    return { deleted: true, revision: this.#revision }
  }

  /** Up to `limit` entries of the range in its direction, as of now. */
  page(range: ModelRange, limit: number): KeyValue[] {
    this.#sortedKeys ??= [...this.#entries.keys()].sort()
    const keys = this.#sortedKeys
    const result: KeyValue[] = []
    // The first key that is in the range, or after it, in the direction of the scan.
    let position = range.reverse ? lastPosition(keys, range) : firstPosition(keys, range)
    const step = range.reverse ? -1 : 1
    for (; result.length < limit; position += step) {
      const key = keys[position]
      if (key === undefined || !isInside(key, range)) break
      result.push(present(key, this.#entries.get(key) as Entry))
    }
    return result
  }
}

function present(key: string, entry: Entry): KeyValue {
  return { key: keyBytes(key), value: entry.value.slice(), version: entry.version, revision: entry.revision }
}

function check(before: Entry | undefined, condition: ModelCondition): void {
  const version = before?.version ?? 0
  const revision = before?.revision ?? 0
  if (condition.ifVersion !== undefined && condition.ifVersion !== version) {
    throw new ConditionFailedError(`version is ${version}, not ${condition.ifVersion}`, version, revision)
  }
  if (condition.ifRevision !== undefined && condition.ifRevision !== revision) {
    throw new ConditionFailedError(`revision is ${revision}, not ${condition.ifRevision}`, version, revision)
  }
}

function isInside(key: string, range: ModelRange): boolean {
  return !isBelow(key, range) && !isAbove(key, range)
}

function isBelow(key: string, range: ModelRange): boolean {
  return (range.gt !== undefined && key <= range.gt) || (range.gte !== undefined && key < range.gte) || key < range.prefix
}

function isAbove(key: string, range: ModelRange): boolean {
  return (
    (range.lt !== undefined && key >= range.lt) ||
    (range.lte !== undefined && key > range.lte) ||
    (key > range.prefix && !key.startsWith(range.prefix))
  )
}

/** How many of the sorted keys, from the first on, satisfy a test that holds for a prefix of them. */
function countWhile(keys: readonly string[], test: (key: string) => boolean): number {
  let low = 0
  let high = keys.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (test(keys[middle] as string)) low = middle + 1
    else high = middle
  }
  return low
}

function firstPosition(keys: readonly string[], range: ModelRange): number {
  return countWhile(keys, (key) => isBelow(key, range))
}

function lastPosition(keys: readonly string[], range: ModelRange): number {
  return countWhile(keys, (key) => !isAbove(key, range)) - 1
}
