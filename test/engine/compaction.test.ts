/** How far logs are compacted, by the rule alone and by a real engine; and what becomes of a group whose log is damaged. */
import { join } from 'node:path'
import { expect } from 'chai'
import { CorruptionError } from '../../src/base/errors.js'
import { decideCompaction } from '../../src/engine/compaction.js'
import { openLevel } from '../../src/engine/database.js'
import { recordKey, recordsEnd } from '../../src/engine/log-records.js'
import { LogTable } from '../../src/engine/log-table.js'
import { withFolder } from '../support/folders.js'
import { EngineFixture, putEntry, until } from './support/engine-fixture.js'

/** A log of records of one entry and 10 bytes each. */
function tableOf(firstIndex: number, lastIndex: number): LogTable {
  const table = new LogTable()
  for (let index = firstIndex; index <= lastIndex; index++) table.add(index, 10, index)
  return table
}

function decide(
  baseIndex: number,
  lastIndex: number,
  more: { flushedIndex?: number; neededAfter?: number; snapshotBytes?: number; maxBytes?: number; maxEntries?: number } = {},
): number | 'flush' | null {
  const { flushedIndex = lastIndex, neededAfter = Number.POSITIVE_INFINITY, snapshotBytes = 0, maxBytes = 1e9, maxEntries = 1e9 } = more
  const table = tableOf(baseIndex + 1, lastIndex)
  const { compactTo, flush } = decideCompaction({
    table,
    baseIndex,
    lastIndex,
    flushedIndex,
    neededAfter,
    snapshotBytes,
    limits: { maxBytes, maxEntries },
  })
  expect(flush).to.equal(flushedIndex < lastIndex)
  return compactTo ?? (flush ? 'flush' : null)
}

describe('decideCompaction', () => {
  it('cuts a log that is over a limit, of bytes or of entries, to half of it', () => {
    expect(decide(0, 100, { maxBytes: 1000 })).to.equal(null)
    expect(decide(0, 101, { maxBytes: 1000 })).to.equal(51)
    expect(decide(500, 601, { maxBytes: 1000 })).to.equal(551)
    expect(decide(0, 100, { maxEntries: 100 })).to.equal(null)
    expect(decide(0, 101, { maxEntries: 100 })).to.equal(51)
  })

  it('hazard m8: never goes beyond what the state holds durably, and has that moved on first', () => {
    expect(decide(0, 101, { maxBytes: 1000, flushedIndex: 30 })).to.equal(30)
    expect(decide(0, 101, { maxBytes: 1000, flushedIndex: 5 })).to.equal('flush')
    expect(decide(0, 101, { maxBytes: 1000, flushedIndex: 0 })).to.equal('flush')
  })

  it('hazard D6.48, m11: keeps what followers, and receivers of a snapshot, still need, up to twice the limit and no more', () => {
    expect(decide(0, 101, { maxBytes: 1000, neededAfter: 20 })).to.equal(20)
    expect(decide(0, 101, { maxBytes: 1000, neededAfter: 90 })).to.equal(51)
    expect(decide(0, 250, { maxBytes: 1000, neededAfter: 20 })).to.equal(50)
    expect(decide(0, 250, { maxEntries: 100, neededAfter: 20 })).to.equal(50)
    // Who gets a snapshot that is larger than that must find the log that follows it.
    expect(decide(0, 250, { maxBytes: 1000, neededAfter: 20, snapshotBytes: 2300 })).to.equal(20)
    expect(decide(0, 250, { maxBytes: 1000, neededAfter: 20, snapshotBytes: 2100 })).to.equal(40)
    expect(decide(0, 250, { maxBytes: 1000, neededAfter: 20, snapshotBytes: 500 })).to.equal(50)
    expect(decide(0, 250, { maxBytes: 1000, snapshotBytes: 1e6 })).to.equal(200)
  })

  it('does not cut for little', () => {
    expect(decide(0, 101, { maxBytes: 1000, neededAfter: 5 })).to.equal(null)
    expect(decide(0, 101, { maxBytes: 1000, neededAfter: 13 })).to.equal(13)
    expect(decide(0, 101, { maxEntries: 100, neededAfter: 5 })).to.equal(null)
    expect(decide(0, 101, { maxEntries: 100, neededAfter: 13 })).to.equal(13)
  })
})

