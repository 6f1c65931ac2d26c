/**
 * The bulk lane: messages in chunks, with a window, acknowledgements and repetition, over a transport that may lose, repeat and reorder.
 *
 *   chunk:     session u32 | stream varint | index varint | count varint | channel u8 | data
 *   chunk ack: session u32 | stream varint | state u8 | contiguous varint | received varint
 *
 * Invariants: 1. every chunk of a message but the last has the same size; 2. at most `windowBytes`, of at most `activeStreams` messages, are under way
 * to a peer unacknowledged; 3. the receiver allocates nothing by a length from outside: it keeps the chunks that came, and joins them once; 4. what it keeps
 * of one peer is bounded in bytes, streams and time; 5. a message is delivered at most once per stream while its stream is remembered.
 */
import { CorruptionError } from '../base/errors.js'
import { Deadline, type Deadlines } from './deadlines.js'
import { type FrameBuilder, type FrameReader, SystemChannel, varintBytes } from './frame.js'
import type { MessengerCounters } from './messenger-counters.js'
import type { Peer } from './peer.js'

/** Chunk data is at most so long. */
const chunkBytes = 64 * 1024
/** Under way to a peer without an acknowledgement: what a control message may have to wait behind in the transport's queue. */
const windowBytes = 1024 * 1024
const activeStreams = 4
const maxIncomingStreams = 64
const rememberedStreams = 64
const firstResendMs = 250
const lastResendMs = 2000
/** Resends without any progress before a message is given up. */
const maxResends = 10
/** Memory charged per kept chunk on top of its data. */
const chunkCostBytes = 64

const AckState = { progress: 0, complete: 1, refused: 2 } as const

export interface BulkOptions {
  readonly session: number
  readonly counters: MessengerCounters
  readonly deadlines: Deadlines
  readonly maxMessageBytes: number
  readonly maxQueueBytes: number
  readonly maxReassemblyBytes: number
  /** Shared by all peers. */
  readonly reassembly: { bytes: number; readonly maxBytes: number }
  readonly reassemblyTimeoutMs: number
  readonly begin: (peer: Peer, channel: number, bodyBytes: number) => FrameBuilder | null
  /** Asks for a turn of this peer. */
  readonly wake: (peer: Peer) => void
}

class OutgoingStream extends Deadline {
  readonly id: number
  readonly channel: number
  readonly bytes: Uint8Array
  readonly count: number
  next = 0
  /** Chunks 0 up to this one are known to have arrived. */
  contiguous = 0
  /** The hole that was filled at once, without waiting for the timer. */
  filledHole = -1
  resends = 0
  readonly #onSilence: (stream: OutgoingStream) => void

  constructor(id: number, channel: number, bytes: Uint8Array, count: number, onSilence: (stream: OutgoingStream) => void) {
    super()
    this.id = id
    this.channel = channel
    this.bytes = bytes
    this.count = count
    this.#onSilence = onSilence
  }

  expire(): void {
    this.#onSilence(this)
  }
}

/** The messages under way to one peer. */
export class OutgoingStreams {
  readonly #peer: Peer
  readonly #options: BulkOptions
  readonly #chunkBytes: number
  /** In the order of offering; the first `activeStreams` of them are sent, in turn. */
  readonly #streams = new Map<number, OutgoingStream>()
  #queuedBytes = 0
  #nextId = 1

  constructor(peer: Peer, options: BulkOptions) {
    this.#peer = peer
    this.#options = options
    this.#chunkBytes = Math.min(chunkBytes, peer.builder.maxBodyBytes - 32)
  }

  get idle(): boolean {
    return this.#streams.size === 0
  }

  get queuedBytes(): number {
    return this.#queuedBytes
  }

