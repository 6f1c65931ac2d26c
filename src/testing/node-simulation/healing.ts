/**
 * The end of a run: faults stop, all nodes come back, and the cluster must be whole again.
 *
 * R18: every node opens, every group serves a write, and all replicas converge, within bounds of simulated time · R14, S3, D1: every key, read over the KV interface, scanned, and read from each replica's
 * own state, is what the log says · K1 the history is linearizable, K3, K4 what clients were told agrees with what was applied (`requests.ts`) · then all power fails at once, and all
 * that was committed must be there again.
 */

import { toLatin1 } from '../../base/bytes.js'
import { metaGroup, shardOf } from '../../engine/command.js'
import { nodeOf } from '../../engine/identity.js'
import type { Replica } from '../../engine/replica.js'
import type { ClusterMap } from '../../shard/cluster-map.js'
import type { History, Operation } from '../history.js'
import { checkHistory } from '../history-checker.js'
import type { NodeInvariants } from './checker.js'
import { judgeKey, type KnownWrite } from './known-order.js'
import type { SimulatedNetwork } from './network.js'
import { calmNetwork, keyNumbers, type NodePlan } from './plan.js'
import type { RequestLedger } from './requests.js'
import { describeError, type SimulatedNode } from './simulated-node.js'
import type { NodeWatchers } from './watchers.js'
import type { NodeWorkload } from './workload.js'
import { keyName } from './workload.js'
import type { World } from './world.js'

export interface HealingEnvironment {
  readonly world: World
  readonly plan: NodePlan
  readonly network: SimulatedNetwork
  readonly nodes: readonly SimulatedNode[]
  readonly members: readonly SimulatedNode[]
  readonly checker: NodeInvariants
  readonly workload: NodeWorkload
  readonly requests: RequestLedger
  readonly watchers: NodeWatchers
  readonly history: History
  /** The cluster map, as far as it is committed. */
  map(): ClusterMap
  /** The replicas of a node's present life. */
  replicas(node: SimulatedNode): readonly Replica[]
  trace(node: string, event: string, detail?: string): void
}

/** Within how many election timeouts each step must be done. */
const healElectionTimeouts = 80

/** Some steps have times of their own, whatever the election timeout: a snapshot whose source is gone is given up after ten seconds, members are looked at each second. */
const patienceUs = 60_000_000

export class NodeHealing {
  readonly #environment: HealingEnvironment

  constructor(environment: HealingEnvironment) {
    this.#environment = environment
  }

  async run(): Promise<void> {
    const { trace, nodes, checker, workload } = this.#environment
    trace('-', 'heal')
    this.#calm()
    // Those who were still may only learn now that their disk has failed.
    await this.#environment.world.runFor(this.#environment.plan.tuning.electionTimeoutMs * 2000)
    await this.#open()
    await this.#serve('1')
    if (!(await this.#eventually(() => workload.pending === 0)))
      this.#fail('R18', `${workload.pending} operations are not answered long after their deadlines`)
    await this.#converge()
    await this.#readAll('after healing')
    await this.#converge()
    this.#checkStates('after healing')
    this.#checkHistory()
    await this.#tellWatchers('after healing')
    trace('-', 'power-loss-all')
    for (const node of nodes) node.crash(true)
    await this.#open()
    await this.#serve('2')
    await this.#converge()
    await this.#readAll('after all power failed')
    this.#checkStates('after all power failed')
    await this.#tellWatchers('after all power failed')
    checker.reach('healed')
  }

  get #boundUs(): number {
    const { plan, checker } = this.#environment
    let entries = 0
    for (const [, { committed }] of checker.groups) entries = Math.max(entries, committed.lastIndex)
    // What is in the logs may travel in small pieces: one round trip, with the disk's and the network's time, for each entry at worst.
    const perEntryUs = 4 * (plan.disk.syncMeanUs + plan.disk.readMeanUs + 1000)
    return plan.tuning.electionTimeoutMs * 1000 * healElectionTimeouts + patienceUs + entries * perEntryUs * plan.groups
  }

  #calm(): void {
    const { network, nodes, plan } = this.#environment
    network.model = calmNetwork(plan.network)
    network.heal()
    for (const node of nodes) {
      node.onEnded = () => {}
      node.operationsLeft = Number.POSITIVE_INFINITY
      node.disk.calm()
      node.process?.slow(0)
      node.process?.resume()
    }
  }

