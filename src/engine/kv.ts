/**
 * The KV interface: what an application calls, and all that the lock and MapReduce layers know of the store. Every implementation
 * (sharded cluster, later a local engine and adapters) has the same semantics:
 *
 * 1. Single-key operations are linearizable. 2. A key's version counts its writes since it was created (0: absent). 3. A revision
 * rises with each write in the key's shard and never goes back, deletes included: fencing tokens are revisions. 4. A write takes effect at most once,
 * whatever is retried inside; the one doubt that is left is OutcomeUnknownError, when the caller's deadline or signal ends first.
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

export interface WriteOptions extends WaitOptions {
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
}

export interface KV {
  /** Reads a key, linearizably unless `consistency` says otherwise. Resolves to undefined when it is absent. */
  get(key: KeyLike, options?: ReadOptions): Promise<KeyValue | undefined>
  /** Reads several keys, each linearizably, in the order asked; not one point in time. */
  getMany(keys: readonly KeyLike[], options?: ReadOptions): Promise<(KeyValue | undefined)[]>
  /** Writes a key. Resolves when the write is durable on a majority. */
  put(key: KeyLike, value: ValueLike, options?: WriteOptions): Promise<WriteResult>
  /** Deletes a key; the same durability as `put`. */
  delete(key: KeyLike, options?: WriteOptions): Promise<DeleteResult>
  /** Entries in byte order of their keys, over all shards, fetched in pages as they are consumed. Each page is a consistent view of each group that it reads, linearizable unless `consistency` says otherwise. */
  scan(options?: ScanOptions): AsyncIterable<KeyValue>
}
