/** The table against a model: what it holds, what differs from the database, and its bound. */

import { expect } from 'chai'
import type { Writer } from '../../src/base/codec.js'
import { RecordTable, type StateRecord } from '../../src/engine/record-table.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { newSeed } from '../support/seed.js'

class TestRecord implements StateRecord {
  text: string

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

const textOf = (record: StateRecord | null | undefined) => (record instanceof TestRecord ? record.text : record)

describe('RecordTable', () => {
  const modelSeed = newSeed()
  it(`equals a model over random changes, freezes, thaws and look-ups, and never loses what the database does not have (seed ${modelSeed})`, () => {
    const random = new SeededRandom(modelSeed)
    const below = (bound: number) => Math.floor(random.next() * bound)
    const table = new RecordTable(() => 2000)
    const database = new Map<string, string>()
    /** What differs from the database, the frozen part and the active one. */
    let frozen = new Map<string, string | null>()
    let active = new Map<string, string | null>()
    const get = (key: string) => {
      const known = table.get(key)
      if (known !== undefined) return textOf(known)
      const stored = database.get(key)
      table.cache(key, stored === undefined ? null : new TestRecord(stored))
      return stored ?? null
    }
    for (let step = 0; step < 5000; step++) {
      const key = `k${String(below(60)).padStart(2, '0')}`
      const choice = below(20)
      if (choice < 8) {
        const text = choice < 2 ? null : `${step}`.repeat(1 + below(10))
        table.set(key, text === null ? null : new TestRecord(text))
        active.set(key, text)
      } else if (choice < 17) {
        const expected = active.has(key) ? active.get(key) : frozen.has(key) ? frozen.get(key) : (database.get(key) ?? null)
        expect(get(key), `${key} at step ${step}`).to.equal(expected)
        expect(table.owns(key)).to.equal(active.get(key) != null)
      } else if (choice === 17 && frozen.size === 0) {
        const { keys, records } = table.freeze()
        expect(new Map(keys.map((name, at) => [name, textOf(records[at])]))).to.deep.equal(active)
        frozen = active
        active = new Map()
      } else if (choice === 18) {
        for (const [name, text] of frozen) {
          if (text === null) database.delete(name)
          else database.set(name, text)
        }
        frozen = new Map()
        table.thaw()
        while (table.shrink());
      } else {
        const [gte, lt] = [`k${below(60)}`, `k${below(60)}`].sort() as [string, string]
        const expected = [...new Map([...frozen, ...active])].filter(([name]) => name >= gte && name < lt).sort(([a], [b]) => (a < b ? -1 : 1))
        expect(table.changesIn(gte, lt).map(([name, record]) => [name, textOf(record)])).to.deep.equal(expected)
      }
    }
  })

  it('stays within its bound of what the database has, and keeps what is asked for again and again', () => {
    const table = new RecordTable(() => 20_000)
    let missed = 0
    const get = (key: string) => {
      if (table.get(key) !== undefined) return
      missed++
      table.cache(key, new TestRecord('x'.repeat(60)))
    }
    get('hot')
    for (let at = 0; at < 10_000; at++) {
      get(`cold ${at}`)
      get('hot')
    }
    expect(missed).to.equal(10_001)
    let held = 0
    for (let at = 0; at < 10_000; at++) if (table.get(`cold ${at}`) !== undefined) held++
    expect(held).to.be.within(50, 100)
  })

  it('does not change what is frozen when a record is replaced', () => {
    const table = new RecordTable(() => 0)
    table.set('a', new TestRecord('1'))
    const { records } = table.freeze()
    expect(table.owns('a')).to.equal(false)
    table.set('a', new TestRecord('2'))
    expect(textOf(records[0])).to.equal('1')
    expect(table.changesIn('', 'z').map(([, record]) => textOf(record))).to.deep.equal(['2'])
    table.thaw()
    expect(textOf(table.get('a'))).to.equal('2')
  })

  it('lets go of what is seldom read as soon as the database has it, and of nothing newer', () => {
    const table = new RecordTable(() => 1_000_000)
    const seldom = (text: string) => Object.assign(new TestRecord(text), { isSeldomRead: true })
    table.set('a', seldom('old'))
    table.set('b', new TestRecord('kept'))
    table.set('c', seldom('old'))
    table.freeze()
    table.set('c', seldom('new'))
    expect(textOf(table.get('a'))).to.equal('old')
    table.thaw()
    expect([table.get('a'), textOf(table.get('b')), textOf(table.get('c'))]).to.deep.equal([undefined, 'kept', 'new'])
  })
})
