/**
 * Owns this replica's log as the core sees it: the term of every entry, run-length, and the newest entries themselves.
 *
 * 1. Terms are known for every index from the snapshot's to the last, and never fall from one index to the next. `termAt` is always synchronous.
 * 2. The tail in memory is contiguous and ends at the last index: `tailFirstIndex` .. `lastIndex`, empty after a restart.
 * 3. Truncation cuts terms and tail together (hazard D2.16).
 * 4. The tail is bounded in bytes by `evict`, which drops from the front and only up to an index that its caller allows.
 */
import { CorruptionError } from '../base/errors.js'
import { invariant } from './invariant.js'
import { type Entry, EntryKind, type TermRun } from './types.js'

/** What an entry is counted as beyond its data, so that entries without data are bounded too. */
export const entryOverheadBytes = 32

/** An entry's size wherever bytes of entries are bounded. */
export function entryBytes(entry: Entry): number {
  return entry.data.length + entryOverheadBytes
}

/** Stands in the place of an evicted entry until the array is compacted. */
const evicted: Entry = { term: 0, index: 0, kind: EntryKind.noop, data: new Uint8Array(0) }
/** Compacting costs a copy of what stays; below this many free places it is not worth one. */
const minCompactedPlaces = 256

export interface RaftLogOptions {
  readonly terms: readonly TermRun[]
  readonly lastIndex: number
  readonly snapshotIndex: number
  readonly snapshotTerm: number
}

export class RaftLog {
  // Two parallel arrays instead of one of objects: `termAt` is called for each entry of an append that overlaps.
  readonly #runTerms: number[] = []
  readonly #runFirstIndexes: number[] = []
  #snapshotIndex: number
  #snapshotTerm: number
  #lastIndex: number
  #tail: Entry[] = []
  /** Places of `#tail` before this one are evicted. */
  #tailHead = 0
  #tailFirstIndex: number
  #tailBytes = 0

  constructor(options: RaftLogOptions) {
    this.#snapshotIndex = options.snapshotIndex
    this.#snapshotTerm = options.snapshotTerm
    this.#lastIndex = options.lastIndex
    this.#tailFirstIndex = options.lastIndex + 1
    this.#loadTerms(options.terms)
  }

