/**
 * The faults of a plan, carried out: each begins at its time and undoes what it did at its end. Faults overlap.
 *
 * Invariants: 1. each fault undoes only what it did; 2. after `stop` none begins or ends any more: whoever heals undoes what lasts.
 */
import type { Replica } from '../../engine/replica.js'
import type { ClusterMap } from '../../shard/cluster-map.js'
import type { NodeInvariants } from './checker.js'
import type { SimulatedNetwork } from './network.js'
import type { PlannedFault } from './plan.js'
import type { SimulatedNode } from './simulated-node.js'
import type { World } from './world.js'

export interface FaultTargets {
  readonly world: World
  readonly network: SimulatedNetwork
  readonly checker: NodeInvariants
  /** The cluster map, as far as it is committed. */
  map(): ClusterMap
  /** Nodes with data, spare ones last. */
  readonly members: readonly SimulatedNode[]
  /** The replicas of a node's present life. */
  replicas(node: SimulatedNode): readonly Replica[]
  /** All nodes. */
  readonly nodes: readonly SimulatedNode[]
  count(fault: string): void
  trace(node: string, event: string, detail?: string): void
}

const changePatienceUs = 5_000_000

export class NodeFaults {
  readonly #targets: FaultTargets
  #stopped = false
  /** Until then a change of members may be under way that nobody sees yet. */
  #quietUntilUs = 0

