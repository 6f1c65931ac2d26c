/**
 * StateStore: one group's applied state: an in-memory overlay over the node's state database, written behind in the background.
 *
 * Invariants:
 * 1. Reads see every applied change at once: active overlay, then the previous one, then the database.
 * 2. A flush is one batch, and holds all changes since the flush before, the applied index, and a fence that names the previous applied index.
 *    So the database is at any moment the state at exactly its applied index, unless a power loss took an unsynced batch out of the middle.
 * 3. That loss shows as a gap in the chain of fences: `open` then reports index 0 and empties the group, and the log is replayed from its start.
 * 4. The previous overlay never changes; it stays as a cache when its flush is done, until the next one replaces it.
 * 5. A flush never holds an entry that is not yet durable in this node's own log: the leader applies on its followers' word, and a log that ends before the
 *    state would make the next start impossible.
 * 6. At most one flush is under way; the host stops applying while `congested` or while `awaitsLog`.
 *
 * Layout (docs/formats.md): group, shard, type, rest; shard 0xffff holds the group's own records.
 */
import { fromLatin1, toLatin1 } from '../base/bytes.js'
import { Reader, Writer } from '../base/codec.js'
import type { Runtime } from '../base/runtime.js'
import type { Database, DatabaseBatch, DatabaseIterator } from './database.js'
import { lowerBound, Overlay, type StateRecord } from './overlay.js'

const appliedKey = '\xff\xffa'
const barrierKey = '\xff\xffb'
const fencePrefix = '\xff\xfff'
/** There while the group is being emptied: whoever opens it next goes on with that. */
const emptyingKey = '\xff\xffe'
/** Flushes between two durability barriers: bounds the number of fences. */
const flushesPerBarrier = 128
/** Records encoded per turn of the event loop while a flush is put together. */
const recordsPerSlice = 256

export interface StateStoreOptions {
  readonly database: Database
  readonly group: number
  readonly runtime: Runtime
  /** Decodes a record of the database. */
  readonly decode: (key: string, bytes: Uint8Array) => StateRecord
  /** Flushes when the overlay holds so many bytes … */
  readonly flushBytes: number
  /** … or its oldest change is so old. */
  readonly flushAfterMs: number
  /** The last entry that is durable in this node's log. */
  readonly durableIndex: () => number
  /** Called right before an overlay is frozen: the last moment to put records into it. */
  readonly beforeFreeze: () => void
  /** A flush failed: the group must stop. */
  readonly onFailure: (error: unknown) => void
}

/** A consistent view of a key range; entries come in key order. */
export interface RecordCursor {
  next(): Promise<{ readonly key: string; readonly record: StateRecord } | undefined>
  close(): Promise<void>
}

export class StateStore {
  readonly #options: StateStoreOptions
  readonly #prefix: string
  #active = new Overlay()
  #previous = new Overlay()
  #appliedIndex = 0
  /** Applied index of the newest batch handed to the database. */
  #flushedIndex = 0
  #barrierIndex = 0
  #fences: number[] = []
  #flushing: Promise<void> | null = null
  #cancelTimer: (() => void) | null = null
  /** A flush is wanted, and starts as soon as it may. */
  #due = false
  #failed = false

  constructor(options: StateStoreOptions) {
    this.#options = options
    this.#prefix = String.fromCharCode(options.group >> 8, options.group & 0xff)
  }

  /** Reads where the state stands; empties the group when the database lost a part of it. */
  async open(): Promise<void> {
    const barrier = this.#readIndex(barrierKey)
    const applied = this.#readIndex(appliedKey)
    let reached = barrier
    let intact = true
    const fences: number[] = []
    const cursor = this.#iterateDatabase(fencePrefix, `${fencePrefix}\xff`, false)
    for (const [key, value] of await drain(cursor)) {
      const index = readIndex(key, this.#prefix.length + fencePrefix.length)
      if (index <= barrier) continue
      if (readIndex(value, 0) !== reached) intact = false
      reached = index
      fences.push(index)
    }
    const whole = this.#options.database.getSync(this.#databaseKey(emptyingKey)) === undefined
    if (whole && intact && reached === applied) {
      this.#appliedIndex = this.#flushedIndex = applied
      this.#barrierIndex = barrier
      this.#fences = fences
      return
    }
    await this.#empty()
  }

  /** Deletes the group's records in parts, so that neither memory nor a crash in between matters. */
  async #empty(): Promise<void> {
    const { database } = this.#options
    const mark = database.batch()
    mark.put(this.#databaseKey(emptyingKey), encodeIndex(0))
    await mark.write({ sync: true })
    await this.#deleteAll('', '\xff\xff')
    // The group's own records go last, with the mark, which sorts among them.
    await this.#deleteAll('\xff\xff', '\xff\xff\xff')
  }

  async #deleteAll(gte: string, lt: string): Promise<void> {
    const iterator = this.#iterateDatabase(gte, lt, false)
    try {
      for (;;) {
        const page = await iterator.nextv(1000)
        if (page.length === 0) return
        const batch = this.#options.database.batch()
        for (const [key] of page) batch.del(key)
        await batch.write({ sync: true })
      }
    } finally {
      await iterator.close()
    }
  }

