/**
 * Loopback: the messenger as this layer uses it, with a short way to this node itself: a node that coordinates a job also works for it, and
 * its bytes need no frames, checksums and chunks to reach it.
 *
 * Invariant: a request to this node behaves as one to another would: asynchronous, with the handler's error.
 */
import type { MessengerFace, RequestHandler, RequestOptions } from '../transport/messenger.js'
import type { Address } from '../transport/transport.js'

/** What this layer needs of a messenger. */
export type JobMessenger = Pick<MessengerFace, 'address' | 'request' | 'handle'>

export class Loopback implements JobMessenger {
  readonly #messenger: JobMessenger
  readonly #nodeId: string
  readonly #handlers = new Map<string, RequestHandler>()
  readonly #never = new AbortController().signal

  constructor(messenger: JobMessenger, nodeId: string) {
    this.#messenger = messenger
    this.#nodeId = nodeId
  }

  get address(): Address {
    return this.#messenger.address
  }

  handle(method: string, handler: RequestHandler): void {
    this.#handlers.set(method, handler)
    this.#messenger.handle(method, handler)
  }

  async request(to: Address, method: string, payload: Uint8Array, options?: RequestOptions): Promise<Uint8Array> {
    const { address } = this.#messenger
    const handler = to === address ? this.#handlers.get(method) : undefined
    if (handler === undefined) return this.#messenger.request(to, method, payload, options)
    options?.signal?.throwIfAborted()
    const reply = await handler({ nodeId: this.#nodeId, address }, payload, options?.signal ?? this.#never)
    options?.signal?.throwIfAborted()
    return reply
  }
}