  constructor(targets: FaultTargets, faults: readonly PlannedFault[]) {
    this.#targets = targets
    const { world } = targets
    for (const fault of faults) world.schedule(fault.atUs - world.nowUs, () => this.#begin(fault))
  }

  stop(): void {
    this.#stopped = true
  }

  #after(delayUs: number, task: () => void): void {
    this.#targets.world.schedule(delayUs, () => {
      if (!this.#stopped) task()
    })
  }

  #restartAfter(node: SimulatedNode, delayUs: number): void {
    this.#after(delayUs, () => node.start())
  }

  /** The node of a fault, or who leads its group now. */
  #target({ node, group }: PlannedFault): SimulatedNode {
    const { members } = this.#targets
    if (node >= 0) return members[node % members.length]!
    let found: SimulatedNode | undefined
    let highestTerm = -1
    for (const member of members) {
      for (const status of member.node?.status().groups ?? []) {
        if (status.group !== group || status.role !== 'leader' || status.term <= highestTerm) continue
        highestTerm = status.term
        found = member
      }
    }
    return found ?? members[group % members.length]!
  }

  /** Cuts every link for which the test says so. */
  #cutWhere(durationUs: number, test: (from: SimulatedNode, to: SimulatedNode) => boolean): void {
    const { nodes, network } = this.#targets
    const heals: (() => void)[] = []
    for (const from of nodes) for (const to of nodes) if (from !== to && test(from, to)) heals.push(network.cut(from.address, to.address))
    this.#after(durationUs, () => {
      for (const heal of heals) heal()
    })
  }

  #begin(fault: PlannedFault): void {
    if (this.#stopped) return
    const { kind, durationUs, amount } = fault
    const { members, network, nodes, count, trace } = this.#targets
    const target = this.#target(fault)
    const sideOf = (node: SimulatedNode): boolean => ((amount >>> (node.number % 31)) & 1) === 1
    count(kind)
    trace('-', 'fault', `${kind} ${target.name} for ${(durationUs / 1e6).toFixed(3)} s`)
    // A life that ends by itself, because its disk failed, is followed by another.
    target.onEnded = () => this.#after(durationUs, () => this.#replaceLife(target))
    switch (kind) {
      case 'kill':
      case 'power-loss':
        target.crash(kind === 'power-loss')
        this.#restartAfter(target, durationUs)
        return
      case 'power-loss-all':
        for (const member of members) {
          member.crash(true)
          this.#restartAfter(member, durationUs)
        }
        return
      case 'crash-at-operation':
        target.operationsLeft = amount
        target.crashLosesPower = amount % 2 === 0
        return
      case 'crash-in-recovery':
        target.crash(true)
        this.#crashInRecovery(target, durationUs, amount)
        return
      case 'close':
        target.close()
        this.#after(durationUs, () => {
          // Whoever closes a node that hangs ends its process.
          if (target.state === 'closing') target.crash(false)
          target.start()
        })
        return
      case 'wipe':
        this.#loseData(target, durationUs, () => {
          target.disk.wipe()
          this.#targets.checker.onWiped(target.name)
        })
        return
      case 'damage-log':
        this.#loseData(target, durationUs, () => this.#damageLog(target, fault.group))
        return
      case 'join':
        // A spare node that was not there yet; one that is there already has nothing to join.
        for (const spare of members) if (spare.isSpare && spare.life === 0 && sideOf(spare)) spare.start()
        return
      case 'remove':
      case 'replace':
        this.#changeMembers(target, fault)
        return
      case 'transfer':
        this.#transfer(this.#target({ ...fault, node: -1 }), fault)
        return
      case 'pause': {
        const { process } = target
        if (process === null || process.paused) return
        process.pause()
        this.#after(durationUs, () => process.resume())
        return
      }
      case 'slow-node': {
        const { process } = target
        process?.slow(amount)
        this.#after(durationUs, () => process?.slow(0))
        return
      }
      case 'slow-disk':
        target.disk.slowness = amount
        this.#after(durationUs, () => {
          target.disk.slowness = 1
        })
        return
      case 'hung-disk':
        target.disk.hangUntilUs = Math.max(target.disk.hangUntilUs, this.#targets.world.nowUs + durationUs)
        return
      case 'failing-disk':
      case 'full-disk':
        target.disk.failNext = kind === 'full-disk' ? 'disk-full' : 'io-error'
        return
      case 'partition':
        this.#cutWhere(durationUs, (from, to) => sideOf(from) !== sideOf(to))
        return
      case 'isolate':
        this.#cutWhere(durationUs, (from, to) => from === target || to === target)
        return
      case 'one-way':
        this.#cutWhere(durationUs, (from, to) => (amount % 2 === 0 ? from === target : to === target))
        return
      case 'bridge':
        this.#cutWhere(durationUs, (from, to) => from !== target && to !== target && sideOf(from) !== sideOf(to))
        return
      case 'clog':
        for (const node of nodes) {
          if (node === target) continue
          if (amount % 3 !== 0) network.clog(target.address, node.address, durationUs)
          if (amount % 3 !== 1) network.clog(node.address, target.address, durationUs)
        }
        return
      default:
        kind satisfies never
    }
  }

  /** The leader is asked to hand its group over: to whoever is best, or to some node, which may be down or a stranger. */
  #transfer(leader: SimulatedNode, { group, amount }: PlannedFault): void {
    const { members } = this.#targets
    const replica = this.#targets.replicas(leader).find((each) => each.group === group)
    if (replica === undefined) return
    const to = amount % 3 === 0 ? null : members[amount % members.length]!.name
    leader.process?.complete(0, () => void replica.transfer(to))
  }

  /** The node's disk loses something: only where the groups can do without, since no more is promised. */
  #loseData(node: SimulatedNode, durationUs: number, lose: () => void): void {
    const { count } = this.#targets
    if (node.life === 0 || !this.#canLose(node)) return
    node.crash(true)
    lose()
    count('data-lost')
    this.#restartAfter(node, durationUs)
  }

  #canLose(node: SimulatedNode): boolean {
    const { checker, world, map } = this.#targets
    const { groups } = map()
    return world.nowUs >= this.#quietUntilUs && checker.canLose(node.name, (group) => groups.find(({ id }) => id === group)?.members ?? [])
  }

  /** A record of a group's log is damaged or gone: its replica can never be trusted again. */
  #damageLog(node: SimulatedNode, group: number): void {
    const prefixes = [0x01, 0x02, 0x03].map((type) => String.fromCharCode(type, group >> 8, group & 0xff))
    node.disk.file(node.logLocation).damage(
      (key) => prefixes.some((prefix) => key.startsWith(prefix)),
      // Of records with entries the last may be one that was never acknowledged.
      (key) => key.charCodeAt(0) !== 0x02,
    )
    this.#targets.checker.onDamaged(node.name, group)
  }

  /** Somebody asks for a node to go, or for another in its place. The node itself may go on, and not know. */
  #changeMembers(target: SimulatedNode, { kind, amount }: PlannedFault): void {
    const { members, world } = this.#targets
    const asker = members[amount % members.length]!
    const { node, process } = asker
    if (node === null || process === null || target.life === 0 || !this.#canLose(target)) return
    // Asked for is not done, and what was asked for by one who died since may be done late.
    this.#quietUntilUs = world.nowUs + changePatienceUs
    const other = members[(amount >>> 8) % members.length]!
    process.complete(0, () => {
      const { cluster } = node as unknown as {
        cluster?: { remove(id: string): Promise<unknown>; replace(old: string, next: string): Promise<unknown> }
      }
      if (cluster === undefined) return
      const change = kind === 'remove' ? cluster.remove(target.name) : cluster.replace(target.name, other.name)
      // It may be refused, or not be done in time.
      change.catch(() => {})
    })
  }

  #replaceLife(node: SimulatedNode): void {
    node.crash(false)
    node.start()
  }

  #crashInRecovery(node: SimulatedNode, durationUs: number, operations: number): void {
    this.#after(durationUs, () => {
      node.start()
      node.operationsLeft = operations
      node.crashLosesPower = true
    })
  }
}
