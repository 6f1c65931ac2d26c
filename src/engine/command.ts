/**
 * Commands: what a client asks a group to write, as bytes that travel unread from the caller to the state machine, and the results that come back.
 *
 * One log entry holds what one client's turn produced for one group: a batch of commands. Each command is its own request (session, sequence), so a retry
 * may group them differently. Format: docs/formats.md.
 *
 * Invariants: 1. `checkBatch` accepts exactly what `readBatch` can apply: nothing malformed is ever proposed. 2. Every sequence is at least the low-water mark.
 */
import { asBuffer, fnv1a } from '../base/bytes.js'
import { Reader, type Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'

/** Bytes of a session id. */
export const sessionIdBytes = 8

/** The group that holds the cluster map. */
export const metaGroup = 0
/** The shard of the meta group's own keys: outside of the key space, so that no caller's key is ever in it. */
export const metaShard = 0xfffe
/** Bounds of what the meta group holds: the callers' limits are not for it. */
const metaLimits: Limits = { maxKeyBytes: 256, maxValueBytes: 1024 * 1024 }

const batchVersion = 1
const Operation = { put: 1, delete: 2 } as const
const operationMask = 0x0f
const ifVersionFlag = 0x10
const ifRevisionFlag = 0x20

export interface Command {
  /** The session's own count of requests. */
  readonly sequence: number
  /** Null deletes the key. */
  readonly value: Uint8Array | null
  readonly key: Uint8Array
  readonly shard: number
  readonly ifVersion: number | undefined
  readonly ifRevision: number | undefined
}

export interface CommandBatch {
  readonly session: Uint8Array
  /** The session has the answer to every request below this sequence: their completion records may go. */
  readonly lowWater: number
  readonly commands: Command[]
}

/** Keys and values that are written are bounded; the same bounds apply at the caller and before proposing. */
export interface Limits {
  readonly maxKeyBytes: number
  readonly maxValueBytes: number
}

export const defaultLimits: Limits = { maxKeyBytes: 4096, maxValueBytes: 1024 * 1024 }

/** The part of a key that decides its shard: what stands between the first `{` and the next `}` when that is not empty, else the whole key. */
export function shardOf(key: Uint8Array, shards: number): number {
  const bytes = asBuffer(key)
  const open = bytes.indexOf(0x7b)
  if (open >= 0) {
    const close = bytes.indexOf(0x7d, open + 1)
    if (close > open + 1) return fnv1a(bytes, open + 1, close) % shards
  }
  return fnv1a(bytes) % shards
}

export function writeBatchHeader(writer: Writer, session: Uint8Array, lowWater: number, count: number): void {
  writer.u8(batchVersion).raw(session).varint(lowWater).varint(count)
}

export function writeCommand(writer: Writer, command: Command, lowWater: number): void {
  const { value, ifVersion, ifRevision } = command
  const operation = value === null ? Operation.delete : Operation.put
  writer.u8(operation | (ifVersion === undefined ? 0 : ifVersionFlag) | (ifRevision === undefined ? 0 : ifRevisionFlag))
  writer
    .varint(command.sequence - lowWater)
    .varint(command.shard)
    .bytes(command.key)
  if (value !== null) writer.bytes(value)
  if (ifVersion !== undefined) writer.varint(ifVersion)
  if (ifRevision !== undefined) writer.varint(ifRevision)
}

/** Decodes a batch; keys and values are views. Throws CorruptionError `MALFORMED`. */
export function readBatch(bytes: Uint8Array): CommandBatch {
  const reader = new Reader(bytes)
  const version = reader.u8()
  if (version !== batchVersion) throw new CorruptionError(`unknown command version ${version}`, 'MALFORMED')
  const session = reader.raw(sessionIdBytes)
  const lowWater = reader.varint()
  const count = reader.count(4)
  const commands: Command[] = []
  for (let i = 0; i < count; i++) {
    const head = reader.u8()
    const operation = head & operationMask
    if ((operation !== Operation.put && operation !== Operation.delete) || (head & ~(operationMask | ifVersionFlag | ifRevisionFlag)) !== 0) {
      throw new CorruptionError(`unknown operation ${head}`, 'MALFORMED')
    }
    const sequence = lowWater + reader.varint()
    const shard = reader.varint()
    const key = reader.bytes()
    const value = operation === Operation.put ? reader.bytes() : null
    const ifVersion = head & ifVersionFlag ? reader.varint() : undefined
    const ifRevision = head & ifRevisionFlag ? reader.varint() : undefined
    if (!Number.isSafeInteger(sequence)) throw new CorruptionError('sequence out of range', 'MALFORMED')
    commands.push({ sequence, shard, key, value, ifVersion, ifRevision })
  }
  reader.end()
  return { session, lowWater, commands }
}

/** Throws CorruptionError `MALFORMED` unless the batch may be proposed. */
export function checkBatch(bytes: Uint8Array, shards: number, limits: Limits): CommandBatch {
  const batch = readBatch(bytes)
  if (batch.commands.length === 0) throw new CorruptionError('empty batch', 'MALFORMED')
  for (const { key, value, shard } of batch.commands) {
    const { maxKeyBytes, maxValueBytes } = shard === metaShard ? metaLimits : limits
    if (key.length === 0 || key.length > maxKeyBytes) throw new CorruptionError(`key of ${key.length} bytes`, 'MALFORMED')
    if (value !== null && value.length > maxValueBytes) throw new CorruptionError(`value of ${value.length} bytes`, 'MALFORMED')
    if (shard !== metaShard && shardOf(key, shards) !== shard) throw new CorruptionError(`key does not belong to shard ${shard}`, 'MALFORMED')
  }
  return batch
}

export const CommandStatus = {
  /** Done. */
  ok: 0,
  /** A delete found nothing to delete. */
  absent: 1,
  /** A condition did not hold; version and revision are the key's actual ones. */
  conditionFailed: 2,
  /** The request is below its session's low-water mark: its answer was already received. */
  stale: 3,
} as const
export type CommandStatus = (typeof CommandStatus)[keyof typeof CommandStatus]

export interface CommandResult {
  readonly status: CommandStatus
  readonly version: number
  readonly revision: number
}

export function writeResult(writer: Writer, result: CommandResult): void {
  writer.u8(result.status).varint(result.version).varint(result.revision)
}

export function readResult(reader: Reader): CommandResult {
  const status = reader.u8()
  if (status > CommandStatus.stale) throw new CorruptionError(`unknown status ${status}`, 'MALFORMED')
  return { status: status as CommandStatus, version: reader.varint(), revision: reader.varint() }
}
