/**
 * Owns the consensus core as a whole: it hands each input to the concern that it is about, changes roles, and drains the output.
 * Source of the algorithm: Ongaro and Ousterhout, «In Search of an Understandable Consensus Algorithm» (extended version), and Ongaro's thesis.
 *
 * 1. Same state and same inputs give the same outputs: nothing here knows a clock, chance or I/O of its own.
 * 2. A message is looked at only when it is well-formed and for this replica; else it is counted and ignored. Nothing from outside makes the core
 * throw, but an append that contradicts committed entries.
 * 3. Before a message is dealt with, its term is compared once, here: an earlier one is refused with this replica's term or ignored, a later one is entered,
 * and thereby part of the persist work before anything that answers the message (§5.1).
 * 4. Replies of nodes that are no members are ignored, whatever their term: a removed node cannot depose a leader (hazard D3.26). Their requests are
 * answered by the common rules, since the configuration known here may be an old one (§6).
 * 5. Roles change only in `becomeFollower` and `becomeLeader` (and, for campaigns, in `election.ts`); with the role go the leader's books, waiting reads
 * and the count of uncommitted bytes.
 */
import { Commit } from './commit.js'
import { Election } from './election.js'
import { Following } from './following.js'
import { invariant, unreachable } from './invariant.js'
import { entryBytes } from './log.js'
import type { Progress } from './progress.js'
import { isMember } from './quorum.js'
import { Reads } from './reads.js'
import { Replication } from './replication.js'
import { ReplicaState, type Transitions } from './state.js'
import {
  type Configuration,
  type Consensus,
  type Entry,
  EntryKind,
  type Input,
  type Message,
  type NodeId,
  type Output,
  type PeerProgress,
  type RaftOptions,
  type RaftStatus,
  type Role,
} from './types.js'
import { isWellFormed } from './validation.js'

const noData = new Uint8Array(0)
/**
 * How many times the bound of the tail committed entries may fill while they are not applied. Beyond it the host takes them from its log store: a state machine that
 * hangs must not fill the memory.
 */
const unappliedTailFactor = 4

/**
 * One replica of one Raft group: pure, synchronous, driven by its host through `step` and `drain`.
 *
 * @example
 * core.step({ type: 'tick', nowMs })
 * core.step({ type: 'propose', id: 1, data })
 * const output = core.drain()
 * // send output.sendNow; write output.persist; then send output.sendAfterPersist and step { type: 'persisted' }
 */
export class RaftCore implements Consensus {
  readonly #state: ReplicaState
  readonly #election: Election
  readonly #commit: Commit
  readonly #reads: Reads
  readonly #replication: Replication
  readonly #following: Following

  /**
   * @throws InvalidArgumentError when an option is out of its range.
   * @throws CorruptionError when log, hard state and applied index cannot belong together: the store is damaged.
   */
  constructor(options: RaftOptions) {
    const transitions: Transitions = {
      becomeFollower: (term, leader) => this.#becomeFollower(term, leader),
      becomeLeader: () => this.#becomeLeader(),
    }
    this.#state = new ReplicaState(options)
    this.#election = new Election(this.#state, transitions)
    this.#commit = new Commit(this.#state)
    this.#reads = new Reads(this.#state, this.#commit)
    this.#replication = new Replication(this.#state, this.#commit, this.#reads, transitions)
    this.#following = new Following(this.#state, this.#election, transitions)
  }

  get role(): Role {
    return this.#state.role
  }

  get term(): number {
    return this.#state.term
  }

  get leader(): NodeId | null {
    return this.#state.leader
  }

  get commitIndex(): number {
    return this.#state.commitIndex
  }

  get lastIndex(): number {
    return this.#state.log.lastIndex
  }

  get firstIndex(): number {
    return this.#state.log.snapshotIndex + 1
  }

  get configuration(): Configuration {
    return this.#state.configuration
  }

  configurationAt(index: number): Configuration | undefined {
    const { log, configurations } = this.#state
    return index < log.snapshotIndex || index > log.lastIndex ? undefined : configurations.at(index)
  }

  progress(): readonly PeerProgress[] {
    return this.#replication.progress()
  }

