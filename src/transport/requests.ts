/**
 * Request and reply over sections of frames.
 *
 *   request:     session u32 | id varint | method length, method | payload
 *   reply:       session u32 | id varint | payload
 *   error reply: session u32 | id varint | kind u8 | retryable u8 | code length, code | message length, message
 *   cancel:      session u32 | id varint
 *
 * Invariants: 1. a request settles once, and nothing of it is left then; 2. a reply counts only when it comes from the peer that was asked and carries the
 * session of this life of the node: replies to an earlier life are ignored; 3. delivery is at least once: a request that is repeated while its handler
 * runs is not run again, one repeated later is; 4. pending and running requests are bounded; 5. no stack trace leaves the node.
 */
import { ClosedError, CorruptionError, InvalidArgumentError, OverloadedError, QuorateError, RefusedError, UnavailableError } from '../base/errors.js'
import { Deadline } from './deadlines.js'
import { type FrameReader, SystemChannel, varintBytes } from './frame.js'
import type { MessengerCounters } from './messenger-counters.js'
import type { RequestHandler, RequestOptions } from './messenger-types.js'
import type { Outbox } from './outbox.js'
import type { Peer } from './peer.js'
import { describeError, maxCodeBytes, maxErrorTextBytes, printable, readError } from './remote-errors.js'
import type { Address } from './transport.js'

const maxMethodBytes = 64
/** Replies larger than this go in the bulk lane. */
const largeReplyBytes = 64 * 1024
const maxId = 0x3fffffff

/** Given to handlers that declare that they take no signal: making one costs more than all else of a request. */
const neverAborted = new AbortController().signal

class PendingRequest extends Deadline {
  readonly requests: Requests
  readonly peer: Peer
  readonly id: number
  readonly method: string
  readonly timeoutMs: number
  readonly resolve: (reply: Uint8Array) => void
  readonly reject: (error: unknown) => void
  signal: AbortSignal | null = null
  onAbort: (() => void) | null = null
  stream: number | null = null

  constructor(
    requests: Requests,
    peer: Peer,
    id: number,
    method: string,
    timeoutMs: number,
    resolve: (reply: Uint8Array) => void,
    reject: (error: unknown) => void,
  ) {
    super()
    this.requests = requests
    this.peer = peer
    this.id = id
    this.method = method
    this.timeoutMs = timeoutMs
    this.resolve = resolve
    this.reject = reject
  }

  expire(): void {
    this.requests.timedOut(this)
  }
}

export interface RunningRequest {
  readonly session: number
  readonly controller: AbortController | null
}

export interface RequestsOptions {
  readonly outbox: Outbox
  readonly counters: MessengerCounters
  readonly openMethods: ReadonlySet<string>
  readonly requestTimeoutMs: number
  readonly maxPendingRequests: number
  readonly maxConcurrentRequests: number
  readonly maxConcurrentRequestsPerPeer: number
  readonly onHandlerError: (error: unknown, where: string) => void
}

export class Requests {
  readonly #options: RequestsOptions
  readonly #outbox: Outbox
  readonly #counters: MessengerCounters
  readonly #handlers = new Map<string, RequestHandler>()
  readonly #methods = new Map<string, Buffer>()
  readonly #pending = new Map<number, PendingRequest>()
  #running = 0
  #nextId = 1
  #state: 'new' | 'open' | 'closed' = 'new'

  constructor(options: RequestsOptions) {
    this.#options = options
    this.#outbox = options.outbox
    this.#counters = options.counters
  }

  open(): void {
    this.#state = 'open'
  }

