/**
 * The messages between a KV client and a group's replica: one request holds what a client's turn produced for one group. Formats: docs/formats.md.
 *
 * Request: request id, kind + 16 * consistency, group, payload. Reply: request id, status, payload. Replies to reads and scans end with the applied index that they reflect.
 */
import { type Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { type CommandResult, readResult, writeResult } from './command.js'
import type { ReadConsistency } from './kv.js'

/** `time`: how far the group's log time is, as its leader knows. */
export const RequestKind = { write: 1, read: 2, scan: 3, watch: 4, time: 5 } as const
export type RequestKind = (typeof RequestKind)[keyof typeof RequestKind]

export const ReplyStatus = {
  done: 0,
  /** Nothing was done; the payload names the leader, or is empty. */
  notLeader: 1,
  /** Nothing was done: a queue is full. */
  overloaded: 2,
  /** Leadership was lost after the request entered the log: it may still be done. */
  lost: 3,
  /** Nothing was done: the replica does not serve. */
  stopped: 4,
  /** Nothing was done: the request breaks the protocol or a limit; the payload says how. */
  malformed: 5,
  /** Nothing was done: this group does not own the shard, or is not here. */
  wrongGroup: 6,
  /** A watch wants events that are not kept any more; the payload says which are. */
  compacted: 7,
} as const
export type ReplyStatus = (typeof ReplyStatus)[keyof typeof ReplyStatus]

export const Consistency = { linearizable: 0, lease: 1, stale: 2 } as const satisfies Record<ReadConsistency, number>
export type Consistency = (typeof Consistency)[keyof typeof Consistency]

export interface RequestHead {
  readonly requestId: number
  readonly kind: RequestKind
  readonly consistency?: Consistency
  readonly group: number
}

export function writeRequestHead(writer: Writer, { requestId, kind, consistency = Consistency.linearizable, group }: RequestHead): void {
  writer
    .varint(requestId)
    .u8(kind + 16 * consistency)
    .varint(group)
}

export function readRequestHead(reader: Reader): Required<RequestHead> {
  const requestId = reader.varint()
  const byte = reader.u8()
  const kind = byte & 15
  const consistency = byte >> 4
  const isKnown = kind >= RequestKind.write && kind <= RequestKind.time && consistency <= Consistency.stale
  const hasConsistency = kind === RequestKind.read || kind === RequestKind.scan
  if (!isKnown || (!hasConsistency && consistency > 0)) throw new CorruptionError(`unknown request kind ${byte}`, 'MALFORMED')
  return { requestId, kind: kind as RequestKind, consistency: consistency as Consistency, group: reader.varint() }
}

export interface ReadKey {
  readonly shard: number
  readonly key: Uint8Array
}

export function writeReadKeys(writer: Writer, keys: readonly ReadKey[]): void {
  writer.varint(keys.length)
  for (const { shard, key } of keys) writer.varint(shard).bytes(key)
}

export function readReadKeys(reader: Reader): ReadKey[] {
  const keys: ReadKey[] = []
  for (let left = reader.count(2); left > 0; left--) keys.push({ shard: reader.varint(), key: reader.bytes() })
  reader.end()
  return keys
}

/** What is read: value, version and revision; undefined for an absent key. */
export interface ReadResult {
  readonly version: number
  readonly revision: number
  readonly value: Uint8Array
}

export function writeReadResult(writer: Writer, result: ReadResult | undefined): void {
  if (result === undefined) writer.varint(0)
  else writer.varint(result.version).varint(result.revision).bytes(result.value)
}

export function readReadResult(reader: Reader): ReadResult | undefined {
  const version = reader.varint()
  if (version === 0) return undefined
  return { version, revision: reader.varint(), value: reader.bytes() }
}

/** What a scan wants to know of its entries. */
export const ScanForm = { entries: 0, keys: 1, count: 2 } as const
export type ScanForm = (typeof ScanForm)[keyof typeof ScanForm]

/** A page of a scan: keys in [gte, lt); a null `lt` means to the end. */
export interface ScanRequest {
  readonly gte: Uint8Array
  readonly lt: Uint8Array | null
  readonly reverse: boolean
  readonly form: ScanForm
  readonly maxEntries: number
  readonly maxBytes: number
}

export function writeScanRequest(writer: Writer, request: ScanRequest): void {
  writer.u8((request.reverse ? 1 : 0) | (request.lt === null ? 2 : 0) | (request.form << 2)).bytes(request.gte)
  if (request.lt !== null) writer.bytes(request.lt)
  writer.varint(request.maxEntries).varint(request.maxBytes)
}

export function readScanRequest(reader: Reader): ScanRequest {
  const flags = reader.u8()
  const form = flags >> 2
  if (form > ScanForm.count) throw new CorruptionError(`unknown scan flags ${flags}`, 'MALFORMED')
  const gte = reader.bytes()
  const lt = flags & 2 ? null : reader.bytes()
  const maxEntries = reader.varint()
  const request = { gte, lt, reverse: (flags & 1) !== 0, form: form as ScanForm, maxEntries, maxBytes: reader.varint() }
  reader.end()
  return request
}

export interface ScanEntry extends ReadResult {
  readonly key: Uint8Array
}

export interface ScanPage {
  /** Without their values when keys alone were asked for; none when a count was. */
  readonly entries: readonly ScanEntry[]
  /** How many entries the page stands for, and the key of the last one; null when there is none. */
  readonly count: number
  readonly last: Uint8Array | null
  /** More keys of the range may follow the last entry. */
  readonly more: boolean
  /** How far the state was applied that it shows. */
  readonly appliedIndex: number
}

export function encodeScanPage({ entries, count, last, more, appliedIndex }: ScanPage): Uint8Array {
  const writer = new Writer(4096)
    .u8(more ? 1 : 0)
    .varint(count)
    .varint(entries.length)
  for (const entry of entries) {
    writer.bytes(entry.key)
    writeReadResult(writer, entry)
  }
  if (entries.length < count) writer.bytes(last!)
  writer.varint(appliedIndex)
  return writer.finish()
}

export function readScanPage(reader: Reader): ScanPage {
  const more = reader.u8() === 1
  const count = reader.varint()
  const entries: ScanEntry[] = []
  for (let left = reader.count(4); left > 0; left--) {
    const key = reader.bytes()
    const result = readReadResult(reader)
    if (result === undefined) throw new CorruptionError('absent entry in a scan page', 'MALFORMED')
    entries.push({ key, ...result })
  }
  const last = entries.length < count ? reader.bytes() : (entries.at(-1)?.key ?? null)
  const appliedIndex = reader.varint()
  reader.end()
  return { entries, count, last, more, appliedIndex }
}

/** The answer to a request to write: a result for each command, or for those from the first on that an answer may hold, and the log time by which they are done. */
export interface WriteResults {
  readonly results: readonly CommandResult[]
  readonly timeMs: number
}

/** Writes the results, those from the first on that fit into about `maxBytes`, but at least one. */
export function writeResults(writer: Writer, { results, timeMs }: WriteResults, maxBytes = Number.POSITIVE_INFINITY): void {
  let count = 0
  for (let bytes = 0; count < results.length && (count === 0 || bytes <= maxBytes); count++) bytes += results[count]!.body?.length ?? 0
  writer.varint(count)
  for (let at = 0; at < count; at++) writeResult(writer, results[at]!)
  writer.varint(timeMs)
}

export function readResults(reader: Reader): WriteResults {
  const results: CommandResult[] = []
  for (let left = reader.count(3); left > 0; left--) results.push(readResult(reader))
  const timeMs = reader.varint()
  reader.end()
  return { results, timeMs }
}
