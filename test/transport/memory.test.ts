/** The memory network: the labs' self-tests of their network simulator (labrpc test_test.go) by name, then its own faults. */
import { expect } from 'chai'
import { InvalidArgumentError } from '../../src/base/errors.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'
import { MemoryNetwork, networkPresets } from '../../src/transport/memory.js'
import { Messenger } from '../../src/transport/messenger.js'
import { clusterId, pattern, quiet, World } from './support.js'

const nothing = new Uint8Array(0)

describe('labrpc on the memory network', () => {
  it('TestBasic: two handlers answer', async () => {
    const world = new World()
    const [client, server] = [await world.node('client'), await world.node('server')]
    server.messenger.handle('Handler2', (_, payload) => Buffer.from(`handler2-${Buffer.from(payload)}`))
    server.messenger.handle('Handler1', (_, payload) => Buffer.from(String(Number(Buffer.from(payload)) + 1)))
    expect(String(await world.runtime.settle(client.messenger.request('server', 'Handler2', Buffer.from('111'))))).to.equal('handler2-111')
    expect(String(await world.runtime.settle(client.messenger.request('server', 'Handler1', Buffer.from('9099'))))).to.equal('9100')
  })

  it('TestDisconnect: a call fails while the end is cut off, and works once it is back', async () => {
    const world = new World()
    const [client, server] = [await world.node('client'), await world.node('server')]
    let calls = 0
    server.messenger.handle('Handler2', () => {
      calls++
      return nothing
    })
    world.network.isolate('client')
    expect((await world.failure(client.messenger.request('server', 'Handler2', nothing, { timeoutMs: 100 }))).code).to.equal('TIMEOUT')
    expect(calls).to.equal(0)
    world.network.heal('client')
    await world.runtime.settle(client.messenger.request('server', 'Handler2', nothing, { timeoutMs: 100 }))
    expect(calls).to.equal(1)
  })

  it('TestCounts: 17 calls are counted as 17', async () => {
    const world = new World()
    const [client, server] = [await world.node('client'), await world.node('server')]
    server.messenger.handle('Handler2', (_, payload) => payload)
    for (let call = 0; call < 17; call++) await world.runtime.settle(client.messenger.request('server', 'Handler2', Buffer.from(String(call))))
    expect(server.messenger.counters.requestsHandled).to.equal(17)
    // Each call is a frame there and a frame back.
    expect(world.network.counters.sent).to.equal(34)
    expect(world.network.counters.delivered).to.equal(34)
  })

  it('TestBytes: bytes are counted, and a call costs less than 64 of its own each way', async () => {
    const world = new World()
    const [client, server] = [await world.node('client'), await world.node('server')]
    server.messenger.handle('Handler6', (_, payload) => Buffer.from(String(payload.length)))
    server.messenger.handle('Handler7', (_, payload) => Buffer.alloc(Number(Buffer.from(payload)), 'y'))
    const { counters } = world.network
    for (let call = 0; call < 17; call++) await world.runtime.settle(client.messenger.request('server', 'Handler6', Buffer.alloc(284, 'x')))
    expect(counters.sentBytes).to.be.within(17 * 284, 17 * (284 + 3 + 2 * 64))
    const before = counters.sentBytes
    for (let call = 0; call < 17; call++) await world.runtime.settle(client.messenger.request('server', 'Handler7', Buffer.from('107')))
    expect(counters.sentBytes - before).to.be.within(17 * 107, 17 * (107 + 3 + 2 * 64))
  })

  it('TestConcurrentMany: 20 clients with 10 calls each all succeed, and are counted', async () => {
    const world = new World()
    const server = await world.node('server')
    server.messenger.handle('Handler2', (_, payload) => payload)
    const clients = []
    for (let number = 0; number < 20; number++) clients.push(await world.node(`client-${number}`))
    await world.runtime.settle(
      Promise.all(
        clients.map(async ({ messenger }, number) => {
          for (let call = 0; call < 10; call++) {
            const question = `${number} ${call}`
            expect(String(await messenger.request('server', 'Handler2', Buffer.from(question)))).to.equal(question)
          }
        }),
      ),
    )
    expect(server.messenger.counters.requestsHandled).to.equal(200)
  })

  it('TestUnreliable: of 300 single calls some but not all succeed', async () => {
    const world = new World(7, { faults: networkPresets.unreliable })
    const server = await world.node('server')
    server.messenger.handle('Handler2', (_, payload) => payload)
    let succeeded = 0
    const calls = []
    for (let number = 0; number < 300; number++) {
      const { messenger } = await world.node(`client-${number}`)
      calls.push(
        messenger.request('server', 'Handler2', nothing, { timeoutMs: 100 }).then(
          () => succeeded++,
          () => {},
        ),
      )
    }
    await world.runtime.settle(Promise.all(calls))
    // One in ten lost each way: 81 of 100 succeed.
    expect(succeeded).to.be.within(210, 275)
    // Lost replies: the handler did run.
    expect(server.messenger.counters.requestsHandled).to.be.above(succeeded)
  })

  it('TestConcurrentOne: 20 concurrent calls of one end are each delivered once', async () => {
    const world = new World()
    const [client, server] = [await world.node('client'), await world.node('server')]
    const seen: string[] = []
    server.messenger.handle('Handler2', async (_, payload) => {
      seen.push(String(Buffer.from(payload)))
      return payload
    })
    const replies = await world.runtime.settle(
      Promise.all(Array.from({ length: 20 }, (_, call) => client.messenger.request('server', 'Handler2', Buffer.from(String(call))))),
    )
    expect(replies.map(String)).to.deep.equal(Array.from({ length: 20 }, (_, call) => String(call)))
    expect(new Set(seen).size).to.equal(20)
    expect(seen).to.have.length(20)
  })

  it('TestRegression1: 20 calls stuck in a cut do not delay a later one, and are not delivered after it', async () => {
    const world = new World()
    const [client, server] = [await world.node('client'), await world.node('server')]
    server.messenger.handle('Handler2', () => nothing)
    world.network.cut('client', 'server')
    const stuck = Array.from({ length: 20 }, () => quiet(client.messenger.request('server', 'Handler2', nothing, { timeoutMs: 7000 })))
    await world.runtime.advance(100)
    world.network.heal('client', 'server')
    const startMs = world.runtime.nowMs()
    await world.runtime.settle(client.messenger.request('server', 'Handler2', nothing))
    expect(world.runtime.nowMs() - startMs).to.be.at.most(30)
    expect(server.messenger.counters.requestsHandled).to.equal(1)
    for (const call of stuck) await world.failure(call)
    expect(server.messenger.counters.requestsHandled).to.equal(1)
  })

  it('TestKilled: a call to a handler that hangs is pending until the server is killed, and fails at once then', async () => {
    const world = new World()
    const [client, server] = [await world.node('client'), await world.node('server')]
    server.messenger.handle('Handler3', () => new Promise(() => {}))
    let settled = false
    const call = quiet(client.messenger.request('server', 'Handler3', nothing, { timeoutMs: 60_000 }))
    call.catch(() => {
      settled = true
    })
    await world.runtime.advance(1100)
    expect(settled).to.equal(false)
    world.network.crash('server')
    await world.runtime.advance(100)
    expect(settled).to.equal(true)
  })

  it('TestLongDelayRace: changing the delays while calls are under way is safe', async () => {
    const world = new World(3)
    const [client, server] = [await world.node('client'), await world.node('server')]
    server.messenger.handle('Handler2', (_, payload) => payload)
    const calls = []
    for (let round = 0; round < 100; round++) {
      world.network.setFaults(round % 2 === 0 ? networkPresets.longReordering : { maxDelayMs: round })
      for (let call = 0; call < 3; call++) calls.push(quiet(client.messenger.request('server', 'Handler2', nothing, { timeoutMs: 3000 })))
      await world.runtime.advance(5)
    }
    world.network.setFaults({})
    await world.runtime.settle(Promise.allSettled(calls))
    await world.runtime.settle(client.messenger.request('server', 'Handler2', nothing))
  })
})

