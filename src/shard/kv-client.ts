/**
 * KvClient: the KV interface over all groups of a cluster: checks what it is given, finds the group of each key, and leaves the rest to the dispatcher.
 *
 * Invariants: 1. arguments over a limit or of a wrong kind are refused before anything is sent; 2. keys and values are copied: the caller may reuse its buffers at once.
 */
import { asBuffer } from '../base/bytes.js'
import { InvalidArgumentError } from '../base/errors.js'
import { type CommandFence, CommandType, type Limits, metaShard, shardOf } from '../engine/command.js'
import { encodeInteger } from '../engine/integer.js'
import type {
  BatchOperation,
  BatchResult,
  DeleteResult,
  FenceOptions,
  KeyLike,
  KeyValue,
  KV,
  ReadOptions,
  ScanOptions,
  TxnOperationResult,
  TxnRequest,
  TxnResult,
  Updater,
  ValueLike,
  ValueSource,
  WaitOptions,
  Watch,
  WatchOptions,
  WriteOptions,
  WriteResult,
} from '../engine/kv.js'
import { batchOf, checkCount, fenceOf, incrementBy, keyBytes, type PlacedTransaction, transactionOf, valueBytes } from '../engine/kv-arguments.js'
import { getOrPut, update } from '../engine/kv-conveniences.js'
import { Consistency, type ReadResult, type ScanPage, type ScanRequest } from '../engine/kv-protocol.js'
import { shardOfRange } from '../engine/sharding.js'
import { encodeTransaction, readStepResults, type Step, StepKind, type StepResult } from '../engine/transaction.js'
import type { WatchPage, WatchRequest } from '../engine/watch-protocol.js'
import type { NodeId } from '../raft/types.js'
import { Dispatcher, type DispatcherOptions } from './dispatcher.js'
import type { WriteAnswer } from './operations.js'
import { countGroups, type KeyRange, rangeOf, scanGroups } from './scan.js'
import { keyRange, WatchStream } from './watch.js'

export interface KvClientOptions extends DispatcherOptions {
  readonly limits: Limits
}

/** A write before it has a request id. */
interface WantedWrite {
  readonly type: CommandType
  readonly shard: number
  readonly key: Uint8Array
  readonly value: Uint8Array | null
  readonly ifVersion: number | undefined
  readonly ifRevision: number | undefined
  readonly fence: CommandFence | undefined
}

