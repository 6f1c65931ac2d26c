/** Sender and receiver over a simulated network and clock: what is lost, cut, late or gone on the way. */
import { expect } from 'chai'
import { UnavailableError } from '../../src/base/errors.js'
import type { SnapshotManifest, SnapshotRecord } from '../../src/snapshot/messages.js'
import { SnapshotReceiver, type SnapshotReceiverOptions, type SnapshotTarget } from '../../src/snapshot/receiver.js'
import { type SnapshotCapture, SnapshotSender, type SnapshotSenderOptions } from '../../src/snapshot/sender.js'
import { World } from '../transport/support.js'

const group = 4
const chunkBytes = 1000
const configuration = { voters: ['a', 'b', 'c'], learners: [], votersOutgoing: [] }

/** A state that can be captured. */
class Source {
  index = 100
  records: SnapshotRecord[] = Array.from({ length: 200 }, (_, at) => [Buffer.from(`key ${1000 + at}`), Buffer.from(`value ${at}`.repeat(10))])
  /** Captures made, and of them still open. */
  captures = 0
  open = 0
  reads = 0

  capture(): SnapshotCapture {
    const { index, records } = this
    this.captures++
    this.open++
    return {
      index,
      term: 3,
      configuration,
      read: async (after, maxBytes) => {
        this.reads++
        const start = after === null ? 0 : records.findIndex(([key]) => Buffer.compare(key, after) === 0) + 1
        let end = start
        for (let bytes = 0; end < records.length && bytes < maxBytes; end++) bytes += records[end]![0].length + records[end]![1].length
        return { records: records.slice(start, end), isLast: end === records.length }
      },
      close: async () => {
        this.open--
      },
    }
  }
}

/** A state that a snapshot is to replace. */
class Target implements SnapshotTarget {
  appliedIndex = 5
  staged: SnapshotRecord[] = []
  installed: { manifest: SnapshotManifest; records: SnapshotRecord[] }[] = []
  discarded = 0
  staging = 0
  failure: Error | null = null
  /** Holds back staging. */
  gate: Promise<void> = Promise.resolve()

  async begin(): Promise<void> {
    this.staged = []
  }

  async stage(records: readonly SnapshotRecord[]): Promise<void> {
    this.staging++
    await this.gate
    if (this.failure !== null) throw this.failure
    this.staged.push(...records)
    this.staging--
  }

  async install(manifest: SnapshotManifest): Promise<boolean> {
    this.installed.push({ manifest, records: this.staged })
    this.appliedIndex = manifest.index
    return true
  }

  discard(): void {
    this.discarded++
    this.staged = []
  }
}

interface Peer {
  readonly source: Source
  readonly sender: SnapshotSender
}

class Transfers {
  readonly world: World
  readonly target = new Target()
  readonly retries: unknown[] = []
  readonly failures: unknown[] = []
  readonly peers = new Map<string, Peer>()
  receiver!: SnapshotReceiver

  constructor(seed = 1) {
    this.world = new World(seed)
  }

  async sender(name: string, options: Partial<SnapshotSenderOptions> = {}): Promise<Peer> {
    const { messenger } = await this.world.node(name, { nodeId: name })
    const source = new Source()
    const sender = new SnapshotSender({ messenger, runtime: this.world.runtime, chunkBytes, capture: () => source.capture(), ...options })
    this.peers.set(name, { source, sender })
    return { source, sender }
  }

  async start(options: Partial<SnapshotReceiverOptions> = {}): Promise<void> {
    const { messenger } = await this.world.node('z', { nodeId: 'z' })
    this.receiver = new SnapshotReceiver({
      messenger,
      runtime: this.world.runtime,
      addressOf: (node) => node,
      maxBytesPerSecond: 1e9,
      repeatMs: 500,
      giveUpMs: 5000,
      onRetry: (_group, error) => this.retries.push(error),
      onFailure: (_group, error) => this.failures.push(error),
      ...options,
    })
  }

  /** Lets time pass until a condition holds; `each` runs every 10 ms, as a leader's offers do. */
  async until(condition: () => boolean, each: () => void = () => {}): Promise<void> {
    const { runtime } = this.world
    await runtime.settle(async () => {
      while (!condition()) {
        each()
        await runtime.sleep(10)
      }
    })
  }

