/**
 * The conformance suite of transport adapters: what the Messenger relies on, as tests. It needs a test runner's `describe` and `it` and nothing else
 * (mocha, jest, vitest and node:test fit). How to use it: docs/writing-a-transport.md.
 *
 * 1. Every test makes its own ends and closes them, whatever happens. 2. Nothing waits for a fixed time: tests wait for a condition, and fail when it
 * does not come true in `patienceMs`. 3. The network of the fixture is whole: a lossless adapter loses nothing but by what a test does; of the others no more is asked
 * than that a frame sent often enough arrives.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { Address, PeerState, Transport } from '../transport/transport.js'

/** What the suite needs of an adapter. */
export interface TransportFixture {
  /**
   * Makes an end that others can reach; the suite opens and closes it. With an address: a later end at the same address as an earlier, closed one
   * (what a restarted process would make).
   */
  listener(address?: Address): Transport
  /** Makes an end without an address that others can reach, which is answered all the same. Needed when the manifest says `dialOnly`. */
  dialOnly?(): Transport
  /** Bytes that the adapter keeps for one peer at most. */
  readonly maxQueueBytes: number
  /** An address at which nobody is. */
  readonly nowhere: Address
  /** Lets go of what the fixture itself holds. */
  dispose?(): Promise<void> | void
}

/** What an adapter can do beyond the least: decides which tests there are. */
export interface TransportManifest {
  /** Ends without an address of their own. */
  readonly dialOnly: boolean
  /** It implements `onPeerState`. */
  readonly peerStates: boolean
  /** Within its bounds, and between two ends that stay up, every frame arrives, once. */
  readonly lossless: boolean
}

export interface TransportSuiteOptions {
  readonly describe: (title: string, suite: () => void) => unknown
  readonly it: (title: string, test: () => Promise<void>) => unknown
  /** The adapter's name, for the titles. */
  readonly name: string
  readonly manifest: TransportManifest
  /** Makes a fixture; called once per test. */
  readonly create: () => TransportFixture | Promise<TransportFixture>
  /** How long a test waits for what must happen. Default 10 000. */
  readonly patienceMs?: number
}

interface Received {
  readonly from: Address
  readonly frame: Uint8Array
}

/** An open end with all that it received. */
class End {
  readonly transport: Transport
  readonly received: Received[] = []
  readonly states: { readonly peer: Address; readonly state: PeerState }[] = []
  /** Called for each frame; may throw. */
  onFrame: ((from: Address, frame: Uint8Array) => void) | null = null

  constructor(transport: Transport) {
    this.transport = transport
    transport.onPeerState?.((peer, state) => this.states.push({ peer, state }))
  }

  async open(): Promise<this> {
    await this.transport.open((from, frame) => {
      this.received.push({ from, frame })
      this.onFrame?.(from, frame)
    })
    return this
  }

  get address(): Address {
    return this.transport.address
  }

  send(to: End, frame: Uint8Array): void {
    this.transport.send(to.address, frame)
  }
}

/**
 * Defines the suite.
 *
 * ```ts
 * transportSuite({ describe, it, name: 'tcp', manifest: { dialOnly: true, peerStates: true, lossless: true }, create: () => ({
 *   listener: (address) => tcp({ listen: address ?? '127.0.0.1:0' }), dialOnly: () => tcp(), maxQueueBytes: 8 << 20, nowhere: '127.0.0.1:1',
 * }) })
 * ```
 */
