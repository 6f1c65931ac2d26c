/** Nodes on a simulated network and clock, for the tests of the Messenger. */
import type { QuorateError } from '../../src/base/errors.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'
import { MemoryNetwork, type MemoryNetworkOptions } from '../../src/transport/memory.js'
import { Messenger, type MessengerOptions, type Refusal } from '../../src/transport/messenger.js'
import type { Address, FrameHandler, PeerStateHandler, Transport } from '../../src/transport/transport.js'

export const clusterId = Buffer.from('cluster1')
export const otherClusterId = Buffer.from('cluster2')
export const unknownClusterId = Buffer.alloc(8)

/** A transport that shows every frame that is sent through it. */
export class ObservedTransport implements Transport {
  readonly sent: { readonly to: Address; readonly frame: Buffer }[] = []
  readonly #inner: Transport

  constructor(inner: Transport) {
    this.#inner = inner
  }

  get address(): Address {
    return this.#inner.address
  }

  get maxFrameBytes(): number {
    return this.#inner.maxFrameBytes
  }

  open(onFrame: FrameHandler): Promise<void> {
    return this.#inner.open(onFrame)
  }

  send(to: Address, frame: Uint8Array): void {
    this.sent.push({ to, frame: Buffer.from(frame) })
    this.#inner.send(to, frame)
  }

  onPeerState(handler: PeerStateHandler): void {
    this.#inner.onPeerState?.(handler)
  }

  close(): Promise<void> {
    return this.#inner.close()
  }
}

export interface SimulatedNode {
  readonly messenger: Messenger
  readonly transport: ObservedTransport
  readonly refusals: Refusal[]
  readonly handlerErrors: unknown[]
}

/** A world of nodes; `world.node('a')` opens one. */
export class World {
  readonly runtime: SimulatedRuntime
  readonly network: MemoryNetwork
  readonly nodes: SimulatedNode[] = []

  constructor(seed = 1, options: Omit<MemoryNetworkOptions, 'runtime' | 'seed'> = {}) {
    this.runtime = new SimulatedRuntime({ seed })
    this.network = new MemoryNetwork({ ...options, runtime: this.runtime, seed })
  }

  async node(address: Address, options: Partial<MessengerOptions> = {}): Promise<SimulatedNode> {
    const transport = new ObservedTransport(this.network.transport(address))
    const refusals: Refusal[] = []
    const handlerErrors: unknown[] = []
    const messenger = new Messenger({
      transport,
      runtime: this.runtime,
      clusterId,
      nodeId: `node-${address}`,
      onRefused: (refusal) => refusals.push(refusal),
      onHandlerError: (error) => handlerErrors.push(error),
      ...options,
    })
    await messenger.open()
    const node = { messenger, transport, refusals, handlerErrors }
    this.nodes.push(node)
    return node
  }

  /** Lets simulated time pass until the promise settles; gives its error. */
  async failure(promise: Promise<unknown>): Promise<QuorateError> {
    const error = await this.runtime.settle(
      promise.then(
        () => null,
        (thrown: unknown) => thrown,
      ),
    )
    if (error === null) throw new Error('expected a rejection')
    return error as QuorateError
  }

  async close(): Promise<void> {
    for (const { messenger } of this.nodes) await messenger.close()
  }
}

/** Waits, in real time, for a condition. */
export async function until(what: string, condition: () => boolean, meanwhile?: () => void): Promise<void> {
  const endMs = performance.now() + 20_000
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`waited in vain: ${what}`)
    meanwhile?.()
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/** Bytes that look random and are the same for the same seed. */
export function pattern(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length)
  let state = (seed * 2654435761 + length) >>> 0
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    bytes[at] = state >>> 24
  }
  return bytes
}

/** Whether two byte strings are the same, without printing megabytes when they are not. */
export function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.compare(one, other) === 0
}

/** The promise, whose rejection is looked at later. */
export function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {})
  return promise
}