  get nextTickMs(): number {
    return this.#state.role === 'leader' ? this.#replication.nextTickMs : this.#election.nextTickMs
  }

  get dirty(): boolean {
    const { outbox, persistence, log, role } = this.#state
    if (!outbox.isEmpty || persistence.isDirty(log.lastIndex)) return true
    return role === 'leader' && (this.#reads.canBegin || this.#replication.hasSomethingToSend)
  }

  status(): RaftStatus {
    const { id, role, term, leader, commitIndex, appliedIndex, log, persistence, malformedMessages } = this.#state
    return { id, role, term, leader, commitIndex, appliedIndex, lastIndex: log.lastIndex, durableIndex: persistence.durableIndex, malformedMessages }
  }

  termAt(index: number): number | undefined {
    return this.#state.log.termAt(index)
  }

  entries(firstIndex: number, lastIndex: number, maxBytes: number): readonly Entry[] {
    return this.#state.log.entries(firstIndex, lastIndex, maxBytes)
  }

  /** What this leader believes of a follower; undefined on others and for strangers. To look at, not to change. */
  progressOf(peer: NodeId): Readonly<Progress> | undefined {
    return this.#replication.progressOf(peer)
  }

  /** Bytes of this leadership's entries beyond the commit index; 0 on others. */
  get uncommittedBytes(): number {
    return this.#commit.uncommittedBytes
  }

  /** Bytes of entries held in memory. */
  get tailBytes(): number {
    return this.#state.log.tailBytes
  }

  step(input: Input): void {
    switch (input.type) {
      case 'tick':
        this.#tick(input.nowMs)
        break
      case 'message':
        this.#receive(input.message)
        break
      case 'propose':
        this.#propose(input.id, input.data)
        break
      case 'read':
        this.#reads.add(input.id)
        break
      case 'persisted':
        this.#state.persistence.persisted(input.sequence, this.#state.nowMs)
        this.#evict()
        break
      case 'applied':
        this.#applied(input.index)
        break
      case 'fetched':
        this.#replication.onFetched(input.peer, input.entries)
        break
      case 'configure':
      case 'transfer':
        this.#state.outbox.rejected(input.id, this.#state.role === 'leader' ? 'busy' : 'not-leader')
        break
      case 'compacted':
        this.#compacted(input.index)
        break
      case 'restored':
        this.#restored(input.index, input.term, input.configuration)
        break
      case 'unreachable':
        this.#replication.onUnreachable(input.peer)
        break
      default:
        unreachable(input)
    }
  }

  drain(): Output {
    const { log, persistence, outbox, id, nowMs } = this.#state
    if (this.#state.role === 'leader') {
      this.#replication.beginReads()
      this.#replication.sendAppends()
    }
    const { term, vote } = this.#state
    const work = persistence.take({ term, vote }, log, nowMs)
    if (this.#state.role === 'leader' && work !== null && work.entries.length > 0) {
      const matchIndex = log.lastIndex
      outbox.acknowledge({
        type: 'append-reply',
        from: id,
        to: id,
        term,
        session: 0,
        sequence: 0,
        accepted: true,
        matchIndex,
        conflictTerm: 0,
        conflictIndex: 0,
      })
    }
    return outbox.take(work)
  }

  #tick(nowMs: number): void {
    if (nowMs > this.#state.nowMs) this.#state.nowMs = nowMs
    if (this.#state.role === 'leader') this.#replication.tick()
    else this.#election.tick()
  }

  #propose(id: number, data: Uint8Array): void {
    const { role, outbox, log, term } = this.#state
    if (role !== 'leader') {
      outbox.rejected(id, 'not-leader')
      return
    }
    const entry: Entry = { term, index: log.lastIndex + 1, kind: EntryKind.command, data }
    if (!this.#commit.admits(entryBytes(entry))) {
      outbox.rejected(id, 'overloaded')
      return
    }
    this.#appendOwn(entry)
    outbox.accepted(id, entry.index, term)
  }

  #appendOwn(entry: Entry): void {
    this.#state.log.append(entry)
    this.#commit.appended(entry)
  }

