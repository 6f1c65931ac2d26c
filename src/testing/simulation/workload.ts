/**
 * Simulated clients: they propose numbered commands and ask for reads, at the replica that they believe leads or at any other.
 *
 * Invariants: 1. a command is proposed once; its number is its first four bytes; 2. what a client is told (done, refused, lost, unknown) is told once.
 */
import type { Entry } from '../../raft/types.js'
import { EntryKind } from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import type { EventQueue } from './event-queue.js'
import { type InvariantChecker, InvariantViolation } from './invariants.js'
import type { SimulationPlan } from './plan.js'
import type { SimulatedReplica } from './replica.js'
import type { FailedOutcome, ReadOutcome } from './replica-environment.js'

/** The number of the command that an entry holds; undefined when it holds none. */
export function commandIdOf(entry: Entry): number | undefined {
  if (entry.kind !== EntryKind.command || entry.data.length < 4) return undefined
  const { data } = entry
  return ((data[0] as number) << 24) | ((data[1] as number) << 16) | ((data[2] as number) << 8) | (data[3] as number)
}

/** A command of this number, padded to a length. */
export function commandOf(commandId: number, bytes: number): Uint8Array {
  const data = new Uint8Array(Math.max(4, bytes)).fill(commandId & 0xff)
  new DataView(data.buffer).setUint32(0, commandId)
  return data
}

export interface WorkloadEnvironment {
  readonly queue: EventQueue
  readonly checker: InvariantChecker
  readonly plan: SimulationPlan
  readonly replicas: readonly SimulatedReplica[]
  stream(name: string): SeededRandom
}

/** How the operations ended. */
export interface WorkloadCounts {
  proposed: number
  acknowledged: number
  refused: number
  lost: number
  unknown: number
  readsAsked: number
  readsConfirmed: number
  readsRefused: number
}

export class Workload {
  readonly counts: WorkloadCounts = {
    proposed: 0,
    acknowledged: 0,
    refused: 0,
    lost: 0,
    unknown: 0,
    readsAsked: 0,
    readsConfirmed: 0,
    readsRefused: 0,
  }
  readonly #environment: WorkloadEnvironment
  readonly #open = new Set<number>()
  /** Commands of which clients were told that they have no effect. */
  readonly #never = new Set<number>()
  readonly #readFloors = new Map<number, number>()
  #nextId = 1
  #stopped = false

  constructor(environment: WorkloadEnvironment) {
    this.#environment = environment
    for (let client = 0; client < environment.plan.clients; client++) this.#next(environment.stream(`client/${client}`))
  }

  stop(): void {
    this.#stopped = true
  }

  #next(random: SeededRandom): void {
    const { plan, queue } = this.#environment
    queue.schedule(1 + random.exponential(plan.operationEveryUs * plan.burst), () => {
      if (this.#stopped) return
      for (let count = random.integer(1, plan.burst); count > 0; count--) this.#operate(random)
      this.#next(random)
    })
  }

  #operate(random: SeededRandom): void {
    const { plan } = this.#environment
    const target = this.#target(random)
    if (random.chance(plan.readShare)) this.read(target, random.chance(plan.leaseShare))
    else this.propose(target, random.integer(4, plan.maxCommandBytes))
  }

  #target(random: SeededRandom): SimulatedReplica {
    const { replicas, plan } = this.#environment
    if (random.chance(plan.toClaimants)) {
      const claimants = replicas.filter(({ core }) => core?.role === 'leader')
      if (claimants.length > 0) return random.pick(claimants)
    }
    const anyone = random.pick(replicas)
    // Mostly whom this replica takes for the leader, which may be wrong for long.
    const leader = anyone.core?.leader
    if (leader == null || anyone.paused || !random.chance(0.8)) return anyone
    return replicas.find(({ id }) => id === leader) as SimulatedReplica
  }

  /** Proposes a fresh command and returns its number. */
  propose(target: SimulatedReplica, bytes: number): number {
    const id = this.#nextId++
    if (!target.up) return id
    this.counts.proposed++
    this.#open.add(id)
    target.propose(id, commandOf(id, bytes))
    return id
  }

  /** Asks for a read. */
  read(target: SimulatedReplica, lease = false): void {
    if (!target.up) return
    const id = this.#nextId++
    this.counts.readsAsked++
    this.#readFloors.set(id, this.#environment.checker.maxCommitted)
    target.read(id, lease)
  }

  acknowledged(replica: SimulatedReplica, commandId: number, index: number): void {
    this.#close(commandId)
    this.counts.acknowledged++
    this.#environment.checker.acknowledge(replica.id, commandId, index)
  }

  ended(commandId: number, outcome: FailedOutcome): void {
    this.#close(commandId)
    this.counts[outcome]++
    if (outcome !== 'unknown') this.#never.add(commandId)
  }

  /** At the end, over the log that all replicas share: no command twice, and none of those that clients were told had no effect. */
  checkFinal(entries: readonly Entry[]): void {
    const seen = new Set<number>()
    for (const entry of entries) {
      const commandId = commandIdOf(entry)
      if (commandId === undefined) continue
      if (this.#never.has(commandId))
        throw new InvariantViolation('K4', `command ${commandId} is in the log at ${entry.index}, but its client was told that it is not`)
      if (seen.has(commandId)) throw new InvariantViolation('K3', `command ${commandId} is in the log twice, the second time at ${entry.index}`)
      seen.add(commandId)
    }
  }

  #close(commandId: number): void {
    if (!this.#open.delete(commandId)) throw new Error(`command ${commandId} ended twice, or was never proposed`)
  }

  readEnded(replica: SimulatedReplica, readId: number, outcome: ReadOutcome, index: number): void {
    const floor = this.#readFloors.get(readId)
    if (floor === undefined) throw new Error(`read ${readId} ended twice, or was never asked`)
    this.#readFloors.delete(readId)
    if (outcome === 'confirmed') {
      this.counts.readsConfirmed++
      this.#environment.checker.readConfirmed(replica.id, index, floor)
    } else if (outcome === 'refused') this.counts.readsRefused++
  }
}
