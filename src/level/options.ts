/** Options of the abstract-level face: those of abstract-level, and the store's own beside them. No code. */
import type {
  AbstractBatchOptions,
  AbstractClearOptions,
  AbstractDatabaseOptions,
  AbstractDelOptions,
  AbstractGetManyOptions,
  AbstractGetOptions,
  AbstractHasManyOptions,
  AbstractHasOptions,
  AbstractIteratorOptions,
  AbstractKeyIteratorOptions,
  AbstractPutOptions,
  AbstractValueIteratorOptions,
} from 'abstract-level'
import type { FenceOptions, ReadOptions, WaitOptions, WriteOptions } from '../engine/kv.js'

/** How a database is laid over a store. */
export interface QuorateLevelOptions<K, V> extends AbstractDatabaseOptions<K, V> {
  /**
   * What the keys of this database begin with in the store; nothing else may use keys that begin so. Default: `{level}`, or `level/` when `spread` is set.
   *
   * It holds a `{tag}`, which keeps the whole database, sublevels and all, in one shard, so that every batch is atomic; unless `spread` is set, then it holds no brace.
   */
  readonly prefix?: string | Uint8Array
  /** Spreads the keys over all shards, for more than one shard can hold or serve. Only keys with the same `{tag}` are sure to be in one shard then. Default false. */
  readonly spread?: boolean
  /**
   * What becomes of a batch over several shards: `refuse` (default) rejects it with LEVEL_NOT_SUPPORTED; `split` writes it in parts, one for all keys of the same `{tag}` and one for each
   * key without. Each part is atomic, the batch is not: when it rejects, some parts may have been written.
   */
  readonly crossShardBatch?: 'refuse' | 'split'
  /** What reads see that do not say so themselves. Default `linearizable`. */
  readonly consistency?: ReadOptions['consistency']
  /** Deadline of operations that name none; of an iterator, of each page. Default: the store's own. */
  readonly timeoutMs?: number
  /** What `open()` waits for: that the store serves a read (default), or nothing. */
  readonly waitFor?: 'store' | 'nothing'
}

export interface LevelGetOptions<K, V> extends AbstractGetOptions<K, V>, ReadOptions {}
export interface LevelGetManyOptions<K, V> extends AbstractGetManyOptions<K, V>, ReadOptions {}
export interface LevelHasOptions<K> extends AbstractHasOptions<K>, ReadOptions {}
export interface LevelHasManyOptions<K> extends AbstractHasManyOptions<K>, ReadOptions {}
export interface LevelPutOptions<K, V> extends AbstractPutOptions<K, V>, WriteOptions {}
export interface LevelDelOptions<K> extends AbstractDelOptions<K>, WriteOptions {}
export interface LevelBatchOptions<K, V> extends AbstractBatchOptions<K, V>, FenceOptions {}
export interface LevelClearOptions<K> extends AbstractClearOptions<K>, WaitOptions {}
export interface LevelIteratorOptions<K, V> extends AbstractIteratorOptions<K, V>, Omit<ReadOptions, 'signal'> {}
export interface LevelKeyIteratorOptions<K> extends AbstractKeyIteratorOptions<K>, Omit<ReadOptions, 'signal'> {}
export interface LevelValueIteratorOptions<K, V> extends AbstractValueIteratorOptions<K, V>, Omit<ReadOptions, 'signal'> {}
