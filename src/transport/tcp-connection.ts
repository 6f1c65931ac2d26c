/**
 * One TCP connection after the other side has been reached: hello, frames out, frames in, liveness.
 *
 * Invariants: 1. no frame is taken or sent before both hellos; 2. all frames of a turn leave in one write; 3. bytes waiting to be written are bounded, what
 * is over is dropped and counted; 4. whatever goes wrong closes this connection only, once; nothing throws out of a socket's events.
 */
import type { Socket } from 'node:net'
import { ControlWord, lengthBytes, StreamParser } from './stream-parser.js'
import { decodeHello, encodeHello, type Hello, helloVersion, maxHelloBytes } from './tcp-hello.js'

/** Frames up to so many bytes in all are copied behind each other into one buffer: cheaper than handing the system a list. */
const joinBytes = 16 * 1024

/** Counts of a TCP transport; they only rise. */
export class TcpCounters {
  framesSent = 0
  framesReceived = 0
  bytesReceived = 0
  /** Writes to sockets: with many frames a turn far fewer than frames. */
  writes = 0
  /** Frames that were not sent: over a bound, or no connection came about. */
  framesDropped = 0
  connectionsAccepted = 0
  connectionsDialled = 0
  connectionsLost = 0
  dialsFailed = 0
  /** Inbound connections closed at once, or to make room, because there were too many. */
  connectionsOverLimit = 0
  /** Connections closed for bytes that are no hello. */
  badHello = 0
  /** Connections closed because the other side speaks another version. */
  wrongVersion = 0
  /** Connections closed for a frame length that is zero or over the limit. */
  badLength = 0
  /** Connections closed for a frame that the Messenger refused. */
  badFrame = 0
  /** Connections closed because a hello, a frame, a sign of life or the reading of our bytes took too long. */
  timeouts = 0
}

export interface ConnectionLimits {
  readonly maxFrameBytes: number
  readonly maxQueueBytes: number
  readonly handshakeTimeoutMs: number
  readonly frameTimeoutMs: number
  readonly silenceTimeoutMs: number
  readonly pingIntervalMs: number
}

export interface ConnectionHandlers {
  /** Both hellos are through. Returns false to close. */
  onOpen(connection: TcpConnection, hello: Hello): boolean
  onFrame(connection: TcpConnection, frame: Buffer): void
  onClose(connection: TcpConnection): void
  onRefused(kind: TcpRefusal, connection: TcpConnection, detail: string): void
}

/** Why a connection was closed. */
export type TcpRefusal = 'bad-hello' | 'wrong-version' | 'bad-length' | 'bad-frame' | 'timeout' | 'over-limit'

const pingBytes = controlBytes(ControlWord.ping)
const pongBytes = controlBytes(ControlWord.pong)

export class TcpConnection {
  readonly socket: Socket
  readonly dialled: boolean
  /** The other side's; empty before its hello. */
  address = ''
  state: 'connecting' | 'greeting' | 'open' | 'closed'
  readonly #limits: ConnectionLimits
  readonly #counters: TcpCounters
  readonly #handlers: ConnectionHandlers
  readonly #hello: Hello
  readonly #parser: StreamParser
  #greeting: Buffer | null = null
  #waiting: Uint8Array[] = []
  #waitingBytes = 0
  #paused = false
  /** When the present state, or the present partial frame, began. */
  #sinceMs: number
  #partialSinceMs = -1
  #receivedMs: number
  #pingedMs: number
  #flushedBytes = 0
  #flushedMs: number

