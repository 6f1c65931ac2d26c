/**
 * RecordTable: the part of a group's state that is in memory: what is newer than the state database (dirty), and as much of the rest as fits (clean).
 *
 * One table, not an overlay before a cache before the database: apply looks each key up once, and a look-up in LevelDB's memtable costs more than all the rest of a put.
 * Keys are latin1 strings (`toLatin1`), so that string order is byte order.
 *
 * Invariants:
 * 1. A key's slot holds its newest record, null for a deleted or absent one. No slot says nothing: the database knows.
 * 2. A record changed in the active generation belongs to that generation alone and may be changed in place; `freeze` begins the next generation, and what it returns never changes.
 * 3. Only clean records are let go of, and only when the table outgrows its bound: the ones that were not asked for since the hand came by last (CLOCK).
 */
import type { Writer } from '../base/codec.js'
import { lowerBound, mergeSorted } from './sorted-keys.js'

/** What the state holds under a key; encoded only when it is flushed. */
export interface StateRecord {
  encode(writer: Writer): void
  /** Roughly the bytes of memory that it holds. */
  readonly sizeBytes: number
  /** It is hardly ever read again: once the database has it, it makes room for what is. */
  readonly isSeldomRead?: boolean
}

export type PendingEntry = [string, StateRecord | null]

/** The changes of one generation. */
export interface FrozenChanges {
  readonly keys: readonly string[]
  readonly records: readonly (StateRecord | null)[]
}

interface Slot {
  readonly key: string
  record: StateRecord | null
  /** In which it was changed last; 0 for a record as the database has it. */
  generation: number
  /** What it was counted as. */
  bytes: number
  used: boolean
}

/** What a slot and its key cost beside the record, roughly. */
const slotOverheadBytes = 140
const nothing: FrozenChanges = { keys: [], records: [] }

export class RecordTable {
  readonly #cacheBytes: () => number
  #slots = new Map<string, Slot>()
  #hand: Iterator<[string, Slot]> | null = null
  #generation = 1
  /** Bytes of all slots. */
  #bytes = 0
  /** Of the active generation: bytes, and slots in the order in which they were first changed. */
  #dirtyBytes = 0
  #dirty: Slot[] = []
  #sorted: readonly Slot[] = []
  #sortedCount = 0
  /** The generation that is being flushed. */
  #frozen = nothing
  #frozenSorted: readonly PendingEntry[] | null = null

  /** `cacheBytes` bounds what is kept of the database; asked again at each turn, so it may change. */
  constructor(cacheBytes: () => number) {
    this.#cacheBytes = cacheBytes
  }

  /** Bytes of what was changed since the last freeze. */
  get dirtyBytes(): number {
    return this.#dirtyBytes
  }

  /** The record of a key, null when there is none; undefined when only the database knows. */
  get(key: string): StateRecord | null | undefined {
    const slot = this.#slots.get(key)
    if (slot === undefined) return undefined
    slot.used = true
    return slot.record
  }

  /** Whether the record was changed since the last freeze, and so may be changed in place. */
  owns(key: string): boolean {
    const slot = this.#slots.get(key)
    return slot !== undefined && slot.generation === this.#generation && slot.record !== null
  }

