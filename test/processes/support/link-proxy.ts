/**
 * LinkProxy: stands between real nodes, and does to each link (who dialled whom) what networks do: delay, throttle, hold back one way, cut in mid-frame, refuse.
 *
 * A node listens on its own port and advertises the proxy's, so everybody dials the proxy; who dialled is read off the hello that comes first. Frames
 * of one node to another travel over the connection that the first dialled: so a link carries one direction of the conversation.
 *
 * Invariants: 1. the bytes of one direction keep their order, and none is changed (it is TCP that is between); 2. what is held back arrives when the link heals, as
 * TCP would send it again; 3. memory is bounded: a source is not read while too much of it waits.
 */
import { connect, createServer, type Server, type Socket } from 'node:net'
import { performance } from 'node:perf_hooks'
import { SeededRandom } from '../../../src/testing/seeded-random.js'
import { ControlWord, lengthBytes } from '../../../src/transport/stream-parser.js'
import { decodeHello } from '../../../src/transport/tcp-hello.js'

export interface LinkConditions {
  readonly delayMs: number
  /** Added to the delay, up to so much, drawn for each piece. */
  readonly jitterMs: number
  readonly bytesPerSecond: number
  /** Nothing passes: neither what the dialler sends nor, with `backward`, what comes back. */
  readonly holdForward: boolean
  readonly holdBackward: boolean
}

export const clearLink: LinkConditions = {
  delayMs: 0,
  jitterMs: 0,
  bytesPerSecond: Number.POSITIVE_INFINITY,
  holdForward: false,
  holdBackward: false,
}

/** How a connection is cut; `mid-frame`: when the next frame is half through. */
export interface Cut {
  readonly how: 'fin' | 'rst'
  readonly midFrame: boolean
}

const maxQueuedBytes = 1024 * 1024
const cutDelayMs = 5
const maxPieceBytes = 16 * 1024
/** The name of every dialler that is no node. */
export const clientEnd = 'client'

/** Knows where in a stream of hello and frames a position is. */
class FrameTracker {
  #hello: Buffer | null = Buffer.alloc(0)
  #head = Buffer.alloc(0)
  #bodyLeft = 0

