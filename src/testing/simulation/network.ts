/**
 * The simulated network between replicas: every message is encoded and decoded by the real codec, so that no object is shared, and each
 * directed link may lose, delay, repeat, reorder, hold back or cut.
 *
 * Invariants: 1. a message arrives whole and unchanged, any number of times, at any later time, or never; 2. faults that overlap are counted
 * per link, so that the end of one does not heal another; 3. after `calm` nothing is lost and delays are short.
 */
import { Reader, Writer } from '../../base/codec.js'
import { decodeMessage, encodeMessage } from '../../raft/message-codec.js'
import type { Message, NodeId } from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import type { EventQueue } from './event-queue.js'

/** How messages travel when no fault is in force. */
export interface NetworkModel {
  readonly delayMinUs: number
  readonly delayMeanUs: number
  /** Keeps each link's order, as one TCP connection does. */
  readonly inOrder: boolean
  readonly lossRate: number
  /** Repeats a message at about the same time. */
  readonly repeatRate: number
  /** Repeats a message much later. */
  readonly replayRate: number
  readonly replayMaxUs: number
  /** Holds a message back for much longer than others. */
  readonly stragglerRate: number
  readonly stragglerMaxUs: number
  /** Whether only replies are replayed and held back: late requests keep followers loyal to a leader that is gone. */
  readonly lateRepliesOnly: boolean
  /** Which share of the links has each of the faults above. */
  readonly faultyLinks: number
  /** Whether a cut also loses what is under way, or only what is sent while it lasts. */
  readonly cutsInFlight: boolean
}

export interface NetworkEnvironment {
  readonly queue: EventQueue
  stream(name: string): SeededRandom
  deliver(message: Message): void
  count(fault: string): void
}

interface Link {
  readonly from: NodeId
  readonly to: NodeId
  readonly random: SeededRandom
  /** Which of the model's faults this link has: that links differ lets replies be late where requests are not. */
  readonly loses: boolean
  readonly repeats: boolean
  readonly straggles: boolean
  /** How many faults cut it. */
  cuts: number
  /** Messages of these types are lost; how many faults ask for each. */
  readonly filters: Map<Message['type'], number>
  heldUntilUs: number
  /** Messages of these types are held back until a time. */
  readonly delayed: Map<Message['type'], number>
  lastArrivalUs: number
}

export class SimulatedNetwork {
  readonly #environment: NetworkEnvironment
  readonly #links = new Map<NodeId, Map<NodeId, Link>>()
  readonly #writer = new Writer(4096)
  #model: NetworkModel
  #calm = false
  /** Rises when the network is calmed. */
  #epoch = 0
  #staleAfterUs = 0
  messages = 0
  bytes = 0

  constructor(ids: readonly NodeId[], model: NetworkModel, environment: NetworkEnvironment) {
    this.#environment = environment
    this.#model = model
    for (const from of ids) {
      const row = new Map<NodeId, Link>()
      for (const to of ids) {
        const random = environment.stream(`network/${from}/${to}`)
        if (from === to) continue
        const [loses, repeats, straggles] = [random.chance(model.faultyLinks), random.chance(model.faultyLinks), random.chance(model.faultyLinks)]
        row.set(to, {
          from,
          to,
          random,
          loses,
          repeats,
          straggles,
          cuts: 0,
          filters: new Map(),
          delayed: new Map(),
          heldUntilUs: 0,
          lastArrivalUs: 0,
        })
      }
      this.#links.set(from, row)
    }
  }

