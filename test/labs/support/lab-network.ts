/**
 * The labs' network as `shared/labs/network.md` describes it, over messages of the real codec: reliable or unreliable, long reordering, long delays, and servers that
 * are connected or not; with the labs' counters.
 *
 * A lab's call is a pair here: a request message and a reply message. Times are the labs' own milliseconds and pass through `scale`.
 */
import { Reader, Writer } from '../../../src/base/codec.js'
import { decodeMessage, encodeMessage } from '../../../src/raft/message-codec.js'
import type { Message, NodeId } from '../../../src/raft/types.js'
import type { SeededRandom } from '../../../src/testing/seeded-random.js'
import type { EventQueue } from '../../../src/testing/simulation/event-queue.js'

/** Whether a message is a lab's call, and not the reply to one. */
export function isRequest(message: Message): boolean {
  switch (message.type) {
    case 'pre-vote-request':
    case 'vote-request':
    case 'append-request':
    case 'heartbeat':
      return true
    default:
      return false
  }
}

export interface LabNetworkOptions {
  readonly queue: EventQueue
  readonly random: SeededRandom
  /** Simulated milliseconds for one of the lab's. */
  readonly scale: number
  deliver(message: Message): void
  /** A call to a server that cannot be reached has failed. */
  failed(from: NodeId, to: NodeId): void
}

export class LabNetwork {
  unreliable = false
  longReordering = false
  longDelays = true
  /** Calls made, to whoever and however they ended. */
  calls = 0
  /** Bytes of every call made and of every reply delivered. */
  bytes = 0
  readonly #received = new Map<NodeId, number>()
  readonly #disconnected = new Set<NodeId>()
  readonly #options: LabNetworkOptions
  readonly #writer = new Writer(4096)

  constructor(options: LabNetworkOptions) {
    this.#options = options
  }

  connect(id: NodeId): void {
    this.#disconnected.delete(id)
  }

  disconnect(id: NodeId): void {
    this.#disconnected.add(id)
  }

  connected(id: NodeId): boolean {
    return !this.#disconnected.has(id)
  }

  /** Calls that reached a server. */
  received(id: NodeId): number {
    return this.#received.get(id) ?? 0
  }

  #open(from: NodeId, to: NodeId): boolean {
    return !this.#disconnected.has(from) && !this.#disconnected.has(to)
  }

  #after(labMs: number, task: () => void): void {
    this.#options.queue.schedule(labMs * this.#options.scale * 1000, task)
  }

  transmit(message: Message): void {
    const { random, failed } = this.#options
    const { from, to } = message
    const writer = this.#writer
    writer.reset()
    encodeMessage(writer, message)
    const frame = new Uint8Array(writer.view())
    const request = isRequest(message)
    if (request) {
      this.calls++
      this.bytes += frame.length
    }
    if (!this.#open(from, to)) {
      if (request) this.#after(random.integer(0, this.longDelays ? 6999 : 99), () => failed(from, to))
      return
    }
    let delayMs = 0
    if (this.unreliable) {
      if (request) delayMs = random.integer(0, 26)
      if (random.chance(0.1)) return
    }
    if (!request && this.longReordering && random.chance(600 / 900)) delayMs += 200 + random.integer(0, random.integer(0, 1999))
    this.#after(delayMs, () => this.#arrive(from, to, frame, request))
  }

  #arrive(from: NodeId, to: NodeId, frame: Uint8Array, request: boolean): void {
    if (!this.#open(from, to)) return
    if (request) this.#received.set(to, this.received(to) + 1)
    else this.bytes += frame.length
    this.#options.deliver(decodeMessage(new Reader(frame), from, to))
  }
}
