/**
 * Known bugs, put back from outside: each wraps or replaces a part of a simulated replica, so that the product's code has no hooks for tests.
 * The simulator is only worth something if it catches every one of them within a budget of seeds.
 *
 * Numbers in the descriptions are rows of the hazards catalogue (D1.1 and so on).
 */
import type { AppendRequest, Consensus, Entry, HardState, Input, Message, NodeId, Output, PersistWork, RaftOptions } from '../../raft/types.js'
import { coreMutations } from './core-mutations.js'
import { CoreWrapper } from './core-wrapper.js'
import { SimulatedLogDisk } from './log-disk.js'
import { drawBareStorm, type SimulationPlan } from './plan.js'
import { SimulatedReplica } from './replica.js'
import { type SimulationParts, soundParts } from './simulation.js'

/** A known bug that can be put back by name. */
export interface Mutation {
  readonly name: string
  /** What goes wrong, and in which real system it did. */
  readonly description: string
  /** The parts of a simulation that has the bug. */
  parts(): SimulationParts
  /** What a seed runs, when it is not what it runs without the bug. */
  readonly plan?: (seed: number) => SimulationPlan
}

type CoreClass = new (inner: ReturnType<SimulationParts['createCore']>, options: RaftOptions) => CoreWrapper

function core(name: string, description: string, Wrapper: CoreClass): Mutation {
  return { name, description, parts: () => ({ ...soundParts, createCore: (options) => new Wrapper(soundParts.createCore(options), options) }) }
}

function disk(name: string, description: string, Disk: typeof SimulatedLogDisk): Mutation {
  return {
    name,
    description,
    parts: () => ({
      ...soundParts,
      createDisk: (id, queue, random, model, observer, configuration) => new Disk(id, queue, random, model, observer, configuration),
    }),
  }
}

function host(name: string, description: string, Replica: typeof SimulatedReplica): Mutation {
  return {
    name,
    description,
    parts: () => ({
      ...soundParts,
      createReplica: (id, log, environment, model, clockRate) => new Replica(id, log, environment, model, clockRate),
    }),
  }
}

class VoteNotStored extends SimulatedLogDisk {
  protected override store(work: PersistWork): void {
    super.store(work.hardState === null ? work : { ...work, hardState: { term: work.hardState.term, vote: null } })
  }
}

class TermNotStored extends SimulatedLogDisk {
  protected override store(work: PersistWork): void {
    super.store({ ...work, hardState: null })
  }
}

class HardStateAfterEntries extends SimulatedLogDisk {
  #waiting: HardState | null = null

  protected override store(work: PersistWork): void {
    const hardState = this.#waiting
    this.#waiting = work.hardState
    super.store({ ...work, hardState })
  }
}

class StaleTailKept extends SimulatedLogDisk {
  protected override store(work: PersistWork): void {
    const end = work.truncateFrom === null ? 0 : work.truncateFrom + work.entries.length
    const tail = work.truncateFrom === null ? [] : this.read(end, this.lastIndex, Number.MAX_SAFE_INTEGER)
    super.store(work)
    for (const entry of tail) this.add(entry)
  }
}

/** A repeated append cuts what follows it on disk, as a core that truncates without a conflict would. */
class RepeatedAppendTruncates extends SimulatedReplica {
  override receive(message: Message): void {
    if (message.type === 'append-request' && message.term >= this.disk.hardState.term && message.entries.length > 0) {
      const last = message.entries[message.entries.length - 1] as Entry
      if (this.disk.shape.termAt(last.index) === last.term && last.index < this.disk.lastIndex)
        (this.disk as ForgetfulDisk).forgetFrom(last.index + 1)
    }
    super.receive(message)
  }
}

class ForgetfulDisk extends SimulatedLogDisk {
  forgetFrom(index: number): void {
    this.cut(index)
  }

  protected override store(work: PersistWork): void {
    const first = work.entries[0]
    const gap = first !== undefined && first.index > this.lastIndex + 1
    super.store(gap ? { ...work, entries: [] } : work)
  }
}

/** Releases everything at once. */
class AcknowledgesBeforeSync extends SimulatedReplica {
  protected override gate(_sequence: number, messages: readonly Message[]): void {
    for (const message of messages) this.release(message)
  }
}

class SelfAcknowledgesBeforeSync extends SimulatedReplica {
  protected override gate(sequence: number, messages: readonly Message[]): void {
    for (const message of messages) {
      if (message.to === this.id && message.type === 'append-reply') this.release(message)
      else super.gate(sequence, [message])
    }
  }
}

