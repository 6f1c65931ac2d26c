/**
 * QuorateLevel: a part of a store as an abstract-level database, so that what the Level ecosystem has works on a cluster.
 *
 * Invariants:
 * 1. All keys of a database begin with its prefix; nothing outside of it is ever read or written.
 * 2. A batch is atomic: all or nothing, at one moment, in the order of its operations; or it is refused, or its owner asked for it to be split.
 * 3. The manifest promises no more than the store does: an iterator's pages are each one moment, the iterator is not, so there are no implicit snapshots; nor explicit ones.
 * 4. `close` waits for what is under way, and leaves the store open: it is somebody else's.
 */
import {
  type AbstractBatchOperation,
  type AbstractChainedBatch,
  type AbstractIterator,
  type AbstractKeyIterator,
  AbstractLevel,
  type AbstractOpenOptions,
  type AbstractValueIterator,
} from 'abstract-level'
import { asBuffer, toBytes, toLatin1 } from '../base/bytes.js'
import { InvalidArgumentError } from '../base/errors.js'
import type { BatchOperation, FenceOptions, KV, ReadOptions, WaitOptions, WriteOptions } from '../engine/kv.js'
import { tagOf } from '../engine/sharding.js'
import { toLevelError } from './errors.js'
import { type EncodedRange, LevelIterator, rangeWithin } from './iterator.js'
import type {
  LevelBatchOptions,
  LevelClearOptions,
  LevelDelOptions,
  LevelGetManyOptions,
  LevelGetOptions,
  LevelHasManyOptions,
  LevelHasOptions,
  LevelIteratorOptions,
  LevelKeyIteratorOptions,
  LevelPutOptions,
  LevelValueIteratorOptions,
  QuorateLevelOptions,
} from './options.js'

/** Keys deleted at a time by `clear`. */
const clearedAtOnce = 1000

interface EncodedOperation {
  readonly type: 'put' | 'del'
  readonly key: Uint8Array
  readonly value?: Uint8Array
}

/** The methods that abstract-level asks of a database and does not declare. Keys and values come encoded as buffers. */
interface PrivateLevelApi {
  _open(options: AbstractOpenOptions): Promise<void>
  _close(): Promise<void>
  _get(key: Uint8Array, options: ReadOptions): Promise<Buffer | undefined>
  _getMany(keys: readonly Uint8Array[], options: ReadOptions): Promise<(Buffer | undefined)[]>
  _has(key: Uint8Array, options: ReadOptions): Promise<boolean>
  _hasMany(keys: readonly Uint8Array[], options: ReadOptions): Promise<boolean[]>
  _put(key: Uint8Array, value: Uint8Array, options: WriteOptions): Promise<void>
  _del(key: Uint8Array, options: WriteOptions): Promise<void>
  _batch(operations: readonly EncodedOperation[], options: FenceOptions): Promise<void>
  _clear(options: EncodedRange & WaitOptions): Promise<void>
  _iterator(options: EncodedRange & ReadOptions & { readonly values?: boolean }): unknown
}

/**
 * A database in a store: in `node.kv` of a cluster, or in that of a local store. It needs no opening, and can be opened again after it was closed. Errors: see LevelError.
 *
 * @example
 * import { QuorateLevel } from 'quorate/level'
 *
 * const db = new QuorateLevel<string, unknown>(node.kv, { prefix: '{orders}', valueEncoding: 'json' })
 * const paid = db.sublevel('paid', { valueEncoding: 'json' })
 * await db.batch([{ type: 'put', key: '7', value: { total: 30 } }, { type: 'put', sublevel: paid, key: '7', value: true }])
 * for await (const [key, value] of db.iterator({ gte: '5', limit: 10 })) console.log(key, value)
 */
