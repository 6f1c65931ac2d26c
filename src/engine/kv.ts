/**
 * The KV interface: what an application calls, and all that the lock and MapReduce layers know of the store. Every implementation
 * (sharded cluster, later a local engine and adapters) has the same semantics:
 *
 * 1. Single-key operations are linearizable. 2. A key's version counts its writes since it was created (0: absent). 3. A revision
 * rises with each write in the key's shard and never goes back, deletes included: fencing tokens are revisions. 4. A write takes effect at most once,
 * whatever is retried inside; the one doubt that is left is OutcomeUnknownError, when the caller's deadline or signal ends first. 5. A transaction happens in one shard, whole
 * or not at all, at one point in time; all that it writes carries one revision. A single write is a transaction of one.
 *
 * Keys are in one shard when they have the same text between their first `{` and the next `}` (`{order 7}/head`, `{order 7}/lines`).
 */

/** Keys are bytes; strings are taken as UTF-8. Between 1 and `maxKeyBytes` bytes. */
export type KeyLike = string | Uint8Array
/** Values are bytes; strings are taken as UTF-8. */
export type ValueLike = string | Uint8Array

/** A key with what was last written to it. */
export interface KeyValue {
  readonly key: Uint8Array
  readonly value: Uint8Array
  /** How often the key was written since it was created; at least 1. */
  readonly version: number
  /** The shard's revision of the last write. */
  readonly revision: number
}

export interface WaitOptions {
  /** Ends the wait: reads reject with the signal's reason, writes with OutcomeUnknownError once they were sent. */
  readonly signal?: AbortSignal | undefined
  /** Ends the wait likewise. Default: the node's `requestTimeoutMs` (10 000). */
  readonly timeoutMs?: number | undefined
}

/**
 * What a read sees:
 *
 * - `linearizable` (default): every write that was acknowledged before the read began. The leader asks a majority whether it still leads; all reads of a moment share the question.
 * - `lease`: the same, but the leader answers alone while a majority heard it recently enough that nobody else can lead. It rests on clocks: monotonic ones that run at rates less than a
 *   seventh apart. One round trip shorter.
 * - `stale`: what any replica has applied, the one on this node if there is one. It may lag behind, without bound while that node is cut off, and a later read may see less.
 */
export type ReadConsistency = 'linearizable' | 'lease' | 'stale'

/** How far the state was applied that an answer reflects. Indexes of one group compare; they are those of its log. */
export interface ReadPosition {
  readonly group: number
  readonly index: number
}

export interface ReadOptions extends WaitOptions {
  /** Default `linearizable`. */
  readonly consistency?: ReadConsistency | undefined
  /** Told, before the read resolves, which state each answer reflects: once for a `get`, at least once for each group of a `scan`. */
  readonly onPosition?: ((position: ReadPosition) => void) | undefined
}

/**
 * «Only while that key's last write has this revision»: what a holder of some right (an election won, a job claimed) puts on its writes, so that none of them takes effect
 * after somebody else has taken the right over. The key must be in the shard of what is written. Revision 0 means that the key must be absent.
 */
export interface Fence {
  readonly key: KeyLike
  readonly revision: number
}

export interface FenceOptions extends WaitOptions {
  /** Writes only while this holds. Otherwise ConditionFailedError with code `FENCED`, and nothing is changed. */
  readonly fence?: Fence | undefined
}

export interface WriteOptions extends FenceOptions {
  /** Writes only when the key has this version now; 0 means absent. Otherwise ConditionFailedError. */
  readonly ifVersion?: number | undefined
  /** Writes only when the key's last write has this revision; 0 means absent. Otherwise ConditionFailedError. */
  readonly ifRevision?: number | undefined
}

export interface WriteResult {
  /** The key's version after the write; 0 after a delete. */
  readonly version: number
  /** The shard's revision of this write. */
  readonly revision: number
}

export interface DeleteResult {
  /** Whether the key was there. A delete of an absent key changes nothing. */
  readonly deleted: boolean
  /** The shard's revision after the delete. */
  readonly revision: number
}

export interface ScanOptions extends ReadOptions {
  readonly prefix?: KeyLike | undefined
  readonly gt?: KeyLike | undefined
  readonly gte?: KeyLike | undefined
  readonly lt?: KeyLike | undefined
  readonly lte?: KeyLike | undefined
  /** From the last key down. Default false. */
  readonly reverse?: boolean | undefined
  /** At most so many entries. Default: no limit. */
  readonly limit?: number | undefined
  /** Leaves the values where they are: the entries have empty ones. Default false. */
  readonly keysOnly?: boolean | undefined
}

