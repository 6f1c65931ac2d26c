/**
 * A network in memory with faults: for tests, for the simulator, and for several nodes in one process.
 *
 * Invariants: 1. every chance is drawn from the network's own seeded generator, and all time passes through its Runtime, so that a seed and a simulated
 * Runtime replay it exactly; 2. a frame is copied when it is sent: ends share no bytes; 3. a cut takes what is under way as well as what is sent later;
 * 4. bytes under way to one end are bounded; 5. an end that is closed, or replaced at its address, gets nothing that was sent to it before.
 */
import { InvalidArgumentError, UnavailableError } from '../base/errors.js'
import { type Runtime, systemRuntime } from '../base/runtime.js'
import type { Address, FrameHandler, PeerStateHandler, Transport } from './transport.js'

/** How frames fare between two ends, one way. Probabilities are from 0 to 1. */
export interface LinkFaults {
  /** Each frame takes a time drawn uniformly from here. Equal bounds keep the order. */
  readonly minDelayMs: number
  readonly maxDelayMs: number
  readonly dropProbability: number
  /** The frame arrives twice, each copy with a delay of its own. */
  readonly repeatProbability: number
  /** The frame is held back for a time drawn uniformly from `reorderMinMs` to `reorderMaxMs`, on top of its delay. */
  readonly reorderProbability: number
  readonly reorderMinMs: number
  readonly reorderMaxMs: number
}

const reliable: LinkFaults = {
  minDelayMs: 0,
  maxDelayMs: 0,
  dropProbability: 0,
  repeatProbability: 0,
  reorderProbability: 0,
  reorderMinMs: 0,
  reorderMaxMs: 0,
}

/** The settings of the MIT 6.5840 lab network (labrpc.go), where a frame is a request or a reply. */
export const networkPresets = {
  /** No delay, no loss. */
  reliable,
  /** 0-26 ms, one in ten lost each way. */
  unreliable: { ...reliable, maxDelayMs: 26, dropProbability: 0.1 },
  /** As unreliable; two of three frames are held back for 200 to 2199 ms. */
  longReordering: { ...reliable, maxDelayMs: 26, dropProbability: 0.1, reorderProbability: 2 / 3, reorderMinMs: 200, reorderMaxMs: 2199 },
} as const satisfies Record<string, LinkFaults>

export interface MemoryNetworkOptions {
  /** Default: the real clock. */
  readonly runtime?: Runtime | undefined
  /** Default 1. */
  readonly seed?: number | undefined
  /** How all links fare that have no settings of their own. Default: reliable. */
  readonly faults?: Partial<LinkFaults> | undefined
  /** Default 1 MiB. */
  readonly maxFrameBytes?: number | undefined
  /** Bytes under way to one end; more are dropped. Default 64 MiB. */
  readonly maxQueueBytes?: number | undefined
  /** Whether ends hear of it when a peer closes or is not there, as over TCP. A cut shows nothing in any case. Default true. */
  readonly peerStates?: boolean | undefined
}

/** What a network did with frames. */
export interface MemoryNetworkCounters {
  sent: number
  sentBytes: number
  delivered: number
  dropped: number
  cut: number
  repeated: number
  heldBack: number
  /** No end, or no longer the same, at the address. */
  unreachable: number
  /** Over a frame or queue limit. */
  overLimit: number
}

/**
 * A network of ends in memory.
 *
 * ```ts
 * const network = new MemoryNetwork({ seed: 7, faults: networkPresets.unreliable })
 * const one = network.transport('a')
 * const other = network.transport('b')
 * network.cut('a', 'b', { oneWay: true })
 * network.heal()
 * ```
 */
export class MemoryNetwork {
  readonly counters: MemoryNetworkCounters = {
    sent: 0,
    sentBytes: 0,
    delivered: 0,
    dropped: 0,
    cut: 0,
    repeated: 0,
    heldBack: 0,
    unreachable: 0,
    overLimit: 0,
  }
  readonly runtime: Runtime
  readonly maxFrameBytes: number
  readonly maxQueueBytes: number
  readonly peerStates: boolean
  readonly #random: () => number
  readonly #ends = new Map<Address, MemoryTransport>()
  readonly #links = new Map<string, LinkFaults>()
  readonly #cuts = new Set<string>()
  #faults: LinkFaults

  constructor(options: MemoryNetworkOptions = {}) {
    this.runtime = options.runtime ?? systemRuntime
    this.#random = generator(options.seed ?? 1)
    this.#faults = { ...reliable, ...options.faults }
    this.maxFrameBytes = options.maxFrameBytes ?? 1024 * 1024
    this.maxQueueBytes = options.maxQueueBytes ?? 64 * 1024 * 1024
    this.peerStates = options.peerStates ?? true
  }