describe('MemoryNetwork', () => {
  /** Ends that keep what they get. */
  async function ends(network: MemoryNetwork, ...addresses: string[]) {
    const received: Record<string, string[]> = {}
    const transports = []
    for (const address of addresses) {
      const inbox: string[] = []
      received[address] = inbox
      const transport = network.transport(address)
      await transport.open((from, frame) => inbox.push(`${from}:${Buffer.from(frame)}`))
      transports.push(transport)
    }
    return { received, transports }
  }

  it('the same seed does the same, another seed something else', async () => {
    const run = async (seed: number): Promise<string> => {
      const runtime = new SimulatedRuntime({ seed: 1 })
      const network = new MemoryNetwork({ runtime, seed, faults: { ...networkPresets.longReordering, repeatProbability: 0.3 } })
      const { received, transports } = await ends(network, 'a', 'b')
      for (let number = 0; number < 200; number++) transports[0]?.send('b', Buffer.from(String(number)))
      await runtime.advance(10_000)
      return JSON.stringify([received, network.counters])
    }
    expect(await run(5)).to.equal(await run(5))
    expect(await run(5)).to.not.equal(await run(6))
  })

  it('drops, repeats and holds back at about the rates asked for, and counts them', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const network = new MemoryNetwork({
      runtime,
      seed: 11,
      faults: { dropProbability: 0.2, repeatProbability: 0.1, reorderProbability: 0.5, reorderMinMs: 200, reorderMaxMs: 2199 },
    })
    const { received, transports } = await ends(network, 'a', 'b')
    for (let number = 0; number < 10_000; number++) transports[0]?.send('b', Buffer.from(String(number)))
    await runtime.advance(199)
    const early = received['b']?.length as number
    await runtime.advance(3000)
    const { dropped, repeated, heldBack, delivered } = network.counters
    expect(dropped).to.be.within(1800, 2200)
    expect(repeated).to.be.within(650, 950)
    expect(heldBack).to.be.within(4000, 4800)
    expect(delivered).to.equal(10_000 - dropped + repeated)
    expect(received['b']).to.have.length(delivered)
    expect(early).to.equal(delivered - heldBack)
  })

  it('without faults keeps the order; with a range of delays does not', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const network = new MemoryNetwork({ runtime })
    const { received, transports } = await ends(network, 'a', 'b')
    const numbers = Array.from({ length: 100 }, (_, number) => `a:${number}`)
    const send = (): void => {
      for (let number = 0; number < 100; number++) transports[0]?.send('b', Buffer.from(String(number)))
    }
    send()
    await runtime.advance(1)
    expect(received['b']).to.deep.equal(numbers)
    network.setLink('a', 'b', { minDelayMs: 1, maxDelayMs: 20 })
    received['b']!.length = 0
    send()
    await runtime.advance(30)
    expect(received['b']).to.not.deep.equal(numbers)
    expect([...received['b']!].sort()).to.deep.equal([...numbers].sort())
  })

  it('cuts one way or both, also what is under way; isolates; partitions; heals', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const network = new MemoryNetwork({ runtime, faults: { minDelayMs: 5, maxDelayMs: 5 } })
    const { received, transports } = await ends(network, 'a', 'b', 'c')
    const addresses = ['a', 'b', 'c']
    const reach = async (): Promise<string> => {
      for (const inbox of Object.values(received)) inbox.length = 0
      for (const transport of transports) for (const to of addresses) if (to !== transport.address) transport.send(to, Buffer.from('x'))
      await runtime.advance(10)
      return addresses
        .flatMap((to) => (received[to] as string[]).map((from) => `${from[0]}${to}`))
        .sort()
        .join(' ')
    }
    expect(await reach()).to.equal('ab ac ba bc ca cb')
    network.cut('a', 'b', { oneWay: true })
    expect(await reach()).to.equal('ac ba bc ca cb')
    network.cut('a', 'b')
    expect(await reach()).to.equal('ac bc ca cb')
    network.heal('b', 'a')
    expect(await reach()).to.equal('ab ac ba bc ca cb')
    network.isolate('c')
    expect(await reach()).to.equal('ab ba')
    network.heal('c')
    network.partition(['a'], ['b', 'c'])
    expect(await reach()).to.equal('bc cb')
    network.partition(['a', 'b'], ['c'])
    expect(await reach()).to.equal('ab ba')
    network.heal()
    expect(await reach()).to.equal('ab ac ba bc ca cb')
    transports[0]?.send('b', Buffer.from('under way'))
    await runtime.advance(2)
    network.cut('a', 'b')
    await runtime.advance(10)
    expect(received['b']).to.not.include('a:under way')
  })

  it('a crashed end is silent at once, and a later life at its address gets nothing that was meant for it', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const network = new MemoryNetwork({ runtime, faults: { minDelayMs: 5, maxDelayMs: 5 } })
    const { received, transports } = await ends(network, 'a', 'b')
    transports[0]?.send('b', Buffer.from('old'))
    await runtime.advance(1)
    network.crash('b')
    transports[1]?.send('a', Buffer.from('from the grave'))
    const again = await ends(network, 'b')
    transports[0]?.send('b', Buffer.from('new'))
    await runtime.advance(20)
    expect(received['b']).to.deep.equal([])
    expect(received['a']).to.deep.equal([])
    expect(again.received['b']).to.deep.equal(['a:new'])
    expect(network.counters.unreachable).to.equal(1)
  })

  it('hazard p6: what comes for a paused process waits for it', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const network = new MemoryNetwork({ runtime })
    const paused = runtime.process('paused')
    const node = new Messenger({ transport: network.transport('b', { runtime: paused }), runtime: paused, clusterId, nodeId: 'b' })
    const asking = new Messenger({ transport: network.transport('a'), runtime, clusterId, nodeId: 'a' })
    await node.open()
    await asking.open()
    node.handle('echo', (_, payload) => payload)
    paused.pause()
    let answered = false
    const reply = asking.request('b', 'echo', pattern(10)).then(() => {
      answered = true
    })
    await runtime.advance(1000)
    expect(answered).to.equal(false)
    paused.resume()
    await runtime.settle(reply)
    await node.close()
    await asking.close()
  })

  it('copies frames: ends share no bytes', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const network = new MemoryNetwork({ runtime })
    const { received, transports } = await ends(network, 'a', 'b')
    const frame = Buffer.from('true')
    transports[0]?.send('b', frame)
    frame.fill('x')
    await runtime.advance(1)
    expect(received['b']).to.deep.equal(['a:true'])
  })

  it('bounds what is under way to an end, and refuses addresses that cannot be', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const network = new MemoryNetwork({ runtime, maxQueueBytes: 1000, faults: { minDelayMs: 10, maxDelayMs: 10 } })
    const { received, transports } = await ends(network, 'a', 'b')
    for (let number = 0; number < 20; number++) transports[0]?.send('b', new Uint8Array(100))
    await runtime.advance(20)
    expect(received['b']).to.have.length(10)
    expect(network.counters.overLimit).to.equal(10)
    for (const address of ['', '*', 'a\0b']) expect(() => network.transport(address)).to.throw(InvalidArgumentError)
  })
})