  #applied(index: number): void {
    invariant(index <= this.#state.commitIndex, 'only committed entries are applied')
    if (index <= this.#state.appliedIndex) return
    this.#state.appliedIndex = index
    this.#evict()
  }

  #compacted(index: number): void {
    const { log, configurations, appliedIndex, persistence } = this.#state
    invariant(index <= Math.min(appliedIndex, persistence.durableIndex), 'only applied and durable entries are compacted away')
    log.compact(index)
    configurations.compacted(index)
  }

  #restored(index: number, term: number, configuration: Configuration): void {
    const state = this.#state
    const { log, configurations, persistence, appliedIndex, commitIndex } = state
    invariant(index >= appliedIndex, 'a snapshot never moves a replica back')
    if (index <= log.snapshotIndex) return
    // What it holds was committed in its term or a later one: a leader of an earlier term may contradict it, and is not followed any more.
    if (term > state.term) this.#becomeFollower(term, null)
    const lastIndex = log.lastIndex
    const isKept = log.restore(index, term)
    configurations.restored(index, configuration, isKept)
    persistence.restored({ index, term, configuration: state.configurations.at(index) }, isKept ? lastIndex : commitIndex)
    state.commitUpTo(index)
    state.appliedIndex = index
    this.#evict()
  }

  /** Lets go of memory, the oldest first: entries that are durable and applied, and when applying lags far behind, also such that are only committed. */
  #evict(): void {
    const { log, persistence, appliedIndex, commitIndex, options } = this.#state
    log.evict(Math.min(persistence.durableIndex, appliedIndex), options.maxTailBytes)
    log.evict(Math.min(persistence.durableIndex, commitIndex), options.maxTailBytes * unappliedTailFactor)
  }

  #becomeFollower(term: number, leader: NodeId | null): void {
    const state = this.#state
    const wasLeader = state.role === 'leader'
    if (term > state.term) {
      state.enterTerm(term, null)
      this.#election.termRose()
    }
    state.role = 'follower'
    state.leader = leader
    if (!wasLeader) return
    this.#replication.stop()
    this.#commit.stopLeading()
    this.#reads.rejectAll()
    this.#election.restartTimer()
  }

  #becomeLeader(): void {
    const state = this.#state
    invariant(state.role === 'candidate', 'only a candidate wins')
    state.role = 'leader'
    state.leader = state.id
    const firstOwnIndex = state.log.lastIndex + 1
    this.#commit.startLeading(firstOwnIndex)
    // Commits what earlier leaders left, as soon as it is committed itself (§5.4.2, §8).
    this.#appendOwn({ term: state.term, index: firstOwnIndex, kind: EntryKind.noop, data: noData })
    this.#replication.start()
  }

  #receive(message: Message): void {
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
      case 'snapshot-offer':
      case 'timeout-now':
        return true
      case 'append-request':
        if (message.term < this.#state.term) {
          this.#following.refuseAppend(message)
          return true
        }
        this.#enterIfLater(message.term)
        return this.#following.onAppendRequest(message)
      case 'heartbeat':
        if (message.term < this.#state.term) {
          this.#following.answerHeartbeat(message)
          return true
        }
        this.#enterIfLater(message.term)
        return this.#following.onHeartbeat(message)
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
    if (term > this.#state.term) this.#becomeFollower(term, null)
  }

  #onVoteRequest(message: Extract<Message, { type: 'vote-request' }>): boolean {
    if (message.term < this.#state.term) {
      this.#election.refuseVote(message)
      return true
    }
    if (message.term > this.#state.term) {
      if (this.#election.isLeaderAlive(message.from)) return true
      this.#becomeFollower(message.term, null)
    }
    this.#election.onVoteRequest(message)
    return true
  }

  #onReply(message: Extract<Message, { type: `${string}-reply` }>): boolean {
    const { id, term } = this.#state
    if (message.from !== id && !isMember(this.#state.configuration, message.from)) return true
    // A granted pre-vote speaks of a term that nobody has entered yet.
    if (message.type === 'pre-vote-reply' && message.granted) {
      this.#election.onPreVoteReply(message)
      return true
    }
    if (message.term > term) {
      if (message.from === id) return false
      this.#becomeFollower(message.term, null)
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
