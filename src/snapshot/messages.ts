/**
 * The bytes of a snapshot on its way: manifest and chunks (docs/wire-format.md).
 *
 * Invariants: 1. a chunk carries a checksum over its session, its number and its records, so that a chunk of another snapshot, or another place, is never taken for
 * it (hazard D6.50); 2. the last chunk carries the counts and a running checksum over the manifest and all records, so that what was assembled is known to be what was sent.
 */
import { crc32 } from 'node:zlib'
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { decodeConfiguration, encodeConfiguration } from '../raft/message-codec.js'
import type { Configuration } from '../raft/types.js'

export const SnapshotMethod = { open: 'snapshot-open', chunk: 'snapshot-chunk', close: 'snapshot-close' } as const

/** `none`: the node has no snapshot of the group that reaches so far; `gone`: the session is not there, or further on. */
export const SnapshotErrorCode = { none: 'NO_SNAPSHOT', gone: 'SNAPSHOT_GONE' } as const

const version = 1

export type SnapshotRecord = readonly [key: Uint8Array, value: Uint8Array]

/** What a snapshot is. */
export interface SnapshotManifest {
  /** Names the snapshot at its sender, to one receiver. */
  readonly session: number
  readonly group: number
  /** The state after this entry … */
  readonly index: number
  /** … of this term … */
  readonly term: number
  /** … at which this configuration was in force. */
  readonly configuration: Configuration
}

/** How far a transfer has come. */
export interface SnapshotTotals {
  readonly records: number
  readonly bytes: number
  /** Running, over the manifest and all records so far. */
  readonly checksum: number
}

export interface SnapshotChunk {
  readonly sequence: number
  readonly records: readonly SnapshotRecord[]
  /** The totals up to and with this chunk, by what came. */
  readonly totals: SnapshotTotals
  readonly isLast: boolean
}

export function encodeOpen(group: number, minIndex: number): Uint8Array {
  return new Writer().u8(version).varint(group).varint(minIndex).finish()
}

export function decodeOpen(bytes: Uint8Array): { group: number; minIndex: number } {
  const reader = versioned(bytes)
  const open = { group: reader.varint(), minIndex: reader.varint() }
  reader.end()
  return open
}

export function encodeManifest({ session, group, index, term, configuration }: SnapshotManifest): Uint8Array {
  return new Writer().u8(version).u32(session).varint(group).varint(index).varint(term).raw(encodeConfiguration(configuration)).finish()
}

export function decodeManifest(bytes: Uint8Array): SnapshotManifest {
  const reader = versioned(bytes)
  const session = reader.u32()
  const group = reader.varint()
  const index = reader.varint()
  const term = reader.varint()
  return { session, group, index, term, configuration: decodeConfiguration(reader.raw(reader.remaining)) }
}

function versioned(bytes: Uint8Array): Reader {
  const reader = new Reader(bytes)
  const found = reader.u8()
  if (found !== version) throw new CorruptionError(`snapshot message of version ${found}`, 'MALFORMED')
  return reader
}

/** The totals before the first chunk. */
export function firstTotals(manifest: SnapshotManifest): SnapshotTotals {
  return { records: 0, bytes: 0, checksum: crc32(encodeManifest(manifest)) }
}

/** Asks for a chunk, or with sequence 0 alone names a session to close. */
export function encodeChunkRequest(session: number, sequence: number): Uint8Array {
  return new Writer(16).u32(session).varint(sequence).finish()
}

export function decodeChunkRequest(bytes: Uint8Array): { session: number; sequence: number } {
  const reader = new Reader(bytes)
  const request = { session: reader.u32(), sequence: reader.varint() }
  reader.end()
  return request
}

/** Chunk: u32 checksum of all that follows: u32 session, varint sequence, u8 is last, totals (varint records, varint bytes, u32 checksum), varint count, records. */
export function encodeChunk(
  session: number,
  sequence: number,
  records: readonly SnapshotRecord[],
  before: SnapshotTotals,
  isLast: boolean,
): { bytes: Uint8Array; totals: SnapshotTotals } {
  const content = new Writer(64 * 1024)
  let bytes = before.bytes
  for (const [key, value] of records) {
    content.bytes(key).bytes(value)
    bytes += key.length + value.length
  }
  const totals = { records: before.records + records.length, bytes, checksum: crc32(content.view(), before.checksum) }
  const writer = new Writer(content.length + 64).u32(0).u32(session).varint(sequence)
  writer
    .u8(isLast ? 1 : 0)
    .varint(totals.records)
    .varint(totals.bytes)
    .u32(totals.checksum)
    .varint(records.length)
    .raw(content.view())
  writer.patchU32(0, crc32(writer.view().subarray(4)))
  return { bytes: writer.finish(), totals }
}

/** Reads the chunk that was asked for, after what came before it. Throws CorruptionError when it is another one, or damaged. */
export function decodeChunk(bytes: Uint8Array, session: number, sequence: number, before: SnapshotTotals): SnapshotChunk {
  const reader = new Reader(bytes)
  if (reader.u32() !== crc32(bytes.subarray(4))) throw new CorruptionError(`chunk ${sequence} of a snapshot: wrong checksum`)
  if (reader.u32() !== session || reader.varint() !== sequence) throw new CorruptionError(`a chunk of another snapshot came for chunk ${sequence}`)
  const isLast = reader.u8() === 1
  const totals = { records: reader.varint(), bytes: reader.varint(), checksum: reader.u32() }
  const count = reader.count(2)
  const start = reader.position
  const records: SnapshotRecord[] = []
  let size = before.bytes
  for (let left = count; left > 0; left--) {
    const key = reader.bytes()
    const value = reader.bytes()
    records.push([key, value])
    size += key.length + value.length
  }
  reader.end()
  const checksum = crc32(bytes.subarray(start), before.checksum)
  if (totals.records !== before.records + count || totals.bytes !== size || totals.checksum !== checksum)
    throw new CorruptionError(`chunk ${sequence} of a snapshot does not follow on what came before it`)
  return { sequence, records, totals, isLast }
}
