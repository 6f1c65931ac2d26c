/** HistoryBlock: what was packed is unpacked again, from any revision on, also after blocks were joined and stored. */
import { expect } from 'chai'
import fc from 'fast-check'
import { Reader, Writer } from '../../src/base/codec.js'
import { CorruptionError } from '../../src/base/errors.js'
import { HistoryBlock } from '../../src/engine/history-block.js'
import { ValueRecord } from '../../src/engine/value-record.js'

interface Written {
  readonly revision: number
  readonly key: string
  readonly value: string | null
}

/** Transactions of one to four writes each, so that marks fall between events of one revision too. */
const history = (first: number) =>
  fc
    .array(
      fc.array(fc.record({ key: fc.string({ maxLength: 6 }), value: fc.option(fc.string({ maxLength: 20 })) }), { minLength: 1, maxLength: 4 }),
      {
        minLength: 1,
        maxLength: 80,
      },
    )
    .map((transactions) => transactions.flatMap((writes, at): Written[] => writes.map((write) => ({ revision: first + at, ...write }))))

function packed(events: readonly Written[]): HistoryBlock {
  const block = new HistoryBlock(events[0]!.revision)
  for (const { key, value, revision } of events) {
    const stored = value === null ? null : new ValueRecord(revision, revision, Buffer.from(value))
    block.add(`abc${Buffer.from(key).toString('latin1')}`, stored, revision)
  }
  return block
}

function visited(block: HistoryBlock, after: number, most = Number.POSITIVE_INFINITY): Written[] {
  const seen: Written[] = []
  block.visit(after, ({ revision, key, value }) => {
    seen.push({ revision, key: Buffer.from(key, 'latin1').toString(), value: value === null ? null : Buffer.from(value).toString() })
    return seen.length < most
  })
  return seen
}

function restored(block: HistoryBlock): HistoryBlock {
  const writer = new Writer()
  block.encode(writer)
  return HistoryBlock.decode(new Reader(writer.finish()))
}

describe('HistoryBlock', () => {
  it('gives back what was added after any revision, also joined with the block that follows, stored and read again', () => {
    fc.assert(
      fc.property(history(7), fc.integer({ min: 1, max: 79 }), fc.nat(90), (events, cut, offset) => {
        const after = 6 + offset
        const expected = events.filter(({ revision }) => revision > after)
        const whole = packed(events)
        expect(visited(whole, after)).to.deep.equal(expected)
        expect(visited(whole, after, 3)).to.deep.equal(expected.slice(0, 3))
        expect(visited(restored(whole), after)).to.deep.equal(expected)
        expect(whole.last).to.equal(events.at(-1)!.revision)
        const [older, newer] = [events.filter(({ revision }) => revision < 7 + cut), events.filter(({ revision }) => revision >= 7 + cut)]
        if (older.length === 0 || newer.length === 0) return
        for (const left of [packed(older), restored(packed(older))]) {
          const joined = left.followedBy(packed(newer))
          expect(visited(joined, after)).to.deep.equal(expected)
          expect(visited(restored(joined), after)).to.deep.equal(expected)
          expect([joined.first, joined.last]).to.deep.equal([7, events.at(-1)!.revision])
        }
      }),
    )
  })

  it('does not join over a gap', () => {
    const event = (revision: number) => packed([{ revision, key: 'k', value: 'v' }])
    expect(() => event(3).followedBy(event(5))).to.throw(CorruptionError)
    expect(() => event(3).followedBy(event(3))).to.throw(CorruptionError)
  })
})
