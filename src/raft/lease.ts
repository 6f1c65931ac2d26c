/**
 * Owns the leader's lease: while it holds nobody else can have been elected, so a read needs to ask nobody (thesis §6.4.1).
 *
 * 1. It is measured from when a round of heartbeats was *sent*, by the leader's monotonic clock, never from when it was answered (hazard D4.36): a follower that answered a round heard the
 * leader after that, and votes for nobody else until an election timeout later (`election.ts`, invariant 3), restarts and later terms included.
 * 2. It lasts three quarters of the election timeout: safe while clocks run at rates that differ by less than a seventh. The time of a read is the latest tick: the host steps one right before it, so a
 * loop that stood still finds the lease over. Both timeouts are the same on all members.
 * 3. It counts for the configuration in force, joint quorums included, and only answers of the present term; a leader that this one does not name has none. It is void once somebody was told to campaign (`transfer.ts`).
 */
import { quorumValue } from './quorum.js'
import type { ReplicaState } from './state.js'
import type { NodeId } from './types.js'

const leaseShare = 0.75

export class Lease {
  readonly #state: ReplicaState
  /** When the rounds from `#firstRound` on were sent, in milliseconds. */
  #sentMs: number[] = []
  #firstRound = 1

  constructor(state: ReplicaState) {
    this.#state = state
  }

  get #durationMs(): number {
    return this.#state.options.electionTimeoutMs * leaseShare
  }

  /** A round was sent; rounds follow one another. */
  roundSent(round: number): void {
    const { nowMs } = this.#state
    if (round !== this.#firstRound + this.#sentMs.length) this.start(round)
    this.#sentMs.push(nowMs)
    // Rounds that are older prove nothing any more: dropped in bulk.
    if (this.#sentMs.length < 64 || this.#sentMs[this.#sentMs.length >> 1]! > nowMs - this.#durationMs) return
    const dropped = this.#sentMs.length >> 1
    this.#sentMs = this.#sentMs.slice(dropped)
    this.#firstRound += dropped
  }

  /** Forgets what was sent: the next round is this one. */
  start(round: number): void {
    this.#sentMs = []
    this.#firstRound = round
  }

  /** Whether a quorum answered rounds that were sent recently enough. */
  holds(roundOf: (voter: NodeId) => number): boolean {
    const { configuration, id, nowMs, isVoter } = this.#state
    // One that was removed rests on the promises of others alone, and of these one that is alone by now makes none.
    if (!isVoter) return false
    const sentMs = quorumValue(configuration, (voter) => (voter === id ? nowMs : this.#sentAt(roundOf(voter))))
    return nowMs - sentMs < this.#durationMs
  }

  #sentAt(round: number): number {
    return this.#sentMs[round - this.#firstRound] ?? Number.NEGATIVE_INFINITY
  }
}
