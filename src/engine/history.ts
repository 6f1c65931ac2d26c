/**
 * History: the latest writes of a group's shards, for those who watch them: every effective write as an event, in the order of the revisions, within a bound in bytes.
 *
 * Invariants:
 * 1. Of each shard it holds every event from its oldest revision on to the shard's own, or none: a reader who has everything up to `oldest - 1` misses nothing.
 * 2. Events are stored in blocks (history-block.ts) in the same flush as their effects, so that after a restart, and after a snapshot was installed, stored blocks and replayed
 *    log join without gap or overlap.
 * 3. What is stored is bounded over all shards of the group: the oldest block of the shard that has most is let go of first, so that a busy shard does not cost the quiet ones their history.
 * 4. What is not stored yet is bounded by the state store: it flushes when that is much, and applying waits for it.
 *
 * How much each replica holds may differ, since they flush at different times. It is no part of what they must agree on.
 */
import { CorruptionError } from '../base/errors.js'
import { metaShard } from './command.js'
import { type EventVisitor, HistoryBlock } from './history-block.js'
import { RecordType, shardPrefix } from './records.js'
import type { StateStore } from './state-store.js'
import type { ValueRecord } from './value-record.js'

/** A block is closed when it has so many bytes: packing or reading one must not be felt. */
const blockBytes = 64 * 1024
/** What a stored block costs beside its bytes. */
const blockOverheadBytes = 100

interface StoredBlock {
  readonly first: number
  readonly last: number
  readonly bytes: number
}

/** The history of one shard. */
export class ShardHistory {
  /** Blocks that the store has, oldest first. */
  readonly stored: StoredBlock[] = []
  storedBytes = 0
  /** Blocks since the last freeze; the last one is still open. */
  recent: HistoryBlock[] = []
  /** Somebody wants to hear of new events. */
  isWatched = false
  /** New events have come since they were last told. */
  isWoken = false
}

export interface HistoryOptions {
  readonly store: StateStore
  readonly revisionOf: (shard: number) => number
  /** What is kept in the state database. */
  readonly maxBytes: number
  /** A last block smaller than this is replaced by a longer one rather than followed by another: quiet shards do not gather crumbs. */
  readonly joinBytes: number
}

export class History {
  readonly #options: HistoryOptions
  readonly #shards = new Map<number, ShardHistory>()
  #woken: number[] = []
  /** Bytes of the events that are not stored yet. */
  #recentBytes = 0
  #storedBytes = 0
  /** Stored blocks that lead nowhere: what follows them is missing. */
  #orphans: string[] = []
  /** What the store had when this life began is known. */
  #isLoaded = false
  #loading: Promise<void> | null = null
  /** Counts the states: what was begun for an earlier one is of no use any more. */
  #generation = 0

  constructor(options: HistoryOptions) {
    this.#options = options
  }

  /** Bytes that the next flush will store, roughly. */
  get recentBytes(): number {
    return this.#recentBytes
  }

  shard(shard: number): ShardHistory {
    let history = this.#shards.get(shard)
    if (history === undefined) {
      history = new ShardHistory()
      this.#shards.set(shard, history)
    }
    return history
  }

  /** A key of the shard was written, or deleted (null). `key` is the record's key in the store. Called once for each write, those of one transaction with one revision. */
  record(shard: number, key: string, record: ValueRecord | null, revision: number): void {
    if (shard === metaShard) return
    const history = this.shard(shard)
    let block = history.recent.at(-1)
    if (block === undefined || (block.sizeBytes > blockBytes && block.last !== revision)) {
      block = new HistoryBlock(revision)
      history.recent.push(block)
    }
    const before = block.sizeBytes
    block.add(key, record, revision)
    this.#recentBytes += block.sizeBytes - before
    if (history.isWatched && !history.isWoken) {
      history.isWoken = true
      this.#woken.push(shard)
    }
  }

  get hasWoken(): boolean {
    return this.#woken.length > 0
  }

  /** The watched shards that have new events since this was last asked. */
  takeWoken(): readonly number[] {
    const woken = this.#woken
    this.#woken = []
    for (const shard of woken) this.shard(shard).isWoken = false
    return woken
  }

  /** The first revision of a shard that can be read; one more than the shard's own when there is none. Final only once `load` is done. */
  oldest(shard: number): number {
    const history = this.#shards.get(shard)
    return history?.stored[0]?.first ?? history?.recent[0]?.first ?? this.#options.revisionOf(shard) + 1
  }

  /** Whether everything that is stored is known. */
  get isLoaded(): boolean {
    return this.#isLoaded
  }

