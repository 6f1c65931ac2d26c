/**
 * The bytes of the log database: keys, records, bases and marks (docs/formats.md).
 *
 * Invariant: every value ends in a checksum of all before it; what does not match it is refused as CorruptionError, never used.
 */
import { crc32 } from 'node:zlib'
import { Reader, type Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { decodeConfiguration, decodeEntries, encodeConfiguration, encodeEntries } from '../raft/message-codec.js'
import type { Configuration, Entry, HardState } from '../raft/types.js'

const KeyType = { hardState: 0x01, record: 0x02, base: 0x03, damage: 0x04 } as const
type GroupKeyType = Exclude<keyof typeof KeyType, 'record'>

const recordVersion = 1
const baseVersion = 1

/** The index right before the log's first entry, its term, and the configuration in force there. */
export interface LogBase {
  readonly index: number
  readonly term: number
  readonly configuration: Configuration
}

/** The key of what a group has once. */
export function groupKey(type: GroupKeyType, group: number): Uint8Array {
  return Buffer.from([KeyType[type], group >> 8, group & 0xff])
}

export function recordKey(group: number, firstIndex: number): Uint8Array {
  const key = Buffer.alloc(11)
  key[0] = KeyType.record
  key.writeUInt16BE(group, 1)
  key.writeUInt32BE(Math.floor(firstIndex / 0x100000000), 3)
  key.writeUInt32BE(firstIndex % 0x100000000, 7)
  return key
}

/** Where the records of a group end. */
export function recordsEnd(group: number): Uint8Array {
  return group === 0xffff ? Buffer.from([KeyType.record + 1]) : recordKey(group + 1, 0)
}

export function indexOfKey(key: Uint8Array): number {
  const reader = new Reader(key, 3)
  return reader.u32() * 0x100000000 + reader.u32()
}

/** The checksum in the last four bytes. */
export function checksumOf(value: Uint8Array): number {
  return new Reader(value, value.length - 4).u32()
}

/** Appends the checksum to what the writer holds and copies it out. */
export function seal(writer: Writer): Uint8Array {
  writer.u32(crc32(writer.view()))
  return Buffer.from(writer.view())
}

/** A reader of the content, verified. */
function checkedReader(bytes: Uint8Array, place: string): Reader {
  const end = bytes.length - 4
  if (end < 0 || crc32(bytes.subarray(0, end)) !== checksumOf(bytes)) throw new CorruptionError(`${place}: wrong checksum`)
  return new Reader(bytes, 0, end)
}

export function encodeRecord(writer: Writer, previousChecksum: number, entries: readonly Entry[]): Uint8Array {
  writer.reset()
  writer.u8(recordVersion).u32(previousChecksum)
  encodeEntries(writer, entries)
  return seal(writer)
}

export interface LogRecord {
  readonly entries: readonly Entry[]
  readonly bytes: number
  readonly checksum: number
  readonly previousChecksum: number
}

export function decodeRecord(group: number, key: Uint8Array, value: Uint8Array): LogRecord {
  const place = `log record of group ${group} at index ${indexOfKey(key)}`
  const reader = checkedReader(value, place)
  const version = reader.u8()
  if (version !== recordVersion) throw new CorruptionError(`${place}: unknown version ${version}`)
  const previousChecksum = reader.u32()
  const entries = decodeEntries(reader)
  reader.end()
  // The key is covered too: a good record in the wrong place is damage (hazard d7).
  if (entries.length === 0 || entries[0]!.index !== indexOfKey(key)) throw new CorruptionError(`${place} holds other entries`)
  return { entries, bytes: value.length, checksum: checksumOf(value), previousChecksum }
}

export function encodeHardState(writer: Writer, { term, vote }: HardState): Uint8Array {
  writer.reset()
  writer.varint(term).text(vote ?? '')
  return seal(writer)
}

export function decodeHardState(group: number, bytes: Uint8Array | undefined): HardState {
  if (bytes === undefined) return { term: 0, vote: null }
  const reader = checkedReader(bytes, `hard state of group ${group}`)
  const term = reader.varint()
  const vote = reader.text()
  reader.end()
  return { term, vote: vote === '' ? null : vote }
}

export interface StoredBase extends LogBase {
  /** First index of the record in which the log starts; records before it are left over from compactions. After the index when the log starts with a record, or without. */
  readonly recordsFrom: number
  /** The checksum that the first record names as that of the record before it. */
  readonly previousChecksum: number
}

export function encodeBase(writer: Writer, { index, term, configuration, recordsFrom, previousChecksum }: StoredBase): Uint8Array {
  writer.reset()
  writer.u8(baseVersion).varint(index).varint(term).varint(recordsFrom).u32(previousChecksum).bytes(encodeConfiguration(configuration))
  return seal(writer)
}

export function decodeBase(group: number, bytes: Uint8Array): StoredBase {
  const place = `log base of group ${group}`
  const reader = checkedReader(bytes, place)
  const version = reader.u8()
  if (version !== baseVersion) throw new CorruptionError(`${place}: unknown version ${version}`)
  const index = reader.varint()
  const term = reader.varint()
  const recordsFrom = reader.varint()
  const previousChecksum = reader.u32()
  const configuration = decodeConfiguration(reader.bytes())
  reader.end()
  return { index, term, configuration, recordsFrom, previousChecksum }
}

export function encodeText(writer: Writer, text: string): Uint8Array {
  writer.reset()
  writer.text(text)
  return seal(writer)
}

export function decodeText(bytes: Uint8Array, place: string): string {
  const reader = checkedReader(bytes, place)
  const text = reader.text()
  reader.end()
  return text
}