  #link(from: NodeId, to: NodeId): Link {
    const link = this.#links.get(from)?.get(to)
    if (link === undefined) throw new Error(`a message from ${from} to ${to}, which is no link`)
    return link
  }

  /** Cuts one direction; the function that comes back ends this cut. */
  cut(from: NodeId, to: NodeId): () => void {
    const link = this.#link(from, to)
    link.cuts++
    let ended = false
    return () => {
      if (!ended) link.cuts--
      ended = true
    }
  }

  /** Loses all messages of one type in one direction; the function that comes back ends it. */
  filter(from: NodeId, to: NodeId, type: Message['type']): () => void {
    const { filters } = this.#link(from, to)
    filters.set(type, (filters.get(type) ?? 0) + 1)
    let ended = false
    return () => {
      if (!ended) filters.set(type, (filters.get(type) as number) - 1)
      ended = true
    }
  }

  /** Holds everything on one direction back until a time, then lets it go at once. */
  hold(from: NodeId, to: NodeId, untilUs: number): void {
    const link = this.#link(from, to)
    link.heldUntilUs = Math.max(link.heldUntilUs, untilUs)
  }

  /** Holds messages of one type on one direction back until a time. */
  delay(from: NodeId, to: NodeId, type: Message['type'], untilUs: number): void {
    this.#link(from, to).delayed.set(type, untilUs)
  }

  /**
   * Ends every fault of the network's own. What is still on its way arrives within `graceUs` or never: a dead leader's heartbeats, repeated for seconds more, would
   * keep its followers loyal, and are a fault themselves.
   */
  calm(model: NetworkModel, graceUs: number): void {
    this.#calm = true
    this.#epoch++
    this.#staleAfterUs = this.#environment.queue.nowUs + graceUs
    this.#model = model
    for (const row of this.#links.values()) {
      for (const link of row.values()) {
        link.cuts = 0
        link.filters.clear()
        link.delayed.clear()
        link.heldUntilUs = 0
      }
    }
  }

  send(message: Message): void {
    const environment = this.#environment
    const link = this.#link(message.from, message.to)
    const writer = this.#writer
    encodeMessage(writer, message)
    const frame = writer.finish()
    this.messages++
    this.bytes += frame.length
    if (link.cuts > 0) {
      environment.count('cut')
      return
    }
    if ((link.filters.get(message.type) ?? 0) > 0) {
      environment.count('filtered')
      return
    }
    const model = this.#model
    const random = link.random
    if (link.loses && random.chance(model.lossRate)) {
      environment.count('lost')
      return
    }
    const mayBeLate = !model.lateRepliesOnly || message.type.endsWith('-reply')
    let delayUs = model.delayMinUs + random.exponential(model.delayMeanUs)
    if (mayBeLate && link.straggles && random.chance(model.stragglerRate)) {
      environment.count('late')
      delayUs += random.integer(0, model.stragglerMaxUs - 1)
    }
    const delayedUntilUs = link.delayed.get(message.type) ?? 0
    if (delayedUntilUs > environment.queue.nowUs) {
      environment.count('delayed')
      this.#launch(link, frame, delayedUntilUs - environment.queue.nowUs, false)
      return
    }
    this.#launch(link, frame, delayUs, model.inOrder)
    if (link.repeats && random.chance(model.repeatRate)) {
      environment.count('repeated')
      this.#launch(link, frame, delayUs + random.exponential(model.delayMeanUs), false)
    }
    if (mayBeLate && link.repeats && random.chance(model.replayRate)) {
      environment.count('replayed-later')
      this.#launch(link, frame, delayUs + random.integer(0, model.replayMaxUs - 1), false)
    }
  }

  #launch(link: Link, frame: Uint8Array, delayUs: number, inOrder: boolean): void {
    const queue = this.#environment.queue
    let arrivalUs = queue.nowUs + delayUs
    if (inOrder) {
      arrivalUs = Math.max(arrivalUs, link.lastArrivalUs)
      link.lastArrivalUs = arrivalUs
    } else if (!this.#calm && arrivalUs < link.lastArrivalUs) this.#environment.count('reordered')
    else link.lastArrivalUs = arrivalUs
    const epoch = this.#epoch
    queue.schedule(arrivalUs - queue.nowUs, () => this.#arrive(link, frame, epoch))
  }

  #arrive(link: Link, frame: Uint8Array, epoch: number): void {
    const environment = this.#environment
    if (epoch !== this.#epoch && environment.queue.nowUs > this.#staleAfterUs) return
    if (link.heldUntilUs > environment.queue.nowUs) {
      environment.count('held')
      environment.queue.schedule(link.heldUntilUs - environment.queue.nowUs, () => this.#arrive(link, frame, epoch))
      return
    }
    if (link.cuts > 0 && this.#model.cutsInFlight) {
      environment.count('cut')
      return
    }
    const reader = new Reader(frame)
    const message = decodeMessage(reader, link.from, link.to)
    reader.end()
    environment.deliver(message)
  }
}