  status(): { pendingRequests: number; runningRequests: number } {
    return { pendingRequests: this.#pending.size, runningRequests: this.#running }
  }

  handle(method: string, handler: RequestHandler): void {
    this.#encodeMethod(method)
    this.#handlers.set(method, handler)
  }

  #encodeMethod(method: string): Buffer {
    const known = this.#methods.get(method)
    if (known !== undefined) return known
    if (!/^[!-~]{1,64}$/.test(method))
      throw new InvalidArgumentError(`a method name has 1 to ${maxMethodBytes} printable ASCII characters, got '${method}'`)
    const bytes = Buffer.from(method, 'latin1')
    if (this.#methods.size < 4096) this.#methods.set(method, bytes)
    return bytes
  }

  // The requesting side.

  request(to: Address, method: string, payload: Uint8Array, options?: RequestOptions): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      if (this.#state !== 'open') {
        reject(this.#state === 'closed' ? new ClosedError('messenger is closed') : new UnavailableError('messenger is not open'))
        return
      }
      const signal = options?.signal
      if (signal?.aborted) {
        reject(signal.reason)
        return
      }
      const timeoutMs = options?.timeoutMs ?? this.#options.requestTimeoutMs
      if (!(timeoutMs >= 0)) {
        reject(new InvalidArgumentError(`timeoutMs is a number from 0 up, got ${timeoutMs}`))
        return
      }
      if (payload.length + 128 > this.#outbox.maxMessageBytes) {
        reject(new InvalidArgumentError(`payload of ${payload.length} bytes is over the limit of a message`, 'MESSAGE_TOO_LARGE'))
        return
      }
      if (this.#pending.size >= this.#options.maxPendingRequests) {
        this.#counters.requestsOverloaded++
        reject(new OverloadedError(`${this.#pending.size} requests wait for replies already`))
        return
      }
      const methodBytes = this.#encodeMethod(method)
      const peer = this.#outbox.peer(to)
      const id = this.#newId()
      const pending = new PendingRequest(this, peer, id, method, timeoutMs, resolve, reject)
      if (!this.#send(pending, methodBytes, payload, options?.lane === 'bulk')) {
        reject(new OverloadedError(`the bulk lane to ${to} is full`))
        return
      }
      this.#counters.requestsSent++
      this.#pending.set(id, pending)
      peer.pendingRequests++
      this.#outbox.deadlines.add(pending, timeoutMs)
      if (signal != null) {
        pending.signal = signal
        pending.onAbort = () => this.#giveUp(pending, signal.reason)
        signal.addEventListener('abort', pending.onAbort, { once: true })
      }
    })
  }

  #newId(): number {
    let id = this.#nextId
    while (this.#pending.has(id)) id = id === maxId ? 1 : id + 1
    this.#nextId = id === maxId ? 1 : id + 1
    return id
  }

  #send(pending: PendingRequest, method: Buffer, payload: Uint8Array, bulk: boolean): boolean {
    const bytes = 4 + varintBytes(pending.id) + 1 + method.length + payload.length
    const peer = pending.peer
    if (!bulk && bytes <= peer.builder.maxBodyBytes) {
      const builder = this.#outbox.begin(peer, SystemChannel.request, bytes)
      if (builder === null) return false
      builder.u32(this.#outbox.session)
      builder.varint(pending.id)
      builder.u8(method.length)
      builder.raw(method)
      builder.raw(payload)
      return true
    }
    const body = Buffer.allocUnsafeSlow(bytes)
    let at = body.writeUInt32BE(this.#outbox.session, 0)
    at = writeVarint(body, at, pending.id)
    body[at++] = method.length
    body.set(method, at)
    body.set(payload, at + method.length)
    pending.stream = this.#outbox.sendBulk(peer, SystemChannel.request, body)
    return pending.stream !== null
  }

  /** Takes the request out of all books; the caller settles it. */
  #settle(pending: PendingRequest): void {
    this.#pending.delete(pending.id)
    pending.peer.pendingRequests--
    this.#outbox.deadlines.remove(pending)
    if (pending.onAbort !== null) pending.signal?.removeEventListener('abort', pending.onAbort)
    if (pending.stream !== null) pending.peer.outgoing?.cancel(pending.stream)
  }

  #giveUp(pending: PendingRequest, error: unknown): void {
    this.#settle(pending)
    const builder = this.#outbox.begin(pending.peer, SystemChannel.cancel, 4 + varintBytes(pending.id))
    if (builder !== null) {
      builder.u32(this.#outbox.session)
      builder.varint(pending.id)
    }
    pending.reject(error)
  }

  /** @internal */
  timedOut(pending: PendingRequest): void {
    this.#counters.requestsTimedOut++
    this.#giveUp(pending, new UnavailableError(`no reply from ${pending.peer.address} to '${pending.method}' in ${pending.timeoutMs} ms`, 'TIMEOUT'))
  }

  /** The transport lost a peer: its replies may be gone, so that its requests fail now; and nobody is there to reply to. */
  peerLost(address: Address): void {
    const peer = this.#outbox.known(address)
    if (peer === undefined || address === this.#outbox.ownAddress) return
    this.#failPending(peer, (pending) => new UnavailableError(`connection to ${address} was lost before the reply to '${pending.method}'`))
    const reason = new UnavailableError(`connection to ${address} was lost`)
    for (const running of [...peer.running.values()]) running.controller?.abort(reason)
  }

  peerRefused(peer: Peer, error: RefusedError): void {
    this.#failPending(peer, () => error)
  }

  #failPending(peer: Peer, error: (pending: PendingRequest) => QuorateError): void {
    if (peer.pendingRequests === 0) return
    for (const pending of [...this.#pending.values()]) {
      if (pending.peer !== peer) continue
      this.#settle(pending)
      pending.reject(error(pending))
    }
  }

  // The answering side, and replies.

  /** Deals with a section of the given channel; false when it is none of request and reply. */
  section(peer: Peer, reader: FrameReader, channel: number, openOnly: boolean): boolean {
    switch (channel) {
      case SystemChannel.request:
        this.#requested(peer, reader, openOnly)
        return true
      case SystemChannel.reply:
      case SystemChannel.errorReply:
        this.#replied(peer, reader, channel)
        return true
      case SystemChannel.cancel: {
        const session = reader.u32()
        const running = peer.running.get(reader.varint())
        if (running?.session === session) running.controller?.abort(new UnavailableError('the requester gave up'))
        return true
      }
      default:
        return false
    }
  }

  #replied(peer: Peer, reader: FrameReader, channel: number): void {
    const session = reader.u32()
    const pending = this.#pending.get(reader.varint())
    if (pending === undefined || session !== this.#outbox.session || pending.peer.address !== peer.address) {
      this.#counters.repliesIgnored++
      return
    }
    if (channel === SystemChannel.reply) {
      this.#settle(pending)
      pending.resolve(reader.rest())
      return
    }
    const error = readError(reader, peer.address)
    this.#settle(pending)
    pending.reject(error)
  }

  #requested(peer: Peer, reader: FrameReader, openOnly: boolean): void {
    const session = reader.u32()
    const id = reader.varint()
    if (id > maxId) throw new CorruptionError('request id out of range', 'MALFORMED')
    const method = reader.latin1(maxMethodBytes)
    const payload = reader.rest()
    if (openOnly && !this.#options.openMethods.has(method)) {
      this.#counters.notOpen++
      this.#replyError(peer, session, id, new RefusedError('WRONG_CLUSTER', `'${printable(method)}' can only be asked by a node of the cluster`))
      return
    }
    const handler = this.#handlers.get(method)
    if (handler === undefined) {
      this.#counters.unknownMethod++
      this.#replyError(peer, session, id, new QuorateError('UNKNOWN_METHOD', `this node has no method '${printable(method)}'`, false))
      return
    }
    if (peer.running.get(id)?.session === session) {
      this.#counters.requestsRepeated++
      return
    }
    const { maxConcurrentRequests, maxConcurrentRequestsPerPeer } = this.#options
    if (this.#running >= maxConcurrentRequests || peer.running.size >= maxConcurrentRequestsPerPeer) {
      this.#counters.requestsOverloaded++
      const text = `${this.#running} requests are being handled already, ${peer.running.size} of them of this peer`
      this.#replyError(peer, session, id, new OverloadedError(text))
      return
    }
    this.#counters.requestsHandled++
    this.#run(peer, session, id, method, handler, payload)
  }

  #run(peer: Peer, session: number, id: number, method: string, handler: RequestHandler, payload: Uint8Array): void {
    const controller = handler.length < 3 ? null : new AbortController()
    let result: Promise<Uint8Array> | Uint8Array
    try {
      result = handler(peer.sender, payload, controller === null ? neverAborted : controller.signal)
    } catch (error) {
      this.#failed(peer, session, id, method, error)
      return
    }
    if (result instanceof Uint8Array) {
      this.#reply(peer, session, id, result)
      return
    }
    const running: RunningRequest = { session, controller }
    peer.running.set(id, running)
    this.#running++
    const done = (): boolean => {
      this.#running--
      if (peer.running.get(id) === running) peer.running.delete(id)
      // Nobody waits any more.
      return this.#state === 'open' && controller?.signal.aborted !== true
    }
    Promise.resolve(result).then(
      (reply) => {
        if (!done()) return
        if (reply instanceof Uint8Array) this.#reply(peer, session, id, reply)
        else this.#failed(peer, session, id, method, new TypeError(`the handler of '${method}' resolved to ${typeof reply}, not to bytes`))
      },
      (error: unknown) => {
        if (done()) this.#failed(peer, session, id, method, error)
      },
    )
  }

  #reply(peer: Peer, session: number, id: number, payload: Uint8Array): void {
    const bytes = 4 + varintBytes(id) + payload.length
    if (payload.length <= largeReplyBytes && bytes <= peer.builder.maxBodyBytes) {
      const builder = this.#outbox.begin(peer, SystemChannel.reply, bytes)
      if (builder === null) return
      builder.u32(session)
      builder.varint(id)
      builder.raw(payload)
      return
    }
    const body = Buffer.allocUnsafeSlow(bytes)
    const at = writeVarint(body, body.writeUInt32BE(session, 0), id)
    body.set(payload, at)
    if (this.#outbox.sendBulk(peer, SystemChannel.reply, body) === null)
      this.#replyError(peer, session, id, new OverloadedError(`the reply of ${payload.length} bytes has no room in the bulk lane`))
  }

  #failed(peer: Peer, session: number, id: number, method: string, error: unknown): void {
    if (!(error instanceof QuorateError)) {
      this.#counters.handlerErrors++
      this.#options.onHandlerError(error, `method ${method}`)
    }
    this.#replyError(peer, session, id, error)
  }

  #replyError(peer: Peer, session: number, id: number, error: unknown): void {
    const [kind, code, retryable] = describeError(error)
    const codeBytes = Buffer.from(code.slice(0, maxCodeBytes), 'latin1')
    const text = Buffer.from((error instanceof Error ? error.message : String(error)).slice(0, maxErrorTextBytes / 4))
    const bytes = 4 + varintBytes(id) + 2 + varintBytes(codeBytes.length) + codeBytes.length + varintBytes(text.length) + text.length
    const builder = this.#outbox.begin(peer, SystemChannel.errorReply, bytes)
    if (builder === null) return
    builder.u32(session)
    builder.varint(id)
    builder.u8(kind)
    builder.u8(retryable ? 1 : 0)
    builder.varint(codeBytes.length)
    builder.raw(codeBytes)
    builder.varint(text.length)
    builder.raw(text)
  }

  close(): void {
    this.#state = 'closed'
    const error = new ClosedError('messenger was closed')
    for (const peer of this.#outbox.peers()) for (const running of [...peer.running.values()]) running.controller?.abort(error)
    for (const pending of [...this.#pending.values()]) {
      this.#settle(pending)
      pending.reject(error)
    }
  }
}

function writeVarint(buffer: Buffer, at: number, value: number): number {
  let position = at
  let rest = value
  while (rest > 0x7f) {
    buffer[position++] = (rest & 0x7f) | 0x80
    rest >>>= 7
  }
  buffer[position++] = rest
  return position
}
