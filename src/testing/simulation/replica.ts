/**
 * One simulated replica: a real core, the host cycle around it (drain, send, persist, release, apply), a simulated log disk, and a state machine
 * that only knows what it applied.
 *
 * Invariants: 1. `sendNow` leaves at once, `sendAfterPersist` when every persist work drained with it or before it is durable;
 * 2. at most one write is in flight, and works are written in their order; 3. a crash keeps the disk and nothing else;
 * 4. committed entries are applied in order, from memory or from the disk; 5. after a restart the state machine starts at an index that its background flush may have
 * reached, never ahead of the log on disk; 6. a snapshot is another replica's state and applied index, captured at one moment and installed later, durably, if it is still ahead; the reset of the log
 * follows, and when a crash comes between, it is made up for at the start; 7. the log is compacted up to what the state machine holds durably.
 */
import {
  type Configuration,
  type Consensus,
  type Entry,
  EntryKind,
  type FetchRequest,
  type Input,
  type InstallRequest,
  type Message,
  type NodeId,
  type Output,
  type PersistWork,
  type RaftOptions,
} from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import { InvariantViolation } from './invariants.js'
import type { SimulatedLogDisk } from './log-disk.js'
import { LogWriter } from './log-writer.js'
import { PendingOperations } from './pending-operations.js'
import type { HostModel, ReplicaEnvironment } from './replica-environment.js'
import { SimulatedClock } from './simulated-clock.js'

/** A state machine's content at an index. */
interface Snapshot {
  readonly index: number
  readonly term: number
  readonly configuration: Configuration
  readonly stateHash: number
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
  readonly #clock: SimulatedClock
  readonly #operations: PendingOperations
  #model: HostModel
  #writer: LogWriter
  #inbox: Input[] = []
  /** Completions that arrived while the process stood still. */
  #whilePaused: (() => void)[] = []
  #cycleScheduled = false
  /** While above zero, inputs only queue up: whoever raised it looks at the inbox when done. */
  #holding = 0
  #applyScheduled = false
  #timerAtUs = Number.POSITIVE_INFINITY
  #stateFloor = 0
  /** What was synced: no crash takes it. */
  #syncedFloor = 0
  #lastStampMs = 0
  #flushable = 0
  /** The snapshot that the state machine was last made from. */
  #installed: Snapshot | null = null
  #installing = false

  constructor(id: NodeId, disk: SimulatedLogDisk, environment: ReplicaEnvironment, model: HostModel, clockRate = 1) {
    this.id = id
    this.disk = disk
    this.environment = environment
    this.#random = environment.stream(`host/${id}`)
    this.#model = model
    this.#clock = new SimulatedClock(environment.queue, this.#random.integer(0, 999_999), clockRate)
    this.#operations = new PendingOperations(this, environment)
    this.#writer = this.#newWriter()
  }

  get up(): boolean {
    return this.core !== null
  }

  set model(model: HostModel) {
    this.#model = model
  }

  /** Proposals, reads and requests that wait for their end. */
  get waiting(): number {
    return this.#operations.size
  }

  /** Those of them that the core has not answered. */
  get unanswered(): number {
    return this.#operations.unanswered
  }

  get clockRate(): number {
    return this.#clock.rate
  }

  /** Lets the clock go on at another rate. */
  set clockRate(rate: number) {
    this.#clock.rate = rate
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
    else if (losesState === 'all') applied = this.#syncedFloor
    if (applied < this.appliedIndex) environment.count('state-lost')
    this.#stateFloor = applied
    this.restoreState(applied)
    this.resetLog()
    const random = environment.stream(`core/${this.id}/${this.incarnation}`)
    const core = this.build({
      id: this.id,
      configurations: this.disk.configurations(),
      hardState: this.disk.hardState,
      terms: this.disk.termRuns(),
      lastIndex: this.disk.lastIndex,
      snapshotIndex: this.disk.base.index,
      snapshotTerm: this.disk.base.term,
      commitIndex: applied,
      nowMs: this.#clock.nowMs,
      ...this.#model.limits,
      random: () => random.next(),
    })
    this.core = core
    this.#inbox = []
    this.#writer = this.#newWriter()
    this.#applyScheduled = false
    this.#cycleScheduled = false
    this.#holding = 0
    this.#whilePaused = []
    this.#timerAtUs = Number.POSITIVE_INFINITY
    this.#lastStampMs = 0
    this.#installing = false
    this.paused = false
    environment.checker.started(this.id, core, applied)
    environment.trace(this.id, 'start', core.term, core.lastIndex, () => `term ${core.term}, ${core.lastIndex} entries, applied ${applied}`)
    this.#cycle()
  }

