/**
 * Owns reads that wait for an index: which commit index a linearizable read has to see applied (ReadIndex, thesis §6.4).
 *
 * 1. A read is given the commit index only after an entry of the leader's own term is committed (hazard D4.33), and that index is given out only after
 * a quorum has answered a heartbeat that was sent after the read came in.
 * 2. All reads of one drain share one round. Round numbers are this core's own and only rise; an answer to an earlier round confirms no later one
 * (hazard D4.34). Answers of other terms, of learners and of strangers never count (hazard D4.35): `replication.ts` and `quorum.ts` see to that.
 * 3. Every read ends (hazard D4.37): given an index, rejected `not-leader` when leadership ends, or rejected `overloaded` when too many wait, or when one has waited
 * an election timeout for its index: the leader cannot commit in its own term, or a quorum answers it, but not its heartbeats.
 */
import type { Commit } from './commit.js'
import type { ReplicaState } from './state.js'
import type { RejectReason } from './types.js'

/** Reads that may wait at once; more are rejected as overloaded. */
export const maxWaitingReads = 65_536

interface Round {
  readonly round: number
  readonly index: number
  readonly ids: readonly number[]
  /** When it began. */
  readonly sinceMs: number
}

export class Reads {
  readonly #state: ReplicaState
  readonly #commit: Commit
  /** Come in since the last round began. */
  #arrived: number[] = []
  #arrivedSinceMs = 0
  /** Rounds that a quorum has not yet answered, oldest first. */
  #rounds: Round[] = []
  #round = 0
  #waiting = 0

  constructor(state: ReplicaState, commit: Commit) {
    this.#state = state
    this.#commit = commit
  }

  /** The round that heartbeats carry now. */
  get round(): number {
    return this.#round
  }

  get waiting(): number {
    return this.#waiting
  }

  /** Heartbeats that go out now are a round of their own, whether reads wait or not. */
  nextRound(): number {
    return ++this.#round
  }

  /** Whether a drain would begin a round. */
  get canBegin(): boolean {
    return this.#arrived.length > 0 && this.#commit.ownTermCommitted
  }

  add(id: number): void {
    if (this.#state.role !== 'leader') this.#state.outbox.rejected(id, 'not-leader')
    else if (this.#waiting >= maxWaitingReads) this.#state.outbox.rejected(id, 'overloaded')
    else {
      if (this.#arrived.length === 0) this.#arrivedSinceMs = this.#state.nowMs
      this.#arrived.push(id)
      this.#waiting++
    }
  }

  /** Begins a round for the reads that came in. Returns whether there is one, whose number heartbeats then have to carry to the voters. */
  begin(): boolean {
    if (!this.canBegin) return false
    this.#round++
    this.#rounds.push({ round: this.#round, index: this.#state.commitIndex, ids: this.#arrived, sinceMs: this.#state.nowMs })
    this.#arrived = []
    return true
  }

  /** A quorum has answered this round, and thereby all before it. */
  confirm(round: number): void {
    let done = 0
    while (done < this.#rounds.length && this.#rounds[done]!.round <= round) {
      const { index, ids } = this.#rounds[done]!
      for (const id of ids) this.#state.outbox.read(id, index)
      this.#waiting -= ids.length
      done++
    }
    if (done > 0) this.#rounds.splice(0, done)
  }

  /** A heartbeat interval has passed on a leader. */
  heartbeatPassed(): void {
    const latestMs = this.#state.nowMs - this.#state.options.electionTimeoutMs
    while (this.#rounds.length > 0 && this.#rounds[0]!.sinceMs <= latestMs) this.#reject(this.#rounds.shift()!.ids, 'overloaded')
    // What can begin waits for the host's next drain alone.
    if (this.#arrived.length === 0 || this.canBegin || this.#arrivedSinceMs > latestMs) return
    this.#reject(this.#arrived, 'overloaded')
    this.#arrived = []
  }

  #reject(ids: readonly number[], reason: RejectReason): void {
    for (const id of ids) this.#state.outbox.rejected(id, reason)
    this.#waiting -= ids.length
  }

  /** Leadership ended. */
  rejectAll(): void {
    for (const { ids } of this.#rounds) this.#reject(ids, 'not-leader')
    this.#reject(this.#arrived, 'not-leader')
    this.#rounds = []
    this.#arrived = []
  }
}
