/** TCP between good ends: addresses, coalescing, reconnecting, loss of a process, signs of life. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import { InvalidArgumentError, UnavailableError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { Channel, Messenger } from '../../src/transport/messenger.js'
import { ControlWord } from '../../src/transport/stream-parser.js'
import { type TcpOptions, type TcpTransport, tcp } from '../../src/transport/tcp.js'
import { encodeHello } from '../../src/transport/tcp-hello.js'
import { clusterId, quiet, until } from './support.js'

const nothing = new Uint8Array(0)

describe('tcp', () => {
  const closing: (() => Promise<unknown> | unknown)[] = []
  afterEach(async () => {
    for (const close of closing.splice(0)) await close()
  })

  async function end(options: TcpOptions = {}, onFrame: (from: string, frame: Uint8Array) => void = () => {}): Promise<TcpTransport> {
    const transport = tcp({ listen: '127.0.0.1:0', ...options })
    closing.push(() => transport.close())
    await transport.open(onFrame)
    return transport
  }

  async function node(nodeId: string, options: TcpOptions = {}): Promise<{ messenger: Messenger; transport: TcpTransport }> {
    const transport = tcp({ listen: '127.0.0.1:0', ...options })
    const messenger = new Messenger({ transport, runtime: systemRuntime, clusterId, nodeId })
    closing.push(() => messenger.close())
    await messenger.open()
    messenger.handle('echo', (_, payload) => payload)
    return { messenger, transport }
  }

  async function startProcess(listen = '127.0.0.1:0'): Promise<{ child: ChildProcess; address: string }> {
    const child = fork(fileURLToPath(new URL('./echo-process.js', import.meta.url)), [listen], { execArgv: [] })
    closing.push(() => child.kill('SIGKILL'))
    const [address] = await once(child, 'message')
    return { child, address: String(address) }
  }

  it('shows the real port after open, or what it advertises', async () => {
    expect((await end()).address).to.match(/^127\.0\.0\.1:[1-9][0-9]+$/)
    expect((await end({ advertise: 'node-1.example:7001' })).address).to.equal('node-1.example:7001')
    expect(tcp().address).to.match(/^anonymous-[0-9a-f]{32}$/)
  })

  it('refuses to listen beyond loopback unless an option named insecure says so', () => {
    for (const listen of ['0.0.0.0:7001', '[::]:7001', '192.168.1.7:7001', 'example.org:7001'])
      expect(() => tcp({ listen }))
        .to.throw(InvalidArgumentError)
        .with.property('code', 'INSECURE_LISTEN')
    expect(() => tcp({ listen: '0.0.0.0:7001', insecureAllowRemote: true })).to.throw(InvalidArgumentError, 'advertise')
    expect(tcp({ listen: '0.0.0.0:7001', insecureAllowRemote: true, advertise: '10.0.0.1:7001' }).address).to.equal('10.0.0.1:7001')
    expect(tcp({ listen: '192.168.1.7:7001', insecureAllowRemote: true }).address).to.equal('192.168.1.7:7001')
  })

  it('refuses options that cannot be', () => {
    for (const listen of ['', '7001', 'localhost', '127.0.0.1:', '127.0.0.1:70000', '127.0.0.1:-1', 'a b:1'])
      expect(() => tcp({ listen }), listen).to.throw(InvalidArgumentError)
    for (const maxFrameBytes of [0, 1023, 2 ** 31, Number.NaN]) expect(() => tcp({ maxFrameBytes })).to.throw(InvalidArgumentError)
  })

  it('says why an address cannot be listened on', async () => {
    const first = await end()
    const error = await tcp({ listen: first.address })
      .open(() => {})
      .catch((thrown: unknown) => thrown)
    expect(error).to.be.instanceOf(UnavailableError)
    expect((error as Error).message).to.include('EADDRINUSE')
  })

  it('writes all frames of a turn at once, few or many, small or large', async () => {
    let bytes = 0
    const other = await end({}, (_, frame) => {
      bytes += frame.length
    })
    const one = await end()
    one.send(other.address, new Uint8Array(1))
    await until('connected', () => bytes === 1)
    for (const [count, size] of [
      [1, 100],
      [100, 100],
      [100, 10_000],
      [3, 500_000],
    ] as const) {
      const writes = one.counters.writes
      bytes = 0
      for (let number = 0; number < count; number++) one.send(other.address, new Uint8Array(size))
      await until('all arrive', () => bytes === count * size)
      expect(one.counters.writes - writes).to.equal(1)
    }
  })

  it('dials a dead peer with back-off, and gives it up to 100 ms to be noticed once it is back', async () => {
    const other = await end()
    const { address } = other
    await other.close()
    const delaysMs: number[] = []
    const one = await end({
      runtime: {
        ...systemRuntime,
        schedule: (delayMs, task) => {
          delaysMs.push(delayMs)
          return systemRuntime.schedule(delayMs, task)
        },
      },
    })
    await until(
      'eight dials failed',
      () => one.counters.dialsFailed >= 8,
      () => one.send(address, new Uint8Array(1)),
    )
    // All but the sweeps of every 250 ms.
    const backoffsMs = delaysMs.filter((delayMs) => delayMs !== 250)
    expect(backoffsMs.length).to.be.at.least(6)
    expect(Math.max(...backoffsMs)).to.be.within(30, 100)
    let got = 0
    await end({ listen: address }, () => got++)
    const failed = one.counters.dialsFailed
    await until(
      'reached',
      () => got > 0,
      () => one.send(address, new Uint8Array(1)),
    )
    expect(one.counters.dialsFailed - failed).to.be.at.most(1)
  })

  it('drops what waited for a dial that failed: an old frame is worth nothing later', async () => {
    const other = await end()
    const { address } = other
    await other.close()
    const one = await end()
    for (let number = 0; number < 5; number++) one.send(address, Uint8Array.of(1))
    await until('the dial failed', () => one.counters.dialsFailed === 1)
    expect(one.counters.framesDropped).to.equal(5)
    const got: number[] = []
    await end({ listen: address }, (_, frame) => got.push(frame[0] as number))
    await until(
      'reached',
      () => got.length > 0,
      () => one.send(address, Uint8Array.of(2)),
    )
    expect(got).to.not.include(1)
  })

  it('a peer that dials is dialled back without waiting for the back-off', async () => {
    // A host that swallows connections is dialled again after up to a second; its own dial shows that it is up.
    const one = await end()
    const silent = createServer((socket) => socket.destroy())
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve))
    const port = (silent.address() as { port: number }).port
    const address = `127.0.0.1:${port}`
    await until(
      'the back-off has grown',
      () => one.counters.dialsFailed >= 6,
      () => one.send(address, new Uint8Array(1)),
    )
    await new Promise((resolve) => silent.close(resolve))
    let got = 0
    const other = await end({ listen: address }, () => got++)
    one.send(address, new Uint8Array(1))
    const dialled = one.counters.connectionsDialled
    other.send(one.address, new Uint8Array(1))
    await until('reached', () => got > 0)
    expect(one.counters.connectionsDialled).to.equal(dialled + 1)
  })

  it('a peer that has dialled is dialled at once, too, when nothing waited for it', async () => {
    const one = await end()
    const nobody = createServer((socket) => socket.destroy())
    await new Promise<void>((resolve) => nobody.listen(0, '127.0.0.1', resolve))
    const address = `127.0.0.1:${(nobody.address() as { port: number }).port}`
    await until(
      'the back-off has grown',
      () => one.counters.dialsFailed >= 6,
      () => one.send(address, new Uint8Array(1)),
    )
    await until('the last dial has failed', () => one.counters.connectionsDialled === one.counters.dialsFailed)
    await new Promise((resolve) => nobody.close(resolve))
    const other = await end({ listen: address })
    other.send(one.address, new Uint8Array(1))
    await until('it has dialled', () => one.counters.framesReceived > 0)
    const dialled = one.counters.connectionsDialled
    one.send(address, new Uint8Array(1))
    expect(one.counters.connectionsDialled).to.equal(dialled + 1)
  })

  it('SIGKILL of a process fails what waits for it at once, and its restart at the same address is found', async () => {
    const { messenger } = await node('asking')
    const states: string[] = []
    messenger.onPeerState((_, state) => states.push(state))
    const { child, address } = await startProcess()
    await messenger.request(address, 'echo', nothing)
    const hanging = quiet(messenger.request(address, 'hang', nothing, { timeoutMs: 600_000 }))
    await messenger.request(address, 'echo', nothing)
    child.kill('SIGKILL')
    const error = await hanging.catch((thrown: unknown) => thrown)
    expect(error).to.be.instanceOf(UnavailableError).with.property('code', 'UNAVAILABLE')
    expect(states.slice(0, 2)).to.deep.equal(['connected', 'lost'])
    await startProcess(address)
    let answered = false
    await until(
      'the restarted process answers',
      () => answered,
      () => {
        messenger.request(address, 'echo', nothing).then(
          () => {
            answered = true
          },
          () => {},
        )
      },
    )
  })

  it('SIGSTOP: a peer that gives no sign of life is lost; once it goes on it is found again', async () => {
    const { messenger, transport } = await node('asking', { pingIntervalMs: 100, silenceTimeoutMs: 600 })
    const { child, address } = await startProcess()
    await messenger.request(address, 'echo', nothing)
    child.kill('SIGSTOP')
    const error = await messenger.request(address, 'echo', nothing, { timeoutMs: 600_000 }).catch((thrown: unknown) => thrown)
    expect(error).to.be.instanceOf(UnavailableError).with.property('code', 'UNAVAILABLE')
    // Our connection to it, and perhaps by now its connection to us.
    expect(transport.counters.timeouts).to.be.within(1, 2)
    child.kill('SIGCONT')
    await messenger.request(address, 'echo', nothing)
  })

  it('asks a silent peer for a sign of life, keeps a connection that gives one and closes one that does not', async () => {
    const sockets: Socket[] = []
    let pings = 0
    let answering = true
    const server = createServer((socket) => {
      sockets.push(socket)
      let greeted = false
      socket.on('error', () => {})
      socket.on('data', (chunk) => {
        if (!greeted) {
          greeted = true
          socket.write(encodeHello({ version: 1, anonymous: false, incarnation: new Uint8Array(8), address: '127.0.0.1:9' }))
        } else if (chunk.length === 4 && chunk.readUInt32BE(0) === ControlWord.ping) {
          pings++
          const pong = Buffer.alloc(4)
          pong.writeUInt32BE(ControlWord.pong)
          if (answering) socket.write(pong)
        }
      })
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    closing.push(() => {
      for (const socket of sockets) socket.destroy()
      server.close()
    })
    const one = await end({ pingIntervalMs: 100, silenceTimeoutMs: 700 })
    one.send(`127.0.0.1:${(server.address() as { port: number }).port}`, new Uint8Array(10))
    await until('eight pings', () => pings >= 8)
    expect(one.counters.connectionsLost).to.equal(0)
    answering = false
    await until('given up', () => one.counters.connectionsLost === 1)
    expect(one.counters.timeouts).to.equal(1)
  })

  it('a peer that is not quorate, or does not answer, is no peer: what waits for it fails, and the rest goes on', async () => {
    const answers: ((socket: Socket) => void)[] = [
      (socket) => socket.write('HTTP/1.1 400 Bad Request\r\n\r\n'),
      (socket) => socket.end(),
      (socket) => socket.resetAndDestroy(),
      (socket) => socket.write(Buffer.alloc(100_000)),
      (socket) => socket.write(encodeHello({ version: 9, anonymous: false, incarnation: new Uint8Array(8), address: 'x:1' })),
      () => {},
    ]
    let turn = 0
    const sockets: Socket[] = []
    const server = createServer((socket) => {
      sockets.push(socket)
      socket.on('error', () => {})
      answers[turn]?.(socket)
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    closing.push(() => {
      for (const socket of sockets) socket.destroy()
      server.close()
    })
    const address = `127.0.0.1:${(server.address() as { port: number }).port}`
    const refusals: string[] = []
    const asking = await node('asking', { handshakeTimeoutMs: 300, onRefused: (kind) => refusals.push(kind) })
    const good = await node('good')
    for (; turn < answers.length; turn++) {
      const error = await asking.messenger.request(address, 'echo', nothing, { timeoutMs: 600_000 }).catch((thrown: unknown) => thrown)
      expect(error, `answer ${turn}`).to.be.instanceOf(UnavailableError).with.property('code', 'UNAVAILABLE')
      await asking.messenger.request(good.messenger.address, 'echo', nothing)
    }
    expect(refusals).to.deep.equal(['bad-hello', 'bad-hello', 'wrong-version', 'timeout'])
  })

  it('close sends what was queued before it', async () => {
    const [one, other] = [await node('one'), await node('other')]
    const got: string[] = []
    other.messenger.onMessage(Channel.raft, (_, body) => got.push(String(Buffer.from(body))))
    await one.messenger.request(other.messenger.address, 'echo', nothing)
    one.messenger.send(other.messenger.address, Channel.raft, Buffer.from('farewell'))
    await one.messenger.close()
    await until('the farewell arrives', () => got.length > 0)
  })
})
