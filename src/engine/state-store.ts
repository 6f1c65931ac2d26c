/**
 * StateStore: one group's applied state: a table of records in memory over the node's state database, written behind in the background.
 *
 * Invariants:
 * 1. Reads see every applied change at once: the table in memory first (record-table.ts), then the database.
 * 2. A flush is one synced batch, and holds all changes since the flush before and the applied index. So the database is at any moment, power loss
 *    included, the state at exactly its applied index: the log before it is no longer needed.
 * 3. What a flush writes never changes while it is under way; afterwards it stays in memory as a cache, within its bound.
 * 4. A flush never holds an entry that is not yet durable in this node's own log: the leader applies on its followers' word, and a log that ends before the
 *    state would make the next start impossible.
 * 5. At most one flush or install is under way; the host stops applying while `congested` or while `awaitsLog`.
 * 6. A snapshot is staged in the other area (state-area.ts) and becomes the state in one synced batch, and only if it is ahead of the state: never back.
 */
import { fromLatin1 } from '../base/bytes.js'
import { Reader, Writer } from '../base/codec.js'
import { ClosedError, CorruptionError, QuorateError, storageFailure } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { Database, DatabaseBatch, DatabaseIterator, DatabaseReader } from './database.js'
import { type FrozenChanges, RecordTable, type StateRecord } from './record-table.js'
import { type Area, areaPrefix, emptyArea, pointTo, readCurrentArea } from './state-area.js'
import { MergedCursor, type RecordCursor } from './state-cursor.js'

export type { RecordCursor } from './state-cursor.js'

const appliedKey = '\xff\xffa'
/** Which snapshot an area was installed from. */
const originKey = '\xff\xffo'
/** Records encoded per turn of the event loop while a flush is put together. */
const recordsPerSlice = 256
/** … and bytes. */
const bytesPerSlice = 256 * 1024
/** Between two batches of deletions in the background: they must not be felt. */
const emptyingPauseMs = 10
/** Bytes of a snapshot that are written in one batch, and so with one sync. */
const stagingBatchBytes = 2 * 1024 * 1024

export interface StateStoreOptions {
  readonly database: Database
  readonly group: number
  readonly runtime: Runtime
  /** Decodes a record of the database. */
  readonly decode: (key: string, bytes: Uint8Array) => StateRecord
  /** Bytes of records that are kept in memory though the database has them. */
  readonly cacheBytes: () => number
  /** Flushes when so many bytes are newer than the database … */
  readonly flushBytes: number
  /** … or its oldest change is so old. */
  readonly flushAfterMs: number
  /** The last entry that is durable in this node's log. */
  readonly durableIndex: () => number
  /** Called right before a flush: the last moment to put records into it. */
  readonly beforeFreeze: () => void
  /** Bytes of what `beforeFreeze` will put in beside what was changed. */
  readonly heldBackBytes?: () => number
  /** A flush is done: the log is needed only from here on. */
  readonly onFlushed?: (index: number) => void
  /** A flush failed: the group must stop. */
  readonly onFailure: (error: unknown) => void
}

/** A run of records. */
export interface StatePage {
  readonly records: [key: Uint8Array, value: Uint8Array][]
  /** There are no records after these. */
  readonly isLast: boolean
}

/** The state as it was at one applied index, of the database alone; stays so while writes go on. */
export interface StateCapture {
  readonly index: number
  /** Records in key order, those after a key (from the first for null), up to about `maxBytes` but at least one. Keys are without group and area. */
  read(after: Uint8Array | null, maxBytes: number): Promise<StatePage>
  close(): Promise<void>
}

export class StateStore {
  readonly #options: StateStoreOptions
  #area: Area = 0
  #prefix: string
  #table: RecordTable
  #appliedIndex = 0
  /** Applied index of the newest flush that is done. */
  #flushedIndex = 0
  #flushing: Promise<void> | null = null
  #emptying: Promise<void> | null = null
  #installing: Promise<void> | null = null
  /** The part of a snapshot that is not written yet. */
  #staged: { readonly batch: DatabaseBatch; bytes: number } | null = null
  #cancelTimer: (() => void) | null = null
  /** A flush is wanted, and starts as soon as it may. */
  #due = false
  #failed = false
  #closed = false

