/**
 * LevelIterator: an abstract-level iterator over a scan of the store.
 *
 * Invariants: 1. nothing is asked of the store before the first entry is asked of the iterator, and at most one page ahead of what was consumed is held; 2. every key of the range that stays comes once, in order; after
 * an error the next read goes on behind the last entry that was given, without gap or repeat; 3. seeking outside of the range is the end.
 */
import { AbstractIterator, type AbstractIteratorOptions } from 'abstract-level'
import { asBuffer } from '../base/bytes.js'
import type { KeyValue, ReadOptions, ScanOptions } from '../engine/kv.js'
import { toLevelError } from './errors.js'
import type { QuorateLevel } from './quorate-level.js'

/** The methods that abstract-level asks of an iterator and does not declare. */
interface PrivateIteratorApi {
  _next(): Promise<[Buffer, Buffer] | undefined>
  _nextv(size: number): Promise<[Buffer, Buffer][]>
  _seek(target: Uint8Array): void
  _close(): Promise<void>
}

/** A range of the database's own keys, encoded; what abstract-level hands to private methods. */
export interface EncodedRange {
  readonly gt?: Uint8Array
  readonly gte?: Uint8Array
  readonly lt?: Uint8Array
  readonly lte?: Uint8Array
  readonly reverse: boolean
  /** -1: none. */
  readonly limit: number
}

export interface IteratorSource {
  readonly scan: (options: ScanOptions) => AsyncIterable<KeyValue>
  /** What every key begins with, and loses. */
  readonly prefix: Buffer
  readonly reading: ReadOptions
}

export class LevelIterator<K, V> extends AbstractIterator<QuorateLevel<K, V>, K, V> implements PrivateIteratorApi {
  readonly #source: IteratorSource
  readonly #range: EncodedRange
  readonly #keysOnly: boolean
  #entries: AsyncIterator<KeyValue> | null = null
  /** Where to begin, for the next scan: a key that was sought, or the last that was given. */
  #from: { readonly key: Uint8Array; readonly isGiven: boolean } | null = null
  #isOutside = false

  constructor(database: QuorateLevel<K, V>, options: EncodedRange & { readonly values?: boolean }, source: IteratorSource) {
    super(database, options as unknown as AbstractIteratorOptions<K, V>)
    this.#source = source
    this.#range = options
    this.#keysOnly = options.values === false
  }

  #open(): AsyncIterator<KeyValue> {
    const { scan, prefix, reading } = this.#source
    const limit = this.limit - this.count
    const range = { ...rangeWithin(prefix, this.#range), ...this.#begin() }
    return scan({
      ...reading,
      ...range,
      reverse: this.#range.reverse,
      keysOnly: this.#keysOnly,
      ...(limit < Number.POSITIVE_INFINITY ? { limit } : {}),
    })[Symbol.asyncIterator]()
  }

  /** The bound on the side where the next scan begins, in place of the range's own. */
  #begin(): ScanOptions {
    if (this.#from === null) return {}
    const { key, isGiven } = this.#from
    const { reverse } = this.#range
    const bound = isGiven ? (reverse ? 'lt' : 'gt') : reverse ? 'lte' : 'gte'
    const unset = reverse ? { lt: undefined, lte: undefined } : { gt: undefined, gte: undefined }
    return { ...unset, [bound]: Buffer.concat([this.#source.prefix, key]) }
  }

  async _next(): Promise<[Buffer, Buffer] | undefined> {
    if (this.#isOutside) return undefined
    try {
      this.#entries ??= this.#open()
      const { done, value } = await this.#entries.next()
      if (done === true) return undefined
      const key = asBuffer(value.key).subarray(this.#source.prefix.length)
      this.#from = { key, isGiven: true }
      return [key, asBuffer(value.value)]
    } catch (error) {
      this.#entries = null
      throw toLevelError(error, this.#source.reading.signal)
    }
  }

  async _nextv(size: number): Promise<[Buffer, Buffer][]> {
    const entries: [Buffer, Buffer][] = []
    while (entries.length < size) {
      const entry = await this._next()
      if (entry === undefined) break
      entries.push(entry)
    }
    return entries
  }

  _seek(target: Uint8Array): void {
    void this.#release()
    const key = asBuffer(target)
    this.#from = { key, isGiven: false }
    this.#isOutside = !holds(this.#range, key)
  }

  async _close(): Promise<void> {
    await this.#release()
  }

  async #release(): Promise<void> {
    const entries = this.#entries
    this.#entries = null
    await entries?.return?.()
  }
}

/** The range as the store knows it. */
export function rangeWithin(prefix: Buffer, { gt, gte, lt, lte }: EncodedRange): ScanOptions {
  const within = (key: Uint8Array | undefined) => key && Buffer.concat([prefix, key])
  // abstract-level's rule for ranges that say both.
  const lower = gte === undefined ? { gt: within(gt) } : { gte: within(gte) }
  const upper = lte === undefined ? { lt: within(lt) } : { lte: within(lte) }
  return { prefix, ...lower, ...upper }
}

function holds({ gt, gte, lt, lte }: EncodedRange, key: Buffer): boolean {
  const isAbove = gte === undefined ? gt === undefined || Buffer.compare(key, gt) > 0 : Buffer.compare(key, gte) >= 0
  const isBelow = lte === undefined ? lt === undefined || Buffer.compare(key, lt) < 0 : Buffer.compare(key, lte) <= 0
  return isAbove && isBelow
}