  /**
   * An end at an address. A later one at the same address takes its place once the earlier is closed or crashed: a restart. With a runtime of its own, frames
   * are handed over by that: what comes while a simulated process is paused waits for it.
   */
  transport(address: Address, options?: { readonly runtime?: Runtime | undefined }): Transport {
    return new MemoryTransport(this, address, options?.runtime ?? null)
  }

  /**
   * The process at this address is gone: from now on its end neither sends nor receives, and the address is free. Its peers hear of it as of a close, unless
   * `silent`: the whole machine is gone.
   */
  crash(address: Address, options?: { readonly silent?: boolean }): void {
    this.#ends.get(address)?.crash(options?.silent ?? false)
  }

  /** Sets how all links fare that have no settings of their own. */
  setFaults(faults: Partial<LinkFaults>): void {
    this.#faults = { ...reliable, ...faults }
  }

  /** Sets how frames from one end to another fare, this way only; undefined: as the others. */
  setLink(from: Address, to: Address, faults: Partial<LinkFaults> | undefined): void {
    if (faults === undefined) this.#links.delete(way(from, to))
    else this.#links.set(way(from, to), { ...reliable, ...faults })
  }

  /** Lets nothing through between two ends, or only not from the first to the second. */
  cut(from: Address, to: Address, options?: { oneWay?: boolean }): void {
    this.#cuts.add(way(from, to))
    if (!options?.oneWay) this.#cuts.add(way(to, from))
  }

  /** Lets nothing through to and from this end. */
  isolate(address: Address): void {
    this.#cuts.add(way(address, '*'))
    this.#cuts.add(way('*', address))
  }

  /** Cuts between the sides, and heals within each. */
  partition(...sides: readonly (readonly Address[])[]): void {
    for (const [number, side] of sides.entries())
      for (const [otherNumber, other] of sides.entries())
        for (const from of side)
          for (const to of other) {
            if (number === otherNumber) this.#cuts.delete(way(from, to))
            else this.#cuts.add(way(from, to))
          }
  }

