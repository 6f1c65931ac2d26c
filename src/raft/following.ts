/**
 * Owns what a replica does with the appends, heartbeats and snapshot offers of its term's leader.
 *
 * 1. Entries are dropped only where they really conflict with the leader's, so an old or repeated append never shortens the log (hazard D2.11); with the
 * conflicting entry goes all that follows it (hazard D2.12). Committed entries are never dropped: an append that would is proof that safety is lost,
 * and ends this replica.
 * 2. The commit index rises to the leader's, but never beyond the last entry of the request at hand (hazard D2.13). A heartbeat names no more than what this replica acknowledged: one
 * that names more than this log holds is proof that the disk lost a part of it (an old copy was put back, say), and ends this replica (hazards D5.45, d20).
 * 3. Every answer to an append, refusals and repeated ones included, waits for the disk (hazard D1.5).
 * 4. A hint names the term at the conflict and the first index of that term in this log, so that the leader passes over whole terms (hazard D2.19).
 * 5. An offered snapshot is asked for only when this log does not hold what it covers (hazard D6.50); held, it is acknowledged up to the offered index and no further.
 */
import { CorruptionError } from '../base/errors.js'
import type { Election } from './election.js'
import { invariant } from './invariant.js'
import type { ReplicaState, Transitions } from './state.js'
import type { AppendReply, AppendRequest, Heartbeat, NodeId, SnapshotOffer } from './types.js'

export class Following {
  readonly #state: ReplicaState
  readonly #election: Election
  readonly #transitions: Transitions
  /** The last offer that is not answered. */
  #offer: SnapshotOffer | null = null

  constructor(state: ReplicaState, election: Election, transitions: Transitions) {
    this.#state = state
    this.#election = election
    this.#transitions = transitions
  }

