/**
 * RecordCursor: ordered reading of a group's state: what is newer in memory merged with the database's entries.
 *
 * Invariant: a cursor shows the state as it was when it was opened: entries copied out of the table over an iterator of the database, which has a view of its own.
 */
import { toLatin1 } from '../base/bytes.js'
import type { DatabaseIterator } from './database.js'
import type { PendingEntry, StateRecord } from './record-table.js'

/** A consistent view of a key range; entries come in key order. */
export interface RecordCursor {
  next(): Promise<{ readonly key: string; readonly record: StateRecord } | undefined>
  close(): Promise<void>
}

/** Merges the database's entries with the table's, which take precedence. */
export class MergedCursor implements RecordCursor {
  readonly #iterator: DatabaseIterator
  readonly #pending: PendingEntry[]
  readonly #reverse: boolean
  readonly #prefixLength: number
  readonly #decode: (key: string, bytes: Uint8Array) => StateRecord
  #pendingAt = 0
  #page: [Uint8Array, Uint8Array][] = []
  #pageAt = 0
  #ended = false

  constructor(
    iterator: DatabaseIterator,
    pending: PendingEntry[],
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
