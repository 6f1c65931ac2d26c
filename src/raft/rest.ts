/**
 * Owns when a leader with nothing to do may speak less often, so that hundreds of idle groups cost little.
 *
 * 1. A leader rests when nothing was appended, read or changed for a while, all is committed, and every follower either holds all of it or is not heard at all. Resting heartbeats come every
 * few intervals, and say so; a follower that hears one waits accordingly longer before it campaigns (`election.ts`), and the leader before it steps down.
 * 2. The leader's lease (`lease.ts`) is measured as ever; it is over most of the time at rest. A follower stands by a leader at rest until after the next heartbeat is due, and not only for one election timeout:
 * else a replica that cannot hear the leader would be granted pre-votes between two heartbeats, and depose it. When the host says `unreachable`, one election timeout is enough again.
 * 3. Anything to do ends the rest in the same drain, before what it sends.
 * 4. That a resting leader's node died is the host's to notice, by what passes between nodes for all groups together: it says `unreachable`, which ends the longer wait. Without a host that
 * does so, the longer wait bounds how long nobody leads.
 */
import type { RaftOptions } from './types.js'

/** Heartbeat intervals between the heartbeats of a leader at rest. */
const restIntervals = 10
/** How many election timeouts a follower waits after a resting heartbeat, before a time drawn from one more. */
export const restTimeoutFactor = 6

/** How long a follower stands by a leader after a resting heartbeat. */
export function restPromiseMs({ electionTimeoutMs, heartbeatIntervalMs }: RaftOptions): number {
  return electionTimeoutMs + restIntervals * heartbeatIntervalMs
}

export class Rest {
  readonly #options: RaftOptions
  readonly #restAfter: number
  #idle = 0
  #endedMs = Number.NEGATIVE_INFINITY

  constructor(options: RaftOptions) {
    this.#options = options
    this.#restAfter = options.restAfterHeartbeats ?? Number.POSITIVE_INFINITY
  }

  get isResting(): boolean {
    return this.#idle >= this.#restAfter
  }

  /** How long after the least interval the next heartbeat may come. */
  get delayMs(): number {
    return this.isResting ? (restIntervals - 1) * this.#options.heartbeatIntervalMs : 0
  }

  /** How long a quorum may be silent before the leader steps down: followers of a leader that rests, or did a moment ago, had less to answer. */
  patienceMs(nowMs: number): number {
    const { electionTimeoutMs, heartbeatIntervalMs } = this.#options
    const didRest = this.isResting || nowMs - this.#endedMs < electionTimeoutMs
    return didRest ? electionTimeoutMs + 2 * restIntervals * heartbeatIntervalMs : electionTimeoutMs
  }

  /** A heartbeat is due. */
  heartbeatPassed(isQuiet: boolean, nowMs: number): void {
    if (isQuiet) this.#idle++
    else this.end(nowMs)
  }

  /** There is something to do. Returns whether that ends a rest. */
  end(nowMs: number): boolean {
    const didRest = this.isResting
    if (didRest) this.#endedMs = nowMs
    this.#idle = 0
    return didRest
  }
}