class VotesBeforeSync extends SimulatedReplica {
  protected override gate(sequence: number, messages: readonly Message[]): void {
    for (const message of messages) {
      if (message.type === 'vote-reply') this.release(message)
      else super.gate(sequence, [message])
    }
  }
}

class ForgetsHardState extends SimulatedReplica {
  protected override build(options: RaftOptions) {
    return super.build({ ...options, hardState: { term: 0, vote: null } })
  }
}

class AppliedIndexAheadOfState extends SimulatedReplica {
  protected override restoreState(appliedIndex: number): void {
    super.restoreState(Math.max(0, appliedIndex - 1))
    this.appliedIndex = appliedIndex
  }
}

class AppliesTwiceAfterRestart extends SimulatedReplica {
  protected override restoreState(appliedIndex: number): void {
    super.restoreState(appliedIndex)
    this.appliedIndex = Math.max(0, appliedIndex - 1)
  }
}

class FlushesStateAheadOfLog extends SimulatedReplica {
  protected override flushableIndex(): number {
    return this.disk.lastIndex
  }
}

class AppliesWhatIsAboutToBeTruncated extends SimulatedReplica {
  protected override readToApply(_core: Consensus, firstIndex: number, lastIndex: number, maxBytes: number): readonly Entry[] {
    return this.disk.read(firstIndex, lastIndex, maxBytes)
  }
}

class InstallsWhatIsOlder extends SimulatedReplica {
  protected override install(snapshot: Parameters<SimulatedReplica['replaceState']>[0]): void {
    this.replaceState(snapshot)
  }
}

/** Between the switch of the state and the reset of the log a crash leaves a log that does not reach the state. */
class ForgetsToResetTheLog extends SimulatedReplica {
  protected override resetLog(): void {}
}

class ResetKeepsTheLog extends SimulatedLogDisk {
  override restore(reset: Parameters<SimulatedLogDisk['restore']>[0]): void {
    super.restore({ ...reset, keepsLater: reset.index < this.lastIndex })
  }
}

/** Counts acknowledgements by itself and commits by them. */
class OwnCounting extends CoreWrapper {
  protected readonly id: NodeId
  protected readonly voters: readonly NodeId[]
  #matches = new Map<NodeId, number>()
  #term = 0
  #counted: number

  constructor(inner: CoreWrapper['inner'], options: RaftOptions) {
    super(inner)
    this.id = options.id
    this.voters = options.configurations[0]!.configuration.voters
    this.#counted = options.commitIndex
  }

  /** How many must hold an entry. */
  protected needed(): number {
    return Math.floor(this.voters.length / 2) + 1
  }

  /** Whether an entry of an older term may be counted. */
  protected countsOldTerms(): boolean {
    return false
  }

