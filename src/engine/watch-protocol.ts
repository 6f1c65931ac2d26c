/**
 * The messages of a watch: a poll, which waits at the leader until something in its range is written, and the page that answers it. Formats: docs/formats.md.
 *
 * Invariant: a page holds, of each shard that it names, every event of the range after the poll's position up to `position`; transactions are never cut.
 */
import { fromLatin1, toLatin1 } from '../base/bytes.js'
import { type Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import type { HistoryEvent } from './history-block.js'

/** Where a reader stands in one shard: it has every event up to this revision. Null: it wants those from now on. */
export interface WatchPosition {
  readonly shard: number
  readonly after: number | null
}

/** A poll for writes of keys in [gte, lt); a null `lt` means to the end. */
export interface WatchRequest {
  readonly gte: Uint8Array
  readonly lt: Uint8Array | null
  /** In the order in which they are to be looked at. */
  readonly positions: readonly WatchPosition[]
  /** A page is ended when it holds so much. */
  readonly maxBytes: number
  /** How long to wait for an event. */
  readonly waitMs: number
}

export interface WatchSection {
  readonly shard: number
  readonly events: readonly HistoryEvent[]
  readonly position: number
}

/** Shards whose position is as before may be left out. */
export interface WatchPage {
  readonly sections: readonly WatchSection[]
}

/** The oldest position from which a shard can be read. */
export interface OldestPosition {
  readonly shard: number
  readonly after: number
}

const noEndFlag = 2
const EventKind = { put: 1, delete: 2 } as const

export function writeWatchRequest(writer: Writer, { gte, lt, positions, maxBytes, waitMs }: WatchRequest): void {
  writer.u8(lt === null ? noEndFlag : 0).bytes(gte)
  if (lt !== null) writer.bytes(lt)
  writer.varint(maxBytes).varint(waitMs).varint(positions.length)
  for (const { shard, after } of positions) writer.varint(shard).varint(after === null ? 0 : after + 1)
}

/** Throws CorruptionError `MALFORMED`. */
export function readWatchRequest(reader: Reader): WatchRequest {
  const flags = reader.u8()
  if (flags !== 0 && flags !== noEndFlag) throw new CorruptionError(`unknown watch flags ${flags}`, 'MALFORMED')
  const gte = reader.bytes()
  const lt = flags === noEndFlag ? null : reader.bytes()
  const maxBytes = reader.varint()
  const waitMs = reader.varint()
  const positions: WatchPosition[] = []
  for (let left = reader.count(2); left > 0; left--) {
    const shard = reader.varint()
    const next = reader.varint()
    positions.push({ shard, after: next === 0 ? null : next - 1 })
  }
  reader.end()
  if (positions.length === 0) throw new CorruptionError('a watch of no shard', 'MALFORMED')
  if (new Set(positions.map(({ shard }) => shard)).size < positions.length) throw new CorruptionError('a watch that names a shard twice', 'MALFORMED')
  return { gte, lt, positions, maxBytes, waitMs }
}

export function encodeWatchPage({ sections }: WatchPage): Uint8Array {
  const writer = new Writer(1024).varint(sections.length)
  for (const { shard, position, events } of sections) {
    writer.varint(shard).varint(position).varint(events.length)
    for (const { revision, key, value, version } of events) {
      writer
        .varint(position - revision)
        .u8(value === null ? EventKind.delete : EventKind.put)
        .bytes(fromLatin1(key))
      if (value !== null) writer.varint(version).bytes(value)
    }
  }
  return writer.finish()
}

export function readWatchPage(reader: Reader): WatchPage {
  const sections: WatchSection[] = []
  for (let left = reader.count(3); left > 0; left--) {
    const shard = reader.varint()
    const position = reader.varint()
    const events: HistoryEvent[] = []
    for (let more = reader.count(3); more > 0; more--) {
      const revision = position - reader.varint()
      if (revision < (events.at(-1)?.revision ?? 1)) throw new CorruptionError('events out of order', 'MALFORMED')
      const kind = reader.u8()
      if (kind !== EventKind.put && kind !== EventKind.delete) throw new CorruptionError(`unknown kind of event ${kind}`, 'MALFORMED')
      const key = toLatin1(reader.bytes())
      const isPut = kind === EventKind.put
      const version = isPut ? reader.varint() : 0
      const value = isPut ? reader.bytes() : null
      events.push({ revision, key, version, value, valueBytes: value?.length ?? 0 })
    }
    sections.push({ shard, position, events })
  }
  reader.end()
  return { sections }
}

export function encodeOldest(oldest: readonly OldestPosition[]): Uint8Array {
  const writer = new Writer(64).varint(oldest.length)
  for (const { shard, after } of oldest) writer.varint(shard).varint(after)
  return writer.finish()
}

export function readOldest(reader: Reader): OldestPosition[] {
  const oldest: OldestPosition[] = []
  for (let left = reader.count(2); left > 0; left--) oldest.push({ shard: reader.varint(), after: reader.varint() })
  reader.end()
  return oldest
}

/** A poll was refused: what it asks for is not kept any more. */
export class HistoryMissingError extends Error {
  readonly oldest: readonly OldestPosition[]

  constructor(oldest: readonly OldestPosition[]) {
    super('the history does not reach back to where the watch stands')
    this.oldest = oldest
  }
}
