import { join } from 'node:path'
import { expect } from 'chai'
import { Writer } from '../../src/base/codec.js'
import { CorruptionError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import {
  type Command,
  CommandStatus,
  CommandType,
  checkBatch,
  defaultLimits,
  readBatch,
  shardOf,
  writeBatchHeader,
  writeCommand,
} from '../../src/engine/command.js'
import { type Database, openLevel } from '../../src/engine/database.js'
import { KvMachine } from '../../src/engine/kv-machine.js'
import { decodeRecord, RecordType } from '../../src/engine/records.js'
import { StateStore } from '../../src/engine/state-store.js'
import { withFolder } from '../support/folders.js'

const shards = 16

interface Wish {
  key: string
  value?: string | null
  sequence: number
  ifVersion?: number
  ifRevision?: number
}

function encodeBatch(session: number | Uint8Array, lowWater: number, wishes: Wish[]): Uint8Array {
  const writer = new Writer()
  writeBatchHeader(writer, { session: typeof session === 'number' ? Buffer.alloc(8, session) : session, birth: 1, lowWater }, wishes.length)
  for (const { key, value = null, sequence, ifVersion, ifRevision } of wishes) {
    const bytes = Buffer.from(key)
    const command: Command = {
      type: value === null ? CommandType.delete : CommandType.put,
      sequence,
      key: bytes,
      value: value === null ? null : Buffer.from(value),
      shard: shardOf(bytes, shards),
      ifVersion,
      ifRevision,
      fence: undefined,
    }
    writeCommand(writer, command, lowWater)
  }
  return writer.finish()
}

class Fixture {
  store!: StateStore
  machine!: KvMachine
  #index = 0
  readonly database: Database

  constructor(database: Database) {
    this.database = database
  }

  async open(): Promise<void> {
    let machine: KvMachine | null = null
    this.store = new StateStore({
      database: this.database,
      group: 1,
      runtime: systemRuntime,
      decode: decodeRecord,
      cacheBytes: () => 500,
      flushBytes: 1_000_000,
      flushAfterMs: 100_000,
      durableIndex: () => Number.MAX_SAFE_INTEGER,
      beforeFreeze: () => machine?.saveShards(),
      onFailure: (error) => {
        throw error
      },
    })
    await this.store.open()
    machine = new KvMachine(this.store)
    this.machine = machine
  }

  apply(session: number | Uint8Array, lowWater: number, ...wishes: Wish[]): [status: number, version: number, revision: number][] {
    const results = this.machine.apply(encodeBatch(session, lowWater, wishes))
    this.store.advance(++this.#index)
    return results.map(({ status, version, revision }) => [status, version, revision])
  }

  read(key: string): string | undefined {
    const found = this.machine.read(shardOf(Buffer.from(key), shards), Buffer.from(key))
    return found && `${Buffer.from(found.value)} v${found.version} r${found.revision}`
  }

  async restart(): Promise<void> {
    await this.store.close()
    await this.open()
  }
}

async function withMachine(run: (fixture: Fixture) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const database = await openLevel(join(folder, 'state'), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
    const fixture = new Fixture(database)
    try {
      await fixture.open()
      await run(fixture)
    } finally {
      await fixture.store.close()
      await database.close()
    }
  })
}

/** Everything that the group's shards hold in the database, but for the history: replicas cut it at their flushes. */
async function records(database: Database): Promise<[Uint8Array, Uint8Array][]> {
  const iterator = database.iterate({ gte: Buffer.from([0, 1, 0]), lt: Buffer.from([0, 1, 0xff]) })
  const found: [Uint8Array, Uint8Array][] = []
  for (let page = await iterator.nextv(1000); page.length > 0; page = await iterator.nextv(1000)) {
    found.push(...page.filter(([key]) => key[5] !== RecordType.history))
  }
  await iterator.close()
  return found
}

const { ok, absent, conditionFailed, stale } = CommandStatus

describe('KvMachine', () => {
  it('K2: versions count writes since creation, revisions never go back, deletes included, over a restart', () =>
    withMachine(async (fixture) => {
      expect(fixture.apply(1, 1, { key: 'a', value: 'x', sequence: 1 })).to.deep.equal([[ok, 1, 1]])
      expect(fixture.apply(1, 2, { key: 'a', value: 'y', sequence: 2 })).to.deep.equal([[ok, 2, 2]])
      expect(fixture.apply(1, 3, { key: 'a', sequence: 3 })).to.deep.equal([[ok, 0, 3]])
      expect(fixture.apply(1, 4, { key: 'a', sequence: 4 })).to.deep.equal([[absent, 0, 3]])
      await fixture.restart()
      expect(fixture.apply(1, 5, { key: 'a', value: 'z', sequence: 5 })).to.deep.equal([[ok, 1, 4]])
      expect(fixture.read('a')).to.equal('z v1 r4')
    }))

  it('K4: a condition that does not hold changes nothing and tells what is there', () =>
    withMachine(async (fixture) => {
      fixture.apply(1, 1, { key: 'a', value: 'x', sequence: 1 })
      expect(fixture.apply(1, 1, { key: 'a', value: 'y', sequence: 2, ifVersion: 0 })).to.deep.equal([[conditionFailed, 1, 1]])
      expect(fixture.apply(1, 1, { key: 'a', value: 'y', sequence: 3, ifRevision: 7 })).to.deep.equal([[conditionFailed, 1, 1]])
      expect(fixture.apply(1, 1, { key: 'a', sequence: 4, ifVersion: 2 })).to.deep.equal([[conditionFailed, 1, 1]])
      expect(fixture.apply(1, 1, { key: 'b', value: 'y', sequence: 5, ifVersion: 1 })).to.deep.equal([[conditionFailed, 0, 0]])
      expect(fixture.read('a')).to.equal('x v1 r1')
      expect(fixture.apply(1, 1, { key: 'a', value: 'y', sequence: 6, ifVersion: 1, ifRevision: 1 })).to.deep.equal([[ok, 2, 2]])
    }))

  it('K3, hazard c1: a repeat gets the first answer and changes nothing, over a restart and in another batch', () =>
    withMachine(async (fixture) => {
      fixture.apply(1, 1, { key: 'a', value: 'x', sequence: 1 }, { key: 'a', value: 'y', sequence: 2, ifVersion: 1 })
      fixture.apply(2, 1, { key: 'a', value: 'other', sequence: 1 })
      expect(fixture.apply(1, 1, { key: 'a', value: 'y', sequence: 2, ifVersion: 1 })).to.deep.equal([[ok, 2, 2]])
      await fixture.restart()
      const repeated = fixture.apply(1, 1, { key: 'a', value: 'y', sequence: 2, ifVersion: 1 }, { key: 'a', value: 'x', sequence: 1 })
      expect(repeated).to.deep.equal([
        [ok, 2, 2],
        [ok, 1, 1],
      ])
      expect(fixture.read('a')).to.equal('other v3 r3')
    }))

  it('hazard c2: an old copy below the low-water mark is refused, not applied', () =>
    withMachine(async (fixture) => {
      fixture.apply(1, 1, { key: 'a', value: 'x', sequence: 1 })
      fixture.apply(1, 2, { key: 'a', value: 'y', sequence: 2 })
      expect(fixture.apply(1, 1, { key: 'a', value: 'x', sequence: 1 })).to.deep.equal([[stale, 0, 0]])
      expect(fixture.read('a')).to.equal('y v2 r2')
    }))

  it('2 TestMemPutManyClientsReliable, 2 TestMemPutMany: 100,000 sessions that wrote once leave at most 200 bytes each', function () {
    this.timeout(120_000)
    return withMachine(async (fixture) => {
      const sessions = 100_000
      for (let at = 0; at < sessions; at++) {
        const session = Buffer.alloc(8)
        session.writeUInt32BE(at)
        const results = fixture.apply(session, 1, { key: 'k', value: 'x'.repeat(1000), sequence: 1, ifVersion: at })
        expect(results[0]![0]).to.equal(ok)
      }
      await fixture.restart()
      let bytes = 0
      for (const [key, value] of await records(fixture.database)) bytes += key.length + value.length
      expect(bytes).to.be.at.most(sessions * 200)
      expect(fixture.read('k')).to.match(/ v100000 r100000$/)
      // And a repeat from the first of them still gets its answer.
      expect(fixture.apply(Buffer.alloc(8), 1, { key: 'k', value: 'again', sequence: 1, ifVersion: 0 })).to.deep.equal([[ok, 1, 1]])
    })
  })

  it('D9.63: replicas that flush and restart at different times hold the same state', () =>
    withMachine((one) =>
      withMachine(async (two) => {
        for (let step = 1; step <= 200; step++) {
          const wish: Wish = { key: `k${step % 7}`, value: step % 5 === 0 ? null : `v${step}`, sequence: step }
          expect(one.apply(1, Math.max(1, step - 3), wish)).to.deep.equal(two.apply(1, Math.max(1, step - 3), wish))
          if (step % 11 === 0) await one.restart()
          if (step % 17 === 0) await two.restart()
        }
        await Promise.all([one.restart(), two.restart()])
        const dump = async (database: Database) =>
          (await records(database)).map(([key, value]) => `${Buffer.from(key).toString('hex')}=${Buffer.from(value).toString('hex')}`)
        const state = await dump(one.database)
        expect(state.length).to.be.greaterThan(10)
        expect(await dump(two.database)).to.deep.equal(state)
      }),
    ))
})

describe('checkBatch', () => {
  const good = encodeBatch(1, 1, [{ key: 'a', value: 'x', sequence: 1 }])

  it('hazard E1.10, E1.27: refuses what the state machine could not apply, at every cut and for every wrong field', () => {
    expect(checkBatch(good, shards, defaultLimits).commands).to.have.length(1)
    for (let length = 0; length < good.length; length++) {
      expect(() => checkBatch(good.subarray(0, length), shards, defaultLimits), `${length} bytes`).to.throw(CorruptionError)
    }
    expect(() => checkBatch(Buffer.concat([good, Buffer.from([0])]), shards, defaultLimits)).to.throw(CorruptionError)
    expect(() => checkBatch(good, shards + 1, defaultLimits)).to.throw(CorruptionError, 'shard')
    expect(() => checkBatch(encodeBatch(1, 1, []), shards, defaultLimits)).to.throw(CorruptionError, 'empty')
    expect(() => checkBatch(encodeBatch(1, 1, [{ key: '', value: 'x', sequence: 1 }]), shards, defaultLimits)).to.throw(CorruptionError, 'key')
  })

  it('hazard q2: keys and values at their limit pass, one byte more does not', () => {
    const limits = { ...defaultLimits, maxKeyBytes: 10, maxValueBytes: 20 }
    const check = (key: number, value: number) => () =>
      checkBatch(encodeBatch(1, 1, [{ key: 'k'.repeat(key), value: 'v'.repeat(value), sequence: 1 }]), shards, limits)
    expect(check(10, 20)).not.to.throw()
    expect(check(11, 20)).to.throw(CorruptionError, 'key')
    expect(check(10, 21)).to.throw(CorruptionError, 'value')
  })

  it('a tag in braces decides the shard', () => {
    const place = (key: string) => shardOf(Buffer.from(key), 4096)
    expect(place('{user1}.name')).to.equal(place('{user1}.mail')).and.to.equal(place('user1'))
    expect(place('{}a')).not.to.equal(place('{}b'))
    expect(readBatch(good).commands[0]!.shard).to.equal(shardOf(Buffer.from('a'), shards))
  })
})
