/**
 * A group of cores on one thread, with simulated time, network and disks: for tests of single rules, which script what happens. (The big seeded
 * simulator lives in src/testing.)
 *
 * 1. Nothing happens but by `run`, `settle` and `advance`; the same seed and script give the same run. 2. Messages pass through the real codec, so replicas
 * share no objects. 3. A disk holds what was completed and nothing else; a crash loses the rest. 4. After every step the safety rules are
 * checked over all replicas: one leader a term, one vote a term, one command an index, commit and term never back, match < next, nothing spoken before it is durable.
 */
import { Reader, Writer } from '../../../src/base/codec.js'
import { RaftCore } from '../../../src/raft/core.js'
import { decodeConfiguration, decodeMessage, encodeMessage } from '../../../src/raft/message-codec.js'
import {
  type Configuration,
  type ConfigurationRecord,
  type Entry,
  EntryKind,
  type HardState,
  type InstallRequest,
  type LogReset,
  type Message,
  type MessageAfterPersist,
  type NodeId,
  type Output,
  type PersistWork,
  type RaftOptions,
} from '../../../src/raft/types.js'
import { entriesAsRuns } from './entries.js'
import { seededRandom } from './random.js'

const textDecoder = new TextDecoder()

/** What one replica has on disk. */
export class Disk {
  hardState: HardState = { term: 0, vote: null }
  base: Omit<LogReset, 'keepsLater'>
  /** Entry i is at position i - base.index - 1. */
  entries: Entry[] = []

  constructor(configuration: Configuration) {
    this.base = { index: 0, term: 0, configuration }
  }

  get lastIndex(): number {
    return this.base.index + this.entries.length
  }

  write(work: PersistWork): void {
    if (work.hardState !== null) this.hardState = work.hardState
    if (work.reset !== null) {
      const { index, term, configuration, keepsLater } = work.reset
      if (keepsLater !== (this.at(index)?.term === term)) throw new Error(`a reset at ${index} of term ${term} that says ${keepsLater}`)
      this.entries = keepsLater ? this.range(index + 1, this.lastIndex) : []
      this.base = { index, term, configuration }
    }
    if (work.truncateFrom !== null) this.entries.length = Math.min(this.entries.length, work.truncateFrom - this.base.index - 1)
    for (const entry of work.entries) {
      if (entry.index !== this.lastIndex + 1) throw new Error(`the write leaves a gap before ${entry.index}`)
      this.entries.push(entry)
    }
  }

  at(index: number): Entry | undefined {
    return this.entries[index - this.base.index - 1]
  }

  range(firstIndex: number, lastIndex: number): Entry[] {
    return firstIndex <= this.base.index ? [] : this.entries.slice(firstIndex - this.base.index - 1, lastIndex - this.base.index)
  }

  configurations(): ConfigurationRecord[] {
    const later = this.entries.filter(({ kind }) => kind === EntryKind.configuration)
    return [this.base, ...later.map(({ index, data }) => ({ index, configuration: decodeConfiguration(data) }))]
  }

  /** Drops the entries up to an index. */
  compact(index: number): void {
    const before = this.configurations().filter((record) => record.index <= index)
    const { term } = this.at(index)!
    this.entries = this.range(index + 1, this.lastIndex)
    this.base = { index, term, configuration: before.at(-1)!.configuration }
  }
}

interface Pending {
  readonly work: PersistWork | null
  readonly messages: readonly MessageAfterPersist[]
}

export class Replica {
  readonly id: NodeId
  readonly disk: Disk
  core: RaftCore
  isUp = true
  /** Drains whose writes are not done, oldest first. */
  pending: Pending[] = []
  /** Commands applied since the last restart, with gaps where the harness restarted it at its applied index. */
  applied: Entry[] = []
  appliedIndex = 0
  readonly accepted = new Map<number, { index: number; term: number }>()
  readonly rejected = new Map<number, string>()
  readonly reads = new Map<number, number>()
  readonly configured = new Set<number>()
  readonly transferred = new Set<number>()
  /** Snapshots that it was told to install, and has not, when the cluster does not do so by itself. */
  installs: InstallRequest[] = []

