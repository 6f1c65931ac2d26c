/**
 * One run of one plan: whole nodes in a simulated world, first with faults, then without.
 *
 * Invariants: 1. everything comes from the plan: the same plan gives the same trace; 2. the run ends at the first violation; 3. one run at a time in a process, since the seams belong to the
 * classes of the product.
 */

import { fromLatin1 } from '../../base/bytes.js'
import { metaGroup } from '../../engine/command.js'
import type { Replica } from '../../engine/replica.js'
import { type ClusterMap, decodeClusterMap, makeClusterMap } from '../../shard/cluster-map.js'
import { mapKey } from '../../shard/map-keeper.js'
import { History } from '../history.js'
import { InvariantViolation } from '../simulation/invariants.js'
import { NodeInvariants } from './checker.js'
import { NodeFaults } from './faults.js'
import { NodeHealing } from './healing.js'
import { SimulatedNetwork } from './network.js'
import { observe } from './observers.js'
import { drawNodePlan, type NodePlan } from './plan.js'
import { RequestLedger } from './requests.js'
import { Seams } from './seams.js'
import { describeError, type NodeEnvironment, SimulatedNode } from './simulated-node.js'
import { NodeWatchers } from './watchers.js'
import { NodeWorkload } from './workload.js'
import { World } from './world.js'

/** A known bug: puts itself in by the seams. */
export type PlantBug = (seams: Seams) => void

export interface NodeSimulationOptions {
  readonly seed: number
  /** Replaces the plan that the seed draws. */
  readonly plan?: NodePlan
  readonly plant?: PlantBug
  /** Receives each event worth reading as one line. */
  readonly onLine?: (line: string) => void
}

export interface NodeViolation {
  readonly seed: number
  readonly invariant: string
  readonly message: string
}

export interface NodeSimulationResult {
  readonly seed: number
  readonly plan: NodePlan
  /** Events. */
  readonly steps: number
  readonly simulatedUs: number
  readonly frames: number
  readonly elections: number
  readonly committed: number
  readonly operations: Readonly<Record<string, number>>
  /** How often each kind of fault happened. */
  readonly faults: Readonly<Record<string, number>>
  /** How often states were reached that are worth reaching. */
  readonly reached: Readonly<Record<string, number>>
  readonly traceHash: string
  readonly violation: NodeViolation | null
}

/** A run that takes more events than this is wedged. */
const maxSteps = 20_000_000

class NodeSimulation {
  readonly world: World
  readonly network: SimulatedNetwork
  readonly foundingMap: ClusterMap
  readonly members: readonly SimulatedNode[]
  readonly nodes: readonly SimulatedNode[]
  readonly checker: NodeInvariants
  readonly history: History
  readonly requests: RequestLedger
  readonly faults: Record<string, number> = {}
  readonly #replicas = new Map<string, { life: number; replicas: Replica[] }>()
  readonly #onLine: ((line: string) => void) | undefined
  readonly plan: NodePlan
  readonly seams = new Seams()
  workload: NodeWorkload | null = null

