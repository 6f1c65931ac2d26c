/**
 * KvClient: the KV interface over all groups of a cluster: checks what it is given, finds the group of each key, and leaves the rest to the dispatcher.
 *
 * Invariants: 1. arguments over a limit or of a wrong kind are refused before anything is sent; 2. keys and values are copied: the caller may reuse its buffers at once.
 */
import { toBytes } from '../base/bytes.js'
import { InvalidArgumentError } from '../base/errors.js'
import { type Limits, metaShard, shardOf } from '../engine/command.js'
import type { DeleteResult, KeyLike, KeyValue, KV, ReadOptions, ScanOptions, ValueLike, WriteOptions, WriteResult } from '../engine/kv.js'
import { Consistency, type ReadResult, type ScanPage, type ScanRequest } from '../engine/kv-protocol.js'
import type { NodeId } from '../raft/types.js'
import { Dispatcher, type DispatcherOptions } from './dispatcher.js'
import type { WriteAnswer } from './operations.js'
import { scanGroups } from './scan.js'

export interface KvClientOptions extends DispatcherOptions {
  readonly limits: Limits
}

export class KvClient implements KV {
  readonly #options: KvClientOptions
  readonly #dispatcher: Dispatcher

  constructor(options: KvClientOptions) {
    this.#options = options
    this.#dispatcher = new Dispatcher(options)
  }

  async get(key: KeyLike, options: ReadOptions = {}): Promise<KeyValue | undefined> {
    const bytes = this.#checkKey(key)
    return toKeyValue(bytes, await this.#read(bytes, options))
  }

  async getMany(keys: readonly KeyLike[], options: ReadOptions = {}): Promise<(KeyValue | undefined)[]> {
    const checked = keys.map((key) => this.#checkKey(key))
    const results = await Promise.all(checked.map((key) => this.#read(key, options)))
    return results.map((result, at) => toKeyValue(checked[at]!, result))
  }

  async put(key: KeyLike, value: ValueLike, options: WriteOptions = {}): Promise<WriteResult> {
    const { maxValueBytes } = this.#options.limits
    if (typeof value !== 'string' && !(value instanceof Uint8Array)) {
      throw new InvalidArgumentError(`Expected a value of type string or Uint8Array, got ${typeof value}`)
    }
    const bytes = toBytes(value)
    if (bytes.length > maxValueBytes) {
      throw new InvalidArgumentError(`The value has ${bytes.length} bytes, the limit is ${maxValueBytes}`, 'VALUE_TOO_LARGE')
    }
    // A copy: the caller may reuse its buffer while a retry still needs the value.
    const { version, revision } = await this.#write(this.#checkKey(key), typeof value === 'string' ? bytes : Buffer.from(bytes), options)
    return { version, revision }
  }

  async delete(key: KeyLike, options: WriteOptions = {}): Promise<DeleteResult> {
    const { revision, absent } = await this.#write(this.#checkKey(key), null, options)
    return { deleted: !absent, revision }
  }

  scan(options: ScanOptions = {}): AsyncIterable<KeyValue> {
    consistencyOf(options)
    return scanGroups(options, this.#options.router.dataGroups, (group, request) => this.#scanPage(group, request, options))
  }

  /** The key's bytes, as a copy: the caller may reuse its buffer while a retry still needs the key. */
  #checkKey(key: KeyLike): Uint8Array {
    if (typeof key !== 'string' && !(key instanceof Uint8Array)) {
      throw new InvalidArgumentError(`Expected a key of type string or Uint8Array, got ${typeof key}`)
    }
    const { maxKeyBytes } = this.#options.limits
    const bytes = typeof key === 'string' ? toBytes(key) : Buffer.from(key)
    if (bytes.length === 0) throw new InvalidArgumentError('The key is empty', 'EMPTY_KEY')
    if (bytes.length > maxKeyBytes) throw new InvalidArgumentError(`The key has ${bytes.length} bytes, the limit is ${maxKeyBytes}`, 'KEY_TOO_LARGE')
    return bytes
  }

  #write(key: Uint8Array, value: Uint8Array | null, options: WriteOptions): Promise<WriteAnswer> {
    checkCondition('ifVersion', options.ifVersion)
    checkCondition('ifRevision', options.ifRevision)
    const shard = shardOf(key, this.#options.router.shards)
    return this.#writeIn(shard, key, value, options)
  }

  #writeIn(shard: number, key: Uint8Array, value: Uint8Array | null, options: WriteOptions): Promise<WriteAnswer> {
    const { ifVersion, ifRevision } = options
    const group = this.#options.router.groupOf(shard)
    return this.#dispatcher.wait<WriteAnswer>(options, (sequence, waiting) => ({
      kind: 'write',
      ...waiting,
      group,
      sequence,
      shard,
      key,
      value,
      ifVersion,
      ifRevision,
    }))
  }

