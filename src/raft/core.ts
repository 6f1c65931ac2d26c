/**
 * Owns the consensus core as a whole: it hands each input to the concern that it is about, changes roles, and drains the output.
 * Source of the algorithm: Ongaro and Ousterhout, «In Search of an Understandable Consensus Algorithm» (extended version), and Ongaro's thesis.
 *
 * 1. Same state and same inputs give the same outputs: nothing here knows a clock, chance or I/O of its own.
 * 2. Roles change only in `becomeFollower` and `becomeLeader` (and, for campaigns, in `election.ts`); with the role go the leader's books, waiting reads,
 * the change of members under way, and the count of uncommitted bytes.
 * 3. A snapshot never moves a replica back, and drops nothing of the log that follows on it (hazard D6.47). What the log store compacted away was applied and durable.
 */
import { Commit } from './commit.js'
import { Election } from './election.js'
import { Following } from './following.js'
import { Inbox } from './inbox.js'
import { invariant, unreachable } from './invariant.js'
import { entryBytes } from './log.js'
import { Membership } from './membership.js'
import type { Progress } from './progress.js'
import { Reads } from './reads.js'
import { Replication } from './replication.js'
import { ReplicaState, type Transitions } from './state.js'
import { Transfer } from './transfer.js'
import {
  type Configuration,
  type Consensus,
  type Entry,
  EntryKind,
  type Input,
  type NodeId,
  type Output,
  type PeerProgress,
  type RaftOptions,
  type RaftStatus,
  type Role,
} from './types.js'

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
  readonly #membership: Membership
  readonly #transfer: Transfer
  readonly #inbox: Inbox

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
    this.#transfer = new Transfer(this.#state, this.#replication, this.#election, transitions)
    const core = this
    this.#membership = new Membership(this.#state, {
      appendOwn: (kind, data) => this.#appendOwn(kind, data),
      leaveOffice: () => this.#transfer.leaveOffice(),
      get ownTermCommitted() {
        return core.#commit.ownTermCommitted
      },
      get isTransferring() {
        return core.#transfer.isUnderWay
      },
    })
    this.#inbox = new Inbox(this.#state, this.#election, this.#replication, this.#following, this.#transfer, transitions)
  }

  get role(): Role {
    return this.#state.role
  }

  get term(): number {
    return this.#state.term
  }

  get isTransferring(): boolean {
    return this.#transfer.isUnderWay
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
    const own = this.#state.role === 'leader' ? this.#replication.nextTickMs : this.#election.nextTickMs
    return Math.min(own, this.#transfer.nextTickMs)
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
    const { commitIndex } = this.#state
    this.#take(input)
    // What a leader does when something of its own was committed, or a follower caught up, is done here, once, whatever the input was.
    if (this.#state.role !== 'leader') return
    if (commitIndex !== this.#state.commitIndex) this.#membership.committed()
    this.#transfer.proceed()
  }

  #take(input: Input): void {
    switch (input.type) {
      case 'tick':
        this.#tick(input.nowMs)
        break
      case 'message':
        this.#inbox.receive(input.message)
        break
      case 'propose':
        this.#propose(input.id, input.data)
        break
      case 'read':
        this.#read(input.id, input.lease === true)
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
        this.#membership.configure(input.id, input.voters, input.learners)
        break
      case 'transfer':
        this.#transfer.begin(input.id, input.to)
        break
      case 'compacted':
        this.#compacted(input.index)
        break
      case 'restored':
        this.#restored(input.index, input.term, input.configuration)
        break
      case 'unreachable':
        this.#replication.onUnreachable(input.peer)
        this.#election.onUnreachable(input.peer)
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
    this.#transfer.tick()
  }

  #read(id: number, byLease: boolean): void {
    const { role, outbox, commitIndex } = this.#state
    const holds = byLease && role === 'leader' && this.#commit.ownTermCommitted && !this.#transfer.isLeaseVoid && this.#replication.holdsLease
    if (holds) outbox.read(id, commitIndex)
    else this.#reads.add(id)
  }

  #propose(id: number, data: Uint8Array): void {
    const { role, outbox, log, term } = this.#state
    if (role !== 'leader') {
      outbox.rejected(id, 'not-leader')
      return
    }
    if (this.#transfer.isUnderWay) {
      outbox.rejected(id, 'transferring')
      return
    }
    const entry: Entry = { term, index: log.lastIndex + 1, kind: EntryKind.command, data }
    if (!this.#commit.admits(entryBytes(entry))) {
      outbox.rejected(id, 'overloaded')
      return
    }
    this.#append(entry)
    outbox.accepted(id, entry.index, term)
  }

  #append(entry: Entry): void {
    this.#state.append(entry)
    this.#commit.appended(entry)
    this.#replication.endRest()
    if (entry.kind === EntryKind.configuration) this.#replication.configurationChanged()
  }

  #appendOwn(kind: EntryKind, data: Uint8Array): void {
    const { term, log } = this.#state
    this.#append({ term, index: log.lastIndex + 1, kind, data })
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
    this.#reconsiderRole(isKept)
    this.#following.restored()
    if (state.role === 'leader') this.#replication.configurationChanged()
    this.#evict()
  }

  /**
   * A snapshot says what was committed without this replica. Who was removed by it campaigns no more (hazard D3.26). And who leads with a log that it contradicts was deposed in a later term: of this
   * one it may have sent entries that are gone, and must never append others in their place (hazards D2.14, D6.47).
   */
  #reconsiderRole(isLogKept: boolean): void {
    const { role, term, mayLead } = this.#state
    const isOver = role === 'leader' ? !isLogKept : role !== 'follower' && !mayLead
    if (isOver) this.#becomeFollower(term, null)
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
    if (term > state.term) state.enterTerm(term, null)
    state.role = 'follower'
    state.leader = leader
    if (wasLeader) this.#stopLeading()
    if (leader !== null) this.#transfer.leaderKnown(leader)
  }

  #stopLeading(): void {
    this.#replication.stop()
    this.#commit.stopLeading()
    this.#reads.rejectAll()
    this.#membership.stopLeading()
    this.#transfer.stopLeading()
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
    this.#appendOwn(EntryKind.noop, noData)
    this.#replication.start()
    this.#transfer.leaderKnown(state.id)
  }
}
