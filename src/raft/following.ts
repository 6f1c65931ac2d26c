/**
 * Owns what a replica does with the appends and heartbeats of its term's leader.
 *
 * 1. Entries are dropped only where they really conflict with the leader's, so an old or repeated append never shortens the log (hazard D2.11); with the
 * conflicting entry goes all that follows it (hazard D2.12). Committed entries are never dropped: an append that would is proof that safety is lost,
 * and ends this replica.
 * 2. The commit index rises to the leader's, but never beyond the last entry of the request at hand (hazard D2.13), nor by a heartbeat beyond
 * what this log holds (hazard D5.45).
 * 3. Every answer to an append, refusals and repeated ones included, waits for the disk (hazard D1.5).
 * 4. A hint names the term at the conflict and the first index of that term in this log, so that the leader passes over whole terms (hazard D2.19).
 */
import type { Election } from './election.js'
import { invariant } from './invariant.js'
import type { ReplicaState, Transitions } from './state.js'
import type { AppendReply, AppendRequest, Heartbeat, NodeId } from './types.js'

export class Following {
  readonly #state: ReplicaState
  readonly #election: Election
  readonly #transitions: Transitions

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

  #heard(leader: NodeId): void {
    this.#transitions.becomeFollower(this.#state.term, leader)
    this.#election.leaderHeard()
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

  #append(message: AppendRequest): void {
    const { log, persistence, commitIndex } = this.#state
    const { entries } = message
    let position = 0
    while (position < entries.length) {
      const { index, term } = entries[position]!
      if (index > log.lastIndex) break
      if (index > log.snapshotIndex && log.termAt(index) !== term) {
        invariant(index > commitIndex, 'the leader contradicts a committed entry')
        log.truncate(index)
        persistence.truncated(index)
        break
      }
      position++
    }
    for (; position < entries.length; position++) log.append(entries[position]!)
  }

  #reply(message: AppendRequest, outcome: Pick<AppendReply, 'accepted' | 'matchIndex' | 'conflictTerm' | 'conflictIndex'>): AppendReply {
    const { id, term } = this.#state
    return { type: 'append-reply', from: id, to: message.from, term, session: message.session, sequence: message.sequence, ...outcome }
  }

  #refuse(message: AppendRequest, conflictTerm: number, conflictIndex: number): void {
    this.#state.sendOnceDurable(this.#reply(message, { accepted: false, matchIndex: 0, conflictTerm, conflictIndex }))
  }

  /**
   * An append of an earlier term: its sender learns of the present one, and leads no more. The answer names no session and no sequence: should the
   * sender lead again, in the term that the answer carries, those of its earlier leadership would pass for its present ones (hazards D2.21, n17).
   */
  refuseAppend(message: AppendRequest): void {
    this.#refuse({ ...message, session: 0, sequence: 0 }, 0, this.#state.log.lastIndex + 1)
  }

  /** A heartbeat of the present term. Returns false when its sender cannot be the leader. */
  onHeartbeat(message: Heartbeat): boolean {
    if (!this.#isLeader(message.from)) return false
    this.#heard(message.from)
    // A log that is shorter than what it once acknowledged has lost entries: nothing of it is known to be committed.
    if (message.commitIndex <= this.#state.log.lastIndex) this.#state.commitUpTo(message.commitIndex)
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
