/**
 * HistoryBlock: a run of one shard's events as one record of the state: what was written, in the order of the revisions.
 *
 * Invariants: 1. the events of one revision (a transaction) are in one block; 2. a block holds every event of its revisions, from `first` to `last`: blocks follow each other without
 * a gap; 3. a block that was given to the state store does not change any more: a longer one takes its place.
 *
 * Events are packed as they are applied: bytes cost the garbage collector nothing, where an object for each event, and the records that it would keep, cost a third of all puts. Whoever reads unpacks
 * from the last mark before what is wanted.
 */
import { toLatin1 } from '../base/bytes.js'
import { Reader, Writer } from '../base/codec.js'
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

/** Takes one event; false ends the reading. */
export type EventVisitor = (event: HistoryEvent) => boolean

const formatVersion = 1
const EventKind = { put: 1, delete: 2 } as const
/** Characters of a record's key that are not the user's: shard and type. */
const prefixLength = 3
/** Events from one mark to the next. */
const eventsPerMark = 32

/** A place between two events. */
interface Mark {
  /** The revision of the event before it. */
  readonly before: number
  readonly offset: number
}

export class HistoryBlock implements StateRecord {
  readonly isSeldomRead = true
  readonly first: number
  #last: number
  #packed: Writer
  /** In order. The start of the block needs none. */
  #marks: Mark[] = []
  #sinceMark = 0

  constructor(first: number, last = first, packed = new Writer(512)) {
    this.first = first
    this.#last = last
    this.#packed = packed
  }

  static decode(reader: Reader): HistoryBlock {
    const version = reader.u8()
    if (version !== formatVersion) throw new CorruptionError(`unknown version ${version} of a history block`)
    const first = reader.varint()
    const last = reader.varint()
    if (last < first) throw new CorruptionError(`a history block from revision ${first} to ${last}`)
    return new HistoryBlock(first, last, new Writer(reader.remaining).raw(reader.raw(reader.remaining)))
  }

  /** The revision of the last event. */
  get last(): number {
    return this.#last
  }

  get sizeBytes(): number {
    return this.#packed.length + 64
  }

  /** Adds an event; only before the block is given to the store. */
  add(key: string, record: ValueRecord | null, revision: number): void {
    const packed = this.#packed
    if (this.#sinceMark++ === eventsPerMark) {
      this.#marks.push({ before: this.#last, offset: packed.length })
      this.#sinceMark = 1
    }
    packed.varint(revision - this.#last).u8(record === null ? EventKind.delete : EventKind.put)
    packed.varint(key.length - prefixLength).latin1(key.slice(prefixLength))
    this.#last = revision
    if (record === null) return
    packed.varint(record.version).varint(record.valueBytes)
    record.writeValue(packed)
  }

  /** This block's events with those of the one that follows it, as a new block. */
  followedBy(next: HistoryBlock): HistoryBlock {
    if (next.first !== this.#last + 1) throw new CorruptionError(`history: block ${next.first} cannot continue one that ends at ${this.#last}`)
    const own = this.#packed.view()
    const joined = new HistoryBlock(this.first, next.#last, new Writer(own.length + next.#packed.length).raw(own))
    const reader = new Reader(next.#packed.view())
    // The first event of a block counts from the block's own beginning, and now from the event before it.
    joined.#packed.varint(next.first + reader.varint() - this.#last)
    const moved = joined.#packed.length - reader.position
    joined.#packed.raw(reader.raw(reader.remaining))
    joined.#marks = [
      ...this.#marks,
      { before: this.#last, offset: own.length },
      ...next.#marks.map(({ before, offset }) => ({ before, offset: offset + moved })),
    ]
    return joined
  }

  encode(writer: Writer): void {
    writer.u8(formatVersion).varint(this.first).varint(this.#last).raw(this.#packed.view())
  }

  /** Visits the events after a revision in order. Returns whether the visitor wants more. */
  visit(after: number, visitor: EventVisitor): boolean {
    const mark = this.#markBefore(after)
    const reader = new Reader(this.#packed.view(), mark?.offset ?? 0)
    let revision = mark?.before ?? this.first
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
    return true
  }

  /** The last mark before which there is nothing after a revision. */
  #markBefore(after: number): Mark | undefined {
    let low = 0
    let high = this.#marks.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#marks[middle]!.before <= after) low = middle + 1
      else high = middle
    }
    return this.#marks[low - 1]
  }
}