  constructor(
    socket: Socket,
    dialled: boolean,
    hello: Hello,
    limits: ConnectionLimits,
    counters: TcpCounters,
    nowMs: number,
    handlers: ConnectionHandlers,
  ) {
    this.socket = socket
    this.dialled = dialled
    this.state = dialled ? 'connecting' : 'greeting'
    this.#hello = hello
    this.#limits = limits
    this.#counters = counters
    this.#handlers = handlers
    this.#sinceMs = nowMs
    this.#receivedMs = nowMs
    this.#pingedMs = nowMs
    this.#flushedMs = nowMs
    this.#parser = new StreamParser(limits.maxFrameBytes, {
      onFrame: (frame) => this.#frame(frame),
      onControl: (word) => this.#control(word),
    })
    // The 'close' event follows every error; without a listener an error would end the process.
    socket.on('error', () => {})
    socket.on('close', () => this.close())
    socket.on('data', (chunk: Buffer) => this.#data(chunk))
    if (dialled) {
      socket.on('connect', () => {
        if (this.state !== 'connecting') return
        this.state = 'greeting'
        socket.write(encodeHello(hello))
      })
    } else socket.on('drain', () => this.#resume())
  }

  get remote(): string {
    return this.address || `${this.socket.remoteAddress}:${this.socket.remotePort}`
  }

  /** Bytes handed over that the system has not taken yet. */
  get queuedBytes(): number {
    return this.#waitingBytes + this.socket.writableLength
  }

  send(frame: Uint8Array): void {
    if (this.state !== 'open' || this.queuedBytes + frame.length > this.#limits.maxQueueBytes) {
      this.#counters.framesDropped++
      return
    }
    this.#counters.framesSent++
    this.#waitingBytes += frame.length + lengthBytes
    if (this.#waiting.push(frame) === 1) process.nextTick(flush, this)
    // One who asks and does not read the answers is not read either. Only of ends that dial and never pause themselves: two that
    // wait for each other would wait for ever.
    if (!this.dialled && !this.#paused && this.queuedBytes > this.#limits.maxQueueBytes / 2) {
      this.#paused = true
      this.socket.pause()
    }
  }

  #resume(): void {
    if (!this.#paused || this.queuedBytes > this.#limits.maxQueueBytes / 4) return
    this.#paused = false
    this.socket.resume()
  }

  /** Writes all that waits, at once. */
  flush(): void {
    const frames = this.#waiting
    if (frames.length === 0 || this.state !== 'open') return
    const bytes = this.#waitingBytes
    this.#waiting = []
    this.#waitingBytes = 0
    this.#counters.writes++
    const socket = this.socket
    if (bytes <= joinBytes) {
      const joined = Buffer.allocUnsafe(bytes)
      let at = 0
      for (const frame of frames) {
        at = joined.writeUInt32BE(frame.length, at)
        joined.set(frame, at)
        at += frame.length
      }
      socket.write(joined)
      return
    }
    socket.cork()
    const lengths = Buffer.allocUnsafe(frames.length * lengthBytes)
    let at = 0
    for (const frame of frames) {
      lengths.writeUInt32BE(frame.length, at)
      socket.write(lengths.subarray(at, at + lengthBytes))
      socket.write(frame)
      at += lengthBytes
    }
    socket.uncork()
  }

  ping(nowMs: number): void {
    if (this.state !== 'open') return
    this.#pingedMs = nowMs
    this.socket.write(pingBytes)
  }

  #control(word: number): void {
    if (word === ControlWord.ping && this.socket.writableLength < this.#limits.maxQueueBytes) this.socket.write(pongBytes)
  }

  #data(chunk: Buffer): void {
    this.#counters.bytesReceived += chunk.length
    this.#receivedMs = -1
    try {
      if (this.state === 'open') this.#parser.push(chunk)
      else if (this.state === 'greeting') this.#greet(chunk)
    } catch (error) {
      if (!(error instanceof RangeError)) throw error
      this.#counters.badLength++
      this.refuse('bad-length', error.message)
    }
    if (!this.#parser.partial) this.#partialSinceMs = -1
  }

  #greet(chunk: Buffer): void {
    const bytes = this.#greeting === null ? chunk : Buffer.concat([this.#greeting, chunk.subarray(0, maxHelloBytes)])
    let decoded: ReturnType<typeof decodeHello>
    try {
      decoded = decodeHello(bytes)
    } catch (error) {
      this.#counters.badHello++
      this.refuse('bad-hello', (error as Error).message)
      return
    }
    if (decoded === null) {
      this.#greeting = bytes
      return
    }
    const { hello, end } = decoded
    const taken = end - (this.#greeting?.length ?? 0)
    this.#greeting = null
    if (!this.dialled) this.socket.write(encodeHello(this.#hello))
    if (hello.version !== helloVersion) {
      this.#counters.wrongVersion++
      this.#handlers.onRefused('wrong-version', this, `version ${hello.version}, expected ${helloVersion}`)
      // Our own hello is on its way, which tells the other side why.
      this.socket.destroySoon()
      this.close()
      return
    }
    this.address = hello.address
    this.state = 'open'
    if (!this.#handlers.onOpen(this, hello)) {
      this.close()
      return
    }
    if (taken < chunk.length) this.#parser.push(chunk.subarray(taken))
  }

  #frame(frame: Buffer): void {
    this.#counters.framesReceived++
    try {
      this.#handlers.onFrame(this, frame)
    } catch {
      // Whoever took the frame has counted what is wrong with it.
      this.#counters.badFrame++
      this.refuse('bad-frame', `${frame.length} bytes`)
    }
  }

  /** Closes for a reason that is worth telling. */
  refuse(kind: TcpRefusal, detail: string): void {
    if (this.state === 'closed') return
    this.#handlers.onRefused(kind, this, detail)
    this.close()
  }

  /** Looks after the time. What this process itself was held up for does not count against the other side: its bytes may wait to be read. */
  sweep(nowMs: number, heldUpMs: number): void {
    const limits = this.#limits
    if (this.#receivedMs >= 0) this.#receivedMs += heldUpMs
    this.#flushedMs += heldUpMs
    this.#sinceMs += heldUpMs
    if (this.#partialSinceMs >= 0) this.#partialSinceMs += heldUpMs
    // Reading a clock for every chunk costs more than this resolution is worth.
    if (this.#receivedMs < 0) this.#receivedMs = nowMs
    if (this.state !== 'open') {
      if (nowMs - this.#sinceMs > limits.handshakeTimeoutMs) this.#timeout('no hello')
      return
    }
    if (this.#parser.partial) {
      if (this.#partialSinceMs < 0) this.#partialSinceMs = nowMs
      else if (nowMs - this.#partialSinceMs > limits.frameTimeoutMs) this.#timeout('a frame that does not end')
    }
    const flushed = this.socket.bytesWritten - this.socket.writableLength
    if (this.socket.writableLength === 0 || flushed !== this.#flushedBytes) {
      this.#flushedBytes = flushed
      this.#flushedMs = nowMs
    } else if (nowMs - this.#flushedMs > limits.silenceTimeoutMs) this.#timeout('our bytes are not read')
    const silentMs = nowMs - this.#receivedMs
    if (silentMs > limits.silenceTimeoutMs && !this.#paused) this.#timeout('no sign of life')
    else if (this.dialled && silentMs > limits.pingIntervalMs && nowMs - this.#pingedMs > limits.pingIntervalMs) this.ping(nowMs)
  }

  #timeout(detail: string): void {
    this.#counters.timeouts++
    this.refuse('timeout', detail)
  }

  /** Lets go of the connection. Idempotent. */
  close(): void {
    if (this.state === 'closed') return
    this.state = 'closed'
    this.#parser.stop()
    this.#counters.framesDropped += this.#waiting.length
    this.#waiting = []
    this.#waitingBytes = 0
    if (!this.socket.writableEnded) this.socket.destroy()
    this.#handlers.onClose(this)
  }
}

function flush(connection: TcpConnection): void {
  connection.flush()
}

function controlBytes(word: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes)
  bytes.writeUInt32BE(word)
  return bytes
}
