import { join } from 'node:path'
import { expect } from 'chai'
import type { Writer } from '../../src/base/codec.js'
import { CorruptionError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { type Database, openLevel } from '../../src/engine/database.js'
import type { StateRecord } from '../../src/engine/record-table.js'
import { type StateCapture, type StatePage, StateStore } from '../../src/engine/state-store.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { withFolder } from '../support/folders.js'
import { newSeed } from '../support/seed.js'
import { CrashedError, crashAfter, dump } from './support/crashing-database.js'

const group = 2

class TextRecord implements StateRecord {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
  get sizeBytes(): number {
    return this.text.length
  }
  encode(writer: Writer): void {
    writer.raw(Buffer.from(this.text))
  }
}

function makeStore(
  database: Database,
  flushBytes = 2000,
  durableIndex = () => Number.MAX_SAFE_INTEGER,
  onFailure = (error: unknown): void => {
    throw error
  },
  ofGroup = group,
): StateStore {
  return new StateStore({
    database,
    group: ofGroup,
    runtime: systemRuntime,
    decode: (_key, bytes) => new TextRecord(Buffer.from(bytes).toString()),
    cacheBytes: () => 500,
    flushBytes,
    flushAfterMs: 1,
    durableIndex,
    beforeFreeze: () => {},
    onFailure,
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

  it('hazard d1, d3, D1.10: every write to the state database is synced, so that no power loss can take one from the middle', () =>
    withDatabase(async (database) => {
      const syncs: boolean[] = []
      const observed: Database = {
        ...database,
        batch: () => {
          const batch = database.batch()
          return {
            put: (key, value) => batch.put(key, value),
            del: (key) => batch.del(key),
            write: (options) => {
              syncs.push(options.sync)
              return batch.write(options)
            },
          }
        },
      }
      const store = makeStore(observed)
      await store.open()
      for (let index = 1; index <= 3; index++) {
        store.set(`key${index}`, new TextRecord(`${index}`))
        store.advance(index)
        store.flushSoon()
        await store.flushed()
      }
      await stageCopy(store, store.capture())
      store.set('key4', new TextRecord('4'))
      expect(await store.install(3, Buffer.from('origin'), () => {})).to.equal(false)
      await store.close()
      // Three flushes, and the removal of what was staged.
      expect(syncs.length).to.be.at.least(3)
      expect(syncs).to.not.include(false)
    }))

  it('hazard p8, D1.7, D1.9: a crash at any write of flushes leaves the state at exactly its applied index', () =>
    withDatabase(async (database) => {
      for (let writesLeft = 0; writesLeft <= 6; writesLeft++) {
        const failures: unknown[] = []
        const crashing = crashAfter(database, writesLeft)
        const store = makeStore(crashing, 1, undefined, (error) => failures.push(error))
        await store.open()
        const first = store.appliedIndex
        for (let index = first + 1; index <= first + 4 && failures.length === 0; index++) {
          store.set('last', new TextRecord(`${index}`))
          store.set(`key${index}`, new TextRecord(`${index}`))
          store.advance(index)
          await store.flushed()
        }
        await store.close()
        expect(failures.length, `crash at write ${writesLeft}`).to.equal(writesLeft < 4 ? 1 : 0)
        const again = makeStore(database)
        await again.open()
        expect(again.appliedIndex).to.equal(first + Math.min(4, writesLeft))
        if (again.appliedIndex > 0) expect((again.get('last') as TextRecord).text).to.equal(`${again.appliedIndex}`)
        expect((await collect(again, 'key', 'kez', false)).length).to.equal(again.appliedIndex)
      }
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

  describe('with a snapshot', () => {
    it('captures what was flushed last, and stays the same while writes go on', () =>
      withDatabase(async (database) => {
        const store = makeStore(database, 1_000_000)
        await store.open()
        await fill(store, 1, 50)
        store.set('key 10', new TextRecord('not flushed'))
        store.advance(51)
        const capture = store.capture()
        store.set('key 20', null)
        store.advance(52)
        store.flushSoon()
        await store.flushed()
        expect(store.flushedIndex).to.equal(52)
        expect(capture.index).to.equal(50)
        const records = await readAll(capture, 64)
        expect(records.filter(([key]) => key.startsWith('key'))).to.deep.equal(expectedKeys(1, 50))
        expect(await readAll(capture, 1_000_000)).to.deep.equal(records)
        await capture.close()
        await store.close()
      }))

    it('hazard m8, D6.52: is invisible until it is installed, then replaces all at once, and its old state is removed', () =>
      withDatabase(async (database) => {
        const source = makeStore(database, 1_000_000, undefined, undefined, group + 1)
        await source.open()
        await fill(source, 1, 300)
        const store = makeStore(database)
        await store.open()
        store.set('old', new TextRecord('old'))
        store.advance(7)
        await store.flushed()
        await stageCopy(store, source.capture())
        expect((store.get('old') as TextRecord).text).to.equal('old')
        expect(store.get('key 1')).to.equal(undefined)
        expect(await collect(store, '', '\xfe', false)).to.deep.equal([['old', 'old']])
        const cursor = store.iterate('', '\xfe', false)
        let told = 0
        expect(await store.install(300, Buffer.from('origin'), () => told++)).to.equal(true)
        expect(told).to.equal(1)
        expect([store.appliedIndex, store.flushedIndex]).to.deep.equal([300, 300])
        expect(Buffer.from(store.origin()!).toString()).to.equal('origin')
        expect(store.get('old')).to.equal(undefined)
        expect(await collect(store, 'key', 'kez', false)).to.deep.equal(expectedKeys(1, 300))
        // Who was reading goes on with what it began with.
        expect((await cursor.next())?.key).to.equal('old')
        expect(await cursor.next()).to.equal(undefined)
        await cursor.close()
        store.set('key 1', new TextRecord('new'))
        store.advance(301)
        await until(async () => !(await dump(database)).some((record) => record.endsWith('old=old')))
        await store.close()
        const again = makeStore(database)
        await again.open()
        expect(again.appliedIndex).to.equal(301)
        expect((await collect(again, 'key', 'kez', false))[0]).to.deep.equal(['key 1', 'new'])
        await source.close()
      }))

    it('hazard m9, D6.47: never moves back: a snapshot that the state has overtaken is removed', () =>
      withDatabase(async (database) => {
        const store = makeStore(database)
        await store.open()
        await fill(store, 1, 20)
        await stageCopy(store, store.capture())
        await fill(store, 21, 30)
        const before = await collect(store, '', '\xfe', false)
        expect(await store.install(20, Buffer.alloc(0), () => expect.fail('installed'))).to.equal(false)
        expect(store.appliedIndex).to.equal(30)
        expect(await collect(store, '', '\xfe', false)).to.deep.equal(before)
        await until(async () => !(await dump(database)).some((record) => record.startsWith('\x00\x02\x01')))
        await store.close()
      }))

    it('refuses to install what is not whole: a staged state without its applied index', () =>
      withDatabase(async (database) => {
        const store = makeStore(database)
        await store.open()
        await store.beginStaging()
        await store.stage([[Buffer.from('key'), Buffer.from('half')]])
        let failure: unknown
        await store
          .install(10, Buffer.alloc(0), () => {})
          .catch((error: unknown) => {
            failure = error
          })
        expect(failure).to.be.instanceOf(CorruptionError)
        expect(store.appliedIndex).to.equal(0)
        expect(store.get('key')).to.equal(undefined)
        await store.close()
      }))

    it('hazard m8, p1, p2: a crash at any write of an install leaves the old state or the new one, whole, and nothing else after the next start', () =>
      withFolder(async (folder) => {
        for (let writesLeft = 0, finished = false; !finished; writesLeft++) {
          const database = await openLevel(join(folder, `${writesLeft}`), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
          try {
            const source = makeStore(database, 1_000_000, undefined, undefined, group + 1)
            await source.open()
            await fill(source, 100, 130)
            const before = makeStore(database)
            await before.open()
            await fill(before, 1, 10)
            await before.close()
            const crashing = crashAfter(database, writesLeft)
            const store = makeStore(crashing, 1, undefined, () => {})
            await store.open()
            try {
              await stageCopy(store, source.capture())
              await store.install(130, Buffer.from('origin'), () => {})
              await until(async () => crashing.crashed || !(await dump(database)).some((record) => record.startsWith('\x00\x02\x00')))
            } catch (error) {
              if (!(error instanceof CrashedError)) throw error
            }
            finished = !crashing.crashed
            await store.close()
            const again = makeStore(database)
            await again.open()
            const installed = again.appliedIndex === 130
            if (!installed) expect(again.appliedIndex, `crash at write ${writesLeft}`).to.equal(10)
            expect(await collect(again, 'key', 'kez', false)).to.deep.equal(installed ? expectedKeys(100, 130) : expectedKeys(1, 10))
            expect(again.origin() !== undefined).to.equal(installed)
            const other = installed ? '\x00\x02\x00' : '\x00\x02\x01'
            await until(async () => !(await dump(database)).some((record) => record.startsWith(other)))
            await again.close()
            await source.close()
          } finally {
            await database.close()
          }
          expect(writesLeft).to.be.lessThan(40)
        }
      }))

    it('hazard m9, D6.47: takes two snapshots in succession, and applies between them', () =>
      withDatabase(async (database) => {
        const source = makeStore(database, 1_000_000, undefined, undefined, group + 1)
        await source.open()
        const store = makeStore(database)
        await store.open()
        let last = 0
        for (const index of [40, 90]) {
          await fill(source, last + 1, index)
          await stageCopy(store, source.capture())
          expect(await store.install(index, Buffer.from(`${index}`), () => {})).to.equal(true)
          store.set(`key ${index + 1}`, new TextRecord(`${index + 1}`))
          store.advance(index + 1)
          last = index
        }
        await store.close()
        const again = makeStore(database)
        await again.open()
        expect(again.appliedIndex).to.equal(91)
        expect(await collect(again, 'key', 'kez', false)).to.deep.equal(expectedKeys(1, 91))
        await source.close()
      }))
  })
})

/** Entries from first to last, each with a key of its own, flushed. */
async function fill(store: StateStore, first: number, last: number): Promise<void> {
  for (let index = first; index <= last; index++) {
    store.set(`key ${index}`, new TextRecord(`${index}`))
    store.advance(index)
  }
  await store.flushed()
  store.flushSoon()
  await store.flushed()
}

function expectedKeys(first: number, last: number): [string, string][] {
  const keys = Array.from({ length: last - first + 1 }, (_, at): [string, string] => [`key ${first + at}`, `${first + at}`])
  return keys.sort(([one], [other]) => (one < other ? -1 : 1))
}

async function readAll(capture: StateCapture, maxBytes: number): Promise<[string, string][]> {
  const found: [string, string][] = []
  for (let after: Uint8Array | null = null; ; ) {
    const { records, isLast }: StatePage = await capture.read(after, maxBytes)
    for (const [key, value] of records) found.push([Buffer.from(key).toString('latin1'), Buffer.from(value).toString()])
    if (isLast) return found
    after = records[records.length - 1]![0]
  }
}

/** Stages a captured state in a store. */
async function stageCopy(store: StateStore, capture: StateCapture): Promise<void> {
  await store.beginStaging()
  for (let after: Uint8Array | null = null; ; ) {
    const { records, isLast }: StatePage = await capture.read(after, 200)
    await store.stage(records)
    if (isLast) break
    after = records[records.length - 1]![0]
  }
  await capture.close()
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 1))
}