  async #open(): Promise<void> {
    const { world, nodes } = this.#environment
    const allUp = (): boolean => {
      let up = true
      for (const node of nodes) {
        if (node.isAbsent) continue
        if (node.state === 'up' && node.hasFailed) node.crash(false)
        if (node.state === 'down') node.start()
        if (node.state !== 'up') up = false
      }
      return up
    }
    // Looked at now and then: a look at all nodes costs more than an event.
    if (!(await this.#eventually(allUp))) {
      this.#fail(
        'R18',
        `not all nodes are up long after the last fault: ${nodes.filter(({ up, isAbsent }) => !up && !isAbsent).map(({ name, state }) => `${name} ${state}`)}`,
      )
    }
    world.current = null
  }

  /** Looks at the condition every so often, until the bound of time is over. */
  async #eventually(condition: () => boolean): Promise<boolean> {
    const { world, plan } = this.#environment
    const endUs = world.nowUs + this.#boundUs
    while (!condition()) {
      if (world.nowUs >= endUs) return false
      await world.runFor(plan.tuning.electionTimeoutMs * 200)
    }
    return true
  }

  #fail(invariant: string, message: string): never {
    return this.#environment.checker.violation(invariant, `${message}\n${this.#describe()}`)
  }

  /** Runs something in a node's process, as its application. */
  async #ask<T>(node: SimulatedNode, what: string, ask: (kv: NonNullable<SimulatedNode['node']>['kv']) => Promise<T>): Promise<T> {
    const { world } = this.#environment
    const answer = new Promise<T>((resolve, reject) => {
      node.process!.complete(0, () => {
        ask(node.node!.kv).then(resolve, reject)
      })
    })
    let settled = false
    const mark = (): void => {
      settled = true
    }
    answer.then(mark, mark)
    if (!(await world.runUntil(() => settled, this.#boundUs))) this.#fail('R18', `${what} is not answered long after the last fault`)
    try {
      return await answer
    } catch (error) {
      return this.#fail('R18', `${what} failed long after the last fault: ${describeError(error)}`)
    }
  }

  /** Each group takes a write. */
  async #serve(round: string): Promise<void> {
    const { plan, checker, world } = this.#environment
    const nodes = this.#askable()
    const groups = [...checker.groups].map(([id]) => id).filter((id) => id !== metaGroup)
    const startedUs = world.nowUs
    for (let group = 0; group < groups.length; group++) {
      // Shards are dealt to groups in turn.
      const key = this.#keyOf(group)
      const node = nodes[(group + plan.seed) % nodes.length]!
      await this.#ask(node, `a write of ${key}`, (kv) => kv.put(key, `healed ${round} ${group}`, { timeoutMs: this.#boundUs / 1000 }))
    }
    const timeouts = (world.nowUs - startedUs) / 1000 / plan.tuning.electionTimeoutMs
    checker.reach(`served-within-${[1, 2, 4, 8, 16, 32].find((limit) => timeouts <= limit) ?? 'more'}-election-timeouts`)
  }

  /** A key in a shard of the group at this place; before all keys of the workload, so that no scan of it comes upon what is in no history. */
  #keyOf(group: number): string {
    const { plan } = this.#environment
    for (let number = 0; ; number++) {
      const key = `a-fresh-${number}`
      if (shardOf(Buffer.from(key), plan.shards) % plan.groups === group) return key
    }
  }

  /** W5 */
  async #tellWatchers(when: string): Promise<void> {
    const { watchers } = this.#environment
    const nodes = this.#askable()
    if (!(await this.#eventually(() => watchers.behind(nodes) === null))) this.#fail('W5', `${when} ${watchers.behind(nodes)}`)
  }

  async #converge(): Promise<void> {
    if (!(await this.#eventually(() => this.#converged()))) this.#fail('R18', 'the replicas did not converge long after the last fault')
  }

  /** The nodes that the cluster knows, and those that only ask it. */
  #askable(): readonly SimulatedNode[] {
    const { nodes } = this.#environment.map()
    return this.#environment.nodes.filter(({ name, role, isAbsent }) => !isAbsent && (role === 'client' || nodes.some(({ id }) => id === name)))
  }

  #converged(): boolean {
    const { checker, members } = this.#environment
    const map = this.#environment.map()
    for (const [group, { committed, configuration }] of checker.groups) {
      const wanted = map.groups.find(({ id }) => id === group)?.members ?? []
      if (configuration === null || configuration.votersOutgoing.length > 0 || configuration.learners.length > 0) return false
      if (configuration.voters.map(nodeOf).sort().join() !== [...wanted].sort().join()) return false
      for (const voter of configuration.voters) {
        const node = members.find(({ name }) => name === nodeOf(voter))
        const replica = node && this.#environment.replicas(node).find((each) => each.group === group)
        if (replica === undefined || replica.member !== voter) return false
        const { lastIndex } = replica.core
        if (lastIndex !== committed.lastIndex || replica.appliedIndex !== lastIndex) return false
        const { shape } = checker.stored(nodeOf(voter), group)
        if (shape.lastIndex !== lastIndex || shape.hashAt(lastIndex) !== committed.hashAt(lastIndex)) return false
      }
    }
    return true
  }

  async #readAll(when: string): Promise<void> {
    const { plan, checker, world } = this.#environment
    const nodes = this.#askable()
    const expected = this.#expected()
    const keys = [...new Set([...keyNumbers(plan.keys).map(keyName), ...expected.keys()])]
    const node = nodes[world.stream(`reader ${when}`).integer(0, nodes.length - 1)]!
    const found = await this.#ask(node, 'a read of every key', (kv) => kv.getMany(keys, { timeoutMs: this.#boundUs / 1000 }))
    for (const [position, key] of keys.entries()) {
      const entry = found[position]
      const wanted = expected.get(key)
      const value = entry === undefined ? undefined : toLatin1(entry.value)
      if (value !== wanted?.value || entry?.version !== wanted?.version || entry?.revision !== wanted?.revision) {
        this.#fail(
          'S3',
          `${when} a read of ${key} gives version ${entry?.version} = ${value?.slice(0, 40)}; the log says version ${wanted?.version} = ${wanted?.value.slice(0, 40)}`,
        )
      }
    }
    const scanned = await this.#ask(node, 'a scan of everything', async (kv) => {
      const entries: [string, number][] = []
      for await (const { key, version } of kv.scan({ timeoutMs: this.#boundUs / 1000 })) entries.push([Buffer.from(key).toString('utf8'), version])
      return entries
    })
    const wanted = [...expected].map(([key, { version }]): [string, number] => [key, version]).sort(([one], [other]) => (one < other ? -1 : 1))
    if (JSON.stringify(scanned) !== JSON.stringify(wanted))
      this.#fail('K6', `${when} a scan gives ${JSON.stringify(scanned)}; the log says ${JSON.stringify(wanted)}`)
    checker.reach('read-all')
  }

  #expected(): Map<string, { version: number; revision: number; value: string }> {
    const expected = new Map<string, { version: number; revision: number; value: string }>()
    for (const [group, { reference }] of this.#environment.checker.groups) {
      if (group !== metaGroup) for (const [key, value] of reference.values) expected.set(key, value)
    }
    return expected
  }

  /** Every replica's own state, key by key. */
  #checkStates(when: string): void {
    const { members, checker } = this.#environment
    for (const member of members) {
      for (const replica of this.#environment.replicas(member)) {
        const { reference, configuration } = checker.group(replica.group)
        if (!configuration?.voters.includes(replica.member)) continue
        for (const [key, { version, revision, value, shard }] of reference.values) {
          const record = replica.machine.read(shard, Buffer.from(key))
          if (record?.version !== version || record.revision !== revision || toLatin1(record.value) !== value) {
            this.#fail('R14', `${when} ${member.name} holds version ${record?.version} of ${key} in group ${replica.group}; the log says ${version}`)
          }
        }
      }
    }
  }

  #checkHistory(): void {
    const { checker, requests, history } = this.#environment
    requests.judge()
    const writes = new Map<string, readonly KnownWrite[]>()
    for (const [, { reference }] of checker.groups) for (const [key, list] of reference.writes) writes.set(key, list)
    for (const [key, operations] of byKey(history.operations)) {
      const problem = judgeKey(operations, writes.get(key) ?? [])
      if (problem !== null) this.#fail('K1', `key "${key}": ${problem}`)
    }
    // The search knows nothing of the log: where it gets to an end, the two must agree.
    const result = checkHistory(history.operations, { maxConfigurations: 3000 })
    if (result.ok) checker.reach('history-searched')
    else if (result.reason !== 'out-of-budget') this.#fail('K1', `at key "${result.key}": ${result.message}`)
  }

  #describe(): string {
    const { members, checker } = this.#environment
    return members
      .map((member) => {
        const groups = this.#environment.replicas(member).map((replica) => {
          const { role, term, leader, commitIndex, lastIndex } = replica.core
          const { shape } = checker.stored(member.name, replica.group)
          return `group ${replica.group} ${replica.member} ${role} of term ${term} (leader ${leader}) last ${lastIndex} stored ${shape.lastIndex} commit ${commitIndex} applied ${replica.appliedIndex}`
        })
        return `${member.name} ${member.isAbsent ? 'absent' : member.state}: ${groups.join('; ')}`
      })
      .concat([...checker.groups].map(([group, { configuration }]) => `group ${group}: ${JSON.stringify(configuration)}`))
      .concat(JSON.stringify(this.#environment.map().groups))
      .join('\n')
  }
}

function byKey(operations: readonly Operation[]): Map<string, Operation[]> {
  const keys = new Map<string, Operation[]>()
  for (const operation of operations) {
    const list = keys.get(operation.key)
    if (list === undefined) keys.set(operation.key, [operation])
    else list.push(operation)
  }
  return keys
}
