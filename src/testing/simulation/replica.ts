/**
 * One simulated replica: a real core, the host cycle around it (drain, send, persist, release, apply), a simulated log disk, and a state machine
 * that only knows what it applied.
 *
 * Invariants: 1. `sendNow` leaves at once, `sendAfterPersist` when every persist work drained with it or before it is durable;
 * 2. at most one write is in flight, and works are written in their order; 3. a crash keeps the disk and nothing else;
 * 4. committed entries are applied in order, from memory or from the disk; 5. after a restart the state machine starts at an index that its background flush may have
 * reached, never ahead of the log on disk.
 */
import type {
  Configuration,
  Consensus,
  Entry,
  FetchRequest,
  Input,
  Message,
  NodeId,
  Output,
  PersistWork,
  RaftOptions,
  RejectReason,
} from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import type { EventQueue } from './event-queue.js'
import type { InvariantChecker } from './invariants.js'
import { InvariantViolation } from './invariants.js'
import type { SimulatedLogDisk } from './log-disk.js'

/** The options of a core that do not depend on the replica. */
export type CoreLimits = Pick<
  RaftOptions,
  'electionTimeoutMs' | 'heartbeatIntervalMs' | 'maxInflightBytes' | 'maxAppendBytes' | 'maxTailBytes' | 'maxUncommittedBytes'
>

/** How a host behaves; drawn per run. */
export interface HostModel {
  readonly limits: CoreLimits
  /** Inputs wait this long to be drained together; 0 drains after each. */
  readonly cycleDelayUs: number
  /** Mean time between commit and apply. */
  readonly applyDelayUs: number
  /** Bytes of entries applied in one slice. */
  readonly applySliceBytes: number
  /** What a crash takes from the state machine, which is flushed in the background: nothing, the latest entries, or all. */
  readonly losesState: 'never' | 'some' | 'all'
  /** Whether each work of a write is reported by a `persisted` of its own. */
  readonly reportsEachWork: boolean
  /** Probability of a crash right after a step that changed role or term. */
  readonly crashAtChange: number
  /** Probability of a crash while a truncation is on its way to the disk. */
  readonly crashAtTruncation: number
}

/** What a replica needs from its surroundings. */
export interface ReplicaEnvironment {
  readonly queue: EventQueue
  readonly checker: InvariantChecker
  readonly configuration: Configuration
  createCore(options: RaftOptions): Consensus
  /** A random stream of this run. */
  stream(name: string): SeededRandom
  transmit(message: Message): void
  count(fault: string): void
  reach(state: string): void
  /** Records an event in the trace; `detail` is only called when somebody reads it. */
  trace(id: NodeId, event: string, a: number, b: number, detail: () => string): void
  proposalAccepted(replica: SimulatedReplica, commandId: number, index: number, term: number): void
  /** The proposal will not be acknowledged: refused, or replaced by another entry, or its replica died. */
  proposalEnded(replica: SimulatedReplica, commandId: number, outcome: 'refused' | 'lost' | 'unknown'): void
  acknowledged(replica: SimulatedReplica, commandId: number, index: number): void
  readEnded(replica: SimulatedReplica, readId: number, outcome: 'confirmed' | 'refused' | 'unknown', index: number): void
  applied(replica: SimulatedReplica, entry: Entry): void
}

interface Gate {
  readonly sequence: number
  readonly messages: readonly Message[]
}

/** What a paused replica finds when it goes on. */
const maxInbox = 20_000

