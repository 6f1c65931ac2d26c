/** What the parts of the KV suite share: a test's bench (its store and keys of its own) and assertions. */
import assert from 'node:assert/strict'
import { ConditionFailedError, InvalidArgumentError } from '../base/errors.js'
import type { KeyValue, KV, ScanOptions } from '../engine/kv.js'

/** What the suite needs of an implementation. */
export interface KvFixture {
  readonly kv: KV
  /** Another client of the same store; needed when the manifest says `manyClients`. */
  another?(): Promise<KV>
  readonly maxKeyBytes: number
  readonly maxValueBytes: number
  /** Of transactions; without them these limits are not tested. */
  readonly maxBatchOperations?: number
  readonly maxBatchBytes?: number
  readonly maxResultBytes?: number
  /** Cuts `kv` off from its store, until `reconnect`; needed when the manifest says `cut`. */
  cutOff?(): void
  reconnect?(): void
  /** Drives a test, for stores that live in simulated time. Default: just runs it. */
  run?(test: () => Promise<void>): Promise<void>
  /** Lets go of what the fixture holds. */
  dispose?(): Promise<void>
}

/** What an implementation can do beyond the least: decides which tests there are. */
export interface KvManifest {
  readonly manyClients: boolean
  readonly cut: boolean
  /** Transactions over any keys are possible. Default false: they are refused, unless a `{tag}` keeps the keys together. */
  readonly crossShard?: boolean
  /** The history that watches can go back to is so short that some megabytes of writes are beyond it. Default false. */
  readonly boundedHistory?: boolean
}

/** What a test works with. */
export interface Bench {
  readonly kv: KV
  readonly maxKeyBytes: number
  readonly maxValueBytes: number
  readonly maxBatchOperations: number | undefined
  readonly maxBatchBytes: number | undefined
  readonly maxResultBytes: number | undefined
  /** A key of this test. */
  readonly key: (name: string | Uint8Array) => Uint8Array
  /** A key of this test that is in one shard with all others of this kind. */
  readonly near: (name: string | Uint8Array) => Uint8Array
  /** The entries of this test, or those of them that the options leave, as texts without the test's prefix. */
  readonly scan: (options?: ScanOptions) => Promise<string[]>
  readonly another: () => Promise<KV>
  readonly cutOff: () => void
  readonly reconnect: () => void
}

/** How a part of the suite declares its tests. */
export interface Declare {
  readonly describe: (title: string, suite: () => void) => unknown
  readonly test: (title: string, body: (bench: Bench) => Promise<void>) => void
}

export const encoder = new TextEncoder()

export function bytes(input: string | Uint8Array): Uint8Array {
  return typeof input === 'string' ? encoder.encode(input) : input
}

export function join(prefix: Uint8Array, rest: Uint8Array): Uint8Array {
  const joined = new Uint8Array(prefix.length + rest.length)
  joined.set(prefix)
  joined.set(rest, prefix.length)
  return joined
}

export function text(input: Uint8Array): string {
  return Buffer.from(input).toString('utf8')
}

export function hex(input: Uint8Array): string {
  return Buffer.from(input).toString('hex')
}

export function assertEntry(entry: KeyValue | undefined, value: string | Uint8Array, version: number): KeyValue {
  assert(entry !== undefined, 'the key is absent')
  assert(entry.key instanceof Uint8Array && entry.value instanceof Uint8Array, 'keys and values are bytes')
  assert.equal(hex(entry.value), hex(bytes(value)))
  assert.equal(entry.version, version)
  return entry
}

export async function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => assert.fail('should have failed'),
    (error: unknown) => error,
  )
}

export async function assertConditionFailed(promise: Promise<unknown>, version: number, revision: number): Promise<void> {
  const error = await failure(promise)
  assert(error instanceof ConditionFailedError, `ConditionFailedError expected, got ${error}`)
  assert.deepEqual([error.code, error.actualVersion, error.actualRevision], ['CONDITION_FAILED', version, revision])
}

export async function assertInvalid(promise: Promise<unknown>, code = 'INVALID_ARGUMENT'): Promise<void> {
  const error = await failure(promise)
  assert(error instanceof InvalidArgumentError, `InvalidArgumentError expected, got ${error}`)
  assert.equal(error.code, code)
}

export async function collect(entries: AsyncIterable<KeyValue>): Promise<KeyValue[]> {
  const all: KeyValue[] = []
  for await (const entry of entries) all.push(entry)
  return all
}
