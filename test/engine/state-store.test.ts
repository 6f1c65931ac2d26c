import { join } from 'node:path'
import { expect } from 'chai'
import { systemRuntime } from '../../src/base/runtime.js'
import { type Database, openLevel } from '../../src/engine/database.js'
import type { StateRecord } from '../../src/engine/overlay.js'
import { StateStore } from '../../src/engine/state-store.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { withFolder } from '../support/folders.js'
import { newSeed } from '../support/seed.js'

const group = 2

class TextRecord implements StateRecord {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
  get sizeBytes(): number {
    return this.text.length
  }
  encode(): Uint8Array {
    return Buffer.from(this.text)
  }
}

function makeStore(database: Database, flushBytes = 2000, durableIndex = () => Number.MAX_SAFE_INTEGER): StateStore {
  return new StateStore({
    database,
    group,
    runtime: systemRuntime,
    decode: (_key, bytes) => new TextRecord(Buffer.from(bytes).toString()),
    flushBytes,
    flushAfterMs: 1,
    durableIndex,
    beforeFreeze: () => {},
    onFailure: (error) => {
      throw error
    },
  })
}

async function withDatabase(run: (database: Database) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const database = await openLevel(join(folder, 'state'), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
    try {
      await run(database)
    } finally {
      await database.close()
    }
  })
}

async function collect(store: StateStore, gte: string, lt: string, reverse: boolean): Promise<[string, string][]> {
  const cursor = store.iterate(gte, lt, reverse)
  const found: [string, string][] = []
  for (let next = await cursor.next(); next !== undefined; next = await cursor.next()) found.push([next.key, (next.record as TextRecord).text])
  await cursor.close()
  return found
}