/** A key, or a range of keys by the bounds of a scan; with none of them, all keys. */
export interface WatchOptions {
  /** This key alone. Not together with bounds. */
  readonly key?: KeyLike | undefined
  readonly prefix?: KeyLike | undefined
  readonly gt?: KeyLike | undefined
  readonly gte?: KeyLike | undefined
  readonly lt?: KeyLike | undefined
  readonly lte?: KeyLike | undefined
  /** Goes on where another watch was: a `cursor` of that watch, of a bookmark, or of a CompactedError. The range may be another, within that one's. Default: from now on. */
  readonly cursor?: string | undefined
  /** Also tells, now and then, how far the watch has come though nothing in its range was written. Default false. */
  readonly bookmarks?: boolean | undefined
  /** Ends the watch: `next` and `ready` reject with the signal's reason. */
  readonly signal?: AbortSignal | undefined
}

/** A key was written. */
export interface WatchPut extends KeyValue {
  readonly type: 'put'
  /** The last event of its transaction in the range: `Watch.cursor` is behind the transaction now. */
  readonly isLast: boolean
}

/** A key was deleted (by a caller, or because its time was over). */
export interface WatchDelete {
  readonly type: 'delete'
  readonly key: Uint8Array
  /** The shard's revision of the delete. */
  readonly revision: number
  /** As in WatchPut. */
  readonly isLast: boolean
}

/** Everything in the range up to this cursor was told. */
export interface WatchBookmark {
  readonly type: 'bookmark'
  readonly cursor: string
}

export type WatchEvent = WatchPut | WatchDelete | WatchBookmark

/**
 * The writes of a range as they happen. For one consumer: several iterators share the events. Leaving a `for await` early closes the watch.
 *
 * - **Complete, once each.** Every effective write in the range after the start gives one event, and no other, over failovers, restarts and lost connections.
 * - **In order.** The events of a shard, so all of one key, come in the order of their revisions. Events of different shards come in any order.
 * - **Atomic.** The events of a transaction come one right after the other, and `cursor` is never between them.
 * - **Bounded.** At most two pages of events per group are held here; a consumer that is slower than the writers is let fall behind, and gets CompactedError once what it has not
 *   yet seen is not kept any more.
 */
export interface Watch extends AsyncIterable<WatchEvent>, AsyncDisposable {
  /** Resolves when the start is fixed: every write that begins after that will be told. With a `cursor`, at once. Rejects if the watch ends before. */
  readonly ready: Promise<void>
  /** Where the consumer stands: behind all that `next` has given out, to the border of a transaction. Throws UnavailableError `NOT_READY` before `ready`. */
  readonly cursor: string
  [Symbol.asyncIterator](): AsyncIterator<WatchEvent, void, void>
  /** Ends the watch; the iteration ends. Idempotent. */
  close(): Promise<void>
}

/** A condition on one key. All that is given must hold, and something must be given. */
export interface Compare {
  readonly key: KeyLike
  /** The key's version; 0 means absent. */
  readonly version?: number | undefined
  /** The revision of the key's last write; 0 means absent. */
  readonly revision?: number | undefined
  /** The key is there with exactly these bytes. */
  readonly value?: ValueLike | undefined
  /** True: the key is absent; false: it is there. */
  readonly absent?: boolean | undefined
}

export interface GetOperation {
  readonly get: KeyLike
}

export interface PutOperation {
  readonly put: KeyLike
  readonly value: ValueLike
}

export interface DeleteOperation {
  readonly delete: KeyLike
}

export type TxnOperation = GetOperation | PutOperation | DeleteOperation
export type BatchOperation = PutOperation | DeleteOperation

/** When all of `if` holds (also when there is none) `then` is done, else `else`. Operations are done in order, and each sees what those before it did. */
export interface TxnRequest {
  readonly if?: readonly Compare[] | undefined
  readonly then?: readonly TxnOperation[] | undefined
  readonly else?: readonly TxnOperation[] | undefined
}

/** What one operation of a transaction did: a get the entry or undefined, a put its WriteResult, a delete its DeleteResult. */
export type TxnOperationResult = KeyValue | undefined | WriteResult | DeleteResult

export interface TxnResult {
  /** Whether all of `if` held. */
  readonly succeeded: boolean
  /** The shard's revision after the transaction: one more than before when it wrote anything, and that of all its writes. */
  readonly revision: number
  /** One for each operation of `then` or of `else`, in order. */
  readonly results: readonly TxnOperationResult[]
}

export interface BatchResult {
  /** The shard's revision after the batch: that of all its writes. */
  readonly revision: number
}

/** A value, or what makes one when it is needed. */
export type ValueSource = ValueLike | (() => ValueLike | Promise<ValueLike>)
/** What a key is to hold, given what it holds: a value, null to delete it, undefined to leave it as it is. */
export type Updater = (current: KeyValue | undefined) => ValueLike | null | undefined | Promise<ValueLike | null | undefined>

/**
 * Every call that takes a key or a value over its limit, or an option of a wrong kind, rejects with InvalidArgumentError before anything is sent: `EMPTY_KEY`, `KEY_TOO_LARGE`,
 * `VALUE_TOO_LARGE`, `CROSS_SHARD`, `TOO_MANY_OPERATIONS`, `BATCH_TOO_LARGE`, else `INVALID_ARGUMENT`.
 */
