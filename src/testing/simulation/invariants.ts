/**
 * The oracle of the simulator: it sees every replica and every disk, and checks global truth after every step, never one node's opinion.
 * The numbers are those of the hazards catalogue.
 *
 * R1 election safety: at most one leader a term, and only that leader sends appends and heartbeats of the term
 * R2 a leader never truncates its log, nor leads on when a snapshot replaced it
 * R3 log matching: the same index and term mean equal prefixes, in memory, on disk and in messages
 * R4 leader completeness: a leader holds every entry that was committed in an earlier term
 * R5 state-machine safety: one index, one command, over all replicas and restarts
 * R6 term and commit index never go back
 * R7 one vote a term, across crashes
 * R8 an acknowledged write is in the durable log of a quorum when it is acknowledged, and never lost
 * R9 a leader commits by counting only in its own term
 * R10 a committed entry is in the durable logs of a quorum
 * R11 persist before send: what a vote, a vote request or an acknowledgement promises is on the sender's disk
 * R12, R13, R16 (membership and snapshots): configuration-checker.ts
 * R14 the state at an applied index is the same everywhere
 * R15 a read reflects everything that was committed before it was asked
 * R17 every entry is applied exactly once, in order
 */
import { hasQuorum } from '../../raft/quorum.js'
import type { Configuration, Consensus, Entry, Message, NodeId, PersistWork } from '../../raft/types.js'
import { ConfigurationChecker } from './configuration-checker.js'
import type { SimulatedLogDisk } from './log-disk.js'
import { LogShape, mixHash } from './log-shape.js'
import { InvariantViolation } from './violation.js'

export { InvariantViolation }

const nobody: Configuration = { voters: [], learners: [], votersOutgoing: [] }

/** What the checker remembers of a replica's running core. */
interface CoreView {
  /** The log as the core has it in memory, rebuilt from its persist work. */
  readonly log: LogShape
  role: string
  term: number
  commitIndex: number
  /** The configuration in force after the last step, and the one by which the commit index rose last. */
  configuration: Configuration
  committedBy: Configuration
}

export class InvariantChecker {
  readonly #disks = new Map<NodeId, SimulatedLogDisk>()
  readonly #views = new Map<NodeId, CoreView>()
  readonly #cores = new Map<NodeId, Consensus>()
  readonly #leaders = new Map<number, NodeId>()
  readonly #leadersToCheck: { readonly id: NodeId; readonly term: number }[] = []
  readonly #votes = new Map<NodeId, Map<number, NodeId>>()
  readonly #storedVotes = new Map<NodeId, { term: number; vote: NodeId | null }>()
  /** Per index and term the hash of the prefix that ends there. */
  readonly #prefixes: Map<number, number>[] = []
  /** The prefix that is known to be committed. */
  readonly #committed = new LogShape()
  /** Per committed index, whose quorum committed it. */
  readonly #committedUnder: (Configuration | undefined)[] = [undefined]
  readonly #configurations = new ConfigurationChecker()
  /** What was applied at each index. */
  readonly #applied: (Entry | undefined)[] = []
  readonly #committedInTerm = new Map<number, number>()
  readonly #stateHashes: number[] = [0]
  readonly #acknowledged = new Map<number, number>()
  elections = 0
  /** How often a leader committed while another still believed to lead an earlier term. */
  twoLeaders = 0

  constructor(ids: readonly NodeId[], disks: Iterable<SimulatedLogDisk>) {
    for (const disk of disks) this.#disks.set(disk.id, disk)
    for (const id of ids) {
      this.#views.set(id, { log: new LogShape(), role: 'follower', term: 0, commitIndex: 0, configuration: nobody, committedBy: nobody })
      this.#votes.set(id, new Map())
      this.#storedVotes.set(id, { term: 0, vote: null })
    }
  }

  /** The highest index known to be committed anywhere. */
  get maxCommitted(): number {
    return this.#committed.lastIndex
  }

