/**
 * The simulated log database of one replica, at the level of LevelDB batches: what `persist` work became durable, and what a crash leaves.
 *
 * Invariants: 1. at most one write is in flight; 2. a write is atomic: hard state, truncation and entries of all its works are stored
 * together or not at all; 3. a write whose completion was reported survives every crash; 4. of the write in flight a crash keeps all or nothing;
 * 5. what was never handed to `write` is lost; 6. entries up to the base are gone, and the base says what was there: by compaction, which is part of a write, or by a reset.
 */
import { decodeConfiguration } from '../../raft/message-codec.js'
import {
  type Configuration,
  type ConfigurationRecord,
  type Entry,
  EntryKind,
  type HardState,
  type LogReset,
  type PersistWork,
  type TermRun,
} from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import type { EventQueue } from './event-queue.js'
import { LogShape } from './log-shape.js'

/** How fast and how sound a disk is. */
export interface DiskModel {
  /** Mean of a synced write, in microseconds. */
  readonly writeMeanUs: number
  /** A read of a range of entries, in microseconds. */
  readonly readMeanUs: number
}

/** What the disk reports to the checker and the counters. */
export interface DiskObserver {
  /** A work has just become durable. */
  stored(disk: SimulatedLogDisk, work: PersistWork): void
  /** What every log holds up to a committed index. */
  committedPrefix(): LogShape
  count(fault: string): void
}

interface Write {
  readonly works: readonly PersistWork[]
  /** Entries up to here are dropped with this write; 0 for none. */
  readonly compactTo: number
  readonly done: (failed: boolean) => void
}

const nobody: Configuration = { voters: [], learners: [], votersOutgoing: [] }

/** A log store that lives through crashes of its replica. */
export class SimulatedLogDisk {
  readonly id: string
  readonly shape = new LogShape()
  /** Writes take this many times longer. */
  slowFactor = 1
  /** No write completes before this time. */
  hangUntilUs = 0
  /** The next write fails. */
  failNext = false
  base: Omit<LogReset, 'keepsLater'>
  protected entries: Entry[] = []
  protected durableHardState: HardState = { term: 0, vote: null }
  readonly #queue: EventQueue
  readonly #random: SeededRandom
  readonly #observer: DiskObserver
  #model: DiskModel
  #inFlight: Write | null = null

  constructor(id: string, queue: EventQueue, random: SeededRandom, model: DiskModel, observer: DiskObserver, configuration: Configuration = nobody) {
    this.base = { index: 0, term: 0, configuration }
    this.id = id
    this.#queue = queue
    this.#random = random
    this.#model = model
    this.#observer = observer
  }

  get hardState(): HardState {
    return this.durableHardState
  }

  get lastIndex(): number {
    return this.base.index + this.entries.length
  }

  get busy(): boolean {
    return this.#inFlight !== null
  }

  /** Mean of a write, in microseconds, as the disk is now. */
  get writeMeanUs(): number {
    return this.#model.writeMeanUs * this.slowFactor
  }

  /** The terms run-length, as the core takes them at start. */
  termRuns(): TermRun[] {
    const runs: TermRun[] = []
    for (const entry of this.entries) {
      if (runs.length === 0 || (runs[runs.length - 1] as TermRun).term !== entry.term) runs.push({ term: entry.term, firstIndex: entry.index })
    }
    return runs
  }

  /** The base's configuration and those that entries hold. */
  configurations(): ConfigurationRecord[] {
    const later = this.entries.filter(({ kind }) => kind === EntryKind.configuration)
    return [this.base, ...later.map(({ index, data }) => ({ index, configuration: decodeConfiguration(data) }))]
  }

