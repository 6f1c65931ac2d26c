/**
 * Founding: how the nodes of a founders' list become a cluster, and how one of them that lost its folder is told from one that never had any.
 *
 * A founder with an empty folder draws a number, makes it durable, and asks every other founder. Whoever is asked binds the number to the founder's id, durably, before it answers. One that takes part
 * already and has bound another number says so: the founder has had another folder, in which it may have voted and acknowledged; it is not the founder any more, and joins as a new node with
 * new replicas. Only when all others have answered, and none knows an earlier folder of it, does it take part.
 *
 * Invariants: 1. a founder's replica takes part only when every other founder has bound this folder's number; so whoever takes part and has heard of a founder's replica has its number, and lets
 * no later folder pass for it (hazards p5, D5.45); 2. once a founder takes part its bindings never change; while it asks itself it has relied on nobody, and binds the latest number; 3. who is no
 * founder by its own folder (it joined, or was recovered) knows no bindings, and lets nobody found.
 */
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError, QuorateError, RefusedError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { NodeId } from '../raft/types.js'
import type { MessengerFace } from '../transport/messenger.js'
import type { Address } from '../transport/transport.js'
import type { ClusterNode } from './cluster-map.js'

const FoundAnswer = { bound: 0, known: 1 } as const
const askTimeoutMs = 500
const askAgainAfterMs = 100

/** What a founder asks. */
interface FoundRequest {
  /** The cluster's id by the founders' list. */
  readonly originId: string
  readonly nodeId: NodeId
  readonly incarnation: number
}

export interface BindingsOptions {
  /** Of this node's own folder. */
  readonly originId: string
  /** Whether this folder is that of a founder in the cluster as it was founded. */
  readonly isFounder: () => boolean
  /** Whether this node still asks the others itself. */
  readonly isFounding: () => boolean
  readonly binding: (nodeId: NodeId) => number | undefined
  readonly bind: (nodeId: NodeId, incarnation: number) => Promise<void>
  /** The cluster map as it is now, encoded, for whoever has to join. */
  readonly map: () => Uint8Array
  /** Somebody of another cluster asked. */
  readonly onStranger: (from: Address, detail: string) => void
}

/** The side that is asked. */
export class Bindings {
  readonly #options: BindingsOptions
  #busy: Promise<unknown> = Promise.resolve()

  constructor(options: BindingsOptions) {
    this.#options = options
  }

  /** Answers one founder; one at a time, so that two numbers are not bound at once. */
  answer(from: Address, request: Uint8Array): Promise<Uint8Array> {
    const answer = this.#busy.then(() => this.#answer(from, request))
    this.#busy = answer.catch(() => {})
    return answer
  }

  async #answer(from: Address, request: Uint8Array): Promise<Uint8Array> {
    const { originId, isFounder, isFounding, binding, bind, map, onStranger } = this.#options
    const { nodeId, incarnation, ...asked } = decodeRequest(request)
    if (asked.originId !== originId) {
      onStranger(from, `node ${nodeId} wants to found cluster ${asked.originId}`)
      throw new RefusedError('WRONG_CLUSTER', `this node belongs to cluster ${originId}, not to ${asked.originId}`)
    }
    const known = isFounder() ? binding(nodeId) : 0
    if (known === incarnation) return Uint8Array.of(FoundAnswer.bound)
    if (known === undefined || (isFounder() && isFounding())) {
      await bind(nodeId, incarnation)
      return Uint8Array.of(FoundAnswer.bound)
    }
    return new Writer(256).u8(FoundAnswer.known).bytes(map()).finish()
  }
}

export interface FoundingOptions extends FoundRequest {
  readonly runtime: Runtime
  readonly messenger: MessengerFace
  /** The other founders. */
  readonly others: readonly ClusterNode[]
  readonly signal: AbortSignal
  /** A founder refused for good: it belongs to another cluster. */
  readonly onRefused: (from: Address, error: QuorateError) => void
}

/**
 * The side that asks: every other founder until all have answered. Resolves to null when this folder may take part, or to the cluster map (encoded) of the cluster that knew an earlier
 * folder of this node. Rejects with the signal's reason.
 */
export async function askFounders(options: FoundingOptions): Promise<Uint8Array | null> {
  const found = new AbortController()
  const stop = () => found.abort(options.signal.reason)
  options.signal.throwIfAborted()
  options.signal.addEventListener('abort', stop, { once: true })
  try {
    const answers = await Promise.all(
      options.others.map(async ({ address }) => {
        const map = await askFounder(options, address, found.signal)
        // One that knows is enough.
        if (map !== null) found.abort(map)
        return map
      }),
    ).catch((error: unknown) => {
      options.signal.throwIfAborted()
      if (found.signal.reason instanceof Uint8Array) return [found.signal.reason]
      throw error
    })
    return answers.find((map) => map !== null) ?? null
  } finally {
    options.signal.removeEventListener('abort', stop)
  }
}

async function askFounder(options: FoundingOptions, address: Address, signal: AbortSignal): Promise<Uint8Array | null> {
  const { runtime, messenger, onRefused } = options
  const request = encodeRequest(options)
  for (let isReported = false; ; ) {
    signal.throwIfAborted()
    try {
      const reply = new Reader(await messenger.request(address, 'found', request, { timeoutMs: askTimeoutMs, signal }))
      return reply.u8() === FoundAnswer.bound ? null : Buffer.from(reply.bytes())
    } catch (error) {
      signal.throwIfAborted()
      if (!(error instanceof QuorateError) || error instanceof CorruptionError) throw error
      if (error instanceof RefusedError && !isReported) {
        isReported = true
        onRefused(address, error)
      }
    }
    await new Promise<void>((resolve) => runtime.schedule(askAgainAfterMs * (0.5 + runtime.random()), resolve))
  }
}

function encodeRequest({ originId, nodeId, incarnation }: FoundRequest): Uint8Array {
  return new Writer(128).text(originId).text(nodeId).u32(incarnation).finish()
}

function decodeRequest(bytes: Uint8Array): FoundRequest {
  const reader = new Reader(bytes)
  const request = { originId: reader.text(), nodeId: reader.text(), incarnation: reader.u32() }
  reader.end()
  return request
}