  constructor(plan: NodePlan, { plant, onLine }: Pick<NodeSimulationOptions, 'plant' | 'onLine'>) {
    this.plan = plan
    this.#onLine = onLine
    this.world = new World(plan.seed)
    this.network = new SimulatedNetwork(this.world, plan.network, this.count)
    const names = Array.from({ length: plan.nodes }, (_, number) => `n${number + 1}`)
    const bootstrap = {
      nodes: names.map((id) => ({ id, address: `sim-${id}` })),
      groups: plan.groups,
      replicas: plan.replicas,
      shards: plan.shards,
    }
    this.foundingMap = makeClusterMap(bootstrap)
    this.checker = new NodeInvariants(this.foundingMap.groups, this.world, 1 + plan.clockDrift)
    this.history = new History({ runtime: { ...unusedRuntime, nowMs: () => this.world.nowUs / 1000 } })
    this.requests = new RequestLedger(this.world, this.checker, this.history)
    const clocks = this.world.stream('clocks')
    const environment: NodeEnvironment = {
      world: this.world,
      network: this.network,
      options: (node) => ({
        tuning: { ...plan.tuning, cacheBytes: 1 << 20 },
        attemptTimeoutMs: plan.attemptTimeoutMs,
        requestTimeoutMs: plan.tuning.electionTimeoutMs * 40,
        ...(node.role === 'member' && !node.isSpare ? { bootstrap } : { seeds: bootstrap.nodes.map(({ address }) => address) }),
      }),
      count: this.count,
      trace: this.trace,
      violation: (invariant, message) => this.#violation(invariant, message),
      isDamaged: (node) => this.checker.hasDamage(node.name),
      onStored: (node, note) => this.checker.onStored(node.name, note as Parameters<NodeInvariants['onStored']>[1]),
    }
    const make = (name: string, number: number, kind: 'founder' | 'spare' | 'client'): SimulatedNode =>
      new SimulatedNode(environment, number, name, kind, plan.disk, 1 + (clocks.next() * 2 - 1) * plan.clockDrift)
    const founders = names.map((name, number) => make(name, number, 'founder'))
    const spares = Array.from({ length: plan.spareNodes }, (_, number) => make(`s${number + 1}`, plan.nodes + number, 'spare'))
    this.members = [...founders, ...spares]
    const clients = Array.from({ length: plan.clientNodes }, (_, number) => make(`c${number + 1}`, this.members.length + number, 'client'))
    this.nodes = [...this.members, ...clients]
    const byAddress = new Map(this.nodes.map((node) => [node.address, node]))
    const byName = new Map(this.nodes.map((node) => [node.name, node]))
    this.network.onOperation = (address) => byAddress.get(address)?.onOperation()
    observe(this.seams, {
      checker: this.checker,
      current: () => (this.world.current?.alive ? this.world.current.name : null),
      nodeAt: (address) => byAddress.get(address)?.name,
      noteWrite: (name, note) => {
        const node = byName.get(name)!
        node.disk.file(node.logLocation).note = note
      },
      onReplica: (name, replica) => this.#onReplica(byName.get(name)!, replica),
    })
    this.requests.observe(this.seams)
    plant?.(this.seams)
  }

  /** Violations that are noticed in the midst of a node's code: told to the world, not thrown. */
  #violation(invariant: string, message: string): void {
    try {
      this.checker.violation(invariant, message)
    } catch {
      // The world knows.
    }
  }

  #onReplica(node: SimulatedNode, replica: Replica): void {
    const known = this.#replicas.get(node.name)
    if (known?.life === node.life) known.replicas.push(replica)
    else this.#replicas.set(node.name, { life: node.life, replicas: [replica] })
  }

  /** The replicas of a node's present life. */
  readonly replicas = (node: SimulatedNode): readonly Replica[] => {
    const known = this.#replicas.get(node.name)
    return known?.life === node.life && node.state !== 'down' ? known.replicas.filter(({ stopped }) => !stopped) : []
  }

  /** The cluster map, as far as it is committed: the founders' until somebody has changed it. */
  readonly map = (): ClusterMap => {
    const stored = this.checker.group(metaGroup).reference.values.get(mapKey.toString('utf8'))
    return stored === undefined ? this.foundingMap : decodeClusterMap(fromLatin1(stored.value))
  }

  readonly count = (fault: string): void => {
    this.faults[fault] = (this.faults[fault] ?? 0) + 1
  }

  readonly trace = (node: string, event: string, detail = ''): void => {
    for (let position = 0; position < event.length; position++) this.world.mix(event.charCodeAt(position))
    this.#onLine?.(`${(this.world.nowUs / 1e6).toFixed(6).padStart(12)}  ${node.padEnd(3)} ${event.padEnd(14)} ${detail}`)
  }

  async run(): Promise<void> {
    const { world, plan } = this
    for (const node of this.nodes) if (!node.isSpare) node.start()
    const faults = new NodeFaults(this, plan.faults)
    const workload = new NodeWorkload(
      {
        world,
        history: this.history,
        home: (client) => this.nodes[plan.clients[client]! % this.nodes.length]!,
        violation: (invariant, message) => this.#violation(invariant, message),
        trace: this.trace,
      },
      plan.operations,
    )
    this.workload = workload
    const watchers = new NodeWatchers({
      world,
      plan,
      checker: this.checker,
      home: (client) => this.nodes[plan.clients[client]! % this.nodes.length]!,
      violation: (invariant, message) => this.#violation(invariant, message),
    })
    const restartEnded = (): void => {
      for (const node of this.nodes) if (node.state === 'down' && node.mustTryAgain) node.start()
    }
    for (let nowUs = 0; nowUs < plan.faultyUs; nowUs += plan.faultyUs / 20) {
      await world.runUntil(() => false, plan.faultyUs / 20, maxSteps)
      restartEnded()
    }
    workload.stop()
    faults.stop()
    await new NodeHealing({
      world,
      plan,
      network: this.network,
      nodes: this.nodes,
      members: this.members,
      checker: this.checker,
      workload,
      requests: this.requests,
      watchers,
      history: this.history,
      map: this.map,
      replicas: this.replicas,
      trace: this.trace,
    }).run()
  }
}

