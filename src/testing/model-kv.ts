/**
 * ModelKV: the KV interface over a ModelStore and a simulated network, for the tests of whatever is built on KV (lock, MapReduce).
 *
 * It retries inside until the caller's deadline, as the real client does, and is exactly once as the real store is:
 * 1. all attempts of one write share one completion record, so that the write takes effect at most once and a retry gets the first answer;
 * 2. a request may arrive after its caller has given up, and takes effect then (that is what OutcomeUnknownError means);
 * 3. no send, no doubt: a write that ends before its first attempt left fails with UnavailableError or the signal's reason.
 * All time passes through the client's Runtime (its timers; a paused process gets no answers) and the network's (messages under way go on).
 */
import { InvalidArgumentError, OutcomeUnknownError, UnavailableError } from '../base/errors.js'
import type { Cancel, Runtime } from '../base/runtime.js'
import { defaultLimits, type Limits, shardOf } from '../engine/command.js'
import type { HistoryEvent } from '../engine/history-block.js'
import type {
  BatchOperation,
  BatchResult,
  DeleteResult,
  Fence,
  FenceOptions,
  KeyLike,
  KeyValue,
  KV,
  ReadOptions,
  ScanOptions,
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
import { batchOf, fenceOf, incrementBy, transactionOf } from '../engine/kv-arguments.js'
import { getOrPut, update } from '../engine/kv-conveniences.js'
import { HistoryMissingError, type WatchPage, type WatchRequest } from '../engine/watch-protocol.js'
import { rangeOf } from '../shard/scan.js'
import { keyRange, WatchStream } from '../shard/watch.js'
import { type ModelCondition, type ModelRange, ModelStore, modelKey } from './model-store.js'

/** What the network between one client and the store does. Probabilities are per attempt. */
export interface ModelFaults {
  /** Each message takes between these, one way. */
  readonly minimumDelayMs: number
  readonly maximumDelayMs: number
  /** The request never arrives. */
  readonly requestLost: number
  /** The request is executed and the reply never arrives. */
  readonly replyLost: number
  /** A message takes up to `slowMs` longer, so that it may arrive after the caller's deadline. */
  readonly slow: number
  readonly slowMs: number
  /** The store answers at once that it did nothing (UnavailableError). */
  readonly refused: number
}

/** No delay, no loss. */
export const reliableFaults: ModelFaults = { minimumDelayMs: 0, maximumDelayMs: 0, requestLost: 0, replyLost: 0, slow: 0, slowMs: 0, refused: 0 }

/** The lab's unreliable network: 0 to 26 ms, a tenth of the requests and a tenth of the replies lost. */
export const unreliableFaults: ModelFaults = { ...reliableFaults, maximumDelayMs: 26, requestLost: 0.1, replyLost: 0.1 }

/** Which direction between a client and the store is cut. */
export type ModelCut = 'none' | 'requests' | 'replies' | 'both'

export interface ModelKVOptions {
  /** The client's clock, timers and chance. */
  readonly runtime: Runtime
  /** Carries the messages. Default: `runtime`. Give the simulation itself when `runtime` is a process that may be paused. */
  readonly network?: Runtime
  /** Shared by all clients of one simulated cluster. Default: a store of its own. */
  readonly store?: ModelStore
  readonly faults?: Partial<ModelFaults>
  /** Default 10 000. */
  readonly requestTimeoutMs?: number
  /** How long an attempt waits for its reply before the next is sent. Default 100. */
  readonly retryAfterMs?: number
  /** Entries fetched at once by a scan. Default 100. */
  readonly pageEntries?: number
  /** Default 4096. */
  readonly maxKeyBytes?: number
  /** Default 1 MiB. */
  readonly maxValueBytes?: number
  /** Default 1024. */
  readonly maxBatchOperations?: number
  /** Default 4 MiB. */
  readonly maxBatchBytes?: number
  /** Transactions over keys that so many shards would part are refused, as the real store refuses them. Default 64. */
  readonly shards?: number
}

type Outcome<T> = { readonly value: T } | { readonly error: unknown }

const utf8 = new TextEncoder()

export class ModelKV implements KV {
  /** What the store holds; tests may look into it and change it behind the client's back. */
  readonly store: ModelStore
  /** May be changed at any time; holds for messages sent from then on. */
  faults: ModelFaults
  /** Cuts this client off; requests and replies that are under way in a cut direction are lost. */
  cut: ModelCut = 'none'
  /** How many requests this client has sent, repeats included. */
  requestsSent = 0
  readonly #options: Required<Omit<ModelKVOptions, 'faults' | 'store'>>

  constructor(options: ModelKVOptions) {
    this.store = options.store ?? new ModelStore()
    this.faults = { ...reliableFaults, ...options.faults }
    this.#options = {
      runtime: options.runtime,
      network: options.network ?? options.runtime,
      requestTimeoutMs: options.requestTimeoutMs ?? 10_000,
      retryAfterMs: options.retryAfterMs ?? 100,
      pageEntries: options.pageEntries ?? 100,
      maxKeyBytes: options.maxKeyBytes ?? defaultLimits.maxKeyBytes,
      maxValueBytes: options.maxValueBytes ?? defaultLimits.maxValueBytes,
      maxBatchOperations: options.maxBatchOperations ?? defaultLimits.maxBatchOperations,
      maxBatchBytes: options.maxBatchBytes ?? defaultLimits.maxBatchBytes,
      shards: options.shards ?? 64,
    }
  }

  async get(key: KeyLike, options: ReadOptions = {}): Promise<KeyValue | undefined> {
    const bytes = this.#key(key)
    return this.#call('read', options, () => this.store.read(bytes))
  }

  async getMany(keys: readonly KeyLike[], options: ReadOptions = {}): Promise<(KeyValue | undefined)[]> {
    const all = keys.map((key) => this.#key(key))
    return this.#call('read', options, () => all.map((bytes) => this.store.read(bytes)))
  }

  async put(key: KeyLike, value: ValueLike, options: WriteOptions = {}): Promise<WriteResult> {
    const bytes = this.#key(key)
    const content = toBytes(value, 'a value')
    if (content.length > this.#options.maxValueBytes) {
      throw new InvalidArgumentError(`the value has ${content.length} bytes, over the limit of ${this.#options.maxValueBytes}`, 'VALUE_TOO_LARGE')
    }
    const condition = this.#condition(bytes, options)
    return this.#call('write', options, () => this.store.write(bytes, content, condition))
  }

  async delete(key: KeyLike, options: WriteOptions = {}): Promise<DeleteResult> {
    const bytes = this.#key(key)
    const condition = this.#condition(bytes, options)
    return this.#call('write', options, () => this.store.remove(bytes, condition))
  }

  async increment(key: KeyLike, by: number | bigint = 1, options: WriteOptions = {}): Promise<WriteResult & { readonly value: bigint }> {
    const amount = incrementBy(by)
    const bytes = this.#key(key)
    const condition = this.#condition(bytes, options)
    return this.#call('write', options, () => this.store.increment(bytes, amount, condition))
  }

  async txn(request: TxnRequest, options: FenceOptions = {}): Promise<TxnResult> {
    const { shard, transaction } = transactionOf(request, this.#options.shards, this.#limits)
    const fence = this.#fence(options.fence, shard)
    return this.#call('write', options, () => this.store.transact(transaction, { fence }))
  }

  async batch(operations: readonly BatchOperation[], options: FenceOptions = {}): Promise<BatchResult> {
    const { shard, transaction } = batchOf(operations, this.#options.shards, this.#limits)
    const fence = this.#fence(options.fence, shard)
    const { revision } = await this.#call('write', options, () => this.store.transact(transaction, { fence }))
    return { revision }
  }

  getOrPut(key: KeyLike, value: ValueSource, options: FenceOptions = {}): Promise<KeyValue & { readonly created: boolean }> {
    return getOrPut({ kv: this, ...this.#options }, key, value, options)
  }

  update(key: KeyLike, change: Updater, options: FenceOptions = {}): Promise<KeyValue | undefined> {
    return update({ kv: this, ...this.#options }, key, change, options)
  }

  async count(options: ScanOptions = {}): Promise<number> {
    const { limit = Number.POSITIVE_INFINITY } = options
    if (Number.isNaN(limit) || limit < 0) throw new InvalidArgumentError(`limit must be a number from 0 on, not ${limit}`)
    const range = toRange(options)
    return this.#call('read', options, () => this.store.page(range, Math.floor(limit)).length)
  }

  async *scan(options: ScanOptions = {}): AsyncGenerator<KeyValue> {
    const { limit = Number.POSITIVE_INFINITY } = options
    if (Number.isNaN(limit) || limit < 0) throw new InvalidArgumentError(`limit must be a number from 0 on, not ${limit}`)
    let range = toRange(options)
    let remaining = Math.floor(limit)
    while (remaining > 0) {
      const wanted = Math.min(remaining, this.#options.pageEntries)
      const page = await this.#call('read', options, () => this.store.page(range, wanted))
      yield* options.keysOnly ? page.map((entry) => ({ ...entry, value: new Uint8Array(0) })) : page
      if (page.length < wanted) return
      remaining -= page.length
      const last = modelKey((page.at(-1) as KeyValue).key)
      range = range.reverse ? { ...range, lt: last } : { ...range, gt: last }
    }
  }

  watch(options: WatchOptions = {}): Watch {
    const range = options.key === undefined ? rangeOf(options) : keyRange(this.#key(options.key))
    return new WatchStream(options, range, {
      runtime: this.#options.runtime,
      clusterId: () => '0000000000000000',
      shards: 1,
      groupOf: () => 1,
      poll: (_group, request, signal) => this.#poll(request, signal),
    })
  }

  /** Asks for the writes after a position, and again when the store says that there are more. That word may get lost, and costs the time of one poll then. */
  async #poll(request: WatchRequest, signal: AbortSignal): Promise<WatchPage> {
    const { runtime } = this.#options
    const untilMs = runtime.nowMs() + request.waitMs
    for (;;) {
      const page = await this.#call('read', { signal, timeoutMs: Number.POSITIVE_INFINITY }, () => watchPage(this.store, request))
      const [section] = page.sections
      const isDone = request.positions[0]!.after === null || section!.events.length > 0 || runtime.nowMs() >= untilMs
      if (isDone) return page
      await this.#changed(section!.position, untilMs - runtime.nowMs(), signal)
    }
  }

  /** Resolves when the store has gone beyond a revision, as far as this client hears of it, or when the time is up. */
  #changed(revision: number, waitMs: number, signal: AbortSignal): Promise<void> {
    const { runtime, network } = this.#options
    return new Promise((resolve) => {
      const end = () => {
        stopListening()
        cancel()
        signal.removeEventListener('abort', end)
        resolve()
      }
      const tell = () => {
        if (network.random() < this.faults.replyLost) return
        this.#carry(this.#delayMs(), () => {
          if (this.cut !== 'replies' && this.cut !== 'both') runtime.defer(end)
        })
      }
      const stopListening = this.store.onChange(tell)
      const cancel = runtime.schedule(waitMs, end)
      signal.addEventListener('abort', end, { once: true })
      if (signal.aborted) end()
      // It may have changed while the answer was under way.
      else if (this.store.revision > revision) tell()
    })
  }

  get #limits(): Limits {
    return this.#options
  }

  #condition(key: Uint8Array, options: WriteOptions): ModelCondition {
    checkConditions(options)
    const { ifVersion, ifRevision, fence } = options
    return { ifVersion, ifRevision, fence: this.#fence(fence, shardOf(key, this.#options.shards)) }
  }

  #fence(fence: Fence | undefined, shard: number): ModelCondition['fence'] {
    return fenceOf(fence, shard, this.#options.shards, this.#limits)
  }

  #key(key: KeyLike): Uint8Array {
    const bytes = toBytes(key, 'a key')
    if (bytes.length === 0) throw new InvalidArgumentError('the key is empty', 'EMPTY_KEY')
    if (bytes.length > this.#options.maxKeyBytes) {
      throw new InvalidArgumentError(`the key has ${bytes.length} bytes, over the limit of ${this.#options.maxKeyBytes}`, 'KEY_TOO_LARGE')
    }
    return bytes
  }

  #delayMs(): number {
    const { network } = this.#options
    const { minimumDelayMs, maximumDelayMs, slow, slowMs } = this.faults
    const delayMs = minimumDelayMs + network.random() * (maximumDelayMs - minimumDelayMs)
    return network.random() < slow ? delayMs + network.random() * slowMs : delayMs
  }

  /** Carries one message: an undelayed one too arrives in a later turn, never within the call. */
  #carry(delayMs: number, deliver: () => void): void {
    const { network } = this.#options
    if (delayMs === 0) network.defer(deliver)
    else network.schedule(delayMs, deliver)
  }

  #call<T>(kind: 'read' | 'write', options: WaitOptions, execute: () => T): Promise<T> {
    const { runtime, network, requestTimeoutMs, retryAfterMs } = this.#options
    const { signal, timeoutMs = requestTimeoutMs } = options
    if (Number.isNaN(timeoutMs) || timeoutMs < 0) throw new InvalidArgumentError(`timeoutMs must be a number from 0 on, not ${timeoutMs}`)
    return new Promise<T>((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason)
        return
      }
      let sent = false
      let finished = false
      /** The completion record of a write: whatever attempt arrives first makes it, all others are answered from it. */
      let completed: Outcome<T> | null = null
      let cancelRetry: Cancel = () => {}
      let cancelDeadline: Cancel = () => {}

      const finish = (outcome: Outcome<T>) => {
        if (finished) return
        finished = true
        cancelRetry()
        cancelDeadline()
        signal?.removeEventListener('abort', onAbort)
        if ('value' in outcome) resolve(outcome.value)
        else reject(outcome.error)
      }
      const onAbort = () => {
        const doubtful = kind === 'write' && sent
        finish({ error: doubtful ? new OutcomeUnknownError('aborted while the write was under way', { cause: signal?.reason }) : signal?.reason })
      }
      const onDeadline = () => {
        const text = `no answer within ${timeoutMs} ms`
        finish({ error: kind === 'write' && sent ? new OutcomeUnknownError(text) : new UnavailableError(text, 'TIMEOUT') })
      }
      const executeOnce = (): Outcome<T> => {
        try {
          return { value: execute() }
        } catch (error) {
          return { error }
        }
      }
      const arrive = (refused: boolean, replyLost: boolean) => {
        if (this.cut === 'requests' || this.cut === 'both') return
        if (kind === 'read' && finished) return
        let answer = completed
        // A refusal is only honest while no earlier attempt of the write can have been executed or can yet arrive.
        if (answer === null && refused) answer = { error: new UnavailableError('the model refuses this request') }
        if (answer === null) {
          answer = executeOnce()
          if (kind === 'write') completed = answer
        }
        if (replyLost) return
        const reply = answer
        this.#carry(this.#delayMs(), () => {
          if (this.cut === 'replies' || this.cut === 'both') return
          runtime.defer(() => finish(reply))
        })
      }
      const attempt = () => {
        if (finished) return
        const requestLost = network.random() < this.faults.requestLost
        const replyLost = network.random() < this.faults.replyLost
        const refused = network.random() < this.faults.refused && !sent
        sent = true
        this.requestsSent++
        if (!requestLost) this.#carry(this.#delayMs(), () => arrive(refused, replyLost))
        // A refused attempt is not repeated: were its refusal lost and a repeat executed, the answer «nothing was done» could still be under way.
        if (!refused) cancelRetry = runtime.schedule(retryAfterMs, attempt)
      }

      signal?.addEventListener('abort', onAbort, { once: true })
      if (timeoutMs !== Number.POSITIVE_INFINITY) cancelDeadline = runtime.schedule(timeoutMs, onDeadline)
      if (timeoutMs > 0) attempt()
    })
  }
}

