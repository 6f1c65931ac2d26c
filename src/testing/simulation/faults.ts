/**
 * The fault injector: starts faults of the plan's kinds at drawn times and ends each after a drawn time. Faults overlap.
 *
 * Invariants: 1. each fault undoes only what it did; 2. after `stop` it does nothing.
 */
import type { Message, NodeId } from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import type { EventQueue } from './event-queue.js'
import type { SimulatedNetwork } from './network.js'
import type { FaultKind, SimulationPlan } from './plan.js'
import type { SimulatedReplica } from './replica.js'

export interface FaultEnvironment {
  readonly queue: EventQueue
  readonly plan: SimulationPlan
  readonly replicas: readonly SimulatedReplica[]
  readonly network: SimulatedNetwork
  stream(name: string): SeededRandom
  count(fault: string): void
  trace(id: NodeId, event: string, a: number, b: number, detail: () => string): void
}

const messageTypes: readonly Message['type'][] = [
  'pre-vote-request',
  'pre-vote-reply',
  'vote-request',
  'vote-reply',
  'append-request',
  'append-reply',
  'heartbeat',
  'heartbeat-reply',
  'snapshot-offer',
  'timeout-now',
]

export class FaultInjector {
  readonly #environment: FaultEnvironment
  readonly #random: SeededRandom
  #stopped = false

  constructor(environment: FaultEnvironment) {
    this.#environment = environment
    this.#random = environment.stream('faults')
    for (const replica of environment.replicas) {
      replica.onCrashedItself = () => this.#restartLater(replica)
    }
    if (environment.plan.faults.length > 0) this.#next()
  }

  /** Starts and ends nothing any more: whoever heals undoes what still lasts. */
  stop(): void {
    this.#stopped = true
  }

