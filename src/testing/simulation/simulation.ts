/**
 * One run of one seed: a cluster of real cores in a simulated world, first with faults, then without.
 *
 * Invariants: 1. everything comes from the seed: the same seed gives the same trace; 2. the run stops at the first violation;
 * 3. R18 liveness: when faults have stopped, a leader serves within `healElectionTimeouts` election timeouts, and all logs converge.
 */
import { RaftCore } from '../../raft/core.js'
import type { Consensus, Message, NodeId, RaftOptions } from '../../raft/types.js'
import { SeededRandom } from '../seeded-random.js'
import { EventQueue } from './event-queue.js'
import { FaultInjector } from './faults.js'
import { InvariantChecker, InvariantViolation } from './invariants.js'
import type { DiskModel, DiskObserver } from './log-disk.js'
import { SimulatedLogDisk } from './log-disk.js'
import { SimulatedNetwork } from './network.js'
import { calmNetwork, drawPlan, type SimulationPlan } from './plan.js'
import { type HostModel, type ReplicaEnvironment, SimulatedReplica } from './replica.js'
import { describeMessage, Trace } from './trace.js'
import { commandIdOf, Workload, type WorkloadCounts } from './workload.js'

/** Where a known bug can be put in: each part can be replaced by one that is wrong. */
export interface SimulationParts {
  createCore(options: RaftOptions): Consensus
  createDisk(id: NodeId, queue: EventQueue, random: SeededRandom, model: DiskModel, observer: DiskObserver): SimulatedLogDisk
  createReplica(id: NodeId, disk: SimulatedLogDisk, environment: ReplicaEnvironment, model: HostModel, clockRate: number): SimulatedReplica
}

/** The parts as they are. */
export const soundParts: SimulationParts = {
  createCore: (options) => new RaftCore(options),
  createDisk: (id, queue, random, model, observer) => new SimulatedLogDisk(id, queue, random, model, observer),
  createReplica: (id, disk, environment, model, clockRate) => new SimulatedReplica(id, disk, environment, model, clockRate),
}

export interface SimulationOptions {
  readonly seed: number
  /** Replaces the plan that the seed draws. */
  readonly plan?: SimulationPlan
  readonly parts?: SimulationParts
  /** Receives each event as one line. */
  readonly onLine?: (line: string) => void
}

export interface Violation {
  readonly seed: number
  readonly invariant: string
  readonly message: string
}

export interface SimulationResult {
  readonly seed: number
  readonly steps: number
  readonly simulatedUs: number
  readonly messages: number
  readonly elections: number
  readonly committed: number
  readonly operations: WorkloadCounts
  readonly faults: Readonly<Record<string, number>>
  readonly traceHash: string
  readonly violation: Violation | null
}

/** Within how many election timeouts after the last fault a leader must serve. */
export const healElectionTimeouts = 30
/** A run that takes more events than this is wedged. */
const maxSteps = 5_000_000

class Simulation implements ReplicaEnvironment {
  readonly queue = new EventQueue()
  readonly plan: SimulationPlan
  readonly checker: InvariantChecker
  readonly configuration
  readonly replicas: SimulatedReplica[]
  readonly network: SimulatedNetwork
  readonly workload: Workload
  readonly faults: Record<string, number> = {}
  readonly tracer: Trace
  readonly #parts: SimulationParts