  /** Takes a message and returns its stream's id; null when the queue is full. */
  offer(channel: number, bytes: Uint8Array): number | null {
    if (bytes.length > this.#options.maxMessageBytes || this.#queuedBytes + bytes.length > this.#options.maxQueueBytes) return null
    const id = this.#nextId
    this.#nextId = id === 0x1fffff ? 1 : id + 1
    const count = Math.max(1, Math.ceil(bytes.length / this.#chunkBytes))
    this.#streams.set(id, new OutgoingStream(id, channel, bytes, count, (stream) => this.#silence(stream)))
    this.#queuedBytes += bytes.length
    this.#options.wake(this.#peer)
    return id
  }

  /** Nobody waits for this message any more. */
  cancel(id: number): void {
    const stream = this.#streams.get(id)
    if (stream !== undefined) this.#drop(stream)
  }

  #drop(stream: OutgoingStream): void {
    this.#options.deadlines.remove(stream)
    this.#streams.delete(stream.id)
    this.#queuedBytes -= stream.bytes.length
    if (this.#streams.size > 0) this.#options.wake(this.#peer)
  }

  /** Writes chunks of the active messages in turn, up to the budget. True when more could be written at once. */
  pump(budgetBytes: number): boolean {
    let left = budgetBytes
    const active: OutgoingStream[] = []
    let inFlight = 0
    for (const stream of this.#streams.values()) {
      if (active.length === activeStreams) break
      active.push(stream)
      inFlight += stream.next - stream.contiguous
    }
    const windowChunks = Math.max(activeStreams, Math.floor(windowBytes / this.#chunkBytes))
    for (let wrote = true; wrote; ) {
      wrote = false
      for (const stream of active) {
        if (stream.next >= stream.count) continue
        if (inFlight >= windowChunks) return false
        if (left <= 0) return true
        left -= this.#write(stream, stream.next++)
        inFlight++
        wrote = true
      }
    }
    return false
  }

  #write(stream: OutgoingStream, index: number): number {
    const options = this.#options
    const from = index * this.#chunkBytes
    const data = stream.bytes.subarray(from, Math.min(stream.bytes.length, from + this.#chunkBytes))
    const head = 4 + varintBytes(stream.id) + varintBytes(index) + varintBytes(stream.count) + 1
    const builder = options.begin(this.#peer, SystemChannel.chunk, head + data.length)
    if (builder !== null) {
      builder.u32(options.session)
      builder.varint(stream.id)
      builder.varint(index)
      builder.varint(stream.count)
      builder.u8(stream.channel)
      builder.raw(data)
    }
    if (stream.list === null) this.#await(stream)
    return data.length + head
  }

  #await(stream: OutgoingStream): void {
    this.#options.deadlines.add(stream, Math.min(lastResendMs, firstResendMs * 2 ** stream.resends))
  }

  #silence(stream: OutgoingStream): void {
    if (++stream.resends > maxResends) {
      this.#options.counters.bulkAbandoned++
      this.#drop(stream)
      return
    }
    this.#options.counters.chunksResent += stream.next - stream.contiguous
    stream.next = stream.contiguous
    stream.filledHole = -1
    this.#await(stream)
    this.#options.wake(this.#peer)
  }

  /** Reads an acknowledgement. */
  acknowledged(reader: FrameReader): void {
    const session = reader.u32()
    const id = reader.varint()
    const state = reader.u8()
    const contiguous = reader.varint()
    const received = reader.varint()
    reader.end()
    const stream = session === this.#options.session ? this.#streams.get(id) : undefined
    if (stream === undefined) return
    if (state !== AckState.progress) {
      if (state === AckState.refused) this.#options.counters.bulkAbandoned++
      this.#drop(stream)
      return
    }
    if (contiguous > stream.count || received > stream.count) throw new CorruptionError('acknowledges more chunks than there are', 'MALFORMED')
    if (contiguous < stream.contiguous) {
      // An old acknowledgement, come late; but after a silence rather a receiver that was restarted, or gave the message up, and has to get all of it again.
      if (stream.resends > 0) {
        stream.contiguous = contiguous
        stream.next = contiguous
        this.#options.wake(this.#peer)
      }
      return
    }
    if (contiguous > stream.contiguous) {
      stream.contiguous = contiguous
      stream.next = Math.max(stream.next, contiguous)
      stream.resends = 0
      this.#options.deadlines.remove(stream)
      if (stream.next > contiguous) this.#await(stream)
      this.#options.wake(this.#peer)
    } else if (received >= contiguous + 3 && stream.filledHole !== contiguous && stream.next > contiguous) {
      // Three later ones have arrived: this one is lost rather than late (RFC 5681, fast retransmit).
      stream.filledHole = contiguous
      this.#options.counters.chunksResent++
      this.#write(stream, contiguous)
    }
  }
}

class IncomingStream extends Deadline {
  readonly key: number
  readonly session: number
  readonly id: number
  readonly count: number
  readonly channel: number
  readonly chunks = new Map<number, Uint8Array>()
  contiguous = 0
  bytes = 0
  readonly #onExpired: (stream: IncomingStream) => void

  constructor(key: number, session: number, id: number, count: number, channel: number, onExpired: (stream: IncomingStream) => void) {
    super()
    this.key = key
    this.session = session
    this.id = id
    this.count = count
    this.channel = channel
    this.#onExpired = onExpired
  }

  expire(): void {
    this.#onExpired(this)
  }
}

interface Ack {
  readonly session: number
  readonly id: number
  readonly state: number
  readonly contiguous: number
  readonly received: number
}

/** The messages that come from one peer. */
export class IncomingStreams {
  readonly #peer: Peer
  readonly #options: BulkOptions
  readonly #streams = new Map<number, IncomingStream>()
  /** Streams that are over, with what their sender is told when it asks again. */
  readonly #over = new Map<number, number>()
  /** One per stream, sent when the frame has been dealt with. */
  readonly #acks = new Map<number, Ack>()
  #keptBytes = 0

  constructor(peer: Peer, options: BulkOptions) {
    this.#peer = peer
    this.#options = options
  }

  get idle(): boolean {
    return this.#streams.size === 0
  }

  /** Takes a chunk, and delivers the message when it is the last that was missing. */
  chunk(reader: FrameReader, deliver: (channel: number, body: Uint8Array) => void): void {
    const session = reader.u32()
    const id = reader.varint()
    const index = reader.varint()
    const count = reader.varint()
    const channel = reader.u8()
    const data = reader.rest()
    if (id > 0x1fffff || count === 0 || index >= count || channel === SystemChannel.chunk || channel === SystemChannel.chunkAck)
      throw new CorruptionError('impossible chunk', 'MALFORMED')
    if (index < count - 1 && data.length === 0) throw new CorruptionError('empty chunk', 'MALFORMED')
    const key = session * 0x200000 + id
    const over = this.#over.get(key)
    if (over !== undefined) {
      this.#ack(key, session, id, over, count, count)
      return
    }
    if (count === 1) {
      this.#finish(key, session, id, AckState.complete, count)
      deliver(channel, data)
      return
    }
    const stream = this.#streams.get(key) ?? this.#begin(key, session, id, count, channel)
    if (stream === null) return
    if (stream.count !== count || stream.channel !== channel) throw new CorruptionError('chunk contradicts an earlier one', 'MALFORMED')
    const deadlines = this.#options.deadlines
    deadlines.remove(stream)
    deadlines.add(stream, this.#options.reassemblyTimeoutMs)
    if (!stream.chunks.has(index)) {
      const cost = data.length + chunkCostBytes
      const { maxMessageBytes, maxReassemblyBytes, reassembly } = this.#options
      if (
        stream.bytes + data.length > maxMessageBytes ||
        this.#keptBytes + cost > maxReassemblyBytes ||
        reassembly.bytes + cost > reassembly.maxBytes
      ) {
        this.#refuse(stream)
        return
      }
      // A small piece of a large buffer would keep all of it alive.
      stream.chunks.set(index, data.length * 2 < data.buffer.byteLength ? Uint8Array.prototype.slice.call(data) : data)
      stream.bytes += data.length
      this.#keptBytes += cost
      reassembly.bytes += cost
      while (stream.chunks.has(stream.contiguous)) stream.contiguous++
    }
    if (stream.chunks.size < count) {
      this.#ack(key, session, id, AckState.progress, stream.contiguous, stream.chunks.size)
      return
    }
    const body = this.#join(stream)
    this.#drop(stream)
    this.#finish(key, session, id, AckState.complete, count)
    deliver(channel, body)
  }

  #begin(key: number, session: number, id: number, count: number, channel: number): IncomingStream | null {
    // Every chunk but the last holds a byte at least: a count beyond this is refused before anything is kept.
    if (count > this.#options.maxMessageBytes || this.#streams.size >= maxIncomingStreams) {
      this.#options.counters.bulkDropped++
      this.#finish(key, session, id, AckState.refused, count)
      return null
    }
    const stream = new IncomingStream(key, session, id, count, channel, (expired) => {
      this.#options.counters.bulkDropped++
      this.#drop(expired)
    })
    this.#streams.set(key, stream)
    return stream
  }

  #join(stream: IncomingStream): Uint8Array {
    const body = Buffer.allocUnsafeSlow(stream.bytes)
    let at = 0
    for (let index = 0; index < stream.count; index++) {
      const data = stream.chunks.get(index) as Uint8Array
      body.set(data, at)
      at += data.length
    }
    return body
  }

  #refuse(stream: IncomingStream): void {
    this.#options.counters.bulkDropped++
    this.#drop(stream)
    this.#finish(stream.key, stream.session, stream.id, AckState.refused, stream.count)
  }

  #drop(stream: IncomingStream): void {
    this.#options.deadlines.remove(stream)
    this.#streams.delete(stream.key)
    const cost = stream.bytes + stream.chunks.size * chunkCostBytes
    this.#keptBytes -= cost
    this.#options.reassembly.bytes -= cost
  }

  #finish(key: number, session: number, id: number, state: number, count: number): void {
    if (this.#over.size >= rememberedStreams) {
      const oldest = this.#over.keys().next()
      if (!oldest.done) this.#over.delete(oldest.value)
    }
    this.#over.set(key, state)
    this.#ack(key, session, id, state, count, count)
  }

  #ack(key: number, session: number, id: number, state: number, contiguous: number, received: number): void {
    this.#acks.set(key, { session, id, state, contiguous, received })
  }

  /** Sends what the chunks of a frame are to be answered. */
  acknowledge(): void {
    if (this.#acks.size === 0) return
    for (const ack of this.#acks.values()) {
      const bytes = 4 + varintBytes(ack.id) + 1 + varintBytes(ack.contiguous) + varintBytes(ack.received)
      const builder = this.#options.begin(this.#peer, SystemChannel.chunkAck, bytes)
      if (builder === null) break
      builder.u32(ack.session)
      builder.varint(ack.id)
      builder.u8(ack.state)
      builder.varint(ack.contiguous)
      builder.varint(ack.received)
    }
    this.#acks.clear()
  }
}