  /** Finds what was stored before this life. Resolves at once after the first time. */
  async load(): Promise<void> {
    while (!this.#isLoaded) {
      this.#loading ??= this.#load(this.#generation).finally(() => {
        this.#loading = null
      })
      await this.#loading
    }
  }

  async #load(generation: number): Promise<void> {
    const found = new Map<number, StoredBlock[]>()
    let shard = await this.#nextShard(0)
    while (shard !== null && generation === this.#generation) {
      found.set(shard, await this.#loadShard(shard))
      shard = await this.#nextShard(shard + 1)
    }
    // A snapshot took the state's place meanwhile.
    if (generation !== this.#generation) return
    this.#isLoaded = true
    for (const [shard, blocks] of found) {
      if (shard >= metaShard) continue
      const history = this.shard(shard)
      // What this life has stored meanwhile is known already.
      const known = this.oldest(shard)
      const older = blocks.filter(({ first }) => first < known)
      const usable = older.length - chainLength(older, known)
      for (const { first } of older.splice(0, usable)) this.#orphans.push(blockKey(shard, first))
      history.stored.unshift(...older)
      for (const { bytes } of older) this.#count(history, bytes)
    }
  }

  /** The first shard from this one on of which the state holds anything. */
  async #nextShard(from: number): Promise<number | null> {
    if (from > 0xffff) return null
    const cursor = this.#options.store.iterate(shardPrefix(from, 0), '\xff\xff', false)
    try {
      const found = await cursor.next()
      return found === undefined ? null : found.key.charCodeAt(0) * 256 + found.key.charCodeAt(1)
    } finally {
      await cursor.close()
    }
  }

  async #loadShard(shard: number): Promise<StoredBlock[]> {
    const cursor = this.#options.store.iterate(shardPrefix(shard, RecordType.history), shardPrefix(shard, RecordType.history + 1), false)
    const blocks: StoredBlock[] = []
    try {
      for (;;) {
        const found = await cursor.next()
        if (found === undefined) return blocks
        const { first, last, sizeBytes } = found.record as HistoryBlock
        if (blockKey(shard, first) !== found.key) throw new CorruptionError(`shard ${shard}: a history block lies under the key of another`)
        blocks.push({ first, last, bytes: sizeBytes + blockOverheadBytes })
      }
    } finally {
      await cursor.close()
    }
  }

  #count(history: ShardHistory, bytes: number): void {
    history.storedBytes += bytes
    this.#storedBytes += bytes
  }

  /** Puts what is new into the store, and takes out what is too much: called right before a flush. */
  save(): void {
    if (this.#recentBytes === 0) return
    this.#recentBytes = 0
    for (const [shard, history] of this.#shards) {
      if (history.recent.length === 0) continue
      for (const block of history.recent) this.#store(shard, history, block)
      history.recent = []
    }
    if (this.#isLoaded) this.#trim()
    // From now on it must be known how much there is. A failure is told to those who ask for the history.
    else this.load().catch(() => {})
  }

  #store(shard: number, history: ShardHistory, block: HistoryBlock): void {
    const { store, joinBytes } = this.#options
    const before = history.stored.at(-1)
    let whole = block
    if (before !== undefined && before.bytes < joinBytes) {
      whole = this.#block(shard, before.first).followedBy(block)
      history.stored.pop()
      this.#count(history, -before.bytes)
    }
    const bytes = whole.sizeBytes + blockOverheadBytes
    history.stored.push({ first: whole.first, last: whole.last, bytes })
    this.#count(history, bytes)
    store.set(blockKey(shard, whole.first), whole)
  }

  #trim(): void {
    const { store, maxBytes } = this.#options
    for (const key of this.#orphans.splice(0)) store.set(key, null)
    while (this.#storedBytes > maxBytes) {
      let most: [number, ShardHistory] | undefined
      for (const each of this.#shards) if (each[1].storedBytes > (most?.[1].storedBytes ?? 0)) most = each
      const [shard, history] = most!
      const { first, bytes } = history.stored.shift()!
      this.#count(history, -bytes)
      store.set(blockKey(shard, first), null)
    }
  }

  /** The store holds another state now: a snapshot was installed. */
  forget(): void {
    this.#generation++
    for (const history of this.#shards.values()) {
      history.stored.length = 0
      history.storedBytes = 0
      history.recent = []
    }
    this.#recentBytes = 0
    this.#storedBytes = 0
    this.#orphans = []
    this.#isLoaded = false
  }

  /** Visits a shard's events after a revision, in order, until the visitor has enough. What is older than `oldest` is not there. */
  read(shard: number, after: number, visitor: EventVisitor): void {
    const history = this.#shards.get(shard)
    if (history === undefined) return
    const { stored, recent } = history
    let at = stored.length
    while (at > 0 && stored[at - 1]!.last > after) at--
    for (; at < stored.length; at++) if (!this.#block(shard, stored[at]!.first).visit(after, visitor)) return
    for (const block of recent) if (block.last > after && !block.visit(after, visitor)) return
  }

  #block(shard: number, first: number): HistoryBlock {
    const block = this.#options.store.get(blockKey(shard, first))
    if (block === undefined) throw new CorruptionError(`shard ${shard}: the history block from revision ${first} is missing`)
    return block as HistoryBlock
  }
}

function blockKey(shard: number, first: number): string {
  const revision = Buffer.alloc(8)
  revision.writeBigUInt64BE(BigInt(first))
  return shardPrefix(shard, RecordType.history) + revision.toString('latin1')
}

/** How many of the last blocks follow each other without a gap, up to the revision after them. (A version that kept no history may have written in between.) */
function chainLength(blocks: readonly StoredBlock[], next: number): number {
  let expected = next
  let length = 0
  while (length < blocks.length) {
    const block = blocks[blocks.length - 1 - length]!
    if (block.last + 1 !== expected) break
    expected = block.first
    length++
  }
  return length
}
