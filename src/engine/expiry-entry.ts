/**
 * The log entry by which a leader lets things expire: it names each of them, and since when and for how long it has lived as the leader saw it. What is not as the leader saw it any more when the
 * entry is applied stays: a renewal that is ahead in the log wins.
 *
 * Format (docs/formats.md): u8 3, u48 stamp, varint count, then per item: u8 kind, varint shard, varint since, varint time to live, bytes id.
 */
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { readStamp } from './command.js'

/** The first byte of such an entry, where a batch of commands has its version. */
export const expiryEntryType = 3

export const ExpiryKind = { session: 1 } as const
export type ExpiryKind = (typeof ExpiryKind)[keyof typeof ExpiryKind]

/** A thing whose time is over, as its leader sees it. */
export interface ExpiryItem {
  readonly kind: ExpiryKind
  readonly shard: number
  /** Log time from which it lived, or was last renewed … */
  readonly sinceMs: number
  /** … and for how long. */
  readonly ttlMs: number
  /** A session's id. */
  readonly id: Uint8Array
}

export interface ExpiryEntry {
  readonly stampMs: number
  readonly items: readonly ExpiryItem[]
}

/** Whether a time to live is over. Log time is in whole milliseconds, rounded down: one more makes sure that it has passed whole. */
export function isOver(sinceMs: number, ttlMs: number, timeMs: number): boolean {
  return timeMs > sinceMs + ttlMs
}

export function isExpiryEntry(data: Uint8Array): boolean {
  return data[0] === expiryEntryType
}

export function encodeExpiryEntry(items: readonly ExpiryItem[]): Uint8Array {
  const writer = new Writer(16 + items.length * 32).u8(expiryEntryType).u16(0).u32(0).varint(items.length)
  for (const { kind, shard, sinceMs, ttlMs, id } of items) writer.u8(kind).varint(shard).varint(sinceMs).varint(ttlMs).bytes(id)
  return writer.finish()
}

/** Throws CorruptionError `MALFORMED`. */
export function readExpiryEntry(data: Uint8Array): ExpiryEntry {
  const reader = new Reader(data, 1)
  const stampMs = readStamp(reader)
  const items: ExpiryItem[] = []
  for (let left = reader.count(5); left > 0; left--) {
    const kind = reader.u8()
    if (kind !== ExpiryKind.session) throw new CorruptionError(`unknown kind ${kind} of what expires`, 'MALFORMED')
    items.push({ kind, shard: reader.varint(), sinceMs: reader.varint(), ttlMs: reader.varint(), id: reader.bytes() })
  }
  reader.end()
  return { stampMs, items }
}