  offer(from: string, minIndex = 90): void {
    this.receiver.offer(group, from, minIndex, this.target)
  }
}

async function withTransfers(run: (transfers: Transfers) => Promise<void>): Promise<void> {
  const transfers = new Transfers()
  try {
    await run(transfers)
  } finally {
    const { runtime } = transfers.world
    await runtime.settle(transfers.receiver?.close() ?? Promise.resolve())
    for (const { sender } of transfers.peers.values()) await runtime.settle(sender.close())
    await runtime.settle(transfers.world.close())
    for (const { source } of transfers.peers.values()) expect(source.open, 'captures left open').to.equal(0)
  }
}

function texts(records: readonly SnapshotRecord[]): string[] {
  return records.map(([key, value]) => `${Buffer.from(key)}=${Buffer.from(value)}`)
}

describe('a snapshot on its way', () => {
  it('R13: arrives whole, as it was captured, and is installed once; its session ends', () =>
    withTransfers(async (transfers) => {
      const { source, sender } = await transfers.sender('a')
      await transfers.start()
      const expected = texts(source.records)
      transfers.offer('a')
      await transfers.until(
        () => transfers.target.installed.length > 0 && sender.sessions === 0,
        () => {
          transfers.offer('a')
          if (source.captures === 0) return
          // What is written meanwhile is not in it.
          source.records = [[Buffer.from('later'), Buffer.from('later')]]
          source.index++
        },
      )
      const { manifest, records } = transfers.target.installed[0]!
      expect([manifest.index, manifest.term, manifest.configuration, manifest.group]).to.deep.equal([100, 3, configuration, group])
      expect(texts(records)).to.deep.equal(expected)
      expect([transfers.target.installed.length, source.captures, transfers.retries, transfers.failures]).to.deep.equal([1, 1, [], []])
      // For a while its size says how much of the log may be kept.
      const bytes = records.reduce((sum, [key, value]) => sum + key.length + value.length, 0)
      const { runtime } = transfers.world
      expect([sender.sentBytes(group), sender.sentBytes(group + 1)]).to.deep.equal([bytes, 0])
      await runtime.settle(runtime.sleep(300_000))
      expect(sender.sentBytes(group)).to.equal(0)
    }))

  it('keeps within its rate, and holds two chunks at a time at most', () =>
    withTransfers(async (transfers) => {
      const { source } = await transfers.sender('a')
      await transfers.start({ maxBytesPerSecond: 4000 })
      const bytes = source.records.reduce((sum, [key, value]) => sum + key.length + value.length, 0)
      const { runtime } = transfers.world
      const startMs = runtime.nowMs()
      let release = () => {}
      transfers.target.gate = new Promise((resolve) => {
        release = resolve
      })
      transfers.offer('a')
      await runtime.settle(runtime.sleep(3000))
      expect(transfers.target.staging).to.equal(1)
      expect(source.reads).to.equal(2)
      release()
      await transfers.until(() => transfers.target.installed.length > 0)
      expect(runtime.nowMs() - startMs).to.be.greaterThan((bytes / 4000) * 1000)
    }))

  it('hazard D6.50, n1: goes on where it was after a lost connection, at the cost of one chunk', () =>
    withTransfers(async (transfers) => {
      const { source } = await transfers.sender('a')
      await transfers.start({ maxBytesPerSecond: 10_000 })
      transfers.offer('a')
      await transfers.until(() => transfers.target.staged.length > 50)
      transfers.world.network.cut('a', 'z')
      const { runtime } = transfers.world
      await runtime.settle(runtime.sleep(2000))
      const reads = source.reads
      transfers.world.network.heal()
      await transfers.until(
        () => transfers.target.installed.length > 0,
        () => transfers.offer('a'),
      )
      const chunks = Math.ceil(source.records.reduce((sum, [key, value]) => sum + key.length + value.length, 0) / chunkBytes)
      expect([source.captures, transfers.retries]).to.deep.equal([1, []])
      expect(texts(transfers.target.installed[0]!.records)).to.deep.equal(texts(source.records))
      expect(source.reads).to.be.at.most(chunks + 8)
      expect(reads).to.be.lessThan(chunks)
    }))

  it('hazard n1, n2: arrives over a network that loses and repeats frames', () =>
    withTransfers(async (transfers) => {
      const { source } = await transfers.sender('a')
      await transfers.start({ giveUpMs: 60_000, repeatMs: 100 })
      transfers.world.network.setFaults({ dropProbability: 0.1, repeatProbability: 0.1 })
      await transfers.until(
        () => transfers.target.installed.length > 0,
        () => transfers.offer('a'),
      )
      expect(texts(transfers.target.installed[0]!.records)).to.deep.equal(texts(source.records))
    }))

  it('goes on pulling from the node that holds it, whoever leads and offers meanwhile', () =>
    withTransfers(async (transfers) => {
      const { source } = await transfers.sender('a')
      const other = await transfers.sender('b')
      await transfers.start({ maxBytesPerSecond: 10_000 })
      transfers.offer('a')
      await transfers.until(
        () => transfers.target.installed.length > 0,
        () => transfers.offer('b'),
      )
      expect([source.captures, other.source.captures]).to.deep.equal([1, 0])
    }))

  it('hazard D6.48: begins again with what the present leader offers when the node that held it is gone', () =>
    withTransfers(async (transfers) => {
      const { source } = await transfers.sender('a')
      const other = await transfers.sender('b')
      other.source.index = 200
      await transfers.start({ maxBytesPerSecond: 10_000 })
      transfers.offer('a')
      await transfers.until(() => transfers.target.staged.length > 50)
      transfers.world.network.cut('a', 'z')
      await transfers.until(
        () => transfers.target.installed.length > 0,
        () => transfers.offer('b'),
      )
      expect([source.captures, other.source.captures, transfers.target.installed[0]!.manifest.index]).to.deep.equal([1, 1, 200])
      expect(transfers.retries).to.have.length(1)
      expect(transfers.target.discarded).to.equal(1)
      expect(texts(transfers.target.installed[0]!.records)).to.deep.equal(texts(other.source.records))
      transfers.world.network.heal()
    }))

  it('begins again at once when the snapshot is gone from the node that held it', () =>
    withTransfers(async (transfers) => {
      const { source, sender } = await transfers.sender('a')
      await transfers.start({ maxBytesPerSecond: 10_000 })
      transfers.offer('a')
      await transfers.until(() => transfers.target.staged.length > 50)
      sender.drop(group)
      const { runtime } = transfers.world
      const droppedMs = runtime.nowMs()
      await transfers.until(() => transfers.retries.length > 0)
      expect(runtime.nowMs() - droppedMs).to.be.lessThan(1000)
      await transfers.until(
        () => transfers.target.installed.length > 0,
        () => transfers.offer('a'),
      )
      expect(source.captures).to.equal(2)
    }))

  it('hazard D6.47: ends when the state has got what it needs in another way', () =>
    withTransfers(async (transfers) => {
      await transfers.sender('a')
      await transfers.start({ maxBytesPerSecond: 10_000 })
      transfers.offer('a')
      await transfers.until(() => transfers.target.staged.length > 50)
      transfers.target.appliedIndex = 100
      await transfers.until(() => transfers.receiver.status(group) === undefined)
      expect(transfers.target.installed).to.deep.equal([])
      expect(transfers.target.discarded).to.equal(1)
    }))

  it('asks again when the node offered from does not reach what is wanted', () =>
    withTransfers(async (transfers) => {
      const { source } = await transfers.sender('a')
      await transfers.start()
      await transfers.until(
        () => transfers.retries.length > 1,
        () => transfers.offer('a', 150),
      )
      expect(transfers.target.installed).to.deep.equal([])
      source.index = 150
      await transfers.until(
        () => transfers.target.installed.length > 0,
        () => transfers.offer('a', 150),
      )
    }))

  it('after a cancel nothing is staged or installed any more', () =>
    withTransfers(async (transfers) => {
      await transfers.sender('a')
      await transfers.start({ maxBytesPerSecond: 10_000 })
      transfers.offer('a')
      await transfers.until(() => transfers.target.staged.length > 50)
      const { runtime } = transfers.world
      await runtime.settle(transfers.receiver.cancel(group))
      await runtime.settle(runtime.sleep(5000))
      expect([transfers.target.staged, transfers.target.installed, transfers.retries]).to.deep.equal([[], [], []])
    }))

  it('hazard d11: a target that cannot store ends it and is reported, not tried again by itself', () =>
    withTransfers(async (transfers) => {
      await transfers.sender('a')
      await transfers.start()
      transfers.target.failure = new Error('disk')
      transfers.offer('a')
      await transfers.until(() => transfers.failures.length > 0)
      expect(transfers.failures).to.deep.equal([transfers.target.failure])
      expect(transfers.retries).to.deep.equal([])
    }))
})

