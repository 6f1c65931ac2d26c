/** Bad input on a node's TCP port: each row is refused with its reason and its connection closed, while a good peer is served on the same port. */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { expect } from 'chai'
import fc from 'fast-check'
import { systemRuntime } from '../../src/base/runtime.js'
import { encodeHeader, FrameBuilder, SystemChannel } from '../../src/transport/frame.js'
import { Channel, Messenger } from '../../src/transport/messenger.js'
import { type TcpCounters, type TcpOptions, type TcpTransport, tcp } from '../../src/transport/tcp.js'
import { decodeHello, encodeHello } from '../../src/transport/tcp-hello.js'
import { clusterId, otherClusterId, pattern, until } from './support.js'

const maxFrameBytes = 64 * 1024

function hello(address = `anonymous-${'0'.repeat(32)}`, version = 1): Buffer {
  return encodeHello({ version, anonymous: address.startsWith('anonymous-'), incarnation: pattern(8), address })
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

function framed(frame: Uint8Array): Buffer {
  return Buffer.concat([word(frame.length), frame])
}

/** A sound frame with one echo request. */
function requestFrame(id: number, payload: Uint8Array, cluster: Uint8Array = clusterId, nodeId = 'raw'): Buffer {
  const builder = new FrameBuilder(encodeHeader(cluster, nodeId), maxFrameBytes)
  builder.begin(SystemChannel.request, 4 + 1 + 1 + 4 + payload.length)
  builder.u32(99)
  builder.varint(id)
  builder.varint(4)
  builder.raw(Buffer.from('echo'))
  builder.raw(payload)
  return builder.seal()
}

function withBadChecksum(): Buffer {
  const frame = Buffer.from(requestFrame(1, pattern(10)))
  frame[frame.length - 1]! ^= 1
  return frame
}

function withVersion(version: number): Buffer {
  const frame = Buffer.from(requestFrame(1, pattern(10)))
  frame[2] = version
  return frame
}

describe('tcp: bad input', () => {
  const closing: (() => Promise<unknown> | unknown)[] = []
  afterEach(async () => {
    for (const close of closing.splice(0).reverse()) await close()
  })

  interface Attacked {
    readonly node: Messenger
    readonly transport: TcpTransport
    readonly delivered: Uint8Array[]
    readonly host: string
    readonly port: number
    attack(): Promise<Socket>
    stillServes(): Promise<void>
  }

  async function attacked(options: TcpOptions = {}): Promise<Attacked> {
    const transport = tcp({ listen: '127.0.0.1:0', maxFrameBytes, ...options })
    const node = new Messenger({ transport, runtime: systemRuntime, clusterId, nodeId: 'node', onHandlerError: () => {} })
    const good = new Messenger({ transport: tcp({ listen: '127.0.0.1:0', maxFrameBytes }), runtime: systemRuntime, clusterId, nodeId: 'good' })
    closing.push(() => Promise.all([node.close(), good.close()]))
    const delivered: Uint8Array[] = []
    node.handle('echo', (_, payload) => payload)
    node.onMessage(Channel.raft, (_, body) => delivered.push(body))
    await node.open()
    await good.open()
    const [host, port] = node.address.split(':') as [string, string]
    const stillServes = async (): Promise<void> => {
      expect(String(await good.request(node.address, 'echo', Buffer.from('fine')))).to.equal('fine')
    }
    await stillServes()
    const attack = async (): Promise<Socket> => {
      const socket = connect({ host, port: Number(port), noDelay: true })
      socket.on('error', () => {})
      closing.push(() => socket.destroy())
      await once(socket, 'connect')
      return socket
    }
    return { node, transport, delivered, host, port: Number(port), attack, stillServes }
  }

  function closed(socket: Socket): Promise<unknown> {
    socket.resume()
    return socket.destroyed ? Promise.resolve() : once(socket, 'close')
  }

  const rows: [name: string, bytes: Buffer | Buffer[], counter: keyof TcpCounters][] = [
    ['hazard E1.1: a length of zero', Buffer.concat([hello(), word(0)]), 'badLength'],
    ['hazard E1.2: a length of 0xFFFFFFFF', Buffer.concat([hello(), word(0xffffffff)]), 'badLength'],
    ['hazard E1.2: a length one over the limit', Buffer.concat([hello(), word(maxFrameBytes + 1)]), 'badLength'],
    ['hazard E1.3: a length with the sign bit', Buffer.concat([hello(), word(0x80000000), pattern(100)]), 'badLength'],
    ['hazard E1.8: bytes of chance', pattern(500), 'badHello'],
    ['hazard E1.8: HTTP', Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'), 'badHello'],
    ['hazard E1.8: a TLS ClientHello', Buffer.concat([Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]), pattern(500)]), 'badHello'],
    ['hazard E1.8: Redis', Buffer.from('*1\r\n$4\r\nPING\r\n'), 'badHello'],
    ['hazard E1.8: one wrong byte at the end of the magic', Buffer.from('QRTX'), 'badHello'],
    ['hazard E1.10: a hello with unknown flags', Buffer.from([...Buffer.from('QRTP'), 1, 2, ...Buffer.alloc(9)]), 'badHello'],
    ['hazard E1.10: a hello without an address', Buffer.from([...Buffer.from('QRTP'), 1, 0, ...Buffer.alloc(9)]), 'badHello'],
    ['hazard E1.16: a hello whose address is no text', Buffer.from([...Buffer.from('QRTP'), 1, 0, ...Buffer.alloc(8), 3, 65, 0, 66]), 'badHello'],
    ['hazard E1.10: a hello of another version', hello('127.0.0.1:1', 200), 'wrongVersion'],
    ['hazard E1.9: a frame with a bad checksum', Buffer.concat([hello(), framed(withBadChecksum())]), 'badFrame'],
    ['hazard E1.10: a frame of another protocol version', Buffer.concat([hello(), framed(withVersion(200))]), 'badFrame'],
    ['hazard E1.8: a frame of chance', Buffer.concat([hello(), framed(pattern(500))]), 'badFrame'],
    ['hazard E1.8: a frame of one byte', Buffer.concat([hello(), framed(pattern(1))]), 'badFrame'],
    ['hazard E1.8: a hello in the place of a frame', Buffer.concat([hello(), hello()]), 'badLength'],
  ]
  for (const [name, bytes, counter] of rows)
    it(`${name}: closes that connection only`, async () => {
      const { transport, attack, stillServes, delivered } = await attacked()
      const before = transport.counters[counter]
      const socket = await attack()
      socket.write(bytes as Buffer)
      await closed(socket)
      expect(transport.counters[counter]).to.equal(before + 1)
      expect(delivered).to.have.length(0)
      await stillServes()
    })

  it('hazard E1.10: a hello of another version is answered with our own, so that the other side can say why', async () => {
    const { attack } = await attacked()
    const socket = await attack()
    const answer: Buffer[] = []
    socket.on('data', (chunk) => answer.push(chunk))
    socket.write(hello('127.0.0.1:1', 200))
    await once(socket, 'close')
    expect(decodeHello(Buffer.concat(answer))?.hello.version).to.equal(1)
  })

  for (const how of ['FIN', 'RST'] as const)
    it(`hazard E1.4: a frame cut short by a ${how} is dropped with its connection`, async () => {
      const { transport, attack, stillServes } = await attacked()
      const socket = await attack()
      const frame = framed(requestFrame(1, pattern(1000)))
      socket.write(Buffer.concat([hello(), frame.subarray(0, 500)]))
      await until('accepted', () => transport.counters.bytesReceived >= 500)
      const received = transport.counters.framesReceived
      if (how === 'FIN') socket.end()
      else socket.resetAndDestroy()
      await closed(socket)
      await stillServes()
      expect(transport.counters.framesReceived).to.equal(received + 1)
    })

  it('hazard E1.5: byte by byte works, but a frame that does not end is closed at its deadline', async () => {
    const { transport, attack, stillServes } = await attacked({ frameTimeoutMs: 400, handshakeTimeoutMs: 5000 })
    const socket = await attack()
    const got: Buffer[] = []
    socket.on('data', (chunk) => got.push(chunk))
    const stream = Buffer.concat([hello(), framed(requestFrame(1, Buffer.from('slowly')))])
    for (const byte of stream) {
      socket.write(Buffer.from([byte]))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await until('it is answered', () => Buffer.concat(got).includes('slowly'))
    const before = transport.counters.timeouts
    socket.write(word(5000))
    const dripping = setInterval(() => socket.write(Buffer.from([1])), 20)
    await closed(socket)
    clearInterval(dripping)
    expect(transport.counters.timeouts).to.equal(before + 1)
    await stillServes()
  })

  it('hazard E1.6: hello and frames in one chunk, and cut anywhere, work', async () => {
    const { attack } = await attacked()
    const stream = Buffer.concat([hello(), framed(requestFrame(1, Buffer.from('first'))), framed(requestFrame(2, Buffer.from('second')))])
    for (let cut = 0; cut < stream.length; cut += 3) {
      const socket = await attack()
      const got: Buffer[] = []
      socket.on('data', (chunk) => got.push(chunk))
      if (cut > 0) {
        socket.write(stream.subarray(0, cut))
        await new Promise((resolve) => setImmediate(resolve))
      }
      socket.write(stream.subarray(cut))
      await until(`both answered, cut at ${cut}`, () => Buffer.concat(got).includes('first') && Buffer.concat(got).includes('second'))
      socket.destroy()
    }
  })

  it('hazard E1.21: a frame of another cluster is answered by a refusal, and the connection serves on', async () => {
    const { node, attack, stillServes } = await attacked()
    const socket = await attack()
    const got: Buffer[] = []
    socket.on('data', (chunk) => got.push(chunk))
    socket.write(Buffer.concat([hello(), framed(requestFrame(1, Buffer.from('x'), otherClusterId))]))
    // Our hello and the refusal.
    const refusal = Buffer.from([SystemChannel.refused, 1, 1])
    await until('refused', () => Buffer.concat(got).includes(refusal))
    expect(node.counters.wrongCluster).to.equal(1)
    expect(node.counters.requestsHandled).to.equal(1)
    await stillServes()
  })

  it('hazard E1.21: who claims the address of another gets nothing of it', async () => {
    const { node, attack, stillServes } = await attacked()
    const victim = tcp({ listen: '127.0.0.1:0', maxFrameBytes })
    const victimGot: Buffer[] = []
    closing.push(() => victim.close())
    await victim.open((_, frame) => victimGot.push(Buffer.from(frame)))
    const socket = await attack()
    const attackerGot: Buffer[] = []
    socket.on('data', (chunk) => attackerGot.push(chunk))
    socket.write(Buffer.concat([hello(victim.address), framed(requestFrame(1, Buffer.from('whose?')))]))
    await until('the reply goes to the owner of the address', () => victimGot.some((frame) => frame.includes('whose?')))
    expect(Buffer.concat(attackerGot).includes('whose?')).to.equal(false)
    expect(node.counters.requestsHandled).to.equal(2)
    await stillServes()
  })

  it('hazard E1.22: an anonymous end that comes again takes the place of its earlier connection', async () => {
    const { attack, stillServes } = await attacked({ silenceTimeoutMs: 600_000 })
    const name = `anonymous-${'a'.repeat(32)}`
    const first = await attack()
    first.write(hello(name))
    const second = await attack()
    const got: Buffer[] = []
    second.on('data', (chunk) => got.push(chunk))
    await once(first, 'data')
    second.write(Buffer.concat([hello(name), framed(requestFrame(1, Buffer.from('again')))]))
    await closed(first)
    await until('the second is answered', () => Buffer.concat(got).includes('again'))
    await stillServes()
  })

  it('hazard E1.28: who asks without reading the answers is not read either, and is closed in the end', async () => {
    const maxQueueBytes = 4 * 1024 * 1024
    const { node, transport, attack, stillServes } = await attacked({ maxQueueBytes, silenceTimeoutMs: 1000, pingIntervalMs: 200 })
    const socket = await attack()
    socket.pause()
    socket.write(hello())
    const requests = Buffer.concat(Array.from({ length: 100 }, (_, number) => framed(requestFrame(number, pattern(10_000)))))
    const before = process.memoryUsage().arrayBuffers
    let written = 0
    let gone = false
    socket.on('close', () => {
      gone = true
    })
    // A thousand requests of 10 kB at a time, as far as the node takes them.
    const writing = setInterval(() => {
      if (socket.writableLength < 2_000_000) {
        written += 100
        socket.write(requests)
      }
    }, 1)
    let peak = 0
    await until(
      'closed for not reading',
      () => transport.counters.timeouts > 0,
      () => {
        peak = Math.max(peak, process.memoryUsage().arrayBuffers - before)
      },
    )
    clearInterval(writing)
    socket.destroy()
    await until('gone', () => gone)
    // Far fewer were handled than the answers' bound times some slack; the rest was never read.
    expect(node.counters.requestsHandled).to.be.below((4 * maxQueueBytes) / 10_000)
    expect(written).to.be.above(0)
    expect(peak).to.be.below(128 * 1024 * 1024)
    await stillServes()
  })

  it('hazard E1.32: who never says hello, or only half of it, is closed at the deadline', async () => {
    const { transport, attack, stillServes } = await attacked({ handshakeTimeoutMs: 300 })
    const before = transport.counters.timeouts
    const silent = await attack()
    const half = await attack()
    half.write(hello().subarray(0, 7))
    await Promise.all([closed(silent), closed(half)])
    expect(transport.counters.timeouts).to.equal(before + 2)
    await stillServes()
  })

  it('hazard E1.33: many connections without a hello make room for a good one, oldest first', async () => {
    const { transport, attack, stillServes } = await attacked({ maxHalfOpenConnections: 8, maxConnections: 30, handshakeTimeoutMs: 600_000 })
    const sockets: Socket[] = []
    for (let number = 0; number < 60; number++) sockets.push(await attack())
    await until('the oldest are closed', () => transport.counters.connectionsOverLimit >= 52)
    await Promise.all(sockets.slice(0, 52).map(closed))
    await stillServes()
    const late = new Messenger({ transport: tcp({ maxFrameBytes }), runtime: systemRuntime, clusterId, nodeId: 'late' })
    closing.push(() => late.close())
    await late.open()
    expect(String(await late.request(transport.address, 'echo', Buffer.from('late')))).to.equal('late')
  })

  it('hazard E1.33: connections are capped, in all and per host; those that are open go on', async () => {
    for (const options of [{ maxConnections: 10 }, { maxConnectionsPerHost: 10 }]) {
      const { transport, attack, stillServes } = await attacked(options)
      const refused: Promise<unknown>[] = []
      for (let number = 0; number < 30; number++) {
        const socket = await attack()
        socket.write(hello(`127.0.0.1:${number + 1}`))
        refused.push(Promise.race([closed(socket).then(() => 'closed'), once(socket, 'data').then(() => 'greeted')]))
      }
      const outcomes = await Promise.all(refused)
      // One place is the good peer's.
      expect(outcomes.filter((outcome) => outcome === 'greeted')).to.have.length(9)
      expect(transport.counters.connectionsOverLimit).to.equal(21)
      await stillServes()
    }
  })

  it('hazard E1.8: chance in any place, cut anywhere, never stops the node', async () => {
    const { node, attack, stillServes, delivered } = await attacked()
    const sound = framed(requestFrame(1, pattern(50)))
    await fc.assert(
      fc.asyncProperty(
        fc.boolean(),
        fc.array(fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.constant('sound' as const), fc.tuple(fc.nat(sound.length - 1), fc.nat(255))), {
          maxLength: 6,
        }),
        fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 10 }),
        async (greets, pieces, cuts) => {
          const parts: Uint8Array[] = greets ? [hello()] : []
          for (const piece of pieces) {
            if (piece === 'sound') parts.push(sound)
            else if (piece instanceof Uint8Array) parts.push(piece)
            else {
              const changed = Buffer.from(sound)
              changed[piece[0]] = piece[1]
              parts.push(changed)
            }
          }
          const stream = Buffer.concat(parts)
          const socket = await attack()
          let at = 0
          for (let turn = 0; at < stream.length && !socket.destroyed; turn++) {
            const size = cuts[turn % cuts.length] as number
            socket.write(stream.subarray(at, at + size))
            at += size
            if (turn < 5) await new Promise((resolve) => setImmediate(resolve))
          }
          socket.end()
          socket.destroySoon()
        },
      ),
      { numRuns: 150 },
    )
    expect(delivered).to.have.length(0)
    expect(node.counters.handlerErrors).to.equal(0)
    await stillServes()
  })
})