  constructor(id: NodeId, core: RaftCore, configuration: Configuration) {
    this.id = id
    this.core = core
    this.disk = new Disk(configuration)
  }

  get commands(): string[] {
    return this.applied.filter(({ kind }) => kind === EntryKind.command).map(({ data }) => textDecoder.decode(data))
  }
}

export interface ClusterOptions {
  readonly voters: number
  readonly learners?: number
  /** Replicas that know of no members yet. */
  readonly joiners?: number
  /** `instant` installs each snapshot that is offered from the applied state of the one who offers; `manual` waits for `install`. */
  readonly installs?: 'instant' | 'manual'
  readonly seed?: number
  /** Time between sending and arriving. Default 1. */
  readonly latencyMs?: number
  /** `instant` completes each write at once; `manual` waits for `completeWrites`. */
  readonly disk?: 'instant' | 'manual'
  /** False leaves committed entries unapplied. */
  readonly apply?: boolean
  readonly raft?: Partial<RaftOptions>
  /** What a replica holds before it starts. */
  readonly initial?: Record<NodeId, { hardState: HardState; entries: readonly Entry[] }>
}

interface InFlight {
  readonly message: Message
  readonly atMs: number
  readonly order: number
}

export class Cluster {
  readonly options: ClusterOptions
  readonly configuration: Configuration
  readonly replicas = new Map<NodeId, Replica>()
  readonly random: () => number
  nowMs = 0
  disk: 'instant' | 'manual'
  /** Everything sent so far, in order, before the network did anything to it. */
  sent: Message[] = []
  /** Returns false to lose a message. */
  filter: (message: Message) => boolean = () => true
  #inFlight: InFlight[] = []
  #order = 0
  readonly #leaders = new Map<number, NodeId>()
  readonly #votes = new Map<string, NodeId>()
  readonly #committed = new Map<number, { term: number; command: string }>()
  readonly #seen = new Map<NodeId, { term: number; commitIndex: number }>()

  constructor(options: ClusterOptions) {
    this.options = options
    this.disk = options.disk ?? 'instant'
    this.random = seededRandom(options.seed ?? 1)
    const members = options.voters + (options.learners ?? 0)
    const ids = Array.from({ length: members + (options.joiners ?? 0) }, (_, position) => `n${position + 1}`)
    this.configuration = { voters: ids.slice(0, options.voters), learners: ids.slice(options.voters, members), votersOutgoing: [] }
    const nobody: Configuration = { voters: [], learners: [], votersOutgoing: [] }
    for (const id of ids) {
      const replica = new Replica(id, undefined as unknown as RaftCore, ids.indexOf(id) < members ? this.configuration : nobody)
      const initial = options.initial?.[id]
      if (initial !== undefined) {
        replica.disk.hardState = initial.hardState
        replica.disk.entries = [...initial.entries]
      }
      this.replicas.set(id, replica)
      replica.core = this.#makeCore(replica)
    }
  }