  #next(): void {
    const { plan, queue } = this.#environment
    if (plan.faultEveryUs === Number.POSITIVE_INFINITY) return
    queue.schedule(1 + this.#random.exponential(plan.faultEveryUs), () => {
      if (this.#stopped) return
      this.#inject(this.#random.pick(plan.faults))
      this.#next()
    })
  }

  #lasting(): number {
    return 1 + this.#random.exponential(this.#environment.plan.faultLastsUs)
  }

  #after(delayUs: number, task: () => void): void {
    this.#environment.queue.schedule(delayUs, () => {
      if (!this.#stopped) task()
    })
  }

  #anyone(): SimulatedReplica {
    return this.#random.pick(this.#environment.replicas)
  }

  /** The leader of the highest term that somebody claims to lead, or anyone. */
  #leader(): SimulatedReplica {
    let found: SimulatedReplica | undefined
    for (const replica of this.#environment.replicas) {
      if (replica.core?.role === 'leader' && (found?.core == null || replica.core.term > found.core.term)) found = replica
    }
    return found ?? this.#anyone()
  }

  #crash(replica: SimulatedReplica, again: boolean): void {
    if (!replica.up) return
    replica.crash()
    this.#restartLater(replica, again)
  }

  #restartLater(replica: SimulatedReplica, again = false): void {
    if (this.#stopped) {
      // A disk that was told to fail before failed only now.
      replica.start()
      return
    }
    this.#after(this.#lasting(), () => {
      if (replica.up) return
      replica.start()
      if (!again) return
      this.#after(this.#random.integer(0, 19_999), () => {
        if (replica.up) this.#environment.count('crash-in-recovery')
        this.#crash(replica, this.#random.chance(0.7))
      })
    })
  }

  #pause(replica: SimulatedReplica): void {
    if (!replica.up || replica.paused) return
    replica.pause()
    const { incarnation } = replica
    const stale = this.#random.chance(0.5)
    this.#after(this.#lasting(), () => {
      if (replica.incarnation === incarnation && replica.paused) replica.resume(stale)
    })
  }

  /** Cuts every link for which the test says so, for a while. */
  #cutWhere(test: (from: number, to: number) => boolean, durationUs = this.#lasting()): void {
    const { replicas, network } = this.#environment
    const heals: (() => void)[] = []
    replicas.forEach((from, fromPosition) => {
      replicas.forEach((to, toPosition) => {
        if (from !== to && test(fromPosition, toPosition)) heals.push(network.cut(from.id, to.id))
      })
    })
    if (this.#random.chance(0.3)) this.#hints()
    this.#after(durationUs, () => {
      for (const heal of heals) heal()
    })
  }

  #slowClock(replica: SimulatedReplica, durationUs: number): void {
    const rate = replica.clockRate
    if (rate < 0.25) return
    replica.clockRate = rate * this.#random.pick([0.001, 0.1, 0.3])
    this.#after(durationUs, () => {
      replica.clockRate = rate
    })
  }

  #hints(): void {
    const replica = this.#anyone()
    for (const peer of this.#environment.replicas) {
      if (peer !== replica && !replica.paused && this.#random.chance(0.5)) replica.unreachable(peer.id)
    }
  }

  #inject(kind: FaultKind): void {
    const environment = this.#environment
    const { replicas, network, queue, plan } = environment
    const random = this.#random
    const size = replicas.length
    environment.count(kind)
    environment.trace('-', 'fault', 0, 0, () => kind)
    switch (kind) {
      case 'crash':
        this.#crash(this.#anyone(), false)
        return
      case 'crash-leader':
        this.#crash(this.#leader(), false)
        return
      case 'crash-many':
        for (const replica of random.shuffle(replicas).slice(0, random.integer(1, size))) this.#crash(replica, false)
        return
      case 'crash-all':
        for (const replica of replicas) this.#crash(replica, false)
        return
      case 'crash-in-recovery':
        this.#crash(this.#anyone(), true)
        return
      case 'pause':
        this.#pause(this.#anyone())
        return
      case 'pause-leader':
        this.#pause(this.#leader())
        return
      case 'split': {
        const side = replicas.map(() => random.chance(0.5))
        this.#cutWhere((from, to) => side[from] !== side[to])
        return
      }
      case 'isolate':
      case 'isolate-leader': {
        const alone = replicas.indexOf(kind === 'isolate' ? this.#anyone() : this.#leader())
        this.#cutWhere((from, to) => from === alone || to === alone)
        return
      }
      case 'one-way': {
        const cuts = replicas.map(() => replicas.map(() => random.chance(0.3)))
        this.#cutWhere((from, to) => cuts[from]?.[to] === true)
        return
      }
      case 'leader-deaf': {
        const deaf = replicas.indexOf(this.#leader())
        this.#cutWhere((_from, to) => to === deaf)
        return
      }
      case 'leader-mute': {
        const mute = replicas.indexOf(this.#leader())
        this.#cutWhere((from) => from === mute)
        return
      }
      case 'bridge': {
        // Two halves that only one replica can reach both of.
        const bridge = replicas.indexOf(this.#anyone())
        const side = replicas.map(() => random.chance(0.5))
        this.#cutWhere((from, to) => from !== bridge && to !== bridge && side[from] !== side[to])
        return
      }
      case 'ring': {
        // Everyone sees a majority, no two the same one.
        const order = random.shuffle(replicas.map((_, position) => position))
        const reach = Math.ceil((Math.floor(size / 2) + 1 - 1) / 2)
        this.#cutWhere((from, to) => {
          const distance = Math.abs((order[from] as number) - (order[to] as number))
          return Math.min(distance, size - distance) > reach
        })
        return
      }
      case 'flapping': {
        if (size === 1) return
        const from = this.#anyone()
        const to = random.pick(replicas.filter((replica) => replica !== from))
        this.#flap(from.id, to.id, random.integer(3, 20), random.chance(0.5))
        return
      }
      case 'hold': {
        const untilUs = queue.nowUs + this.#lasting()
        for (const from of replicas) for (const to of replicas) if (from !== to && random.chance(0.3)) network.hold(from.id, to.id, untilUs)
        return
      }
      case 'filter': {
        const type = random.pick(messageTypes)
        const heals: (() => void)[] = []
        for (const from of replicas)
          for (const to of replicas) if (from !== to && random.chance(0.7)) heals.push(network.filter(from.id, to.id, type))
        this.#after(this.#lasting(), () => {
          for (const heal of heals) heal()
        })
        return
      }
      case 'slow-disk': {
        const { disk } = this.#anyone()
        disk.slowFactor = random.pick([10, 100])
        this.#after(this.#lasting(), () => {
          disk.slowFactor = 1
        })
        return
      }
      case 'hung-disk': {
        const { disk } = random.chance(0.5) ? this.#leader() : this.#anyone()
        disk.hangUntilUs = queue.nowUs + this.#lasting() * 2
        return
      }
      case 'failing-disk':
        this.#anyone().disk.failNext = true
        return
      case 'slow-clock':
        this.#slowClock(this.#anyone(), this.#lasting())
        return
      case 'leader-left-behind': {
        // Its clock nearly stands still, so it leads on, while the others elect the next: the only way to two leaders that last.
        const leader = this.#leader()
        const position = replicas.indexOf(leader)
        const durationUs = plan.host.limits.electionTimeoutMs * 3000 + this.#lasting()
        const cutsIn = random.chance(0.7)
        this.#slowClock(leader, durationUs)
        this.#cutWhere((from, to) => from === position || (to === position && cutsIn), durationUs)
        return
      }
      case 'late-answers': {
        // It goes on hearing that it leads, from before it was cut off: only what it sent when still counts.
        const leader = this.#leader()
        const position = replicas.indexOf(leader)
        const electionTimeoutUs = plan.host.limits.electionTimeoutMs * 1000
        for (const peer of replicas) {
          if (peer === leader) continue
          const untilUs = queue.nowUs + Math.floor(electionTimeoutUs * (0.7 + random.next()))
          for (const type of ['heartbeat-reply', 'append-reply'] as const) network.delay(peer.id, leader.id, type, untilUs)
        }
        const durationUs = Math.floor(electionTimeoutUs * (2 + random.next()))
        this.#after(random.integer(0, Math.floor(electionTimeoutUs / 3)), () => this.#cutWhere((from) => from === position, durationUs))
        return
      }
      case 'restart-voters': {
        // Those who answered a leader a moment ago start again, and are asked for their votes by one that cannot hear it.
        const leader = this.#leader()
        const position = replicas.indexOf(leader)
        const others = random.shuffle(replicas.filter((replica) => replica !== leader))
        const deaf = others.pop()
        if (deaf === undefined) return
        const electionTimeoutUs = plan.host.limits.electionTimeoutMs * 1000
        const deafPosition = replicas.indexOf(deaf)
        const firstUs = Math.floor(electionTimeoutUs * (1 + random.next()))
        this.#cutWhere((from, to) => (from === position && to === deafPosition) || (from === deafPosition && to === position), firstUs * 3)
        this.#after(firstUs, () => {
          for (const replica of others) {
            if (!replica.up) continue
            replica.crash()
            replica.start()
          }
          this.#cutWhere((from, to) => from === position || to === position, electionTimeoutUs)
        })
        return
      }
      case 'unasked-snapshot':
        // As when one that was asked for comes late: what it covers, and more, may be in the log by then.
        this.#anyone().fetchSnapshotFrom(this.#anyone(), 0)
        return
      case 'hint':
        this.#hints()
        return
      default: {
        const never: never = kind
        throw new Error(`unknown fault ${String(never)}`)
      }
    }
  }

  #flap(from: NodeId, to: NodeId, times: number, bothWays: boolean): void {
    const { network, plan } = this.#environment
    const heals = [network.cut(from, to)]
    if (bothWays) heals.push(network.cut(to, from))
    const pauseUs = 1 + this.#random.exponential(plan.host.limits.electionTimeoutMs * 300)
    this.#after(pauseUs, () => {
      for (const heal of heals) heal()
      if (times > 0) this.#after(pauseUs, () => this.#flap(from, to, times - 1, bothWays))
    })
  }
}