  constructor(options: SimulationOptions) {
    this.plan = options.plan ?? drawPlan(options.seed)
    this.#parts = options.parts ?? soundParts
    this.tracer = new Trace(this.queue, options.onLine)
    const ids = Array.from({ length: this.plan.replicas }, (_, position) => `n${position + 1}`)
    this.configuration = { voters: ids, learners: [], votersOutgoing: [] }
    const observer: DiskObserver = {
      stored: (disk, work) => this.checker.stored(disk, work),
      count: (fault) => this.count(fault),
    }
    const disks = ids.map((id) => this.#parts.createDisk(id, this.queue, this.stream(`disk/${id}`), this.plan.disk, observer))
    this.checker = new InvariantChecker(ids, disks)
    this.network = new SimulatedNetwork(ids, this.plan.network, {
      queue: this.queue,
      stream: (name) => this.stream(name),
      count: (fault) => this.count(fault),
      deliver: (message) => this.#deliver(message),
    })
    const clocks = this.stream('clocks')
    this.replicas = disks.map((disk) => {
      const clockRate = 1 + (clocks.next() * 2 - 1) * this.plan.clockDrift
      return this.#parts.createReplica(disk.id, disk, this, this.plan.host, clockRate)
    })
    this.#byId = new Map(this.replicas.map((replica) => [replica.id, replica]))
    this.workload = new Workload(this)
  }

  readonly #byId: ReadonlyMap<NodeId, SimulatedReplica>

  createCore(options: RaftOptions): Consensus {
    return this.#parts.createCore(options)
  }

  stream(name: string): SeededRandom {
    return new SeededRandom(this.plan.seed, name)
  }

  count(fault: string): void {
    this.faults[fault] = (this.faults[fault] ?? 0) + 1
  }

  trace(id: NodeId, event: string, a: number, b: number, detail: () => string): void {
    this.tracer.event(id, event, a, b, detail)
  }

  transmit(message: Message): void {
    this.tracer.event(message.from, 'send', message.term, this.network.bytes, () => describeMessage(message))
    this.network.send(message)
  }

  #deliver(message: Message): void {
    const replica = this.#byId.get(message.to) as SimulatedReplica
    if (!replica.up) return
    this.tracer.event(message.to, 'receive', message.term, 0, () => describeMessage(message))
    replica.receive(message)
  }

  proposalAccepted(): void {}

  applied(): void {}

  proposalEnded(_replica: SimulatedReplica, commandId: number, outcome: 'refused' | 'lost' | 'unknown'): void {
    this.workload.ended(commandId, outcome)
  }

  acknowledged(replica: SimulatedReplica, commandId: number, index: number): void {
    this.tracer.event(replica.id, 'acknowledge', commandId, index, () => `command ${commandId} at ${index}`)
    this.workload.acknowledged(replica, commandId, index)
  }

  readEnded(replica: SimulatedReplica, readId: number, outcome: 'confirmed' | 'refused' | 'unknown', index: number): void {
    this.tracer.event(replica.id, 'read', readId, index, () => `${readId} ${outcome}${outcome === 'confirmed' ? ` at ${index}` : ''}`)
    this.workload.readEnded(replica, readId, outcome, index)
  }

