/**
 * The two commands of Redis that the benchmark needs, over one connection: SET and GET as RESP arrays, pipelined, those of one turn in one write. Replies come in the order of the commands. No retry: a benchmark must
 * see what happens.
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

interface Waiting {
  readonly resolve: (reply: Buffer | undefined) => void
  readonly reject: (error: Error) => void
}

const crlf = Buffer.from('\r\n')
const setHead = Buffer.from('*3\r\n$3\r\nSET\r\n')
const getHead = Buffer.from('*2\r\n$3\r\nGET\r\n')

export class RedisConnection {
  readonly #socket: Socket
  #waiting: Waiting[] = []
  #next = 0
  #queued: Uint8Array[] = []
  #received: Buffer = Buffer.alloc(0)

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.on('data', (chunk) => this.#receive(chunk))
    socket.on('close', () => this.#fail(new Error('redis closed the connection')))
  }

  static async open(address: string): Promise<RedisConnection> {
    const [host, port] = address.split(':')
    const socket = connect({ host: host!, port: Number(port), noDelay: true })
    await once(socket, 'connect')
    return new RedisConnection(socket)
  }

  close(): void {
    this.#socket.destroy()
  }

  async put(key: Uint8Array, value: Uint8Array): Promise<void> {
    await this.#send([setHead, ...bulk(key), ...bulk(value)])
  }

  get(key: Uint8Array): Promise<Uint8Array | undefined> {
    return this.#send([getHead, ...bulk(key)])
  }

  #send(parts: readonly Uint8Array[]): Promise<Buffer | undefined> {
    if (this.#queued.length === 0) {
      setImmediate(() => {
        this.#socket.write(Buffer.concat(this.#queued))
        this.#queued = []
      })
    }
    this.#queued.push(...parts)
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }))
  }

  #receive(chunk: Buffer): void {
    const bytes = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk])
    let at = 0
    for (;;) {
      const end = bytes.indexOf(crlf, at)
      if (end < 0) break
      const line = bytes.toString('latin1', at + 1, end)
      const waiting = this.#waiting[this.#next]!
      if (bytes[at] === 0x24 && line !== '-1') {
        const from = end + 2
        const to = from + Number(line)
        if (bytes.length < to + 2) break
        waiting.resolve(bytes.subarray(from, to))
        at = to + 2
      } else {
        if (bytes[at] === 0x2d) waiting.reject(new Error(`redis: ${line}`))
        else waiting.resolve(undefined)
        at = end + 2
      }
      this.#next++
    }
    this.#received = bytes.subarray(at)
    if (this.#next > 4096) {
      this.#waiting = this.#waiting.slice(this.#next)
      this.#next = 0
    }
  }

  #fail(error: Error): void {
    for (const { reject } of this.#waiting.splice(this.#next)) reject(error)
  }
}

function bulk(bytes: Uint8Array): Uint8Array[] {
  return [Buffer.from(`$${bytes.length}\r\n`), bytes, crlf]
}
