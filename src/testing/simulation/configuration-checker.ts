/**
 * The part of the oracle that knows who takes part: which configuration each log holds, and whether it may.
 *
 * R12 a leader appends a configuration only when the one before it is committed, as is an entry of its own term; from one to the next either the voters stay, or a joint configuration of
 * both is entered, or the joint one is left for its incoming half. What a core takes for the configuration in force is the last one in its log, from the moment it is in there.
 * R13 a snapshot is the committed state at its index, with the term and configuration of that index, and moves nobody back.
 * R16 only a voter campaigns, of the configuration in force or of one that may still be the committed one: nobody who knows that it was removed, no learner.
 */
import { decodeConfiguration } from '../../raft/message-codec.js'
import { isVoter, sameMembers } from '../../raft/quorum.js'
import {
  type Configuration,
  type ConfigurationRecord,
  type Consensus,
  type Entry,
  EntryKind,
  type NodeId,
  type PersistWork,
} from '../../raft/types.js'
import { InvariantViolation } from './violation.js'

function describe({ voters, learners, votersOutgoing }: Configuration): string {
  return `[${voters}${learners.length > 0 ? ` learners ${learners}` : ''}${votersOutgoing.length > 0 ? ` outgoing ${votersOutgoing}` : ''}]`
}

/** The configurations in one replica's log, as its persist work tells. */
class ConfigurationView {
  records: readonly ConfigurationRecord[] = []
  /** What was compared last: neither has changed since when both are the same. */
  #comparedRecord: ConfigurationRecord | undefined
  #comparedConfiguration: Configuration | undefined

  get last(): ConfigurationRecord {
    return this.records[this.records.length - 1] as ConfigurationRecord
  }

  compare(id: NodeId, core: Consensus): void {
    const { last } = this
    const { configuration } = core
    if (last === this.#comparedRecord && configuration === this.#comparedConfiguration) return
    this.#comparedRecord = last
    this.#comparedConfiguration = configuration
    if (!sameMembers(last.configuration, configuration)) {
      throw new InvariantViolation(
        'R12',
        `${id} goes by ${describe(configuration)}, the last in its log, at ${last.index}, is ${describe(last.configuration)}`,
      )
    }
  }
}

export class ConfigurationChecker {
  readonly #views = new Map<NodeId, ConfigurationView>()
  /** Those that were committed, by index, ascending. */
  #committed: ConfigurationRecord[] = []
  /** Those that leaders appended and that are not known to be committed: some may be under way to others, though no log holds them. */
  #pending: ConfigurationRecord[] = []

  #view(id: NodeId): ConfigurationView {
    let view = this.#views.get(id)
    if (view === undefined) {
      view = new ConfigurationView()
      this.#views.set(id, view)
    }
    return view
  }

  /** A core was built from what its disk holds. */
  started(id: NodeId, records: readonly ConfigurationRecord[], core: Consensus): void {
    const view = this.#view(id)
    view.records = records
    if (this.#committed.length === 0 && (records[0] as ConfigurationRecord).configuration.voters.length > 0)
      this.#committed.push(records[0] as ConfigurationRecord)
    view.compare(id, core)
  }

  /** The core handed out work for its disk, which `termOfCommit` tells the term of its commit index for. */
  persistWork(id: NodeId, core: Consensus, work: PersistWork): void {
    const view = this.#view(id)
    if (work.reset !== null) {
      const { index, configuration, keepsLater } = work.reset
      view.records = [{ index, configuration }, ...(keepsLater ? view.records.filter((record) => record.index > index) : [])]
    }
    const { truncateFrom } = work
    if (truncateFrom !== null && view.last.index >= truncateFrom) view.records = view.records.filter(({ index }) => index < truncateFrom)
    for (const entry of work.entries) {
      if (entry.kind !== EntryKind.configuration) continue
      const configuration = decodeConfiguration(entry.data)
      if (core.role === 'leader' && entry.term === core.term) this.#checkChange(id, core, view.last, entry, configuration)
      view.records = [...view.records, { index: entry.index, configuration }]
    }
  }

  #checkChange(id: NodeId, core: Consensus, before: ConfigurationRecord, entry: Entry, after: Configuration): void {
    this.#pending.push({ index: entry.index, configuration: after })
    const change = `${id}, leader of term ${core.term}, appends ${describe(after)} at ${entry.index}`
    if (before.index > core.commitIndex) throw new InvariantViolation('R12', `${change}; the one before it, at ${before.index}, is not committed`)
    if (core.termAt(core.commitIndex) !== core.term) throw new InvariantViolation('R12', `${change}, before an entry of that term is committed`)
    const plain = { ...after, learners: [] }
    const { voters, votersOutgoing } = before.configuration
    const isLeft = votersOutgoing.length > 0 && sameMembers(plain, { voters, learners: [], votersOutgoing: [] })
    const isEntered = votersOutgoing.length === 0 && sameMembers({ ...plain, voters: [] }, { voters: [], learners: [], votersOutgoing: voters })
    const isSame = votersOutgoing.length === 0 && sameMembers(plain, { voters, learners: [], votersOutgoing: [] })
    if (!isLeft && !isEntered && !isSame) throw new InvariantViolation('R12', `${change}, after ${describe(before.configuration)}`)
  }

  drained(id: NodeId, core: Consensus): void {
    this.#view(id).compare(id, core)
  }

  /** What a log may come to hold besides what logs hold now. */
  get pending(): Configuration[] {
    return this.#pending.map(({ configuration }) => configuration)
  }

  /** A replica was the first to commit up to an index. */
  committed(id: NodeId, commitIndex: number): void {
    if (this.#pending.length > 0) this.#pending = this.#pending.filter(({ index }) => index > commitIndex)
    const last = this.#committed[this.#committed.length - 1]?.index ?? -1
    const view = this.#view(id)
    if (view.last.index <= last) return
    for (const record of view.records) if (record.index > last && record.index <= commitIndex) this.#committed.push(record)
  }

  /** A replica begins to campaign. */
  campaigns(id: NodeId, core: Consensus): void {
    const { records } = this.#view(id)
    let first = records.length - 1
    while (first > 0 && (records[first] as ConfigurationRecord).index > core.commitIndex) first--
    // One whose removal is not committed may be the only one who can commit it.
    if (records.slice(first).some(({ configuration }) => isVoter(configuration, id)) || isVoter(core.configuration, id)) return
    throw new InvariantViolation('R16', `${id} is ${core.role}, but no voter in ${describe(core.configuration)}`)
  }

  /** A snapshot takes the place of a state. */
  installed(id: NodeId, index: number, configuration: Configuration): void {
    let expected: Configuration | undefined
    for (const record of this.#committed) if (record.index <= index) expected = record.configuration
    if (expected !== undefined && sameMembers(expected, configuration)) return
    throw new InvariantViolation(
      'R13',
      `${id} installs a snapshot up to ${index} with ${describe(configuration)}, not ${expected === undefined ? 'any' : describe(expected)}`,
    )
  }
}
