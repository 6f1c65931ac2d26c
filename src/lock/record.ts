/**
 * The lock record: what stands under a lock's key, and its codec (MessagePack, arrays only, every part checked on the way in).
 *
 *     ['quorate/lock', 1, holder | null, waiters]
 *     holder = [nonce, token, ttlMs, beat, label]      waiters = [[nonce, label], …] in order of arrival
 *
 * Invariants: 1. a nonce is fresh for every acquire, so that whoever reads the record knows for certain whether it speaks of him; 2. a record has no nonce twice;
 * 3. `token` is 0 in the acquiring write alone, where it means «the revision of this very write», which its writer cannot know beforehand; every later writer puts
 * the revision there; 4. a record is bounded: `maxWaiters` and `maxLabelBytes`.
 */
import { Decoder, Encoder } from '@msgpack/msgpack'
import { CorruptionError, RefusedError } from '../base/errors.js'

const magic = 'quorate/lock'
const format = 1

export const nonceBytes = 16
/** How many waiters queue up in the record. More may wait, but only those in the queue are served in order. */
export const maxWaiters = 128
export const maxLabelBytes = 128
/** Shortest and longest lease, in milliseconds. */
export const minTtlMs = 100
export const maxTtlMs = 3_600_000

export interface LockHolder {
  /** Hexadecimal. */
  readonly nonce: string
  /** The revision of the acquiring write; 0 in that write itself. */
  readonly token: number
  readonly ttlMs: number
  /** Raised by each write of the holder, never the same twice under one nonce: a record whose beat stands still is not being renewed. */
  readonly beat: number
  readonly label: string
}

export interface LockWaiter {
  /** Hexadecimal. */
  readonly nonce: string
  readonly label: string
}

export interface LockRecord {
  readonly holder: LockHolder | null
  readonly waiters: readonly LockWaiter[]
}

/** Nobody holds it, nobody waits. */
export const freeRecord: LockRecord = { holder: null, waiters: [] }

/** The record with its holder's renewal counted on. */
export function withBeat(record: LockRecord): LockRecord {
  const { holder, waiters } = record
  return { holder: holder && { ...holder, beat: holder.beat + 1 }, waiters }
}

/** The record with this nonce neither holding nor waiting. */
export function withoutNonce(record: LockRecord, nonce: string): LockRecord {
  return {
    holder: record.holder?.nonce === nonce ? null : record.holder,
    waiters: record.waiters.filter((waiter) => waiter.nonce !== nonce),
  }
}

const encoder = new Encoder()
const decoder = new Decoder({
  maxStrLength: Math.max(maxLabelBytes, magic.length),
  maxBinLength: nonceBytes,
  maxArrayLength: maxWaiters,
  maxMapLength: 0,
  maxExtLength: 0,
})

export function encodeRecord(record: LockRecord): Uint8Array {
  const { holder, waiters } = record
  return encoder.encode([
    magic,
    format,
    holder && [nonceToBytes(holder.nonce), holder.token, holder.ttlMs, holder.beat, holder.label],
    waiters.map((waiter) => [nonceToBytes(waiter.nonce), waiter.label]),
  ])
}

/**
 * Reads a record. Throws CorruptionError `MALFORMED` when the value is something else (another program's value under the lock's key, or damage), and
 * RefusedError `WRONG_PROTOCOL` when it is a lock record of a later format.
 */
export function decodeRecord(value: Uint8Array): LockRecord {
  let decoded: unknown
  try {
    decoded = decoder.decode(value)
  } catch (cause) {
    throw new CorruptionError('not a lock record', 'MALFORMED', { cause })
  }
  const fields = tuple(decoded, 'the record')
  if (fields[0] !== magic) throw malformed('it does not start as one')
  if (fields[1] !== format) {
    throw new RefusedError('WRONG_PROTOCOL', `a lock record of format ${String(fields[1])}; this version of quorate reads format ${format}`)
  }
  if (fields.length !== 4) throw malformed(`${fields.length} fields`)
  const holder = fields[2] === null ? null : toHolder(fields[2])
  const waiters = tuple(fields[3], 'the queue').map(toWaiter)
  const nonces = new Set(waiters.map((waiter) => waiter.nonce))
  if (holder !== null) nonces.add(holder.nonce)
  if (nonces.size !== waiters.length + (holder === null ? 0 : 1)) throw malformed('a nonce stands there twice')
  return { holder, waiters }
}

function toHolder(value: unknown): LockHolder {
  const fields = tuple(value, 'the holder', 5)
  const ttlMs = integer(fields[2], 'ttlMs')
  if (ttlMs < minTtlMs || ttlMs > maxTtlMs) throw malformed(`ttlMs is ${ttlMs}`)
  return { nonce: nonceText(fields[0]), token: integer(fields[1], 'token'), ttlMs, beat: integer(fields[3], 'beat'), label: text(fields[4]) }
}

function toWaiter(value: unknown): LockWaiter {
  const fields = tuple(value, 'a waiter', 2)
  return { nonce: nonceText(fields[0]), label: text(fields[1]) }
}

function malformed(what: string): CorruptionError {
  return new CorruptionError(`not a lock record: ${what}`, 'MALFORMED')
}

function tuple(value: unknown, what: string, length?: number): unknown[] {
  if (!Array.isArray(value)) throw malformed(`${what} is not an array`)
  if (length !== undefined && value.length !== length) throw malformed(`${what} has ${value.length} fields`)
  return value
}

function integer(value: unknown, what: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) throw malformed(`${what} is not a whole number`)
  return value
}

function text(value: unknown): string {
  if (typeof value !== 'string') throw malformed('a label is not a text')
  return value
}

function nonceText(value: unknown): string {
  if (!(value instanceof Uint8Array) || value.length !== nonceBytes) throw malformed(`a nonce is not ${nonceBytes} bytes`)
  return nonceFromBytes(value)
}

export function nonceFromBytes(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}

function nonceToBytes(nonce: string): Uint8Array {
  return Uint8Array.from(Buffer.from(nonce, 'hex'))
}