  /** Whether the sender of a message that only the present term's leader sends can be that leader. */
  #isLeader(sender: NodeId): boolean {
    const { role, leader } = this.#state
    return role !== 'leader' && (leader === null || leader === sender)
  }

  #heard(leader: NodeId, isResting = false): void {
    this.#transitions.becomeFollower(this.#state.term, leader)
    this.#election.leaderHeard(isResting)
  }

  /** An append of the present term. Returns false when its sender cannot be the leader. */
  onAppendRequest(message: AppendRequest): boolean {
    if (!this.#isLeader(message.from)) return false
    this.#heard(message.from)
    const state = this.#state
    const { log } = state
    const { previousIndex } = message
    const ownTerm = log.termAt(previousIndex)
    // Below the snapshot everything is committed, and the leader's log holds all that is committed.
    if (this.#contradictsSnapshot(message)) return true
    const agrees = previousIndex < log.snapshotIndex || ownTerm === message.previousTerm
    if (!agrees) {
      const isShort = ownTerm === undefined
      this.#refuse(message, isShort ? 0 : ownTerm, isShort ? log.lastIndex + 1 : log.firstIndexOfRun(previousIndex))
      return true
    }
    this.#append(message)
    const lastIndex = previousIndex + message.entries.length
    state.commitUpTo(Math.min(message.commitIndex, lastIndex))
    state.sendOnceDurable(this.#reply(message, { accepted: true, matchIndex: lastIndex, conflictTerm: 0, conflictIndex: 0 }))
    return true
  }

  /**
   * Whether the entries go over the end of the snapshot with another term. Nothing is wrong then: the snapshot came from the followers of a later leader, which this replica has not
   * heard of yet, and which the sender has not.
   */
  #contradictsSnapshot({ previousIndex, entries }: AppendRequest): boolean {
    const { snapshotIndex } = this.#state.log
    const entry = entries[snapshotIndex - previousIndex - 1]
    return entry !== undefined && entry.term !== this.#state.log.termAt(snapshotIndex)
  }

  #append(message: AppendRequest): void {
    const { log, commitIndex } = this.#state
    const { entries } = message
    let position = 0
    while (position < entries.length) {
      const { index, term } = entries[position]!
      if (index > log.lastIndex) break
      if (index > log.snapshotIndex && log.termAt(index) !== term) {
        invariant(index > commitIndex, 'the leader contradicts a committed entry')
        this.#state.truncate(index)
        break
      }
      position++
    }
    for (; position < entries.length; position++) this.#state.append(entries[position]!)
  }

  #reply(
    message: AppendRequest | SnapshotOffer,
    outcome: Pick<AppendReply, 'accepted' | 'matchIndex' | 'conflictTerm' | 'conflictIndex'>,
  ): AppendReply {
    const { id, term } = this.#state
    return { type: 'append-reply', from: id, to: message.from, term, session: message.session, sequence: message.sequence, ...outcome }
  }

  #refuse(message: AppendRequest | SnapshotOffer, conflictTerm: number, conflictIndex: number): void {
    this.#state.sendOnceDurable(this.#reply(message, { accepted: false, matchIndex: 0, conflictTerm, conflictIndex }))
  }

  /** The leader's log starts after an index that this replica may lack. Returns false when its sender cannot be the leader. */
  onSnapshotOffer(message: SnapshotOffer): boolean {
    if (!this.#isLeader(message.from)) return false
    this.#heard(message.from)
    const { log, commitIndex, outbox } = this.#state
    this.#offer = message
    // What is committed here and there is the same.
    const isHeld = message.snapshotIndex <= commitIndex || log.termAt(message.snapshotIndex) === message.snapshotTerm
    if (isHeld) this.#acceptOffer(message)
    else outbox.install({ from: message.from, index: message.snapshotIndex, term: message.snapshotTerm })
    return true
  }

  /** A snapshot was installed: the leader that waits for it is told at once. */
  restored(): void {
    const { role, term, leader, commitIndex } = this.#state
    const offer = this.#offer
    if (offer === null || role !== 'follower' || offer.term !== term || offer.from !== leader || offer.snapshotIndex > commitIndex) return
    this.#acceptOffer(offer)
  }

  /** It holds what was offered, and no more is claimed: beyond it, what was installed may be of a later leader, of which the one who offered knows nothing. */
  #acceptOffer(offer: SnapshotOffer): void {
    this.#offer = null
    this.#state.commitUpTo(offer.snapshotIndex)
    this.#state.sendOnceDurable(this.#reply(offer, { accepted: true, matchIndex: offer.snapshotIndex, conflictTerm: 0, conflictIndex: 0 }))
  }

  /**
   * An append or an offer of an earlier term: its sender learns of the present one, and leads no more. The answer names no session and no sequence: should the
   * sender lead again, in the term that the answer carries, those of its earlier leadership would pass for its present ones (hazards D2.21, n17).
   */
  refuseAppend(message: AppendRequest | SnapshotOffer): void {
    this.#refuse({ ...message, session: 0, sequence: 0 }, 0, this.#state.log.lastIndex + 1)
  }

  /** A heartbeat of the present term. Returns false when its sender cannot be the leader. */
  onHeartbeat(message: Heartbeat): boolean {
    if (!this.#isLeader(message.from)) return false
    this.#heard(message.from, message.isResting)
    const { lastIndex } = this.#state.log
    // The leader of this very term says no more than what this replica acknowledged to it. Then its disk has lost what it promised to keep, and no rejection would ever
    // make the leader step back behind that: this life is over (hazard d20).
    if (message.commitIndex > lastIndex)
      throw new CorruptionError(
        `the log ends at ${lastIndex}, but ${message.commitIndex} was acknowledged to ${message.from}: a part of the log is lost`,
      )
    this.#state.commitUpTo(message.commitIndex)
    this.answerHeartbeat(message)
    return true
  }

  /**
   * With this replica's own term, which also tells the leader of an earlier one. That one is told no round: rounds begin anew after a restart, and should it lead
   * again, its old round could confirm a later one of the same number (hazards D4.34, n17).
   */
  answerHeartbeat(message: Heartbeat): void {
    const { id, term } = this.#state
    const round = message.term === term ? message.round : 0
    this.#state.sendWithTerm({ type: 'heartbeat-reply', from: id, to: message.from, term, round })
  }
}
