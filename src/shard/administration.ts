/**
 * Administration: what an operator asks of a cluster: who is in it, take one out, put one in another's place, hand leadership over.
 *
 * Invariants: 1. a change of nodes is a change of the map; the groups follow by themselves (`reconciler.ts`), whoever leads them and however often that changes; 2. every call may be repeated:
 * what is so already is done.
 */
import { Reader, Writer } from '../base/codec.js'
import { InvalidArgumentError, QuorateError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { Host } from '../engine/host.js'
import { nodeOf } from '../engine/identity.js'
import type { WaitOptions } from '../engine/kv.js'
import type { NodeId } from '../raft/types.js'
import type { MessengerFace } from '../transport/messenger.js'
import { type ClusterNode, type Router, withoutNode } from './cluster-map.js'
import type { MapKeeper } from './map-keeper.js'

const transferMethod = 'transfer-leadership'
const TransferAnswer = { done: 0, notLeader: 1, failed: 2, noVoter: 3 } as const
const attemptTimeoutMs = 1000
const pauseMs = 50

export interface AdministrationOptions {
  readonly runtime: Runtime
  readonly messenger: MessengerFace
  readonly router: Router
  readonly keeper: MapKeeper
  readonly requestTimeoutMs: number
}

/** What `node.cluster` offers. */
export class Administration {
  readonly #options: AdministrationOptions

  /** @internal */
  constructor(options: AdministrationOptions) {
    this.#options = options
  }

  /** The nodes of the cluster, as this node knows them by now. */
  nodes(): readonly ClusterNode[] {
    const { router } = this.#options
    return router.map.nodes.map(({ id, address }) => ({ id, address: router.addressOf(id) ?? address }))
  }

  /** The nodes that should hold a group. */
  membersOf(group: number): readonly NodeId[] {
    return this.#options.router.membersOf(group)
  }

  /**
   * Takes a node out of the cluster for good. Its places go to other nodes. Resolves when that is decided; the groups move in the background, one learner caught up at a time, and `status()` of their leaders says how far they are. Keep the
   * node running until then if you can. It never comes back under its old identity; with an empty folder and `seeds` it may join as a new node.
   *
   * @throws InvalidArgumentError when it is the last node. UnavailableError when a majority of the meta group cannot be reached in time.
   */
  async remove(nodeId: NodeId, options: WaitOptions = {}): Promise<void> {
    await this.#changeMap((signal) => this.#options.keeper.change((map) => withoutNode(map, nodeId, null), { signal }), options)
  }

  /**
   * Takes a node out of the cluster, and gives its places to another one that has joined already.
   *
   * @throws InvalidArgumentError when the replacement is not a node of the cluster. UnavailableError as for `remove`.
   */
  async replace(nodeId: NodeId, replacement: NodeId, options: WaitOptions = {}): Promise<void> {
    await this.#changeMap((signal) => this.#options.keeper.change((map) => withoutNode(map, nodeId, replacement), { signal }), options)
  }

  /** Ends a change of the map at the caller's deadline. */
  async #changeMap(change: (signal: AbortSignal) => Promise<unknown>, { signal, timeoutMs }: WaitOptions): Promise<void> {
    const { runtime, requestTimeoutMs } = this.#options
    const controller = new AbortController()
    const abort = () => controller.abort(signal?.reason)
    signal?.throwIfAborted()
    signal?.addEventListener('abort', abort, { once: true })
    const limitMs = timeoutMs ?? requestTimeoutMs
    const cancel = runtime.schedule(limitMs, () =>
      controller.abort(new UnavailableError(`the map could not be changed within ${limitMs} ms`, 'TIMEOUT')),
    )
    try {
      await change(controller.signal)
    } finally {
      cancel()
      signal?.removeEventListener('abort', abort)
    }
  }

  /**
   * Hands the leadership of a group to a node that votes in it. Resolves when that node leads.
   *
   * @throws InvalidArgumentError when the node is no voter of the group. UnavailableError when it did not come to it in time.
   */
  async transfer(group: number, to: NodeId, { signal, timeoutMs = this.#options.requestTimeoutMs }: WaitOptions = {}): Promise<void> {
    const { runtime, messenger, router } = this.#options
    if (!router.map.groups.some(({ id }) => id === group)) throw new InvalidArgumentError(`There is no group ${group}`)
    const deadlineMs = runtime.nowMs() + timeoutMs
    const request = new Writer(80).varint(group).text(to).finish()
    for (let turn = 0; ; turn++) {
      signal?.throwIfAborted()
      const leftMs = deadlineMs - runtime.nowMs()
      if (leftMs <= 0) throw new UnavailableError(`group ${group} was not handed to ${to} within ${timeoutMs} ms`, 'TIMEOUT')
      const nodes = router.map.nodes
      const address = router.addressOf(nodes[turn % nodes.length]!.id)
      try {
        const reply =
          address === undefined
            ? undefined
            : await messenger.request(address, transferMethod, request, { timeoutMs: Math.min(leftMs, attemptTimeoutMs), signal })
        if (reply?.[0] === TransferAnswer.done) return
        if (reply?.[0] === TransferAnswer.noVoter) throw new InvalidArgumentError(`Node ${to} is no voter of group ${group}`)
      } catch (error) {
        if (!(error instanceof QuorateError) || !error.retryable) throw error
      }
      if (turn % nodes.length === nodes.length - 1) await new Promise<void>((resolve) => runtime.schedule(pauseMs, resolve))
    }
  }
}

/** Lets others ask this node to hand over what it leads. */
export function serveTransfers(messenger: MessengerFace, host: Host): void {
  messenger.handle(transferMethod, async (_from, request) => {
    const reader = new Reader(request)
    const group = reader.varint()
    const to = reader.text()
    reader.end()
    const replica = host.replica(group)
    if (replica === undefined || replica.core.role !== 'leader') return Uint8Array.of(TransferAnswer.notLeader)
    const member = replica.core.configuration.voters.find((voter) => nodeOf(voter) === to)
    if (member === undefined) return Uint8Array.of(TransferAnswer.noVoter)
    if (member === replica.member) return Uint8Array.of(TransferAnswer.done)
    return Uint8Array.of((await replica.transfer(member)) === null ? TransferAnswer.done : TransferAnswer.failed)
  })
}

/** Hands over all that this node leads, before it closes: so nobody has to wait for an election. Takes at most `timeoutMs`. */
export async function handOver(host: Host, runtime: Runtime, timeoutMs: number): Promise<void> {
  const led = host.replicas.filter(({ stopped, core }) => !stopped && core.role === 'leader' && core.configuration.voters.length > 1)
  if (led.length === 0) return
  const done = Promise.all(led.map((replica) => replica.transfer(null)))
  let cancel = () => {}
  const late = new Promise<void>((resolve) => {
    cancel = runtime.schedule(timeoutMs, resolve)
  })
  await Promise.race([done, late])
  cancel()
}