  #read(key: Uint8Array, options: ReadOptions): Promise<ReadResult | undefined> {
    return this.#readIn(shardOf(key, this.#options.router.shards), key, options)
  }

  #readIn(shard: number, key: Uint8Array, options: ReadOptions): Promise<ReadResult | undefined> {
    const group = this.#options.router.groupOf(shard)
    const asked = { group, consistency: consistencyOf(options), onPosition: options.onPosition }
    return this.#dispatcher.wait<ReadResult | undefined>(options, (_sequence, waiting) => ({ kind: 'read', ...waiting, ...asked, shard, key }))
  }

  #scanPage(group: number, request: ScanRequest, options: ReadOptions): Promise<ScanPage> {
    const asked = { group, consistency: consistencyOf(options), onPosition: options.onPosition }
    return this.#dispatcher.wait<ScanPage>(options, (_sequence, waiting) => ({ kind: 'scan', ...waiting, ...asked, request }))
  }

  /** Reads a key of the meta group, linearizably. */
  readMeta(key: Uint8Array, options: ReadOptions = {}): Promise<ReadResult | undefined> {
    return this.#readIn(metaShard, key, options)
  }

  /** Writes a key of the meta group. */
  async writeMeta(key: Uint8Array, value: Uint8Array, options: WriteOptions = {}): Promise<WriteResult> {
    const { version, revision } = await this.#writeIn(metaShard, key, value, options)
    return { version, revision }
  }

  /** The connection to a node was lost: what was asked of it is asked elsewhere at once. */
  onPeerLost(node: NodeId): void {
    this.#dispatcher.onPeerLost(node)
  }

  onPeerConnected(node: NodeId): void {
    this.#dispatcher.onPeerConnected(node)
  }

  /** Begins to send what waits: the node is in its cluster. */
  release(): void {
    this.#dispatcher.release()
  }

  /** Rejects what still waits and what comes: ClosedError, or OutcomeUnknownError for writes under way; with the cause, if it is named. Idempotent. */
  close(cause?: unknown): void {
    this.#dispatcher.close(cause)
  }
}

function consistencyOf({ consistency = 'linearizable' }: ReadOptions): Consistency {
  if (!Object.hasOwn(Consistency, consistency)) {
    throw new InvalidArgumentError(`Expected \`consistency\` to be linearizable, lease or stale, got ${JSON.stringify(consistency)}`)
  }
  return Consistency[consistency]
}

function checkCondition(name: string, value: number | undefined): void {
  if (value !== undefined && (!Number.isSafeInteger(value) || value < 0)) {
    throw new InvalidArgumentError(`Expected \`${name}\` to be a whole number of at least 0, got ${value}`)
  }
}

function toKeyValue(key: Uint8Array, result: ReadResult | undefined): KeyValue | undefined {
  // A copy of the value: it is a view of a frame that holds many.
  return result && { key, value: Buffer.from(result.value), version: result.version, revision: result.revision }
}
