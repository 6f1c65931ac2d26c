/**
 * The simulated log database of one replica, at the level of LevelDB batches: what `persist` work became durable, and what a crash leaves.
 *
 * Invariants: 1. at most one write is in flight; 2. a write is atomic: hard state, truncation and entries of all its works are stored
 * together or not at all; 3. a write whose completion was reported survives every crash; 4. of the write in flight a crash keeps all or nothing;
 * 5. what was never handed to `write` is lost.
 */
import type { Entry, HardState, PersistWork, TermRun } from '../../raft/types.js'
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
  count(fault: string): void
}

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
  protected entries: Entry[] = []
  protected durableHardState: HardState = { term: 0, vote: null }
  readonly #queue: EventQueue
  readonly #random: SeededRandom
  readonly #observer: DiskObserver
  #model: DiskModel
  #inFlight: { readonly works: readonly PersistWork[]; readonly done: (failed: boolean) => void } | null = null

  constructor(id: string, queue: EventQueue, random: SeededRandom, model: DiskModel, observer: DiskObserver) {
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
    return this.entries.length
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

  /** Starts one synced write; `done` follows when it is durable, or when it failed. */
  write(works: readonly PersistWork[], done: (failed: boolean) => void): void {
    if (this.#inFlight !== null) throw new Error('a second write while one is in flight')
    const write = { works, done }
    this.#inFlight = write
    const base = this.#model.writeMeanUs
    this.#complete(write, Math.floor((base / 2 + this.#random.exponential(base / 2)) * this.slowFactor))
  }

  #complete(write: { readonly works: readonly PersistWork[]; readonly done: (failed: boolean) => void }, delayUs: number): void {
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
        if (this.#random.chance(0.5)) this.#storeAll(write.works)
        write.done(true)
        return
      }
      this.#storeAll(write.works)
      write.done(false)
    })
  }

  #storeAll(works: readonly PersistWork[]): void {
    for (const work of works) {
      this.store(work)
      this.#observer.stored(this, work)
    }
  }

  /** Makes one work durable. */
  protected store(work: PersistWork): void {
    if (work.hardState !== null) this.durableHardState = { term: work.hardState.term, vote: work.hardState.vote }
    if (work.truncateFrom !== null) this.cut(work.truncateFrom)
    for (const entry of work.entries) this.add(entry)
  }

  protected cut(index: number): void {
    if (index <= this.entries.length) this.entries.length = index - 1
    this.shape.truncateFrom(index)
  }

  protected add(entry: Entry): void {
    if (entry.index !== this.entries.length + 1) throw new Error(`persist work of ${this.id} has entry ${entry.index} after ${this.entries.length}`)
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
      this.#storeAll(write.works)
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

  /** Durable entries of a range, up to `maxBytes` but at least one; fewer or none where the log is shorter now. */
  read(firstIndex: number, lastIndex: number, maxBytes: number): readonly Entry[] {
    const result: Entry[] = []
    let bytes = 0
    for (let index = firstIndex; index <= Math.min(lastIndex, this.entries.length); index++) {
      const entry = this.entries[index - 1] as Entry
      bytes += entry.data.length
      if (result.length > 0 && bytes > maxBytes) break
      result.push(entry)
    }
    return result
  }
}
