/** Watches at a group, over a real engine: what they are answered, bad input, bounds, and how they end; and that «now» is asked of a majority. */
import { expect } from 'chai'
import { Reader, Writer } from '../../src/base/codec.js'
import { CorruptionError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { defaultLimits, shardOf } from '../../src/engine/command.js'
import type { KvMachine } from '../../src/engine/kv-machine.js'
import { ReplyStatus, RequestKind } from '../../src/engine/kv-protocol.js'
import { KvService, type Ownership } from '../../src/engine/kv-service.js'
import { RecordType, shardPrefix } from '../../src/engine/records.js'
import type { ReadReply, ServedReplica } from '../../src/engine/served-replica.js'
import { readOldest, readWatchPage, type WatchRequest, writeWatchRequest } from '../../src/engine/watch-protocol.js'
import { withFolder } from '../support/folders.js'
import { EngineFixture, HandMessenger, putBatch, testShards, until } from './support/engine-fixture.js'
import { machineShards, shardOfKey, withMachine } from './support/machine-fixture.js'

const allShards = Array.from({ length: testShards }, (_, shard) => shard)
const ownership: Ownership = { shards: testShards, groupOf: (shard) => (shard === testShards - 1 ? 2 : 1), shardsOf: () => allShards }

interface Reply {
  status: ReplyStatus
  body: Uint8Array
}

const everything = (positions: WatchRequest['positions'], over: Partial<WatchRequest> = {}): Uint8Array => {
  const writer = new Writer()
  writeWatchRequest(writer, { gte: Buffer.alloc(0), lt: null, positions, maxBytes: 100_000, waitMs: 20_000, ...over })
  return writer.finish()
}

class Fixture {
  readonly engine: EngineFixture
  service!: KvService
  #sequence = 0

  constructor(folder: string) {
    this.engine = new EngineFixture(folder, ['b'])
  }

  async open(maxPolls = 100): Promise<void> {
    await this.engine.open({ electionTimeoutMs: 20, heartbeatIntervalMs: 10 })
    const { engine, messenger } = this.engine
    this.service = new KvService({ host: engine.host, messenger, ownership, limits: defaultLimits, runtime: systemRuntime, maxPolls })
    await until(() => this.engine.status.role === 'leader' && this.engine.status.commitIndex > 0)
  }

  ask(kind: RequestKind, payload: Uint8Array): Promise<Reply> {
    return new Promise((resolve) => this.service.handle(kind, 1, payload, (status, body) => resolve({ status, body: Buffer.from(body) })))
  }

  watch(payload: Uint8Array): Promise<Reply> {
    return this.ask(RequestKind.watch, payload)
  }

  put(key: string, value: string): Promise<Reply> {
    return this.ask(RequestKind.write, putBatch(++this.#sequence, key, value))
  }

  get machine() {
    return this.engine.engine.host.replica(1)!.machine
  }
}

async function withFixture(run: (fixture: Fixture) => Promise<void>, maxPolls?: number): Promise<void> {
  await withFolder(async (folder) => {
    const fixture = new Fixture(folder)
    await fixture.open(maxPolls)
    try {
      await run(fixture)
    } finally {
      await fixture.engine.close()
    }
  })
}

/** A replica that is driven by hand. */
function servedBy(machine: KvMachine): ServedReplica {
  return {
    group: 1,
    machine,
    appliedIndex: 0,
    stopped: false,
    isLeader: true,
    leaderNode: 'other',
    term: 1,
    logTimeMs: () => 0,
    damaged: (error) => {
      throw error
    },
    propose: () => {},
    awaitReadable: (reply) => reply(null),
    awaitAny: (reply) => reply(null),
  }
}

function serviceOptions() {
  const all = { shards: machineShards, groupOf: () => 1, shardsOf: () => [] }
  return { messenger: new HandMessenger(), ownership: all, limits: defaultLimits, runtime: systemRuntime }
}

const shard = shardOf(Buffer.from('k'), testShards)

describe('watches at a group', () => {
  it('«now» is answered with where each shard is; a later poll waits, and is answered with what is written', () =>
    withFixture(async (fixture) => {
      await fixture.put('k', 'before')
      const now = await fixture.watch(everything([{ shard, after: null }]))
      expect(now.status).to.equal(ReplyStatus.done)
      expect(readWatchPage(new Reader(now.body))).to.deep.equal({ sections: [{ shard, position: 1, events: [] }] })
      const waiting = fixture.watch(everything([{ shard, after: 1 }]))
      await until(() => fixture.machine.watches.size === 1)
      await fixture.put('k', 'after')
      const { sections } = readWatchPage(new Reader((await waiting).body))
      expect(sections.map(({ position, events }) => [position, events.map(({ key, value }) => `${key}=${Buffer.from(value!)}`)])).to.deep.equal([
        [2, ['k=after']],
      ])
    }))

  it('a position ahead of the shard is told to be none of its, once that is certain', () =>
    withFixture(async (fixture) => {
      await fixture.put('k', 'v')
      const { status, body } = await fixture.watch(everything([{ shard, after: 7 }]))
      expect(status).to.equal(ReplyStatus.compacted)
      expect(readOldest(new Reader(body))).to.deep.equal([{ shard, after: 0 }])
    }))

  it('what breaks the protocol is refused, and nothing waits for it', () =>
    withFixture(async (fixture) => {
      const good = everything([{ shard, after: 0 }])
      const bad = [
        new Uint8Array(0),
        Buffer.concat([Buffer.from([1]), good.subarray(1)]),
        good.subarray(0, good.length - 1),
        Buffer.concat([good, Buffer.from([0])]),
        everything([]),
        everything([{ shard: testShards, after: 0 }]),
        everything([{ shard: 0xfffe, after: 0 }]),
        everything([
          { shard, after: 0 },
          { shard, after: 1 },
        ]),
        // A count that the bytes cannot hold.
        Buffer.concat([good.subarray(0, 5), Buffer.from([0xff, 0xff, 0xff, 0x7f])]),
      ]
      for (const [at, payload] of bad.entries()) expect((await fixture.watch(payload)).status, `case ${at}`).to.equal(ReplyStatus.malformed)
      expect((await fixture.watch(everything([{ shard: testShards - 1, after: 0 }]))).status).to.equal(ReplyStatus.wrongGroup)
      expect(fixture.machine.watches.size).to.equal(0)
    }))

  it('those that wait are bounded in number; an answer makes room', () =>
    withFixture(async (fixture) => {
      const waiting = [1, 2].map(() => fixture.watch(everything([{ shard, after: 0 }])))
      await until(() => fixture.machine.watches.size === 2)
      expect((await fixture.watch(everything([{ shard, after: 0 }]))).status).to.equal(ReplyStatus.overloaded)
      await fixture.put('k', 'v')
      for (const { status } of await Promise.all(waiting)) expect(status).to.equal(ReplyStatus.done)
      const next = fixture.watch(everything([{ shard, after: 1 }], { waitMs: 1 }))
      expect((await next).status).to.equal(ReplyStatus.done)
    }, 2))

  it('all are answered when the replica stops, and no timer is left', () =>
    withFixture(async (fixture) => {
      const waiting = [1, 2, 3].map(() => fixture.watch(everything([{ shard, after: 0 }])))
      await until(() => fixture.machine.watches.size === 3)
      const { host } = fixture.engine.engine
      await host.remove(host.replica(1)!)
      for (const { status } of await Promise.all(waiting)) expect(status).to.equal(ReplyStatus.stopped)
      expect((await fixture.watch(everything([{ shard, after: 0 }]))).status).to.equal(ReplyStatus.wrongGroup)
    }))

  it('a history that is damaged stops the replica, and whoever asked goes elsewhere', () =>
    withMachine(async (fixture) => {
      const failures: unknown[] = []
      const { machine, store } = fixture
      const replica = { ...servedBy(machine), damaged: (error: unknown) => failures.push(error) }
      const service = new KvService({ ...serviceOptions(), host: { replica: () => replica } })
      fixture.apply(putBatch(1, 'k', 'v'))
      store.flushSoon()
      await store.flushed()
      store.set(`${shardPrefix(shardOfKey('k'), RecordType.history)}${'\0'.repeat(7)}\x01`, null)
      const asked = new Promise<ReplyStatus>((resolve) =>
        service.handle(RequestKind.watch, 1, everything([{ shard: shardOfKey('k'), after: 0 }]), (status) => resolve(status)),
      )
      expect(await asked).to.equal(ReplyStatus.stopped)
      expect(failures).to.have.length(1)
      expect(failures[0]).to.be.instanceOf(CorruptionError)
    }))

  it('a leader that cannot reach a majority begins no watch, and ends those that wait when it learns that it is deposed', () =>
    withMachine(async ({ machine }) => {
      const reads: ReadReply[] = []
      let isLeader = true
      const deposed: ServedReplica = {
        ...servedBy(machine),
        get isLeader() {
          return isLeader
        },
        awaitReadable: (reply) => reads.push(reply),
      }
      const service = new KvService({ ...serviceOptions(), host: { replica: () => deposed } })
      const replies: Reply[] = []
      const ask = (payload: Uint8Array) => service.handle(RequestKind.watch, 1, payload, (status, body) => replies.push({ status, body }))
      // Both need to know what the latest state is: this replica may be behind it.
      ask(everything([{ shard: 3, after: null }]))
      ask(everything([{ shard: 3, after: 5 }]))
      expect([replies.length, reads.length]).to.deep.equal([0, 2])
      // One that stands where this replica is loses nothing by waiting here.
      ask(everything([{ shard: 3, after: 0 }]))
      expect([replies.length, reads.length, machine.watches.size]).to.deep.equal([0, 2, 1])
      isLeader = false
      machine.watches.end('not-leader')
      for (const reply of reads) reply('not-leader')
      expect(replies.map(({ status }) => status)).to.deep.equal(Array(3).fill(ReplyStatus.notLeader))
      expect(replies.map(({ body }) => Buffer.from(body).toString())).to.deep.equal(['other', 'other', 'other'])
    }))
})
