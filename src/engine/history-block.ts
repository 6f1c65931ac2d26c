/**
 * HistoryBlock: a run of one shard's events as one record of the state: what was written, in the order of the revisions.
 *
 * Invariants: 1. the events of one revision (a transaction) are in one block; 2. a block holds every event of its revisions, from `first` to `last`: blocks follow each other without
 * a gap; 3. a block that was given to the state store does not change any more: a longer one takes its place.
 *
 * An event that has just been applied costs a push: it shares its key and value with the state. It is packed when the block is flushed, and unpacked again when somebody reads it.
 */
import { toLatin1 } from '../base/bytes.js'
import { Reader, type Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import type { StateRecord } from './record-table.js'
import type { ValueRecord } from './value-record.js'

/** One write of one key. */
export interface HistoryEvent {
  /** The shard's revision that the write made. */
  readonly revision: number
  /** The user's key in latin1. */
  readonly key: string
  /** Null: the key was deleted. */
  readonly value: Uint8Array | null
  readonly valueBytes: number
  /** The key's version; 0 when it was deleted. */
  readonly version: number
}

/** An event as it was applied. It shares what the state holds; only what is asked for is made into bytes. */
class AppliedEvent implements HistoryEvent {
  readonly revision: number
  readonly #storeKey: string
  readonly #record: ValueRecord | null

  /** `storeKey` begins with three characters that are not the user's: shard and type. */
  constructor(storeKey: string, record: ValueRecord | null, revision: number) {
    this.revision = revision
    this.#storeKey = storeKey
    this.#record = record
  }

  get key(): string {
    return this.#storeKey.slice(prefixLength)
  }

  get value(): Uint8Array | null {
    return this.#record === null ? null : this.#record.value
  }

  get valueBytes(): number {
    return this.#record === null ? 0 : this.#record.valueBytes
  }

  get version(): number {
    return this.#record === null ? 0 : this.#record.version
  }

  get sizeBytes(): number {
    return this.#storeKey.length + this.valueBytes + eventOverheadBytes
  }

  /** `before` is the revision of the event before it. */
  pack(writer: Writer, before: number): void {
    writer.varint(this.revision - before).u8(this.#record === null ? EventKind.delete : EventKind.put)
    writer.varint(this.#storeKey.length - prefixLength).latin1(this.key)
    if (this.#record === null) return
    writer.varint(this.#record.version).varint(this.#record.valueBytes)
    this.#record.writeValue(writer)
  }
}

/** Takes one event; false ends the reading. */
export type EventVisitor = (event: HistoryEvent) => boolean

const formatVersion = 1
const EventKind = { put: 1, delete: 2 } as const
const prefixLength = 3
/** What an event holds beside key and value, roughly. */
const eventOverheadBytes = 16

export class HistoryBlock implements StateRecord {
  readonly first: number
  #last: number
  /** Events up to `#packedLast`, packed. */
  #packed: Uint8Array
  #packedLast: number
  #events: AppliedEvent[] = []
  #bytes: number

  constructor(first: number, packed: Uint8Array = new Uint8Array(0), packedLast = first) {
    this.first = first
    this.#last = packedLast
    this.#packed = packed
    this.#packedLast = packedLast
    this.#bytes = packed.length
  }

  static decode(reader: Reader): HistoryBlock {
    const version = reader.u8()
    if (version !== formatVersion) throw new CorruptionError(`unknown version ${version} of a history block`)
    const first = reader.varint()
    const last = reader.varint()
    if (last < first) throw new CorruptionError(`a history block from revision ${first} to ${last}`)
    return new HistoryBlock(first, reader.raw(reader.remaining), last)
  }

  /** The revision of the last event. */
  get last(): number {
    return this.#last
  }

  get sizeBytes(): number {
    return this.#bytes + 64
  }

  /** Adds an event; only before the block is given to the store. */
  add(key: string, record: ValueRecord | null, revision: number): void {
    const event = new AppliedEvent(key, record, revision)
    this.#events.push(event)
    this.#last = revision
    this.#bytes += event.sizeBytes
  }

  /** This block's events with those of the one that follows it, as a new block. */
  followedBy(next: HistoryBlock): HistoryBlock {
    if (this.#events.length > 0 || next.#packed.length > 0 || next.first !== this.#last + 1) {
      throw new CorruptionError(`history: block ${next.first} cannot continue one that ends at ${this.#last}`)
    }
    const joined = new HistoryBlock(this.first, this.#packed, this.#packedLast)
    joined.#events = next.#events
    joined.#last = next.#last
    joined.#bytes += next.#bytes
    return joined
  }

  /** Encodes the block for the store, and keeps it packed from then on. */
  encode(writer: Writer): void {
    writer.u8(formatVersion).varint(this.first).varint(this.#last)
    const start = writer.length
    writer.raw(this.#packed)
    if (this.#events.length === 0) return
    let before = this.#packed.length === 0 ? this.first : this.#packedLast
    for (const event of this.#events) {
      event.pack(writer, before)
      before = event.revision
    }
    this.#packed = Uint8Array.prototype.slice.call(writer.view(), start)
    this.#packedLast = this.#last
    this.#events = []
    this.#bytes = this.#packed.length
  }

  /** Visits the events after a revision in order. Returns whether the visitor wants more. */
  visit(after: number, visitor: EventVisitor): boolean {
    if (after < this.#packedLast || this.#events.length === 0) {
      const reader = new Reader(this.#packed)
      let revision = this.first
      while (reader.remaining > 0) {
        revision += reader.varint()
        const kind = reader.u8()
        const key = reader.bytes()
        const isPut = kind === EventKind.put
        if (!isPut && kind !== EventKind.delete) throw new CorruptionError(`unknown kind of event ${kind}`)
        const version = isPut ? reader.varint() : 0
        const value = isPut ? reader.bytes() : null
        if (revision > after && !visitor({ revision, key: toLatin1(key), value, valueBytes: value?.length ?? 0, version })) return false
      }
    }
    for (let at = this.#firstAfter(after); at < this.#events.length; at++) {
      if (!visitor(this.#events[at]!)) return false
    }
    return true
  }

  #firstAfter(revision: number): number {
    let low = 0
    let high = this.#events.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#events[middle]!.revision <= revision) low = middle + 1
      else high = middle
    }
    return low
  }
}
