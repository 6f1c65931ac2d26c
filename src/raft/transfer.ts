/**
 * Owns how leadership is handed over without waiting for an election timeout (thesis §3.10).
 *
 * 1. From the moment of the request this leader takes no proposals and no changes of members, so that the other's log can catch up with its own; when it has, or the time is over, that
 * ends (hazard D7.56). Reads go on, without the lease.
 * 2. `timeout-now` is sent to a voter whose log is known to hold all of this leader's; it campaigns at once, without a pre-vote, and its vote requests say that the leader asked
 * for them: for these alone, that the leader was heard lately stands not against a vote.
 * 3. It is obeyed only by a voter that follows the sender, in the sender's term (hazards D3.26, D7.56): one that was removed, or has heard of a later term, does nothing.
 * 4. Once `timeout-now` was sent it may arrive at any time: the lease is void as long as this leadership lasts (hazard D4.36).
 * 5. Every request ends within an election timeout: `transferred` when the one who was asked is known to lead, else rejected; one at a time.
 */
import type { Election } from './election.js'
import { isVoter } from './quorum.js'
import type { Replication } from './replication.js'
import type { ReplicaState, Transitions } from './state.js'
import type { NodeId, RejectReason, TimeoutNow } from './types.js'

interface Handover {
  /** The request; null when this leader hands over because it was removed. */
  readonly id: number | null
  readonly to: NodeId
  readonly term: number
  readonly deadlineMs: number
  /** `timeout-now` was sent. */
  isAsked: boolean
  /** When it is sent again: it may have been lost. */
  askAgainAtMs: number
}

export class Transfer {
  readonly #state: ReplicaState
  readonly #replication: Replication
  readonly #election: Election
  readonly #transitions: Transitions
  #handover: Handover | null = null
  #isLeaseVoid = false

  constructor(state: ReplicaState, replication: Replication, election: Election, transitions: Transitions) {
    this.#state = state
    this.#replication = replication
    this.#election = election
    this.#transitions = transitions
  }

  /** Whether this leader is handing over. */
  get isUnderWay(): boolean {
    return this.#handover !== null && this.#state.role === 'leader'
  }

  /** Whether somebody may have been told to campaign in spite of this leader. */
  get isLeaseVoid(): boolean {
    return this.#isLeaseVoid
  }

  get nextTickMs(): number {
    return this.#handover?.deadlineMs ?? Number.POSITIVE_INFINITY
  }

  /** Begins to hand over to a voter, or to the one whose log is the furthest. */
  begin(id: number, to: NodeId | null): void {
    const { role, outbox } = this.#state
    if (role !== 'leader') {
      outbox.rejected(id, 'not-leader')
      return
    }
    if (this.#handover !== null) {
      outbox.rejected(id, 'busy')
      return
    }
    const chosen = to === null ? this.#furthest() : this.#canLead(to) ? to : null
    if (chosen === null) outbox.rejected(id, 'invalid')
    else this.#start(id, chosen)
  }

  /** This leader was removed: it hands over, and steps down in any case. */
  leaveOffice(): void {
    // When it is under way already, this replica leads no longer than that.
    if (this.#handover !== null) return
    const chosen = this.#furthest()
    if (chosen === null) this.#transitions.becomeFollower(this.#state.term, null)
    else this.#start(null, chosen)
  }

  #canLead(to: NodeId): boolean {
    return to !== this.#state.id && this.#state.configuration.voters.includes(to)
  }

  /** The voter that was heard lately and whose log is the furthest. */
  #furthest(): NodeId | null {
    let best: NodeId | null = null
    let bestIndex = -1
    for (const { peer, matchIndex, isActive } of this.#replication.progress()) {
      if (!isActive || !this.#canLead(peer) || matchIndex <= bestIndex) continue
      best = peer
      bestIndex = matchIndex
    }
    return best
  }

  #start(id: number | null, to: NodeId): void {
    const { nowMs, term, options } = this.#state
    const deadlineMs = nowMs + options.electionTimeoutMs
    this.#handover = { id, to, term, deadlineMs, isAsked: false, askAgainAtMs: nowMs }
    this.proceed()
  }

  /** Something changed on a leader: asks the other one as soon as its log holds all. */
  proceed(): void {
    const handover = this.#handover
    if (handover === null || this.#state.role !== 'leader') return
    const { id, term, nowMs, log, outbox, options } = this.#state
    if (!this.#canLead(handover.to)) {
      // Removed meanwhile.
      this.#end('lost')
      return
    }
    if (nowMs < handover.askAgainAtMs || this.#replication.progressOf(handover.to)?.matchIndex !== log.lastIndex) return
    handover.isAsked = true
    handover.askAgainAtMs = nowMs + options.heartbeatIntervalMs
    this.#isLeaseVoid = true
    outbox.now({ type: 'timeout-now', from: id, to: handover.to, term })
  }

  /** Time passed, on a leader or on one that has just handed over. */
  tick(): void {
    if (this.#handover === null) return
    if (this.#state.nowMs >= this.#handover.deadlineMs) this.#end('timeout')
    else this.proceed()
  }

  /** A leader of a term is known. */
  leaderKnown(leader: NodeId): void {
    const handover = this.#handover
    if (handover === null || this.#state.term <= handover.term) return
    this.#end(leader === handover.to ? null : 'lost')
  }

  /** Leadership ended here: whether the other one takes over, when it was asked, is yet to be seen. */
  stopLeading(): void {
    this.#isLeaseVoid = false
    if (this.#handover !== null && !this.#handover.isAsked) this.#end('lost')
  }

  #end(reason: RejectReason | null): void {
    const handover = this.#handover!
    const { outbox, role, term } = this.#state
    this.#handover = null
    if (handover.id !== null && reason === null) outbox.transferred(handover.id)
    else if (handover.id !== null && reason !== null) outbox.rejected(handover.id, reason)
    if (role === 'leader' && term === handover.term && this.#mustLeave) this.#transitions.becomeFollower(term, null)
  }

  /** Whether this leader was removed, and that is committed. */
  get #mustLeave(): boolean {
    const { configurations, commitIndex, id } = this.#state
    return configurations.currentIndex <= commitIndex && !isVoter(configurations.current, id)
  }

  /** The leader of the present term asks this replica to campaign. Returns false when its sender cannot be that leader. */
  onTimeoutNow(message: TimeoutNow): boolean {
    const { role, leader, isVoter: isOwnVoter, isDiskStalled } = this.#state
    if (role === 'leader') return false
    if (leader !== message.from || !isOwnVoter || isDiskStalled) return true
    this.#election.campaignForTransfer()
    return true
  }
}