describe('StateStore', () => {
  it('equals a model at any moment: gets and scans over both overlays and the database, over restarts', () =>
    withDatabase(async (database) => {
      const seed = newSeed()
      const random = new SeededRandom(seed, 'state')
      const model = new Map<string, string>()
      let store = makeStore(database)
      await store.open()
      for (let step = 1; step <= 2000; step++) {
        const key = `k${String(random.integer(0, 200)).padStart(3, '0')}`
        if (random.chance(0.3)) {
          model.delete(key)
          store.set(key, null)
        } else {
          model.set(key, `v${step}`)
          store.set(key, new TextRecord(`v${step}`))
        }
        store.advance(step)
        const probe = `k${String(random.integer(0, 200)).padStart(3, '0')}`
        expect((store.get(probe) as TextRecord | undefined)?.text, `seed ${seed}, step ${step}`).to.equal(model.get(probe))
        if (step % 50 === 0) {
          const [low, high] = [random.integer(0, 200), random.integer(0, 200)].sort((a, b) => a - b).map((n) => `k${String(n).padStart(3, '0')}`)
          const reverse = random.chance(0.5)
          const expected = [...model].filter(([k]) => k >= low! && k < high!).sort(([a], [b]) => (a < b ? -1 : 1))
          if (reverse) expected.reverse()
          expect(await collect(store, low!, high!, reverse), `seed ${seed}, step ${step}`).to.deep.equal(expected)
        }
        if (step % 500 === 0) {
          await store.close()
          store = makeStore(database)
          await store.open()
          expect(store.appliedIndex).to.equal(step)
        }
      }
      await store.close()
    }))

  it('a cursor sees the moment at which it was opened', () =>
    withDatabase(async (database) => {
      const store = makeStore(database)
      await store.open()
      for (const key of ['a', 'b', 'c']) store.set(key, new TextRecord('old'))
      store.advance(1)
      const cursor = store.iterate('a', 'z', false)
      store.set('a', new TextRecord('new'))
      store.set('b', null)
      store.set('d', new TextRecord('new'))
      store.advance(2)
      await store.close()
      const seen: string[] = []
      for (let next = await cursor.next(); next !== undefined; next = await cursor.next())
        seen.push(`${next.key}=${(next.record as TextRecord).text}`)
      await cursor.close()
      expect(seen).to.deep.equal(['a=old', 'b=old', 'c=old'])
    }))

  it('hazard D1.7, p8: what was not flushed is not counted as applied, and applied index and data are one', () =>
    withDatabase(async (database) => {
      const store = makeStore(database, 1_000_000)
      await store.open()
      store.set('a', new TextRecord('1'))
      store.advance(1)
      await store.close()
      // A crash: this overlay is never flushed.
      store.set('a', new TextRecord('2'))
      const again = makeStore(database)
      await again.open()
      expect(again.appliedIndex).to.equal(1)
      expect((again.get('a') as TextRecord).text).to.equal('1')
    }))

  it('hazard d3, D1.10: a flush lost from the middle empties the group, so that the log is replayed', () =>
    withDatabase(async (database) => {
      const store = makeStore(database)
      await store.open()
      const fences: Buffer[] = []
      for (let index = 1; index <= 3; index++) {
        store.set(`key${index}`, new TextRecord(`${index}`))
        store.advance(index)
        await store.close()
        const fence = Buffer.alloc(8)
        fence.writeUInt32BE(index, 4)
        fences.push(Buffer.concat([Buffer.from([0, group]), Buffer.from('\xff\xfff', 'latin1'), fence]))
      }
      const intact = makeStore(database)
      await intact.open()
      expect(intact.appliedIndex).to.equal(3)
      const batch = database.batch()
      batch.del(fences[1]!)
      batch.del(Buffer.concat([Buffer.from([0, group]), Buffer.from('key2')]))
      await batch.write({ sync: true })
      const holed = makeStore(database)
      await holed.open()
      expect(holed.appliedIndex).to.equal(0)
      expect(holed.get('key1')).to.equal(undefined)
      expect(await collect(holed, '', '\xff', false)).to.deep.equal([])
    }))

  it('hazard p2: a crash in the middle of emptying a group leaves nothing of it behind', () =>
    withDatabase(async (database) => {
      const store = makeStore(database)
      await store.open()
      store.set('left over', new TextRecord('1'))
      store.advance(1)
      await store.close()
      const batch = database.batch()
      batch.put(Buffer.concat([Buffer.from([0, group]), Buffer.from('\xff\xffe', 'latin1')]), Buffer.alloc(8))
      await batch.write({ sync: true })
      for (let again = 0; again < 2; again++) {
        const opened = makeStore(database)
        await opened.open()
        expect(opened.appliedIndex).to.equal(0)
        expect(opened.get('left over')).to.equal(undefined)
      }
      expect(await database.iterate({ gte: Buffer.from([0, group]), lt: Buffer.from([0, group + 1]) }).nextv(10)).to.deep.equal([])
    }))

  it('hazard D1.7: never flushes what the log does not hold durably, and asks the host to wait instead', () =>
    withDatabase(async (database) => {
      let durable = 0
      const store = makeStore(database, 1, () => durable)
      await store.open()
      store.set('a', new TextRecord('1'))
      store.advance(1)
      expect(store.awaitsLog).to.equal(true)
      await store.close()
      const behind = makeStore(database)
      await behind.open()
      expect(behind.appliedIndex).to.equal(0)
      durable = 1
      expect(store.awaitsLog).to.equal(false)
      store.flushIfDue()
      await store.close()
      const again = makeStore(database)
      await again.open()
      expect(again.appliedIndex).to.equal(1)
    }))

  it('keeps the number of fences bounded by durability barriers', () =>
    withDatabase(async (database) => {
      const store = makeStore(database)
      await store.open()
      for (let index = 1; index <= 300; index++) {
        store.set('key', new TextRecord(`${index}`))
        store.advance(index)
        await store.close()
      }
      const iterator = database.iterate({ gte: Buffer.from([0, group, 0xff, 0xff]), lt: Buffer.from([0, group + 1]) })
      const own = await iterator.nextv(1000)
      await iterator.close()
      expect(own.length).to.be.at.most(140)
      const again = makeStore(database)
      await again.open()
      expect(again.appliedIndex).to.equal(300)
    }))
})