  /** The prefix that is known to be committed. */
  get committedPrefix(): LogShape {
    return this.#committed
  }

  /** How many writes were acknowledged to clients. */
  get acknowledgedWrites(): number {
    return this.#acknowledged.size
  }

  /** The leader of a term, if one was ever seen. */
  leaderOf(term: number): NodeId | undefined {
    return this.#leaders.get(term)
  }

  #view(id: NodeId): CoreView {
    return this.#views.get(id) as CoreView
  }

  #disk(id: NodeId): SimulatedLogDisk {
    return this.#disks.get(id) as SimulatedLogDisk
  }

  #registerPrefix(invariant: string, where: string, index: number, term: number, hash: number): void {
    let terms = this.#prefixes[index]
    if (terms === undefined) {
      terms = new Map()
      this.#prefixes[index] = terms
    }
    const known = terms.get(term)
    if (known === undefined) terms.set(term, hash)
    else if (known !== hash) throw new InvariantViolation(invariant, `${where}: entry ${index} of term ${term} ends another prefix than elsewhere`)
  }

  /** A core was built from its disk. */
  started(id: NodeId, core: Consensus, appliedIndex: number): void {
    const disk = this.#disk(id)
    const view = this.#view(id)
    if (core.term < disk.hardState.term)
      throw new InvariantViolation('R6', `${id} restarts at term ${core.term}, its disk holds ${disk.hardState.term}`)
    if (core.lastIndex !== disk.lastIndex) {
      throw new InvariantViolation('R8', `${id} restarts with ${core.lastIndex} entries, its disk holds ${disk.lastIndex}`)
    }
    // A snapshot may be of a term that this replica never heard of.
    if (disk.shape.lastTerm > disk.hardState.term && disk.lastIndex > disk.base.index) {
      throw new InvariantViolation('R11', `${id}: an entry of term ${disk.shape.lastTerm} is on disk, the term there is ${disk.hardState.term}`)
    }
    if (core.commitIndex < appliedIndex) throw new InvariantViolation('R6', `${id} restarts with commit ${core.commitIndex}, applied ${appliedIndex}`)
    const seenTerm = this.#storedVotes.get(id)?.term ?? 0
    if (core.term < seenTerm) throw new InvariantViolation('R6', `${id} restarts at term ${core.term}, after term ${seenTerm} was durable`)
    view.log.copyFrom(disk.shape)
    view.role = core.role
    view.term = core.term
    view.commitIndex = core.commitIndex
    view.configuration = core.configuration
    view.committedBy = core.configuration
    this.#cores.set(id, core)
    this.#configurations.started(id, disk.configurations(), core)
  }

  stopped(id: NodeId): void {
    this.#cores.delete(id)
  }

  /** After each single input: what can be seen without the log. */
  stepped(id: NodeId, core: Consensus): void {
    const view = this.#view(id)
    const term = core.term
    const commitIndex = core.commitIndex
    const role = core.role
    if (term < view.term) throw new InvariantViolation('R6', `${id}: term went back from ${view.term} to ${term}`)
    if (commitIndex < view.commitIndex) throw new InvariantViolation('R6', `${id}: commit index went back from ${view.commitIndex} to ${commitIndex}`)
    if (commitIndex > core.lastIndex)
      throw new InvariantViolation('R6', `${id}: commit index ${commitIndex} is beyond its log, which ends at ${core.lastIndex}`)
    if (role === 'leader') {
      if (view.role !== 'leader' || view.term !== term) this.#elected(id, term)
      else if (commitIndex > view.commitIndex && core.termAt(commitIndex) !== term) {
        throw new InvariantViolation(
          'R9',
          `${id}, leader of term ${term}, committed entry ${commitIndex} of term ${core.termAt(commitIndex)} by counting`,
        )
      }
    }
    if (role !== view.role && (role === 'pre-candidate' || role === 'candidate')) this.#configurations.campaigns(id, core)
    view.role = role
    view.term = term
    if (commitIndex !== view.commitIndex) {
      view.commitIndex = commitIndex
      // What was committed in this step may have brought the next configuration with it.
      view.committedBy = view.configuration
    }
    view.configuration = core.configuration
  }

  #elected(id: NodeId, term: number): void {
    const known = this.#leaders.get(term)
    if (known !== undefined)
      throw new InvariantViolation('R1', `${id} leads term ${term}, which ${known} ${known === id ? 'led before' : 'leads too'}`)
    this.#leaders.set(term, id)
    this.#leadersToCheck.push({ id, term })
    this.elections++
  }

  /** The core handed out work for its disk. `leaderTermBefore` is the term that it led when the cycle began, or 0. */
  persistWork(id: NodeId, core: Consensus, work: PersistWork, leaderTermBefore: number): void {
    const log = this.#view(id).log
    const isSameLeadership = leaderTermBefore !== 0 && core.role === 'leader' && core.term === leaderTermBefore
    this.#configurations.persistWork(id, core, work)
    if (work.reset !== null) {
      const { index, term, keepsLater } = work.reset
      if (index > this.maxCommitted || this.#committed.termAt(index) !== term) {
        throw new InvariantViolation('R13', `${id} begins its log after ${index} of term ${term}, which is not what was committed there`)
      }
      if (!keepsLater && log.lastIndex > index && log.hashAt(index) === this.#committed.hashAt(index)) {
        throw new InvariantViolation('R13', `${id} drops what follows on ${index} in its log, where it agrees with the snapshot`)
      }
      if (isSameLeadership && log.hashAt(index) !== this.#committed.hashAt(index)) {
        throw new InvariantViolation(
          'R2',
          `${id}, leader of term ${leaderTermBefore}, has its log replaced by a snapshot up to ${index} and leads on`,
        )
      }
      log.restore(index, this.#committed, keepsLater)
    }
    if (work.truncateFrom !== null) {
      if (isSameLeadership) {
        throw new InvariantViolation('R2', `${id}, leader of term ${leaderTermBefore}, truncates its log from ${work.truncateFrom}`)
      }
      if (work.entries.length > 0 && (work.entries[0] as Entry).index !== work.truncateFrom) {
        throw new InvariantViolation('R3', `${id}: truncated from ${work.truncateFrom}, but the entries start at ${(work.entries[0] as Entry).index}`)
      }
      log.truncateFrom(work.truncateFrom)
    }
    for (const entry of work.entries) {
      if (entry.index !== log.lastIndex + 1) throw new InvariantViolation('R3', `${id}: entry ${entry.index} follows ${log.lastIndex}`)
      if (entry.term < log.lastTerm)
        throw new InvariantViolation('R3', `${id}: entry ${entry.index} of term ${entry.term} follows one of term ${log.lastTerm}`)
      this.#registerPrefix('R3', id, entry.index, entry.term, log.append(entry))
    }
  }

  /** After a drain, when the persist work is known: everything that needs the log. */
  drained(id: NodeId, core: Consensus): void {
    const view = this.#view(id)
    const log = view.log
    if (core.lastIndex !== log.lastIndex || core.termAt(log.lastIndex) !== log.lastTerm) {
      throw new InvariantViolation('R3', `${id}: log ends at ${core.lastIndex}, but its persist work ends at ${log.lastIndex}`)
    }
    this.#configurations.drained(id, core)
    while (this.#leadersToCheck.length > 0) {
      const { id: leader, term } = this.#leadersToCheck.pop() as { id: NodeId; term: number }
      this.#checkLeaderComplete(leader, term)
    }
    // Every commit index is compared, not only a new one: a core's log below it could have been replaced in memory.
    const hash = log.hashAt(view.commitIndex)
    const known = this.#committed.hashAt(view.commitIndex)
    if (known === undefined) this.#committedNew(id, core.term, view)
    else if (known !== hash)
      throw new InvariantViolation('R5', `${id}: what it committed up to ${view.commitIndex} differs from what was committed before`)
  }

  #checkLeaderComplete(leader: NodeId, term: number): void {
    let index = 0
    for (const [committedIn, last] of this.#committedInTerm) if (committedIn < term && last > index) index = last
    const hash = this.#view(leader).log.hashAt(index)
    if (hash !== this.#committed.hashAt(index))
      throw new InvariantViolation('R4', `${leader}, leader of term ${term}, lacks what was committed up to ${index}`)
  }

  #committedNew(id: NodeId, term: number, view: CoreView): void {
    const before = this.maxCommitted
    if (view.log.hashAt(before) !== this.#committed.hashAt(before)) {
      throw new InvariantViolation('R5', `${id} commits up to ${view.commitIndex} on another prefix than was committed up to ${before}`)
    }
    for (let index = before + 1; index <= view.commitIndex; index++) {
      this.#committed.push(view.log.termAt(index) as number, view.log.hashAt(index) as number)
      this.#committedUnder.push(view.committedBy)
    }
    this.#configurations.committed(id, view.commitIndex)
    this.#committedInTerm.set(term, view.commitIndex)
    this.#checkQuorum('R10', `${id} of term ${term} committed ${view.commitIndex}`, view.commitIndex)
    for (const [other, core] of this.#cores) {
      if (core.role !== 'leader') continue
      if (core.term > term) this.#checkLeaderComplete(other, core.term)
      else if (core.term < term) this.twoLeaders++
    }
  }

  #checkQuorum(invariant: string, what: string, index: number): void {
    const configuration = this.#committedUnder[index]
    if (configuration === undefined) return
    const hash = this.#committed.hashAt(index)
    if (hasQuorum(configuration, (id) => this.#disk(id).shape.hashAt(index) === hash)) return
    const holders = [...this.#disks.values()].filter(({ shape }) => shape.hashAt(index) === hash).map(({ id }) => id)
    const { voters, votersOutgoing } = configuration
    throw new InvariantViolation(
      invariant,
      `${what}, but only ${holders} hold it; the voters were ${voters}${votersOutgoing.length > 0 ? ` and ${votersOutgoing}` : ''}`,
    )
  }

  /** A work became durable. */
  stored(disk: SimulatedLogDisk, work: PersistWork): void {
    const before = this.#storedVotes.get(disk.id) as { term: number; vote: NodeId | null }
    const { term, vote } = disk.hardState
    if (term < before.term) throw new InvariantViolation('R6', `${disk.id}: the term on disk went back from ${before.term} to ${term}`)
    if (term === before.term && before.vote !== null && vote !== before.vote) {
      throw new InvariantViolation('R7', `${disk.id}: the vote of term ${term} on disk changed from ${before.vote} to ${vote}`)
    }
    before.term = term
    before.vote = vote
    const entries = work.entries
    if (entries.length > 0) {
      const last = entries[entries.length - 1] as Entry
      const hash = disk.shape.hashAt(last.index)
      if (hash !== undefined) this.#registerPrefix('R3', `disk of ${disk.id}`, last.index, last.term, hash)
      if (disk.lastIndex !== last.index)
        throw new InvariantViolation('R3', `disk of ${disk.id}: ${disk.lastIndex} entries after a write that ends at ${last.index}`)
      if (last.term > term) throw new InvariantViolation('R11', `disk of ${disk.id}: an entry of term ${last.term} is durable before that term is`)
    }
    if (work.truncateFrom !== null || work.reset !== null) this.#checkQuorum('R10', `disk of ${disk.id} was cut`, this.maxCommitted)
  }

  /** A message leaves its replica, for the network or for itself. */
  released(message: Message, core: Consensus): void {
    const { from, term } = message
    const disk = this.#disk(from)
    const durable = disk.hardState
    switch (message.type) {
      case 'pre-vote-request':
      case 'pre-vote-reply':
        return
      case 'heartbeat':
        this.#checkLeaderMessage(from, term)
        return
      case 'append-request': {
        this.#checkLeaderMessage(from, term)
        if (core.role !== 'leader' || core.term !== term) return
        const log = this.#view(from).log
        if (log.termAt(message.previousIndex) !== message.previousTerm) {
          throw new InvariantViolation(
            'R3',
            `${from} sends entries after ${message.previousIndex} of term ${message.previousTerm}, its own is of ${log.termAt(message.previousIndex)}`,
          )
        }
        let index = message.previousIndex
        for (const entry of message.entries) {
          index++
          if (entry.index !== index || entry.term !== log.termAt(index)) {
            throw new InvariantViolation(
              'R3',
              `${from} sends entry ${entry.index} of term ${entry.term} where its log has ${index} of term ${log.termAt(index)}`,
            )
          }
        }
        if (message.commitIndex > core.commitIndex)
          throw new InvariantViolation('R10', `${from} announces commit ${message.commitIndex}, its own is ${core.commitIndex}`)
        return
      }
      case 'heartbeat-reply':
        if (durable.term < term) throw new InvariantViolation('R11', `${from} answers a heartbeat of term ${term}, its disk is at ${durable.term}`)
        return
      case 'vote-request':
        if (durable.term < term || (durable.term === term && durable.vote !== from)) {
          throw new InvariantViolation(
            'R11',
            `${from} asks for votes of term ${term}; on disk are term ${durable.term} and a vote for ${durable.vote}`,
          )
        }
        return
      case 'vote-reply': {
        if (durable.term < term) throw new InvariantViolation('R11', `${from} answers in term ${term}, its disk is at ${durable.term}`)
        if (!message.granted) return
        if (durable.term === term && durable.vote !== message.to) {
          throw new InvariantViolation('R11', `${from} votes for ${message.to} in term ${term}; the vote on disk is for ${durable.vote}`)
        }
        const votes = this.#votes.get(from) as Map<number, NodeId>
        const before = votes.get(term)
        if (before !== undefined && before !== message.to)
          throw new InvariantViolation('R7', `${from} votes for ${before} and for ${message.to} in term ${term}`)
        votes.set(term, message.to)
        return
      }
      case 'append-reply': {
        if (durable.term < term) throw new InvariantViolation('R11', `${from} acknowledges in term ${term}, its disk is at ${durable.term}`)
        // Once the disk is at a later term, the entries may rightly be gone: the vote for that term was only given in knowledge of them.
        if (!message.accepted || durable.term !== term) return
        const match = message.matchIndex
        if (disk.lastIndex < match)
          throw new InvariantViolation('R11', `${from} acknowledges up to ${match} in term ${term}, its disk ends at ${disk.lastIndex}`)
        const leader = this.#leaders.get(term)
        if (leader === undefined) throw new InvariantViolation('R1', `${from} acknowledges an append of term ${term}, which nobody leads`)
        const leaderCore = this.#cores.get(leader)
        if (leaderCore?.role !== 'leader' || leaderCore.term !== term) return
        // Below its snapshot it agrees with whatever is committed, which the leader of an old term may not know.
        if (match < disk.base.index) return
        if (disk.shape.hashAt(match) !== this.#view(leader).log.hashAt(match)) {
          throw new InvariantViolation('R3', `${from} acknowledges up to ${match} in term ${term}, but its log differs from the leader's there`)
        }
        return
      }
      case 'snapshot-offer':
      case 'timeout-now':
        if (this.#leaders.get(term) !== from)
          throw new InvariantViolation('R1', `${from} sends ${message.type} in term ${term}, which it does not lead`)
        return
      default: {
        const never: never = message
        throw new Error(`unknown message ${JSON.stringify(never)}`)
      }
    }
  }

  #checkLeaderMessage(from: NodeId, term: number): void {
    const leader = this.#leaders.get(term)
    if (leader !== from) throw new InvariantViolation('R1', `${from} speaks as the leader of term ${term}, which ${leader ?? 'nobody'} leads`)
  }

  /** A replica applies an entry; returns the hash of its state afterwards. */
  applied(id: NodeId, entry: Entry, appliedBefore: number, stateBefore: number): number {
    if (entry.index !== appliedBefore + 1) throw new InvariantViolation('R17', `${id} applies ${entry.index} after ${appliedBefore}`)
    const state = mixHash(stateBefore, this.#hashOfEntry(entry))
    const known = this.#stateHashes[entry.index]
    if (known === undefined) {
      if (entry.index > this.maxCommitted) throw new InvariantViolation('R5', `${id} applies ${entry.index}, which nobody committed`)
      this.#stateHashes[entry.index] = state
      this.#applied[entry.index] = entry
    } else if (known !== state) {
      throw new InvariantViolation('R14', `${id}: the state after ${entry.index} differs from what another replica had, or it had before`)
    }
    return state
  }

  #hashOfEntry(entry: Entry): number {
    let hash = mixHash(entry.kind, entry.term)
    for (let position = 0; position < entry.data.length; position++) hash = Math.imul(hash ^ (entry.data[position] as number), 0x01000193)
    return hash
  }

  /** The state's hash at an applied index, as the first replica that got there had it. */
  stateHashAt(index: number): number {
    return this.#stateHashes[index] as number
  }

  /** A replica takes another's state for its own. */
  installed(id: NodeId, snapshot: { index: number; term: number; stateHash: number; configuration: Configuration }, appliedBefore: number): void {
    const { index, term, stateHash, configuration } = snapshot
    if (index <= appliedBefore) throw new InvariantViolation('R13', `${id} goes back from ${appliedBefore} to a snapshot up to ${index}`)
    if (stateHash !== this.#stateHashes[index] || term !== this.#committed.termAt(index)) {
      throw new InvariantViolation('R13', `${id} installs a snapshot up to ${index} of term ${term} that is not the state there`)
    }
    this.#configurations.installed(id, index, configuration)
  }

  /** The core is about to be told of a snapshot up to an index: it raises the commit index, on a leader too. */
  restored(id: NodeId, index: number): void {
    const view = this.#view(id)
    view.commitIndex = Math.max(view.commitIndex, index)
  }

  /** Configurations that leaders appended and that may still turn up in logs. */
  get pendingConfigurations(): Configuration[] {
    return this.#configurations.pending
  }

  /** Everything that was applied, in order. */
  get appliedEntries(): readonly Entry[] {
    return this.#applied.filter((entry) => entry !== undefined)
  }

  /** A client is told that its write at this index is done. */
  acknowledge(id: NodeId, commandId: number, index: number): void {
    if (index > this.maxCommitted) throw new InvariantViolation('R8', `${id} acknowledges the write at ${index}, which nobody committed`)
    this.#checkQuorum('R8', `${id} acknowledges the write at ${index}`, index)
    this.#acknowledged.set(commandId, index)
  }

  /** Where a command was acknowledged; undefined when it was not. */
  indexOf(commandId: number): number | undefined {
    return this.#acknowledged.get(commandId)
  }

  /** A read was confirmed at an index; `floor` is `maxCommitted` when it was asked. */
  readConfirmed(id: NodeId, index: number, floor: number): void {
    if (index < floor) throw new InvariantViolation('R15', `${id} confirms a read at ${index}; ${floor} was committed before it was asked`)
  }

  /** At the end: every acknowledged write is where it was acknowledged, in the log of each of these. */
  checkFinal(members: readonly NodeId[], commandIdOf: (entry: Entry) => number | undefined): void {
    for (const [commandId, index] of this.#acknowledged) {
      const entry = this.#applied[index]
      if (entry === undefined || commandIdOf(entry) !== commandId) {
        throw new InvariantViolation('R8', `the acknowledged write ${commandId} at ${index} is not what was applied there`)
      }
      for (const id of members) {
        if (this.#disk(id).shape.hashAt(index) !== this.#committed.hashAt(index)) {
          throw new InvariantViolation('R8', `the acknowledged write ${commandId} at ${index} is not in the log of ${id}`)
        }
      }
    }
  }
}
