/**
 * Owns what of this replica's state is on disk: what is dirty, what was handed out to be written, and what is known to be durable.
 *
 * 1. One PersistWork per drain holds everything that is dirty: hard state, truncation and entries go to disk in one atomic write, so neither can
 * overtake the other (hazard D1.3). Sequences rise by one.
 * 2. The durable index speaks of the log as it is now: a write that was under way when its entries were truncated makes nothing durable but
 * what is left of them, however late it completes (the ABA race, hazard D1.6).
 * 3. After a snapshot replaced the log, nothing is durable beyond what both logs hold until the reset is.
 * 4. Durable index <= handed index <= last index. A work's first entry follows right on what was handed out before, or, when it cuts, is the one that it cuts
 * from: a cut always comes with the entry that replaces what was there.
 */
import { invariant } from './invariant.js'
import type { RaftLog } from './log.js'
import type { HardState, LogReset, PersistWork } from './types.js'

interface Write {
  readonly sequence: number
  /** The last entry that this write makes durable and that is still in the log. */
  lastIndex: number
}

/** Two works that follow one another as one, for a host that has not written the first yet. */
export function mergeWork(before: PersistWork, after: PersistWork): PersistWork {
  const { sequence } = after
  const hardState = after.hardState ?? before.hardState
  const from = after.truncateFrom ?? Number.POSITIVE_INFINITY
  if (after.reset === null) {
    const kept = before.entries.filter(({ index }) => index < from)
    // Where entries that were waiting are cut, the log on disk is not.
    const truncateFrom = kept.length > 0 ? before.truncateFrom : (after.truncateFrom ?? before.truncateFrom)
    return { sequence, hardState, reset: before.reset, truncateFrom, entries: kept.concat(after.entries) }
  }
  const { index: start, keepsLater } = after.reset
  if (!keepsLater) return { ...after, hardState }
  const kept = before.entries.filter(({ index }) => index > start && index < from)
  // The entry at the start is itself still to be written: the store holds another there, or none.
  const isUnwritten = before.entries.length > 0 && before.entries[0]!.index <= start
  const truncateFrom = isUnwritten ? null : kept.length > 0 ? before.truncateFrom : (after.truncateFrom ?? before.truncateFrom)
  const reset = { ...after.reset, keepsLater: !isUnwritten && before.reset?.keepsLater !== false }
  return { sequence, hardState, reset, truncateFrom, entries: kept.concat(after.entries) }
}

export class Persistence {
  #sequence = 0
  #persistedSequence = 0
  #hardStateDirty = false
  #hardStateSequence = 0
  #reset: LogReset | null = null
  #truncateFrom: number | null = null
  /** Entries up to here were handed out to be written. */
  #handedIndex: number
  #durableIndex: number
  readonly #writes: Write[] = []
  #progressAtMs = 0

  constructor(lastIndex: number) {
    this.#handedIndex = lastIndex
    this.#durableIndex = lastIndex
  }

  get durableIndex(): number {
    return this.#durableIndex
  }

  /** Whether the present term and vote are on disk. */
  get hardStateDurable(): boolean {
    return !this.#hardStateDirty && this.#hardStateSequence <= this.#persistedSequence
  }

  isDirty(lastIndex: number): boolean {
    return this.#hardStateDirty || this.#reset !== null || this.#truncateFrom !== null || this.#handedIndex < lastIndex
  }

  hardStateChanged(): void {
    this.#hardStateDirty = true
  }

  /** Entries from `fromIndex` on were dropped from the log. */
  truncated(fromIndex: number): void {
    if (fromIndex <= this.#handedIndex) {
      this.#truncateFrom = fromIndex
      this.#handedIndex = fromIndex - 1
    }
    this.#isVoidFrom(fromIndex)
  }

  #isVoidFrom(fromIndex: number): void {
    if (this.#durableIndex >= fromIndex) this.#durableIndex = fromIndex - 1
    for (const write of this.#writes) {
      if (write.lastIndex >= fromIndex) write.lastIndex = fromIndex - 1
    }
  }

  /** The log starts anew after a snapshot's index. Nothing beyond `agreedIndex` is the same as before. */
  restored(reset: Omit<LogReset, 'keepsLater'>, agreedIndex: number): void {
    // Either this log holds another entry there, or the store does, or none: what it is to hold is still to be handed out.
    const keepsLater = agreedIndex >= reset.index && this.#handedIndex >= reset.index
    this.#reset = { ...reset, keepsLater: keepsLater && this.#reset?.keepsLater !== false }
    if (agreedIndex < reset.index) this.#isVoidFrom(agreedIndex + 1)
    if (keepsLater) return
    this.#handedIndex = reset.index
    this.#truncateFrom = null
  }

  /** Everything dirty as one piece of work, or null. */
  take(hardState: HardState, log: RaftLog, nowMs: number): PersistWork | null {
    if (!this.isDirty(log.lastIndex)) return null
    const entries = log.entries(this.#handedIndex + 1, log.lastIndex, Number.POSITIVE_INFINITY)
    invariant(entries.length === log.lastIndex - this.#handedIndex, 'entries that were not yet written are in memory')
    const sequence = ++this.#sequence
    const work: PersistWork = {
      sequence,
      hardState: this.#hardStateDirty ? hardState : null,
      reset: this.#reset,
      truncateFrom: this.#truncateFrom,
      entries,
    }
    if (this.#hardStateDirty) this.#hardStateSequence = sequence
    this.#hardStateDirty = false
    this.#reset = null
    this.#truncateFrom = null
    this.#handedIndex = log.lastIndex
    if (this.#writes.length === 0) this.#progressAtMs = nowMs
    this.#writes.push({ sequence, lastIndex: log.lastIndex })
    return work
  }

  /** The host reports that everything up to this sequence is durable. A report that is older than an earlier one says nothing new. */
  persisted(sequence: number, nowMs: number): void {
    invariant(sequence <= this.#sequence, 'only work that was handed out is reported as persisted')
    if (sequence <= this.#persistedSequence) return
    this.#persistedSequence = sequence
    this.#progressAtMs = nowMs
    let done = 0
    while (done < this.#writes.length && this.#writes[done]!.sequence <= sequence) {
      const { lastIndex } = this.#writes[done]!
      // Writes complete in order, and a later truncation has already lowered what this one is worth.
      if (lastIndex > this.#durableIndex) this.#durableIndex = lastIndex
      done++
    }
    this.#writes.splice(0, done)
  }

  /** Whether writes are under way and none completed for so long: the disk hangs (hazard D3.31). */
  isStalled(nowMs: number, limitMs: number): boolean {
    return this.#writes.length > 0 && nowMs - this.#progressAtMs >= limitMs
  }
}
