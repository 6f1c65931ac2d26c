/**
 * The Messenger: everything between a Transport's frames and the layers above: identity, checksums, one frame per peer per turn (outbox.ts), chunking of
 * what is larger than a frame and the bulk lane (bulk.ts), request and reply (requests.ts).
 *
 * Invariants: 1. nothing that arrives throws out of here, except to tell the adapter that a frame was no good; 2. of another cluster nothing is delivered
 * but a refusal, and a refusal is never answered; 3. frames without a cluster id (a node that knows none yet) reach open methods only;
 * 4. every queue is bounded, and what is over is counted.
 */
import { CorruptionError, InvalidArgumentError, RefusedError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { clusterIdBytes, encodeHeader, FrameReader, maxNodeIdBytes, minFrameBytes, SystemChannel } from './frame.js'
import { MessengerCounters } from './messenger-counters.js'
import type {
  Channel,
  MessageHandler,
  MessengerFace,
  MessengerOptions,
  MessengerStatus,
  Refusal,
  RequestHandler,
  RequestOptions,
} from './messenger-types.js'
import { Outbox } from './outbox.js'
import type { Peer } from './peer.js'
import { Requests } from './requests.js'
import type { Address, PeerState, PeerStateHandler, Transport } from './transport.js'

export { MessengerCounters } from './messenger-counters.js'
export {
  Channel,
  type MessageHandler,
  type MessengerFace,
  type MessengerOptions,
  type MessengerStatus,
  type Refusal,
  type RequestHandler,
  type RequestOptions,
  type Sender,
} from './messenger-types.js'

/** How far a frame's sender is trusted. */
const Trust = { full: 0, stranger: 1, none: 2 } as const
type Trust = (typeof Trust)[keyof typeof Trust]

const bit = (channel: number): number => 1 << channel
/** What a node that knows no cluster yet may send us. */
const fromStranger = bit(SystemChannel.request) | bit(SystemChannel.cancel) | bit(SystemChannel.chunkAck)
/** What anyone may send us while we know no cluster yet. */
const toStranger = bit(SystemChannel.reply) | bit(SystemChannel.errorReply) | bit(SystemChannel.chunk) | bit(SystemChannel.chunkAck)
const always = bit(SystemChannel.refused)

/** How often one peer is told that it is refused. */
const refusalIntervalMs = 100
/** … and that this node has no cluster yet: who asks waits for nothing else, and tries again in a moment. */
const notYetIntervalMs = 2

/** Refusals of one peer that `onRefused` is told of. */
const maxReportsPerSecond = 100

const RefusalReason = { wrongCluster: 1, wrongNode: 2, noClusterYet: 3 } as const

/**
 * Talks to other nodes over any Transport.
 *
 * ```ts
 * const messenger = new Messenger({ transport: tcp({ listen: '127.0.0.1:0' }), runtime: systemRuntime, clusterId, nodeId })
 * messenger.handle('echo', (from, payload) => payload)
 * await messenger.open()
 * const reply = await messenger.request(peer, 'echo', Buffer.from('hello'), { timeoutMs: 1000 })
 * ```
 */
export class Messenger implements MessengerFace {
  /** Counts by kind, for metrics and tests. */
  readonly counters = new MessengerCounters()
  readonly #transport: Transport
  readonly #runtime: Runtime
  readonly #nodeId: string
  readonly #outbox: Outbox
  readonly #requests: Requests
  readonly #handlers: (MessageHandler | undefined)[] = []
  readonly #onRefused: ((refusal: Refusal) => void) | undefined
  readonly #onHandlerError: (error: unknown, where: string) => void
  readonly #peerStateHandlers: PeerStateHandler[] = []
  #clusterId: Uint8Array
  #clusterKnown: boolean
  #state: 'new' | 'open' | 'closed' = 'new'

  constructor(options: MessengerOptions) {
    checkNodeId(options.nodeId)
    if (options.transport.maxFrameBytes < minFrameBytes) throw new InvalidArgumentError(`the transport's maxFrameBytes is below ${minFrameBytes}`)
    this.#transport = options.transport
    this.#runtime = options.runtime
    this.#nodeId = options.nodeId
    this.#clusterId = checkClusterId(options.clusterId)
    this.#clusterKnown = isKnown(this.#clusterId)
    this.#onRefused = options.onRefused
    const { onHandlerError } = options
    this.#onHandlerError = (error, where) => {
      try {
        if (onHandlerError === undefined) warn(error)
        else onHandlerError(error, where)
      } catch (hookError) {
        warn(hookError)
      }
    }
    const maxConcurrentRequests = options.maxConcurrentRequests ?? 4096
    const maxMessageBytes = options.maxMessageBytes ?? 64 * 1024 * 1024
    this.#outbox = new Outbox({
      transport: options.transport,
      runtime: options.runtime,
      counters: this.counters,
      header: encodeHeader(this.#clusterId, this.#nodeId),
      session: new DataView(options.runtime.randomBytes(4).slice().buffer).getUint32(0),
      maxMessageBytes,
      maxBulkQueueBytes: options.maxBulkQueueBytes ?? 2 * maxMessageBytes,
      maxReassemblyBytes: options.maxReassemblyBytes ?? 2 * maxMessageBytes,
      reassemblyTimeoutMs: options.reassemblyTimeoutMs ?? 15_000,
      deliver: (frame) => this.#receive(this.address, frame, true),
    })
    this.#requests = new Requests({
      outbox: this.#outbox,
      counters: this.counters,
      openMethods: new Set(options.openMethods ?? []),
      requestTimeoutMs: options.requestTimeoutMs ?? 10_000,
      maxPendingRequests: options.maxPendingRequests ?? 65_536,
      maxConcurrentRequests,
      maxConcurrentRequestsPerPeer: options.maxConcurrentRequestsPerPeer ?? Math.max(1, Math.floor(maxConcurrentRequests / 4)),
      onHandlerError: this.#onHandlerError,
    })
  }

  get address(): Address {
    return this.#transport.address
  }

  get nodeId(): string {
    return this.#nodeId
  }

  get clusterId(): Uint8Array {
    return this.#clusterId
  }

  status(): MessengerStatus {
    return { ...this.#outbox.status(), ...this.#requests.status() }
  }

  /** Once a node without a cluster has learned of it: from now on it is a full peer. */
  setClusterId(clusterId: Uint8Array): void {
    this.#clusterId = checkClusterId(clusterId)
    this.#clusterKnown = isKnown(clusterId)
    this.#outbox.setHeader(encodeHeader(clusterId, this.#nodeId))
  }

  onMessage(channel: Channel, handler: MessageHandler): void {
    this.#handlers[channel] = handler
  }

  handle(method: string, handler: RequestHandler): void {
    this.#requests.handle(method, handler)
  }

  onPeerState(handler: PeerStateHandler): void {
    this.#peerStateHandlers.push(handler)
  }

  send(to: Address, channel: Channel, body: Uint8Array): void {
    if (this.#state !== 'open') {
      this.counters.messagesDropped++
      return
    }
    this.#outbox.send(this.#outbox.peer(to), channel, body)
  }

  request(to: Address, method: string, payload: Uint8Array, options?: RequestOptions): Promise<Uint8Array> {
    return this.#requests.request(to, method, payload, options)
  }

  flush(): void {
    this.#outbox.flush()
  }

  /** Opens the transport. Rejects when the address cannot be used. */
  async open(): Promise<void> {
    if (this.#state !== 'new') throw new InvalidArgumentError(`messenger is ${this.#state}`)
    this.#transport.onPeerState?.((peer, state) => this.#peerStateChanged(peer, state))
    await this.#transport.open((from, frame) => this.#receive(from, frame, false))
    // close() may have been called meanwhile.
    if ((this.#state as string) === 'closed') return
    this.#state = 'open'
    this.#outbox.open()
    this.#requests.open()
  }

  /** Sends what is queued, rejects what waits with ClosedError, and closes the transport. Idempotent. */
  async close(): Promise<void> {
    if (this.#state === 'open') this.#outbox.flush()
    this.#state = 'closed'
    this.#requests.close()
    this.#outbox.close()
    await this.#transport.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #peerStateChanged(address: Address, state: PeerState): void {
    if (this.#state === 'closed') return
    if (state === 'lost') {
      this.#requests.peerLost(address)
      this.#outbox.peerLost(address)
    }
    for (const handler of this.#peerStateHandlers) this.#guard(() => handler(address, state), 'onPeerState')
  }

  #guard(task: () => void, where: string): void {
    try {
      task()
    } catch (error) {
      this.counters.handlerErrors++
      this.#onHandlerError(error, where)
    }
  }

  /** Reports a refusal, but not without end: under attack the report must not cost more than the frame. */
  #refuse(kind: Refusal['kind'], peer: Peer, detail: () => string): void {
    if (this.#onRefused === undefined) return
    const nowMs = this.#runtime.nowMs()
    if (nowMs - peer.reportsSinceMs >= 1000) {
      peer.reportsSinceMs = nowMs
      peer.reports = 0
    }
    if (peer.reports++ >= maxReportsPerSecond) return
    const refusal = { kind, from: peer.address, detail: detail() }
    this.#guard(() => this.#onRefused?.(refusal), 'onRefused')
  }

  #receive(from: Address, frame: Uint8Array, own: boolean): void {
    if (this.#state !== 'open') return
    const counters = this.counters
    counters.framesReceived++
    counters.bytesReceived += frame.length
    const reader = new FrameReader(frame)
    const problem = reader.check()
    const peer = this.#outbox.peer(from)
    if (problem !== null) {
      if (problem === 'bad-checksum') counters.badChecksum++
      else if (problem === 'wrong-protocol') counters.wrongProtocol++
      else counters.malformed++
      this.#refuse(problem, peer, () => `frame of ${frame.length} bytes`)
      throw new CorruptionError(`frame from ${from} is ${problem}`, 'MALFORMED')
    }
    let trust: Trust = Trust.full
    let allowed = -1
    if (peer.lastHeader === null || !reader.startsWith(peer.lastHeader)) {
      trust = this.#identify(peer, reader, own)
      // Only of full peers is the header remembered, so that the next frame skips all this.
      if (trust === Trust.stranger) {
        const theirsKnown = isKnown(reader.clusterId)
        allowed = always | (theirsKnown ? 0 : fromStranger) | (this.#clusterKnown ? 0 : toStranger)
      } else if (trust === Trust.none) allowed = always
    }
    this.#dispatch(peer, reader, trust, allowed)
    this.#outbox.frameDone(peer)
  }

  /** Who sent this, and how far is it trusted? */
  #identify(peer: Peer, reader: FrameReader, own: boolean): Trust {
    const nodeId = Buffer.from(reader.nodeIdBytes).toString('utf8')
    if (peer.sender.nodeId !== nodeId) peer.sender = { nodeId, address: peer.address }
    const theirs = reader.clusterId
    if (own) return Trust.full
    if (!this.#clusterKnown || !isKnown(theirs)) return Trust.stranger
    const wrongCluster = !sameBytes(theirs, this.#clusterId)
    if (wrongCluster || nodeId === this.#nodeId) {
      // A frame with nothing but a refusal is not refused in turn: that would never end.
      if (!hasMoreThanRefusal(reader)) return Trust.none
      if (wrongCluster) {
        this.counters.wrongCluster++
        this.#answerRefusal(peer, RefusalReason.wrongCluster)
        this.#refuse('wrong-cluster', peer, () => `node ${nodeId} is of cluster ${hex(theirs)}`)
      } else {
        this.counters.wrongNode++
        this.#answerRefusal(peer, RefusalReason.wrongNode)
        this.#refuse('wrong-node', peer, () => `another node says that it is ${nodeId}, as this one is`)
      }
      return Trust.none
    }
    peer.lastHeader = encodeHeader(theirs, nodeId)
    return Trust.full
  }

  #answerRefusal(peer: Peer, reason: number): void {
    const nowMs = this.#runtime.nowMs()
    if (nowMs - peer.lastRefusalMs < (reason === RefusalReason.noClusterYet ? notYetIntervalMs : refusalIntervalMs)) return
    peer.lastRefusalMs = nowMs
    this.#outbox.begin(peer, SystemChannel.refused, 1)?.u8(reason)
  }

  #dispatch(peer: Peer, reader: FrameReader, trust: Trust, allowed: number): void {
    const counters = this.counters
    while (reader.next()) {
      const channel = reader.channel
      if (trust !== Trust.full && (channel >= 16 || (allowed & (1 << channel)) === 0)) {
        if (trust === Trust.stranger) {
          counters.notOpen++
          this.#refuse('not-open', peer, () => `channel ${channel} needs the cluster id`)
          if (!this.#clusterKnown && channel >= 16) this.#answerRefusal(peer, RefusalReason.noClusterYet)
        }
        continue
      }
      counters.messagesReceived++
      try {
        this.#section(peer, reader, channel, trust)
      } catch (error) {
        if (error instanceof CorruptionError) {
          counters.malformed++
          this.#refuse('malformed', peer, () => `channel ${channel}: ${error.message}`)
        } else {
          counters.handlerErrors++
          this.#onHandlerError(error, `channel ${channel}`)
        }
      }
    }
  }

  #section(peer: Peer, reader: FrameReader, channel: number, trust: Trust): void {
    if (channel >= 16) {
      const handler = this.#handlers[channel]
      if (handler === undefined) this.#unknownChannel(peer, channel)
      else handler(peer.sender, reader.rest())
      return
    }
    switch (channel) {
      case SystemChannel.chunk:
        this.#outbox.chunk(peer, reader, (inner, body) => this.#assembled(peer, inner, body, trust))
        return
      case SystemChannel.chunkAck:
        this.#outbox.chunkAck(peer, reader)
        return
      case SystemChannel.refused:
        this.#refusedByPeer(peer, reader.u8())
        return
      default:
        if (!this.#requests.section(peer, reader, channel, trust !== Trust.full)) this.#unknownChannel(peer, channel)
    }
  }

  /** A message that came in chunks is complete. */
  #assembled(peer: Peer, channel: number, body: Uint8Array, trust: Trust): void {
    if (channel >= 16) {
      const handler = trust === Trust.full ? this.#handlers[channel] : undefined
      if (handler === undefined) this.#unknownChannel(peer, channel)
      else handler(peer.sender, body)
      return
    }
    if (!this.#requests.section(peer, FrameReader.ofBody(body), channel, trust !== Trust.full)) this.#unknownChannel(peer, channel)
  }

  #unknownChannel(peer: Peer, channel: number): void {
    this.counters.unknownChannel++
    this.#refuse('unknown-channel', peer, () => `channel ${channel}`)
  }

  #refusedByPeer(peer: Peer, reason: number): void {
    this.counters.refusedByPeer++
    if (reason === RefusalReason.noClusterYet) {
      // What was sent there is lost; it may be asked for elsewhere at once.
      for (const handler of this.#peerStateHandlers) this.#guard(() => handler(peer.address, 'lost'), 'onPeerState')
      return
    }
    const error =
      reason === RefusalReason.wrongNode
        ? new RefusedError('WRONG_NODE', `${peer.address} has the same node id as this node, ${this.#nodeId}`)
        : new RefusedError('WRONG_CLUSTER', `${peer.address} belongs to another cluster`)
    this.#requests.peerRefused(peer, error)
    this.#refuse('refused-by-peer', peer, () => error.message)
  }
}

function hasMoreThanRefusal(reader: FrameReader): boolean {
  let more = false
  while (reader.next()) if (reader.channel !== SystemChannel.refused) more = true
  reader.rewind()
  return more
}

function warn(error: unknown): void {
  process.emitWarning(error instanceof Error ? error : new Error(String(error)))
}

function checkNodeId(nodeId: string): void {
  const bytes = Buffer.byteLength(nodeId)
  if (bytes === 0 || bytes > maxNodeIdBytes) throw new InvalidArgumentError(`a node id has 1 to ${maxNodeIdBytes} bytes, got ${bytes}`)
}

function checkClusterId(clusterId: Uint8Array): Uint8Array {
  if (clusterId.length !== clusterIdBytes) throw new InvalidArgumentError(`a cluster id has ${clusterIdBytes} bytes, got ${clusterId.length}`)
  return Uint8Array.from(clusterId)
}

function isKnown(clusterId: Uint8Array): boolean {
  for (const byte of clusterId) if (byte !== 0) return true
  return false
}

function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  for (let at = 0; at < clusterIdBytes; at++) if (one[at] !== other[at]) return false
  return true
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}