export interface KV {
  /** Reads a key, linearizably unless `consistency` says otherwise. Resolves to undefined when it is absent. */
  get(key: KeyLike, options?: ReadOptions): Promise<KeyValue | undefined>
  /** Reads several keys, each linearizably, in the order asked; not one point in time (`txn` is, for keys of one shard). */
  getMany(keys: readonly KeyLike[], options?: ReadOptions): Promise<(KeyValue | undefined)[]>
  /** Writes a key. Resolves when the write is durable on a majority. */
  put(key: KeyLike, value: ValueLike, options?: WriteOptions): Promise<WriteResult>
  /** Deletes a key; the same durability as `put`. */
  delete(key: KeyLike, options?: WriteOptions): Promise<DeleteResult>
  /** Entries in byte order of their keys, over all shards, fetched in pages as they are consumed. Each page is a consistent view of each group that it reads, linearizable unless `consistency` says otherwise. */
  scan(options?: ScanOptions): AsyncIterable<KeyValue>
  /** How many entries a scan with these options would give. Counted where they are; nothing but numbers is sent. Not one point in time over all shards, as a scan is not. */
  count(options?: ScanOptions): Promise<number>
  /**
   * Compares, and does one thing or the other, atomically. All keys must be in one shard, or InvalidArgumentError `CROSS_SHARD`. Conditions that do not hold are a result,
   * not an error. Takes effect at most once, with the doubt that `put` has. When the gets in it find more than fits into an answer (2 MiB), nothing is done: `RESULT_TOO_LARGE`.
   *
   * @example
   * const { succeeded } = await kv.txn({
   *   if: [{ key: '{acc}/from', version: from.version }, { key: '{acc}/to', absent: false }],
   *   then: [{ put: '{acc}/from', value: '90' }, { put: '{acc}/to', value: '110' }],
   *   else: [{ get: '{acc}/from' }],
   * })
   */
  txn(request: TxnRequest, options?: FenceOptions): Promise<TxnResult>
  /**
   * Writes several keys of one shard, all or none, in order; a key may come twice.
   *
   * @example
   * await kv.batch([{ put: '{order 7}/head', value: head }, { delete: '{order 7}/draft' }])
   */
  batch(operations: readonly BatchOperation[], options?: FenceOptions): Promise<BatchResult>
  /**
   * The key's entry; when it is absent, the key is created with this value. Of many who call it at once one creates, and all get what that one wrote. A function is called only
   * when the key was found absent, and then at most once.
   */
  getOrPut(key: KeyLike, value: ValueSource, options?: FenceOptions): Promise<KeyValue & { readonly created: boolean }>
  /**
   * Adds to a number: the value is the decimal text of a whole number between -2^63 and 2^63-1, an absent key counts as 0. Exactly once, unlike a get and a put. Nothing is changed
   * when the value is no such text (ConditionFailedError `NOT_A_NUMBER`) or the sum is out of range (`NUMBER_OUT_OF_RANGE`).
   *
   * @example
   * const { value } = await kv.increment('visits')   // 1n, 2n, 3n, …
   */
  increment(key: KeyLike, by?: number | bigint, options?: WriteOptions): Promise<WriteResult & { readonly value: bigint }>
  /**
   * Replaces what a key holds by what a function makes of it, atomically: when somebody else wrote the key meanwhile the function is called again with what is there then, so it
   * should have no effects of its own. Resolves to the entry as it is left. `timeoutMs` is for all attempts together.
   *
   * @example
   * await kv.update('config', (current) => JSON.stringify({ ...parse(current), debug: true }))
   */
  update(key: KeyLike, change: Updater, options?: FenceOptions): Promise<KeyValue | undefined>
  /**
   * Tells the writes of a key or a range as they happen, from now on or from a cursor, which may be kept anywhere and for as long as the history reaches back (`historyBytes` of the
   * nodes' tuning, for each group). It has no deadline; while the cluster cannot be reached it waits.
   *
   * Throws InvalidArgumentError, also `BAD_CURSOR` for a cursor that is damaged, of another cluster, or of a range that does not hold this one. The iteration rejects with
   * CompactedError, ClosedError, or the reason of `signal`.
   *
   * @example
   * // A copy of a range that misses nothing: the watch begins before the scan, and what the scan has seen already is left out.
   * const watch = kv.watch({ prefix: 'user/' })
   * await watch.ready
   * const users = new Map()
   * for await (const { key, value, revision } of kv.scan({ prefix: 'user/' })) users.set(text(key), { value, revision })
   * for await (const event of watch) {
   *   if (event.type === 'bookmark' || event.revision <= (users.get(text(event.key))?.revision ?? 0)) continue
   *   if (event.type === 'put') users.set(text(event.key), event)
   *   else users.delete(text(event.key))
   * }
   */
  watch(options?: WatchOptions): Watch
}
