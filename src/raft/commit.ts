/**
 * Owns how the commit index rises on a leader, and how much may be in the log uncommitted.
 *
 * 1. A leader commits by counting only entries of its own term; earlier ones are committed with them (Raft paper §5.4.2, figure 8; hazard D2.14). The leader
 * counts itself by its own acknowledgement, which its disk releases, so followers may be ahead of it.
 * 2. Uncommitted bytes are exactly those of the entries of this leadership beyond the commit index: 0 when all is committed, and 0 for whoever does
 * not lead (hazard D7.53). A proposal is always admitted when nothing is uncommitted, however large it is.
 * 3. How a follower's commit index rises is in `following.ts`.
 */
import { entryBytes } from './log.js'
import { quorumValue } from './quorum.js'
import type { ReplicaState } from './state.js'
import type { Entry, NodeId } from './types.js'

export class Commit {
  readonly #state: ReplicaState
  /** Index of the no-op that began this leadership; infinite for whoever does not lead. */
  #firstOwnIndex = Number.POSITIVE_INFINITY
  #uncommittedBytes = 0

  constructor(state: ReplicaState) {
    this.#state = state
  }

  get uncommittedBytes(): number {
    return this.#uncommittedBytes
  }

  /** Whether an entry of this leader's own term is committed, so that the commit index is known to include all that earlier leaders committed. */
  get ownTermCommitted(): boolean {
    return this.#state.commitIndex >= this.#firstOwnIndex
  }

  startLeading(firstOwnIndex: number): void {
    this.#firstOwnIndex = firstOwnIndex
    this.#uncommittedBytes = 0
  }

  stopLeading(): void {
    this.#firstOwnIndex = Number.POSITIVE_INFINITY
    this.#uncommittedBytes = 0
  }

  admits(bytes: number): boolean {
    return this.#uncommittedBytes === 0 || this.#uncommittedBytes + bytes <= this.#state.options.maxUncommittedBytes
  }

  appended(entry: Entry): void {
    this.#uncommittedBytes += entryBytes(entry)
  }

  /** Counts again, after a member's match index rose. */
  advance(matchIndexOf: (voter: NodeId) => number): void {
    const state = this.#state
    const index = quorumValue(state.configuration, matchIndexOf)
    const before = state.commitIndex
    if (index <= before || index < this.#firstOwnIndex) return
    state.commitUpTo(index)
    // Entries beyond the commit index are never evicted, so all of these are still in memory.
    this.#uncommittedBytes -= state.log.bytesBetween(Math.max(before + 1, this.#firstOwnIndex), index)
  }
}