  /** Takes the next bytes; returns how many of them can be passed so that the stream ends inside a frame, or null when no frame runs through them. */
  advance(bytes: Buffer): { readonly least: number; readonly most: number } | null {
    let inside: { least: number; most: number } | null = null
    let at = 0
    if (this.#hello !== null) {
      const all: Buffer = Buffer.concat([this.#hello, bytes])
      const decoded = tryDecode(all)
      if (decoded === null) {
        this.#hello = all
        return null
      }
      at = decoded.end - this.#hello.length
      this.#hello = null
    }
    while (at < bytes.length) {
      if (this.#bodyLeft > 0) {
        const taken = Math.min(this.#bodyLeft, bytes.length - at)
        if (this.#bodyLeft > 1) inside ??= { least: at + 1, most: at + Math.min(taken, this.#bodyLeft - 1) }
        this.#bodyLeft -= taken
        at += taken
        continue
      }
      const missing = lengthBytes - this.#head.length
      this.#head = Buffer.concat([this.#head, bytes.subarray(at, at + missing)])
      at += missing
      if (this.#head.length < lengthBytes) break
      const word = this.#head.readUInt32BE(0)
      this.#head = Buffer.alloc(0)
      if (word !== ControlWord.ping && word !== ControlWord.pong) this.#bodyLeft = word
    }
    return inside
  }
}

function tryDecode(bytes: Buffer): ReturnType<typeof decodeHello> {
  try {
    return decodeHello(bytes)
  } catch {
    // No hello of ours: no frames to be cut in.
    return null
  }
}

type Piece = { readonly bytes: Buffer; readonly dueMs: number } | { readonly end: 'fin' | 'rst'; readonly dueMs: number }

/** One direction of one connection. */
class Flow {
  readonly #source: Socket
  readonly #sink: Socket
  readonly #link: Link
  readonly #isForward: boolean
  readonly #tracker = new FrameTracker()
  #queue: Piece[] = []
  #queuedBytes = 0
  #lastDueMs = 0
  #freeAtMs = 0
  #timer: NodeJS.Timeout | null = null
  #awaitsDrain = false
  #cut: Cut | null = null
  #over = false
  readonly #onCut: (how: Cut['how']) => void

  constructor(source: Socket, sink: Socket, link: Link, isForward: boolean, onCut: (how: Cut['how']) => void) {
    this.#source = source
    this.#sink = sink
    this.#link = link
    this.#isForward = isForward
    this.#onCut = onCut
    source.on('data', (bytes: Buffer) => this.take(bytes))
    source.on('end', () => this.#push({ end: 'fin', dueMs: this.#due(0) }))
    source.on('error', () => {})
    source.on('close', (hadError) => this.#push({ end: hadError ? 'rst' : 'fin', dueMs: this.#due(0) }))
    sink.on('drain', () => {
      this.#awaitsDrain = false
      this.pump()
    })
  }

  #due(bytes: number): number {
    const { conditions, random } = this.#link
    const nowMs = performance.now()
    this.#freeAtMs = Math.max(this.#freeAtMs, nowMs) + (bytes * 1000) / conditions.bytesPerSecond
    this.#lastDueMs = Math.max(this.#lastDueMs, this.#freeAtMs + conditions.delayMs + random.next() * conditions.jitterMs)
    return this.#lastDueMs
  }

  take(bytes: Buffer): void {
    for (let at = 0; at < bytes.length; at += maxPieceBytes) {
      const piece = bytes.subarray(at, at + maxPieceBytes)
      this.#queuedBytes += piece.length
      this.#push({ bytes: piece, dueMs: this.#due(piece.length) })
    }
    if (this.#queuedBytes > maxQueuedBytes) this.#source.pause()
  }

  #push(piece: Piece): void {
    if (this.#over) return
    this.#queue.push(piece)
    this.pump()
  }

  /** Cuts the connection now, or in the middle of the next frame. */
  cut(cut: Cut): void {
    if (this.#over) return
    if (cut.midFrame) this.#cut = cut
    else this.#onCut(cut.how)
  }

  /** Passes on what is due. */
  pump(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    const { conditions } = this.#link
    if (this.#isForward ? conditions.holdForward : conditions.holdBackward) return
    while (!this.#over && !this.#awaitsDrain) {
      const piece = this.#queue[0]
      if (piece === undefined) break
      const waitMs = piece.dueMs - performance.now()
      if (waitMs > 0) {
        this.#timer = setTimeout(() => this.pump(), waitMs)
        break
      }
      this.#queue.shift()
      if ('end' in piece) {
        this.#finish(piece.end)
        return
      }
      this.#queuedBytes -= piece.bytes.length
      this.#write(piece.bytes)
    }
    if (this.#queuedBytes <= maxQueuedBytes / 2 && this.#source.isPaused()) this.#source.resume()
  }

  #write(bytes: Buffer): void {
    const inside = this.#tracker.advance(bytes)
    const cut = this.#cut
    if (cut !== null && inside !== null) {
      this.#over = true
      const half = bytes.subarray(0, this.#link.random.integer(inside.least, inside.most))
      // The half should be read before the end: what is not is lost with a reset, and the reset with it.
      this.#sink.write(half, () => setTimeout(() => this.#onCut(cut.how), cutDelayMs))
      return
    }
    if (!this.#sink.write(bytes)) this.#awaitsDrain = true
  }

  #finish(how: 'fin' | 'rst'): void {
    if (how === 'fin') this.#sink.end()
    else this.#onCut('rst')
  }

  stop(): void {
    this.#over = true
    this.#queue = []
    if (this.#timer !== null) clearTimeout(this.#timer)
  }
}

/** A connection through the proxy: what the dialler sends, and what comes back. */
interface Pipe {
  readonly forward: Flow
  readonly backward: Flow
  close(how: Cut['how']): void
}

/** All that passes from one end to another. */
export class Link {
  readonly random: SeededRandom
  readonly pipes = new Set<Pipe>()
  #conditions: LinkConditions = clearLink

  constructor(random: SeededRandom) {
    this.random = random
  }

  get conditions(): LinkConditions {
    return this.#conditions
  }

  set(conditions: Partial<LinkConditions>): void {
    this.#conditions = { ...this.#conditions, ...conditions }
    for (const { forward, backward } of [...this.pipes]) {
      forward.pump()
      backward.pump()
    }
  }

  /** Cuts its connections; those that are made afterwards are not affected. */
  cut(cut: Cut): void {
    for (const { forward } of [...this.pipes]) forward.cut(cut)
  }
}

/** A node as the proxy knows it. */
export interface ProxiedNode {
  readonly id: string
  /** Where it listens. */
  readonly target: string
  /** What the others dial. */
  readonly address: string
}

export class LinkProxy {
  readonly #nodes: readonly ProxiedNode[]
  readonly #seed: number
  readonly #links = new Map<string, Link>()
  readonly #servers = new Map<string, Server>()
  readonly #sockets = new Set<Socket>()

  constructor(nodes: readonly ProxiedNode[], seed: number) {
    this.#nodes = nodes
    this.#seed = seed
  }

  async open(): Promise<void> {
    await Promise.all(this.#nodes.map((node) => this.accept(node.id)))
  }

  /** The link from one node, or `client` for all others, to another. */
  link(from: string, to: string): Link {
    const name = `${from}->${to}`
    let link = this.#links.get(name)
    if (link === undefined) {
      link = new Link(new SeededRandom(this.#seed, `link ${name}`))
      this.#links.set(name, link)
    }
    return link
  }

  /** Every link between nodes, whether it is used or not. */
  links(): Link[] {
    return this.#nodes.flatMap((from) => this.#nodes.filter((to) => to !== from).map((to) => this.link(from.id, to.id)))
  }

  /** Takes connections for a node. */
  async accept(id: string): Promise<void> {
    if (this.#servers.has(id)) return
    const node = this.#nodes.find((each) => each.id === id)!
    const server = createServer({ noDelay: true, allowHalfOpen: true }, (socket) => this.#accepted(node, socket))
    this.#servers.set(id, server)
    const { host, port } = split(node.address)
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(port, host, resolve)
    })
  }

  /** Refuses connections for a node: its port is closed. Those that are open stay. */
  async refuse(id: string): Promise<void> {
    const server = this.#servers.get(id)
    this.#servers.delete(id)
    // Its callback waits for open connections, the port is free at once.
    server?.close()
  }

  /** Ends all disturbance. */
  async heal(): Promise<void> {
    for (const link of this.#links.values()) link.set(clearLink)
    await this.open()
  }

  #accepted(node: ProxiedNode, dialler: Socket): void {
    this.#track(dialler)
    let head = Buffer.alloc(0)
    const onData = (bytes: Buffer) => {
      head = Buffer.concat([head, bytes])
      let name = clientEnd
      try {
        const decoded = decodeHello(head)
        if (decoded === null) return
        name = this.#nodes.find(({ address }) => address === decoded.hello.address)?.id ?? clientEnd
      } catch {
        // Not for us to judge.
      }
      dialler.off('data', onData)
      dialler.pause()
      this.#connect(node, dialler, this.link(name, node.id), head)
    }
    dialler.on('data', onData)
    dialler.on('end', () => {
      if (dialler.listenerCount('data') > 0) dialler.destroySoon()
    })
  }

  #connect(node: ProxiedNode, dialler: Socket, link: Link, head: Buffer): void {
    const target = connect({ ...split(node.target), noDelay: true, allowHalfOpen: true })
    this.#track(target)
    const close = (how: Cut['how']) => {
      link.pipes.delete(pipe)
      pipe.forward.stop()
      pipe.backward.stop()
      for (const socket of [dialler, target]) {
        if (how === 'rst') socket.resetAndDestroy()
        else socket.destroySoon()
      }
    }
    const pipe: Pipe = {
      forward: new Flow(dialler, target, link, true, close),
      backward: new Flow(target, dialler, link, false, close),
      close,
    }
    link.pipes.add(pipe)
    let gone = 0
    for (const socket of [dialler, target]) {
      socket.once('close', () => {
        if (++gone === 2) link.pipes.delete(pipe)
      })
    }
    pipe.forward.take(head)
    dialler.resume()
  }

  #track(socket: Socket): void {
    this.#sockets.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => this.#sockets.delete(socket))
  }

  async close(): Promise<void> {
    for (const link of this.#links.values()) {
      for (const pipe of [...link.pipes]) pipe.close('rst')
    }
    for (const socket of this.#sockets) socket.destroy()
    const servers = [...this.#servers.values()]
    this.#servers.clear()
    await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))))
  }
}

function split(address: string): { host: string; port: number } {
  const [host, port] = address.split(':') as [string, string]
  return { host, port: Number(port) }
}