export class SimulatedReplica {
  readonly id: NodeId
  readonly disk: SimulatedLogDisk
  core: Consensus | null = null
  paused = false
  appliedIndex = 0
  stateHash = 0
  /** How often it started. */
  incarnation = 0
  protected readonly environment: ReplicaEnvironment
  readonly #random: SeededRandom
  #clockRate: number
  /** The clock showed `#clockBaseMs` at `#clockBaseUs` of virtual time. */
  #clockBaseMs: number
  #clockBaseUs = 0
  #model: HostModel
  #inbox: Input[] = []
  #pending: PersistWork[] = []
  #inFlightSequence = 0
  #writing = false
  #lastWorkSequence = 0
  #inFlightFirst = 0
  #gates: Gate[] = []
  /** Completions that arrived while the process stood still. */
  #whilePaused: (() => void)[] = []
  #cycleScheduled = false
  /** While above zero, inputs only queue up: whoever raised it looks at the inbox when done. */
  #holding = 0
  #applyScheduled = false
  #timerAtUs = Number.POSITIVE_INFINITY
  #proposals = new Map<number, { readonly id: number; readonly term: number }>()
  #asked = new Set<number>()
  #reads = new Set<number>()
  #stateFloor = 0
  #lastStampMs = 0
  #flushable = 0

  constructor(id: NodeId, disk: SimulatedLogDisk, environment: ReplicaEnvironment, model: HostModel, clockRate = 1) {
    this.id = id
    this.disk = disk
    this.environment = environment
    this.#random = environment.stream(`host/${id}`)
    this.#model = model
    this.#clockRate = clockRate
    this.#clockBaseMs = this.#random.integer(0, 999_999)
  }

  get up(): boolean {
    return this.core !== null
  }

  set model(model: HostModel) {
    this.#model = model
  }

  /** Proposals and reads that wait for their end. */
  get waiting(): number {
    return this.#proposals.size + this.#asked.size + this.#reads.size
  }

