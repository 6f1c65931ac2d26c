import { join } from 'node:path'
import { expect } from 'chai'
import fc from 'fast-check'
import { CorruptionError } from '../../src/base/errors.js'
import { type Database, openLevel } from '../../src/engine/database.js'
import { groupKey, recordKey, recordsEnd } from '../../src/engine/log-records.js'
import { type GroupWork, type LoadedLog, type LogBase, LogStore } from '../../src/engine/log-store.js'
import { encodeConfiguration } from '../../src/raft/message-codec.js'
import { type Configuration, type Entry, EntryKind, type PersistWork } from '../../src/raft/types.js'
import { failureOf } from '../support/conditions.js'
import { withFolder } from '../support/folders.js'
import { crashAfter } from './support/crashing-database.js'

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

const founders: Configuration = { voters: ['a', 'b', 'c'], learners: [], votersOutgoing: [] }

async function begin(store: LogStore, ofGroup: number): Promise<void> {
  await store.create(ofGroup, { index: 0, term: 0, configuration: founders })
  await store.load(ofGroup)
}

/** How many records of a group the database holds. */
async function countRecords(database: Database, ofGroup: number): Promise<number> {
  const iterator = database.iterate({ gte: recordKey(ofGroup, 0), lt: recordsEnd(ofGroup), keysOnly: true })
  let count = 0
  for (let page = await iterator.nextv(100); page.length > 0; page = await iterator.nextv(100)) count += page.length
  await iterator.close()
  return count
}