// biome-ignore lint/suspicious/noUnsafeDeclarationMerging: the interface below declares only methods that AbstractLevel has
export class QuorateLevel<KDefault = string, VDefault = string>
  extends AbstractLevel<Buffer | Uint8Array | string, KDefault, VDefault>
  implements PrivateLevelApi
{
  readonly #kv: KV
  readonly #prefix: Buffer
  readonly #isSplit: boolean
  readonly #defaults: { readonly consistency: ReadOptions['consistency']; readonly timeoutMs: number | undefined }
  readonly #waitFor: 'store' | 'nothing'
  #underWay = 0
  #onIdle: (() => void) | null = null

  /** Throws InvalidArgumentError when the prefix does not fit the way in which the keys are to be laid out. */
  constructor(kv: KV, options: QuorateLevelOptions<KDefault, VDefault> = {}) {
    const { prefix, spread = false, crossShardBatch = 'refuse', consistency, timeoutMs, waitFor = 'store', ...forward } = options
    super(
      {
        encodings: { buffer: true },
        implicitSnapshots: false,
        explicitSnapshots: false,
        permanence: true,
        has: true,
        getSync: false,
        createIfMissing: false,
        errorIfExists: false,
        signals: { iterators: true },
      } as ConstructorParameters<typeof AbstractLevel>[0],
      forward,
    )
    if (crossShardBatch !== 'refuse' && crossShardBatch !== 'split')
      throw new InvalidArgumentError(`Expected \`crossShardBatch\` to be refuse or split, got ${JSON.stringify(crossShardBatch)}`)
    if (waitFor !== 'store' && waitFor !== 'nothing')
      throw new InvalidArgumentError(`Expected \`waitFor\` to be store or nothing, got ${JSON.stringify(waitFor)}`)
    this.#kv = kv
    this.#prefix = checkPrefix(prefix ?? (spread ? 'level/' : '{level}'), spread)
    this.#isSplit = crossShardBatch === 'split'
    this.#defaults = { consistency, timeoutMs }
    this.#waitFor = waitFor
  }

  /** @internal */
  async _open(_options: AbstractOpenOptions): Promise<void> {
    // Without a majority this fails, with the reason as the cause of LEVEL_DATABASE_NOT_OPEN.
    if (this.#waitFor === 'store') await this.#kv.get(this.#prefix, { timeoutMs: this.#defaults.timeoutMs })
  }

  /** @internal */
  async _close(): Promise<void> {
    if (this.#underWay === 0) return
    await new Promise<void>((resolve) => {
      this.#onIdle = resolve
    })
  }

  /** Runs an operation of the store, which `close` waits for, and gives its errors the codes of abstract-level. */
  async #run<T>(options: WaitOptions, operate: () => Promise<T>): Promise<T> {
    this.#underWay++
    try {
      return await operate()
    } catch (error) {
      throw toLevelError(error, options.signal)
    } finally {
      if (--this.#underWay === 0) this.#onIdle?.()
    }
  }

  #reading({ consistency = this.#defaults.consistency, timeoutMs = this.#defaults.timeoutMs, signal, onPosition }: ReadOptions): ReadOptions {
    return { consistency, timeoutMs, signal, onPosition }
  }

  #keyOf(key: Uint8Array): Buffer {
    return Buffer.concat([this.#prefix, key])
  }

  /** @internal */
  _get(key: Uint8Array, options: ReadOptions): Promise<Buffer | undefined> {
    return this.#run(options, async () => bytesOf(await this.#kv.get(this.#keyOf(key), this.#reading(options))))
  }

  /** @internal */
  _getMany(keys: readonly Uint8Array[], options: ReadOptions): Promise<(Buffer | undefined)[]> {
    const mapped = keys.map((key) => this.#keyOf(key))
    return this.#run(options, async () => (await this.#kv.getMany(mapped, this.#reading(options))).map(bytesOf))
  }

  /** @internal */
  async _has(key: Uint8Array, options: ReadOptions): Promise<boolean> {
    return (await this._get(key, options)) !== undefined
  }

  /** @internal */
  async _hasMany(keys: readonly Uint8Array[], options: ReadOptions): Promise<boolean[]> {
    return (await this._getMany(keys, options)).map((value) => value !== undefined)
  }

  #writing<T extends WaitOptions>(options: T): T {
    return options.timeoutMs === undefined ? { ...options, timeoutMs: this.#defaults.timeoutMs } : options
  }

  /** @internal */
  async _put(key: Uint8Array, value: Uint8Array, options: WriteOptions): Promise<void> {
    await this.#run(options, () => this.#kv.put(this.#keyOf(key), value, this.#writing(options)))
  }

  /** @internal */
  async _del(key: Uint8Array, options: WriteOptions): Promise<void> {
    await this.#run(options, () => this.#kv.delete(this.#keyOf(key), this.#writing(options)))
  }

  /** @internal */
  async _batch(operations: readonly EncodedOperation[], options: FenceOptions): Promise<void> {
    const mapped = operations.map(({ type, key, value }): BatchOperation => {
      return type === 'put' ? { put: this.#keyOf(key), value: value! } : { delete: this.#keyOf(key) }
    })
    const parts = this.#isSplit ? splitByTag(mapped) : [mapped]
    const writing = this.#writing(options)
    await this.#run(options, async () => {
      const outcomes = await Promise.allSettled(parts.map((part) => this.#kv.batch(part, writing)))
      for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
    })
  }

  /** @internal Not atomic: what is written meanwhile may go too. */
  async _clear(options: EncodedRange & WaitOptions): Promise<void> {
    const { reverse, limit } = options
    const writing = this.#writing({ signal: options.signal, timeoutMs: options.timeoutMs })
    const range = { ...rangeWithin(this.#prefix, options), reverse, keysOnly: true, ...(limit < 0 ? {} : { limit }), ...writing }
    await this.#run(options, async () => {
      let keys: Uint8Array[] = []
      const remove = async () => {
        await Promise.all(keys.map((key) => this.#kv.delete(key, writing)))
        keys = []
      }
      for await (const { key } of this.#kv.scan(range)) if (keys.push(key) === clearedAtOnce) await remove()
      await remove()
    })
  }

  /** @internal */
  _iterator(options: EncodedRange & ReadOptions & { readonly values?: boolean }): LevelIterator<KDefault, VDefault> {
    return new LevelIterator<KDefault, VDefault>(this, options, {
      scan: (range) => this.#kv.scan(range),
      prefix: this.#prefix,
      reading: this.#reading(options),
    })
  }
}

function bytesOf(entry: { readonly value: Uint8Array } | undefined): Buffer | undefined {
  return entry && asBuffer(entry.value)
}

function checkPrefix(prefix: string | Uint8Array, spread: boolean): Buffer {
  const bytes = Buffer.from(toBytes(prefix))
  if (bytes.length === 0) throw new InvalidArgumentError('Expected `prefix` to have at least one byte')
  if (spread && bytes.includes('{')) throw new InvalidArgumentError('Expected a `prefix` without a brace: `spread` lays the keys over all shards')
  if (!spread && tagOf(bytes) === undefined)
    throw new InvalidArgumentError('Expected `prefix` to hold a {tag}, which keeps the database in one shard; or `spread` to be set')
  return bytes
}

/** The operations that are sure to be in one shard together, in their order. */
function splitByTag(operations: readonly BatchOperation[]): BatchOperation[][] {
  const parts = new Map<string, BatchOperation[]>()
  for (const operation of operations) {
    const key = toBytes('put' in operation ? operation.put : operation.delete)
    const tag = toLatin1(tagOf(key) ?? key)
    const part = parts.get(tag)
    if (part === undefined) parts.set(tag, [operation])
    else part.push(operation)
  }
  return [...parts.values()]
}

// The methods are those of AbstractLevel, and run there; only their options say more here.
export interface QuorateLevel<KDefault = string, VDefault = string> {
  get(key: KDefault): Promise<VDefault | undefined>
  get<K = KDefault, V = VDefault>(key: K, options: LevelGetOptions<K, V>): Promise<V | undefined>
  getMany(keys: KDefault[]): Promise<(VDefault | undefined)[]>
  getMany<K = KDefault, V = VDefault>(keys: K[], options: LevelGetManyOptions<K, V>): Promise<(V | undefined)[]>
  has(key: KDefault): Promise<boolean>
  has<K = KDefault>(key: K, options: LevelHasOptions<K>): Promise<boolean>
  hasMany(keys: KDefault[]): Promise<boolean[]>
  hasMany<K = KDefault>(keys: K[], options: LevelHasManyOptions<K>): Promise<boolean[]>
  put(key: KDefault, value: VDefault): Promise<void>
  put<K = KDefault, V = VDefault>(key: K, value: V, options: LevelPutOptions<K, V>): Promise<void>
  del(key: KDefault): Promise<void>
  del<K = KDefault>(key: K, options: LevelDelOptions<K>): Promise<void>
  clear(): Promise<void>
  clear<K = KDefault>(options: LevelClearOptions<K>): Promise<void>
  batch(operations: AbstractBatchOperation<this, KDefault, VDefault>[]): Promise<void>
  batch<K = KDefault, V = VDefault>(operations: AbstractBatchOperation<this, K, V>[], options: LevelBatchOptions<K, V>): Promise<void>
  batch(): AbstractChainedBatch<this, KDefault, VDefault>
  iterator(): AbstractIterator<this, KDefault, VDefault>
  iterator<K = KDefault, V = VDefault>(options: LevelIteratorOptions<K, V>): AbstractIterator<this, K, V>
  keys(): AbstractKeyIterator<this, KDefault>
  keys<K = KDefault>(options: LevelKeyIteratorOptions<K>): AbstractKeyIterator<this, K>
  values(): AbstractValueIterator<this, KDefault, VDefault>
  values<K = KDefault, V = VDefault>(options: LevelValueIteratorOptions<K, V>): AbstractValueIterator<this, K, V>
}
