/** Messenger: who may speak, and frames that are damaged, forged or made of chance. */
import { expect } from 'chai'
import fc from 'fast-check'
import { RefusedError } from '../../src/base/errors.js'
import { encodeHeader, FrameBuilder, FrameReader, SystemChannel } from '../../src/transport/frame.js'
import { Channel } from '../../src/transport/messenger.js'
import { clusterId, otherClusterId, pattern, sameBytes, unknownClusterId, World } from './support.js'

const nothing = new Uint8Array(0)

describe('Messenger: clusters', () => {
  it('hazard E1.21: another cluster is refused, told, and not answered again', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b', { clusterId: otherClusterId })]
    let delivered = 0
    for (const node of [a, b]) {
      node.messenger.onMessage(Channel.raft, () => delivered++)
      node.messenger.handle('echo', (_, payload) => payload)
    }
    a.messenger.send('b', Channel.raft, nothing)
    const error = await world.failure(a.messenger.request('b', 'echo', nothing))
    expect(error).to.be.instanceOf(RefusedError)
    expect(error).to.include({ code: 'WRONG_CLUSTER', retryable: false })
    await world.runtime.advance(10_000)
    expect(delivered).to.equal(0)
    expect(b.messenger.counters.wrongCluster).to.equal(1)
    expect(b.refusals[0]).to.include({ kind: 'wrong-cluster', from: 'a' })
    expect(a.messenger.counters.refusedByPeer).to.equal(1)
    expect(a.refusals[0]).to.include({ kind: 'refused-by-peer', from: 'b' })
    // One frame there, one refusal back, and silence.
    expect([a.transport.sent.length, b.transport.sent.length]).to.deep.equal([1, 1])
  })

  it('a refusal is told rarely, however much comes', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b', { clusterId: otherClusterId })]
    for (let round = 0; round < 1000; round++) {
      a.messenger.send('b', Channel.raft, nothing)
      await world.runtime.advance(1)
    }
    expect(b.messenger.counters.wrongCluster).to.equal(1000)
    expect(b.transport.sent.length).to.be.within(5, 15)
  })

  it('hazard E1.21: a node that says it is this node is refused', async () => {
    const world = new World()
    const [a, b] = [await world.node('a', { nodeId: 'same' }), await world.node('b', { nodeId: 'same' })]
    b.messenger.handle('echo', (_, payload) => payload)
    expect(await world.failure(a.messenger.request('b', 'echo', nothing))).to.include({ code: 'WRONG_NODE' })
    expect(b.refusals[0]?.kind).to.equal('wrong-node')
    // But a node may talk to itself.
    a.messenger.handle('echo', (_, payload) => payload)
    await world.runtime.settle(a.messenger.request('a', 'echo', nothing))
  })

  it('hazard E1.22: two ends with one node id each get their own replies', async () => {
    const world = new World()
    const b = await world.node('b')
    b.messenger.handle('who', async (from) => Buffer.from(from.address))
    const [one, other] = [await world.node('x', { nodeId: 'twin' }), await world.node('y', { nodeId: 'twin' })]
    const replies = await world.runtime.settle(
      Promise.all(Array.from({ length: 50 }, (_, number) => (number % 2 === 0 ? one : other).messenger.request('b', 'who', nothing))),
    )
    expect(replies.map(String)).to.deep.equal(Array.from({ length: 50 }, (_, number) => (number % 2 === 0 ? 'x' : 'y')))
  })

  it('a node that has no cluster yet says so to whoever takes it for a member: what was sent there is lost', async () => {
    const world = new World()
    const [client, founder] = [await world.node('client'), await world.node('founder', { clusterId: unknownClusterId, openMethods: ['describe'] })]
    founder.messenger.handle('describe', () => nothing)
    const states: string[] = []
    client.messenger.onPeerState((address, state) => states.push(`${address} ${state}`))
    client.messenger.send('founder', Channel.kvRequest, nothing)
    await world.runtime.advance(50)
    expect(states).to.include('founder lost')
    expect(founder.transport.sent.length).to.equal(1)
    // But what it does answer it goes on answering.
    await world.runtime.settle(founder.messenger.request('client', 'none', nothing).catch(() => {}))
    expect(client.messenger.counters.refusedByPeer).to.equal(1)
  })

  it('a node that knows no cluster can ask open methods, large replies included, and nothing else', async () => {
    const world = new World(1, { maxFrameBytes: 10_000 })
    const member = await world.node('member', { openMethods: ['describe'] })
    const stranger = await world.node('stranger', { clusterId: unknownClusterId })
    const description = pattern(300_000)
    let delivered = 0
    member.messenger.handle('describe', async () => description)
    member.messenger.handle('secret', () => description)
    member.messenger.onMessage(Channel.raft, () => delivered++)
    stranger.messenger.onMessage(Channel.raft, () => delivered++)
    for (let channel = 16; channel < 256; channel++) member.messenger.onMessage(channel as Channel, () => delivered++)
    stranger.messenger.handle('describe', () => nothing)
    expect(sameBytes(await world.runtime.settle(stranger.messenger.request('member', 'describe', nothing)), description)).to.equal(true)
    expect(await world.failure(stranger.messenger.request('member', 'secret', nothing))).to.include({ code: 'WRONG_CLUSTER' })
    expect(await world.failure(stranger.messenger.request('member', 'no-such', nothing))).to.include({ code: 'WRONG_CLUSTER' })
    stranger.messenger.send('member', Channel.raft, nothing)
    stranger.messenger.send('member', Channel.raft, pattern(50_000))
    for (let channel = 16; channel < 256; channel++) stranger.messenger.send('member', channel as Channel, nothing)
    for (const size of [0, 50_000]) member.messenger.send('stranger', Channel.raft, pattern(size))
    await world.runtime.advance(1000)
    expect(delivered).to.equal(0)
    expect(member.messenger.counters.notOpen).to.be.above(2)
    // A stranger answers nobody, not even for what would be open.
    expect((await world.failure(member.messenger.request('stranger', 'describe', nothing, { timeoutMs: 500 }))).code).to.equal('TIMEOUT')
  })

  it('once it has learned the cluster id it is a full peer', async () => {
    const world = new World()
    const member = await world.node('member', { openMethods: ['describe'] })
    const stranger = await world.node('stranger', { clusterId: unknownClusterId })
    member.messenger.handle('describe', () => clusterId)
    member.messenger.handle('echo', (_, payload) => payload)
    let delivered = 0
    for (const { messenger } of [member, stranger]) messenger.onMessage(Channel.raft, () => delivered++)
    const learned = await world.runtime.settle(stranger.messenger.request('member', 'describe', nothing))
    stranger.messenger.setClusterId(learned)
    await world.runtime.settle(stranger.messenger.request('member', 'echo', nothing))
    stranger.messenger.send('member', Channel.raft, nothing)
    member.messenger.send('stranger', Channel.raft, nothing)
    await world.runtime.advance(1)
    expect(delivered).to.equal(2)
  })

  it('two nodes that know no cluster can ask each other open methods', async () => {
    const world = new World()
    const options = { clusterId: unknownClusterId, openMethods: ['describe'] }
    const [a, b] = [await world.node('a', options), await world.node('b', options)]
    b.messenger.handle('describe', () => Buffer.from('I know nothing'))
    b.messenger.handle('secret', () => nothing)
    expect(String(await world.runtime.settle(a.messenger.request('b', 'describe', nothing)))).to.equal('I know nothing')
    expect(await world.failure(a.messenger.request('b', 'secret', nothing))).to.include({ code: 'WRONG_CLUSTER' })
  })
})

