/**
 * ModelStore: the semantics of the KV interface in their simplest form: one synchronous map in memory. What a real store answers is right when this one
 * could have answered it.
 *
 * Invariants: 1. the revision rises by one with each call that changes anything, deletes included, and never otherwise; 2. a key's version counts its writes since it was
 * created; 3. bytes are copied on the way in and on the way out, so that no caller shares memory with the store; 4. a transaction has its whole effect or none.
 */
import { ConditionFailedError, InvalidArgumentError } from '../base/errors.js'
import type { DeleteResult, KeyValue, TxnOperationResult, TxnResult, WriteResult } from '../engine/kv.js'
import { type KeyCondition, maxResultBytes, StepKind, type Transaction } from '../engine/transaction.js'

export interface ModelFence {
  readonly key: Uint8Array
  readonly revision: number
}

export interface ModelCondition {
  readonly ifVersion?: number | undefined
  readonly ifRevision?: number | undefined
  readonly fence?: ModelFence | undefined
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

/** How many of the latest writes a store keeps for those who watch. */
const keptWrites = 10_000

export class ModelStore {
  readonly #entries = new Map<string, Entry>()
  /** All keys in order; null after a change of the set of keys. */
  #sortedKeys: string[] | null = []
  #revision = 0
  readonly #onWrite: ((write: ModelWrite) => void) | undefined
  readonly #keptWrites: number
  /** The latest writes, in their order. */
  #writes: ModelWrite[] = []
  readonly #waiting = new Set<() => void>()

  constructor(options: { readonly onWrite?: (write: ModelWrite) => void; readonly keptWrites?: number } = {}) {
    this.#onWrite = options.onWrite
    this.#keptWrites = options.keptWrites ?? keptWrites
  }

  #record(write: ModelWrite): void {
    this.#onWrite?.(write)
    this.#writes.push(write)
    while (this.#writes.length > this.#keptWrites) {
      // Whole transactions only.
      const { revision } = this.#writes[0]!
      while (this.#writes[0]?.revision === revision) this.#writes.shift()
    }
    for (const wake of [...this.#waiting]) wake()
  }

  /** The writes after a revision; undefined when they are not all kept. */
  writesAfter(revision: number): readonly ModelWrite[] | undefined {
    if (revision > this.#revision || revision < this.oldestPosition) return undefined
    return this.#writes.filter((write) => write.revision > revision)
  }

  /** The least revision after which all writes are kept. */
  get oldestPosition(): number {
    return (this.#writes[0]?.revision ?? this.#revision + 1) - 1
  }

  /** Calls back at each write. Returns how to end that. */
  onChange(wake: () => void): () => void {
    this.#waiting.add(wake)
    return () => this.#waiting.delete(wake)
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
    this.#check(before, condition)
    const entry: Entry = { value: new Uint8Array(value), version: (before?.version ?? 0) + 1, revision: ++this.#revision }
    if (before === undefined) this.#sortedKeys = null
    this.#entries.set(text, entry)
    this.#record({ key: keyBytes(text), value: entry.value.slice(), version: entry.version, revision: entry.revision })
    return { version: entry.version, revision: entry.revision }
  }

  remove(key: Uint8Array, condition: ModelCondition = {}): DeleteResult {
    const text = modelKey(key)
    const before = this.#entries.get(text)
    this.#check(before, condition)
    if (before === undefined) return { deleted: false, revision: this.#revision }
    this.#entries.delete(text)
    this.#sortedKeys = null
    this.#revision++
    this.#record({ key: keyBytes(text), value: undefined, version: 0, revision: this.#revision })
    return { deleted: true, revision: this.#revision }
  }

  /** Adds to the number that a key holds. */
  increment(key: Uint8Array, by: bigint, condition: ModelCondition = {}): WriteResult & { readonly value: bigint } {
    const before = this.#entries.get(modelKey(key))
    this.#check(before, condition)
    const fail = (code: 'NOT_A_NUMBER' | 'NUMBER_OUT_OF_RANGE') => {
      throw new ConditionFailedError(`cannot add ${by}`, before?.version ?? 0, before?.revision ?? 0, { code })
    }
    const text = before === undefined ? '0' : modelKey(before.value)
    // The text of a number is the one that it would be written as.
    if (text.length > 20 || !/^-?[0-9]+$/.test(text) || BigInt(text).toString() !== text) fail('NOT_A_NUMBER')
    if (BigInt.asIntN(64, BigInt(text)) !== BigInt(text)) fail('NOT_A_NUMBER')
    const value = BigInt(text) + by
    if (BigInt.asIntN(64, value) !== value) fail('NUMBER_OUT_OF_RANGE')
    return { ...this.write(key, Buffer.from(value.toString())), value }
  }

  transact({ compares, branches }: Transaction, condition: ModelCondition = {}): TxnResult {
    this.#check(undefined, condition)
    const succeeded = compares.every((compare) => holds(compare, this.#entries.get(modelKey(compare.key))))
    // Done on a copy, which takes the place of what it is a copy of only at the end.
    const after = new Map<string, Entry>()
    const touched = new Set<string>()
    const revision = this.#revision + 1
    const find = (text: string) => (touched.has(text) ? after.get(text) : this.#entries.get(text))
    let resultBytes = 0
    const run = ({ kind, key, value }: Transaction['branches'][0][number]): TxnOperationResult => {
      const text = modelKey(key)
      const before = find(text)
      if (kind === StepKind.get) {
        resultBytes += before?.value.length ?? 0
        return before && present(text, before)
      }
      touched.add(text)
      if (kind === StepKind.delete) {
        after.delete(text)
        return { deleted: before !== undefined, revision }
      }
      const version = (before?.version ?? 0) + 1
      after.set(text, { value: new Uint8Array(value as Uint8Array), version, revision })
      return { version, revision }
    }
    const results = branches[succeeded ? 0 : 1].map(run)
    if (resultBytes > maxResultBytes) throw new InvalidArgumentError('the results are too large', 'RESULT_TOO_LARGE')
    // A key that was not there and is not there has not changed, whatever happened to it in between.
    const changed = [...touched].filter((text) => this.#entries.has(text) || after.has(text))
    if (changed.length > 0) this.#revision = revision
    for (const text of changed) this.#replace(text, after.get(text))
    const reached = this.#revision
    return {
      succeeded,
      revision: reached,
      results: results.map((result) => (result && !('key' in result) ? { ...result, revision: reached } : result)),
    }
  }

  #replace(text: string, entry: Entry | undefined): void {
    if (this.#entries.has(text) !== (entry !== undefined)) this.#sortedKeys = null
    if (entry === undefined) this.#entries.delete(text)
    else this.#entries.set(text, entry)
    this.#record({ key: keyBytes(text), value: entry?.value.slice(), version: entry?.version ?? 0, revision: this.#revision })
  }

  #check(before: Entry | undefined, condition: ModelCondition): void {
    const { fence } = condition
    if (fence !== undefined) {
      const { version, revision } = this.#entries.get(modelKey(fence.key)) ?? { version: 0, revision: 0 }
      if (revision !== fence.revision) throw new ConditionFailedError(`the fence has revision ${revision}`, version, revision, { code: 'FENCED' })
    }
    check(before, condition)
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

function holds({ version, revision, value, isAbsent }: KeyCondition, entry: Entry | undefined): boolean {
  return (
    (version === undefined || version === (entry?.version ?? 0)) &&
    (revision === undefined || revision === (entry?.revision ?? 0)) &&
    (value === undefined || (entry !== undefined && modelKey(entry.value) === modelKey(value))) &&
    (isAbsent === undefined || isAbsent === (entry === undefined))
  )
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