describe('SnapshotSender', () => {
  it('hazard R19: bounds its sessions in number; a peer that opens another gives up the one before', () =>
    withTransfers(async (transfers) => {
      const { source, sender } = await transfers.sender('a', { maxSessions: 2 })
      await transfers.start()
      const { runtime } = transfers.world
      const peers = await Promise.all(['p', 'q', 'r'].map((name) => transfers.world.node(name, { nodeId: name })))
      const open = (at: number) => peers[at]!.messenger.request('a', 'snapshot-open', Buffer.from([1, group, 0]))
      await runtime.settle(open(0))
      await runtime.settle(open(1))
      // Both read one capture.
      expect([sender.sessions, source.captures, source.open]).to.deep.equal([2, 1, 1])
      expect((await transfers.world.failure(open(2))).code).to.equal('OVERLOADED')
      await runtime.settle(open(1))
      expect(sender.sessions).to.equal(2)
      sender.drop(group)
      await transfers.until(() => source.open === 0)
      expect(sender.sessions).to.equal(0)
    }))

  it('hazard D6.48: ends idle sessions and old ones, and with them the hold on the log', () =>
    withTransfers(async (transfers) => {
      const { source, sender } = await transfers.sender('a', { idleMs: 1000, maxSessionMs: 5000 })
      await transfers.start()
      const { runtime } = transfers.world
      const { messenger } = await transfers.world.node('p', { nodeId: 'p' })
      const open = () => runtime.settle(messenger.request('a', 'snapshot-open', Buffer.from([1, group, 0])))
      const manifest = Buffer.from(await open())
      expect([sender.neededAfter(group), sender.neededAfter(group + 1)]).to.deep.equal([100, Number.POSITIVE_INFINITY])
      await runtime.settle(runtime.sleep(2000))
      expect([sender.sessions, source.open, sender.neededAfter(group)]).to.deep.equal([0, 0, Number.POSITIVE_INFINITY])
      const again = Buffer.from(await open())
      expect(again.subarray(1, 5)).to.not.deep.equal(manifest.subarray(1, 5))
      const chunk = () => messenger.request('a', 'snapshot-chunk', Buffer.concat([again.subarray(1, 5), Buffer.from([0])]))
      for (let passedMs = 0; passedMs < 4800; passedMs += 400) {
        await runtime.settle(chunk())
        await runtime.settle(runtime.sleep(400))
      }
      // It is asked all the time, and ends all the same.
      for (let passedMs = 0; passedMs < 1600 && source.open > 0; passedMs += 400) {
        await runtime.settle(runtime.sleep(400))
        await runtime.settle(chunk().catch(() => {}))
      }
      const failure = await transfers.world.failure(chunk())
      expect(failure).to.be.instanceOf(UnavailableError)
      expect([failure.code, source.open]).to.deep.equal(['SNAPSHOT_GONE', 0])
    }))

  it('gives the last chunk again, and no other one', () =>
    withTransfers(async (transfers) => {
      await transfers.sender('a')
      await transfers.start()
      const { runtime } = transfers.world
      const { messenger } = await transfers.world.node('p', { nodeId: 'p' })
      const manifest = Buffer.from(await runtime.settle(messenger.request('a', 'snapshot-open', Buffer.from([1, group, 0]))))
      const chunk = (sequence: number) => messenger.request('a', 'snapshot-chunk', Buffer.concat([manifest.subarray(1, 5), Buffer.from([sequence])]))
      const first = await runtime.settle(chunk(0))
      expect(Buffer.compare(await runtime.settle(chunk(0)), first)).to.equal(0)
      const second = await runtime.settle(chunk(1))
      expect(Buffer.compare(await runtime.settle(chunk(1)), second)).to.equal(0)
      for (const sequence of [0, 3, 9]) expect((await transfers.world.failure(chunk(sequence))).code).to.equal('SNAPSHOT_GONE')
      expect(Buffer.compare(await runtime.settle(chunk(1)), second)).to.equal(0)
    }))
})