  /** This node's monotonic clock. */
  #clockMs(): number {
    return this.#clockBaseMs + ((this.environment.queue.nowUs - this.#clockBaseUs) * this.#clockRate) / 1000
  }

  get clockRate(): number {
    return this.#clockRate
  }

  /** Lets the clock go on at another rate; it never goes back. */
  set clockRate(rate: number) {
    this.#clockBaseMs = this.#clockMs()
    this.#clockBaseUs = this.environment.queue.nowUs
    this.#clockRate = rate
    this.#timerAtUs = Number.POSITIVE_INFINITY
    this.#arm()
  }

  /** Starts, or starts again, from the disk. */
  start(): void {
    if (this.core !== null) throw new Error(`${this.id} is up already`)
    const environment = this.environment
    this.incarnation++
    const stateCeiling = Math.max(this.#stateFloor, Math.min(this.appliedIndex, this.#flushable))
    const { losesState } = this.#model
    let applied = stateCeiling
    if (losesState === 'some') applied = this.#random.integer(this.#stateFloor, stateCeiling)
    else if (losesState === 'all') applied = 0
    if (applied < this.appliedIndex) environment.count('state-lost')
    this.#stateFloor = applied
    this.restoreState(applied)
    const random = environment.stream(`core/${this.id}/${this.incarnation}`)
    const core = this.build({
      id: this.id,
      configuration: environment.configuration,
      hardState: this.disk.hardState,
      terms: this.disk.termRuns(),
      lastIndex: this.disk.lastIndex,
      snapshotIndex: 0,
      snapshotTerm: 0,
      commitIndex: applied,
      nowMs: this.#clockMs(),
      ...this.#model.limits,
      random: () => random.next(),
    })
    this.core = core
    this.#inbox = []
    this.#pending = []
    this.#inFlightSequence = 0
    this.#writing = false
    this.#lastWorkSequence = 0
    this.#gates = []
    this.#applyScheduled = false
    this.#cycleScheduled = false
    this.#holding = 0
    this.#whilePaused = []
    this.#timerAtUs = Number.POSITIVE_INFINITY
    this.#lastStampMs = 0
    this.paused = false
    environment.checker.started(this.id, core, applied)
    environment.trace(this.id, 'start', core.term, core.lastIndex, () => `term ${core.term}, ${core.lastIndex} entries, applied ${applied}`)
    this.#cycle()
  }

  /** The state machine comes back as it was at an index. */
  protected restoreState(appliedIndex: number): void {
    this.appliedIndex = appliedIndex
    this.stateHash = appliedIndex === 0 ? 0 : this.environment.checker.stateHashAt(appliedIndex)
  }

  /** Up to where the state machine may have been flushed: never ahead of the log on disk, which would make uncommitted entries of a stale log committed. */
  protected flushableIndex(core: Consensus): number {
    return core.status().durableIndex
  }

  /** Builds the core. */
  protected build(options: RaftOptions): Consensus {
    return this.environment.createCore(options)
  }

  /** Dies on the spot: keeps the disk, with or without the write in flight. */
  crash(): void {
    const core = this.core
    if (core === null) return
    const environment = this.environment
    this.#flushable = this.flushableIndex(core)
    this.core = null
    this.paused = false
    if (this.#pending.length > 0) environment.count('unwritten-lost')
    this.disk.crash()
    environment.checker.stopped(this.id)
    environment.trace(
      this.id,
      'crash',
      this.disk.hardState.term,
      this.disk.lastIndex,
      () => `disk: term ${this.disk.hardState.term}, ${this.disk.lastIndex} entries`,
    )
    const proposals = [...this.#proposals.values()]
    const asked = [...this.#asked]
    const reads = [...this.#reads]
    this.#proposals.clear()
    this.#asked.clear()
    this.#reads.clear()
    for (const { id } of proposals) environment.proposalEnded(this, id, 'unknown')
    for (const id of asked) environment.proposalEnded(this, id, 'unknown')
    for (const id of reads) environment.readEnded(this, id, 'unknown', 0)
  }

  /** Stops running, as by SIGSTOP: what arrives piles up. */
  pause(): void {
    if (this.core === null || this.paused) return
    this.paused = true
    this.environment.trace(this.id, 'pause', 0, 0, () => '')
  }

  /** Goes on. With `staleClock` what piled up is handled with the time read before the pause, as when the pause fell between the reading and its use. */
  resume(staleClock: boolean): void {
    if (this.core === null || !this.paused) return
    this.paused = false
    this.environment.trace(
      this.id,
      'resume',
      this.#inbox.length,
      staleClock ? 1 : 0,
      () => `${this.#inbox.length} inputs waiting${staleClock ? ', stale clock' : ''}`,
    )
    const completions = this.#whilePaused
    this.#whilePaused = []
    this.#holding++
    for (const completion of completions) completion()
    this.#holding--
    this.#cycle(staleClock)
  }

  /** A message arrives from the network. */
  receive(message: Message): void {
    if (this.core === null) return
    this.#enqueue({ type: 'message', message })
  }

  /** Asks for a command to be appended. */
  propose(commandId: number, data: Uint8Array): void {
    if (this.core === null) return
    this.#asked.add(commandId)
    this.#enqueue({ type: 'propose', id: commandId, data })
  }

  /** Asks for a linearizable read. */
  read(readId: number): void {
    if (this.core === null) return
    this.#reads.add(readId)
    this.#enqueue({ type: 'read', id: readId })
  }

  /** The transport's hint that a connection was lost. */
  unreachable(peer: NodeId): void {
    if (this.core === null) return
    this.#enqueue({ type: 'unreachable', peer })
  }

  #enqueue(input: Input): void {
    if (this.#inbox.length >= maxInbox && input.type === 'message') {
      this.environment.count('inbox-full')
      return
    }
    this.#inbox.push(input)
    this.#wake()
  }

  #wake(): void {
    if (this.paused || this.#holding > 0 || this.#cycleScheduled) return
    if (this.#model.cycleDelayUs === 0) {
      this.#cycle()
      return
    }
    this.#cycleScheduled = true
    const incarnation = this.incarnation
    this.environment.queue.schedule(this.#random.integer(0, this.#model.cycleDelayUs - 1), () => {
      if (this.core === null || this.incarnation !== incarnation) return
      this.#cycleScheduled = false
      if (!this.paused) this.#cycle()
    })
  }

  /** One turn of the host: stamp the time, take every input, hand out what they produced. */
  #cycle(staleClock = false): void {
    const core = this.core
    if (core === null) return
    this.#holding++
    const checker = this.environment.checker
    const role = core.role
    const term = core.term
    const leaderTerm = role === 'leader' ? term : 0
    try {
      if (!staleClock || this.#lastStampMs === 0) this.#lastStampMs = this.#clockMs()
      core.step({ type: 'tick', nowMs: this.#lastStampMs })
      checker.stepped(this.id, core)
      this.#drain(core, leaderTerm)
      while (this.#inbox.length > 0) {
        const inputs = this.#inbox
        this.#inbox = []
        for (const input of inputs) {
          core.step(input)
          checker.stepped(this.id, core)
        }
        this.#drain(core, leaderTerm)
      }
    } catch (cause) {
      if (cause instanceof InvariantViolation) throw cause
      throw new InvariantViolation('exception', `${this.id}: ${cause instanceof Error ? (cause.stack ?? cause.message) : String(cause)}`, { cause })
    }
    this.#holding--
    if (core.role !== role || core.term !== term) {
      this.environment.trace(
        this.id,
        core.role,
        core.term,
        core.lastIndex,
        () => `term ${core.term}, last ${core.lastIndex}, commit ${core.commitIndex}`,
      )
      if (this.#random.chance(this.#model.crashAtChange)) {
        this.environment.count('crash-at-change')
        this.crash()
        this.onCrashedItself(this)
        return
      }
    }
    this.#scheduleApply()
    this.#arm()
  }

  /** Told when the replica died at a point that it drew itself: whoever runs it decides when it comes back. */
  onCrashedItself: (replica: SimulatedReplica) => void = () => {}

  #drain(core: Consensus, leaderTerm: number): void {
    const checker = this.environment.checker
    do {
      if (core.dirty) this.#handle(core, core.drain(), leaderTerm)
      checker.drained(this.id, core)
    } while (core.dirty)
  }

  #handle(core: Consensus, output: Output, leaderTerm: number): void {
    const environment = this.environment
    const work = output.persist
    if (work !== null) {
      if (work.sequence <= this.#lastWorkSequence) throw new Error(`persist work ${work.sequence} after ${this.#lastWorkSequence}`)
      this.#lastWorkSequence = work.sequence
      environment.checker.persistWork(this.id, core, work, leaderTerm)
      this.#pending.push(work)
      if (work.truncateFrom !== null) this.#cutProposals(work.truncateFrom)
      environment.trace(
        this.id,
        'persist',
        work.sequence,
        work.entries.length,
        () =>
          `work ${work.sequence}${work.hardState === null ? '' : ` term ${work.hardState.term} vote ${work.hardState.vote}`}${work.truncateFrom === null ? '' : ` truncate ${work.truncateFrom}`} entries ${work.entries.length}`,
      )
    }
    for (const message of output.sendNow) this.release(message)
    if (output.sendAfterPersist.length > 0) this.gate(this.#lastWorkSequence, output.sendAfterPersist)
    for (const { id, index, term } of output.accepted) {
      if (!this.#asked.delete(id)) throw new Error(`proposal ${id} was accepted twice, or never made`)
      environment.proposalAccepted(this, id, index, term)
      if (core.termAt(index) === term) this.#proposals.set(index, { id, term })
      else environment.proposalEnded(this, id, 'unknown')
    }
    for (const { id, reason } of output.rejected) this.#rejected(id, reason)
    for (const { id, index } of output.reads) {
      if (!this.#reads.delete(id)) throw new Error(`read ${id} was answered twice, or never asked`)
      environment.readEnded(this, id, 'confirmed', index)
    }
    for (const request of output.fetch) this.#fetch(request)
    if (!this.#writing && this.#pending.length > 0) this.#write()
  }

  /** Entries that were cut here may live on elsewhere, and commit: the outcome is unknown. */
  #cutProposals(firstIndex: number): void {
    for (const [index, { id }] of [...this.#proposals]) {
      if (index < firstIndex) continue
      this.#proposals.delete(index)
      this.environment.proposalEnded(this, id, 'unknown')
    }
    this.environment.reach('truncation')
    if (!this.#random.chance(this.#model.crashAtTruncation)) return
    const { incarnation } = this
    this.environment.queue.schedule(this.#random.exponential(this.disk.writeMeanUs), () => {
      if (this.core === null || this.incarnation !== incarnation) return
      this.environment.count('crash-at-truncation')
      this.crash()
      this.onCrashedItself(this)
    })
  }

  #rejected(id: number, reason: RejectReason): void {
    if (this.#asked.delete(id)) {
      if (reason === 'overloaded') this.environment.reach('overloaded')
      this.environment.proposalEnded(this, id, 'refused')
    } else if (this.#reads.delete(id)) this.environment.readEnded(this, id, 'refused', 0)
    else throw new Error(`${id} was rejected, but is neither a proposal nor a read that waits`)
  }

  /** Holds messages back until the work of this sequence is durable. */
  protected gate(sequence: number, messages: readonly Message[]): void {
    if (sequence <= this.#durableSequence()) for (const message of messages) this.release(message)
    else this.#gates.push({ sequence, messages })
  }

  #durableSequence(): number {
    const first = this.#writing ? this.#inFlightFirst : this.#pending[0]?.sequence
    return first === undefined ? this.#lastWorkSequence : first - 1
  }

  #write(): void {
    const works = this.#pending
    this.#pending = []
    this.#writing = true
    this.#inFlightFirst = (works[0] as PersistWork).sequence
    this.#inFlightSequence = (works[works.length - 1] as PersistWork).sequence
    const incarnation = this.incarnation
    this.disk.write(works, (failed) => {
      if (this.core === null || this.incarnation !== incarnation) return
      if (failed) {
        // A failed sync is fatal to the node: never retried.
        this.crash()
        this.onCrashedItself(this)
        return
      }
      if (this.paused) this.#whilePaused.push(() => this.#durable(works))
      else this.#durable(works)
    })
  }

  /** A write is done: release what waited for it, tell the core, start the next. */
  #durable(works: readonly PersistWork[]): void {
    const sequence = this.#inFlightSequence
    this.environment.trace(this.id, 'durable', sequence, this.disk.lastIndex, () => `work ${sequence}, disk ends at ${this.disk.lastIndex}`)
    this.#writing = false
    this.#holding++
    while (this.#gates.length > 0 && (this.#gates[0] as Gate).sequence <= sequence) {
      for (const message of (this.#gates.shift() as Gate).messages) this.release(message)
    }
    if (this.#pending.length > 0) this.#write()
    if (this.#model.reportsEachWork) for (const work of works) this.#inbox.push({ type: 'persisted', sequence: work.sequence })
    else this.#inbox.push({ type: 'persisted', sequence })
    this.#holding--
    this.#wake()
  }

  /** Lets a message go: to the network, or back into this replica. */
  protected release(message: Message): void {
    const environment = this.environment
    environment.checker.released(message, this.core as Consensus)
    if (message.to === this.id) {
      this.#inbox.push({ type: 'message', message })
      this.#wake()
      return
    }
    environment.transmit(message)
  }

  #fetch(request: FetchRequest): void {
    const environment = this.environment
    environment.reach('fetch')
    environment.trace(
      this.id,
      'fetch',
      request.firstIndex,
      request.lastIndex,
      () => `for ${request.peer}: ${request.firstIndex} to ${request.lastIndex}`,
    )
    const incarnation = this.incarnation
    environment.queue.schedule(this.disk.readDelayUs(), () => {
      if (this.core === null || this.incarnation !== incarnation) return
      const entries = this.disk.read(request.firstIndex, request.lastIndex, request.maxBytes)
      this.#enqueue({ type: 'fetched', peer: request.peer, entries })
    })
  }

  #scheduleApply(): void {
    const core = this.core
    if (core === null || this.#applyScheduled || this.appliedIndex >= core.commitIndex) return
    this.#applyScheduled = true
    const incarnation = this.incarnation
    const inMemory = core.entries(this.appliedIndex + 1, core.commitIndex, 1).length > 0
    const delayUs = this.#random.exponential(this.#model.applyDelayUs) + (inMemory ? 0 : this.disk.readDelayUs())
    this.environment.queue.schedule(delayUs, () => {
      if (this.core !== core || this.incarnation !== incarnation) return
      this.#applyScheduled = false
      if (this.paused) return
      this.#applySlice(core)
    })
  }

  #applySlice(core: Consensus): void {
    const environment = this.environment
    const commitIndex = core.commitIndex
    if (this.appliedIndex >= commitIndex) return
    const wanted = this.appliedIndex + 1
    let entries = core.entries(wanted, commitIndex, this.#model.applySliceBytes)
    if (entries.length === 0) entries = this.readToApply(core, wanted, commitIndex, this.#model.applySliceBytes)
    if (entries.length === 0) throw new InvariantViolation('R17', `${this.id}: committed entry ${wanted} is neither in memory nor on disk`)
    this.#holding++
    for (const entry of entries) {
      if (entry.index > commitIndex)
        throw new InvariantViolation('R5', `${this.id}: entry ${entry.index} was handed out to apply, commit is ${commitIndex}`)
      this.stateHash = environment.checker.applied(this.id, entry, this.appliedIndex, this.stateHash)
      this.appliedIndex = entry.index
      environment.applied(this, entry)
      const proposal = this.#proposals.get(entry.index)
      if (proposal === undefined) continue
      this.#proposals.delete(entry.index)
      if (proposal.term !== entry.term) environment.proposalEnded(this, proposal.id, 'lost')
      else environment.acknowledged(this, proposal.id, entry.index)
    }
    environment.trace(this.id, 'apply', this.appliedIndex, this.stateHash, () => `up to ${this.appliedIndex}`)
    this.#holding--
    this.#enqueue({ type: 'applied', index: this.appliedIndex })
    this.#scheduleApply()
  }

  /** Committed entries from the disk. What follows them there may be about to be truncated by a write in flight: only entries that the core agrees with count. */
  protected readToApply(core: Consensus, firstIndex: number, lastIndex: number, maxBytes: number): readonly Entry[] {
    const entries = this.disk.read(firstIndex, lastIndex, maxBytes)
    const stale = entries.findIndex(({ index, term }) => core.termAt(index) !== term)
    return stale < 0 ? entries : entries.slice(0, stale)
  }

  /** Asks for a wake-up when the core wants its next tick. */
  #arm(): void {
    const core = this.core
    if (core === null) return
    const environment = this.environment
    const nextTickMs = core.nextTickMs
    if (nextTickMs === Number.POSITIVE_INFINITY) return
    const atUs = Math.max(environment.queue.nowUs + 1, this.#clockBaseUs + Math.ceil(((nextTickMs - this.#clockBaseMs) * 1000) / this.#clockRate))
    if (this.#timerAtUs <= atUs) return
    this.#timerAtUs = atUs
    const incarnation = this.incarnation
    environment.queue.schedule(atUs - environment.queue.nowUs, () => {
      if (this.core !== core || this.incarnation !== incarnation || this.#timerAtUs !== atUs) return
      this.#timerAtUs = Number.POSITIVE_INFINITY
      if (this.paused) return
      if (this.core.nextTickMs > this.#clockMs()) this.#arm()
      else this.#cycle()
    })
  }
}