  /** Takes back all cuts; or those between two ends; or those of one end. */
  heal(one?: Address, other?: Address): void {
    if (one === undefined) this.#cuts.clear()
    else if (other !== undefined) {
      this.#cuts.delete(way(one, other))
      this.#cuts.delete(way(other, one))
    } else for (const cut of [...this.#cuts]) if (cut.split('\0').includes(one)) this.#cuts.delete(cut)
  }

  #isCut(from: Address, to: Address): boolean {
    const cuts = this.#cuts
    return cuts.size > 0 && (cuts.has(way(from, to)) || cuts.has(way(from, '*')) || cuts.has(way('*', to)))
  }

  /** @internal */
  attach(end: MemoryTransport): void {
    if (this.#ends.has(end.address)) throw new UnavailableError(`address ${end.address} is in use`)
    this.#ends.set(end.address, end)
  }

  /** @internal */
  detach(end: MemoryTransport): void {
    if (this.#ends.get(end.address) === end) this.#ends.delete(end.address)
  }

  /** @internal */
  tell(from: Address, to: Address, task: () => void): void {
    if (this.#isCut(from, to)) return
    const link = this.#links.get(way(from, to)) ?? this.#faults
    this.#after(link.minDelayMs + this.#random() * (link.maxDelayMs - link.minDelayMs), () => {
      if (!this.#isCut(from, to)) task()
    })
  }

  #after(delayMs: number, task: () => void): void {
    if (delayMs > 0) this.runtime.schedule(delayMs, task)
    else this.runtime.defer(task)
  }

  /** @internal */
  carry(from: MemoryTransport, to: Address, frame: Uint8Array): void {
    const counters = this.counters
    counters.sent++
    counters.sentBytes += frame.length
    if (this.#isCut(from.address, to)) {
      counters.cut++
      return
    }
    const target = this.#ends.get(to)
    if (target === undefined) {
      counters.unreachable++
      from.unreachable(to)
      return
    }
    const link = this.#links.get(way(from.address, to)) ?? this.#faults
    const random = this.#random
    if (link.dropProbability > 0 && random() < link.dropProbability) {
      counters.dropped++
      return
    }
    const copy = Buffer.from(frame)
    this.#carryOnce(from, target, copy, link)
    if (link.repeatProbability > 0 && random() < link.repeatProbability) {
      counters.repeated++
      this.#carryOnce(from, target, Buffer.from(copy), link)
    }
  }

  #carryOnce(from: MemoryTransport, target: MemoryTransport, frame: Buffer, link: LinkFaults): void {
    const counters = this.counters
    if (target.queuedBytes + frame.length > this.maxQueueBytes) {
      counters.overLimit++
      return
    }
    target.queuedBytes += frame.length
    let delayMs = link.minDelayMs
    if (link.maxDelayMs > link.minDelayMs) delayMs += this.#random() * (link.maxDelayMs - link.minDelayMs)
    if (link.reorderProbability > 0 && this.#random() < link.reorderProbability) {
      counters.heldBack++
      delayMs += link.reorderMinMs + this.#random() * (link.reorderMaxMs - link.reorderMinMs)
    }
    const arrive = (): void => {
      target.queuedBytes -= frame.length
      if (this.#isCut(from.address, target.address)) counters.cut++
      else if (this.#ends.get(target.address) !== target) counters.unreachable++
      else {
        counters.delivered++
        target.arrive(from, frame)
      }
    }
    // Frames without a delay of their own share a queue: one deferred task a turn delivers them in order.
    if (delayMs > 0) this.runtime.schedule(delayMs, arrive)
    else target.arriveNextTurn(arrive)
  }
}

class MemoryTransport implements Transport {
  readonly address: Address
  readonly #network: MemoryNetwork
  readonly #known = new Set<MemoryTransport>()
  #onFrame: FrameHandler | null = null
  #onPeerState: PeerStateHandler | null = null
  #state: 'new' | 'open' | 'closed' = 'new'
  #nextTurn: (() => void)[] = []
  readonly #runtime: Runtime | null
  /** Bytes under way to this end. */
  queuedBytes = 0

  constructor(network: MemoryNetwork, address: Address, runtime: Runtime | null) {
    if (address === '' || address === '*' || address.includes('\0')) throw new InvalidArgumentError(`no address for a memory network: '${address}'`)
    this.#network = network
    this.#runtime = runtime
    this.address = address
  }

  get maxFrameBytes(): number {
    return this.#network.maxFrameBytes
  }

  onPeerState(handler: PeerStateHandler): void {
    this.#onPeerState = handler
  }

  async open(onFrame: FrameHandler): Promise<void> {
    if (this.#state !== 'new') throw new InvalidArgumentError(`transport is ${this.#state}`)
    this.#network.attach(this)
    this.#onFrame = onFrame
    this.#state = 'open'
  }

  send(to: Address, frame: Uint8Array): void {
    if (this.#state !== 'open') return
    if (frame.length === 0 || frame.length > this.#network.maxFrameBytes) {
      this.#network.counters.overLimit++
      return
    }
    this.#network.carry(this, to, frame)
  }

  arriveNextTurn(arrive: () => void): void {
    if (this.#nextTurn.push(arrive) > 1) return
    this.#network.runtime.defer(() => {
      const tasks = this.#nextTurn
      this.#nextTurn = []
      for (const task of tasks) task()
    })
  }

  arrive(from: MemoryTransport, frame: Buffer): void {
    if (this.#runtime === null) this.#handOver(from, frame)
    else this.#runtime.defer(() => this.#handOver(from, frame))
  }

  #handOver(from: MemoryTransport, frame: Buffer): void {
    if (this.#state !== 'open') return
    if (this.#network.peerStates && !this.#known.has(from) && from.#state === 'open') this.#meet(from)
    try {
      this.#onFrame?.(from.address, frame)
    } catch {
      // The frame was not one of ours, and there is no connection to close.
    }
  }

  /** The two have a connection now, as far as this network has any. */
  #meet(other: MemoryTransport): void {
    this.#known.add(other)
    this.#onPeerState?.(other.address, 'connected')
    if (!other.#known.has(this)) other.#meet(this)
  }

  unreachable(to: Address): void {
    if (this.#network.peerStates) this.#network.tell(to, this.address, () => this.#lost(to))
  }

  #lost(peer: Address): void {
    if (this.#state === 'open') this.#onPeerState?.(peer, 'lost')
  }

  async close(): Promise<void> {
    this.crash(false)
  }

  crash(silent: boolean): void {
    const wasOpen = this.#state === 'open'
    this.#state = 'closed'
    this.#onFrame = null
    if (!wasOpen) return
    this.#network.detach(this)
    if (silent) return
    for (const other of this.#known) {
      this.#network.tell(this.address, other.address, () => {
        if (other.#known.delete(this)) other.#lost(this.address)
      })
    }
    this.#known.clear()
  }
}

function way(from: Address, to: Address): string {
  return `${from}\0${to}`
}

/** sfc32 (PractRand, C. Doty-Humphrey): small, fast, and the same everywhere. */
function generator(seed: number): () => number {
  let a = 0x9e3779b9
  let b = Math.floor(seed / 0x100000000) | 0
  let c = seed | 0
  let counter = 1
  const next = (): number => {
    const sum = (((a + b) | 0) + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = (((c << 21) | (c >>> 11)) + sum) | 0
    return (sum >>> 0) / 0x100000000
  }
  for (let round = 0; round < 12; round++) next()
  return next
}