async function withStore(run: (store: LogStore, reopen: () => LogStore, database: Database) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const database = await openLevel(join(folder, 'log'), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
    try {
      const store = new LogStore(database)
      await begin(store, group)
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
        base: { index: 0, term: 0, configuration: founders },
        configurations: [{ index: 0, configuration: founders }],
      })
      expect(describeEntries(await again.read(group, 2, 3, 1000))).to.deep.equal(['2:1:1.2', '3:4:4.3'])
      expect(await again.read(group, 4, 9, 1000)).to.deep.equal([])
    }))

  it('keeps groups apart', () =>
    withStore(async (store, reopen) => {
      await begin(store, group + 1)
      await store.write([
        { group, work: work([entry(1, 1)]) },
        { group: group + 1, work: work([entry(1, 7), entry(2, 7)]) },
      ])
      const again = reopen()
      expect((await again.load(group))!.lastIndex).to.equal(1)
      expect((await again.load(group + 1))!.lastIndex).to.equal(2)
    }))

  it('stops a read at its byte limit but returns at least one entry', () =>
    withStore(async (store) => {
      for (let index = 1; index <= 10; index++) await store.write([{ group, work: work([entry(index, 1, 'x'.repeat(100))]) }])
      expect(await store.read(group, 3, 10, 1)).to.have.length(1)
      expect(await store.read(group, 3, 10, 350)).to.have.length(4)
      expect(await store.read(group, 3, 5, 100_000)).to.have.length(3)
    }))

  it('hazard D2.16, D2.12: equals a model after any appends, truncations, compactions, resets and restarts', () =>
    withStore(async (_store, _reopen, database) => {
      let nextGroup = 10
      await fc.assert(
        fc.asyncProperty(fc.array(operation, { minLength: 1, maxLength: 40 }), async (operations) => {
          const ofGroup = nextGroup++
          let store = new LogStore(database)
          await begin(store, ofGroup)
          const model = new LogModel()
          for (const each of operations) {
            const works = model.run(each)
            if (works === 'reopen') {
              store = new LogStore(database)
              const loaded = (await store.load(ofGroup))!
              expect(loaded).to.deep.equal(model.loaded())
            } else if (works !== null) {
              await store.write([{ group: ofGroup, ...works }])
            }
            const { first, last } = model.range(each)
            const found = await store.read(ofGroup, first, last, each.readBytes)
            const expected = model.entries(first, last)
            expect(describeEntries(found)).to.deep.equal(describeEntries(expected.slice(0, found.length)))
            if (expected.length > 0) expect(found).to.have.length.of.at.least(1)
            if (each.readBytes === 1_000_000) expect(found).to.have.length(expected.length)
            expect(await store.read(ofGroup, model.base.index, last, 1000)).to.deep.equal([])
          }
        }),
        { numRuns: 150 },
      )
    }))

  it('hazard D2.16: reads more than fits in the cache, and entries larger than it', () =>
    withFolder(async (folder) => {
      const database = await openLevel(join(folder, 'log'), { cacheBytes: 4096, writeBufferBytes: 64 * 1024 })
      try {
        const store = new LogStore(database)
        await begin(store, group)
        const large = (index: number) => entry(index, 1, `${index}`.repeat(20_000))
        for (let first = 1; first < 60; first += 6) await store.write([{ group, work: work([0, 1, 2, 3, 4, 5].map((at) => large(first + at))) }])
        const found: Entry[] = []
        while (found.length < 60) found.push(...(await store.read(group, found.length + 1, 60, 100_000)))
        expect(describeEntries(found)).to.deep.equal(describeEntries(Array.from({ length: 60 }, (_, at) => large(at + 1))))
      } finally {
        await database.close()
      }
    }))

  it('compacts: deletes whole records in the same batch as the rest, a bounded number at a time, and the others with later writes and after a restart', () =>
    withStore(async (store, reopen, database) => {
      for (let index = 1; index <= 1300; index += 2) await store.write([{ group, work: work([entry(index, 1), entry(index + 1, 1)]) }])
      expect(await countRecords(database, group)).to.equal(650)
      const base = { index: 1250, term: 1, configuration: { voters: ['a'], learners: ['b'], votersOutgoing: [] } }
      await store.write([{ group, work: null, compactTo: base }])
      expect(await countRecords(database, group)).to.equal(650 - 512)
      expect(store.sizeBytes(group)).to.be.lessThan(2000)
      expect(await store.read(group, 1250, 1300, 1_000_000)).to.deep.equal([])
      expect(await store.read(group, 1251, 1300, 1_000_000)).to.have.length(50)
      const again = reopen()
      const loaded = (await again.load(group))!
      expect(loaded.base).to.deep.equal(base)
      expect([loaded.lastIndex, loaded.terms, loaded.configurations]).to.deep.equal([
        1300,
        [{ term: 1, firstIndex: 1251 }],
        [{ index: 1250, configuration: base.configuration }],
      ])
      await again.write([{ group, work: work([entry(1301, 1)]) }])
      expect(await countRecords(database, group)).to.equal(26)
      // A base never moves back.
      await again.write([{ group, work: null, compactTo: { ...base, index: 100 } }])
      expect((await reopen().load(group))!.base.index).to.equal(1250)
    }))

  it('finds the configurations of the log, those that were cut left out', () =>
    withStore(async (store, reopen) => {
      const next = (voters: string[]): Configuration => ({ voters, learners: ['z'], votersOutgoing: [] })
      const change = (index: number, term: number, voters: string[]): Entry => ({
        index,
        term,
        kind: EntryKind.configuration,
        data: encodeConfiguration(next(voters)),
      })
      await store.write([{ group, work: work([entry(1, 1), change(2, 1, ['a', 'b']), entry(3, 1), change(4, 1, ['a'])]) }])
      expect((await reopen().load(group))!.configurations).to.deep.equal([
        { index: 0, configuration: founders },
        { index: 2, configuration: next(['a', 'b']) },
        { index: 4, configuration: next(['a']) },
      ])
      await store.write([{ group, work: work([entry(4, 2)], 4) }])
      await store.write([{ group, work: null, compactTo: { index: 1, term: 1, configuration: founders } }])
      expect((await reopen().load(group))!.configurations).to.deep.equal([
        { index: 1, configuration: founders },
        { index: 2, configuration: next(['a', 'b']) },
      ])
    }))

  it('hazard D2.20: goes on right after a base with nothing else in the log', () =>
    withStore(async (store, reopen) => {
      await store.write([{ group, work: work([entry(1, 1), entry(2, 1)]) }])
      const reset = { index: 9, term: 3, configuration: founders, keepsLater: false }
      await store.write([{ group, work: { ...work([]), reset, hardState: { term: 3, vote: null } } }])
      const again = reopen()
      expect(await again.load(group)).to.deep.include({ lastIndex: 9, terms: [], base: { index: 9, term: 3, configuration: founders } })
      await again.write([{ group, work: work([entry(10, 4)]) }])
      expect((await reopen().load(group))!.terms).to.deep.equal([{ term: 4, firstIndex: 10 }])
    }))

  it('hazard D2.12, D6.47: never reads what a reset made void, though it is not deleted yet', () =>
    withStore(async (store, reopen) => {
      for (let index = 1; index <= 1300; index += 2) await store.write([{ group, work: work([entry(index, 1), entry(index + 1, 1)]) }])
      const reset = { index: 1299, term: 2, configuration: founders, keepsLater: false }
      await store.write([{ group, work: { ...work([]), reset } }])
      expect(await store.read(group, 1300, 1300, 1000)).to.deep.equal([])
      const again = reopen()
      expect(await again.load(group)).to.deep.include({ lastIndex: 1299, terms: [] })
      expect(await again.read(group, 1300, 1300, 1000)).to.deep.equal([])
    }))

  it('hazard D2.20: replaces the first entries after a base', () =>
    withStore(async (store, reopen) => {
      for (const first of [1, 3]) await store.write([{ group, work: work([entry(first, 1), entry(first + 1, 1)]) }])
      await store.write([{ group, work: null, compactTo: { index: 2, term: 1, configuration: founders } }])
      await store.write([{ group, work: work([entry(3, 2)], 3) }])
      expect((await reopen().load(group))!.terms).to.deep.equal([{ term: 2, firstIndex: 3 }])
    }))

  it('hazard D1.3, D1.7: a crash at any write leaves the log as before it or as after it, reset and compaction included', () =>
    withStore(async (_store, _reopen, database) => {
      const steps: Omit<GroupWork, 'group'>[] = [
        { work: { ...work([entry(1, 1), entry(2, 1), entry(3, 1)]), hardState: { term: 1, vote: 'a' } } },
        { work: { ...work([entry(3, 2), entry(4, 2)], 3), hardState: { term: 2, vote: null } } },
        { work: work([entry(5, 2)]), compactTo: { index: 3, term: 2, configuration: founders } },
        { work: { ...work([entry(9, 3)]), reset: { index: 8, term: 3, configuration: founders, keepsLater: false } } },
        { work: { ...work([entry(10, 3)]), reset: { index: 9, term: 3, configuration: founders, keepsLater: true } } },
      ]
      let before: unknown
      for (let done = 0; done <= steps.length; done++) {
        const ofGroup = 100 + done
        await begin(new LogStore(database), ofGroup)
        const crashing = crashAfter(database, done)
        const store = new LogStore(crashing)
        await store.load(ofGroup)
        for (const step of steps) await failureOf(store.write([{ group: ofGroup, ...step }]))
        const after = new LogStore(database)
        const loaded = (await after.load(ofGroup))!
        const expected = [0, 3, 4, 5, 9, 10]
        expect(loaded.lastIndex, `${done} writes`).to.equal(expected[done])
        expect(loaded.hardState.term).to.equal([0, 1, 2, 2, 2, 2][done])
        expect(loaded).to.not.deep.equal(before)
        before = loaded
      }
    }))

  it('hazard d5, d6: a damaged record, and a record missing between two others, are found on load', () =>
    withStore(async (store, reopen, database) => {
      for (let index = 1; index <= 3; index++) await store.write([{ group, work: work([entry(index, 1)]) }])
      const key = Buffer.from([0x02, 0, group, 0, 0, 0, 0, 0, 0, 0, 2])
      const record = Buffer.from(database.getSync(key)!)
      const failure = () => failureOf(reopen().load(group))
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

  it('hazard d10: a missing base, and a missing first record after a compaction, are found on load', () =>
    withStore(async (store, reopen, database) => {
      const remove = async (key: Uint8Array) => {
        const batch = database.batch()
        batch.del(key)
        await batch.write({ sync: true })
      }
      for (const first of [1, 4, 7]) await store.write([{ group, work: work([entry(first, 1), entry(first + 1, 1), entry(first + 2, 1)]) }])
      // A log that starts right before a record, with others after it; then one that starts in the midst of the last one.
      const starts: [index: number, first: number][] = [
        [3, 4],
        [8, 7],
      ]
      for (const [index, first] of starts) {
        await store.write([{ group, work: null, compactTo: { index, term: 1, configuration: founders } }])
        const key = recordKey(group, first)
        const record = database.getSync(key)!
        await remove(key)
        expect(await failureOf(reopen().load(group)), `base ${index}`).to.be.instanceOf(CorruptionError)
        await put(database, key, record)
        expect(await failureOf(reopen().load(group))).to.equal(undefined)
      }
      const base = groupKey('base', group)
      await remove(base)
      expect(await failureOf(reopen().load(group))).to.be.instanceOf(CorruptionError)
      expect(await reopen().load(group + 7)).to.equal(undefined)
    }))

  it('hazard d6: a damaged base or hard state is found on load', () =>
    withStore(async (store, reopen, database) => {
      await store.write([{ group, work: { ...work([entry(1, 1)]), hardState: { term: 1, vote: 'a' } } }])
      for (const key of [groupKey('base', group), groupKey('hardState', group)]) {
        const value = Buffer.from(database.getSync(key)!)
        for (let at = 0; at < value.length; at++) {
          const damaged = Buffer.from(value)
          damaged[at]! ^= 0x01
          await put(database, key, damaged)
          expect(await failureOf(reopen().load(group)), `byte ${at}`).to.be.instanceOf(CorruptionError)
        }
        await put(database, key, value)
      }
      expect(await failureOf(reopen().load(group))).to.equal(undefined)
    }))

  it('hazard d8, D1.1: a hard state that is missing is found on load, also when nothing else was written yet', () =>
    withStore(async (_store, reopen, database) => {
      expect((await reopen().load(group))?.hardState).to.deep.equal({ term: 0, vote: null })
      const batch = database.batch()
      batch.del(groupKey('hardState', group))
      await batch.write({ sync: true })
      expect(await failureOf(reopen().load(group))).to.be.instanceOf(CorruptionError)
    }))

  it('remembers that a log is damaged; removing a group leaves nothing of it, and a removal cut short leaves it marked', () =>
    withStore(async (store, reopen, database) => {
      await begin(store, group + 1)
      for (let index = 1; index <= 1100; index++) await store.write([{ group, work: work([entry(index, 1)]) }])
      await store.write([{ group: group + 1, work: work([entry(1, 1)]) }])
      expect(store.damage(group)).to.equal(undefined)
      const crashing = crashAfter(database, 2)
      expect(await failureOf(new LogStore(crashing).remove(group))).to.be.instanceOf(Error)
      expect(reopen().damage(group)).to.be.a('string')
      await reopen().remove(group)
      expect([await reopen().load(group), reopen().damage(group)]).to.deep.equal([undefined, undefined])
      expect(await countRecords(database, group)).to.equal(0)
      expect((await reopen().load(group + 1))!.lastIndex).to.equal(1)
    }))
})

async function put(database: Database, key: Uint8Array, value: Uint8Array): Promise<void> {
  const batch = database.batch()
  batch.put(key, value)
  await batch.write({ sync: true })
}

interface Operation {
  readonly type: 'append' | 'cut' | 'compact' | 'reset' | 'reopen'
  /** Where it happens, as a part of what there is. */
  readonly place: number
  readonly count: number
  readonly readBytes: number
}

const operation: fc.Arbitrary<Operation> = fc.record({
  type: fc.constantFrom('append', 'append', 'append', 'cut', 'cut', 'compact', 'reset', 'reopen'),
  place: fc.double({ min: 0, max: 1, noNaN: true }),
  count: fc.integer({ min: 1, max: 5 }),
  readBytes: fc.constantFrom(1, 20, 1_000_000),
})

/** A log as it should be. */
class LogModel {
  base: LogBase = { index: 0, term: 0, configuration: founders }
  #entries: Entry[] = []
  #term = 1

  get #last(): number {
    return this.base.index + this.#entries.length
  }

  entries(first: number, last: number): Entry[] {
    return this.#entries.filter(({ index }) => index >= first && index <= last)
  }

  range({ place, count }: Operation): { first: number; last: number } {
    const first = this.base.index + 1 + Math.floor(place * this.#entries.length)
    return { first, last: first + count * 3 }
  }

  #append(first: number, count: number): Entry[] {
    const added = Array.from({ length: count }, (_, at) => entry(first + at, this.#term))
    this.#entries = [...this.entries(0, first - 1), ...added]
    return added
  }

  /** Does it here, and says what the store is to do: null for nothing. */
  run({ type, place, count }: Operation): Omit<GroupWork, 'group'> | 'reopen' | null {
    const index = this.base.index + Math.floor(place * this.#entries.length)
    switch (type) {
      case 'append':
        return { work: work(this.#append(this.#last + 1, count)) }
      case 'cut': {
        if (index === this.#last) return null
        this.#term++
        return { work: work(this.#append(index + 1, count), index + 1) }
      }
      case 'compact': {
        if (index === this.base.index) return null
        this.#rebase(index, this.entries(index, index)[0]!.term)
        return count > 2 ? { work: null, compactTo: this.base } : { work: work(this.#append(this.#last + 1, count)), compactTo: this.base }
      }
      case 'reset': {
        const keepsLater = count > 2 && index > this.base.index
        this.#rebase(keepsLater ? index : index + count, keepsLater ? this.entries(index, index)[0]!.term : ++this.#term)
        if (!keepsLater) this.#entries = []
        const entries = place < 0.5 ? this.#append(this.#last + 1, count) : []
        return { work: { ...work(entries), reset: { ...this.base, keepsLater } } }
      }
      case 'reopen':
        return type
    }
  }

  #rebase(index: number, term: number): void {
    this.#entries = this.entries(index + 1, Number.POSITIVE_INFINITY)
    this.base = { index, term, configuration: { voters: [`at ${index}`], learners: [], votersOutgoing: [] } }
  }

  loaded(): LoadedLog {
    const terms: { term: number; firstIndex: number }[] = []
    for (const { term, index } of this.#entries) if (terms[terms.length - 1]?.term !== term) terms.push({ term, firstIndex: index })
    const configurations = [{ index: this.base.index, configuration: this.base.configuration }]
    return { hardState: { term: 0, vote: null }, terms, lastIndex: this.#last, base: this.base, configurations }
  }
}
