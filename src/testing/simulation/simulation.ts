/**
 * One run of one seed: a cluster of real cores in a simulated world, first with faults, then without.
 *
 * Invariants: 1. everything comes from the seed: the same seed gives the same trace; 2. the run stops at the first violation;
 * 3. when faults have stopped, the cluster must heal (`healing.ts`).
 */
import { RaftCore } from '../../raft/core.js'
import type { Configuration, Consensus, Message, NodeId, RaftOptions } from '../../raft/types.js'
import { SeededRandom } from '../seeded-random.js'
import { EventQueue } from './event-queue.js'
import { FaultInjector } from './faults.js'
import { Healing } from './healing.js'
import { InvariantChecker, InvariantViolation } from './invariants.js'
import type { DiskModel, DiskObserver } from './log-disk.js'
import { SimulatedLogDisk } from './log-disk.js'
import { SimulatedNetwork } from './network.js'
import { Operator } from './operator.js'
import { drawPlan, type SimulationPlan } from './plan.js'
import { SimulatedReplica } from './replica.js'
import type { FailedOutcome, HostModel, ReadOutcome, ReplicaEnvironment } from './replica-environment.js'
import { describeMessage, Trace } from './trace.js'
import { Workload, type WorkloadCounts } from './workload.js'

/** Where a known bug can be put in: each part can be replaced by one that is wrong. */
export interface SimulationParts {
  createCore(options: RaftOptions): Consensus
  createDisk(
    id: NodeId,
    queue: EventQueue,
    random: SeededRandom,
    model: DiskModel,
    observer: DiskObserver,
    configuration: Configuration,
  ): SimulatedLogDisk
  createReplica(id: NodeId, disk: SimulatedLogDisk, environment: ReplicaEnvironment, model: HostModel, clockRate: number): SimulatedReplica
}

/** The parts as they are. */
export const soundParts: SimulationParts = {
  createCore: (options) => new RaftCore(options),
  createDisk: (id, queue, random, model, observer, configuration) => new SimulatedLogDisk(id, queue, random, model, observer, configuration),
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
  /** How often each kind of fault happened. */
  readonly faults: Readonly<Record<string, number>>
  /** How often states were reached that are worth reaching. */
  readonly reached: Readonly<Record<string, number>>
  readonly traceHash: string
  readonly violation: Violation | null
}

/** A run that takes more events than this is wedged. */
const maxSteps = 5_000_000

function wedged(): InvariantViolation {
  return new InvariantViolation('R19', `${maxSteps} events, and no end`)
}

class Simulation implements ReplicaEnvironment {
  readonly queue = new EventQueue()
  readonly plan: SimulationPlan
  readonly checker: InvariantChecker
  readonly replicas: SimulatedReplica[]
  readonly network: SimulatedNetwork
  readonly workload: Workload
  readonly faults: Record<string, number> = {}
  readonly reached: Record<string, number> = {}
  readonly tracer: Trace
  readonly #parts: SimulationParts

  constructor(options: SimulationOptions) {
    this.plan = options.plan ?? drawPlan(options.seed)
    this.#parts = options.parts ?? soundParts
    this.tracer = new Trace(this.queue, options.onLine)
    const ids = Array.from({ length: this.plan.replicas + this.plan.spares }, (_, position) => `n${position + 1}`)
    const founders: Configuration = { voters: ids.slice(0, this.plan.replicas), learners: [], votersOutgoing: [] }
    const nobody: Configuration = { voters: [], learners: [], votersOutgoing: [] }
    const observer: DiskObserver = {
      stored: (disk, work) => this.checker.stored(disk, work),
      count: (fault) => this.count(fault),
      committedPrefix: () => this.checker.committedPrefix,
    }
    const disks = ids.map((id) => {
      const configuration = founders.voters.includes(id) ? founders : nobody
      return this.#parts.createDisk(id, this.queue, this.stream(`disk/${id}`), this.plan.disk, observer, configuration)
    })
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

  replica(id: NodeId): SimulatedReplica | undefined {
    return this.#byId.get(id)
  }

  anyone(random: SeededRandom): SimulatedReplica {
    return random.pick(this.replicas)
  }

  stream(name: string): SeededRandom {
    return new SeededRandom(this.plan.seed, name)
  }

  count(fault: string): void {
    this.faults[fault] = (this.faults[fault] ?? 0) + 1
  }

  reach(state: string): void {
    this.reached[state] = (this.reached[state] ?? 0) + 1
  }

  trace(id: NodeId, event: string, a: number, b: number, detail: () => string): void {
    this.tracer.event(id, event, a, b, detail)
  }

  transmit(message: Message): void {
    this.tracer.event(message.from, 'send', message.term, this.network.bytes, describeMessage, message)
    this.network.send(message)
  }

  #deliver(message: Message): void {
    const replica = this.#byId.get(message.to) as SimulatedReplica
    if (!replica.up) return
    this.tracer.event(message.to, 'receive', message.term, 0, describeMessage, message)
    replica.receive(message)
  }

  proposalAccepted(): void {}

  applied(): void {}

  proposalEnded(_replica: SimulatedReplica, commandId: number, outcome: FailedOutcome): void {
    this.workload.ended(commandId, outcome)
  }

  acknowledged(replica: SimulatedReplica, commandId: number, index: number): void {
    this.tracer.event(replica.id, 'acknowledge', commandId, index, () => `command ${commandId} at ${index}`)
    this.workload.acknowledged(replica, commandId, index)
  }

  readEnded(replica: SimulatedReplica, readId: number, outcome: ReadOutcome, index: number): void {
    this.tracer.event(replica.id, 'read', readId, index, () => `${readId} ${outcome}${outcome === 'confirmed' ? ` at ${index}` : ''}`)
    this.workload.readEnded(replica, readId, outcome, index)
  }

  #runFor(durationUs: number): void {
    const { queue } = this
    const limitUs = queue.nowUs + Math.floor(durationUs)
    while (queue.runNext(limitUs)) if (queue.steps > maxSteps) throw wedged()
  }

  /** Runs until the condition holds or the time has passed; tells whether it holds. */
  runUntil(condition: () => boolean, durationUs: number): boolean {
    const limitUs = this.queue.nowUs + Math.floor(durationUs)
    for (;;) {
      if (condition()) return true
      if (!this.queue.runNext(limitUs)) return condition()
      if (this.queue.steps > maxSteps) throw wedged()
    }
  }

  run(): void {
    for (const replica of this.replicas) replica.start()
    const injector = new FaultInjector(this)
    const operator = new Operator(this)
    this.#runFor(this.plan.faultyUs)
    this.workload.stop()
    operator.stop()
    injector.stop()
    new Healing(this).run()
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
    reached: { ...simulation.reached, ...(simulation.checker.twoLeaders > 0 ? { 'two-leaders': simulation.checker.twoLeaders } : {}) },
    traceHash: simulation.tracer.hash,
    violation,
  }
}