  set(key: string, record: StateRecord | null): void {
    const bytes = sizeOf(key, record)
    let slot = this.#slots.get(key)
    if (slot === undefined) {
      slot = { key, record, generation: 0, bytes, used: false }
      this.#slots.set(key, slot)
    } else {
      this.#bytes -= slot.bytes
      if (slot.generation === this.#generation) this.#dirtyBytes -= slot.bytes
      slot.record = record
      slot.bytes = bytes
    }
    this.#bytes += bytes
    this.#dirtyBytes += bytes
    if (slot.generation === this.#generation) return
    slot.generation = this.#generation
    this.#dirty.push(slot)
  }

  /** Keeps what the database holds under a key that has no slot. */
  cache(key: string, record: StateRecord | null): void {
    const bytes = sizeOf(key, record)
    this.#slots.set(key, { key, record, generation: 0, bytes, used: false })
    this.#bytes += bytes
    this.#evict()
  }

  /** Lets go of clean records until the table is within its bound, looking at a few slots at a time: the work is spread over what is added. */
  #evict(): void {
    const bound = this.#cacheBytes() + this.#dirtyBytes
    for (let looks = 8; looks > 0 && this.#bytes > bound; looks--) {
      this.#hand ??= this.#slots.entries()
      const next = this.#hand.next()
      if (next.done === true) {
        this.#hand = null
        continue
      }
      const [key, slot] = next.value
      if (slot.generation !== 0 && (slot.generation === this.#generation || this.#frozen !== nothing)) continue
      if (slot.used) {
        slot.used = false
        continue
      }
      this.#slots.delete(key)
      this.#bytes -= slot.bytes
    }
  }

  /** Ends the active generation and returns its changes, which stay in force until `thaw`. */
  freeze(): FrozenChanges {
    const slots = this.#dirty
    this.#frozen = { keys: slots.map(({ key }) => key), records: slots.map(({ record }) => record) }
    this.#frozenSorted = null
    this.#generation++
    this.#dirty = []
    this.#dirtyBytes = 0
    this.#sorted = []
    this.#sortedCount = 0
    return this.#frozen
  }

  /** The database holds what was frozen. */
  thaw(): void {
    const { keys, records } = this.#frozen
    for (let at = 0; at < keys.length; at++) {
      const record = records[at]
      if (record?.isSeldomRead !== true) continue
      const slot = this.#slots.get(keys[at]!)
      if (slot?.record !== record) continue
      this.#slots.delete(slot.key)
      this.#bytes -= slot.bytes
    }
    this.#frozen = nothing
    this.#frozenSorted = null
  }

  /** Lets go of what can be, after much became clean at once. Returns whether there is more to do. */
  shrink(): boolean {
    this.#evict()
    return this.#bytes > this.#cacheBytes() + this.#dirtyBytes
  }

  /** What differs from the database in [gte, lt), in order, as of now; nulls stay: they hide what the database has. */
  changesIn(gte: string, lt: string): PendingEntry[] {
    const older = this.#sortedFrozen()
    const newer = this.#sortedDirty()
    const entries: PendingEntry[] = []
    const olderEnd = lowerBound(older, lt, firstOf)
    const newerEnd = lowerBound(newer, lt, keyOf)
    let o = lowerBound(older, gte, firstOf)
    let n = lowerBound(newer, gte, keyOf)
    while (o < olderEnd || n < newerEnd) {
      if (n >= newerEnd || (o < olderEnd && older[o]![0] < newer[n]!.key)) {
        entries.push(older[o++]!)
      } else {
        const { key, record } = newer[n++]!
        if (o < olderEnd && older[o]![0] === key) o++
        entries.push([key, record])
      }
    }
    return entries
  }

  /** Costs a sort of what was added since the last call, and a merge. */
  #sortedDirty(): readonly Slot[] {
    if (this.#sortedCount < this.#dirty.length) {
      this.#sorted = mergeSorted(
        this.#sorted,
        this.#dirty.slice(this.#sortedCount).sort((a, b) => (a.key < b.key ? -1 : 1)),
        keyOf,
      )
      this.#sortedCount = this.#dirty.length
    }
    return this.#sorted
  }

  #sortedFrozen(): readonly PendingEntry[] {
    const { keys, records } = this.#frozen
    this.#frozenSorted ??= keys.map((key, at): PendingEntry => [key, records[at]!]).sort(([a], [b]) => (a < b ? -1 : 1))
    return this.#frozenSorted
  }
}

function sizeOf(key: string, record: StateRecord | null): number {
  return key.length + slotOverheadBytes + (record === null ? 0 : record.sizeBytes)
}

const keyOf = ({ key }: Slot) => key
const firstOf = ([key]: PendingEntry) => key
