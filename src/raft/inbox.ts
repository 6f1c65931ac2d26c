/**
 * Owns what comes from other replicas: which messages are looked at, how their terms compare, and which concern each is for.
 *
 * 1. A message is looked at only when it is well-formed and for this replica; else it is counted and ignored. Nothing from outside makes the core
 * throw, but an append that contradicts committed entries, and a heartbeat that shows that this replica's disk lost what it had acknowledged.
 * 2. Before a message is dealt with, its term is compared once, here: an earlier one is refused with this replica's term or ignored, a later one is entered,
 * and thereby part of the persist work before anything that answers the message (§5.1).
 * 3. Replies of nodes that are no members are ignored, whatever their term: a removed node cannot depose a leader (hazard D3.26). Their requests are
 * answered by the common rules, since the configuration known here may be an old one (§6).
 */
import type { Election } from './election.js'
import type { Following } from './following.js'
import { unreachable } from './invariant.js'
import { isMember } from './quorum.js'
import type { Replication } from './replication.js'
import type { ReplicaState, Transitions } from './state.js'
import type { Transfer } from './transfer.js'
import type { Message, VoteRequest } from './types.js'
import { isWellFormed } from './validation.js'

export class Inbox {
  readonly #state: ReplicaState
  readonly #election: Election
  readonly #replication: Replication
  readonly #following: Following
  readonly #transfer: Transfer
  readonly #transitions: Transitions

  constructor(state: ReplicaState, election: Election, replication: Replication, following: Following, transfer: Transfer, transitions: Transitions) {
    this.#state = state
    this.#election = election
    this.#replication = replication
    this.#following = following
    this.#transfer = transfer
    this.#transitions = transitions
  }

  receive(message: Message): void {
    const isForUs = message.to === this.#state.id
    if (!isForUs || !isWellFormed(message) || !this.#dispatch(message)) this.#state.malformedMessages++
  }

  /** Compares terms and hands the message on. Returns false when it cannot have been sent by a correct node. */
  #dispatch(message: Message): boolean {
    switch (message.type) {
      case 'pre-vote-request':
        this.#election.onPreVoteRequest(message)
        return true
      case 'vote-request':
        return this.#onVoteRequest(message)
      case 'append-request':
      case 'snapshot-offer':
        if (message.term < this.#state.term) {
          this.#following.refuseAppend(message)
          return true
        }
        this.#enterIfLater(message.term)
        return message.type === 'append-request' ? this.#following.onAppendRequest(message) : this.#following.onSnapshotOffer(message)
      case 'heartbeat':
        if (message.term < this.#state.term) {
          this.#following.answerHeartbeat(message)
          return true
        }
        this.#enterIfLater(message.term)
        return this.#following.onHeartbeat(message)
      case 'timeout-now':
        if (message.term < this.#state.term) return true
        this.#enterIfLater(message.term)
        return this.#transfer.onTimeoutNow(message)
      case 'pre-vote-reply':
      case 'vote-reply':
      case 'append-reply':
      case 'heartbeat-reply':
        return this.#onReply(message)
      default:
        return unreachable(message)
    }
  }

  #enterIfLater(term: number): void {
    if (term > this.#state.term) this.#transitions.becomeFollower(term, null)
  }

  #onVoteRequest(message: VoteRequest): boolean {
    if (message.term < this.#state.term) {
      this.#election.refuseVote(message)
      return true
    }
    if (message.term > this.#state.term) {
      if (!message.transfer && this.#election.isLeaderAlive(message.from)) return true
      this.#transitions.becomeFollower(message.term, null)
    }
    this.#election.onVoteRequest(message)
    return true
  }

  #onReply(message: Extract<Message, { type: `${string}-reply` }>): boolean {
    const { id, term, configuration } = this.#state
    if (message.from !== id && !isMember(configuration, message.from)) return true
    // A granted pre-vote speaks of a term that nobody has entered yet.
    if (message.type === 'pre-vote-reply' && message.granted) {
      this.#election.onPreVoteReply(message)
      return true
    }
    if (message.term > term) {
      if (message.from === id) return false
      this.#transitions.becomeFollower(message.term, null)
      return true
    }
    if (message.term < term) return true
    switch (message.type) {
      case 'pre-vote-reply':
        return true
      case 'vote-reply':
        this.#election.onVoteReply(message)
        return true
      case 'append-reply':
        return this.#state.role !== 'leader' || this.#replication.onAppendReply(message)
      case 'heartbeat-reply':
        return this.#state.role !== 'leader' || this.#replication.onHeartbeatReply(message)
      default:
        return unreachable(message)
    }
  }
}
