/**
 * WatchService: KvService's part on watches: long polls, served by the leader.
 *
 * Invariants: 1. «from now» is a position that a majority has confirmed: every write acknowledged before the poll is before it, every later one after it; 2. a position ahead of this
 * replica's state is taken for one that has no history only after the state has been confirmed to be the latest; 3. polls that wait are bounded in number over all groups of the node.
 */
import { Reader } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { ReplyStatus } from './kv-protocol.js'
import type { Refusal, ServedReplica } from './served-replica.js'
import { encodeOldest, encodeWatchPage, readWatchRequest, type WatchRequest } from './watch-protocol.js'

export interface WatchServiceOptions {
  readonly runtime: Runtime
  /** The shards that a group owns. */
  readonly owns: (group: number, shard: number) => boolean
  readonly shards: () => number
  readonly refuse: (replica: ServedReplica, refusal: Refusal, reply: (status: ReplyStatus, body: Uint8Array) => void) => void
  readonly maxPolls: number
}

const nothing = new Uint8Array(0)

export class WatchService {
  readonly #options: WatchServiceOptions
  #polls = 0

  constructor(options: WatchServiceOptions) {
    this.#options = options
  }

  /** Polls under way. */
  get polls(): number {
    return this.#polls
  }

  /** Throws CorruptionError `MALFORMED`. */
  poll(replica: ServedReplica, payload: Uint8Array, reply: (status: ReplyStatus, body: Uint8Array) => void): void {
    const request = readWatchRequest(new Reader(payload))
    const { owns, shards, maxPolls } = this.#options
    for (const { shard } of request.positions) if (shard >= shards()) throw new CorruptionError(`there is no shard ${shard}`, 'MALFORMED')
    if (!request.positions.every(({ shard }) => owns(replica.group, shard))) return reply(ReplyStatus.wrongGroup, nothing)
    if (this.#polls >= maxPolls) return reply(ReplyStatus.overloaded, nothing)
    this.#polls++
    const finish = (status: ReplyStatus, body: Uint8Array) => {
      this.#polls--
      reply(status, body)
    }
    this.#await(replica, request, finish)
  }

  #await(replica: ServedReplica, request: WatchRequest, reply: (status: ReplyStatus, body: Uint8Array) => void): void {
    const ready = (refusal: Refusal | null) => {
      if (refusal === null) this.#serve(replica, request, reply)
      else this.#options.refuse(replica, refusal, reply)
    }
    if (replica.machine.watches.needsConfirmation(request)) replica.awaitReadable(ready)
    else replica.awaitAny(ready)
  }

  #serve(replica: ServedReplica, request: WatchRequest, reply: (status: ReplyStatus, body: Uint8Array) => void): void {
    try {
      this.#answer(replica, request, reply)
    } catch (error) {
      this.#fail(replica, error, reply)
    }
  }

  /** The history cannot be read: another replica's may be whole. */
  #fail(replica: ServedReplica, error: unknown, reply: (status: ReplyStatus, body: Uint8Array) => void): void {
    reply(ReplyStatus.stopped, nothing)
    if (!(error instanceof CorruptionError)) throw error
    replica.damaged(error)
  }

  #answer(replica: ServedReplica, request: WatchRequest, reply: (status: ReplyStatus, body: Uint8Array) => void): void {
    const { machine } = replica
    const { refuse, runtime } = this.#options
    if (machine.watches.needsLoad(request)) {
      machine.history.load().then(
        () => this.#await(replica, request, reply),
        // A store that is being closed does not iterate either; only damage is news.
        (error: unknown) => (error instanceof CorruptionError ? this.#fail(replica, error, reply) : reply(ReplyStatus.stopped, nothing)),
      )
      return
    }
    if (replica.stopped) return refuse(replica, 'stopped', reply)
    if (!replica.isLeader) return refuse(replica, 'not-leader', reply)
    const missing = machine.watches.missing(request)
    if (missing.length > 0) return reply(ReplyStatus.compacted, encodeOldest(missing))
    machine.watches.serve(request, runtime, (page, refusal) => {
      if (page === null) refuse(replica, refusal!, reply)
      else reply(ReplyStatus.done, encodeWatchPage(page))
    })
  }
}