  /** A crash may have come between the switch of the state and the reset of the log. */
  protected resetLog(): void {
    const { disk } = this
    const installed = this.#installed
    if (installed === null || installed.index <= disk.base.index) return
    const holds = disk.lastIndex >= installed.index && disk.shape.termAt(installed.index) === installed.term
    if (holds) return
    this.environment.reach('log-reset-at-start')
    disk.restore({ ...installed, keepsLater: false })
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
    if (this.#writer.waiting > 0) environment.count('unwritten-lost')
    this.#writer.abandon()
    this.disk.crash()
    environment.checker.stopped(this.id)
    environment.trace(
      this.id,
      'crash',
      this.disk.hardState.term,
      this.disk.lastIndex,
      () => `disk: term ${this.disk.hardState.term}, ${this.disk.lastIndex} entries`,
    )
    this.#operations.crashed()
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
    this.#operations.propose(commandId)
    this.#enqueue({ type: 'propose', id: commandId, data })
  }

  /** Asks for a linearizable read. */
  read(readId: number, lease = false): void {
    if (this.core === null) return
    this.#operations.read(readId)
    this.#enqueue({ type: 'read', id: readId, lease })
  }

  /** Asks for other members, or another leader. */
  request(input: Extract<Input, { type: 'configure' | 'transfer' }>): void {
    if (this.core === null) return
    this.#operations.request(input.id)
    this.#enqueue(input)
  }

  /** Whoever asked for other members gave up before this replica looked at it. */
  forgetRequests(): void {
    const forgotten = this.#inbox.filter(({ type }) => type === 'configure')
    this.#inbox = this.#inbox.filter(({ type }) => type !== 'configure')
    for (const input of forgotten) if (input.type === 'configure') this.#operations.forget(input.id)
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
      if (!staleClock || this.#lastStampMs === 0) this.#lastStampMs = this.#clock.nowMs
      core.step({ type: 'tick', nowMs: this.#lastStampMs })
      checker.stepped(this.id, core)
      this.#drain(core, leaderTerm)
      while (this.#inbox.length > 0) {
        const inputs = this.#inbox
        this.#inbox = []
        for (const input of inputs) {
          // A lease is only as good as the time at which it is looked at.
          if (input.type === 'read' && input.lease === true) core.step({ type: 'tick', nowMs: this.#clock.nowMs })
          if (input.type === 'restored') checker.restored(this.id, input.index)
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
      environment.checker.persistWork(this.id, core, work, leaderTerm)
      this.#writer.push(work)
      if (work.reset !== null) this.#operations.replaced(work.reset.index + 1, (index) => core.termAt(index))
      if (work.truncateFrom !== null) this.#truncated(work.truncateFrom)
      environment.trace(
        this.id,
        'persist',
        work.sequence,
        work.entries.length,
        () =>
          `work ${work.sequence}${work.hardState === null ? '' : ` term ${work.hardState.term} vote ${work.hardState.vote}`}${work.reset === null ? '' : ` reset ${work.reset.index}@${work.reset.term}${work.reset.keepsLater ? ' keeps' : ''}`}${work.truncateFrom === null ? '' : ` truncate ${work.truncateFrom}`} entries ${work.entries.length}`,
      )
    }
    if (!this.#diesWith(core, work)) for (const message of output.sendNow) this.release(message)
    if (output.sendAfterPersist.length > 0) this.gate(this.#writer.lastSequence, output.sendAfterPersist)
    this.#operations.answered(output, (index) => core.termAt(index))
    for (const request of output.fetch) this.#fetch(request)
    if (output.install !== null) this.#fetchSnapshot(output.install)
    this.#writer.write()
  }

  /** Whether this is the last that it did: it appended a configuration, and what it sends is lost. */
  #diesWith(core: Consensus, work: PersistWork | null): boolean {
    if (core.role !== 'leader' || work === null || !work.entries.some(({ kind }) => kind === EntryKind.configuration)) return false
    if (!this.#random.chance(this.#model.crashAtConfiguration)) return false
    this.#dieWithin(this.#random.exponential(this.disk.writeMeanUs * 3), 'crash-at-configuration')
    return true
  }

  #truncated(firstIndex: number): void {
    this.#operations.truncated(firstIndex)
    this.environment.reach('truncation')
    this.#crashSoon('crash-at-truncation')
  }

  /** Perhaps dies while something delicate is on its way to the disk. */
  #crashSoon(fault: string): void {
    if (this.#random.chance(this.#model.crashAtTruncation)) this.#dieWithin(this.#random.exponential(this.disk.writeMeanUs), fault)
  }

  #dieWithin(delayUs: number, fault: string): void {
    const { incarnation } = this
    this.environment.queue.schedule(delayUs, () => {
      const isCalm = this.#model.crashAtTruncation === 0 && this.#model.crashAtConfiguration === 0
      if (this.core === null || this.incarnation !== incarnation || isCalm) return
      this.environment.count(fault)
      this.crash()
      this.onCrashedItself(this)
    })
  }

  /** Holds messages back until the work of this sequence is durable. */
  protected gate(sequence: number, messages: readonly Message[]): void {
    if (this.#writer.isDurable(sequence)) for (const message of messages) this.release(message)
    else this.#writer.hold(sequence, messages)
  }

  #newWriter(): LogWriter {
    return new LogWriter(this.disk, (works, failed) => {
      if (failed) {
        // A failed sync is fatal to the node: never retried.
        this.crash()
        this.onCrashedItself(this)
      } else if (this.paused) this.#whilePaused.push(() => this.#durable(works))
      else this.#durable(works)
    })
  }

  /** A write is done: release what waited for it, start the next, tell the core. */
  #durable(works: readonly PersistWork[]): void {
    const sequence = works[works.length - 1]?.sequence ?? 0
    const { compacted } = this.#writer
    this.environment.trace(
      this.id,
      'durable',
      sequence,
      this.disk.lastIndex,
      () => `work ${sequence}, disk ends at ${this.disk.lastIndex}${compacted > 0 ? `, begins after ${compacted}` : ''}`,
    )
    this.#holding++
    for (const message of this.#writer.written()) this.release(message)
    this.#writer.write()
    if (this.#model.reportsEachWork) for (const work of works) this.#inbox.push({ type: 'persisted', sequence: work.sequence })
    else if (sequence > 0) this.#inbox.push({ type: 'persisted', sequence })
    if (compacted > 0) this.#inbox.push({ type: 'compacted', index: compacted })
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
    const read = (): readonly Entry[] => this.disk.read(request.firstIndex, request.lastIndex, request.maxBytes)
    // What a slow read returns may be from its beginning or from its end, with the log changed in between.
    const early = this.#random.chance(0.5) ? read() : null
    environment.queue.schedule(this.disk.readDelayUs(), () => {
      if (this.core === null || this.incarnation !== incarnation) return
      const entries = early ?? read()
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
      this.#operations.applied(entry)
    }
    environment.trace(this.id, 'apply', this.appliedIndex, this.stateHash, () => `up to ${this.appliedIndex}`)
    this.#compactIfLong(core)
    this.#holding--
    this.#enqueue({ type: 'applied', index: this.appliedIndex })
    this.#scheduleApply()
  }

  /** Flushes the state, and has the log drop what lies before it. */
  #compactIfLong(core: Consensus): void {
    const { compactEntries, compactKeeps } = this.#model
    const flushed = Math.min(this.appliedIndex, this.flushableIndex(core))
    if (compactEntries === 0 || flushed - this.disk.base.index < compactEntries + compactKeeps) return
    this.#syncedFloor = Math.max(this.#syncedFloor, flushed)
    this.#stateFloor = Math.max(this.#stateFloor, flushed)
    this.environment.reach('compaction')
    this.#writer.compact(flushed - compactKeeps)
    this.#writer.write()
  }

  /** What this replica could hand to another. */
  captureSnapshot(): Snapshot | null {
    const { core, appliedIndex: index, stateHash } = this
    const term = core?.termAt(index)
    const configuration = core?.configurationAt(index)
    // What was installed a moment ago is not in the core's log yet, which may hold another entry there. The real host knows no such moment: state and log change in one turn.
    if (core !== null && index > core.commitIndex) return null
    // One that was made to join and has not heard who is in the group has nothing to hand on.
    return index === 0 || term === undefined || configuration === undefined || configuration.voters.length === 0
      ? null
      : { index, term, configuration, stateHash }
  }

  /** Fetches a snapshot: from whom it was offered, or from another one who has it. */
  #fetchSnapshot({ from, index }: InstallRequest): void {
    const environment = this.environment
    const source = this.#random.chance(0.7) ? environment.replica(from) : environment.anyone(this.#random)
    if (source !== undefined) this.fetchSnapshotFrom(source, index)
  }

  /** Begins to fetch another's state, when it reaches an index and nothing is fetched yet. */
  fetchSnapshotFrom(source: SimulatedReplica, index: number): void {
    if (this.#installing || this.core === null || source === this || source.paused) return
    const environment = this.environment
    const snapshot = source.captureSnapshot()
    if (snapshot === null || snapshot.index < index) return
    this.#installing = true
    environment.trace(this.id, 'snapshot', snapshot.index, index, () => `from ${source.id}, up to ${snapshot.index}@${snapshot.term}`)
    const { incarnation } = this
    const { snapshotUs } = this.#model
    environment.queue.schedule(Math.min(this.#random.exponential(snapshotUs), snapshotUs * 2), () => {
      if (this.core === null || this.incarnation !== incarnation) return
      const end = (): void => {
        this.#installing = false
        this.install(snapshot)
      }
      if (this.paused) this.#whilePaused.push(end)
      else end()
    })
  }

  /** Makes the state that of a snapshot, unless this replica got there by itself. */
  protected install(snapshot: Snapshot): void {
    if (snapshot.index <= this.appliedIndex) {
      this.environment.reach('snapshot-late')
      return
    }
    this.replaceState(snapshot)
  }

  protected replaceState(snapshot: Snapshot): void {
    const { index, term, configuration, stateHash } = snapshot
    const environment = this.environment
    environment.reach('snapshot-installed')
    environment.checker.installed(this.id, snapshot, this.appliedIndex)
    environment.trace(this.id, 'install', index, term, () => `up to ${index}@${term}`)
    this.appliedIndex = index
    this.stateHash = stateHash
    this.#stateFloor = index
    this.#syncedFloor = index
    this.#installed = snapshot
    this.#operations.covered(index)
    this.#crashSoon('crash-at-install')
    this.#enqueue({ type: 'restored', index, term, configuration })
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
    const atUs = Math.max(environment.queue.nowUs + 1, this.#clock.timeOfUs(nextTickMs))
    if (this.#timerAtUs <= atUs) return
    this.#timerAtUs = atUs
    const incarnation = this.incarnation
    environment.queue.schedule(atUs - environment.queue.nowUs, () => {
      if (this.core !== core || this.incarnation !== incarnation || this.#timerAtUs !== atUs) return
      this.#timerAtUs = Number.POSITIVE_INFINITY
      if (this.paused) return
      if (this.core.nextTickMs > this.#clock.nowMs) this.#arm()
      else this.#cycle()
    })
  }
}
