import { join } from 'node:path'
import { expect } from 'chai'
import { CorruptionError } from '../../src/base/errors.js'
import { type Database, openLevel } from '../../src/engine/database.js'
import { LogStore } from '../../src/engine/log-store.js'
import { type Entry, EntryKind, type PersistWork } from '../../src/raft/types.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { withFolder } from '../support/folders.js'
import { newSeed } from '../support/seed.js'

const group = 3

function entry(index: number, term: number, text = `${term}.${index}`): Entry {
  return { index, term, kind: EntryKind.command, data: Buffer.from(text) }
}

function work(entries: Entry[], truncateFrom: number | null = null): PersistWork {
  return { sequence: 1, hardState: null, reset: null, truncateFrom, entries }
}

function describeEntries(entries: readonly Entry[]): string[] {
  return entries.map(({ index, term, data }) => `${index}:${term}:${Buffer.from(data)}`)
}

async function withStore(run: (store: LogStore, reopen: () => LogStore, database: Database) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const database = await openLevel(join(folder, 'log'), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
    try {
      const store = new LogStore(database)
      await store.load(group)
      await run(store, () => new LogStore(database), database)
    } finally {
      await database.close()
    }
  })
}

describe('LogStore', () => {
  it('gives back after a restart what was written: terms, last index, hard state, entries', () =>
    withStore(async (store, reopen) => {
      await store.write([{ group, work: { ...work([entry(1, 1), entry(2, 1)]), hardState: { term: 1, vote: 'b' } } }])
      await store.write([{ group, work: { ...work([entry(3, 4)]), hardState: { term: 4, vote: null } } }])
      const again = reopen()
      expect(await again.load(group)).to.deep.equal({
        hardState: { term: 4, vote: null },
        terms: [
          { term: 1, firstIndex: 1 },
          { term: 4, firstIndex: 3 },
        ],
        lastIndex: 3,
      })
      expect(describeEntries(await again.read(group, 2, 3, 1000))).to.deep.equal(['2:1:1.2', '3:4:4.3'])
      expect(await again.read(group, 4, 9, 1000)).to.deep.equal([])
    }))

  it('keeps groups apart', () =>
    withStore(async (store, reopen) => {
      await store.load(group + 1)
      await store.write([
        { group, work: work([entry(1, 1)]) },
        { group: group + 1, work: work([entry(1, 7), entry(2, 7)]) },
      ])
      const again = reopen()
      expect((await again.load(group)).lastIndex).to.equal(1)
      expect((await again.load(group + 1)).lastIndex).to.equal(2)
    }))

  it('stops a read at its byte limit but returns at least one entry', () =>
    withStore(async (store) => {
      for (let index = 1; index <= 10; index++) await store.write([{ group, work: work([entry(index, 1, 'x'.repeat(100))]) }])
      expect(await store.read(group, 3, 10, 1)).to.have.length(1)
      expect(await store.read(group, 3, 10, 350)).to.have.length(4)
      expect(await store.read(group, 3, 5, 100_000)).to.have.length(3)
    }))

  it('D2.16: equals a model after random appends and truncations, over restarts', () =>
    withStore(async (store, reopen) => {
      const seed = newSeed()
      const random = new SeededRandom(seed, 'log')
      let model: Entry[] = []
      let term = 1
      for (let step = 0; step < 300; step++) {
        const cut = random.chance(0.3) && model.length > 0
        if (cut) term++
        const first = cut ? random.integer(1, model.length) : model.length + 1
        const added = Array.from({ length: random.integer(1, 6) }, (_, at) => entry(first + at, term))
        model = [...model.slice(0, first - 1), ...added]
        await store.write([{ group, work: work(added, cut ? first : null) }])
        if (random.chance(0.1)) {
          store = reopen()
          expect((await store.load(group)).lastIndex, `seed ${seed}`).to.equal(model.length)
        }
        const from = random.integer(1, model.length)
        const to = random.integer(from, model.length)
        const found = await store.read(group, from, to, 1_000_000)
        expect(describeEntries(found), `seed ${seed}, step ${step}`).to.deep.equal(describeEntries(model.slice(from - 1, to)))
      }
      const { terms } = await reopen().load(group)
      const expected = model.filter(({ index }) => index === 1 || model[index - 2]!.term !== model[index - 1]!.term)
      expect(terms).to.deep.equal(expected.map(({ term: runTerm, index }) => ({ term: runTerm, firstIndex: index })))
    }))

  it('hazard d5, d6: a damaged record, and a record missing between two others, are found on load', () =>
    withStore(async (store, reopen, database) => {
      for (let index = 1; index <= 3; index++) await store.write([{ group, work: work([entry(index, 1)]) }])
      const key = Buffer.from([0x02, 0, group, 0, 0, 0, 0, 0, 0, 0, 2])
      const record = Buffer.from(database.getSync(key)!)
      const failure = async () => {
        try {
          await reopen().load(group)
        } catch (error) {
          return error
        }
        return undefined
      }
      for (let at = 0; at < record.length; at++) {
        const damaged = Buffer.from(record)
        damaged[at]! ^= 0x10
        await put(database, key, damaged)
        expect(await failure(), `byte ${at}`).to.be.instanceOf(CorruptionError)
      }
      const batch = database.batch()
      batch.del(key)
      await batch.write({ sync: true })
      expect(await failure()).to.be.instanceOf(CorruptionError)
      await put(database, key, record)
      expect(await failure()).to.equal(undefined)
    }))
})

async function put(database: Database, key: Uint8Array, value: Uint8Array): Promise<void> {
  const batch = database.batch()
  batch.put(key, value)
  await batch.write({ sync: true })
}
