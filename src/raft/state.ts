/**
 * Owns the facts about this replica that every concern reads: term, vote, role, leader, commit and applied index, time, and the places where log, disk and
 * outgoing messages are kept.
 *
 * 1. The term never falls; within a term the vote goes from nobody to one candidate and stays (hazards D1.1, D1.2). Both reach the disk with the next
 * persist work, before any message that speaks for them.
 * 2. Commit and applied index never fall, and applied <= commit <= last index.
 * 3. Role and leader change only through the transitions of `core.ts`, which tell every concern, and in the campaign of `election.ts`.
 * 4. Time comes from outside and never goes back.
 */
import { CorruptionError, InvalidArgumentError } from '../base/errors.js'
import { Configurations } from './configurations.js'
import { invariant } from './invariant.js'
import { RaftLog } from './log.js'
import { decodeConfiguration } from './message-codec.js'
import { Outbox } from './outbox.js'
import { Persistence } from './persistence.js'
import { isVoter } from './quorum.js'
import {
  type Configuration,
  type Entry,
  EntryKind,
  type HeartbeatReply,
  type MessageAfterPersist,
  type NodeId,
  type PreVoteReply,
  type RaftOptions,
  type Role,
} from './types.js'

/** What a concern asks of the whole replica. */
export interface Transitions {
  /** Follow `leader`, or nobody yet, in a term that is the present one or a later one. */
  becomeFollower(term: number, leader: NodeId | null): void
  /** The campaign of the present term was won. */
  becomeLeader(): void
}

export class ReplicaState {
  readonly options: RaftOptions
  readonly id: NodeId
  readonly log: RaftLog
  readonly persistence: Persistence
  readonly outbox = new Outbox()
  readonly configurations: Configurations
  role: Role = 'follower'
  leader: NodeId | null = null
  nowMs: number
  appliedIndex: number
  malformedMessages = 0
  #term: number
  #vote: NodeId | null
  #commitIndex: number

  constructor(options: RaftOptions) {
    checkOptions(options)
    this.options = options
    this.id = options.id
    this.log = new RaftLog(options)
    this.configurations = new Configurations(options.configurations, options.snapshotIndex, options.lastIndex)
    this.nowMs = options.nowMs
    this.#term = options.hardState.term
    this.#vote = options.hardState.vote
    this.#commitIndex = Math.max(options.commitIndex, options.snapshotIndex)
    this.appliedIndex = this.#commitIndex
    this.persistence = new Persistence(options.lastIndex)
    if (this.#commitIndex > this.log.lastIndex) {
      throw new CorruptionError(`state is applied up to ${this.#commitIndex}, but the log ends at ${this.log.lastIndex}`)
    }
    if (this.log.lastTerm > this.#term) {
      const isSnapshot = this.log.lastIndex === this.log.snapshotIndex
      if (!isSnapshot) throw new CorruptionError(`the log holds term ${this.log.lastTerm}, but the hard state ${this.#term}`)
      // A crash came between the install of a snapshot and the write that entered its term.
      this.enterTerm(this.log.lastTerm, null)
    }
  }

  get term(): number {
    return this.#term
  }

  get vote(): NodeId | null {
    return this.#vote
  }

  get commitIndex(): number {
    return this.#commitIndex
  }

  /** The configuration in force. */
  get configuration(): Configuration {
    return this.configurations.current
  }

  get isVoter(): boolean {
    return isVoter(this.configuration, this.id)
  }

  /**
   * Whether this replica may have to lead: it votes in the configuration in force, or in one before it that may still be the committed one. The one that removes it may be in no other log: then
   * nobody else can win, and it has to commit its own removal (thesis §4.2.2).
   */
  get mayLead(): boolean {
    return this.isVoter || this.configurations.from(this.#commitIndex).some((configuration) => isVoter(configuration, this.id))
  }

  /** Whether this replica's own word is a quorum. */
  get isAlone(): boolean {
    const { voters, votersOutgoing } = this.configuration
    return voters.length === 1 && voters[0] === this.id && votersOutgoing.every((voter) => voter === this.id)
  }

  /** Moves to a later term, in which this replica has voted for nobody or, as a candidate, for itself. */
  enterTerm(term: number, vote: NodeId | null): void {
    invariant(term > this.#term, 'the term only rises')
    this.#term = term
    this.#vote = vote
    this.persistence.hardStateChanged()
    this.outbox.dropClaims()
  }

  /** Votes in the present term, once. */
  castVote(candidate: NodeId): void {
    invariant(this.#vote === null, 'at most one vote a term')
    this.#vote = candidate
    this.persistence.hardStateChanged()
  }

  /** Appends to the log; a configuration is in force from here on. */
  append(entry: Entry): void {
    this.log.append(entry)
    if (entry.kind === EntryKind.configuration) this.configurations.appended(entry.index, decodeConfiguration(entry.data))
  }

  /** Forgets the log from an index on, and the configurations there. */
  truncate(fromIndex: number): void {
    this.log.truncate(fromIndex)
    this.persistence.truncated(fromIndex)
    this.configurations.truncated(fromIndex)
  }

  /** Raises the commit index; a lower one says nothing new. */
  commitUpTo(index: number): void {
    if (index <= this.#commitIndex) return
    invariant(index <= this.log.lastIndex, 'only entries that are in the log are committed')
    this.#commitIndex = index
  }

  /** Whether no write was completed for an election timeout while some are under way. */
  get isDiskStalled(): boolean {
    return this.persistence.isStalled(this.nowMs, this.options.electionTimeoutMs)
  }

  /** Sends what carries this replica's term and nothing else of its disk: at once when the term is durable. */
  sendWithTerm(message: HeartbeatReply | PreVoteReply): void {
    if (this.persistence.hardStateDurable) this.outbox.now(message)
    else this.sendOnceDurable(message)
  }

  /**
   * Sends what speaks for this replica's disk to another. While the disk hangs it is dropped, as if the network had lost it: others ask again each heartbeat
   * interval, and what waits must not grow without bound.
   */
  sendOnceDurable(message: MessageAfterPersist): void {
    if (this.isDiskStalled) return
    if (message.type === 'append-reply' && message.accepted) this.outbox.acknowledge(message)
    else this.outbox.afterPersist(message)
  }
}

function checkOptions(options: RaftOptions): void {
  const positive = ['electionTimeoutMs', 'heartbeatIntervalMs', 'maxInflightBytes', 'maxAppendBytes', 'maxUncommittedBytes'] as const
  for (const name of positive) {
    if (!(options[name] > 0)) throw new InvalidArgumentError(`${name} must be more than 0, not ${options[name]}`)
  }
  if (!(options.maxTailBytes >= 0)) throw new InvalidArgumentError(`maxTailBytes must be 0 or more, not ${options.maxTailBytes}`)
  if (options.heartbeatIntervalMs * 2 > options.electionTimeoutMs) {
    throw new InvalidArgumentError('electionTimeoutMs must be at least twice heartbeatIntervalMs: one lost heartbeat is no reason to campaign')
  }
  if (!Number.isFinite(options.nowMs)) throw new InvalidArgumentError('nowMs must be a number of milliseconds')
}