  #runUntil(condition: () => boolean, durationUs: number): boolean {
    const limitUs = this.queue.nowUs + Math.floor(durationUs)
    for (;;) {
      if (condition()) return true
      if (!this.queue.runNext(limitUs)) return condition()
      if (this.queue.steps > maxSteps) throw new InvariantViolation('R19', `${maxSteps} events, and no end`)
    }
  }

  run(): void {
    for (const replica of this.replicas) replica.start()
    const injector = new FaultInjector(this)
    this.#runUntil(() => false, this.plan.faultyUs)
    this.trace('-', 'heal', 0, 0, () => '')
    this.workload.stop()
    injector.stop()
    this.#heal()
  }

  /** Faults are over: the cluster must serve, and all must become the same. */
  #heal(): void {
    const { electionTimeoutMs } = this.plan.host.limits
    const electionTimeoutUs = electionTimeoutMs * 1000
    const { plan, replicas, checker } = this
    this.network.calm(calmNetwork(electionTimeoutMs))
    const clocks = this.stream('clocks-at-heal')
    for (const replica of replicas) {
      replica.clockRate = 1 + (clocks.next() * 2 - 1) * Math.min(plan.clockDrift, 0.1)
      replica.disk.calm({ writeMeanUs: Math.min(plan.disk.writeMeanUs, electionTimeoutUs / 100), readMeanUs: Math.min(plan.disk.readMeanUs, 100) })
      replica.model = { ...plan.host, applyDelayUs: Math.min(plan.host.applyDelayUs, 1000), crashAtChange: 0, crashAtTruncation: 0 }
    }
    let fresh = 0
    let proposedAtUs = Number.NEGATIVE_INFINITY
    let freshIndex = 0
    const serves = (): boolean => {
      // Proposes again while the last proposal is not acknowledged: it may have been lost with a leader.
      if (fresh !== 0 && checker.indexOf(fresh) !== undefined) {
        freshIndex = checker.indexOf(fresh) as number
        return true
      }
      if (this.queue.nowUs - proposedAtUs < electionTimeoutUs / 2) return false
      const leader = this.#leader()
      if (leader === undefined) return false
      proposedAtUs = this.queue.nowUs
      fresh = this.workload.propose(leader, 8)
      return false
    }
    const leads = (): boolean => this.#leader() !== undefined
    if (!this.#runUntil(leads, electionTimeoutUs * healElectionTimeouts)) {
      throw new InvariantViolation('R18', `nobody leads ${healElectionTimeouts} election timeouts after the last fault: ${this.#describe()}`)
    }
    // What is in the logs already goes first, and may travel in small pieces: one round trip an entry at worst.
    const entries = Math.max(...replicas.map(({ disk }) => disk.lastIndex))
    const backlogUs = (entries * electionTimeoutUs) / 10
    if (!this.#runUntil(serves, electionTimeoutUs * healElectionTimeouts + backlogUs)) {
      throw new InvariantViolation('R18', `no write was served after the last fault: ${this.#describe()}`)
    }
    const same = (): boolean =>
      replicas.every(
        ({ core, appliedIndex, disk, waiting }) =>
          core !== null &&
          waiting === 0 &&
          appliedIndex >= freshIndex &&
          appliedIndex === (replicas[0] as SimulatedReplica).appliedIndex &&
          disk.lastIndex === appliedIndex &&
          disk.shape.hashAt(appliedIndex) === (replicas[0] as SimulatedReplica).disk.shape.hashAt(appliedIndex) &&
          core.lastIndex === appliedIndex,
      )
    if (!this.#runUntil(same, electionTimeoutUs * healElectionTimeouts + backlogUs)) {
      throw new InvariantViolation('R18', `the replicas did not converge after the last fault: ${this.#describe()}`)
    }
    const state = (replicas[0] as SimulatedReplica).stateHash
    for (const { id, stateHash } of replicas) {
      if (stateHash !== state) throw new InvariantViolation('R14', `${id} ends with another state than ${(replicas[0] as SimulatedReplica).id}`)
    }
    checker.checkFinal(commandIdOf)
  }

  #leader(): SimulatedReplica | undefined {
    let found: SimulatedReplica | undefined
    for (const replica of this.replicas) {
      if (replica.core?.role === 'leader' && (found?.core == null || replica.core.term > found.core.term)) found = replica
    }
    return found
  }

  #describe(): string {
    return this.replicas
      .map(({ id, core, appliedIndex, disk, waiting }) =>
        core === null
          ? `${id} down`
          : `${id} ${core.role} term ${core.term} last ${core.lastIndex} durable ${disk.lastIndex} commit ${core.commitIndex} applied ${appliedIndex} waiting ${waiting}`,
      )
      .join('; ')
  }
}

/** Runs one seed to its end, or to the first violation. */
export function runSimulation(options: SimulationOptions): SimulationResult {
  const simulation = new Simulation(options)
  let violation: Violation | null = null
  try {
    simulation.run()
  } catch (error) {
    const invariant = error instanceof InvariantViolation ? error.invariant : 'exception'
    const message = error instanceof InvariantViolation ? error.message : error instanceof Error ? (error.stack ?? error.message) : String(error)
    violation = { seed: options.seed, invariant, message }
    simulation.trace('-', 'VIOLATION', 0, 0, () => `${invariant}: ${message}`)
  }
  return {
    seed: options.seed,
    steps: simulation.queue.steps,
    simulatedUs: simulation.queue.nowUs,
    messages: simulation.network.messages,
    elections: simulation.checker.elections,
    committed: simulation.checker.maxCommitted,
    operations: simulation.workload.counts,
    faults: simulation.faults,
    traceHash: simulation.tracer.hash,
    violation,
  }
}
