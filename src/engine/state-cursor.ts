/**
 * RecordCursor: ordered reading of a group's state: the overlays' entries merged with the database's.
 *
 * Invariant: a cursor shows the state as it was when it was opened: frozen or copied entries of the overlays over an iterator of the database, which has a view of its own.
 */
import { toLatin1 } from '../base/bytes.js'
import type { DatabaseIterator } from './database.js'
import { lowerBound, type Overlay, type StateRecord } from './overlay.js'

/** A consistent view of a key range; entries come in key order. */
export interface RecordCursor {
  next(): Promise<{ readonly key: string; readonly record: StateRecord } | undefined>
  close(): Promise<void>
}

/** Entries of both overlays in a range, the newer one's taking precedence; nulls stay: they hide what the database has. */
export function overlayRange(older: Overlay, newer: Overlay, gte: string, lt: string): [string, StateRecord | null][] {
  const entries: [string, StateRecord | null][] = []
  const olderKeys = older.sortedKeys()
  const newerKeys = newer.sortedKeys()
  const olderEnd = lowerBound(olderKeys, lt)
  const newerEnd = lowerBound(newerKeys, lt)
  let o = lowerBound(olderKeys, gte)
  let n = lowerBound(newerKeys, gte)
  while (o < olderEnd || n < newerEnd) {
    if (n >= newerEnd || (o < olderEnd && olderKeys[o]! < newerKeys[n]!)) {
      const key = olderKeys[o++]!
      entries.push([key, older.get(key)!])
    } else {
      const key = newerKeys[n++]!
      if (o < olderEnd && olderKeys[o] === key) o++
      entries.push([key, newer.get(key)!])
    }
  }
  return entries
}

/** Merges the database's entries with the overlay's, which take precedence. */
export class MergedCursor implements RecordCursor {
  readonly #iterator: DatabaseIterator
  readonly #pending: [string, StateRecord | null][]
  readonly #reverse: boolean
  readonly #prefixLength: number
  readonly #decode: (key: string, bytes: Uint8Array) => StateRecord
  #pendingAt = 0
  #page: [Uint8Array, Uint8Array][] = []
  #pageAt = 0
  #ended = false

  constructor(
    iterator: DatabaseIterator,
    pending: [string, StateRecord | null][],
    reverse: boolean,
    prefixLength: number,
    decode: (key: string, bytes: Uint8Array) => StateRecord,
  ) {
    this.#iterator = iterator
    this.#pending = pending
    this.#reverse = reverse
    this.#prefixLength = prefixLength
    this.#decode = decode
  }

  async next(): Promise<{ key: string; record: StateRecord } | undefined> {
    for (;;) {
      if (this.#pageAt === this.#page.length && !this.#ended) {
        this.#page = await this.#iterator.nextv(64)
        this.#pageAt = 0
        this.#ended = this.#page.length === 0
      }
      const stored = this.#page[this.#pageAt]
      const storedKey = stored === undefined ? undefined : toLatin1(stored[0].subarray(this.#prefixLength))
      const changed = this.#pending[this.#pendingAt]
      if (changed !== undefined && (storedKey === undefined || changed[0] === storedKey || changed[0] < storedKey !== this.#reverse)) {
        this.#pendingAt++
        if (changed[0] === storedKey) this.#pageAt++
        if (changed[1] !== null) return { key: changed[0], record: changed[1] }
      } else if (stored !== undefined) {
        this.#pageAt++
        return { key: storedKey!, record: this.#decode(storedKey!, stored[1]) }
      } else {
        return undefined
      }
    }
  }

  close(): Promise<void> {
    return this.#iterator.close()
  }
}
