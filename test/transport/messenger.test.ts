/** Messenger: one-way messages, coalescing, request and reply, on a simulated clock and network. */
import { expect } from 'chai'
import {
  ClosedError,
  ConditionFailedError,
  CorruptionError,
  InvalidArgumentError,
  OutcomeUnknownError,
  OverloadedError,
  QuorateError,
  RefusedError,
  UnavailableError,
} from '../../src/base/errors.js'
import { encodeHeader, FrameBuilder, SystemChannel } from '../../src/transport/frame.js'
import { Channel } from '../../src/transport/messenger.js'
import { clusterId, pattern, quiet, sameBytes, World } from './support.js'

const nothing = new Uint8Array(0)

describe('Messenger: one-way messages', () => {
  it('sends all that a turn queues for a peer in one frame, and one frame to each peer', async () => {
    const world = new World()
    const [a, b, c] = [await world.node('a'), await world.node('b'), await world.node('c')]
    const got: string[] = []
    for (const node of [b, c]) node.messenger.onMessage(Channel.raft, (from, body) => got.push(`${from.nodeId}@${from.address} ${Buffer.from(body)}`))
    for (let number = 0; number < 500; number++) a.messenger.send(number % 2 === 0 ? 'b' : 'c', Channel.raft, Buffer.from(`message ${number}`))
    expect(a.transport.sent).to.have.length(0)
    await world.runtime.advance(1)
    expect(a.transport.sent.map(({ to }) => to)).to.deep.equal(['b', 'c'])
    expect(got).to.have.length(500)
    expect(got[0]).to.equal('node-a@a message 0')
    expect(got[499]).to.equal('node-a@a message 499')
  })

  it("keeps the order of a peer's messages on a network that does", async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    const got: number[] = []
    b.messenger.onMessage(Channel.raft, (_, body) => got.push(Number(Buffer.from(body))))
    for (let number = 0; number < 300; number++) {
      a.messenger.send('b', Channel.raft, Buffer.from(String(number)))
      if (number % 7 === 0) a.messenger.flush()
      if (number % 31 === 0) await world.runtime.advance(1)
    }
    await world.runtime.advance(1)
    expect(got).to.deep.equal(Array.from({ length: 300 }, (_, number) => number))
  })

  it('flush sends at once, and the end of the turn only what came after it', async () => {
    const world = new World()
    const [a] = [await world.node('a'), await world.node('b')]
    a.messenger.send('b', Channel.raft, Buffer.from('one'))
    a.messenger.flush()
    expect(a.transport.sent).to.have.length(1)
    a.messenger.flush()
    expect(a.transport.sent).to.have.length(1)
    a.messenger.send('b', Channel.raft, Buffer.from('two'))
    await world.runtime.advance(1)
    expect(a.transport.sent).to.have.length(2)
  })

  it('makes no frame larger than the transport carries, and as few as fit', async () => {
    const world = new World(1, { maxFrameBytes: 2048 })
    const [a, b] = [await world.node('a'), await world.node('b')]
    let bytes = 0
    b.messenger.onMessage(Channel.raft, (_, body) => {
      bytes += body.length
    })
    for (let number = 0; number < 100; number++) a.messenger.send('b', Channel.raft, pattern(100, number))
    await world.runtime.advance(1)
    expect(bytes).to.equal(10_000)
    for (const { frame } of a.transport.sent) expect(frame.length).to.be.at.most(2048)
    expect(a.transport.sent).to.have.length(Math.ceil(100 / Math.floor((2048 - 22) / 102)))
  })

  it('copies the body: the caller may reuse it at once', async () => {
    const world = new World(1, { maxFrameBytes: 4096 })
    const [a, b] = [await world.node('a'), await world.node('b')]
    const got: Buffer[] = []
    b.messenger.onMessage(Channel.raft, (_, body) => got.push(Buffer.from(body)))
    for (const size of [10, 100_000]) {
      const body = pattern(size, 5)
      a.messenger.send('b', Channel.raft, body)
      body.fill(0)
    }
    await world.runtime.advance(1000)
    expect(got.map((body) => sameBytes(body, pattern(body.length, 5)))).to.deep.equal([true, true])
  })

  it('bodies are views that stay as they are', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    const kept: Uint8Array[] = []
    b.messenger.onMessage(Channel.raft, (_, body) => kept.push(body))
    for (let number = 0; number < 1000; number++) {
      a.messenger.send('b', Channel.raft, pattern(90, number))
      if (number % 10 === 0) await world.runtime.advance(1)
    }
    await world.runtime.advance(1)
    expect(kept.every((body, number) => sameBytes(body, pattern(90, number)))).to.equal(true)
  })

  it('delivers to itself in a later turn, without the transport, even when flushed', async () => {
    const world = new World()
    const a = await world.node('a')
    const got: string[] = []
    a.messenger.onMessage(Channel.raft, (from, body) => got.push(`${from.nodeId}@${from.address} ${Buffer.from(body)}`))
    a.messenger.send('a', Channel.raft, Buffer.from('hello'))
    a.messenger.flush()
    expect(got).to.deep.equal([])
    await world.runtime.advance(1)
    expect(got).to.deep.equal(['node-a@a hello'])
    expect(a.transport.sent).to.have.length(0)
  })

  it('bounds what a turn may queue for the node itself', async () => {
    const world = new World()
    const a = await world.node('a')
    let bytes = 0
    a.messenger.onMessage(Channel.raft, (_, body) => {
      bytes += body.length
    })
    const body = pattern(1_000_000)
    for (let number = 0; number < 100; number++) a.messenger.send('a', Channel.raft, body)
    await world.runtime.advance(1)
    expect(bytes).to.be.within(60_000_000, 64 * 1024 * 1024)
    expect(a.messenger.counters.messagesDropped).to.equal(100 - bytes / 1_000_000)
    a.messenger.send('a', Channel.raft, body)
    await world.runtime.advance(1)
    expect(a.messenger.counters.messagesDropped).to.equal(100 - (bytes - 1_000_000) / 1_000_000)
  })

  it('send before open and after close never throws, and is counted', async () => {
    const world = new World()
    const a = await world.node('a')
    await a.messenger.close()
    a.messenger.send('b', Channel.raft, nothing)
    a.messenger.flush()
    expect(a.messenger.counters.messagesDropped).to.equal(1)
    await a.messenger.close()
  })

  it('a handler that throws CorruptionError counts as malformed, any other error as a bug of the handler; the rest of the frame is delivered', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    let delivered = 0
    b.messenger.onMessage(Channel.raft, (_, body) => {
      if (body[0] === 1) throw new CorruptionError('bad', 'MALFORMED')
      if (body[0] === 2) throw new TypeError('bug')
      delivered++
    })
    for (const kind of [1, 2, 3]) a.messenger.send('b', Channel.raft, Uint8Array.of(kind))
    await world.runtime.advance(1)
    expect(delivered).to.equal(1)
    expect(b.messenger.counters.malformed).to.equal(1)
    expect(b.refusals.map(({ kind }) => kind)).to.deep.equal(['malformed'])
    expect(b.handlerErrors.map(String)).to.deep.equal(['TypeError: bug'])
  })

  it('hazard E1.10: an unknown channel is counted and reported, and the rest of the frame delivered', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    let delivered = 0
    b.messenger.onMessage(Channel.raft, () => delivered++)
    a.messenger.send('b', 99 as Channel, nothing)
    a.messenger.send('b', Channel.raft, nothing)
    await world.runtime.advance(1)
    expect(b.messenger.counters.unknownChannel).to.equal(1)
    expect(b.refusals[0]).to.include({ kind: 'unknown-channel', from: 'a' })
    expect(delivered).to.equal(1)
  })
})

