/**
 * The outbox: what waits to be sent, per peer, and the turn that sends it.
 *
 * Invariants: 1. a message is written into its peer's frame at once, so nothing of the caller's is kept; 2. all that a turn queues for a peer leaves in one
 * frame, or in as few as its size allows; 3. the bulk lane adds at most `bulkBytesPerTurn` to a turn, after all control messages;
 * 4. what is for this node itself is delivered in a later turn, through the same path but without the transport.
 */
import type { Runtime } from '../base/runtime.js'
import { type BulkOptions, IncomingStreams, OutgoingStreams } from './bulk.js'
import { Deadlines } from './deadlines.js'
import { FrameBuilder, type FrameReader } from './frame.js'
import type { MessengerCounters } from './messenger-counters.js'
import { Peer } from './peer.js'
import type { Address, Transport } from './transport.js'

/** What the bulk lane may add to one turn, per peer. */
const bulkBytesPerTurn = 256 * 1024
/** Peers kept before idle ones are forgotten. */
const manyPeers = 1024
/** Bytes for this node itself that one turn may queue. */
const maxSelfBytes = 64 * 1024 * 1024

export interface OutboxOptions {
  readonly transport: Transport
  readonly runtime: Runtime
  readonly counters: MessengerCounters
  readonly header: Buffer
  /** Tells this life of the node from its earlier ones. */
  readonly session: number
  readonly maxMessageBytes: number
  readonly maxBulkQueueBytes: number
  readonly maxReassemblyBytes: number
  readonly reassemblyTimeoutMs: number
  /** Takes frames for this node itself. */
  readonly deliver: (frame: Buffer) => void
}

export class Outbox {
  readonly session: number
  readonly deadlines: Deadlines
  readonly maxMessageBytes: number
  readonly #transport: Transport
  readonly #runtime: Runtime
  readonly #counters: MessengerCounters
  readonly #bulkOptions: BulkOptions
  readonly #deliver: (frame: Buffer) => void
  readonly #peers = new Map<Address, Peer>()
  readonly #endTurn: () => void
  #header: Buffer
  #self: Peer | null = null
  #selfFrames: Buffer[] = []
  #selfBytes = 0
  #dirty: Peer[] = []
  #turnScheduled = false
  #closed = false