  /** The index of the last log entry whose effect reads see. */
  get appliedIndex(): number {
    return this.#appliedIndex
  }

  /** True while applying more would make the overlay outgrow its bound. */
  get congested(): boolean {
    return this.#flushing !== null && this.#active.bytes > 2 * this.#options.flushBytes
  }

  /** True while a flush is due and waits for the log: the host goes on when its next log write is done. */
  get awaitsLog(): boolean {
    return this.#due && this.#flushing === null && !this.#failed && this.#appliedIndex > this.#options.durableIndex()
  }

  /** Resolves when the flush under way is done. */
  async flushed(): Promise<void> {
    await this.#flushing
  }

  get(key: string): StateRecord | undefined {
    const fresh = this.#active.get(key)
    if (fresh !== undefined) return fresh ?? undefined
    const older = this.#previous.get(key)
    if (older !== undefined) return older ?? undefined
    const bytes = this.#options.database.getSync(this.#databaseKey(key))
    return bytes === undefined ? undefined : this.#options.decode(key, bytes)
  }

  /** True when the record may be changed in place: it was put since the last freeze. */
  owns(key: string): boolean {
    return this.#active.get(key) != null
  }

  set(key: string, record: StateRecord | null): void {
    this.#active.set(key, record)
  }

  /** All effects of the log up to this index are in; called between entries only. */
  advance(index: number): void {
    this.#appliedIndex = index
    if (this.#active.bytes >= this.#options.flushBytes) this.#due = true
    else if (index !== this.#flushedIndex) this.#cancelTimer ??= this.#options.runtime.schedule(this.#options.flushAfterMs, () => this.#onTimer())
    this.flushIfDue()
  }

  #onTimer(): void {
    this.#cancelTimer = null
    this.#due = true
    this.flushIfDue()
  }

  /** Starts the flush that is due, if it may start now; called between entries only. */
  flushIfDue(): void {
    if (!this.#due || this.#flushing !== null || this.#failed || this.#appliedIndex > this.#options.durableIndex()) return
    this.#due = false
    this.#stopTimer()
    if (this.#appliedIndex !== this.#flushedIndex) this.#startFlush()
  }

  #startFlush(): void {
    this.#options.beforeFreeze()
    this.#previous = this.#active
    this.#active = new Overlay()
    this.#flushing = this.#flush(this.#previous, this.#appliedIndex).then(
      () => {
        this.#flushing = null
        // What came in meanwhile starts its own wait.
        this.advance(this.#appliedIndex)
      },
      (error: unknown) => {
        this.#flushing = null
        this.#failed = true
        this.#options.onFailure(error)
      },
    )
  }

  async #flush(overlay: Overlay, appliedIndex: number): Promise<void> {
    const { database, runtime } = this.#options
    const batch = database.batch()
    let inSlice = 0
    for (const [key, record] of overlay.records) {
      if (record === null) batch.del(this.#databaseKey(key))
      else batch.put(this.#databaseKey(key), record.encode())
      if (++inSlice === recordsPerSlice) {
        inSlice = 0
        await new Promise<void>((resolve) => runtime.defer(resolve))
      }
    }
    if (this.#fences.length >= flushesPerBarrier) await this.#addBarrier(batch)
    batch.put(this.#databaseKey(appliedKey), encodeIndex(appliedIndex))
    batch.put(this.#databaseKey(fencePrefix + toLatin1(encodeIndex(appliedIndex))), encodeIndex(this.#flushedIndex))
    await batch.write({ sync: false })
    this.#fences.push(appliedIndex)
    this.#flushedIndex = appliedIndex
  }

  /** Makes all flushes so far durable; their fences have served. */
  async #addBarrier(batch: DatabaseBatch): Promise<void> {
    await this.#options.database.settle()
    for (const index of this.#fences) batch.del(this.#databaseKey(fencePrefix + toLatin1(encodeIndex(index))))
    this.#fences = []
    this.#barrierIndex = this.#flushedIndex
    batch.put(this.#databaseKey(barrierKey), encodeIndex(this.#barrierIndex))
  }

  /** Writes all that is applied to the database, unless storage failed. */
  async close(): Promise<void> {
    await this.#flushing
    while (!this.#failed && this.#appliedIndex !== this.#flushedIndex && this.#appliedIndex <= this.#options.durableIndex()) {
      this.#due = true
      this.flushIfDue()
      await this.#flushing
    }
    this.#stopTimer()
  }

  #stopTimer(): void {
    this.#cancelTimer?.()
    this.#cancelTimer = null
  }

  /** Opens a cursor over keys in [gte, lt), as of this moment. */
  iterate(gte: string, lt: string, reverse: boolean): RecordCursor {
    const pending = overlayRange(this.#previous, this.#active, gte, lt)
    if (reverse) pending.reverse()
    return new MergedCursor(this.#iterateDatabase(gte, lt, reverse), pending, reverse, this.#prefix.length, this.#options.decode)
  }

  #iterateDatabase(gte: string, lt: string, reverse: boolean): DatabaseIterator {
    return this.#options.database.iterate({ gte: this.#databaseKey(gte), lt: this.#databaseKey(lt), reverse })
  }

  #databaseKey(key: string): Buffer {
    return fromLatin1(this.#prefix + key)
  }

  #readIndex(key: string): number {
    const bytes = this.#options.database.getSync(this.#databaseKey(key))
    return bytes === undefined ? 0 : readIndex(bytes, 0)
  }
}

/** Entries of both overlays in a range, the newer one's taking precedence; nulls stay: they hide what the database has. */
function overlayRange(older: Overlay, newer: Overlay, gte: string, lt: string): [string, StateRecord | null][] {
  const entries: [string, StateRecord | null][] = []
  const olderKeys = older.sortedKeys()
  const newerKeys = newer.sortedKeys()
  const olderEnd = lowerBound(olderKeys, lt)
  const newerEnd = lowerBound(newerKeys, lt)
  let o = lowerBound(olderKeys, gte)
  let n = lowerBound(newerKeys, gte)
  while (o < olderEnd || n < newerEnd) {
    if (n >= newerEnd || (o < olderEnd && olderKeys[o]! < newerKeys[n]!)) {
      const key = olderKeys[o++]!
      entries.push([key, older.get(key)!])
    } else {
      const key = newerKeys[n++]!
      if (o < olderEnd && olderKeys[o] === key) o++
      entries.push([key, newer.get(key)!])
    }
  }
  return entries
}

/** Merges the database's entries with the overlay's, which take precedence. */
class MergedCursor implements RecordCursor {
  readonly #iterator: DatabaseIterator
  readonly #pending: [string, StateRecord | null][]
  readonly #reverse: boolean
  readonly #prefixLength: number
  readonly #decode: StateStoreOptions['decode']
  #pendingAt = 0
  #page: [Uint8Array, Uint8Array][] = []
  #pageAt = 0
  #ended = false

  constructor(
    iterator: DatabaseIterator,
    pending: [string, StateRecord | null][],
    reverse: boolean,
    prefixLength: number,
    decode: StateStoreOptions['decode'],
  ) {
    this.#iterator = iterator
    this.#pending = pending
    this.#reverse = reverse
    this.#prefixLength = prefixLength
    this.#decode = decode
  }

  async next(): Promise<{ key: string; record: StateRecord } | undefined> {
    for (;;) {
      if (this.#pageAt === this.#page.length && !this.#ended) {
        this.#page = await this.#iterator.nextv(64)
        this.#pageAt = 0
        this.#ended = this.#page.length === 0
      }
      const stored = this.#page[this.#pageAt]
      const storedKey = stored === undefined ? undefined : toLatin1(stored[0].subarray(this.#prefixLength))
      const changed = this.#pending[this.#pendingAt]
      if (changed !== undefined && (storedKey === undefined || changed[0] === storedKey || changed[0] < storedKey !== this.#reverse)) {
        this.#pendingAt++
        if (changed[0] === storedKey) this.#pageAt++
        if (changed[1] !== null) return { key: changed[0], record: changed[1] }
      } else if (stored !== undefined) {
        this.#pageAt++
        return { key: storedKey!, record: this.#decode(storedKey!, stored[1]) }
      } else {
        return undefined
      }
    }
  }

  close(): Promise<void> {
    return this.#iterator.close()
  }
}

async function drain(iterator: DatabaseIterator): Promise<[Uint8Array, Uint8Array][]> {
  const entries: [Uint8Array, Uint8Array][] = []
  try {
    for (;;) {
      const page = await iterator.nextv(1000)
      if (page.length === 0) return entries
      entries.push(...page)
    }
  } finally {
    await iterator.close()
  }
}

function encodeIndex(index: number): Uint8Array {
  return new Writer(8)
    .u32(Math.floor(index / 0x100000000))
    .u32(index % 0x100000000)
    .finish()
}

function readIndex(bytes: Uint8Array, at: number): number {
  const reader = new Reader(bytes, at)
  return reader.u32() * 0x100000000 + reader.u32()
}