describe('Messenger: request and reply', () => {
  it('answers, sync and async, to others and to itself', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    for (const node of [a, b]) {
      node.messenger.handle('echo', (from, payload) => Buffer.concat([Buffer.from(`${from.nodeId} `), payload]))
      node.messenger.handle('later', async (from, payload) => {
        await world.runtime.sleep(20)
        return Buffer.concat([Buffer.from(`${from.address} `), payload])
      })
    }
    for (const to of ['a', 'b']) {
      expect(String(await world.runtime.settle(a.messenger.request(to, 'echo', Buffer.from('x'))))).to.equal('node-a x')
      expect(String(await world.runtime.settle(a.messenger.request(to, 'later', Buffer.from('y'))))).to.equal('a y')
    }
  })

  it('many at once: each gets its own reply, all of a turn in one frame each way', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    b.messenger.handle('double', (_, payload) => Buffer.from(String(2 * Number(Buffer.from(payload)))))
    const replies = await world.runtime.settle(
      Promise.all(Array.from({ length: 1000 }, (_, number) => a.messenger.request('b', 'double', Buffer.from(String(number))))),
    )
    expect(replies.map((reply) => Number(Buffer.from(reply)))).to.deep.equal(Array.from({ length: 1000 }, (_, number) => 2 * number))
    expect(a.transport.sent).to.have.length(1)
    expect(b.transport.sent).to.have.length(1)
  })

  it('carries class, code, message and retryable of a QuorateError', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    const errors: [QuorateError, new (...args: never[]) => QuorateError][] = [
      [new InvalidArgumentError('key is empty', 'EMPTY_KEY'), InvalidArgumentError],
      [new UnavailableError('later', 'TIMEOUT'), UnavailableError],
      [new OverloadedError('slow down'), OverloadedError],
      [new OutcomeUnknownError('who knows'), OutcomeUnknownError],
      [new RefusedError('WRONG_NODE', 'not me'), RefusedError],
      [new CorruptionError('bits', 'CORRUPTION'), CorruptionError],
      [new QuorateError('LOST_LEASE', 'gone', false), QuorateError],
      [new ConditionFailedError('changed', 3, 4), QuorateError],
    ]
    let turn = 0
    b.messenger.handle('fail', () => {
      throw errors[turn]?.[0]
    })
    b.messenger.handle('fail-later', () => Promise.reject(errors[turn]?.[0]))
    for (; turn < errors.length; turn++) {
      const [thrown, kind] = errors[turn]!
      for (const method of ['fail', 'fail-later']) {
        const error = await world.failure(a.messenger.request('b', method, nothing))
        expect(error).to.be.instanceOf(kind)
        expect(error).to.include({ code: thrown.code, retryable: thrown.retryable })
        expect(error.message).to.equal(`${thrown.message} (b)`)
      }
    }
    expect(b.handlerErrors).to.deep.equal([])
  })

  it('gives INTERNAL without a stack for any other error, and reports it at home', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    b.messenger.handle('bug', async () => {
      throw new TypeError('x is not a function')
    })
    b.messenger.handle('string', () => {
      throw 'text'
    })
    b.messenger.handle('nothing', (async () => undefined) as unknown as () => Promise<Uint8Array>)
    const error = await world.failure(a.messenger.request('b', 'bug', nothing))
    expect(error).to.be.instanceOf(QuorateError)
    expect(error).to.include({ code: 'INTERNAL', retryable: false, message: 'x is not a function (b)' })
    expect(await world.failure(a.messenger.request('b', 'string', nothing))).to.include({ code: 'INTERNAL' })
    expect(await world.failure(a.messenger.request('b', 'nothing', nothing))).to.include({ code: 'INTERNAL' })
    expect(b.handlerErrors).to.have.length(3)
    expect(b.transport.sent.some(({ frame }) => frame.includes('messenger.test'))).to.equal(false)
  })

  it('another node that closes is unavailable, not closed: the caller goes to the next', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    b.messenger.handle('closing', () => {
      throw new ClosedError('node is closing')
    })
    const error = await world.failure(a.messenger.request('b', 'closing', nothing))
    expect(error).to.be.instanceOf(UnavailableError)
    expect(error.retryable).to.equal(true)
  })

  it('refuses what cannot be asked', async () => {
    const world = new World()
    const [a, b] = [await world.node('a', { maxMessageBytes: 10_000 }), await world.node('b')]
    expect(await world.failure(a.messenger.request('b', 'nobody-home', nothing))).to.include({ code: 'UNKNOWN_METHOD' })
    expect(b.messenger.counters.unknownMethod).to.equal(1)
    for (const method of ['', 'with space', 'ä', 'x'.repeat(65)]) {
      expect(await world.failure(a.messenger.request('b', method, nothing))).to.be.instanceOf(InvalidArgumentError)
      expect(() => a.messenger.handle(method, () => nothing)).to.throw(InvalidArgumentError)
    }
    expect(await world.failure(a.messenger.request('b', 'large', new Uint8Array(20_000)))).to.include({ code: 'MESSAGE_TOO_LARGE' })
    for (const timeoutMs of [-1, Number.NaN])
      expect(await world.failure(a.messenger.request('b', 'x', nothing, { timeoutMs }))).to.be.instanceOf(InvalidArgumentError)
  })

  it('times out, not early and at most 1/16 late, and tells the handler', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    const aborted: unknown[] = []
    b.messenger.handle('never', (_from, _payload, signal) => {
      signal.addEventListener('abort', () => aborted.push(signal.reason))
      return new Promise<Uint8Array>(() => {})
    })
    for (const timeoutMs of [1, 5, 100, 333, 9_876.5]) {
      const startMs = world.runtime.nowMs()
      const error = await world.failure(a.messenger.request('b', 'never', nothing, { timeoutMs }))
      const tookMs = world.runtime.nowMs() - startMs
      expect(error).to.be.instanceOf(UnavailableError)
      expect(error.code).to.equal('TIMEOUT')
      expect(tookMs).to.be.within(timeoutMs, timeoutMs * (1 + 1 / 16) + 1)
    }
    await world.runtime.advance(1)
    expect(aborted).to.have.length(5)
    expect(a.messenger.counters.requestsTimedOut).to.equal(5)
  })

  it("a caller's signal ends the wait with its reason, and tells the handler", async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    let handlerSignal: AbortSignal | null = null
    b.messenger.handle('never', (_from, _payload, signal) => {
      handlerSignal = signal
      return new Promise<Uint8Array>(() => {})
    })
    const controller = new AbortController()
    const reason = new Error('changed my mind')
    const request = a.messenger.request('b', 'never', nothing, { signal: controller.signal, timeoutMs: Number.POSITIVE_INFINITY })
    await world.runtime.advance(1)
    controller.abort(reason)
    expect(await world.failure(request)).to.equal(reason)
    await world.runtime.advance(1)
    expect(handlerSignal!.aborted).to.equal(true)
    expect(await world.failure(a.messenger.request('b', 'never', nothing, { signal: controller.signal }))).to.equal(reason)
  })

  it('answers OVERLOADED beyond the handlers that may run, and serves again when they are done', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b', { maxConcurrentRequests: 10, maxConcurrentRequestsPerPeer: 10 })]
    b.messenger.handle('slow', async () => {
      await world.runtime.sleep(50)
      return nothing
    })
    const results = await world.runtime.settle(Promise.allSettled(Array.from({ length: 15 }, () => a.messenger.request('b', 'slow', nothing))))
    const failed = results.filter((result) => result.status === 'rejected')
    expect(failed).to.have.length(5)
    for (const { reason } of failed) {
      expect(reason).to.be.instanceOf(OverloadedError)
      expect(reason.retryable).to.equal(true)
    }
    await world.runtime.settle(a.messenger.request('b', 'slow', nothing))
    expect(b.messenger.counters.requestsOverloaded).to.equal(5)
  })

  it('leaves handlers for the others when one peer asks for all of them', async () => {
    const world = new World()
    const [a, b, c] = [await world.node('a'), await world.node('b', { maxConcurrentRequests: 40 }), await world.node('c')]
    b.messenger.handle('slow', async () => {
      await world.runtime.sleep(50)
      return nothing
    })
    const greedy = Promise.allSettled(Array.from({ length: 100 }, () => a.messenger.request('b', 'slow', nothing)))
    await world.runtime.advance(1)
    await world.runtime.settle(c.messenger.request('b', 'slow', nothing))
    const results = await world.runtime.settle(greedy)
    expect(results.filter(({ status }) => status === 'fulfilled')).to.have.length(10)
  })

  it('bounds the requests that wait', async () => {
    const world = new World()
    const [a] = [await world.node('a', { maxPendingRequests: 3 }), await world.node('b')]
    const waiting = Array.from({ length: 3 }, () => quiet(a.messenger.request('silence', 'x', nothing, { timeoutMs: 100 })))
    expect(await world.failure(a.messenger.request('b', 'x', nothing))).to.be.instanceOf(OverloadedError)
    for (const request of waiting) await world.failure(request)
  })

  it('close rejects what waits and stops what runs', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    let handlerSignal: AbortSignal | null = null
    b.messenger.handle('never', (_from, _payload, signal) => {
      handlerSignal = signal
      return new Promise<Uint8Array>(() => {})
    })
    const request = quiet(a.messenger.request('b', 'never', nothing))
    await world.runtime.advance(1)
    await b.messenger.close()
    expect(handlerSignal!.aborted).to.equal(true)
    const another = quiet(a.messenger.request('a', 'never', nothing))
    await a.messenger.close()
    expect(await world.failure(another)).to.be.instanceOf(ClosedError)
    expect(await world.failure(request)).to.be.instanceOf(ClosedError)
    expect(await world.failure(a.messenger.request('b', 'x', nothing))).to.be.instanceOf(ClosedError)
  })

  it("fails at once, retryable, when the transport loses the peer; the peer's handlers are told", async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    let handlerSignal: AbortSignal | null = null
    for (const node of [a, b])
      node.messenger.handle('never', (_from, _payload, signal) => {
        handlerSignal = signal
        return new Promise<Uint8Array>(() => {})
      })
    const states: string[] = []
    a.messenger.onPeerState((address, state) => states.push(`${address} ${state}`))
    const asked = a.messenger.request('b', 'never', nothing, { timeoutMs: 60_000 })
    const answering = b.messenger.request('a', 'never', nothing)
    answering.catch(() => {})
    await world.runtime.advance(10)
    world.network.crash('b')
    const error = await world.failure(asked)
    expect(error).to.be.instanceOf(UnavailableError)
    expect(error.code).to.equal('UNAVAILABLE')
    expect(world.runtime.nowMs()).to.be.below(1000)
    expect(handlerSignal!.aborted).to.equal(true)
    expect(states).to.deep.equal(['b connected', 'b lost'])
    expect((await world.failure(a.messenger.request('nobody', 'x', nothing))).code).to.equal('UNAVAILABLE')
  })

  it('hazard E1.23: repeated frames run a handler once while it runs, and settle a request once', async () => {
    const world = new World(1, { faults: { repeatProbability: 1 } })
    const [a, b] = [await world.node('a'), await world.node('b')]
    let runs = 0
    b.messenger.handle('slow', async () => {
      runs++
      await world.runtime.sleep(50)
      return Buffer.from(String(runs))
    })
    expect(String(await world.runtime.settle(a.messenger.request('b', 'slow', nothing)))).to.equal('1')
    await world.runtime.advance(1000)
    expect(runs).to.equal(1)
    expect(b.messenger.counters.requestsRepeated).to.equal(1)
    expect(a.messenger.counters.repliesIgnored).to.equal(1)
  })

  it('hazard E1.23: late replies, replies from elsewhere, and replies to an earlier life of the node are ignored', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    b.messenger.handle('slow', async () => {
      await world.runtime.sleep(50)
      return Buffer.from('true reply')
    })
    await world.failure(a.messenger.request('b', 'slow', nothing, { timeoutMs: 10 }))
    // The request of the same number, in the next life of a.
    const again = a.messenger.request('b', 'slow', nothing)
    await world.runtime.advance(1)
    const requestFrame = a.transport.sent.at(-1)?.frame as Buffer
    const header = encodeHeader(clusterId, 'node-x')
    const session = requestFrame.readUInt32BE(encodeHeader(clusterId, 'node-a').length + 2)
    const forge = (nodeId: string, forgedSession: number): Buffer => {
      const builder = new FrameBuilder(nodeId === 'node-x' ? header : encodeHeader(clusterId, nodeId), 4096)
      builder.begin(SystemChannel.reply, 4 + 1 + 6)
      builder.u32(forgedSession)
      builder.varint(2)
      builder.raw(Buffer.from('forged'))
      return builder.seal()
    }
    const elsewhere = world.network.transport('x')
    await elsewhere.open(() => {})
    // Right number and session, wrong sender.
    elsewhere.send('a', forge('node-x', session))
    // Right sender, wrong session: what the peer would reply to an earlier life.
    b.transport.send('a', forge('node-b', (session ^ 1) >>> 0))
    expect(String(await world.runtime.settle(again))).to.equal('true reply')
    // The two, and the late one to the first request.
    expect(a.messenger.counters.repliesIgnored).to.equal(3)
  })

  it('a restarted requester does not get the replies of its earlier life', async () => {
    const world = new World()
    const b = await world.node('b')
    b.messenger.handle('slow', async (_, payload) => {
      await world.runtime.sleep(100)
      return payload
    })
    const first = await world.node('a')
    first.messenger.request('b', 'slow', Buffer.from('first')).catch(() => {})
    await world.runtime.advance(1)
    world.network.crash('a', { silent: true })
    const second = await world.node('a')
    const reply = second.messenger.request('b', 'slow', Buffer.from('second'))
    expect(String(await world.runtime.settle(reply))).to.equal('second')
    await world.runtime.advance(1000)
    expect(second.messenger.counters.repliesIgnored + b.messenger.counters.requestsRepeated).to.equal(1)
    await first.messenger.close()
  })

  it('forgets peers that nothing is under way with, when they are many', async () => {
    for (const peerStates of [true, false]) {
      const world = new World(1, { peerStates })
      const a = await world.node('a')
      a.messenger.handle('echo', async (_, payload) => payload)
      for (let number = 0; number < 3000; number++) {
        // One that is asked, and one that asks.
        quiet(a.messenger.request(`nobody-${number}`, 'echo', nothing, { timeoutMs: 10 }))
        const { messenger } = await world.node(`client-${number}`)
        await world.runtime.settle(messenger.request('a', 'echo', nothing))
        await messenger.close()
        if (number % 100 === 0) await world.runtime.advance(20)
      }
      expect(a.messenger.status().peers).to.be.below(1024 + 64 + 1)
    }
  })

  it('leaves no timer behind when all is answered and closed', async () => {
    const world = new World()
    const [a, b] = [await world.node('a'), await world.node('b')]
    b.messenger.handle('echo', (_, payload) => payload)
    for (let round = 0; round < 100; round++) await world.runtime.settle(a.messenger.request('b', 'echo', nothing, { timeoutMs: 1000 + round }))
    await world.close()
    const before = world.runtime.eventsRun
    await world.runtime.advance(100_000)
    expect(world.runtime.eventsRun - before).to.be.at.most(2)
  })
})