  override get commitIndex(): number {
    return Math.max(this.inner.commitIndex, this.#counted)
  }

  override step(input: Input): void {
    if (input.type === 'applied') {
      this.inner.step({ type: 'applied', index: Math.min(input.index, this.inner.commitIndex) })
      return
    }
    this.inner.step(input)
    if (this.inner.role !== 'leader') return
    if (this.inner.term !== this.#term) {
      this.#term = this.inner.term
      this.#matches = new Map()
    }
    if (input.type !== 'message' || input.message.type !== 'append-reply') return
    const { from, term, accepted, matchIndex } = input.message
    if (!accepted || term !== this.#term) return
    this.#matches.set(from, Math.max(matchIndex, this.#matches.get(from) ?? 0))
    const sorted = this.voters.map((voter) => this.#matches.get(voter) ?? 0).sort((a, b) => b - a)
    const index = Math.min(sorted[this.needed() - 1] as number, this.inner.lastIndex)
    if (index > this.#counted && (this.countsOldTerms() || this.inner.termAt(index) === this.#term)) this.#counted = index
  }

  override drain(): Output {
    const output = this.inner.drain()
    return {
      ...output,
      sendNow: output.sendNow.map((message) =>
        message.type === 'append-request' ? { ...message, commitIndex: Math.max(message.commitIndex, this.#counted) } : message,
      ),
    }
  }
}

class CommitsOldTermsByCounting extends OwnCounting {
  protected override countsOldTerms(): boolean {
    return true
  }
}

class CommitsWithHalf extends OwnCounting {
  protected override needed(): number {
    return Math.ceil(this.voters.length / 2)
  }
}

class FollowerCommitsBlindly extends CoreWrapper {
  #blind = 0

  override get commitIndex(): number {
    return Math.max(this.inner.commitIndex, this.#blind)
  }

  override step(input: Input): void {
    if (input.type === 'applied') {
      this.inner.step({ type: 'applied', index: Math.min(input.index, this.inner.commitIndex) })
      return
    }
    this.inner.step(input)
    if (input.type !== 'message' || input.message.type !== 'append-request') return
    const message: AppendRequest = input.message
    if (message.term !== this.inner.term || this.inner.termAt(message.previousIndex) !== message.previousTerm) return
    this.#blind = Math.max(this.#blind, Math.min(message.commitIndex, this.inner.lastIndex))
  }
}

/** Answers reads by itself. */
abstract class OwnReads extends CoreWrapper {
  #answers: { id: number; index: number }[] = []

  protected abstract answersAtOnce(): boolean

  override get dirty(): boolean {
    return this.inner.dirty || this.#answers.length > 0
  }

  override step(input: Input): void {
    if (input.type === 'read' && this.inner.role === 'leader' && this.answersAtOnce()) {
      this.#answers.push({ id: input.id, index: this.inner.commitIndex })
    } else this.inner.step(input)
  }

  override drain(): Output {
    const output = this.inner.drain()
    const answers = this.#answers
    this.#answers = []
    return { ...output, reads: [...output.reads, ...answers] }
  }
}

class ReadsWithoutQuorum extends OwnReads {
  protected answersAtOnce(): boolean {
    return true
  }
}

class ReadsBeforeOwnCommit extends OwnReads {
  protected answersAtOnce(): boolean {
    return this.inner.termAt(this.inner.commitIndex) !== this.inner.term
  }
}

class LosesReadsOnStepDown extends CoreWrapper {
  readonly #reads = new Set<number>()
  #stepped = false

  override step(input: Input): void {
    const led = this.inner.role === 'leader'
    if (input.type === 'read' && led) this.#reads.add(input.id)
    this.inner.step(input)
    if (led && this.inner.role !== 'leader') this.#stepped = true
  }

  override drain(): Output {
    const output = this.inner.drain()
    for (const { id } of output.reads) this.#reads.delete(id)
    if (!this.#stepped) return output
    this.#stepped = false
    return { ...output, rejected: output.rejected.filter(({ id }) => !this.#reads.has(id)) }
  }
}

/** Changes messages before the core sees them. */
abstract class Tampered extends CoreWrapper {
  protected abstract tamper(message: Message): Message

  override step(input: Input): void {
    this.inner.step(input.type === 'message' ? { type: 'message', message: this.tamper(input.message) } : input)
  }
}

class VoteIgnoresLog extends Tampered {
  protected tamper(message: Message): Message {
    if (message.type !== 'vote-request' && message.type !== 'pre-vote-request') return message
    return { ...message, lastTerm: Number.MAX_SAFE_INTEGER, lastIndex: Number.MAX_SAFE_INTEGER }
  }
}

class AppendIgnoresPreviousTerm extends Tampered {
  protected tamper(message: Message): Message {
    if (message.type !== 'append-request') return message
    return { ...message, previousTerm: this.inner.termAt(message.previousIndex) ?? message.previousTerm }
  }
}

/** Takes replies of an older term, and so of an older leadership, for its own. */
class CountsOldAcknowledgements extends Tampered {
  readonly #sent = new Map<NodeId, AppendRequest>()

  protected tamper(message: Message): Message {
    const sent = this.#sent.get(message.from)
    if (message.type !== 'append-reply' || sent === undefined || message.term >= sent.term) return message
    return { ...message, term: sent.term, session: sent.session, sequence: sent.sequence }
  }

  override drain(): Output {
    const output = this.inner.drain()
    for (const message of output.sendNow) if (message.type === 'append-request') this.#sent.set(message.to, message)
    return output
  }
}

class CountsOldReadRounds extends Tampered {
  #round = 0

  protected tamper(message: Message): Message {
    return message.type === 'heartbeat-reply' ? { ...message, round: Math.max(message.round, this.#round) } : message
  }

  override drain(): Output {
    const output = this.inner.drain()
    for (const message of output.sendNow) if (message.type === 'heartbeat') this.#round = Math.max(this.#round, message.round)
    return output
  }
}

class TwoVotesInATerm extends CoreWrapper {
  override drain(): Output {
    const output = this.inner.drain()
    return {
      ...output,
      sendAfterPersist: output.sendAfterPersist.map((message) =>
        message.type === 'vote-reply' && message.term === this.inner.term && this.inner.role === 'follower' ? { ...message, granted: true } : message,
      ),
    }
  }
}

/** Known bugs around the core. */
const outerMutations: readonly Mutation[] = [
  disk('vote-not-persisted', 'The vote is not in the hard state that is written (D1.1, D1.2)', VoteNotStored),
  disk('term-not-persisted', 'The term is never written (D1.2)', TermNotStored),
  disk('hard-state-after-entries', 'The hard state is written by the write after the one that needs it (D1.3)', HardStateAfterEntries),
  disk('stale-tail-kept', 'A conflict replaces entries and keeps what followed them (D2.12)', StaleTailKept),
  {
    name: 'repeated-append-truncates',
    description: 'A repeated or late append cuts entries that do not conflict (D2.11)',
    parts: () => ({
      ...soundParts,
      createDisk: (id, queue, random, model, observer, configuration) => new ForgetfulDisk(id, queue, random, model, observer, configuration),
      createReplica: (id, log, environment, model, clockRate) => new RepeatedAppendTruncates(id, log, environment, model, clockRate),
    }),
  },
  host('acknowledge-before-sync', 'What must wait for the disk is sent at once (D1.2, D1.5)', AcknowledgesBeforeSync),
  host('self-acknowledgement-before-sync', 'The leader counts itself before its own disk is done (D1.4)', SelfAcknowledgesBeforeSync),
  host('vote-before-sync', 'Votes are sent before they are durable (D1.2)', VotesBeforeSync),
  host('amnesia', 'A restart forgets term and vote (p5)', ForgetsHardState),
  host('applied-index-ahead', 'The applied index is stored apart from the data, and ahead of it (D1.7)', AppliedIndexAheadOfState),
  host('applied-twice', 'The applied index is stored apart from the data, and behind it (D1.7)', AppliesTwiceAfterRestart),
  host('applies-stale-log', 'Committed entries are read from a log whose truncation is still in flight', AppliesWhatIsAboutToBeTruncated),
  host('state-ahead-of-log', 'The state of entries whose log write is still in flight is flushed', FlushesStateAheadOfLog),
  host('snapshot-moves-back', 'A snapshot that is older than the state is installed (D6.47)', InstallsWhatIsOlder),
  host('log-not-reset', 'After a crash the log does not reach the snapshot that was installed, and nobody looks (D6.52)', ForgetsToResetTheLog),
  disk('reset-keeps-log', 'The log store keeps entries that follow on another entry than the snapshot ends with (D6.47)', ResetKeepsTheLog),
  core('commit-old-term-by-count', 'Entries of older terms are committed by counting (D2.14)', CommitsOldTermsByCounting),
  core('quorum-off-by-one', 'Half of an even number of voters is taken for a majority (D2.15)', CommitsWithHalf),
  core(
    'follower-commits-blindly',
    'A follower commits up to the leader’s commit index beyond what this append matched (D2.13)',
    FollowerCommitsBlindly,
  ),
  core('read-without-quorum', 'A leader answers reads without asking whether it still leads (D4.34)', ReadsWithoutQuorum),
  core('read-before-own-commit', 'A new leader answers reads before it has committed in its term (D4.33)', ReadsBeforeOwnCommit),
  core('read-round-ignored', 'A late heartbeat reply confirms reads that were asked after it was sent (D4.34)', CountsOldReadRounds),
  core('read-lost-on-step-down', 'Reads that wait are forgotten when leadership is lost (D4.37)', LosesReadsOnStepDown),
  core('vote-ignores-log', 'A vote is given without comparing the logs', VoteIgnoresLog),
  core('append-ignores-previous-term', 'Entries are appended without comparing the term before them', AppendIgnoresPreviousTerm),
  {
    ...core('old-acknowledgements-counted', 'A reply of an older leadership counts in this one (D2.21)', CountsOldAcknowledgements),
    plan: drawBareStorm,
  },
  core('two-votes-in-a-term', 'A second vote is given in a term (D1.1)', TwoVotesInATerm),
]

/** All known bugs. */
export const mutations: readonly Mutation[] = [...outerMutations, ...coreMutations]
