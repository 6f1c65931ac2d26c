/** The bulk lane: chunks, window, repetition, bounds; on a simulated clock and network. */
import { expect } from 'chai'
import fc from 'fast-check'
import { OverloadedError } from '../../src/base/errors.js'
import { encodeHeader, FrameBuilder, FrameReader, SystemChannel, varintBytes } from '../../src/transport/frame.js'
import { networkPresets } from '../../src/transport/memory.js'
import { Channel } from '../../src/transport/messenger.js'
import { clusterId, pattern, quiet, type SimulatedNode, sameBytes, World } from './support.js'

/** The channels of a frame's sections, with the bytes of each. */
function sections(frame: Uint8Array): { channel: number; bytes: number }[] {
  const reader = new FrameReader(frame)
  expect(reader.check()).to.equal(null)
  const found = []
  while (reader.next()) found.push({ channel: reader.channel, bytes: reader.remaining })
  return found
}

async function echoes(world: World, options = {}): Promise<[SimulatedNode, SimulatedNode]> {
  const nodes: [SimulatedNode, SimulatedNode] = [await world.node('a', options), await world.node('b', options)]
  for (const { messenger } of nodes) messenger.handle('echo', (_, payload) => payload)
  return nodes
}

interface Chunk {
  readonly session?: number
  readonly stream?: number
  readonly index: number
  readonly count: number
  readonly channel?: number
  readonly data?: Uint8Array
}

/** A frame with one chunk, as anyone could make it. */
function chunkFrame({ session = 7, stream = 1, index, count, channel = Channel.raft, data = new Uint8Array(2000) }: Chunk): Buffer {
  const builder = new FrameBuilder(encodeHeader(clusterId, 'node-x'), 100_000)
  builder.begin(SystemChannel.chunk, 4 + varintBytes(stream) + varintBytes(index) + varintBytes(count) + 1 + data.length)
  builder.u32(session)
  builder.varint(stream)
  builder.varint(index)
  builder.varint(count)
  builder.u8(channel)
  builder.raw(data)
  return builder.seal()
}

