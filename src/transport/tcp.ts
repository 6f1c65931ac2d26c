/**
 * TCP: the transport between processes.
 *
 * Every end dials the peers that it sends to and never answers over a connection that it accepted, so that two ends that dial each other need no
 * tie-break and an end cannot draw another's frames to itself by claiming its address. The exception is an end without a listener (anonymous): it is answered
 * over its own connection.
 *
 * Invariants: 1. one dialled connection per peer at most; 2. a failed dial drops what waited for it; the next waits 20 ms, doubling up to 100 ms
 * while the port refuses and to 1 s while the host is silent, with jitter, and not at all once the peer itself has dialled us; 3. connections accepted are
 * bounded, in all, per host and before their hello; 4. without TLS nothing but loopback is listened on, unless an option named insecure says so.
 */
import { createServer, connect as dial, type Server, type Socket } from 'node:net'
import { InvalidArgumentError, UnavailableError } from '../base/errors.js'
import { type Cancel, type Runtime, systemRuntime } from '../base/runtime.js'
import { type ConnectionLimits, TcpConnection, TcpCounters } from './tcp-connection.js'
import { type Hello, helloVersion } from './tcp-hello.js'
import { connectionLimits, listenTarget, parseAddress, type TcpOptions } from './tcp-options.js'
import type { Address, FrameHandler, PeerState, PeerStateHandler, Transport } from './transport.js'

export { TcpCounters, type TcpRefusal } from './tcp-connection.js'
export type { TcpOptions } from './tcp-options.js'

const firstBackoffMs = 20
const maxRefusedBackoffMs = 100
const maxBackoffMs = 1000
/** Time limits are looked at so often, or four times in the shortest of them. */
const maxSweepIntervalMs = 250
/** How long `close` waits for what is written to leave. */
const closeGraceMs = 200
const idleRouteMs = 60_000

/** What is known of a peer that is dialled. */
class Route {
  readonly address: Address
  connection: TcpConnection | null = null
  waiting: Uint8Array[] = []
  waitingBytes = 0
  failures = 0
  nextDialMs = 0
  cancelDial: Cancel | null = null
  usedMs = 0

  constructor(address: Address) {
    this.address = address
  }
}

export class TcpTransport implements Transport {
  readonly counters = new TcpCounters()
  readonly maxFrameBytes: number
  readonly #options: TcpOptions
  readonly #runtime: Runtime
  readonly #limits: ConnectionLimits
  readonly #sweepIntervalMs: number
  readonly #incarnation: Uint8Array
  readonly #listen: { host: string; port: number } | null
  readonly #routes = new Map<Address, Route>()
  /** Accepted connections of anonymous ends, which are answered over them. */
  readonly #anonymous = new Map<Address, TcpConnection>()
  readonly #connections = new Set<TcpConnection>()
  readonly #halfOpen = new Set<TcpConnection>()
  readonly #hosts = new Map<string, number>()
  #address: Address
  #server: Server | null = null
  #onFrame: FrameHandler | null = null
  #onPeerState: PeerStateHandler | null = null
  #state: 'new' | 'opening' | 'open' | 'closed' = 'new'
  #cancelSweep: Cancel | null = null
  #sweptMs = 0
  #closing: Promise<void> | null = null

