/**
 * The end of a run: faults stop, first for a majority alone, then for all.
 *
 * R18 liveness: 1. once a majority is up, mutually connected and sound, a leader serves within `healElectionTimeouts` election timeouts, whatever the others
 * are: down, still, cut off in one direction, or connected to some of it, and goes on leading, unless what one of those others sent as a leader leaves nobody who could win; 2. once all are sound, no joint configuration is in force, the logs and states of all members become the same, and nothing
 * that was asked still waits; 3. every acknowledged write is in every log (R8), no command is there twice (K3), and none that was refused or lost (K4).
 */
import { hasQuorum, isMember, isVoter } from '../../raft/quorum.js'
import type { Configuration, NodeId } from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import type { EventQueue } from './event-queue.js'
import { type InvariantChecker, InvariantViolation } from './invariants.js'
import type { SimulatedNetwork } from './network.js'
import { calmNetwork, type SimulationPlan } from './plan.js'
import type { SimulatedReplica } from './replica.js'
import { commandIdOf, type Workload } from './workload.js'

/** Within how many election timeouts after the last fault a leader must serve. */
export const healElectionTimeouts = 20

/** Term and index of the last entry of a replica's log. */
function lastOf({ core, disk }: SimulatedReplica): readonly [number, number] {
  return core === null ? [disk.shape.lastTerm, disk.lastIndex] : [core.termAt(core.lastIndex) ?? 0, core.lastIndex]
}

export interface HealingEnvironment {
  readonly queue: EventQueue
  readonly plan: SimulationPlan
  readonly replicas: readonly SimulatedReplica[]
  readonly network: SimulatedNetwork
  readonly checker: InvariantChecker
  readonly workload: Workload
  stream(name: string): SeededRandom
  runUntil(condition: () => boolean, durationUs: number): boolean
  reach(state: string): void
  trace(id: string, event: string, a: number, b: number, detail: () => string): void
}

export class Healing {
  readonly #environment: HealingEnvironment
  readonly #random: SeededRandom
  readonly #electionTimeoutUs: number

  constructor(environment: HealingEnvironment) {
    this.#environment = environment
    this.#random = environment.stream('healing')
    this.#electionTimeoutUs = environment.plan.host.limits.electionTimeoutMs * 1000
  }

  run(): void {
    const { replicas, checker, workload, trace } = this.#environment
    const size = replicas.length
    const sound = this.#drawSound()
    this.#healSome(sound)
    if (sound.length < size) {
      this.#environment.reach('majority-alone-healed')
      const when = `${sound.map(({ id }) => id)} are sound and connected`
      const ends = sound.map((replica) => lastOf(replica))
      const isServed = this.#serve(when, () => this.#isSpoiled(sound, ends)) > 0
      if (isServed) this.#stay(when)
      else this.#environment.reach('majority-alone-spoiled')
    }
    trace.call(this.#environment, '-', 'heal', size, size, () => 'all')
    this.#healAll()
    const freshIndex = this.#serve('all are sound and connected')
    this.#converge(freshIndex)
    this.#stay('all are sound and connected')
    checker.checkFinal(
      this.#members().map(({ id }) => id),
      commandIdOf,
    )
    workload.checkFinal(checker.appliedEntries)
  }

  /** Some replicas that are a quorum by every configuration that anybody goes by, or might after a restart. */
  #drawSound(): SimulatedReplica[] {
    const { replicas, checker } = this.#environment
    // What an operator has just asked for may be taken by a leader that wakes up later.
    for (const replica of replicas) replica.forgetRequests()
    const order = this.#random.shuffle(replicas)
    const all = replicas.flatMap(({ core, disk }) => [core?.configuration, disk.configurations().at(-1)?.configuration])
    all.push(...checker.pendingConfigurations)
    const configurations = all.filter((configuration) => configuration !== undefined && configuration.voters.length > 0) as Configuration[]
    let count = this.#random.integer(1, replicas.length)
    const isSound = (id: NodeId): boolean => order.slice(0, count).some((replica) => replica.id === id)
    const isEnough = (): boolean =>
      configurations.every((configuration) => hasQuorum(configuration, isSound)) && this.#canElect(order.slice(0, count))
    while (count < replicas.length && !isEnough()) count++
    return order.slice(0, count)
  }

