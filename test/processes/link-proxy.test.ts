/** The harness itself: what the proxy does to bytes, and what is left when the harness dies. */
import { once } from 'node:events'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { performance } from 'node:perf_hooks'
import { expect } from 'chai'
import { freeAddresses } from '../../scripts/workplace.js'
import { encodeHello } from '../../src/transport/tcp-hello.js'
import { clientEnd, LinkProxy } from './support/link-proxy.js'
import { until } from './support/process-cluster.js'

/** What reached the target, and how it ended. */
interface Arrived {
  bytes: Buffer
  ended: 'fin' | 'rst' | null
  socket: Socket
}

describe('LinkProxy', () => {
  let proxy: LinkProxy
  let server: Server
  const arrived: Arrived[] = []
  const sockets: Socket[] = []
  let addresses: string[]

  beforeEach(async () => {
    addresses = await freeAddresses(3)
    arrived.length = 0
    server = createServer((socket) => {
      const one: Arrived = { bytes: Buffer.alloc(0), ended: null, socket }
      arrived.push(one)
      sockets.push(socket)
      socket.on('data', (bytes: Buffer) => {
        one.bytes = Buffer.concat([one.bytes, bytes])
      })
      socket.on('error', () => {
        one.ended = 'rst'
      })
      socket.on('end', () => {
        one.ended ??= 'fin'
      })
    })
    await new Promise<void>((resolve) => server.listen(Number(addresses[0]!.split(':')[1]), '127.0.0.1', resolve))
    proxy = new LinkProxy(
      [
        { id: 'a', target: addresses[0]!, address: addresses[1]! },
        { id: 'b', target: '127.0.0.1:1', address: addresses[2]! },
      ],
      7,
    )
    await proxy.open()
  })

  afterEach(async () => {
    await proxy.close()
    for (const socket of sockets.splice(0)) socket.destroy()
    await new Promise((resolve) => server.close(resolve))
  })

  const hello = (address: string) => encodeHello({ version: 1, anonymous: address.startsWith('anonymous-'), incarnation: new Uint8Array(8), address })
  const frame = (length: number) => {
    const bytes = Buffer.alloc(4 + length, 5)
    bytes.writeUInt32BE(length)
    return bytes
  }

  async function dial(as: string): Promise<Socket> {
    const [host, port] = addresses[1]!.split(':') as [string, string]
    const socket = connect({ host, port: Number(port) })
    socket.on('error', () => {})
    sockets.push(socket)
    await once(socket, 'connect')
    socket.write(hello(as))
    return socket
  }

  it('passes bytes on unchanged, and knows who dialled', async () => {
    const socket = await dial(addresses[2]!)
    socket.write(frame(100))
    await until('all arrived', () => arrived[0]?.bytes.equals(Buffer.concat([hello(addresses[2]!), frame(100)])) === true)
    expect(proxy.link('b', 'a').pipes.size).to.equal(1)
    expect(proxy.link(clientEnd, 'a').pipes.size).to.equal(0)
    arrived[0]!.socket.end('back')
    const [answer] = (await once(socket, 'data')) as [Buffer]
    expect(String(answer)).to.equal('back')
    await once(socket, 'close')
  })

  for (const how of ['fin', 'rst'] as const)
    it(`cuts in the middle of a frame, by ${how.toUpperCase()}`, async () => {
      const socket = await dial(`anonymous-${'1'.repeat(32)}`)
      socket.write(frame(10))
      const whole = hello(`anonymous-${'1'.repeat(32)}`).length + 14
      await until('the first frame arrived', () => arrived[0]?.bytes.length === whole)
      proxy.link(clientEnd, 'a').cut({ how, midFrame: true })
      socket.write(frame(1000))
      await new Promise((resolve) => socket.once('close', resolve))
      await until('the other side ended', () => arrived[0]!.ended !== null)
      expect(arrived[0]!.ended).to.equal(how)
      if (how === 'fin') expect(arrived[0]!.bytes.length).to.be.within(whole + 5, whole + 1003)
      const again = await dial(`anonymous-${'1'.repeat(32)}`)
      again.write(frame(20))
      await until('the next connection is not cut', () => arrived[1]?.bytes.length === whole + 10)
    })

  it('delays, throttles and holds back one way, in order, and passes on what was held when it heals', async () => {
    const link = proxy.link('b', 'a')
    link.set({ delayMs: 30, jitterMs: 30 })
    const socket = await dial(addresses[2]!)
    const startMs = performance.now()
    const all = [hello(addresses[2]!)]
    for (let number = 0; number < 20; number++) {
      all.push(Buffer.concat([frame(3), frame(number + 1)]))
      socket.write(all.at(-1)!)
    }
    const expected = Buffer.concat(all)
    await until('all arrived', () => arrived[0]?.bytes.length === expected.length)
    expect(arrived[0]!.bytes.equals(expected)).to.equal(true)
    expect(performance.now() - startMs).to.be.at.least(29)
    link.set({ delayMs: 0, jitterMs: 0, bytesPerSecond: 100_000 })
    const throttledMs = performance.now()
    socket.write(frame(9996))
    await until('the long frame arrived', () => arrived[0]!.bytes.length === expected.length + 10_000)
    expect(performance.now() - throttledMs).to.be.at.least(95)
    await proxy.heal()
    link.set({ holdForward: true })
    socket.write(frame(50))
    arrived[0]!.socket.write('the other way passes')
    await once(socket, 'data')
    expect(arrived[0]!.bytes.length).to.equal(expected.length + 10_000)
    await proxy.heal()
    await until('what was held arrived', () => arrived[0]!.bytes.length === expected.length + 10_054)
  })

  it('refuses connections, and takes them again', async () => {
    await proxy.refuse('a')
    const [host, port] = addresses[1]!.split(':') as [string, string]
    const refused = connect({ host, port: Number(port) })
    const [error] = (await once(refused, 'error')) as [NodeJS.ErrnoException]
    expect(error.code).to.equal('ECONNREFUSED')
    await proxy.heal()
    await dial(addresses[2]!)
    await until('it is taken', () => arrived.length === 1)
  })
})