  /** Keeps what lies after the snapshot, and refuses terms that no log can have: the store is damaged then. */
  #loadTerms(terms: readonly TermRun[]): void {
    const first = this.#snapshotIndex + 1
    if (this.#lastIndex < this.#snapshotIndex)
      throw new CorruptionError(`log ends at ${this.#lastIndex}, before its snapshot at ${this.#snapshotIndex}`)
    let previousFirstIndex = 0
    let previousTerm = 0
    for (const { term, firstIndex } of terms) {
      if (firstIndex <= previousFirstIndex || term < Math.max(1, previousTerm) || firstIndex > this.#lastIndex) {
        throw new CorruptionError(`run of term ${term} from index ${firstIndex} does not fit in the log`)
      }
      previousFirstIndex = firstIndex
      if (term === previousTerm && this.#runTerms.length > 0) continue
      previousTerm = term
      if (firstIndex <= first) {
        this.#runTerms.length = 0
        this.#runFirstIndexes.length = 0
      }
      this.#runTerms.push(term)
      this.#runFirstIndexes.push(Math.max(firstIndex, first))
    }
    if (this.#lastIndex < first) {
      this.#runTerms.length = 0
      this.#runFirstIndexes.length = 0
      return
    }
    if (this.#runFirstIndexes[0] !== first) throw new CorruptionError(`no term is known for index ${first}`)
    if (this.#runTerms[0]! < this.#snapshotTerm) throw new CorruptionError(`term ${this.#runTerms[0]} follows the snapshot's ${this.#snapshotTerm}`)
  }

  get lastIndex(): number {
    return this.#lastIndex
  }

  get lastTerm(): number {
    return this.#runTerms.length === 0 ? this.#snapshotTerm : this.#runTerms[this.#runTerms.length - 1]!
  }

  get snapshotIndex(): number {
    return this.#snapshotIndex
  }

  /** The first index held in memory; the last index + 1 when there is none. */
  get tailFirstIndex(): number {
    return this.#tailFirstIndex
  }

  /** Bytes of the entries held in memory. */
  get tailBytes(): number {
    return this.#tailBytes
  }

  /** Position of the run that holds an index, which is after the snapshot and not beyond the last. */
  #runOf(index: number): number {
    const firstIndexes = this.#runFirstIndexes
    let high = firstIndexes.length - 1
    if (index >= firstIndexes[high]!) return high
    let low = 0
    while (low < high) {
      const middle = (low + high + 1) >>> 1
      if (firstIndexes[middle]! <= index) low = middle
      else high = middle - 1
    }
    return low
  }

  /** The term at an index; the snapshot's at its own; undefined below that, and beyond the last. */
  termAt(index: number): number | undefined {
    if (index > this.#lastIndex || index < this.#snapshotIndex) return undefined
    if (index === this.#snapshotIndex) return this.#snapshotTerm
    return this.#runTerms[this.#runOf(index)]!
  }

  /** The first index known of the run that holds `index`: of a term cut by the snapshot, the first after it. */
  firstIndexOfRun(index: number): number {
    if (index <= this.#snapshotIndex) return index
    return this.#runFirstIndexes[this.#runOf(index)]!
  }

  /** The largest index up to `limit` whose term is at most `term`; below the snapshot when there is none from the snapshot on. */
  lastIndexWithTermAtMost(term: number, limit: number): number {
    const last = Math.min(limit, this.#lastIndex)
    if (last > this.#snapshotIndex) {
      for (let run = this.#runOf(last); run >= 0; run--) {
        if (this.#runTerms[run]! > term) continue
        const end = run + 1 < this.#runFirstIndexes.length ? this.#runFirstIndexes[run + 1]! - 1 : this.#lastIndex
        return Math.min(last, end)
      }
    }
    const atSnapshot = Math.min(last, this.#snapshotIndex)
    return this.#snapshotTerm <= term ? atSnapshot : Math.min(atSnapshot, this.#snapshotIndex - 1)
  }

  append(entry: Entry): void {
    invariant(entry.index === this.#lastIndex + 1, 'an entry is appended right after the last')
    if (entry.term !== this.lastTerm || this.#runTerms.length === 0) {
      invariant(entry.term >= this.lastTerm, 'terms in the log never fall')
      this.#runTerms.push(entry.term)
      this.#runFirstIndexes.push(entry.index)
    }
    this.#tail.push(entry)
    this.#tailBytes += entryBytes(entry)
    this.#lastIndex = entry.index
  }

  /** Forgets all entries from an index on. */
  truncate(fromIndex: number): void {
    invariant(fromIndex > this.#snapshotIndex && fromIndex <= this.#lastIndex, 'only entries after the snapshot are truncated')
    while (this.#runFirstIndexes.length > 0 && this.#runFirstIndexes[this.#runFirstIndexes.length - 1]! >= fromIndex) {
      this.#runFirstIndexes.pop()
      this.#runTerms.pop()
    }
    this.#lastIndex = fromIndex - 1
    if (fromIndex <= this.#tailFirstIndex) {
      this.#tail = []
      this.#tailHead = 0
      this.#tailBytes = 0
      this.#tailFirstIndex = fromIndex
      return
    }
    const places = this.#tailHead + (fromIndex - this.#tailFirstIndex)
    for (let place = places; place < this.#tail.length; place++) this.#tailBytes -= entryBytes(this.#tail[place]!)
    this.#tail.length = places
  }

  /** Entries from `firstIndex` to `lastIndex`, up to `maxBytes` but at least one; empty when the first is not in memory. */
  entries(firstIndex: number, lastIndex: number, maxBytes: number): Entry[] {
    const last = Math.min(lastIndex, this.#lastIndex)
    if (firstIndex < this.#tailFirstIndex || firstIndex > last) return []
    const start = this.#tailHead + (firstIndex - this.#tailFirstIndex)
    const limit = this.#tailHead + (last - this.#tailFirstIndex) + 1
    let end = start
    let bytes = 0
    while (end < limit) {
      bytes += entryBytes(this.#tail[end]!)
      if (bytes > maxBytes && end > start) break
      end++
    }
    return this.#tail.slice(start, end)
  }

  /** Bytes of entries from `firstIndex` to `lastIndex`, of those that are in memory. */
  bytesBetween(firstIndex: number, lastIndex: number): number {
    const last = Math.min(lastIndex, this.#lastIndex)
    let bytes = 0
    for (let index = Math.max(firstIndex, this.#tailFirstIndex); index <= last; index++) {
      bytes += entryBytes(this.#tail[this.#tailHead + (index - this.#tailFirstIndex)]!)
    }
    return bytes
  }

  /** The log starts right after `index` now; its entries up to there are forgotten. An index before the present start says nothing new. */
  compact(index: number): void {
    invariant(index <= this.#lastIndex, 'only entries that are in the log are compacted away')
    if (index <= this.#snapshotIndex) return
    this.#snapshotTerm = this.termAt(index)!
    const dropped = index === this.#lastIndex ? this.#runTerms.length : this.#runOf(index + 1)
    this.#runTerms.splice(0, dropped)
    this.#runFirstIndexes.splice(0, dropped)
    if (this.#runFirstIndexes.length > 0) this.#runFirstIndexes[0] = index + 1
    this.#snapshotIndex = index
    while (this.#tailFirstIndex <= index) this.#evictFirst()
    this.#reclaim()
  }

  /**
   * A snapshot that reaches `index` stands for all up to there. What follows is kept when this log holds that very entry, else nothing is (hazard D6.47). Returns whether it was kept.
   */
  restore(index: number, term: number): boolean {
    if (this.termAt(index) === term) {
      this.compact(index)
      return true
    }
    this.#runTerms.length = 0
    this.#runFirstIndexes.length = 0
    this.#snapshotIndex = index
    this.#snapshotTerm = term
    this.#lastIndex = index
    this.#tail = []
    this.#tailHead = 0
    this.#tailBytes = 0
    this.#tailFirstIndex = index + 1
    return false
  }

  /** Drops entries from the front, up to and including `limitIndex`, until the tail is within `maxBytes`. */
  evict(limitIndex: number, maxBytes: number): void {
    if (this.#tailBytes <= maxBytes) return
    const limit = Math.min(limitIndex, this.#lastIndex)
    while (this.#tailBytes > maxBytes && this.#tailFirstIndex <= limit) {
      this.#evictFirst()
    }
    this.#reclaim()
  }

  #evictFirst(): void {
    // After a restart the tail is empty, and begins after the last index.
    if (this.#tailHead < this.#tail.length) {
      this.#tailBytes -= entryBytes(this.#tail[this.#tailHead]!)
      this.#tail[this.#tailHead] = evicted
      this.#tailHead++
    }
    this.#tailFirstIndex++
  }

  #reclaim(): void {
    if (this.#tailHead >= minCompactedPlaces && this.#tailHead * 2 >= this.#tail.length) {
      this.#tail = this.#tail.slice(this.#tailHead)
      this.#tailHead = 0
    }
  }
}
