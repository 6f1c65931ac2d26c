/**
 * The simulated operator: asks whoever claims to lead for other members and for other leaders, at drawn times, whatever else is going on.
 *
 * Invariants: 1. every target has a voter; anything else may be asked for, also what leaves a group without the replicas that are sound just now; 2. after `stop` it asks nothing.
 */
import type { Configuration, NodeId } from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import type { EventQueue } from './event-queue.js'
import type { SimulatedNetwork } from './network.js'
import type { SimulationPlan } from './plan.js'
import type { SimulatedReplica } from './replica.js'

export interface OperatorEnvironment {
  readonly queue: EventQueue
  readonly plan: SimulationPlan
  readonly replicas: readonly SimulatedReplica[]
  stream(name: string): SeededRandom
  count(fault: string): void
  readonly network: SimulatedNetwork
  trace(id: NodeId, event: string, a: number, b: number, detail: () => string): void
}

/** Numbers of requests are apart from those of commands and reads. */
const firstRequestId = 1_000_000_000

type Place = 'voter' | 'learner' | 'nowhere'

export class Operator {
  readonly #environment: OperatorEnvironment
  readonly #random: SeededRandom
  #nextId = firstRequestId
  #stopped = false

  constructor(environment: OperatorEnvironment) {
    this.#environment = environment
    this.#random = environment.stream('operator')
    const { membershipEveryUs, transferEveryUs } = environment.plan
    if (membershipEveryUs > 0) this.#every(membershipEveryUs, (leader) => this.#configure(leader))
    if (transferEveryUs > 0) this.#every(transferEveryUs, (leader) => this.#transfer(leader))
  }

  stop(): void {
    this.#stopped = true
  }

  #every(meanUs: number, ask: (leader: SimulatedReplica) => void): void {
    this.#environment.queue.schedule(1 + this.#random.exponential(meanUs), () => {
      if (this.#stopped) return
      const claimants = this.#environment.replicas.filter(({ core }) => core?.role === 'leader')
      if (claimants.length > 0) ask(this.#random.pick(claimants))
      this.#every(meanUs, ask)
    })
  }

  #configure(leader: SimulatedReplica): void {
    const target = this.#target((leader.core as NonNullable<typeof leader.core>).configuration)
    const id = this.#nextId++
    this.#environment.count('configure')
    this.#environment.trace(leader.id, 'configure', id, target.voters.length, () => `voters ${target.voters} learners ${target.learners}`)
    leader.request({ type: 'configure', id, ...target })
  }

  /** Either one member changes its place, or all are drawn anew. */
  #target(current: Configuration): { voters: NodeId[]; learners: NodeId[] } {
    const random = this.#random
    const ids = this.#environment.replicas.map(({ id }) => id)
    const places = new Map<NodeId, Place>()
    for (const id of ids) places.set(id, current.voters.includes(id) ? 'voter' : current.learners.includes(id) ? 'learner' : 'nowhere')
    if (random.chance(0.6)) places.set(random.pick(ids), random.pick(['voter', 'voter', 'learner', 'nowhere'] as const))
    else for (const id of ids) places.set(id, random.pick(['voter', 'voter', 'voter', 'learner', 'nowhere'] as const))
    const voters = ids.filter((id) => places.get(id) === 'voter')
    if (voters.length === 0) {
      const chosen = random.pick(ids)
      places.set(chosen, 'voter')
      voters.push(chosen)
    }
    return { voters, learners: ids.filter((id) => places.get(id) === 'learner') }
  }

  #transfer(leader: SimulatedReplica): void {
    const id = this.#nextId++
    const to = this.#random.chance(0.3) ? null : this.#random.pick(this.#environment.replicas).id
    this.#environment.count('transfer')
    this.#environment.trace(leader.id, 'transfer', id, 0, () => `to ${to ?? 'whom it likes'}`)
    leader.request({ type: 'transfer', id, to })
    if (to !== null && to !== leader.id && this.#random.chance(0.3)) this.#demoteSoon(leader, to)
  }

  /** What told the other one to campaign arrives only after the leader gave that up, and perhaps after the other one was made a learner. */
  #demoteSoon(leader: SimulatedReplica, to: NodeId): void {
    const { queue, network, plan } = this.#environment
    const electionTimeoutUs = plan.host.limits.electionTimeoutMs * 1000
    this.#environment.count('late-handover')
    network.delay(leader.id, to, 'timeout-now', queue.nowUs + Math.floor(electionTimeoutUs * (1.5 + 2 * this.#random.next())))
    if (plan.membershipEveryUs === 0) return
    queue.schedule(Math.floor(electionTimeoutUs * 1.2), () => {
      const configuration = leader.core?.configuration
      if (this.#stopped || leader.core?.role !== 'leader' || configuration === undefined) return
      const voters = configuration.voters.filter((voter) => voter !== to)
      if (voters.length === 0) return
      const learners = [...configuration.learners.filter((learner) => learner !== to), to]
      leader.request({ type: 'configure', id: this.#nextId++, voters, learners })
    })
  }
}