  /** Whether one of these can win with the votes of these: a learner with a longer log may stand against all others, and is no candidate itself. */
  #canElect(sound: readonly SimulatedReplica[]): boolean {
    return sound.some((candidate) => {
      const configuration = candidate.core?.configuration ?? candidate.disk.configurations().at(-1)?.configuration
      if (configuration === undefined || !isVoter(configuration, candidate.id)) return false
      const [term, index] = lastOf(candidate)
      return hasQuorum(configuration, (id) => {
        const voter = sound.find((replica) => replica.id === id)
        if (voter === undefined) return false
        const [voterTerm, voterIndex] = lastOf(voter)
        return term > voterTerm || (term === voterTerm && index >= voterIndex)
      })
    })
  }

  /**
   * Whether none of these can win any more, since one that is not of them led and could still send to some of them: what it appended to one that is no candidate, a learner to that leader, stands against
   * all who are, when they need that vote by a configuration of their own. Raft promises nothing then; it is over when that leader, or one who may vote for it, is sound.
   */
  #isSpoiled(sound: readonly SimulatedReplica[], ends: readonly (readonly [number, number])[]): boolean {
    if (this.#canElect(sound)) return false
    return sound.some((replica, position) => {
      const [term, index] = lastOf(replica)
      const [termBefore, indexBefore] = ends[position] as readonly [number, number]
      const isNew = term !== termBefore || index !== indexBefore
      return isNew && !sound.some(({ id }) => id === this.#environment.checker.leaderOf(term))
    })
  }

  /** Who takes part, by the leader of the highest term. */
  #members(): SimulatedReplica[] {
    const { replicas } = this.#environment
    let leader: SimulatedReplica | undefined
    for (const replica of replicas) {
      if (replica.core?.role === 'leader' && !replica.paused && replica.core.term > (leader?.core?.term ?? 0)) leader = replica
    }
    const configuration = leader?.core?.configuration
    return configuration === undefined || configuration.votersOutgoing.length > 0 ? [] : replicas.filter(({ id }) => isMember(configuration, id))
  }

  #healSome(sound: readonly SimulatedReplica[]): void {
    const { replicas, network, plan, trace } = this.#environment
    const random = this.#random
    network.calm(calmNetwork(plan.host.limits.electionTimeoutMs), this.#electionTimeoutUs)
    for (const replica of replicas) this.#calm(replica)
    trace.call(this.#environment, '-', 'heal', sound.length, replicas.length, () => sound.map(({ id }) => id).join(' '))
    for (const replica of replicas) {
      if (sound.includes(replica)) this.#wake(replica)
      else {
        const fate = random.next()
        if (fate < 0.3) replica.crash()
        else if (fate < 0.4) replica.pause()
        else this.#wake(replica)
        for (const other of replicas) {
          if (other === replica) continue
          if (random.chance(0.5)) network.cut(replica.id, other.id)
          if (random.chance(0.5)) network.cut(other.id, replica.id)
        }
      }
    }
  }

  #healAll(): void {
    const { replicas, network, plan } = this.#environment
    network.calm(calmNetwork(plan.host.limits.electionTimeoutMs), this.#electionTimeoutUs)
    for (const replica of replicas) this.#wake(replica)
  }

  #calm(replica: SimulatedReplica): void {
    const { plan } = this.#environment
    const electionTimeoutUs = this.#electionTimeoutUs
    replica.clockRate = 1 + (this.#random.next() * 2 - 1) * Math.min(plan.clockDrift, 0.1)
    replica.disk.calm({ writeMeanUs: Math.min(plan.disk.writeMeanUs, electionTimeoutUs / 100), readMeanUs: Math.min(plan.disk.readMeanUs, 100) })
    replica.model = {
      ...plan.host,
      applyDelayUs: Math.min(plan.host.applyDelayUs, 1000),
      snapshotUs: Math.min(plan.host.snapshotUs, electionTimeoutUs / 2),
      crashAtChange: 0,
      crashAtConfiguration: 0,
      crashAtTruncation: 0,
    }
  }

  #wake(replica: SimulatedReplica): void {
    if (!replica.up) replica.start()
    else if (replica.paused) replica.resume(false)
  }

  /** A fresh write must be acknowledged in time, unless there is an excuse; returns where, or 0. */
  #serve(when: string, isExcused: () => boolean = () => false): number {
    const { queue, replicas, checker, workload, runUntil } = this.#environment
    const electionTimeoutUs = this.#electionTimeoutUs
    const fresh: number[] = []
    let proposedAtUs = Number.NEGATIVE_INFINITY
    let freshIndex = 0
    const led = (): boolean => replicas.some(({ core, paused }) => core?.role === 'leader' && !paused)
    const served = (): boolean => {
      for (const command of fresh) freshIndex = Math.max(freshIndex, checker.indexOf(command) ?? 0)
      if (freshIndex > 0) return true
      // Proposes again and again, to all who claim to lead: an earlier proposal may have been lost with its leader.
      if (queue.nowUs - proposedAtUs < electionTimeoutUs / 2) return false
      for (const replica of replicas) {
        if (replica.core?.role !== 'leader' || replica.paused) continue
        proposedAtUs = queue.nowUs
        fresh.push(workload.propose(replica, 8))
      }
      return false
    }
    const startedUs = queue.nowUs
    if (!runUntil.call(this.#environment, led, electionTimeoutUs * healElectionTimeouts)) {
      if (isExcused()) return 0
      throw new InvariantViolation('R18', `nobody leads ${healElectionTimeouts} election timeouts after ${when}: ${this.#describe()}`)
    }
    if (!runUntil.call(this.#environment, served, electionTimeoutUs * healElectionTimeouts + this.#backlogUs())) {
      if (isExcused()) return 0
      throw new InvariantViolation('R18', `no write was served since ${when}: ${this.#describe()}`)
    }
    const timeouts = (queue.nowUs - startedUs) / electionTimeoutUs
    this.#environment.reach(`served-within-${[1, 2, 4, 8, 16].find((limit) => timeouts <= limit) ?? 'more'}-election-timeouts`)
    return freshIndex
  }

  /** Once it serves and nothing changes any more, the leader must not change either, whoever cannot hear it. */
  #stay(when: string): void {
    const { runUntil } = this.#environment
    const electionTimeoutUs = this.#electionTimeoutUs
    // One whose term is higher may still have to be heard of.
    runUntil.call(this.#environment, () => false, electionTimeoutUs * 5)
    const before = this.#leader()
    runUntil.call(this.#environment, () => false, electionTimeoutUs * 10)
    const after = this.#leader()
    if (before !== after) throw new InvariantViolation('R18', `the leader changed from ${before} to ${after} long since ${when}: ${this.#describe()}`)
  }

  #leader(): string {
    let leader = 'nobody'
    let highest = 0
    for (const { id, core, paused } of this.#environment.replicas) {
      if (core?.role !== 'leader' || paused || core.term < highest) continue
      highest = core.term
      leader = `${id} of term ${core.term}`
    }
    return leader
  }

  /** What is in the logs already goes first, and may travel in small pieces: one round trip an entry at worst. */
  #backlogUs(): number {
    const entries = Math.max(...this.#environment.replicas.map(({ disk }) => disk.lastIndex))
    return (entries * this.#electionTimeoutUs) / 10
  }

  #converge(freshIndex: number): void {
    const { replicas, runUntil } = this.#environment
    const same = (): boolean => {
      const members = this.#members()
      const first = members[0]
      // Whoever takes no part any more may never learn what became of the entries in its log.
      if (first === undefined || !replicas.every(({ core, unanswered }) => core !== null && unanswered === 0)) return false
      return members.every(
        ({ core, appliedIndex, disk, waiting }) =>
          core !== null &&
          waiting === 0 &&
          appliedIndex >= freshIndex &&
          appliedIndex === first.appliedIndex &&
          core.lastIndex === appliedIndex &&
          disk.lastIndex === appliedIndex &&
          disk.shape.hashAt(appliedIndex) === first.disk.shape.hashAt(appliedIndex),
      )
    }
    if (!runUntil.call(this.#environment, same, this.#electionTimeoutUs * healElectionTimeouts + this.#backlogUs())) {
      throw new InvariantViolation('R18', `the replicas did not converge after the last fault: ${this.#describe()}`)
    }
    const [first, ...others] = this.#members() as [SimulatedReplica, ...SimulatedReplica[]]
    for (const { id, stateHash } of others) {
      if (stateHash !== first.stateHash) throw new InvariantViolation('R14', `${id} ends with another state than ${first.id}`)
    }
  }

  #describe(): string {
    return this.#environment.replicas
      .map(({ id, core, paused, appliedIndex, disk, waiting }) =>
        core === null
          ? `${id} down`
          : `${id} ${core.configuration.voters.includes(id) ? '' : 'no voter '}${paused ? 'paused ' : ''}${core.role} term ${core.term} last ${core.lastIndex} durable ${disk.lastIndex} commit ${core.commitIndex} applied ${appliedIndex} waiting ${waiting}`,
      )
      .join('; ')
  }
}