  constructor(options: TcpOptions = {}) {
    this.#options = options
    this.#runtime = options.runtime ?? systemRuntime
    this.#limits = connectionLimits(options)
    this.maxFrameBytes = this.#limits.maxFrameBytes
    const { handshakeTimeoutMs, frameTimeoutMs, silenceTimeoutMs, pingIntervalMs } = this.#limits
    this.#sweepIntervalMs = Math.max(
      10,
      Math.min(maxSweepIntervalMs, Math.min(handshakeTimeoutMs, frameTimeoutMs, silenceTimeoutMs, pingIntervalMs) / 4),
    )
    this.#incarnation = this.#runtime.randomBytes(8)
    this.#listen = listenTarget(options)
    this.#address =
      this.#listen === null ? `anonymous-${Buffer.from(this.#runtime.randomBytes(16)).toString('hex')}` : (options.advertise ?? options.listen ?? '')
  }

  get address(): Address {
    return this.#address
  }

  onPeerState(handler: PeerStateHandler): void {
    this.#onPeerState = handler
  }

  async open(onFrame: FrameHandler): Promise<void> {
    if (this.#state !== 'new') throw new InvalidArgumentError(`transport is ${this.#state}`)
    this.#state = 'opening'
    this.#onFrame = onFrame
    if (this.#listen !== null) await this.#startListening(this.#listen)
    if ((this.#state as string) !== 'closed') this.#state = 'open'
  }

  #startListening(listen: { host: string; port: number }): Promise<void> {
    const server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 10_000 }, (socket) => this.#accept(socket))
    this.#server = server
    return new Promise((resolve, reject) => {
      const failed = (cause: Error): void => {
        this.#state = 'closed'
        reject(new UnavailableError(`cannot listen on ${this.#options.listen}: ${cause.message}`, 'UNAVAILABLE', { cause }))
      }
      server.once('error', failed)
      server.listen(listen.port, listen.host, () => {
        server.off('error', failed)
        // Accepting may fail later, for want of file descriptors: those who dial will try again.
        server.on('error', () => {})
        const bound = server.address()
        if (this.#options.advertise === undefined && bound !== null && typeof bound === 'object')
          this.#address = `${listen.host.includes(':') ? `[${listen.host}]` : listen.host}:${bound.port}`
        resolve()
      })
    })
  }

  get #hello(): Hello {
    return { version: helloVersion, anonymous: this.#listen === null, incarnation: this.#incarnation, address: this.#address }
  }

  send(to: Address, frame: Uint8Array): void {
    if (this.#state !== 'open' || frame.length > this.maxFrameBytes || frame.length === 0) {
      this.counters.framesDropped++
      return
    }
    if (to.startsWith('anonymous-')) {
      const connection = this.#anonymous.get(to)
      if (connection === undefined) this.counters.framesDropped++
      else connection.send(frame)
      return
    }
    let route = this.#routes.get(to)
    if (route === undefined) {
      route = new Route(to)
      this.#routes.set(to, route)
      this.#watch()
    }
    if (route.connection?.state === 'open') {
      route.connection.send(frame)
      return
    }
    if (route.waitingBytes + frame.length > this.#limits.maxQueueBytes) {
      this.counters.framesDropped++
      return
    }
    route.waiting.push(frame)
    route.waitingBytes += frame.length
    if (route.connection === null && route.cancelDial === null) this.#dialSoon(route)
  }

  #dialSoon(route: Route): void {
    const delayMs = route.nextDialMs - this.#runtime.nowMs()
    if (delayMs <= 0) {
      this.#dial(route)
      return
    }
    route.cancelDial = this.#runtime.schedule(delayMs, () => {
      route.cancelDial = null
      if (this.#state === 'open') this.#dial(route)
    })
  }

  #dial(route: Route): void {
    let socket: Socket
    try {
      const target = parseAddress(route.address)
      socket = dial({ host: target.host, port: target.port, noDelay: true, keepAlive: true, keepAliveInitialDelay: 10_000 })
    } catch {
      this.#dialFailed(route, false)
      return
    }
    this.counters.connectionsDialled++
    let refused = false
    let opened = false
    socket.on('error', (error: NodeJS.ErrnoException) => {
      refused = error.code === 'ECONNREFUSED'
    })
    const connection: TcpConnection = new TcpConnection(socket, true, this.#hello, this.#limits, this.counters, this.#runtime.nowMs(), {
      onOpen: () => {
        opened = true
        this.#dialSucceeded(route, connection)
        return true
      },
      onFrame: (from, frame) => this.#onFrame?.(from.address, frame),
      onClose: () => {
        this.#connections.delete(connection)
        if (route.connection !== connection) return
        route.connection = null
        if (this.#state !== 'open') return
        if (opened) this.#connectionLost(route)
        else this.#dialFailed(route, refused)
      },
      onRefused: (kind, from, detail) => this.#options.onRefused?.(kind, from.remote, detail),
    })
    route.connection = connection
    this.#connections.add(connection)
    this.#watch()
  }

  #dialSucceeded(route: Route, connection: TcpConnection): void {
    // Whoever answers at this address is the peer, whatever it calls itself (it may advertise another name); frames are attributed to what we dialled.
    connection.address = route.address
    route.failures = 0
    const waiting = route.waiting
    route.waiting = []
    route.waitingBytes = 0
    this.#tell(route.address, 'connected')
    for (const frame of waiting) connection.send(frame)
  }

  #connectionLost(route: Route): void {
    this.counters.connectionsLost++
    route.nextDialMs = 0
    this.#tell(route.address, 'lost')
    if (route.waiting.length > 0 && route.connection === null && route.cancelDial === null) this.#dialSoon(route)
  }

  #dialFailed(route: Route, refused: boolean): void {
    this.counters.dialsFailed++
    this.counters.framesDropped += route.waiting.length
    route.waiting = []
    route.waitingBytes = 0
    const ceilingMs = refused ? maxRefusedBackoffMs : maxBackoffMs
    const backoffMs = Math.min(ceilingMs, firstBackoffMs * 2 ** Math.min(route.failures++, 10))
    route.nextDialMs = this.#runtime.nowMs() + backoffMs * (0.5 + this.#runtime.random() / 2)
    this.#tell(route.address, 'lost')
  }

  #tell(peer: Address, state: PeerState): void {
    this.#onPeerState?.(peer, state)
  }

  #accept(socket: Socket): void {
    const host = socket.remoteAddress
    if (this.#state === 'closed' || host === undefined) {
      socket.destroy()
      return
    }
    const ofHost = this.#hosts.get(host) ?? 0
    const accepted = [...this.#hosts.values()].reduce((sum, count) => sum + count, 0)
    if (accepted >= (this.#options.maxConnections ?? 1024) || ofHost >= (this.#options.maxConnectionsPerHost ?? 512)) {
      this.counters.connectionsOverLimit++
      socket.on('error', () => {})
      socket.destroy()
      this.#options.onRefused?.('over-limit', host, 'too many connections')
      return
    }
    this.#hosts.set(host, ofHost + 1)
    this.counters.connectionsAccepted++
    const connection: TcpConnection = new TcpConnection(socket, false, this.#hello, this.#limits, this.counters, this.#runtime.nowMs(), {
      onOpen: (_, hello) => this.#greeted(connection, hello),
      onFrame: (from, frame) => this.#onFrame?.(from.address, frame),
      onClose: () => this.#acceptedClosed(connection, host),
      onRefused: (kind, from, detail) => this.#options.onRefused?.(kind, from.remote, detail),
    })
    this.#connections.add(connection)
    this.#halfOpen.add(connection)
    this.#watch()
    if (this.#halfOpen.size > (this.#options.maxHalfOpenConnections ?? 64)) {
      const [oldest] = this.#halfOpen
      this.counters.connectionsOverLimit++
      oldest?.refuse('over-limit', 'too many connections without a hello')
    }
  }

  #greeted(connection: TcpConnection, hello: Hello): boolean {
    this.#halfOpen.delete(connection)
    if (hello.anonymous) {
      // Its name is its secret: the same end came again, and the earlier connection is dead.
      const earlier = this.#anonymous.get(hello.address)
      this.#anonymous.set(hello.address, connection)
      earlier?.close()
      this.#tell(hello.address, 'connected')
      return true
    }
    const route = this.#routes.get(hello.address)
    if (route === undefined) return true
    // It is up: no need to wait, and a connection of ours to an earlier life of it will show by this.
    route.failures = 0
    route.nextDialMs = 0
    if (route.cancelDial !== null) {
      route.cancelDial()
      route.cancelDial = null
      this.#dial(route)
    } else route.connection?.ping(this.#runtime.nowMs())
    return true
  }

  #acceptedClosed(connection: TcpConnection, host: string): void {
    this.#connections.delete(connection)
    this.#halfOpen.delete(connection)
    const left = (this.#hosts.get(host) ?? 1) - 1
    if (left === 0) this.#hosts.delete(host)
    else this.#hosts.set(host, left)
    if (this.#anonymous.get(connection.address) !== connection) return
    this.#anonymous.delete(connection.address)
    if (this.#state === 'open') this.#tell(connection.address, 'lost')
  }

  /** One timer for all connections, as long as there are any. */
  #watch(): void {
    if (this.#cancelSweep !== null || this.#state === 'closed') return
    this.#sweptMs = this.#runtime.nowMs()
    this.#cancelSweep = this.#runtime.schedule(this.#sweepIntervalMs, () => this.#sweep())
  }

  #sweep(): void {
    this.#cancelSweep = null
    const nowMs = this.#runtime.nowMs()
    const heldUpMs = Math.max(0, nowMs - this.#sweptMs - this.#sweepIntervalMs)
    for (const connection of [...this.#connections]) connection.sweep(nowMs, heldUpMs)
    for (const route of [...this.#routes.values()]) {
      if (route.connection !== null || route.waiting.length > 0) route.usedMs = nowMs
      else if (nowMs - Math.max(route.usedMs, route.nextDialMs) > idleRouteMs) this.#routes.delete(route.address)
    }
    if (this.#connections.size > 0 || this.#routes.size > 0) this.#watch()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#state = 'closed'
    this.#onFrame = null
    this.#cancelSweep?.()
    const server = this.#server
    const stopped = server === null || !server.listening ? Promise.resolve() : new Promise<void>((resolve) => server.close(() => resolve()))
    for (const route of this.#routes.values()) {
      route.cancelDial?.()
      this.counters.framesDropped += route.waiting.length
    }
    this.#routes.clear()
    const leaving: Socket[] = []
    for (const connection of [...this.#connections]) {
      const { socket } = connection
      if (connection.state === 'open') {
        connection.flush()
        socket.destroySoon()
        leaving.push(socket)
      }
      connection.close()
    }
    const gone = leaving.map((socket) =>
      socket.destroyed ? Promise.resolve() : new Promise<void>((resolve) => socket.once('close', () => resolve())),
    )
    const timer = setTimeout(() => {
      for (const socket of leaving) socket.destroy()
    }, closeGraceMs)
    await Promise.all([stopped, ...gone])
    clearTimeout(timer)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/**
 * A transport over TCP.
 *
 * ```ts
 * const node = tcp({ listen: '127.0.0.1:7001' })
 * const client = tcp()
 * ```
 */
export function tcp(options: TcpOptions = {}): TcpTransport {
  return new TcpTransport(options)
}
