/**
 * SimulatedNetwork: carries frames between the ends of a simulation, each direction of each link with faults and a stream of chance of its own.
 *
 * Invariants: 1. a frame is copied when it is sent: processes share no bytes; 2. bytes under way over a link are bounded: what is over is dropped; 3. a frame arrives whole
 * and unchanged, or not at all, unless the plan says that bits flip; 4. a cut holds in one direction; what is under way when it begins is lost, unless the plan says otherwise.
 */
import { UnavailableError } from '../../base/errors.js'
import type { Address, FrameHandler, PeerStateHandler, Transport } from '../../transport/transport.js'
import type { SeededRandom } from '../seeded-random.js'
import { hashBytes } from '../simulation/log-shape.js'
import type { SimulatedProcess, World } from './world.js'

export interface NetworkModel {
  readonly delayMinUs: number
  readonly delayMeanUs: number
  /** Frames of a link never overtake one another, except those that are repeated or held back. */
  readonly inOrder: boolean
  readonly lossRate: number
  readonly repeatRate: number
  /** Held back for up to `heldMaxUs`. */
  readonly heldRate: number
  readonly heldMaxUs: number
  readonly flipRate: number
  /** What was sent to an earlier process at an address may reach the later one. */
  readonly crossesLives: boolean
  /** A process that dies, or an address where there is none, shows, as over TCP. */
  readonly peerStates: boolean
  readonly maxLinkBytes: number
}

interface Link {
  readonly random: SeededRandom
  /** Cuts in force. */
  cuts: number
  /** Nothing arrives before this time, and then all at once. */
  cloggedUntilUs: number
  lastArrivalUs: number
  queuedBytes: number
}

export class SimulatedNetwork {
  readonly world: World
  readonly counters = { sent: 0, delivered: 0, bytes: 0 }
  model: NetworkModel
  /** An end is about to send: the place to crash its process. */
  onOperation: (address: Address) => void = () => {}
  readonly #ends = new Map<Address, SimulatedEnd>()
  readonly #links = new Map<string, Link>()
  readonly #count: (fault: string) => void

  constructor(world: World, model: NetworkModel, count: (fault: string) => void) {
    this.world = world
    this.model = model
    this.#count = count
  }

  transport(address: Address, process: SimulatedProcess): Transport {
    return new SimulatedEnd(this, address, process)
  }

  link(from: Address, to: Address): Link {
    const name = `${from}>${to}`
    let link = this.#links.get(name)
    if (link === undefined) {
      link = { random: this.world.stream(`link ${name}`), cuts: 0, cloggedUntilUs: 0, lastArrivalUs: 0, queuedBytes: 0 }
      this.#links.set(name, link)
    }
    return link
  }

  /** Cuts one direction; returns how to undo that. */
  cut(from: Address, to: Address): () => void {
    const link = this.link(from, to)
    link.cuts++
    let undone = false
    return () => {
      if (!undone) link.cuts--
      undone = true
    }
  }

  clog(from: Address, to: Address, durationUs: number): void {
    const link = this.link(from, to)
    link.cloggedUntilUs = Math.max(link.cloggedUntilUs, this.world.nowUs + durationUs)
  }

  /** No cut and no clog is left. */
  heal(): void {
    for (const link of this.#links.values()) {
      link.cuts = 0
      link.cloggedUntilUs = 0
    }
  }