function toBytes(input: KeyLike | ValueLike, what: string): Uint8Array {
  if (typeof input === 'string') return utf8.encode(input)
  if (input instanceof Uint8Array) return input.slice()
  throw new InvalidArgumentError(`${what} must be a string or a Uint8Array, not ${typeof input}`)
}

/** The model has one shard. */
function watchPage(store: ModelStore, { gte, lt, positions, maxBytes }: WatchRequest): WatchPage {
  const { shard, after } = positions[0]!
  if (after === null) return { sections: [{ shard, events: [], position: store.revision }] }
  const writes = store.writesAfter(after)
  if (writes === undefined) throw new HistoryMissingError([{ shard, after: store.oldestPosition }])
  const events: HistoryEvent[] = []
  let position = after
  let bytes = 0
  for (const { key, value, version, revision } of writes) {
    if (bytes >= maxBytes && revision !== position) return { sections: [{ shard, events, position }] }
    position = revision
    if (Buffer.compare(key, gte) < 0 || (lt !== null && Buffer.compare(key, lt) >= 0)) continue
    const valueBytes = value?.length ?? 0
    events.push({ revision, key: modelKey(key), value: value?.slice() ?? null, valueBytes, version })
    bytes += key.length + valueBytes
  }
  return { sections: [{ shard, events, position }] }
}

function checkConditions(options: WriteOptions): void {
  for (const name of ['ifVersion', 'ifRevision'] as const) {
    const condition = options[name]
    if (condition !== undefined && !(Number.isSafeInteger(condition) && condition >= 0)) {
      throw new InvalidArgumentError(`${name} must be a whole number from 0 on, not ${condition}`)
    }
  }
}

function toRange(options: ScanOptions): ModelRange {
  const bound = (key: KeyLike | undefined) => (key === undefined ? undefined : modelKey(toBytes(key, 'a bound')))
  return {
    prefix: bound(options.prefix) ?? '',
    gt: bound(options.gt),
    gte: bound(options.gte),
    lt: bound(options.lt),
    lte: bound(options.lte),
    reverse: options.reverse ?? false,
  }
}