  constructor(options: OutboxOptions) {
    this.session = options.session
    this.maxMessageBytes = options.maxMessageBytes
    this.deadlines = new Deadlines(options.runtime)
    this.#transport = options.transport
    this.#runtime = options.runtime
    this.#counters = options.counters
    this.#header = options.header
    this.#deliver = options.deliver
    this.#bulkOptions = {
      session: options.session,
      counters: options.counters,
      deadlines: this.deadlines,
      maxMessageBytes: options.maxMessageBytes,
      maxQueueBytes: options.maxBulkQueueBytes,
      maxReassemblyBytes: options.maxReassemblyBytes,
      reassembly: { bytes: 0, maxBytes: 2 * options.maxReassemblyBytes },
      reassemblyTimeoutMs: options.reassemblyTimeoutMs,
      begin: (peer, channel, bodyBytes) => this.begin(peer, channel, bodyBytes),
      wake: (peer) => this.#mark(peer),
    }
    this.#endTurn = () => this.#turn()
  }

  /** The transport's address is known now. */
  open(): void {
    this.#self = this.peer(this.#transport.address)
  }

  get ownAddress(): Address {
    return this.#transport.address
  }

  setHeader(header: Buffer): void {
    this.#header = header
    for (const peer of this.#peers.values()) {
      peer.builder.header = header
      peer.lastHeader = null
    }
  }

  peer(address: Address): Peer {
    const known = this.#peers.get(address)
    if (known !== undefined) return known
    if (this.#peers.size >= manyPeers && this.#peers.size % 64 === 0) this.#forgetIdle()
    const peer = new Peer(address, new FrameBuilder(this.#header, this.#transport.maxFrameBytes))
    this.#peers.set(address, peer)
    return peer
  }

  peers(): IterableIterator<Peer> {
    return this.#peers.values()
  }

  known(address: Address): Peer | undefined {
    return this.#peers.get(address)
  }

  status(): { peers: number; bulkBytes: number; reassemblyBytes: number } {
    let bulkBytes = 0
    for (const peer of this.#peers.values()) bulkBytes += peer.outgoing?.queuedBytes ?? 0
    return { peers: this.#peers.size, bulkBytes, reassemblyBytes: this.#bulkOptions.reassembly.bytes }
  }

  #forgetIdle(): void {
    for (const peer of this.#peers.values()) if (peer !== this.#self && peer.idle) this.#peers.delete(peer.address)
  }

  /** Queues a message that is already encoded; in chunks when it is larger than a frame. False when it is over a bound. */
  send(peer: Peer, channel: number, body: Uint8Array): boolean {
    if (body.length > peer.builder.maxBodyBytes) return this.sendBulk(peer, channel, new Uint8Array(body)) !== null
    const builder = this.begin(peer, channel, body.length)
    if (builder === null) return false
    builder.raw(body)
    return true
  }

  /** Begins a section whose body the caller writes at once. Null when closed. The body must fit in a frame. */
  begin(peer: Peer, channel: number, bodyBytes: number): FrameBuilder | null {
    if (this.#closed) return null
    const builder = peer.builder
    if (!builder.begin(channel, bodyBytes)) {
      this.#seal(peer)
      if (!builder.begin(channel, bodyBytes)) return null
    }
    this.#counters.messagesSent++
    if (!peer.dirty) this.#mark(peer)
    return builder
  }

  /** Queues a message, whose bytes are the outbox's from now on, in the bulk lane. Null when the lane is full. */
  sendBulk(peer: Peer, channel: number, body: Uint8Array): number | null {
    if (this.#closed) return null
    peer.outgoing ??= new OutgoingStreams(peer, this.#bulkOptions)
    const stream = peer.outgoing.offer(channel, body)
    if (stream === null) this.#counters.messagesDropped++
    return stream
  }

  chunk(peer: Peer, reader: FrameReader, deliver: (channel: number, body: Uint8Array) => void): void {
    peer.incoming ??= new IncomingStreams(peer, this.#bulkOptions)
    peer.incoming.chunk(reader, deliver)
  }

  chunkAck(peer: Peer, reader: FrameReader): void {
    peer.outgoing?.acknowledged(reader)
  }

  /** A frame of this peer has been dealt with. */
  frameDone(peer: Peer): void {
    if (peer.incoming !== null) peer.incoming.acknowledge()
  }

  #mark(peer: Peer): void {
    if (!peer.dirty) {
      peer.dirty = true
      this.#dirty.push(peer)
    }
    if (!this.#turnScheduled) {
      this.#turnScheduled = true
      this.#runtime.defer(this.#endTurn)
    }
  }

  #seal(peer: Peer): void {
    const frame = peer.builder.seal()
    this.#counters.framesSent++
    this.#counters.bytesSent += frame.length
    if (peer !== this.#self) this.#transport.send(peer.address, frame)
    else if (this.#selfBytes + frame.length <= maxSelfBytes) {
      this.#selfBytes += frame.length
      this.#selfFrames.push(frame)
    } else this.#counters.messagesDropped++
  }

  /** Sends the control messages queued so far. */
  flush(): void {
    for (const peer of this.#dirty) if (peer.builder.begun) this.#seal(peer)
  }

  #turn(): void {
    this.#turnScheduled = false
    if (this.#closed) return
    const dirty = this.#dirty
    this.#dirty = []
    for (const peer of dirty) {
      // Control messages get a frame of their own: they need not wait until the bulk behind them has arrived.
      if (peer.builder.begun) this.#seal(peer)
      const more = peer.outgoing?.pump(bulkBytesPerTurn) ?? false
      if (peer.builder.begun) this.#seal(peer)
      peer.dirty = false
      if (more) this.#mark(peer)
    }
    if (this.#selfFrames.length > 0) {
      const frames = this.#selfFrames
      this.#selfFrames = []
      this.#selfBytes = 0
      for (const frame of frames) this.#deliver(frame)
    }
  }

  peerLost(address: Address): void {
    const peer = this.#peers.get(address)
    if (peer === undefined || peer === this.#self) return
    // Incomplete messages are kept until their time is over: the peer may be back in a moment and go on with them.
    if (peer.idle) this.#peers.delete(address)
  }

  close(): void {
    this.#closed = true
    this.deadlines.clear()
    this.#peers.clear()
    this.#dirty = []
    this.#selfFrames = []
  }
}