  attach(end: SimulatedEnd): void {
    if (this.#ends.get(end.address)?.process.alive) throw new UnavailableError(`address ${end.address} is in use`)
    this.#ends.set(end.address, end)
  }

  /** The end is gone: its peers may notice. */
  detach(end: SimulatedEnd): void {
    if (this.#ends.get(end.address) !== end) return
    this.#ends.delete(end.address)
    if (!this.model.peerStates) return
    for (const address of end.known) this.#tellLost(end.address, address)
  }

  /** The process at this address died; when its whole machine did, nobody hears of it. */
  crashed(address: Address, silent: boolean): void {
    const end = this.#ends.get(address)
    if (end === undefined) return
    if (silent) end.known.clear()
    this.detach(end)
  }

  #tellLost(of: Address, to: Address): void {
    const link = this.link(of, to)
    if (link.cuts > 0) return
    const end = this.#ends.get(to)
    if (end === undefined) return
    end.known.delete(of)
    end.process.complete(this.model.delayMinUs + link.random.exponential(this.model.delayMeanUs), () => end.lost(of))
  }

  carry(from: SimulatedEnd, to: Address, frame: Uint8Array): void {
    const { model, world } = this
    this.counters.sent++
    this.counters.bytes += frame.length
    world.mix(frame.length)
    const link = this.link(from.address, to)
    if (link.cuts > 0) return this.#count('frame-cut')
    const target = this.#ends.get(to)
    if (target === undefined) {
      if (model.peerStates) this.#tellLost(to, from.address)
      return
    }
    if (link.queuedBytes + frame.length > model.maxLinkBytes) return this.#count('frame-over-limit')
    if (model.lossRate > 0 && link.random.chance(model.lossRate)) return this.#count('frame-lost')
    const copy = Buffer.from(frame)
    if (model.flipRate > 0 && link.random.chance(model.flipRate)) {
      this.#count('frame-bit-flipped')
      copy[link.random.integer(0, copy.length - 1)]! ^= 1 << link.random.integer(0, 7)
    }
    this.#carryOnce(link, from.address, target, copy, model.inOrder)
    if (model.repeatRate > 0 && link.random.chance(model.repeatRate)) {
      this.#count('frame-repeated')
      this.#carryOnce(link, from.address, target, Buffer.from(copy), false)
    }
  }

  #carryOnce(link: Link, from: Address, target: SimulatedEnd, frame: Buffer, inOrder: boolean): void {
    const { model, world } = this
    let delayUs = model.delayMinUs + link.random.exponential(model.delayMeanUs)
    let ordered = inOrder
    if (model.heldRate > 0 && link.random.chance(model.heldRate)) {
      this.#count('frame-held-back')
      delayUs += link.random.integer(0, model.heldMaxUs)
      ordered = false
    }
    let arrivalUs = Math.max(world.nowUs + delayUs, link.cloggedUntilUs)
    if (ordered) {
      arrivalUs = Math.max(arrivalUs, link.lastArrivalUs)
      link.lastArrivalUs = arrivalUs
    }
    link.queuedBytes += frame.length
    world.schedule(arrivalUs - world.nowUs, () => this.#arrive(link, from, target, frame))
  }

  #arrive(link: Link, from: Address, target: SimulatedEnd, frame: Buffer): void {
    if (link.cloggedUntilUs > this.world.nowUs) {
      this.world.schedule(link.cloggedUntilUs - this.world.nowUs, () => this.#arrive(link, from, target, frame))
      return
    }
    link.queuedBytes -= frame.length
    if (link.cuts > 0) return this.#count('frame-cut')
    let end: SimulatedEnd | undefined = target
    if (this.#ends.get(target.address) !== target) {
      end = this.model.crossesLives ? this.#ends.get(target.address) : undefined
      if (end !== undefined) this.#count('frame-to-later-life')
    }
    if (end === undefined) return
    this.counters.delivered++
    this.world.mix(hashBytes(frame.subarray(frame.length - 4)))
    const receiver = end
    receiver.process.complete(0, () => receiver.arrive(from, frame))
  }

  /** Two ends have heard of one another. */
  meet(end: SimulatedEnd, other: Address): void {
    if (!this.model.peerStates) return
    end.connected(other)
  }
}

class SimulatedEnd implements Transport {
  readonly address: Address
  readonly process: SimulatedProcess
  readonly maxFrameBytes = 256 * 1024
  /** Peers to which there is a connection, as far as this network has any. */
  readonly known = new Set<Address>()
  readonly #network: SimulatedNetwork
  #onFrame: FrameHandler | null = null
  #onPeerState: PeerStateHandler | null = null

  constructor(network: SimulatedNetwork, address: Address, process: SimulatedProcess) {
    this.#network = network
    this.address = address
    this.process = process
  }

  onPeerState(handler: PeerStateHandler): void {
    this.#onPeerState = handler
  }

  async open(onFrame: FrameHandler): Promise<void> {
    this.#network.attach(this)
    this.#onFrame = onFrame
  }

  send(to: Address, frame: Uint8Array): void {
    if (this.#onFrame === null || !this.process.alive) return
    this.#network.onOperation(this.address)
    if (this.process.alive) this.#network.carry(this, to, frame)
  }

  arrive(from: Address, frame: Uint8Array): void {
    if (this.#onFrame === null) return
    if (!this.known.has(from)) this.#network.meet(this, from)
    try {
      this.#onFrame(from, frame)
    } catch {
      // Not one of ours: an adapter with connections would close this one.
      if (this.known.delete(from)) this.lost(from)
    }
  }

  connected(peer: Address): void {
    this.known.add(peer)
    this.#onPeerState?.(peer, 'connected')
  }

  lost(peer: Address): void {
    if (this.#onFrame !== null) this.#onPeerState?.(peer, 'lost')
  }

  async close(): Promise<void> {
    this.#onFrame = null
    this.#network.detach(this)
  }
}
