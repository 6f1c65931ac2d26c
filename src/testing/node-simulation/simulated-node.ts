/**
 * SimulatedNode: one machine of a simulation: its disk, its address, and the lives of the process on it, each a real `openNode`.
 *
 * Invariants: 1. one life at a time; 2. a life that is over has no effect any more, whatever of its code still runs; 3. a node that cannot be opened, stops serving or does not close
 * properly, without a fault of its disk, is a violation.
 */
import { CorruptionError, RefusedError, UnavailableError } from '../../base/errors.js'
import { type Node, openNode } from '../../node.js'
import type { Address } from '../../transport/transport.js'
import { type DiskModel, SimulatedDisk } from './disk.js'
import type { SimulatedNetwork } from './network.js'
import { SimulatedProcess, type World } from './world.js'

export type NodeState = 'down' | 'opening' | 'up' | 'closing'

export interface NodeEnvironment {
  readonly world: World
  readonly network: SimulatedNetwork
  /** Options of `openNode`, without what belongs to a life. */
  options(node: SimulatedNode): Record<string, unknown>
  count(fault: string): void
  trace(node: string, event: string, detail?: string): void
  violation(invariant: string, message: string): void
  /** A log on its disk was damaged. */
  isDamaged(node: SimulatedNode): boolean
  onStored(node: SimulatedNode, note: unknown): void
}

export class SimulatedNode {
  readonly name: string
  readonly number: number
  readonly address: Address
  readonly role: 'member' | 'client'
  /** Not among the founders: it joins when the plan says so. */
  readonly isSpare: boolean
  readonly disk: SimulatedDisk
  readonly #environment: NodeEnvironment
  readonly #clockRate: number
  process: SimulatedProcess | null = null
  node: Node | null = null
  state: NodeState = 'down'
  life = 0
  /** Crashes when it has counted down to 0, at an operation of the disk or the network. */
  operationsLeft = Number.POSITIVE_INFINITY
  crashLosesPower = false
  /** The life ended by itself: by the operation count, or because it cannot serve any more. */
  onEnded: () => void = () => {}
  /** It could not be opened for now: it found nobody to join. */
  mustTryAgain = false

  constructor(
    environment: NodeEnvironment,
    number: number,
    name: string,
    kind: 'founder' | 'spare' | 'client',
    diskModel: DiskModel,
    clockRate: number,
  ) {
    this.#environment = environment
    this.number = number
    this.name = name
    this.role = kind === 'client' ? 'client' : 'member'
    this.isSpare = kind === 'spare'
    this.address = `sim-${name}`
    this.#clockRate = clockRate
    this.disk = new SimulatedDisk(environment.world, name, diskModel, {
      onDurable: (_disk, _location, batch) => {
        if (batch.note !== null) environment.onStored(this, batch.note)
      },
      onOperation: () => this.onOperation(),
      count: (fault) => environment.count(fault),
    })
  }

  get logLocation(): string {
    return `/simulated/${this.name}/log`
  }

  get location(): string {
    return `/simulated/${this.name}`
  }

  /** A spare node that has never been started. */
  get isAbsent(): boolean {
    return this.isSpare && this.life === 0
  }

  /** Serving, as far as can be told from outside. */
  get up(): boolean {
    return this.state === 'up' && !this.hasFailed
  }

  /** It serves nothing any more, and must be started anew. A group that stopped alone is another matter. */
  get hasFailed(): boolean {
    return this.disk.failed && this.node?.status().failure !== null
  }

  onOperation(): void {
    if (--this.operationsLeft > 0 || this.process === null) return
    this.operationsLeft = Number.POSITIVE_INFINITY
    this.#environment.count('crashed-at-operation')
    this.crash(this.crashLosesPower)
    this.onEnded()
  }

  start(): void {
    if (this.state !== 'down') return
    this.mustTryAgain = false
    const { world, network, trace } = this.#environment
    const process = new SimulatedProcess(world, this.name, ++this.life, this.#clockRate)
    this.process = process
    this.state = 'opening'
    trace(this.name, 'start', `life ${this.life}`)
    process.complete(0, () => {
      const opening = openNode({
        ...this.#environment.options(this),
        transport: network.transport(this.address, process),
        runtime: process,
        ...(this.role === 'member'
          ? { location: this.location, id: this.name, openDatabase: this.disk.opener(process), workers: 0 }
          : { role: 'client' }),
      } as Parameters<typeof openNode>[0])
      opening.then(
        (node) => {
          if (process.alive) this.#onOpen(node)
        },
        (error: unknown) => {
          if (process.alive) this.#onNotOpen(error)
        },
      )
    })
  }

  #onOpen(node: Node): void {
    this.#environment.trace(this.name, 'open')
    this.node = node
    this.state = 'up'
    node.on('failure', (error) => {
      if (this.node === node) this.#onFailure(error)
    })
    node.on('status', ({ group, role, term, leader }) =>
      this.#environment.trace(this.name, 'status', `group ${group} ${role} of term ${term}, leader ${leader}`),
    )
    node.on('refused', ({ kind, from, detail }) => this.#environment.trace(this.name, 'refused', `${kind} ${from}: ${detail}`))
    const { failure } = node.status()
    if (failure !== null) this.#onFailure(failure)
  }

  #onNotOpen(error: unknown): void {
    const excused =
      this.disk.failed || this.role === 'client' || error instanceof UnavailableError || (error instanceof RefusedError && error.code === 'ID_IN_USE')
    this.#environment.trace(this.name, 'not-open', String(error))
    if (!excused) this.#environment.violation('D3', `${this.name} cannot be opened: ${describeError(error)}`)
    this.crash(false)
    this.mustTryAgain = true
  }

  #onFailure(error: unknown): void {
    this.#environment.trace(this.name, 'failure', String(error))
    // A group that is damaged stops alone, and heals from the others while the node goes on.
    if (error instanceof CorruptionError && this.#environment.isDamaged(this)) return
    if (!this.disk.failed) this.#environment.violation('p9', `${this.name} stopped serving: ${describeError(error)}`)
    this.onEnded()
  }

  /** The process dies; with `power`, the machine. */
  crash(power: boolean): void {
    const { process } = this
    if (process === null) return
    this.#environment.trace(this.name, power ? 'power-loss' : 'kill')
    process.kill()
    this.#environment.network.crashed(this.address, power)
    this.disk.crash(power)
    this.process = null
    this.node = null
    this.state = 'down'
    this.operationsLeft = Number.POSITIVE_INFINITY
  }

  /** A planned stop. */
  close(): void {
    const { process, node } = this
    if (process === null || node === null || this.state !== 'up') return
    this.state = 'closing'
    this.#environment.trace(this.name, 'close')
    process.complete(0, () => {
      const excused = (): boolean => this.disk.failed || node.status().failure !== null
      const ended = (error?: unknown): void => {
        if (!process.alive) return
        if (error !== undefined && !excused()) this.#environment.violation('D1', `${this.name} did not close: ${describeError(error)}`)
        this.#environment.trace(this.name, 'closed')
        process.kill()
        this.process = null
        this.node = null
        this.state = 'down'
        this.disk.failed = false
      }
      node.close().then(() => ended(), ended)
    })
  }
}

/** An error with its causes. */
export function describeError(error: unknown): string {
  const parts: string[] = []
  for (let at: unknown = error; at !== undefined && at !== null && parts.length < 5; at = at instanceof Error ? at.cause : undefined) {
    parts.push(at instanceof Error ? (at.stack ?? at.message) : String(at))
  }
  return parts.join('\ncaused by ')
}