const noKey = new Uint8Array(0)

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
    const { limits } = this.#options
    const content = valueBytes(value, limits)
    const { version, revision } = await this.#writeKey(CommandType.put, keyBytes(key, limits), content, options)
    return { version, revision }
  }

  async delete(key: KeyLike, options: WriteOptions = {}): Promise<DeleteResult> {
    const { revision, absent } = await this.#writeKey(CommandType.delete, this.#checkKey(key), null, options)
    return { deleted: !absent, revision }
  }

  async increment(key: KeyLike, by: number | bigint = 1, options: WriteOptions = {}): Promise<WriteResult & { readonly value: bigint }> {
    const amount = encodeInteger(incrementBy(by))
    const { version, revision, body } = await this.#writeKey(CommandType.increment, this.#checkKey(key), amount, options)
    return { version, revision, value: BigInt(asBuffer(body!).toString('latin1')) }
  }

  async txn(request: TxnRequest, options: FenceOptions = {}): Promise<TxnResult> {
    const { limits, router } = this.#options
    const placed = transactionOf(request, router.shards, limits)
    const { revision, body } = await this.#transact(placed, options)
    const { succeeded, results } = readStepResults(body!, placed.transaction)
    const steps = placed.transaction.branches[succeeded ? 0 : 1]
    return { succeeded, revision, results: results.map((result, at) => toOperationResult(steps[at]!, result, revision)) }
  }

  async batch(operations: readonly BatchOperation[], options: FenceOptions = {}): Promise<BatchResult> {
    const { limits, router } = this.#options
    const { revision } = await this.#transact(batchOf(operations, router.shards, limits), options)
    return { revision }
  }

  getOrPut(key: KeyLike, value: ValueSource, options: FenceOptions = {}): Promise<KeyValue & { readonly created: boolean }> {
    return getOrPut(this.#conveniences, key, value, options)
  }

  update(key: KeyLike, change: Updater, options: FenceOptions = {}): Promise<KeyValue | undefined> {
    return update(this.#conveniences, key, change, options)
  }

  scan(options: ScanOptions = {}): AsyncIterable<KeyValue> {
    consistencyOf(options)
    return scanGroups(
      options,
      (range) => this.#groupsOf(range),
      (group, request) => this.#scanPage(group, request, options),
    )
  }

  async count(options: ScanOptions = {}): Promise<number> {
    consistencyOf(options)
    return countGroups(
      options,
      (range) => this.#groupsOf(range),
      (group, request) => this.#scanPage(group, request, options),
    )
  }

  /** Keys with a tag are in one group. */
  #groupsOf({ gte, lt }: KeyRange): readonly number[] {
    const { router } = this.#options
    const shard = shardOfRange(gte, lt, router.shards)
    return shard === undefined ? router.dataGroups : [router.groupOf(shard)]
  }

  get #conveniences() {
    const { runtime, requestTimeoutMs } = this.#options
    return { kv: this, runtime, requestTimeoutMs }
  }

  watch(options: WatchOptions = {}): Watch {
    const { runtime, router } = this.#options
    const range = options.key === undefined ? rangeOf(options) : keyRange(this.#checkKey(options.key))
    return new WatchStream(options, range, {
      runtime,
      clusterId: () => router.map.clusterId,
      shards: router.shards,
      groupOf: (shard) => router.groupOf(shard),
      poll: (group, request, signal) => this.#poll(group, request, signal),
    })
  }

  #poll(group: number, request: WatchRequest, signal: AbortSignal): Promise<WatchPage> {
    const asked = { group, consistency: Consistency.linearizable, onPosition: undefined }
    const forever = { timeoutMs: Number.POSITIVE_INFINITY, signal }
    return this.#dispatcher.wait<WatchPage>(forever, (_sequence, waiting) => ({ kind: 'watch', ...waiting, ...asked, request }))
  }

  #checkKey(key: KeyLike): Uint8Array {
    return keyBytes(key, this.#options.limits)
  }

  #writeKey(type: CommandType, key: Uint8Array, value: Uint8Array | null, options: WriteOptions): Promise<WriteAnswer> {
    const { ifVersion, ifRevision, fence } = options
    checkCount('ifVersion', ifVersion)
    checkCount('ifRevision', ifRevision)
    const { limits, router } = this.#options
    const shard = shardOf(key, router.shards)
    return this.#write({ type, shard, key, value, ifVersion, ifRevision, fence: fenceOf(fence, shard, router.shards, limits) }, options)
  }

  #transact({ shard, transaction }: PlacedTransaction, options: FenceOptions): Promise<WriteAnswer> {
    const { limits, router } = this.#options
    const fence = fenceOf(options.fence, shard, router.shards, limits)
    const value = encodeTransaction(transaction)
    return this.#write({ type: CommandType.transaction, shard, key: noKey, value, ifVersion: undefined, ifRevision: undefined, fence }, options)
  }

  #write(wanted: WantedWrite, options: WaitOptions): Promise<WriteAnswer> {
    const group = this.#options.router.groupOf(wanted.shard)
    return this.#dispatcher.wait<WriteAnswer>(options, (sequence, waiting) => {
      const { type, shard, key, value, ifVersion, ifRevision, fence } = wanted
      return { kind: 'write', ...waiting, group, sequence, type, shard, key, value, ifVersion, ifRevision, fence, birth: 0, seenMs: 0 }
    })
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
  async writeMeta(key: Uint8Array, value: Uint8Array, { ifVersion, ifRevision, ...options }: Omit<WriteOptions, 'fence'> = {}): Promise<WriteResult> {
    const write = { type: CommandType.put, shard: metaShard, key, value, ifVersion, ifRevision, fence: undefined }
    const { version, revision } = await this.#write(write, options)
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

function toOperationResult({ key }: Step, result: StepResult, revision: number): TxnOperationResult {
  switch (result.kind) {
    case StepKind.get:
      return toKeyValue(key, result.found)
    case StepKind.put:
      return { version: result.version, revision }
    default:
      return { deleted: result.deleted, revision }
  }
}

function toKeyValue(key: Uint8Array, result: ReadResult | undefined): KeyValue | undefined {
  // A copy of the value: it is a view of a frame that holds many.
  return result && { key, value: Buffer.from(result.value), version: result.version, revision: result.revision }
}
