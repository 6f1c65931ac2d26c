/** What a group answers, over a real engine of one member: limits of replies, bad input, and failures of the disk. */
import { expect } from 'chai'
import { Reader, Writer } from '../../src/base/codec.js'
import { CorruptionError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { CommandType, defaultLimits, shardOf, writeBatchHeader, writeCommand } from '../../src/engine/command.js'
import { openLevel } from '../../src/engine/database.js'
import { defaultTuning, type EngineTuning, shareTuning } from '../../src/engine/engine.js'
import { ReplyStatus, RequestKind, readReadResult, readScanPage, ScanForm, writeReadKeys, writeScanRequest } from '../../src/engine/kv-protocol.js'
import { KvService, type Ownership } from '../../src/engine/kv-service.js'
import { withFolder } from '../support/folders.js'
import { EngineFixture, putBatch, testShards, turns, until } from './support/engine-fixture.js'

const ownership: Ownership = { shards: testShards, groupOf: () => 1, shardsOf: () => Array.from({ length: testShards }, (_, shard) => shard) }

interface Reply {
  status: ReplyStatus
  body: Uint8Array
}

class ServiceFixture {
  readonly engine: EngineFixture
  service!: KvService
  #sequence = 0

  constructor(folder: string) {
    this.engine = new EngineFixture(folder, ['b'])
  }

  async open(tuning: Partial<EngineTuning> = {}): Promise<void> {
    await this.engine.open({ electionTimeoutMs: 20, heartbeatIntervalMs: 10, ...tuning })
    const { engine, messenger } = this.engine
    this.service = new KvService({ host: engine.host, messenger, ownership, limits: defaultLimits, runtime: systemRuntime })
    await until(() => this.engine.status.role === 'leader' && this.engine.status.commitIndex > 0)
  }

  ask(kind: RequestKind, payload: Uint8Array): Promise<Reply> {
    return new Promise((resolve) => this.service.handle(kind, 1, payload, (status, body) => resolve({ status, body: Buffer.from(body) })))
  }

  put(key: string, value: string): Promise<Reply> {
    return this.ask(RequestKind.write, putBatch(++this.#sequence, key, value))
  }

  read(keys: readonly { shard: number; key: Uint8Array }[]): Promise<Reply> {
    const writer = new Writer()
    writeReadKeys(writer, keys)
    return this.ask(RequestKind.read, writer.finish())
  }
}

async function withService(run: (fixture: ServiceFixture) => Promise<void>, tuning: Partial<EngineTuning> = {}): Promise<void> {
  await withFolder(async (folder) => {
    const fixture = new ServiceFixture(folder)
    await fixture.open(tuning)
    try {
      await run(fixture)
    } finally {
      await fixture.engine.close()
    }
  })
}

const place = (key: string) => ({ shard: shardOf(Buffer.from(key), testShards), key: Buffer.from(key) })

describe('KvService', () => {
  it('answers a read of more than a reply may hold in part, in the order asked', () =>
    withService(async (fixture) => {
      const keys = Array.from({ length: 9 }, (_, at) => `k${at}`)
      for (const key of keys) await fixture.put(key, key.repeat(500_000))
      const { status, body } = await fixture.read(keys.map(place))
      expect(status).to.equal(ReplyStatus.done)
      const reader = new Reader(body)
      const count = reader.varint()
      expect(count).to.be.within(1, 5)
      for (const key of keys.slice(0, count)) expect(Buffer.from(readReadResult(reader)!.value.subarray(0, 2)).toString()).to.equal(key)
      expect(reader.varint(), 'the applied index').to.be.greaterThan(8)
      reader.end()
      expect(body.length).to.be.at.most(5 * 1024 * 1024)
    }))

  it('hazard q1, R19: what waits on a node is bounded in bytes over all its groups, refused beyond that as overloaded, and let in again afterwards', () =>
    withService(
      async (fixture) => {
        const { engine, messenger } = fixture.engine
        fixture.service = new KvService({
          host: engine.host,
          messenger,
          ownership,
          limits: defaultLimits,
          runtime: systemRuntime,
          maxBytesUnderWay: 10_000,
        })
        fixture.engine.logGate.close()
        const first = fixture.put('a', 'x'.repeat(5000))
        expect((await fixture.put('b', 'x'.repeat(5000))).status).to.equal(ReplyStatus.overloaded)
        const second = fixture.put('c', 'x'.repeat(4400))
        expect((await fixture.read([place('a')])).status, 'reads count too').to.equal(ReplyStatus.overloaded)
        fixture.engine.logGate.open()
        expect([(await first).status, (await second).status]).to.deep.equal([ReplyStatus.done, ReplyStatus.done])
        expect((await fixture.put('b', 'x'.repeat(9000))).status).to.equal(ReplyStatus.done)
        expect((await fixture.put('d', 'x'.repeat(50_000))).status, 'a single larger one goes alone').to.equal(ReplyStatus.done)
      },
      { electionTimeoutMs: 400 },
    ))

  it('hazard q1: a node with many groups holds no more in memory than one with eight', () => {
    for (const name of ['maxInflightBytes', 'maxTailBytes', 'maxUncommittedBytes', 'flushBytes'] as const) {
      expect(shareTuning(defaultTuning, 1)[name]).to.equal(defaultTuning[name])
      expect(shareTuning(defaultTuning, 8)[name]).to.equal(defaultTuning[name])
      expect(shareTuning(defaultTuning, 80)[name]).to.equal(Math.max(128 * 1024, defaultTuning[name] / 10))
    }
    expect(shareTuning({ ...defaultTuning, flushBytes: 1000 }, 80).flushBytes, 'what is small already stays').to.equal(1000)
  })

  it('hazard E1.10: refuses a read of a shard that there is not', () =>
    withService(async (fixture) => {
      await fixture.put('k', 'v')
      const { shard, key } = place('k')
      for (const wrong of [testShards, shard + 0x10000, 2 ** 40 + shard]) {
        expect((await fixture.read([{ shard: wrong, key }])).status, `shard ${wrong}`).to.equal(ReplyStatus.malformed)
      }
    }))

  it('hazard D7: a state database that cannot be written stops the group, and no more is taken into memory', () =>
    withService(
      async (fixture) => {
        const failure = new Error('disk full')
        fixture.engine.stateGate.failure = failure
        await fixture.put('k', 'v')
        await until(() => fixture.engine.failures.length > 0)
        expect(fixture.engine.failures).to.have.length(1)
        expect(fixture.engine.failures[0]).to.include({ code: 'STORAGE_FAILED', cause: failure })
        expect((await fixture.put('k', 'w')).status).to.equal(ReplyStatus.stopped)
        expect((await fixture.read([place('k')])).status).to.equal(ReplyStatus.stopped)
      },
      { flushAfterMs: 1 },
    ))

  it('hazard D9: damage that a read meets in the state database is told as damage: the group stops here, and its replica can be replaced', () =>
    withFolder(async (folder) => {
      for (const how of ['read', 'scan'] as const) {
        const fixture = new ServiceFixture(`${folder}/${how}`)
        let isDamaged = false
        fixture.engine.openDatabase = async (location, options) => {
          const database = await openLevel(location, options)
          if (!location.endsWith('state')) return database
          const check = () => {
            if (isDamaged) throw new CorruptionError('a block of a table')
          }
          const iterate: typeof database.iterate = (range) => {
            const iterator = database.iterate(range)
            return {
              nextv: async (count) => {
                check()
                return iterator.nextv(count)
              },
              close: () => iterator.close(),
            }
          }
          const getSync: typeof database.getSync = (key) => {
            check()
            return database.getSync(key)
          }
          return { ...database, getSync, iterate }
        }
        await fixture.open()
        try {
          await fixture.put('k', 'v')
          isDamaged = true
          const range = { gte: Buffer.alloc(0), lt: null, reverse: false, form: ScanForm.entries, maxEntries: 10, maxBytes: 1000 }
          const writer = new Writer()
          writeScanRequest(writer, range)
          const { status } = await (how === 'read' ? fixture.read([place('absent')]) : fixture.ask(RequestKind.scan, writer.finish()))
          expect(status).to.equal(ReplyStatus.stopped)
          expect(fixture.engine.failures[0]).to.be.instanceOf(CorruptionError)
          expect((await fixture.put('k', 'w')).status).to.equal(ReplyStatus.stopped)
          isDamaged = false
        } finally {
          await fixture.engine.close()
        }
      }
    }))

  it('K6, hazard D9: a page of a scan is one point in time, whatever is applied and flushed while it is read', () =>
    withService(
      async (fixture) => {
        const keys = Array.from({ length: 30 }, (_, at) => `k${String(at).padStart(2, '0')}`)
        const range = { gte: Buffer.alloc(0), lt: null, form: ScanForm.entries, maxEntries: 1000, maxBytes: 1_000_000 }
        let sequence = 0
        let acknowledged = 0
        let writing = true
        const write = async () => {
          while (sequence < 80) {
            const { status } = await fixture.ask(RequestKind.write, putsBatch(++sequence, keys, `${sequence}`))
            expect(status).to.equal(ReplyStatus.done)
            acknowledged = sequence
          }
          writing = false
        }
        const scan = async (reverse: boolean) => {
          let pages = 0
          while (writing) {
            const least = acknowledged
            const writer = new Writer()
            writeScanRequest(writer, { ...range, reverse })
            const { status, body } = await fixture.ask(RequestKind.scan, writer.finish())
            expect(status).to.equal(ReplyStatus.done)
            const { entries, more } = readScanPage(new Reader(body))
            expect(more).to.equal(false)
            if (least === 0 && entries.length === 0) continue
            expect(Number(Buffer.from(entries[0]!.value).toString()), 'an acknowledged write is missing').to.be.at.least(least)
            const expected = reverse ? [...keys].reverse() : keys
            expect(entries.map(({ key }) => Buffer.from(key).toString())).to.deep.equal(expected)
            expect(new Set(entries.map(({ value }) => Buffer.from(value).toString())).size, 'different states in one page').to.equal(1)
            pages++
          }
          expect(pages).to.be.greaterThan(5)
        }
        await Promise.all([write(), scan(false), scan(false), scan(true)])
      },
      { flushBytes: 4000, flushAfterMs: 1 },
    ))

  it('a log that fails at the very end fails the close, and nothing goes on after it', () =>
    withFolder(async (folder) => {
      const fixture = new ServiceFixture(folder)
      // A leader whose disk is held for an election timeout steps down, and takes nothing more.
      await fixture.open({ flushAfterMs: 40, electionTimeoutMs: 400 })
      const { engine } = fixture
      const failure = new Error('disk full')
      await fixture.put('a', '1')
      engine.logGate.close()
      void fixture.put('b', '1')
      await until(() => engine.logGate.held === 1)
      void fixture.put('c', '1')
      await turns()
      const closed = engine.close().catch((error: unknown) => error)
      await turns(1)
      engine.logGate.failure = failure
      expect(await closed).to.equal(failure)
      expect(engine.timers.size, 'timers that go on').to.equal(0)
      expect(engine.failures).to.deep.equal([])
    }))
})

/** A batch that puts one value under every key. */
function putsBatch(sequence: number, keys: readonly string[], value: string): Uint8Array {
  const writer = new Writer()
  writeBatchHeader(writer, { session: Buffer.alloc(8, 9), birth: 1, lowWater: sequence * keys.length }, keys.length)
  keys.forEach((text, at) => {
    const { shard, key } = place(text)
    const conditions = { ifVersion: undefined, ifRevision: undefined, fence: undefined }
    const command = { type: CommandType.put, sequence: sequence * keys.length + at, key, shard, value: Buffer.from(value), ...conditions }
    writeCommand(writer, command, sequence * keys.length)
  })
  return writer.finish()
}