export function transportSuite(options: TransportSuiteOptions): void {
  const patienceMs = options.patienceMs ?? 10_000

  async function until(what: string, condition: () => boolean, meanwhile?: () => void): Promise<void> {
    const endMs = performance.now() + patienceMs
    while (!condition()) {
      if (performance.now() > endMs) assert.fail(`waited ${patienceMs} ms in vain: ${what}`)
      meanwhile?.()
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
  }

  /** Sends all frames in one turn and waits until each has arrived, unchanged; a lossy adapter may try again, a lossless one delivers each once. */
  async function sendAll(what: string, transfers: readonly { from: End; to: End; frames: readonly Uint8Array[] }[]): Promise<void> {
    for (const { from, to, frames } of transfers) for (const frame of frames) from.send(to, Uint8Array.from(frame))
    let lookedMs = performance.now()
    const missing = (): boolean => transfers.some(({ to, frames }) => to.received.length < frames.length || unseen(to, frames).length > 0)
    await until(
      `${what} arrive`,
      () => !missing(),
      () => {
        if (options.manifest.lossless || performance.now() - lookedMs < 50) return
        lookedMs = performance.now()
        for (const { from, to, frames } of transfers) for (const frame of unseen(to, frames).slice(0, 50)) from.send(to, Uint8Array.from(frame))
      },
    )
    for (const { to, frames } of transfers) {
      const expected = new Set(frames.map(digest))
      assert.ok(
        to.received.every(({ frame }) => expected.has(digest(frame))),
        'a frame arrived changed',
      )
      if (options.manifest.lossless) assert.equal(to.received.length, frames.length, 'a frame arrived twice')
    }
  }

  /** Runs a test with ends of its own, all closed afterwards. */
  function test(title: string, body: (tools: Tools) => Promise<void>): void {
    options.it(title, async () => {
      const fixture = await options.create()
      const transports: Transport[] = []
      const tools: Tools = {
        fixture,
        make: (transport) => {
          transports.push(transport)
          return new End(transport)
        },
        listener: (address) => tools.make(fixture.listener(address)).open(),
      }
      try {
        await body(tools)
      } finally {
        await Promise.all(transports.map((transport) => transport.close()))
        await fixture.dispose?.()
      }
    })
  }

  interface Tools {
    readonly fixture: TransportFixture
    make(transport: Transport): End
    listener(address?: Address): Promise<End>
  }

  options.describe(`transport suite: ${options.name}`, () => {
    test('has an address of its own once open, and a frame limit of at least 1024 bytes', async ({ listener }) => {
      const one = await listener()
      const other = await listener()
      assert.notEqual(one.address, '')
      assert.notEqual(one.address, other.address)
      assert.ok(one.transport.maxFrameBytes >= 1024)
    })

    test('delivers frames of every size up to the limit, whole and unchanged', async ({ listener }) => {
      const one = await listener()
      const other = await listener()
      const limit = one.transport.maxFrameBytes
      const sizes = [1, 2, 3, 4, 5, 100, 1023, 1024, 4095, 16_383, 16_384, 16_385, 65_531, 65_536, 65_537, limit - 1, limit].filter(
        (size) => size <= limit,
      )
      const frames = sizes.map((size) => pattern(size, size))
      await sendAll('all sizes', [{ from: one, to: other, frames }])
    })

    test('delivers each of many frames of one turn', async ({ listener }) => {
      const one = await listener()
      const other = await listener()
      const frames = Array.from({ length: options.manifest.lossless ? 5000 : 500 }, (_, number) => numbered(number, 50))
      await sendAll('all frames', [{ from: one, to: other, frames }])
    })

    test('says from where a frame came: a frame sent there reaches the sender', async ({ listener }) => {
      const ends = [await listener(), await listener(), await listener()]
      for (const end of ends) {
        end.onFrame = (from, frame) => {
          if (frame[0] === 1) end.transport.send(from, Uint8Array.of(2, ...frame.subarray(1)))
        }
      }
      for (const [number, end] of ends.entries()) for (const to of ends) if (to !== end) end.send(to, Uint8Array.of(1, number))
      await until('everyone is answered', () => ends.every((end) => end.received.filter(({ frame }) => frame[0] === 2).length >= 2))
      for (const [number, end] of ends.entries())
        for (const { frame } of end.received) if (frame[0] === 2) assert.equal(frame[1], number, 'an answer went to another end')
    })

    test('does not write to a frame after it was delivered', async ({ listener }) => {
      const one = await listener()
      const other = await listener()
      const kept: { frame: Uint8Array; digest: string }[] = []
      other.onFrame = (_, frame) => kept.push({ frame, digest: digest(frame) })
      for (let round = 1; round <= 20; round++) {
        for (let number = 0; number < 20; number++) one.send(other, pattern(200 + 37 * number, round * 100 + number))
        await until(
          'the round arrives',
          () => kept.length >= round * 20,
          () => {
            if (!options.manifest.lossless) one.send(other, pattern(100, kept.length))
          },
        )
      }
      for (const { frame, digest: before } of kept) assert.equal(digest(frame), before)
    })

    test('drops a frame over the limit without a throw, and carries the next', async ({ listener }) => {
      const one = await listener()
      const other = await listener()
      one.send(other, new Uint8Array(one.transport.maxFrameBytes + 1))
      one.send(other, new Uint8Array(0))
      one.send(other, pattern(10, 1))
      await until('the good frame arrives', () => other.received.some(({ frame }) => frame.length === 10))
      assert.ok(other.received.every(({ frame }) => frame.length === 10))
    })

    test('never throws from send: before open, after close, to nobody, to nonsense', async ({ fixture, make, listener }) => {
      const early = make(fixture.listener())
      const peer = await listener()
      early.send(peer, pattern(10, 1))
      await early.open()
      for (const nonsense of [fixture.nowhere, '', ' ', 'nonsense', ':', '::::', '\0', 'anonymous-', 'x'.repeat(10_000), '[:', '127.0.0.1:99999999'])
        early.transport.send(nonsense, pattern(10, 2))
      early.send(peer, pattern(20, 3))
      await until('a good peer is served all the same', () => peer.received.some(({ frame }) => frame.length === 20))
      await early.transport.close()
      early.send(peer, pattern(30, 4))
    })

    test('keeps a bounded number of bytes for a peer that does not take them', async ({ fixture, listener }) => {
      const one = await listener()
      const other = await listener()
      const frameBytes = Math.min(one.transport.maxFrameBytes, 256 * 1024)
      const count = Math.ceil((fixture.maxQueueBytes * 6) / frameBytes)
      // One peer is connected, where there are connections; the other is not there.
      one.send(other, pattern(8, 1))
      await until('connected', () => other.received.length > 0)
      const before = heldBytes()
      // In one turn: nothing can leave meanwhile.
      for (let number = 0; number < count; number++) {
        one.send(other, new Uint8Array(frameBytes).fill(1))
        one.transport.send(fixture.nowhere, new Uint8Array(frameBytes).fill(2))
      }
      const held = heldBytes() - before
      assert.ok(
        held < fixture.maxQueueBytes * 2 + 16 * 1024 * 1024,
        `holds ${held} bytes, allowed are ${fixture.maxQueueBytes} for each of two peers`,
      )
      // And it goes on afterwards.
      await until(
        'later frames arrive',
        () => other.received.some(({ frame }) => frame.length === 9),
        () => one.send(other, pattern(9, 1)),
      )
    })

    test('reaches a peer that was restarted at its address, and only its present life', async ({ listener }) => {
      const one = await listener()
      const first = await listener()
      one.send(first, pattern(10, 1))
      await until('the first life is reached', () => first.received.length > 0)
      await first.transport.close()
      const seen = first.received.length
      one.transport.send(first.address, pattern(11, 2))
      const second = await listener(first.address)
      await until(
        'the second life is reached',
        () => second.received.some(({ frame }) => frame.length === 12),
        () => one.send(second, pattern(12, 3)),
      )
      second.send(one, pattern(13, 4))
      await until('the second life reaches its peer', () => one.received.some(({ frame }) => frame.length === 13))
      assert.equal(first.received.length, seen, 'a closed end received')
    })

    test('reaches a peer that opens later', async ({ listener }) => {
      const one = await listener()
      const later = await listener()
      const { address } = later
      await later.transport.close()
      for (let number = 0; number < 20; number++) one.transport.send(address, pattern(10, number))
      const again = await listener(address)
      await until(
        'it is reached',
        () => again.received.length > 0,
        () => one.send(again, pattern(10, 99)),
      )
    })

    test('two ends that dial each other in the same turn both arrive, once', async ({ listener }) => {
      const one = await listener()
      const other = await listener()
      const frames = Array.from({ length: 100 }, (_, number) => numbered(number, 40))
      await sendAll('both ways', [
        { from: one, to: other, frames },
        { from: other, to: one, frames },
      ])
    })

    test('goes on after the frame handler threw', async ({ listener }) => {
      const one = await listener()
      const good = await listener()
      const other = await listener()
      other.onFrame = (_, frame) => {
        if (frame.length === 66) throw new Error('not one of ours')
      }
      one.send(other, pattern(66, 1))
      await until('the bad frame arrives', () => other.received.some(({ frame }) => frame.length === 66))
      good.send(other, pattern(10, 2))
      await until('another peer is served', () => other.received.some(({ frame }) => frame.length === 10))
      await until(
        'the same peer is served again',
        () => other.received.some(({ frame }) => frame.length === 11),
        () => one.send(other, pattern(11, 3)),
      )
    })

    test('close is idempotent, stops delivery, and leaves nothing behind', async ({ listener }) => {
      const handlesBefore = liveHandles()
      const ends = [await listener(), await listener(), await listener()]
      for (const from of ends) for (const to of ends) from.send(to, pattern(100, 1))
      await until('all arrive', () => ends.every((end) => end.received.length >= 2))
      for (const from of ends) for (const to of ends) from.send(to, pattern(100, 2))
      await Promise.all(ends.flatMap((end) => [end.transport.close(), end.transport.close()]))
      const counts = ends.map((end) => end.received.length)
      await until('every handle is gone', () => liveHandles() <= handlesBefore)
      assert.deepEqual(
        ends.map((end) => end.received.length),
        counts,
        'received after close',
      )
    })

    test('refuses to open at an address that is in use', async ({ fixture, make, listener }) => {
      const one = await listener()
      const second = make(fixture.listener(one.address))
      await assert.rejects(second.open())
      one.send(one, pattern(10, 1))
      await until('the first is undisturbed', () => one.received.length > 0)
    })

    test('an address is free again once close has resolved', async ({ listener }) => {
      let end = await listener()
      for (let round = 0; round < 5; round++) {
        await end.transport.close()
        end = await listener(end.address)
      }
    })

    test('is what its manifest says', async ({ fixture, listener }) => {
      const one = await listener()
      assert.equal(one.transport.onPeerState !== undefined, options.manifest.peerStates, 'peerStates')
      assert.equal(fixture.dialOnly !== undefined, options.manifest.dialOnly, 'dialOnly')
    })

    if (options.manifest.peerStates) peerStateTests()
    if (options.manifest.dialOnly) dialOnlyTests()
  })

  function peerStateTests(): void {
    test('tells of peers: connected, then lost when the peer closes', async ({ listener }) => {
      const one = await listener()
      const other = await listener()
      one.send(other, pattern(10, 1))
      await until('connected', () => one.states.some(({ peer, state }) => peer === other.address && state === 'connected'))
      await until('the frame arrives', () => other.received.length > 0)
      await other.transport.close()
      await until('lost', () => one.states.some(({ peer, state }) => peer === other.address && state === 'lost'))
      const states = one.states.filter(({ peer }) => peer === other.address).map(({ state }) => state)
      assert.ok(states.indexOf('connected') < states.indexOf('lost'), `told in the order ${states}`)
    })

    test('tells that a peer is not there', async ({ fixture, listener }) => {
      const one = await listener()
      one.transport.send(fixture.nowhere, pattern(10, 1))
      await until('lost', () => one.states.some(({ peer, state }) => peer === fixture.nowhere && state === 'lost'))
    })
  }

  function dialOnlyTests(): void {
    test('ends without an address of their own are answered, each its own', async ({ fixture, make, listener }) => {
      const dialOnly = (): End => make(fixture.dialOnly?.() as Transport)
      const server = await listener()
      server.onFrame = (from, frame) => server.transport.send(from, Uint8Array.of(100, ...frame))
      const clients = [dialOnly(), dialOnly(), dialOnly()]
      for (const client of clients) await client.open()
      assert.equal(new Set(clients.map(({ address }) => address)).size, clients.length)
      for (let round = 0; round < 10; round++) for (const [number, client] of clients.entries()) client.send(server, Uint8Array.of(number, round))
      await until('all are answered', () => clients.every((client) => client.received.length >= 10))
      for (const [number, client] of clients.entries()) {
        assert.equal(client.received.length, 10)
        for (const { from, frame } of client.received) {
          assert.equal(from, server.address)
          assert.deepEqual([frame[0], frame[1]], [100, number])
        }
      }
      const gone = clients[0]?.address as string
      await clients[0]?.transport.close()
      server.transport.send(gone, pattern(10, 1))
      clients[1]?.send(server, Uint8Array.of(9))
      await until('the others are still served', () => clients[1]?.received.some(({ frame }) => frame[1] === 9) === true)
    })
  }
}

/** Bytes that look random and are the same for the same arguments. */
function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length)
  let state = (seed * 2654435761 + length) >>> 0
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    bytes[at] = state >>> 24
  }
  return bytes
}

function numbered(number: number, length: number): Uint8Array {
  const frame = pattern(length, number)
  new DataView(frame.buffer).setUint32(0, number)
  return frame
}

/** Those of the frames that have not arrived. */
function unseen(end: End, frames: readonly Uint8Array[]): Uint8Array[] {
  const seen = new Set(end.received.map(({ frame }) => digest(frame)))
  return frames.filter((frame) => !seen.has(digest(frame)))
}

function digest(bytes: Uint8Array): string {
  return createHash('sha1').update(bytes).digest('hex')
}

let collectGarbage: (() => void) | null = null

/** Bytes of buffers that something still refers to. */
function heldBytes(): number {
  if (collectGarbage === null) {
    setFlagsFromString('--expose-gc')
    collectGarbage = runInNewContext('gc') as () => void
  }
  // Buffers are freed in the background: the second collection waits for the end of the first.
  collectGarbage()
  collectGarbage()
  return process.memoryUsage().arrayBuffers
}

/** What keeps the process alive and is no timer of the test's own. */
function liveHandles(): number {
  return process.getActiveResourcesInfo().filter((kind) => kind !== 'Timeout' && kind !== 'Immediate').length
}