describe('compaction of a group', () => {
  const small = { compactLogBytes: 2000, flushBytes: 100_000, flushAfterMs: 600_000 }

  it('happens while the group goes on, and the group goes on after a restart', () =>
    withFolder(async (folder) => {
      const fixture = new EngineFixture(folder)
      await fixture.open(small)
      try {
        for (let index = 1; index <= 200; index++) {
          fixture.append('a', 1, [index - 1, index === 1 ? 0 : 1], [putEntry(index, 1, `k${index % 20}`, `${index}`)], index)
          // One record an entry: entries that share one take fewer bytes.
          await until(() => fixture.status.appliedIndex === index && fixture.status.durableIndex === index)
        }
        const { core } = fixture.engine.host.replica(1)!
        await until(() => core.firstIndex > 100)
        await fixture.close()
        expect(await sizeOfLog(folder)).to.be.lessThan(4000)
        await fixture.open(small)
        const again = fixture.engine.host.replica(1)!.core
        expect([again.lastIndex, fixture.status.appliedIndex]).to.deep.equal([200, 200])
        expect(again.firstIndex).to.be.greaterThan(100)
        expect(again.configuration.voters).to.deep.equal(['a', 'b', 'c'])
        fixture.append('a', 1, [200, 1], [putEntry(201, 1, 'k', 'v')], 201)
        await until(() => fixture.status.appliedIndex === 201)
        expect(fixture.failures).to.deep.equal([])
      } finally {
        await fixture.close()
      }
    }))

  it('waits for the flush that it depends on', () =>
    withFolder(async (folder) => {
      const fixture = new EngineFixture(folder)
      await fixture.open(small)
      try {
        fixture.stateGate.close()
        for (let index = 1; index <= 120; index++) {
          fixture.append('a', 1, [index - 1, index === 1 ? 0 : 1], [putEntry(index, 1, `k${index}`, 'v')], index)
          await until(() => fixture.status.durableIndex === index)
        }
        await until(() => fixture.stateGate.held === 1)
        const { core } = fixture.engine.host.replica(1)!
        expect(core.firstIndex).to.equal(1)
        fixture.stateGate.open()
        await until(() => core.firstIndex > 20)
      } finally {
        await fixture.close()
      }
    }))
})

describe('a damaged log', () => {
  it('hazard d5, d6, D1.1: stops its group alone, for good; the others of the node go on', () =>
    withFolder(async (folder) => {
      const fixture = new EngineFixture(folder)
      const groups = [
        { id: 1, members: ['a', 'b', 'c'] },
        { id: 2, members: ['a', 'b', 'c'] },
      ]
      await fixture.open({}, groups)
      for (let index = 1; index <= 3; index++) {
        fixture.append('a', 1, [index - 1, index === 1 ? 0 : 1], [putEntry(index, 1, 'k', 'v')], index)
        await until(() => fixture.status.durableIndex === index)
      }
      await fixture.close()
      const key = recordKey(1, 2)
      const whole = await changeLog(folder, key, (record) => {
        record[record.length >> 1]! ^= 0x40
      })
      // The second time nothing of it is damaged any more, but what it said meanwhile nobody knows.
      for (const again of [false, true]) {
        await fixture.open({}, groups)
        expect(fixture.failures.splice(0)[0], `again: ${again}`).to.be.instanceOf(CorruptionError)
        expect(fixture.engine.status().map(({ group }) => group)).to.deep.equal([2])
        expect(fixture.engine.lives.damaged).to.deep.equal([1])
        await fixture.close()
        await changeLog(folder, key, (record) => record.set(whole))
      }
      // It is replaced by a new one, which begins with nothing.
      await fixture.open({}, groups)
      expect(await fixture.engine.lives.prepare(1)).to.not.equal(0)
      await fixture.close()
      await fixture.open({}, [])
      expect(fixture.engine.lives.damaged).to.deep.equal([])
      const replica = fixture.engine.host.replica(1)!
      expect([replica.core.lastIndex, replica.appliedIndex, replica.core.term, replica.core.configuration.voters]).to.deep.equal([0, 0, 0, []])
      await fixture.close()
    }))
})

/** Changes a record of a closed folder's log in place; resolves to what it was. */
async function changeLog(folder: string, key: Uint8Array, change: (record: Buffer) => void): Promise<Uint8Array> {
  const database = await openLevel(join(folder, 'log'), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
  try {
    const before = Uint8Array.from(database.getSync(key)!)
    const record = Buffer.from(before)
    change(record)
    const batch = database.batch()
    batch.put(key, record)
    await batch.write({ sync: true })
    return before
  } finally {
    await database.close()
  }
}

/** Bytes of the records of group 1 in a closed folder. */
async function sizeOfLog(folder: string): Promise<number> {
  const database = await openLevel(join(folder, 'log'), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
  try {
    const iterator = database.iterate({ gte: recordKey(1, 0), lt: recordsEnd(1) })
    let bytes = 0
    for (let page = await iterator.nextv(100); page.length > 0; page = await iterator.nextv(100)) {
      for (const [, value] of page) bytes += value.length
    }
    await iterator.close()
    return bytes
  } finally {
    await database.close()
  }
}