describe('Messenger: bulk lane', () => {
  it('carries messages larger than a frame, one-way and as request and reply, to others and to itself', async () => {
    const world = new World(1, { maxFrameBytes: 10_000 })
    const [a, b] = await echoes(world)
    const got: Uint8Array[] = []
    b.messenger.onMessage(Channel.raft, (_, body) => got.push(body))
    for (const size of [9_900, 9_990, 10_000, 10_001, 65_536, 1_000_000]) {
      const body = pattern(size, size)
      a.messenger.send('b', Channel.raft, body)
      for (const to of ['a', 'b']) expect(sameBytes(await world.runtime.settle(a.messenger.request(to, 'echo', body)), body)).to.equal(true)
      expect(got).to.have.length(1)
      expect(sameBytes(got.pop() as Uint8Array, body)).to.equal(true)
    }
    for (const { frame } of [...a.transport.sent, ...b.transport.sent]) expect(frame.length).to.be.at.most(10_000)
  })

  it('lets no control message wait: it leaves in a frame of its own, before the bulk of its turn, and a turn holds little bulk', async () => {
    const world = new World()
    const [a, b] = await echoes(world)
    const large = a.messenger.request('b', 'echo', pattern(20_000_000), { lane: 'bulk' })
    let done = false
    large.then(() => {
      done = true
    })
    let controlDelivered = 0
    b.messenger.onMessage(Channel.raft, () => controlDelivered++)
    let controlSent = 0
    let largestTurn = 0
    while (!done) {
      a.messenger.send('b', Channel.raft, Buffer.from('urgent'))
      controlSent++
      const before = a.transport.sent.length
      await world.runtime.advance(0)
      const frames = a.transport.sent.slice(before)
      const first = frames.find(({ frame }) => sections(frame).some(({ channel }) => channel === Channel.raft))
      // Nothing of the bulk lane goes in front of it.
      expect(frames.indexOf(first!)).to.equal(0)
      expect(sections(first!.frame).some(({ channel }) => channel === SystemChannel.chunk)).to.equal(false)
      largestTurn = Math.max(
        largestTurn,
        frames.reduce((sum, { frame }) => sum + frame.length, 0),
      )
      await world.runtime.advance(0.01)
    }
    expect((await large).length).to.equal(20_000_000)
    expect(controlDelivered).to.equal(controlSent)
  })

  it('adds at most 256 KiB and a chunk to a turn, and stops at its window when nothing is acknowledged', async () => {
    const world = new World()
    const [a] = await echoes(world)
    world.network.cut('b', 'a', { oneWay: true })
    quiet(a.messenger.request('b', 'echo', pattern(20_000_000), { lane: 'bulk', timeoutMs: 200 }))
    await world.runtime.advance(100)
    const bytes = a.transport.sent.map(({ frame }) => frame.length)
    expect(Math.max(...bytes)).to.be.at.most(256 * 1024 + 65_536)
    const total = bytes.reduce((sum, each) => sum + each, 0)
    expect(total).to.be.within(1024 * 1024 - 65_536, 1024 * 1024 + 65_536)
    await world.close()
  })

  it('several messages share the lane: a small one does not wait until a large one is through', async () => {
    const world = new World(1, { faults: { minDelayMs: 1, maxDelayMs: 1 } })
    const [a] = await echoes(world)
    const order: string[] = []
    const ask = (name: string, size: number): Promise<unknown> =>
      a.messenger.request('b', 'echo', pattern(size), { lane: 'bulk' }).then(() => order.push(name))
    await world.runtime.settle(Promise.all([ask('large', 20_000_000), ask('small', 10_000)]))
    expect(order).to.deep.equal(['small', 'large'])
  })

  for (const [name, faults] of Object.entries({
    unreliable: networkPresets.unreliable,
    'long reordering': networkPresets.longReordering,
    repeating: { repeatProbability: 0.5, maxDelayMs: 20 },
    'losing half': { dropProbability: 0.5, maxDelayMs: 5 },
  }))
    it(`delivers whole on a network that is ${name}, each message once per stream`, async () => {
      for (let seed = 1; seed <= 5; seed++) {
        const world = new World(seed, { faults, maxFrameBytes: 20_000, peerStates: false })
        const [a, b] = [await world.node('a'), await world.node('b')]
        const got: Uint8Array[] = []
        b.messenger.onMessage(Channel.raft, (_, body) => got.push(body))
        for (let number = 0; number < 5; number++) a.messenger.send('b', Channel.raft, pattern(100_000 + number, number))
        await world.runtime.advance(60_000)
        expect(got.map((body) => body.length).sort(), `seed ${seed}`).to.deep.equal([100_000, 100_001, 100_002, 100_003, 100_004])
        for (const body of got) expect(sameBytes(body, pattern(body.length, body.length - 100_000)), `seed ${seed}`).to.equal(true)
        await world.close()
      }
    })

  it('goes on after a cut, and after the receiver was started anew in the middle', async () => {
    const world = new World(1, { faults: { minDelayMs: 1, maxDelayMs: 1 } })
    const [a, b] = [await world.node('a'), await world.node('b')]
    let got = 0
    b.messenger.onMessage(Channel.raft, (_, body) => {
      got += body.length
    })
    a.messenger.send('b', Channel.raft, pattern(10_000_000))
    await world.runtime.advance(4)
    world.network.cut('a', 'b')
    await world.runtime.advance(3000)
    world.network.heal()
    await world.runtime.advance(3)
    expect(got).to.equal(0)
    world.network.crash('b', { silent: true })
    const again = await world.node('b')
    again.messenger.onMessage(Channel.raft, (_, body) => {
      got += body.length
    })
    await world.runtime.advance(20_000)
    expect(got).to.equal(10_000_000)
    expect(a.messenger.counters.chunksResent).to.be.above(0)
  })

  it('gives up when nothing is heard for long, and lets go of the message', async () => {
    const world = new World(1, { peerStates: false })
    const a = await world.node('a', { maxMessageBytes: 1_000_000, maxBulkQueueBytes: 1_500_000 })
    a.messenger.send('silence', Channel.raft, pattern(1_000_000, 1).subarray(0, 999_999))
    a.messenger.send('silence', Channel.raft, new Uint8Array(1_000_000))
    // Only frames larger than a frame go by this lane; the network's frames hold a mebibyte, so these two went as they are.
    expect(a.messenger.counters.messagesDropped).to.equal(0)
    const error = await world.failure(a.messenger.request('silence', 'x', new Uint8Array(900_000), { lane: 'bulk', timeoutMs: 60_000 }))
    expect(error.code).to.equal('TIMEOUT')
    expect(a.messenger.counters.bulkAbandoned).to.equal(1)
  })

  it('bounds what waits in the lane', async () => {
    const world = new World(1, { peerStates: false })
    const a = await world.node('a', { maxMessageBytes: 1_000_000, maxBulkQueueBytes: 1_500_000 })
    const first = quiet(a.messenger.request('silence', 'x', new Uint8Array(900_000), { lane: 'bulk', timeoutMs: 1000 }))
    expect(await world.failure(a.messenger.request('silence', 'x', new Uint8Array(900_000), { lane: 'bulk' }))).to.be.instanceOf(OverloadedError)
    await world.failure(first)
    // A request that is over leaves its room to the next.
    expect((await world.failure(a.messenger.request('silence', 'x', new Uint8Array(900_000), { lane: 'bulk', timeoutMs: 1000 }))).code).to.equal(
      'TIMEOUT',
    )
  })

  it('hazard E1.2, E1.11: chunks that claim too much, contradict or cannot be are refused before anything is kept', async () => {
    const world = new World()
    const b = await world.node('b')
    let delivered = 0
    b.messenger.onMessage(Channel.raft, () => delivered++)
    const x = world.network.transport('x')
    await x.open(() => {})
    const bad: Chunk[] = [
      { index: 0, count: 0 },
      { index: 2, count: 2 },
      { index: 0, count: Number.MAX_SAFE_INTEGER },
      { index: 0, count: 2, data: new Uint8Array(0) },
      { index: 0, count: 2, channel: SystemChannel.chunk },
      { index: 0, count: 1, channel: SystemChannel.chunkAck },
      { stream: 2 ** 40, index: 0, count: 2 },
    ]
    for (const chunk of bad) x.send('b', chunkFrame(chunk))
    await world.runtime.advance(1)
    expect(b.messenger.counters.malformed + b.messenger.counters.bulkDropped).to.equal(bad.length)
    // A second chunk that contradicts the first.
    x.send('b', chunkFrame({ stream: 5, index: 0, count: 3 }))
    x.send('b', chunkFrame({ stream: 5, index: 1, count: 4 }))
    x.send('b', chunkFrame({ stream: 5, index: 1, count: 3, channel: 17 }))
    await world.runtime.advance(1)
    expect(b.messenger.counters.malformed + b.messenger.counters.bulkDropped).to.equal(bad.length + 2)
    expect(delivered).to.equal(0)
    // And a sound one after all that.
    for (const index of [2, 1]) x.send('b', chunkFrame({ stream: 5, index, count: 3 }))
    await world.runtime.advance(1)
    expect(delivered).to.equal(1)
  })

  it('hazard E1.25: incomplete messages are bounded in bytes, in number and in time', async () => {
    const world = new World()
    const b = await world.node('b', { maxMessageBytes: 100_000, maxReassemblyBytes: 150_000, reassemblyTimeoutMs: 5000 })
    let delivered = 0
    b.messenger.onMessage(Channel.raft, () => delivered++)
    const x = world.network.transport('x')
    await x.open(() => {})
    const counters = b.messenger.counters
    const data = new Uint8Array(60_000)
    // One message over the limit of a message.
    for (const index of [0, 1]) x.send('b', chunkFrame({ stream: 1, index, count: 3, data }))
    await world.runtime.advance(1)
    expect(counters.bulkDropped).to.equal(1)
    // Three that together are over the limit of a peer.
    for (const stream of [2, 3, 4]) x.send('b', chunkFrame({ stream, index: 0, count: 2, data }))
    await world.runtime.advance(1)
    expect(counters.bulkDropped).to.equal(2)
    // Time frees them.
    await world.runtime.advance(6000)
    expect(counters.bulkDropped).to.equal(4)
    // So many that their number is over the limit.
    for (let stream = 100; stream < 200; stream++) x.send('b', chunkFrame({ stream, index: 0, count: 2, data: new Uint8Array(10) }))
    await world.runtime.advance(1)
    expect(counters.bulkDropped).to.equal(4 + 36)
    for (let stream = 100; stream < 164; stream++) x.send('b', chunkFrame({ stream, index: 1, count: 2, data: new Uint8Array(10) }))
    await world.runtime.advance(1)
    expect(delivered).to.equal(64)
  })

  it('hazard E1.25: incomplete messages of all peers together are bounded, and what is dropped makes room', async () => {
    const world = new World()
    // At most 150 kB of a peer, and 300 kB of all.
    const b = await world.node('b', { maxMessageBytes: 100_000, maxReassemblyBytes: 150_000, reassemblyTimeoutMs: 5000 })
    const counters = b.messenger.counters
    const data = new Uint8Array(70_000)
    for (let round = 1; round <= 3; round++) {
      for (let number = 0; number < 6; number++) {
        const attacker = world.network.transport(`x-${round}-${number}`)
        await attacker.open(() => {})
        attacker.send('b', chunkFrame({ stream: 1, index: 0, count: 2, data }))
      }
      await world.runtime.advance(1)
      expect(counters.bulkDropped).to.equal(6 * round - 4)
      await world.runtime.advance(6000)
      expect(counters.bulkDropped).to.equal(6 * round)
    }
  })

  it('joins the chunks of any message in any order, repeated or not', async () => {
    const world = new World()
    const b = await world.node('b')
    const got: Buffer[] = []
    b.messenger.onMessage(Channel.raft, (_, body) => got.push(Buffer.from(body)))
    const x = world.network.transport('x')
    await x.open(() => {})
    let stream = 0
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 50 }), fc.infiniteStream(fc.nat()), async (count, size, chance) => {
        stream++
        const message = pattern(count * size, stream)
        const next = (): number => chance.next().value as number
        const order = Array.from({ length: count * 2 }, (_, turn) => ({ index: turn % count, at: next() })).sort((one, other) => one.at - other.at)
        for (const { index } of order) x.send('b', chunkFrame({ stream, index, count, data: message.subarray(index * size, (index + 1) * size) }))
        await world.runtime.advance(1)
        expect(got).to.have.length(1)
        expect(sameBytes(got.pop() as Buffer, message)).to.equal(true)
      }),
      { numRuns: 200 },
    )
  })
})