  #makeCore(replica: Replica): RaftCore {
    const { hardState, entries, base, lastIndex } = replica.disk
    return new RaftCore({
      id: replica.id,
      configurations: replica.disk.configurations(),
      hardState,
      terms: entriesAsRuns(entries),
      lastIndex,
      snapshotIndex: base.index,
      snapshotTerm: base.term,
      commitIndex: replica.appliedIndex,
      nowMs: this.nowMs,
      electionTimeoutMs: 100,
      heartbeatIntervalMs: 10,
      maxInflightBytes: 4096,
      maxAppendBytes: 1024,
      maxTailBytes: 1 << 20,
      maxUncommittedBytes: 1 << 20,
      random: this.random,
      ...this.options.raft,
    })
  }

  get(id: NodeId): Replica {
    const replica = this.replicas.get(id)
    if (replica === undefined) throw new Error(`no replica ${id}`)
    return replica
  }

  core(id: NodeId): RaftCore {
    return this.get(id).core
  }

  get up(): Replica[] {
    return [...this.replicas.values()].filter(({ isUp }) => isUp)
  }

  /** The leader of the latest term, if there is one. */
  get leader(): Replica | undefined {
    return this.up.filter(({ core }) => core.role === 'leader').sort((a, b) => b.core.term - a.core.term)[0]
  }

  /** Steps an input and does what follows from it at this instant. */
  step(id: NodeId, ...inputs: Parameters<RaftCore['step']>): void {
    this.core(id).step(...inputs)
    this.#settleReplica(this.get(id))
  }

  /** Delivers a message as if it had just arrived. */
  deliver(message: Message): void {
    this.step(message.to, { type: 'message', message })
  }

  propose(id: NodeId, command: string, proposal = ++this.#order): number {
    this.step(id, { type: 'propose', id: proposal, data: new TextEncoder().encode(command) })
    return proposal
  }

  read(id: NodeId, lease = false, read = ++this.#order): number {
    this.core(id).step({ type: 'tick', nowMs: this.nowMs })
    this.step(id, { type: 'read', id: read, lease })
    return read
  }

  /** Drains, writes and applies until the replica has nothing more to do at this instant. */
  #settleReplica(replica: Replica): void {
    while (replica.isUp) {
      this.check()
      if (replica.core.dirty) this.#take(replica, replica.core.drain())
      else if (this.disk === 'instant' && replica.pending.length > 0) this.#completeOne(replica)
      else if (!this.#apply(replica)) break
    }
  }

  #take(replica: Replica, output: Output): void {
    for (const { id, index, term } of output.accepted) replica.accepted.set(id, { index, term })
    for (const { id, reason } of output.rejected) replica.rejected.set(id, reason)
    for (const { id, index } of output.reads) replica.reads.set(id, index)
    for (const { id } of output.configured) replica.configured.add(id)
    for (const { id } of output.transferred) replica.transferred.add(id)
    if (output.install !== null) {
      if (this.options.installs === 'manual') replica.installs.push(output.install)
      else this.install(replica.id, output.install.from)
    }
    for (const message of output.sendNow) this.#send(message)
    if (output.persist !== null || output.sendAfterPersist.length > 0) {
      replica.pending.push({ work: output.persist, messages: output.sendAfterPersist })
    }
    for (const { peer, firstIndex, lastIndex, maxBytes } of output.fetch) {
      const entries: Entry[] = []
      let bytes = 0
      for (const entry of replica.disk.range(firstIndex, lastIndex)) {
        bytes += entry.data.length
        if (entries.length > 0 && bytes > maxBytes) break
        entries.push(entry)
      }
      replica.core.step({ type: 'fetched', peer, entries })
    }
  }

  /** Replaces the state of a replica by what another has applied. */
  install(id: NodeId, from: NodeId): void {
    const replica = this.get(id)
    const source = this.get(from)
    const index = source.appliedIndex
    if (index <= replica.appliedIndex) return
    replica.installs = []
    replica.applied = [...source.applied]
    replica.appliedIndex = index
    this.step(id, { type: 'restored', index, term: source.core.termAt(index)!, configuration: source.core.configurationAt(index)! })
  }

  /** The log store of a replica drops entries up to an index. */
  compact(id: NodeId, index: number): void {
    const replica = this.get(id)
    replica.disk.compact(index)
    this.step(id, { type: 'compacted', index })
  }

  configure(id: NodeId, voters: readonly NodeId[], learners: readonly NodeId[] = [], request = ++this.#order): number {
    this.step(id, { type: 'configure', id: request, voters, learners })
    return request
  }

  transfer(id: NodeId, to: NodeId | null, request = ++this.#order): number {
    this.step(id, { type: 'transfer', id: request, to })
    return request
  }

  #completeOne(replica: Replica): void {
    const { work, messages } = replica.pending.shift()!
    if (work !== null) {
      replica.disk.write(work)
      replica.core.step({ type: 'persisted', sequence: work.sequence })
    }
    for (const message of messages) {
      this.#checkDurable(replica, message)
      if (message.to === replica.id) replica.core.step({ type: 'message', message })
      else this.#send(message)
    }
  }

  /** Lets the disk of a replica finish writes: so many drains, or all. */
  completeWrites(id: NodeId, count = Number.POSITIVE_INFINITY): void {
    const replica = this.get(id)
    for (let done = 0; done < count && replica.pending.length > 0; done++) this.#completeOne(replica)
    this.#settleReplica(replica)
  }

  #apply(replica: Replica): boolean {
    if (this.options.apply === false) return false
    const { commitIndex } = replica.core
    if (replica.appliedIndex >= commitIndex) return false
    const inMemory = replica.core.entries(replica.appliedIndex + 1, commitIndex, Number.POSITIVE_INFINITY)
    // The disk may still hold what a truncation under way replaces: only what the core knows by the same term is in its log.
    const onDisk = () => replica.disk.range(replica.appliedIndex + 1, commitIndex).filter(({ index, term }) => replica.core.termAt(index) === term)
    const entries = inMemory.length > 0 ? inMemory : onDisk()
    for (const entry of entries) {
      if (entry.index !== replica.appliedIndex + 1) break
      this.#checkApplied(replica.id, entry)
      replica.applied.push(entry)
      replica.appliedIndex = entry.index
    }
    replica.core.step({ type: 'applied', index: replica.appliedIndex })
    return true
  }

  #send(message: Message): void {
    this.sent.push(message)
    if (!this.filter(message)) return
    const writer = new Writer()
    encodeMessage(writer, message)
    const decoded = decodeMessage(new Reader(writer.finish()), message.from, message.to)
    this.post(decoded, this.options.latencyMs ?? 1)
  }

  /** Puts a message on the network, past the filter. */
  post(message: Message, delayMs: number): void {
    this.#inFlight.push({ message, atMs: this.nowMs + delayMs, order: ++this.#order })
  }

  /** Moves time forward, delivering and ticking at the instants at which something is due. */
  advance(durationMs: number): void {
    const endMs = this.nowMs + durationMs
    for (const replica of this.up) this.#settleReplica(replica)
    for (;;) {
      const dueMs = Math.min(...this.#inFlight.map(({ atMs }) => atMs), ...this.up.map(({ core }) => core.nextTickMs))
      if (dueMs > endMs) break
      this.nowMs = Math.max(this.nowMs, dueMs)
      this.#deliverDue()
      this.#tickDue()
    }
    this.nowMs = endMs
  }

  #deliverDue(): void {
    const due = this.#inFlight.filter(({ atMs }) => atMs <= this.nowMs).sort((a, b) => a.atMs - b.atMs || a.order - b.order)
    this.#inFlight = this.#inFlight.filter(({ atMs }) => atMs > this.nowMs)
    for (const { message } of due) {
      const replica = this.get(message.to)
      if (!replica.isUp) continue
      replica.core.step({ type: 'tick', nowMs: this.nowMs })
      this.deliver(message)
    }
  }

  #tickDue(): void {
    for (const replica of this.up) {
      if (replica.core.nextTickMs > this.nowMs) continue
      replica.core.step({ type: 'tick', nowMs: this.nowMs })
      if (replica.core.nextTickMs <= this.nowMs)
        throw new Error(`${replica.id} asks for a tick at ${replica.core.nextTickMs} again, at ${this.nowMs}`)
      this.#settleReplica(replica)
    }
  }

  /** Moves time forward until a condition holds; fails after `limitMs` of simulated time. */
  until(condition: () => boolean, what: string, limitMs = 5000): void {
    const endMs = this.nowMs + limitMs
    while (!condition()) {
      if (this.nowMs >= endMs) throw new Error(`${what}: not within ${limitMs} simulated ms\n${this.describe()}`)
      this.advance(1)
    }
  }

  /** Waits for a leader that has committed in its term; for a given one by losing whatever others ask until it has won. */
  elect(id?: NodeId): Replica {
    const { filter } = this
    if (id !== undefined) this.filter = (message) => (message.from === id || message.type.endsWith('-reply')) && filter(message)
    this.until(() => this.leader !== undefined && (id === undefined || this.leader.id === id), `a leader${id === undefined ? '' : ` ${id}`}`)
    this.filter = filter
    const leader = this.leader!
    this.until(() => leader.core.commitIndex === leader.core.lastIndex, 'the leader commits in its term')
    return leader
  }

  cut(...ids: NodeId[]): void {
    this.filter = ({ from, to }) => !ids.includes(from) && !ids.includes(to)
  }

  /** Only messages within one of the sides pass. */
  partition(...sides: NodeId[][]): void {
    this.filter = ({ from, to }) => sides.some((side) => side.includes(from) && side.includes(to))
  }

  heal(): void {
    this.filter = () => true
  }

  dropInFlight(): Message[] {
    const dropped = this.#inFlight.map(({ message }) => message)
    this.#inFlight = []
    return dropped
  }

  crash(id: NodeId): void {
    const replica = this.get(id)
    replica.isUp = false
    replica.pending = []
    // A state store never keeps what its log could still lose: that is its host's part of the bargain.
    replica.appliedIndex = Math.min(replica.appliedIndex, replica.core.status().durableIndex)
  }

  restart(id: NodeId): void {
    const replica = this.get(id)
    replica.isUp = true
    replica.pending = []
    this.#seen.delete(id)
    replica.core = this.#makeCore(replica)
    replica.installs = []
  }

  describe(): string {
    return this.up.map(({ core }) => JSON.stringify({ ...core.status(), nextTickMs: core.nextTickMs })).join('\n')
  }

  /** What leaves after the disk was done speaks for what the disk holds. */
  #checkDurable({ id, disk }: Replica, message: MessageAfterPersist): void {
    // A granted pre-vote echoes a term that nobody has entered.
    if (message.type === 'pre-vote-reply' && message.granted) return
    if (disk.hardState.term < message.term) throw new Error(`${id} speaks of term ${message.term}, its disk has ${disk.hardState.term}`)
    if (disk.hardState.term > message.term) return
    if (message.type === 'vote-reply' && message.granted) {
      if (disk.hardState.vote !== message.to) throw new Error(`${id} votes for ${message.to}, its disk says ${disk.hardState.vote}`)
      const key = `${id} ${message.term}`
      if ((this.#votes.get(key) ?? message.to) !== message.to) throw new Error(`${id} votes twice in term ${message.term}`)
      this.#votes.set(key, message.to)
    }
    if (message.type === 'append-reply' && message.accepted && message.matchIndex > disk.lastIndex) {
      throw new Error(`${id} acknowledges ${message.matchIndex}, its disk ends at ${disk.lastIndex}`)
    }
  }

  check(): void {
    for (const { id, core } of this.up) {
      const { role, term, commitIndex, lastIndex } = core
      if (role === 'leader') {
        const known = this.#leaders.get(term) ?? id
        if (known !== id) throw new Error(`${known} and ${id} lead term ${term}`)
        this.#leaders.set(term, id)
        for (const peer of this.replicas.keys()) {
          const progress = core.progressOf(peer)
          if (progress !== undefined && progress.matchIndex >= progress.nextIndex)
            throw new Error(`match ${progress.matchIndex} >= next ${progress.nextIndex}`)
        }
      } else if (core.uncommittedBytes !== 0) throw new Error(`${id} counts ${core.uncommittedBytes} uncommitted bytes but does not lead`)
      const seen = this.#seen.get(id)
      if (seen !== undefined && (seen.term > term || seen.commitIndex > commitIndex)) throw new Error(`${id} went back: ${JSON.stringify(seen)}`)
      this.#seen.set(id, { term, commitIndex })
      if (commitIndex > lastIndex) throw new Error(`${id} commits ${commitIndex} of ${lastIndex}`)
    }
  }
  /** An index has one command, whoever applies it and whenever. */
  #checkApplied(id: NodeId, entry: Entry): void {
    const committed = { term: entry.term, command: textDecoder.decode(entry.data) }
    const before = this.#committed.get(entry.index) ?? committed
    if (before.term !== committed.term || before.command !== committed.command) {
      throw new Error(`${id} applied ${JSON.stringify(committed)} at ${entry.index}, where ${JSON.stringify(before)} was`)
    }
    this.#committed.set(entry.index, committed)
  }
}