const unusedRuntime = {
  wallClockMs: () => 0,
  random: () => 0,
  randomBytes: (length: number) => new Uint8Array(length),
  defer: () => {},
  schedule: () => () => {},
}

/** Runs one seed, or one plan, to its end or to the first violation. */
export async function runNodeSimulation(options: NodeSimulationOptions): Promise<NodeSimulationResult> {
  const plan = options.plan ?? drawNodePlan(options.seed)
  const simulation = new NodeSimulation(plan, options)
  const { world, checker } = simulation
  let violation: NodeViolation | null = null
  const { stackTraceLimit } = Error
  // Errors are made by the thousand, as answers; their stacks would cost more than all else about them.
  Error.stackTraceLimit = 4
  const onRejection = (error: unknown): void => world.fail(new Error('a rejection that nobody handles', { cause: error }))
  // Whoever else listens, a test runner say, would take it for its own.
  const others = process.rawListeners('unhandledRejection') as ((error: unknown) => void)[]
  process.removeAllListeners('unhandledRejection')
  process.on('unhandledRejection', onRejection)
  try {
    await simulation.run()
  } catch (error) {
    const known = error instanceof InvariantViolation
    violation = { seed: plan.seed, invariant: known ? error.invariant : 'exception', message: known ? error.message : describeError(error) }
    simulation.trace('-', 'VIOLATION', `${violation.invariant}: ${violation.message}`)
  } finally {
    for (const node of simulation.nodes) node.process?.kill()
    simulation.seams.remove()
    Error.stackTraceLimit = stackTraceLimit
    await new Promise((resolve) => setImmediate(resolve))
    process.off('unhandledRejection', onRejection)
    for (const listener of others) process.on('unhandledRejection', listener)
  }
  let committed = 0
  let repeats = 0
  let forgotten = 0
  let refusals = 0
  for (const [, group] of checker.groups) {
    committed += group.committed.lastIndex
    repeats += group.reference.repeats
    forgotten += group.reference.forgotten
    refusals += group.reference.refusals
  }
  return {
    seed: plan.seed,
    plan,
    steps: world.queue.steps,
    simulatedUs: world.nowUs,
    frames: simulation.network.counters.sent,
    elections: checker.elections,
    committed,
    operations: simulation.workload?.counts ?? {},
    faults: simulation.faults,
    reached: {
      ...checker.reached,
      'message-checked': checker.sendsChecked,
      'repeated-request': repeats,
      'session-forgotten': forgotten,
      'session-refused': refusals,
    },
    traceHash: world.hash,
    violation,
  }
}
