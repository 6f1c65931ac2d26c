/**
 * Commands: what a client asks a group to write, as bytes that travel unread from the caller to the state machine, and the results that come back.
 *
 * One log entry holds what one client's turn produced for one group: a batch of commands. Each command is its own request (session, sequence), so a retry
 * may group them differently. Format: docs/formats.md.
 *
 * Invariants: 1. `checkBatch` accepts exactly what `readBatch` can apply: nothing malformed is ever proposed. 2. Every sequence is at least the low-water mark.
 */
import { asBuffer } from '../base/bytes.js'
import { Reader, type Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { integerBytes } from './integer.js'
import { shardOf } from './sharding.js'
import { readTransaction } from './transaction.js'

export { shardOf, shardOfTag } from './sharding.js'

/** Bytes of a session id. */
export const sessionIdBytes = 8

/** The group that holds the cluster map. */
export const metaGroup = 0
/** The shard of the meta group's own keys: outside of the key space, so that no caller's key is ever in it. */
export const metaShard = 0xfffe
/** Bounds of what the meta group holds: the callers' limits are not for it. */
const metaLimits: Limits = { maxKeyBytes: 256, maxValueBytes: 1024 * 1024, maxBatchOperations: 16, maxBatchBytes: 1024 * 1024 }

const batchVersion = 2
/** Where the leader's stamp stands in every entry: six bytes after the first. */
const stampAt = 1
const stampBytes = 6
export const CommandType = { put: 1, delete: 2, transaction: 3, increment: 4 } as const
export type CommandType = (typeof CommandType)[keyof typeof CommandType]
const typeMask = 0x0f
const ifVersionFlag = 0x10
const ifRevisionFlag = 0x20
const fenceFlag = 0x40
const knownBits = typeMask | ifVersionFlag | ifRevisionFlag | fenceFlag

/** The command has an effect only while the key's last write has this revision (0: while it is absent). */
export interface CommandFence {
  readonly key: Uint8Array
  readonly revision: number
}

const noKey = new Uint8Array(0)

/** One shape for all types: a put must not pay for what it does not use. */
export interface Command {
  readonly type: CommandType
  /** The session's own count of requests. */
  readonly sequence: number
  /** Of a put its value, of an increment the number to add (`encodeInteger`), of a transaction the whole of it (transaction.ts); null for a delete. */
  readonly value: Uint8Array | null
  /** Empty for a transaction, which has several. */
  readonly key: Uint8Array
  readonly shard: number
  readonly ifVersion: number | undefined
  readonly ifRevision: number | undefined
  readonly fence: CommandFence | undefined
}

/** Whose requests a batch holds. */
export interface BatchHead {
  readonly session: Uint8Array
  /** When the session says that it began: a number of its own choice. What is of no later birth than a session that was forgotten comes too late (sessions.ts). */
  readonly birth: number
  /** The session has the answer to every request below this sequence: their completion records may go. */
  readonly lowWater: number
}

export interface CommandBatch extends BatchHead {
  /** The leader's time when it took the batch into its log; 0 before that. */
  readonly stampMs: number
  readonly commands: Command[]
}

/** What is written is bounded; the same bounds apply at the caller and before proposing. */
export interface Limits {
  /** Default 4096. */
  readonly maxKeyBytes: number
  /** Default 1 MiB. */
  readonly maxValueBytes: number
  /** Conditions and operations of one transaction or batch, both branches together. Default 1024. */
  readonly maxBatchOperations: number
  /** Bytes of the keys and values of one transaction or batch, both branches together. Default 4 MiB. */
  readonly maxBatchBytes: number
}

export const defaultLimits: Limits = {
  maxKeyBytes: 4096,
  maxValueBytes: 1024 * 1024,
  maxBatchOperations: 1024,
  maxBatchBytes: 4 * 1024 * 1024,
}

export function writeBatchHeader(writer: Writer, { session, birth, lowWater }: BatchHead, count: number): void {
  writer.u8(batchVersion).u16(0).u32(0).raw(session).varint(birth).varint(lowWater).varint(count)
}

/** Fills in the leader's time, in place. */
export function stampEntry(entry: Uint8Array, timeMs: number): void {
  asBuffer(entry).writeUIntBE(timeMs, stampAt, stampBytes)
}

/** Reads the leader's time at its place. */
export function readStamp(reader: Reader): number {
  return reader.u16() * 0x100000000 + reader.u32()
}

export function writeCommand(writer: Writer, command: Command, lowWater: number): void {
  const { type, value, ifVersion, ifRevision, fence } = command
  const conditions = (ifVersion === undefined ? 0 : ifVersionFlag) | (ifRevision === undefined ? 0 : ifRevisionFlag)
  writer.u8(type | conditions | (fence === undefined ? 0 : fenceFlag))
  writer.varint(command.sequence - lowWater).varint(command.shard)
  if (type !== CommandType.transaction) writer.bytes(command.key)
  if (value !== null) writer.bytes(value)
  if (ifVersion !== undefined) writer.varint(ifVersion)
  if (ifRevision !== undefined) writer.varint(ifRevision)
  if (fence !== undefined) writer.bytes(fence.key).varint(fence.revision)
}

/** Decodes a batch; keys and values are views. Throws CorruptionError `MALFORMED`. */
export function readBatch(bytes: Uint8Array): CommandBatch {
  const reader = new Reader(bytes)
  const version = reader.u8()
  if (version !== batchVersion) throw new CorruptionError(`unknown command version ${version}`, 'MALFORMED')
  const stampMs = readStamp(reader)
  const session = reader.raw(sessionIdBytes)
  const birth = reader.varint()
  const lowWater = reader.varint()
  const count = reader.count(4)
  const commands: Command[] = []
  for (let i = 0; i < count; i++) {
    const head = reader.u8()
    const type = head & typeMask
    if (type < CommandType.put || type > CommandType.increment || (head & ~knownBits) !== 0) {
      throw new CorruptionError(`unknown command ${head}`, 'MALFORMED')
    }
    const sequence = lowWater + reader.varint()
    const shard = reader.varint()
    const key = type === CommandType.transaction ? noKey : reader.bytes()
    const value = type === CommandType.delete ? null : reader.bytes()
    const ifVersion = head & ifVersionFlag ? reader.varint() : undefined
    const ifRevision = head & ifRevisionFlag ? reader.varint() : undefined
    const fence = head & fenceFlag ? { key: reader.bytes(), revision: reader.varint() } : undefined
    if (!Number.isSafeInteger(sequence)) throw new CorruptionError('sequence out of range', 'MALFORMED')
    commands.push({ type: type as CommandType, sequence, shard, key, value, ifVersion, ifRevision, fence })
  }
  reader.end()
  return { stampMs, session, birth, lowWater, commands }
}

/** Throws CorruptionError `MALFORMED` unless the batch may be proposed. */
export function checkBatch(bytes: Uint8Array, shards: number, limits: Limits): CommandBatch {
  const batch = readBatch(bytes)
  if (batch.commands.length === 0) throw new CorruptionError('empty batch', 'MALFORMED')
  for (const command of batch.commands) checkCommand(command, shards, command.shard === metaShard ? metaLimits : limits)
  return batch
}

function checkCommand(command: Command, shards: number, limits: Limits): void {
  const { key, value, shard, fence, ifVersion, ifRevision } = command
  if (fence !== undefined) checkKey(fence.key, shard, shards, limits)
  switch (command.type) {
    case CommandType.put:
    case CommandType.delete:
      checkKey(key, shard, shards, limits)
      return checkValue(value, limits)
    case CommandType.increment:
      checkKey(key, shard, shards, limits)
      if (value?.length !== integerBytes) throw new CorruptionError(`an increment by ${value?.length} bytes`, 'MALFORMED')
      return
    case CommandType.transaction: {
      if (ifVersion !== undefined || ifRevision !== undefined)
        throw new CorruptionError('a transaction with the condition of a single write', 'MALFORMED')
      const { compares, branches } = readTransaction(value!)
      const parts = [...compares, ...branches[0], ...branches[1]]
      if (parts.length === 0 || parts.length > limits.maxBatchOperations) {
        throw new CorruptionError(`a transaction of ${parts.length} operations`, 'MALFORMED')
      }
      let bytes = 0
      for (const part of parts) {
        checkKey(part.key, shard, shards, limits)
        checkValue(part.value, limits)
        bytes += part.key.length + (part.value?.length ?? 0)
      }
      if (bytes > limits.maxBatchBytes) throw new CorruptionError(`a transaction of ${bytes} bytes`, 'MALFORMED')
      return
    }
    default:
      command.type satisfies never
  }
}

function checkKey(key: Uint8Array, shard: number, shards: number, { maxKeyBytes }: Limits): void {
  if (key.length === 0 || key.length > maxKeyBytes) throw new CorruptionError(`key of ${key.length} bytes`, 'MALFORMED')
  if (shard !== metaShard && shardOf(key, shards) !== shard) throw new CorruptionError(`key does not belong to shard ${shard}`, 'MALFORMED')
}

function checkValue(value: Uint8Array | null | undefined, { maxValueBytes }: Limits): void {
  if (value != null && value.length > maxValueBytes) throw new CorruptionError(`value of ${value.length} bytes`, 'MALFORMED')
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
  /** The fence did not hold; version and revision are those of its key. */
  fenced: 4,
  /** An increment found a value that is no number. */
  notANumber: 5,
  /** The sum of an increment is out of range. */
  outOfRange: 6,
  /** The gets of a transaction found more than an answer may hold: nothing was done. */
  tooLarge: 7,
  /** The request had no effect, and its answer was not kept or could not be given: to be asked again under another sequence. */
  again: 8,
  /** Nothing was done: the session is of no later birth than one that the shard has forgotten. `revision` is the horizon, `version` the time up to which a request may have been forgotten. */
  expired: 9,
} as const
export type CommandStatus = (typeof CommandStatus)[keyof typeof CommandStatus]

export interface CommandResult {
  readonly status: CommandStatus
  readonly version: number
  readonly revision: number
  /** Of an increment the new value, of a transaction what its operations did (transaction.ts). */
  readonly body?: Uint8Array | undefined
}

const bodyFlag = 0x80

export function writeResult(writer: Writer, { status, version, revision, body }: CommandResult): void {
  writer
    .u8(body === undefined ? status : status | bodyFlag)
    .varint(version)
    .varint(revision)
  if (body !== undefined) writer.bytes(body)
}

/** Decodes a result; its body is a view. */
export function readResult(reader: Reader): CommandResult {
  const head = reader.u8()
  const status = (head & ~bodyFlag) as CommandStatus
  if (status > CommandStatus.expired) throw new CorruptionError(`unknown status ${head}`, 'MALFORMED')
  const version = reader.varint()
  const revision = reader.varint()
  return head & bodyFlag ? { status, version, revision, body: reader.bytes() } : { status, version, revision }
}
