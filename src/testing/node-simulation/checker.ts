/**
 * The oracle of the node simulator: it sees every replica and every disk of every life, and checks global truth, never one node's opinion. Numbers are those of
 * the hazards catalogue.
 *
 * R1 one leader a term · R2 a leader never truncates · R3 log matching, in memory and on disk · R4 leader completeness · R5 one index, one command, everywhere and for ever
 * R6 term, commit and applied index never go back within a life, nor the durable term at all · R7 one vote a term, across crashes
 * R8 what is acknowledged is on the disks of a quorum, and committed entries are never truncated there · R10 what is applied is on the disks of a quorum
 * R11 what a vote or an acknowledgement promises is on the sender's disk when it is sent · R14, R17 each entry's answers are those of the reference machine: K3 a repeated request gets its first answer,
 * K4 what failed is told so, K2 versions rise by one · L4 nothing expires before its time, by the true time between the proposals
 * R15 a read is served from a state that holds all that was acknowledged before it was asked · D1 what is loaded is what was stored
 */
import { crc32 } from 'node:zlib'
import type { CommandResult } from '../../engine/command.js'
import { nodeOf } from '../../engine/identity.js'
import type { GroupWork, LoadedLog, LogBase } from '../../engine/log-store.js'
import type { Replica } from '../../engine/replica.js'
import { hasQuorum } from '../../raft/quorum.js'
import type { Configuration, Consensus, HardState, LogReset, Message, NodeId, PersistWork } from '../../raft/types.js'
import { InvariantViolation } from '../simulation/invariants.js'
import { extendHash, LogShape } from '../simulation/log-shape.js'
import { type Proposed, ReferenceMachine } from './reference.js'
import type { World } from './world.js'

/** What one disk holds of one group, as far as it was reported or must be assumed. */
export class StoredLog {
  /** The replica whose log it is; null until it has run. */
  member: NodeId | null = null
  /** All of the log, also what is compacted away: that was there. */
  readonly shape = new LogShape()
  hardState: HardState = { term: 0, vote: null }
  /** A record of it was damaged, and it was not found whole since. */
  isDamaged = false
}

/** What the checker remembers of a running core. */
interface CoreView {
  readonly node: string
  readonly member: NodeId
  readonly group: number
  readonly log: LogShape
  role: string
  term: number
  commitIndex: number
  appliedIndex: number
}

export interface GroupTruth {
  /** Prefix hash of each committed index; index 0 is 0. */
  readonly committed: LogShape
  readonly leaders: Map<number, string>
  /** What the latest leader takes for the group's configuration; null before the first. */
  configuration: Configuration | null
  configuredIn: number
  /** The highest term that had a leader. */
  highestTerm: number
  /** By index: the highest term that had a leader when the entry was first seen to be committed. */
  readonly committedIn: number[]
  /** By index and term: the hash of the prefix. */
  readonly prefixes: Map<number, number>[]
  readonly votes: Map<string, string>
  readonly reference: ReferenceMachine
  /** The last index whose effect a client was told of. */
  acknowledged: number
}

export class NodeInvariants {
  readonly #groups = new Map<number, GroupTruth>()
  readonly #stored = new Map<string, Map<number, StoredLog>>()
  /** By member and group: logs that were lost. */
  readonly #lost = new Map<string, LogShape>()
  readonly #views = new WeakMap<Consensus, CoreView>()
  readonly #world: World
  /** By group and bytes: when entries were proposed. */
  readonly #proposed = new Map<string, Proposed>()
  elections = 0
  /** Messages that were looked at when they left. */
  sendsChecked = 0
  readonly reached: Record<string, number> = {}