  constructor(options: StateStoreOptions) {
    this.#options = options
    this.#prefix = areaPrefix(options.group, 0)
    this.#table = new RecordTable(options.cacheBytes)
  }

  /** Reads where the state stands. What a crash left of an install or of an old state is removed in the background. */
  async open(): Promise<void> {
    const { database, group } = this.#options
    this.#useArea(readCurrentArea(database, group))
    this.#appliedIndex = this.#flushedIndex = readApplied(database, this.#prefix)
    const left = database.iterate({ gte: fromLatin1(this.#otherPrefix), lt: fromLatin1(areaPrefix(group, 2 - this.#area)), keysOnly: true })
    const found = await left.nextv(1)
    await left.close()
    if (found.length > 0) this.#startEmptying()
  }

  #useArea(area: Area): void {
    this.#area = area
    this.#prefix = areaPrefix(this.#options.group, area)
  }

  get #otherPrefix(): string {
    return areaPrefix(this.#options.group, 1 - this.#area)
  }

  #startEmptying(): void {
    this.#emptying ??= this.#emptyOther(emptyingPauseMs).then(
      () => {
        this.#emptying = null
      },
      (error: unknown) => {
        this.#emptying = null
        this.#fail(error)
      },
    )
  }

  #emptyOther(pauseMs: number): Promise<void> {
    const { database, group, runtime } = this.#options
    const pause = () => new Promise<boolean>((resolve) => runtime.schedule(pauseMs, () => resolve(!this.#closed)))
    return emptyArea(database, group, 1 - this.#area, pause)
  }

  #fail(error: unknown): void {
    this.#failed = true
    this.#options.onFailure(error instanceof QuorateError ? error : storageFailure('the state', error))
  }

  /** The index of the last log entry whose effect reads see. */
  get appliedIndex(): number {
    return this.#appliedIndex
  }

  /** The index up to which the state is durable without the log. */
  get flushedIndex(): number {
    return this.#flushedIndex
  }

  /** True while applying more would let what is not flushed outgrow its bound, and while a snapshot takes the state's place. */
  get congested(): boolean {
    return this.#installing !== null || (this.#flushing !== null && this.#unflushedBytes > 2 * this.#options.flushBytes)
  }

  get #unflushedBytes(): number {
    return Math.max(this.#table.dirtyBytes, this.#options.heldBackBytes?.() ?? 0)
  }

  /** True while a flush is due and waits for the log: the host goes on when its next log write is done. */
  get awaitsLog(): boolean {
    return this.#due && this.#flushing === null && !this.#failed && this.#appliedIndex > this.#options.durableIndex()
  }

  /** True while a snapshot takes the state's place: nothing may be applied. */
  get isInstalling(): boolean {
    return this.#installing !== null
  }

  /** Resolves when the flush or install under way is done. */
  async flushed(): Promise<void> {
    await (this.#installing ?? this.#flushing)
  }

  get(key: string): StateRecord | undefined {
    const known = this.#table.get(key)
    if (known !== undefined) return known ?? undefined
    const bytes = this.#options.database.getSync(this.#databaseKey(key))
    const record = bytes === undefined ? null : this.#options.decode(key, bytes)
    this.#table.cache(key, record)
    return record ?? undefined
  }

  /** True when the record may be changed in place: it was put since the last freeze. */
  owns(key: string): boolean {
    return this.#table.owns(key)
  }

  set(key: string, record: StateRecord | null): void {
    this.#table.set(key, record)
  }

  /** All effects of the log up to this index are in; called between entries only. */
  advance(index: number): void {
    this.#appliedIndex = index
    if (this.#unflushedBytes >= this.#options.flushBytes) this.#due = true
    else if (index !== this.#flushedIndex) this.#cancelTimer ??= this.#options.runtime.schedule(this.#options.flushAfterMs, () => this.#onTimer())
    this.flushIfDue()
  }

  #onTimer(): void {
    this.#cancelTimer = null
    this.flushSoon()
  }

  /** Asks for a flush without waiting for time or bytes; called between entries only. */
  flushSoon(): void {
    this.#due = true
    this.flushIfDue()
  }

  /** Starts the flush that is due, if it may start now; called between entries only. */
  flushIfDue(): void {
    if (!this.#due || this.#flushing !== null || this.#installing !== null || this.#failed || this.#appliedIndex > this.#options.durableIndex())
      return
    this.#due = false
    this.#stopTimer()
    if (this.#appliedIndex !== this.#flushedIndex) this.#startFlush()
  }

  #startFlush(): void {
    this.#options.beforeFreeze()
    this.#flushing = this.#flush(this.#table.freeze(), this.#appliedIndex).then(
      () => {
        this.#flushing = null
        this.#options.onFlushed?.(this.#flushedIndex)
        // What came in meanwhile starts its own wait.
        this.advance(this.#appliedIndex)
      },
      (error: unknown) => {
        this.#flushing = null
        this.#fail(error)
      },
    )
  }

  async #flush({ keys, records }: FrozenChanges, appliedIndex: number): Promise<void> {
    const { database } = this.#options
    const batch = database.batch()
    const writer = new Writer(4096)
    let sliceRecords = 0
    let sliceBytes = 0
    for (let at = 0; at < keys.length; at++) {
      const key = this.#databaseKey(keys[at]!)
      const record = records[at]!
      if (record === null) {
        batch.del(key)
      } else {
        writer.reset()
        record.encode(writer)
        batch.put(key, writer.view())
        sliceBytes += writer.length
      }
      if (++sliceRecords < recordsPerSlice && sliceBytes < bytesPerSlice) continue
      sliceRecords = sliceBytes = 0
      await this.#nextTurn()
    }
    batch.put(this.#databaseKey(appliedKey), encodeIndex(appliedIndex))
    await batch.write({ sync: true })
    this.#flushedIndex = appliedIndex
    this.#table.thaw()
    for (let slice = 0; this.#table.shrink(); slice++) if (slice % recordsPerSlice === recordsPerSlice - 1) await this.#nextTurn()
  }

  #nextTurn(): Promise<void> {
    return new Promise((resolve) => this.#options.runtime.defer(resolve))
  }

  /** Captures the state as it was last flushed. The capture holds back LevelDB's removal of old values: close it in bounded time. */
  capture(): StateCapture {
    const prefix = this.#prefix
    const snapshot = this.#options.database.snapshot()
    const end = fromLatin1(areaPrefix(this.#options.group, this.#area + 1))
    return {
      index: readApplied(snapshot, prefix),
      read: async (after, maxBytes) => {
        // The key right after `after`, in byte order.
        const from = after === null ? [fromLatin1(prefix)] : [fromLatin1(prefix), after, Buffer.alloc(1)]
        const iterator = snapshot.iterate({ gte: Buffer.concat(from), lt: end })
        try {
          return await readPage(iterator, prefix.length, maxBytes)
        } finally {
          await iterator.close()
        }
      },
      close: () => snapshot.close(),
    }
  }

  /** Makes the other area empty, so that a snapshot can be staged there. */
  async beginStaging(): Promise<void> {
    this.#staged = null
    await this.#emptying
    await this.#emptyOther(0)
    if (this.#closed) throw new ClosedError('the state store is closed')
  }

  /** Removes what was staged, in the background. */
  discardStaging(): void {
    this.#staged = null
    if (!this.#closed && !this.#failed && this.#installing === null) this.#startEmptying()
  }

  /** Stages a part of a snapshot: invisible until `install`, and written by then. One sync serves several parts. */
  async stage(records: readonly (readonly [Uint8Array, Uint8Array])[]): Promise<void> {
    const prefix = fromLatin1(this.#otherPrefix)
    this.#staged ??= { batch: this.#options.database.batch(), bytes: 0 }
    const { batch } = this.#staged
    for (const [key, value] of records) {
      batch.put(Buffer.concat([prefix, key]), value)
      this.#staged.bytes += key.length + value.length
    }
    if (this.#staged.bytes < stagingBatchBytes) return
    this.#staged = null
    await this.#write(batch)
  }

  /** A failed write is final: what is on disk is unknown. */
  async #write(batch: DatabaseBatch): Promise<void> {
    try {
      await batch.write({ sync: true })
    } catch (error) {
      this.#fail(error)
      throw error
    }
  }

  /**
   * Makes the staged snapshot of state at `index` the state, if that is ahead of what is here; resolves to false, and removes what was staged, if it is not.
   *
   * `origin` is kept with it and comes back from `origin()`: it says what the snapshot was, for a start after a crash before the log was reset. `onInstalled` runs in
   * the turn in which the state is replaced, before anything is applied to it or read from it.
   */
  async install(index: number, origin: Uint8Array, onInstalled: () => void): Promise<boolean> {
    if (this.#installing !== null) throw new Error('one install at a time')
    let done = () => {}
    this.#installing = new Promise((resolve) => {
      done = resolve
    })
    try {
      await this.#flushing
      const { database, group } = this.#options
      const ahead = index > this.#appliedIndex && !this.#failed && !this.#closed
      if (ahead) {
        if (this.#staged !== null) await this.#write(this.#staged.batch)
        this.#staged = null
        if (readApplied(database, this.#otherPrefix) !== index)
          throw new CorruptionError(`group ${group}: what is staged is not a state at index ${index}`)
        const batch = database.batch()
        batch.put(fromLatin1(this.#otherPrefix + originKey), origin)
        pointTo(batch, group, 1 - this.#area)
        await this.#write(batch)
        this.#useArea(1 - this.#area)
        this.#table = new RecordTable(this.#options.cacheBytes)
        this.#appliedIndex = this.#flushedIndex = index
        this.#due = false
        this.#stopTimer()
        onInstalled()
      }
      return ahead
    } finally {
      this.#installing = null
      this.discardStaging()
      done()
    }
  }

  /** What `install` kept; undefined when the state was not installed from a snapshot. */
  origin(): Uint8Array | undefined {
    return this.#options.database.getSync(this.#databaseKey(originKey))
  }

  /** Writes all that is applied to the database, unless storage failed. */
  async close(): Promise<void> {
    this.#closed = true
    await this.#installing
    await this.#flushing
    while (!this.#failed && this.#appliedIndex !== this.#flushedIndex && this.#appliedIndex <= this.#options.durableIndex()) {
      this.flushSoon()
      await this.#flushing
    }
    this.#stopTimer()
    await this.#emptying
  }

  #stopTimer(): void {
    this.#cancelTimer?.()
    this.#cancelTimer = null
  }

  /** Opens a cursor over keys in [gte, lt), as of this moment. */
  iterate(gte: string, lt: string, reverse: boolean): RecordCursor {
    const pending = this.#table.changesIn(gte, lt)
    if (reverse) pending.reverse()
    return new MergedCursor(this.#iterateDatabase(gte, lt, reverse), pending, reverse, this.#prefix.length, this.#options.decode)
  }

  #iterateDatabase(gte: string, lt: string, reverse: boolean): DatabaseIterator {
    return this.#options.database.iterate({ gte: this.#databaseKey(gte), lt: this.#databaseKey(lt), reverse })
  }

  #databaseKey(key: string): Buffer {
    return fromLatin1(this.#prefix + key)
  }
}

async function readPage(iterator: DatabaseIterator, prefixLength: number, maxBytes: number): Promise<StatePage> {
  const records: StatePage['records'] = []
  let bytes = 0
  while (bytes < maxBytes || records.length === 0) {
    const page = await iterator.nextv(256)
    if (page.length === 0) return { records, isLast: true }
    for (const [key, value] of page) {
      records.push([key.subarray(prefixLength), value])
      bytes += key.length + value.length
      if (bytes >= maxBytes) break
    }
  }
  return { records, isLast: false }
}

function readApplied(reader: DatabaseReader, prefix: string): number {
  const bytes = reader.getSync(fromLatin1(prefix + appliedKey))
  if (bytes === undefined) return 0
  const index = new Reader(bytes)
  return index.u32() * 0x100000000 + index.u32()
}

function encodeIndex(index: number): Uint8Array {
  return new Writer(8)
    .u32(Math.floor(index / 0x100000000))
    .u32(index % 0x100000000)
    .finish()
}