  /** Starts one synced write; `done` follows when it is durable, or when it failed. */
  write(works: readonly PersistWork[], done: (failed: boolean) => void, compactTo = 0): void {
    if (this.#inFlight !== null) throw new Error('a second write while one is in flight')
    const write = { works, compactTo, done }
    this.#inFlight = write
    const base = this.#model.writeMeanUs
    this.#complete(write, Math.floor((base / 2 + this.#random.exponential(base / 2)) * this.slowFactor))
  }

  #complete(write: Write, delayUs: number): void {
    this.#queue.schedule(delayUs, () => {
      if (this.#inFlight !== write) return
      if (this.hangUntilUs > this.#queue.nowUs) {
        this.#complete(write, this.hangUntilUs - this.#queue.nowUs)
        return
      }
      this.#inFlight = null
      if (this.failNext) {
        this.failNext = false
        this.#observer.count('disk-error')
        // A failed sync says nothing about what reached the disk.
        if (this.#random.chance(0.5)) this.#storeAll(write)
        write.done(true)
        return
      }
      this.#storeAll(write)
      write.done(false)
    })
  }

  #storeAll({ works, compactTo }: Write): void {
    for (const work of works) {
      this.store(work)
      this.#observer.stored(this, work)
    }
    if (compactTo > this.base.index) this.compact(compactTo)
  }

  /** Drops the entries up to an index. */
  protected compact(index: number): void {
    const dropped = this.entries.slice(0, index - this.base.index)
    const last = dropped[dropped.length - 1] as Entry
    let { configuration } = this.base
    for (const entry of dropped) if (entry.kind === EntryKind.configuration) configuration = decodeConfiguration(entry.data)
    this.entries = this.entries.slice(dropped.length)
    this.base = { index: last.index, term: last.term, configuration }
  }

  /** The log starts anew after a snapshot. */
  restore({ index, term, configuration, keepsLater }: LogReset): void {
    this.entries = keepsLater ? this.entries.slice(index - this.base.index) : []
    this.base = { index, term, configuration }
    this.shape.restore(index, this.#observer.committedPrefix(), keepsLater)
  }

  /** Makes one work durable. */
  protected store(work: PersistWork): void {
    if (work.hardState !== null) this.durableHardState = { term: work.hardState.term, vote: work.hardState.vote }
    if (work.reset !== null) this.restore(work.reset)
    if (work.truncateFrom !== null) this.cut(work.truncateFrom)
    for (const entry of work.entries) this.add(entry)
  }

  protected cut(index: number): void {
    if (index <= this.lastIndex) this.entries.length = index - 1 - this.base.index
    this.shape.truncateFrom(index)
  }

  protected add(entry: Entry): void {
    if (entry.index !== this.lastIndex + 1) throw new Error(`persist work of ${this.id} has entry ${entry.index} after ${this.lastIndex}`)
    this.entries.push(entry)
    this.shape.append(entry)
  }

  /** Ends every fault: a write that hangs or crawls is done soon. */
  calm(model: DiskModel): void {
    this.#model = model
    this.slowFactor = 1
    this.hangUntilUs = 0
    this.failNext = false
    const write = this.#inFlight
    if (write === null) return
    const again = { ...write }
    this.#inFlight = again
    this.#complete(again, model.writeMeanUs)
  }

  /** The process or the machine died: the write in flight may have reached the disk or not. */
  crash(): void {
    const write = this.#inFlight
    this.#inFlight = null
    this.hangUntilUs = 0
    this.failNext = false
    if (write === null) return
    if (this.#random.chance(0.5)) {
      this.#storeAll(write)
      this.#observer.count('crash-in-write-kept')
    } else {
      this.#observer.count('crash-in-write-lost')
    }
  }

  /** How long a read takes, in microseconds. */
  readDelayUs(): number {
    const { readMeanUs } = this.#model
    return Math.floor(Math.min((readMeanUs / 2 + this.#random.exponential(readMeanUs / 2)) * this.slowFactor, readMeanUs * 10))
  }

  /** Durable entries of a range, up to `maxBytes` but at least one; fewer or none where the log is shorter now, or begins later. */
  read(firstIndex: number, lastIndex: number, maxBytes: number): readonly Entry[] {
    const result: Entry[] = []
    let bytes = 0
    if (firstIndex <= this.base.index) return result
    for (let index = firstIndex; index <= Math.min(lastIndex, this.lastIndex); index++) {
      const entry = this.entries[index - this.base.index - 1] as Entry
      bytes += entry.data.length
      if (result.length > 0 && bytes > maxBytes) break
      result.push(entry)
    }
    return result
  }
}