describe('Messenger: bad frames', () => {
  /** A node, an end that can send it anything, and a good peer. */
  async function attacked(seed: number) {
    const world = new World(seed, { peerStates: false })
    const node = await world.node('node')
    const good = await world.node('good')
    const delivered: Buffer[] = []
    node.messenger.onMessage(Channel.raft, (_, body) => delivered.push(Buffer.from(body)))
    node.messenger.handle('echo', (_, payload) => payload)
    const attacker = world.network.transport('attacker')
    await attacker.open(() => {})
    const stillServes = async (): Promise<void> => {
      const reply = await world.runtime.settle(good.messenger.request('node', 'echo', Buffer.from('fine')))
      expect(String(reply)).to.equal('fine')
    }
    return { world, node, attacker, delivered, stillServes }
  }

  function soundFrame(): Buffer {
    const builder = new FrameBuilder(encodeHeader(clusterId, 'node-attacker'), 4096)
    builder.begin(Channel.raft, 20)
    builder.raw(pattern(20))
    builder.begin(SystemChannel.request, 4 + 1 + 1 + 4 + 3)
    builder.u32(1)
    builder.varint(1)
    builder.varint(4)
    builder.raw(Buffer.from('echo'))
    builder.raw(Buffer.from('abc'))
    return builder.seal()
  }

  it('hazard E1.9: every single flipped bit is noticed', async () => {
    const { world, node, attacker, delivered, stillServes } = await attacked(1)
    const sound = soundFrame()
    for (let bit = 0; bit < sound.length * 8; bit++) {
      const flipped = Buffer.from(sound)
      flipped[bit >> 3]! ^= 1 << (bit & 7)
      attacker.send('node', flipped)
    }
    await world.runtime.advance(1)
    expect(delivered).to.have.length(0)
    const { badChecksum, malformed, wrongProtocol } = node.messenger.counters
    expect(badChecksum + malformed + wrongProtocol).to.equal(sound.length * 8)
    expect([malformed, wrongProtocol]).to.deep.equal([16, 8])
    await stillServes()
    attacker.send('node', sound)
    await world.runtime.advance(1)
    expect(delivered).to.have.length(1)
  })

  it('hazard E1.4: every frame cut short is refused', async () => {
    const { world, node, attacker, delivered, stillServes } = await attacked(1)
    const sound = soundFrame()
    for (let length = 1; length < sound.length; length++) attacker.send('node', sound.subarray(0, length))
    await world.runtime.advance(1)
    expect(delivered).to.have.length(0)
    const { badChecksum, malformed } = node.messenger.counters
    expect(badChecksum + malformed).to.equal(sound.length - 1)
    await stillServes()
  })

  it('hazard E1.10: another protocol version is refused by name', async () => {
    const { world, node, attacker } = await attacked(1)
    const frame = soundFrame()
    frame[2] = 2
    attacker.send('node', frame)
    await world.runtime.advance(1)
    expect(node.refusals[0]?.kind).to.equal('wrong-protocol')
  })

  it('hazard E1.7, E1.17: a section with bytes too many, too few, or integers out of range touches nothing', async () => {
    const { world, node, attacker, delivered, stillServes } = await attacked(1)
    const bodies: [channel: number, body: Buffer][] = [
      [SystemChannel.request, Buffer.alloc(0)],
      [SystemChannel.request, Buffer.from([0, 0, 0, 1, 1, 200])],
      [SystemChannel.request, Buffer.from([0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])],
      [SystemChannel.request, Buffer.from([0, 0, 0, 1, 0x81, 0x00, 1, 65])],
      [SystemChannel.request, Buffer.from([0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 65])],
      [SystemChannel.reply, Buffer.alloc(3)],
      [SystemChannel.errorReply, Buffer.alloc(4)],
      [SystemChannel.cancel, Buffer.alloc(2)],
      [SystemChannel.chunk, Buffer.alloc(5)],
      [SystemChannel.chunkAck, Buffer.alloc(4)],
      [SystemChannel.refused, Buffer.alloc(0)],
      [15, Buffer.alloc(4)],
      [255, Buffer.alloc(4)],
    ]
    for (const [channel, body] of bodies) {
      const builder = new FrameBuilder(encodeHeader(clusterId, 'node-attacker'), 4096)
      builder.begin(channel, body.length)
      builder.raw(body)
      attacker.send('node', builder.seal())
    }
    await world.runtime.advance(1)
    expect(node.refusals).to.have.length(bodies.length - 1 + 0)
    expect(delivered).to.have.length(0)
    expect(node.handlerErrors).to.deep.equal([])
    await stillServes()
  })

  it('hazard E1.13: a frame of a hundred thousand sections costs no hundred thousand reports', async () => {
    const { world, node, attacker, stillServes } = await attacked(1)
    const builder = new FrameBuilder(encodeHeader(clusterId, 'node-attacker'), 1_000_000)
    for (let number = 0; number < 100_000; number++) builder.begin(200, 0)
    attacker.send('node', builder.seal())
    await world.runtime.advance(1)
    expect(node.messenger.counters.unknownChannel).to.equal(100_000)
    expect(node.refusals).to.have.length(100)
    await stillServes()
  })

  it('hazard E1.14: method names are looked up in a Map: none is found on a prototype', async () => {
    const { world, stillServes } = await attacked(1)
    const asking = await world.node('asking')
    for (const method of ['__proto__', 'constructor', 'prototype', 'toString', 'then', 'hasOwnProperty'])
      expect(await world.failure(asking.messenger.request('node', method, nothing))).to.include({ code: 'UNKNOWN_METHOD' })
    await stillServes()
  })

  it('hazard E1.8: bytes of chance, bare or within a sound frame, never get through nor throw', async () => {
    const { world, node, attacker, delivered, stillServes } = await attacked(1)
    let round = 0
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), fc.boolean(), fc.integer({ min: 0, max: 8 }), async (bytes, sound, channel) => {
        let frame: Uint8Array = bytes
        if (sound) {
          const builder = new FrameBuilder(encodeHeader(clusterId, 'node-attacker'), 4096)
          builder.begin(channel, bytes.length)
          builder.raw(bytes)
          frame = builder.seal()
        }
        attacker.send('node', frame)
        await world.runtime.advance(0.1)
        if (++round % 100 === 0) await stillServes()
      }),
      { numRuns: 3000 },
    )
    expect(delivered).to.have.length(0)
    expect(node.handlerErrors).to.deep.equal([])
    await stillServes()
  })

  it('hazard p9: hooks that throw stop nothing', async () => {
    const warnings: string[] = []
    const noteWarning = (warning: Error): void => void warnings.push(warning.message)
    process.on('warning', noteWarning)
    try {
      const world = new World()
      const [a, b] = [
        await world.node('a'),
        await world.node('b', {
          onRefused: () => {
            throw new Error('broken onRefused')
          },
          onHandlerError: (error) => {
            throw error
          },
        }),
      ]
      b.messenger.handle('echo', (_, payload) => payload)
      a.messenger.send('b', 99 as Channel, nothing)
      expect(String(await world.runtime.settle(a.messenger.request('b', 'echo', Buffer.from('fine'))))).to.equal('fine')
      expect(b.messenger.counters.handlerErrors).to.equal(1)
      await new Promise((resolve) => setImmediate(resolve))
      expect(warnings).to.deep.equal(['broken onRefused'])
    } finally {
      process.off('warning', noteWarning)
    }
  })

  it('FrameReader reads back what FrameBuilder wrote, at every size of frame and section', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 200, max: 5000 }),
        fc.array(fc.tuple(fc.integer({ min: 1, max: 255 }), fc.uint8Array({ maxLength: 400 })), { maxLength: 60 }),
        (maxBytes, messages) => {
          const header = encodeHeader(clusterId, 'n')
          const builder = new FrameBuilder(header, maxBytes)
          const frames: Buffer[] = []
          const written: [number, Uint8Array][] = []
          for (const [channel, body] of messages) {
            if (body.length > builder.maxBodyBytes) {
              expect(builder.begun || !builder.begin(channel, body.length)).to.equal(true)
              continue
            }
            if (!builder.begin(channel, body.length)) {
              frames.push(builder.seal())
              expect(builder.begin(channel, body.length)).to.equal(true)
            }
            builder.raw(body)
            written.push([channel, body])
          }
          if (builder.begun) frames.push(builder.seal())
          const read: [number, Uint8Array][] = []
          for (const frame of frames) {
            expect(frame.length).to.be.at.most(maxBytes)
            const reader = new FrameReader(frame)
            expect(reader.check()).to.equal(null)
            expect(reader.startsWith(header)).to.equal(true)
            while (reader.next()) read.push([reader.channel, Uint8Array.from(reader.rest())])
          }
          expect(read).to.deep.equal(written.map(([channel, body]) => [channel, Uint8Array.from(body)]))
        },
      ),
      { numRuns: 500 },
    )
  })
})