  /** No clock runs faster than `clockRate`. */
  constructor(groups: readonly { readonly id: number }[], world: World, clockRate: number) {
    this.#world = world
    const onExpired = (what: string, livedUs: number, ttlMs: number) => {
      this.reach('expired')
      if (livedUs * clockRate < ttlMs * 1000) this.violation('L4', `${what} expires after ${livedUs / 1000} ms, and was to live ${ttlMs} ms`)
    }
    for (const { id } of groups) {
      this.#groups.set(id, {
        committed: new LogShape(),
        leaders: new Map(),
        configuration: null,
        configuredIn: 0,
        highestTerm: 0,
        committedIn: [],
        prefixes: [],
        votes: new Map(),
        reference: new ReferenceMachine(onExpired),
        acknowledged: 0,
      })
    }
  }

  /** Ends the run: told to the world too, since what is thrown in the midst of the product's code may be caught there. */
  violation(invariant: string, message: string): never {
    const violation = new InvariantViolation(invariant, `at ${(this.#world.nowUs / 1e6).toFixed(6)} s: ${message}`)
    this.#world.fail(violation)
    throw violation
  }

  reach(state: string): void {
    this.reached[state] = (this.reached[state] ?? 0) + 1
  }

  group(id: number): GroupTruth {
    const group = this.#groups.get(id)
    if (group === undefined) return this.violation('exception', `there is no group ${id}`)
    return group
  }

  get groups(): IterableIterator<[number, GroupTruth]> {
    return this.#groups.entries()
  }

  stored(node: string, group: number): StoredLog {
    let groups = this.#stored.get(node)
    if (groups === undefined) {
      groups = new Map()
      this.#stored.set(node, groups)
    }
    let stored = groups.get(group)
    if (stored === undefined) {
      stored = new StoredLog()
      groups.set(group, stored)
    }
    return stored
  }

  /** A replica begins its log. */
  onCreated(node: string, group: number, base: LogBase): void {
    this.#forget(node, group)
    if (base.index !== 0) this.violation('R13', `${node} begins a log of group ${group} at index ${base.index}`)
  }

  /** A replica's log goes, with all that it promised: who comes later has another name. */
  onRemoved(node: string, group: number): void {
    this.#forget(node, group)
  }

  /** A record of the log was changed behind everybody's back. */
  onDamaged(node: string, group: number): void {
    const stored = this.#stored.get(node)?.get(group)
    if (stored !== undefined) stored.isDamaged = true
  }

  /** Whether a log on this node's disk was damaged, and not replaced yet. */
  hasDamage(node: string): boolean {
    return [...(this.#stored.get(node)?.values() ?? [])].some(({ isDamaged }) => isDamaged)
  }

  /** A disk is gone. */
  onWiped(node: string): void {
    for (const [group, stored] of this.#stored.get(node) ?? []) this.#keepLost(stored, group)
    this.#stored.delete(node)
  }

  #forget(node: string, group: number): void {
    this.#keepLost(this.#stored.get(node)?.get(group), group)
    this.#stored.get(node)?.delete(group)
  }

  /** What a member held when its log was lost counts for what was committed with its help before. */
  #keepLost(stored: StoredLog | undefined, group: number): void {
    if (stored !== undefined && stored.member !== null) this.#lost.set(`${stored.member} ${group}`, stored.shape)
  }

  /** Whether this member's log is where it should be: not wiped, damaged or destroyed. */
  isWhole(member: NodeId, group: number): boolean {
    const stored = this.#stored.get(nodeOf(member))?.get(group)
    return stored?.member === member && !stored.isDamaged
  }

  /**
   * Whether the groups can do without what this node has stored: no group is in the midst of a change, or has one before it, or another voter without its log, and the rest of the voters of each is
   * a majority. More than that no group promises to survive.
   */
  canLose(node: string, wanted: (group: number) => readonly string[]): boolean {
    for (const [group, { configuration }] of this.#groups) {
      if (configuration === null || configuration.votersOutgoing.length > 0) return false
      const { voters, learners } = configuration
      if (learners.length > 0 || voters.map(nodeOf).sort().join() !== [...wanted(group)].sort().join()) return false
      const whole = voters.filter((voter) => this.isWhole(voter, group))
      if (whole.length < voters.length) return false
      if (!voters.some((voter) => nodeOf(voter) === node)) continue
      if (whole.filter((voter) => nodeOf(voter) !== node).length * 2 <= voters.length) return false
    }
    return true
  }

  /** A write of the log store is sure to survive. */
  onStored(node: string, works: readonly GroupWork[]): void {
    for (const { group, work, compactTo } of works) {
      const stored = this.stored(node, group)
      if (compactTo !== undefined) this.#compact(node, group, stored.shape, compactTo)
      if (work === null) continue
      if (work.hardState !== null) this.#storeHardState(node, group, stored, work.hardState)
      if (work.reset !== null) this.#reset(node, group, stored.shape, work.reset)
      const first = work.entries[0]
      if (first === undefined) continue
      if (first.index <= stored.shape.lastIndex) this.#checkTruncation(node, group, stored.shape, work)
      if (first.index > stored.shape.lastIndex + 1) {
        this.violation('R3', `${node} stores entry ${first.index} of group ${group} after ${stored.shape.lastIndex}`)
      }
      stored.shape.truncateFrom(first.index)
      for (const entry of work.entries) this.#remember(group, entry.index, entry.term, stored.shape.append(entry), `${node}'s disk`)
    }
  }

  /** R13: the log may start anew only where a snapshot of what is committed reaches. */
  #reset(node: string, group: number, log: LogShape, { index, term, keepsLater }: LogReset): void {
    const { committed } = this.group(group)
    if (index > committed.lastIndex || committed.termAt(index) !== term) {
      this.violation('R13', `${node} resets its log of group ${group} to entry ${index} of term ${term}; committed is up to ${committed.lastIndex}`)
    }
    if (keepsLater && log.hashAt(index) === committed.hashAt(index)) return
    if (keepsLater) this.violation('R13', `${node} keeps what comes after entry ${index} of group ${group}, where its log is another`)
    this.reach('log-reset')
    this.#becomeCommitted(log, group, index)
  }

  /** The log is what is committed, up to this index. */
  #becomeCommitted(log: LogShape, group: number, index: number): void {
    const { committed } = this.group(group)
    log.truncateFrom(1)
    for (let at = 1; at <= index; at++) log.push(committed.termAt(at)!, committed.hashAt(at)!)
  }

  #compact(node: string, group: number, log: LogShape, { index, term }: LogBase): void {
    this.reach('log-compacted')
    const { committed } = this.group(group)
    if (index > committed.lastIndex || log.hashAt(index) !== committed.hashAt(index) || committed.termAt(index) !== term) {
      this.violation('R13', `${node} compacts its log of group ${group} up to entry ${index} of term ${term}, which is not committed there`)
    }
  }

  #storeHardState(node: string, group: number, stored: StoredLog, { term, vote }: HardState): void {
    if (term < stored.hardState.term)
      this.violation('R6', `the stored term of ${node} in group ${group} goes from ${stored.hardState.term} to ${term}`)
    if (vote !== null) this.#vote(stored.member ?? node, group, term, vote, 'stores')
    stored.hardState = { term, vote }
  }

  #vote(node: string, group: number, term: number, vote: string, does: string): void {
    const { votes } = this.group(group)
    const key = `${node} ${term}`
    const before = votes.get(key)
    if (before === undefined) votes.set(key, vote)
    else if (before !== vote) this.violation('R7', `${node} ${does} a vote for ${vote} in term ${term} of group ${group} after one for ${before}`)
  }

  #checkTruncation(node: string, group: number, shape: LogShape, work: PersistWork): void {
    const { committed } = this.group(group)
    const first = work.entries[0]!
    if (first.index > committed.lastIndex) return
    // The same entries again are no truncation; others in place of committed ones are.
    const hash = shape.hashAt(first.index - 1)
    if (hash === undefined) return
    if (shape.hashAt(first.index) === committed.hashAt(first.index) && extendHash(hash, first) !== committed.hashAt(first.index)) {
      // What it was given before the entry was committed may have waited for a disk that hung: then the others hold it without this one.
      const { configuration } = this.group(group)
      const holds = (member: NodeId): boolean => {
        const stored = this.#stored.get(nodeOf(member))?.get(group)
        return nodeOf(member) !== node && stored?.member === member && stored.shape.hashAt(first.index) === committed.hashAt(first.index)
      }
      if (configuration !== null && hasQuorum(configuration, holds)) return this.reach('late-truncation')
      this.violation('R8', `${node} replaces committed entry ${first.index} of group ${group} on its disk`)
    }
  }

  /** R3: index and term stand for one prefix, wherever they are seen. */
  #remember(group: number, index: number, term: number, hash: number, where: string): void {
    const { prefixes } = this.group(group)
    let terms = prefixes[index]
    if (terms === undefined) {
      terms = new Map()
      prefixes[index] = terms
    }
    const before = terms.get(term)
    if (before === undefined) terms.set(term, hash)
    else if (before !== hash) this.violation('R3', `two logs of group ${group} differ up to index ${index} of term ${term}; one is ${where}`)
  }

  /** D1: what a node finds at its start is what was stored. */
  onLoaded(node: string, group: number, loaded: LoadedLog): void {
    const stored = this.stored(node, group)
    const { shape, hardState } = stored
    if (loaded.hardState.term !== hardState.term || loaded.hardState.vote !== hardState.vote) {
      this.violation('D1', `${node} loads ${JSON.stringify(loaded.hardState)} of group ${group}, its disk was given ${JSON.stringify(hardState)}`)
    }
    if (loaded.lastIndex !== shape.lastIndex) {
      this.violation('D1', `${node} loads a log of group ${group} up to ${loaded.lastIndex}, its disk was given one up to ${shape.lastIndex}`)
    }
    // What was damaged was of no use any more.
    stored.isDamaged = false
    const { base, terms, lastIndex } = loaded
    if (shape.termAt(base.index) !== base.term) {
      this.violation(
        'D1',
        `${node} loads a log of group ${group} that starts after entry ${base.index} of term ${base.term}, its disk was given term ${shape.termAt(base.index)}`,
      )
    }
    for (const [position, { term, firstIndex }] of terms.entries()) {
      const end = terms[position + 1]?.firstIndex ?? lastIndex + 1
      for (const index of [firstIndex, end - 1]) {
        if (shape.termAt(index) !== term) {
          this.violation('D1', `${node} loads term ${term} at index ${index} of group ${group}, its disk was given ${shape.termAt(index)}`)
        }
      }
    }
  }

  /** A core begins to run, from what is on its node's disk. */
  onCore(node: string, { group, member, core, appliedIndex }: Replica): void {
    const stored = this.stored(node, group)
    if (stored.member !== null && stored.member !== member)
      this.violation('R7', `${member} takes the log of group ${group} that was ${stored.member}'s`)
    stored.member = member
    const log = new LogShape()
    log.copyFrom(stored.shape)
    this.#views.set(core, { node, member, group, log, role: core.role, term: core.term, commitIndex: core.commitIndex, appliedIndex })
    if (appliedIndex > log.lastIndex)
      this.violation('D1', `${node} starts group ${group} with a state at ${appliedIndex} and a log up to ${log.lastIndex}`)
  }

  /** After each drain: what the core holds now. */
  onDrained(core: Consensus, work: PersistWork | null): void {
    const view = this.#views.get(core)
    if (view === undefined) return
    const { node, group, log } = view
    const truth = this.group(group)
    if (work !== null && work.reset !== null) this.#reset(node, group, log, work.reset)
    if (work !== null && work.entries.length > 0) {
      const first = work.entries[0]!
      if (first.index <= log.lastIndex && log.hashAt(first.index) !== extendHash(log.hashAt(first.index - 1)!, first)) {
        this.reach('truncation')
        if (view.role === 'leader' && core.role === 'leader' && core.term === view.term) {
          this.violation('R2', `${node}, leader of term ${core.term} in group ${group}, truncates its log from ${first.index}`)
        }
      }
      log.truncateFrom(first.index)
      for (const entry of work.entries) this.#remember(group, entry.index, entry.term, log.append(entry), `${node}'s memory`)
    }
    const { term, commitIndex } = core
    if (term < view.term) this.violation('R6', `the term of ${node} in group ${group} goes from ${view.term} to ${term}`)
    if (commitIndex < view.commitIndex)
      this.violation('R6', `the commit index of ${node} in group ${group} goes from ${view.commitIndex} to ${commitIndex}`)
    if (core.role === 'leader' && term >= truth.configuredIn) {
      truth.configuredIn = term
      truth.configuration = core.configuration
    }
    if (core.role === 'leader' && (view.role !== 'leader' || term !== view.term)) this.#onLeader(view, truth, term)
    view.role = core.role
    view.term = term
    view.commitIndex = commitIndex
  }

  #onLeader({ member: node, group, log }: CoreView, truth: GroupTruth, term: number): void {
    this.elections++
    const other = truth.leaders.get(term)
    if (other !== undefined && other !== node) this.violation('R1', `${node} and ${other} both lead group ${group} in term ${term}`)
    truth.leaders.set(term, node)
    truth.highestTerm = Math.max(truth.highestTerm, term)
    // Votes may come late: what later leaders have committed since is none of this one's business.
    let index = truth.committed.lastIndex
    while (index > 0 && truth.committedIn[index]! >= term) index--
    if (log.hashAt(index) !== truth.committed.hashAt(index)) {
      this.violation('R4', `${node} leads group ${group} in term ${term} without committed entry ${index}; its log ends at ${log.lastIndex}`)
    }
  }

  /** R13: a snapshot has become the state: further on than what it replaces, and of what is committed. */
  onRestored(core: Consensus, index: number, term: number): void {
    const view = this.#views.get(core)
    if (view === undefined) return
    const { node, group, log } = view
    this.reach('snapshot-installed')
    if (index <= view.appliedIndex)
      this.violation('R13', `${node} installs a snapshot of group ${group} at ${index}, its state was at ${view.appliedIndex}`)
    const { committed } = this.group(group)
    if (index > committed.lastIndex || committed.termAt(index) !== term) {
      this.violation(
        'R13',
        `${node} installs a snapshot of group ${group} at entry ${index} of term ${term}; committed is up to ${committed.lastIndex}`,
      )
    }
    view.appliedIndex = index
    if (log.hashAt(index) !== committed.hashAt(index)) this.#becomeCommitted(log, group, index)
  }

  /** The core was told that its state machine has applied up to this index. */
  onApplied(core: Consensus, index: number): void {
    const view = this.#views.get(core)
    if (view !== undefined) this.#advance(core, view, index)
  }

  #advance(core: Consensus, view: CoreView, index: number): void {
    const { node, group } = view
    if (index < view.appliedIndex) this.violation('R6', `the applied index of ${node} in group ${group} goes from ${view.appliedIndex} to ${index}`)
    this.#catchUp(core, view, index)
    for (let at = view.appliedIndex + 1; at <= index; at++) this.#commit(core, view, at)
    view.appliedIndex = index
  }

  /** What the core has taken in since its last drain may be committed, and applied, already. */
  #catchUp(core: Consensus, { node, group, log }: CoreView, index: number): void {
    let same = Math.min(index, log.lastIndex)
    while (same > 0 && log.termAt(same) !== core.termAt(same)) {
      // Compacted away: it was seen long ago.
      if (core.termAt(same) === undefined) break
      same--
    }
    if (same >= index) return
    log.truncateFrom(same + 1)
    for (const entry of core.entries(same + 1, index, Number.MAX_SAFE_INTEGER)) {
      this.#remember(group, entry.index, entry.term, log.append(entry), `${node}'s memory`)
    }
  }

  #commit(core: Consensus, { node, group, log }: CoreView, index: number): void {
    const truth = this.group(group)
    const { committed } = truth
    const hash = log.hashAt(index)
    if (hash === undefined) return this.violation('R5', `${node} applies entry ${index} of group ${group}, its log ends at ${log.lastIndex}`)
    if (index <= committed.lastIndex) {
      if (committed.hashAt(index) !== hash) this.violation('R5', `${node} applies another entry ${index} of group ${group} than was applied before`)
      return
    }
    if (index > committed.lastIndex + 1)
      this.violation('R17', `${node} applies entry ${index} of group ${group}, and nobody has applied ${committed.lastIndex + 1}`)
    committed.push(log.termAt(index)!, hash)
    truth.committedIn[index] = truth.highestTerm
    this.#checkDurable('R10', core, group, index, `entry ${index} of group ${group} is applied by ${node}`)
  }

  /** The entry is on the disks of a quorum, by the configuration that this core goes by. */
  #checkDurable(invariant: string, core: Consensus, group: number, index: number, what: string): void {
    const { committed } = this.group(group)
    const hash = committed.hashAt(index)
    const holds = (member: NodeId): boolean => {
      const stored = this.#stored.get(nodeOf(member))?.get(group)
      const shape = stored?.member === member ? stored.shape : this.#lost.get(`${member} ${group}`)
      return shape?.hashAt(index) === hash
    }
    const { configuration } = core
    if (hasQuorum(configuration, holds)) return
    // It may have been committed before a later configuration came into force.
    const earlier = core.configurationAt(index)
    if (earlier !== undefined && hasQuorum(earlier, holds)) return
    // One that was made to join applies what it is sent before it has heard who the members are: the leader knows.
    const { configuration: ledBy } = this.group(group)
    if (configuration.voters.length === 0 && ledBy !== null && hasQuorum(ledBy, holds)) return
    const holders = [...configuration.voters, ...configuration.votersOutgoing].filter(holds)
    this.violation(invariant, `${what}, and of ${JSON.stringify(configuration)} only ${holders.join(', ') || 'nobody'} holds it durably`)
  }

  /** A leader, or who takes itself for one, proposes an entry. */
  onProposed({ group }: Replica, data: Uint8Array): void {
    const key = entryKey(group, data)
    const lastUs = this.#world.nowUs
    this.#proposed.set(key, { firstUs: this.#proposed.get(key)?.firstUs ?? lastUs, lastUs })
  }

  /** A replica has applied a command: its bytes must be the log's, its answers the reference's. */
  onCommand(core: Consensus, index: number, data: Uint8Array, results: readonly CommandResult[]): void {
    const view = this.#views.get(core)
    if (view === undefined) return
    const { node, group, log } = view
    this.#catchUp(core, view, index)
    const term = log.termAt(index)
    const before = log.hashAt(index - 1)
    if (term === undefined || before === undefined || extendHash(before, { term, index, kind: 1, data }) !== log.hashAt(index)) {
      this.violation('R5', `${node} applies at index ${index} of group ${group} what its log does not hold there`)
    }
    if (index !== view.appliedIndex + 1 && log.termAt(view.appliedIndex + 1) === undefined) {
      this.violation('R17', `${node} applies entry ${index} of group ${group} after ${view.appliedIndex}`)
    }
    this.#advance(core, view, index)
    const { reference } = this.group(group)
    const proposed = this.#proposed.get(entryKey(group, data)) ?? { firstUs: 0, lastUs: this.#world.nowUs }
    const problem = reference.problemOf(index, data, results, proposed)
    if (problem !== null) {
      this.violation(
        problem,
        `${node} answers entry ${index} of group ${group} with ${JSON.stringify(results)}, not ${JSON.stringify(reference.expect(index, data, proposed))}`,
      )
    }
  }

  /** A client's write is answered. */
  onAcknowledged({ member, group, core, appliedIndex }: Replica): void {
    this.#checkDurable('R8', core, group, appliedIndex, `${member} acknowledges entry ${appliedIndex} of group ${group}`)
    const truth = this.group(group)
    truth.acknowledged = Math.max(truth.acknowledged, appliedIndex)
  }

  /** What a read that is asked now must see. */
  acknowledged(group: number): number {
    return this.group(group).acknowledged
  }

  onRead({ member, group, appliedIndex }: Replica, needed: number): void {
    if (appliedIndex >= needed) return
    this.violation('R15', `${member} serves a read of group ${group} at index ${appliedIndex}; ${needed} was acknowledged before it was asked`)
  }

  /** R11: a message leaves its sender. */
  onSend(node: string, group: number, message: Message): void {
    const { from, to, term } = message
    const stored = this.stored(node, group)
    this.sendsChecked++
    if (stored.isDamaged && stored.member === from && message.type !== 'pre-vote-request') {
      this.violation('D2', `${from} sends a ${message.type} of group ${group} from a damaged log`)
    }
    switch (message.type) {
      case 'vote-request':
        if (stored.hardState.term < term || (stored.hardState.term === term && stored.hardState.vote !== from)) {
          this.violation('R11', `${from} asks for votes of term ${term} in group ${group}; its disk has ${JSON.stringify(stored.hardState)}`)
        }
        return
      case 'vote-reply':
        if (!message.granted) return
        this.#vote(from, group, term, to, 'sends')
        if (stored.hardState.term < term || (stored.hardState.term === term && stored.hardState.vote !== to)) {
          this.violation('R11', `${from} votes for ${to} in term ${term} of group ${group}; its disk has ${JSON.stringify(stored.hardState)}`)
        }
        return
      case 'append-reply':
        if (message.accepted && stored.hardState.term <= term && stored.shape.lastIndex < message.matchIndex) {
          this.violation('R11', `${from} acknowledges entry ${message.matchIndex} of group ${group}; its disk ends at ${stored.shape.lastIndex}`)
        }
        return
      default:
    }
  }
}

function entryKey(group: number, data: Uint8Array): string {
  return `${group} ${data.length} ${crc32(data)}`
}
