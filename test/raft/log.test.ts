/** The core's log against a plain array. */
import { expect } from 'chai'
import fc from 'fast-check'
import { entryBytes, RaftLog } from '../../src/raft/log.js'
import { type Entry, EntryKind } from '../../src/raft/types.js'
import { entriesAsRuns, logOf } from './support/entries.js'

function emptyLog(): RaftLog {
  return new RaftLog({ terms: [], lastIndex: 0, snapshotIndex: 0, snapshotTerm: 0 })
}

type Command = { append: number; size: number } | { truncate: number } | { evict: number; limit: number }
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ append: fc.integer({ min: 0, max: 2 }), size: fc.nat(40) }) },
  { weight: 1, arbitrary: fc.record({ truncate: fc.nat(12) }) },
  { weight: 2, arbitrary: fc.record({ evict: fc.nat(600), limit: fc.nat(30) }) },
)

describe('raft log', () => {
  it('hazard D2.16: equals a plain array under random appends, truncations and evictions', () => {
    fc.assert(
      fc.property(
        fc.array(command, { minLength: 1, maxLength: 120 }),
        fc.nat(5),
        fc.integer({ min: 0, max: 2 }),
        (commands, snapshotIndex, snapshotTerm) => {
          const log = new RaftLog({ terms: [], lastIndex: snapshotIndex, snapshotIndex, snapshotTerm: snapshotIndex === 0 ? 0 : snapshotTerm + 1 })
          const model: Entry[] = []
          let term = snapshotIndex === 0 ? 1 : snapshotTerm + 1
          let tailFirst = snapshotIndex + 1
          const lastIndex = () => snapshotIndex + model.length
          for (const step of commands) {
            if ('append' in step) {
              term += step.append === 2 ? 1 : 0
              const entry: Entry = { term, index: lastIndex() + 1, kind: EntryKind.command, data: new Uint8Array(step.size) }
              model.push(entry)
              log.append(entry)
            } else if ('truncate' in step) {
              if (model.length === 0) continue
              const from = Math.max(snapshotIndex + 1, lastIndex() - step.truncate)
              model.length = from - snapshotIndex - 1
              term++
              log.truncate(from)
              tailFirst = Math.min(tailFirst, from)
            } else {
              const limit = lastIndex() - step.limit
              log.evict(limit, step.evict)
              const size = () => model.slice(tailFirst - snapshotIndex - 1).reduce((sum, entry) => sum + entryBytes(entry), 0)
              while (size() > step.evict && tailFirst <= limit) tailFirst++
            }
            expect(log.lastIndex).to.equal(lastIndex())
            expect(log.tailFirstIndex).to.equal(tailFirst)
            expect(log.lastTerm).to.equal(model.at(-1)?.term ?? (snapshotIndex === 0 ? 0 : snapshotTerm + 1))
            for (const entry of model) {
              expect(log.termAt(entry.index)).to.equal(entry.term)
              const runFirst = model.find(({ term: other }) => other === entry.term)!.index
              expect(log.firstIndexOfRun(entry.index)).to.equal(runFirst)
            }
            expect(log.termAt(lastIndex() + 1)).to.equal(undefined)
            if (snapshotIndex > 0) expect(log.termAt(snapshotIndex - 1)).to.equal(undefined)
            const inMemory = model.slice(tailFirst - snapshotIndex - 1)
            expect(log.entries(tailFirst, lastIndex(), Number.POSITIVE_INFINITY)).to.deep.equal(inMemory)
            expect(log.tailBytes).to.equal(inMemory.reduce((sum, entry) => sum + entryBytes(entry), 0))
            expect(log.bytesBetween(tailFirst, lastIndex())).to.equal(log.tailBytes)
            expect(log.entries(tailFirst - 1, lastIndex(), 1000)).to.deep.equal([])
            for (const limitTerm of [term - 1, term]) {
              const below = model.filter((entry) => entry.term <= limitTerm && entry.index <= lastIndex() - 1).at(-1)
              if (below !== undefined) expect(log.lastIndexWithTermAtMost(limitTerm, lastIndex() - 1)).to.equal(below.index)
            }
          }
        },
      ),
      { numRuns: 300 },
    )
  })

  it('hands out entries up to a size, and always one', () => {
    const log = emptyLog()
    for (const entry of logOf([1, 1, 1, 1])) log.append(entry)
    const size = entryBytes(log.entries(1, 1, 1)[0]!)
    expect(log.entries(1, 4, 2 * size)).to.have.length(2)
    expect(log.entries(2, 4, 1).map(({ index }) => index)).to.deep.equal([2])
    expect(log.entries(2, 3, 100 * size).map(({ index }) => index)).to.deep.equal([2, 3])
    expect(log.entries(5, 9, 100)).to.deep.equal([])
  })

  it('knows all terms after a restart, and no entries', () => {
    const entries = logOf([1, 1, 2, 4, 4])
    const log = new RaftLog({ terms: entriesAsRuns(entries), lastIndex: 5, snapshotIndex: 0, snapshotTerm: 0 })
    expect([0, 1, 2, 3, 4, 5, 6].map((index) => log.termAt(index))).to.deep.equal([0, 1, 1, 2, 4, 4, undefined])
    expect(log.entries(1, 5, 1000)).to.deep.equal([])
    expect(log.tailFirstIndex).to.equal(6)
    log.truncate(4)
    expect(log.tailFirstIndex).to.equal(4)
    expect(log.lastTerm).to.equal(2)
  })

  it('keeps only the terms after its snapshot', () => {
    const log = new RaftLog({ terms: entriesAsRuns(logOf([1, 1, 2, 4, 4])), lastIndex: 5, snapshotIndex: 2, snapshotTerm: 1 })
    expect([0, 1, 2, 3, 4, 5, 6].map((index) => log.termAt(index))).to.deep.equal([undefined, undefined, 1, 2, 4, 4, undefined])
    expect(log.lastIndexWithTermAtMost(3, 5)).to.equal(3)
    expect(log.lastIndexWithTermAtMost(1, 5)).to.equal(2)
    expect(log.lastIndexWithTermAtMost(0, 5)).to.equal(1)
    const whole = new RaftLog({ terms: [{ term: 3, firstIndex: 1 }], lastIndex: 9, snapshotIndex: 9, snapshotTerm: 3 })
    expect(whole.lastTerm).to.equal(3)
    expect(whole.termAt(9)).to.equal(3)
    const one = new RaftLog({ terms: entriesAsRuns(logOf([1, 1, 1])), lastIndex: 3, snapshotIndex: 1, snapshotTerm: 1 })
    expect(one.firstIndexOfRun(3)).to.equal(2)
  })

  it('refuses terms that no log can have', () => {
    const make =
      (terms: { term: number; firstIndex: number }[], lastIndex = 5, snapshotIndex = 0, snapshotTerm = 0) =>
      () =>
        new RaftLog({ terms, lastIndex, snapshotIndex, snapshotTerm })
    expect(
      make([
        { term: 2, firstIndex: 1 },
        { term: 1, firstIndex: 3 },
      ]),
    ).to.throw('does not fit')
    expect(
      make([
        { term: 1, firstIndex: 1 },
        { term: 2, firstIndex: 1 },
      ]),
    ).to.throw('does not fit')
    expect(make([{ term: 1, firstIndex: 6 }])).to.throw('does not fit')
    expect(make([{ term: 0, firstIndex: 1 }])).to.throw('does not fit')
    expect(make([{ term: 1, firstIndex: 2 }])).to.throw('no term is known for index 1')
    expect(make([])).to.throw('no term is known for index 1')
    expect(make([{ term: 1, firstIndex: 1 }], 5, 2, 3)).to.throw('follows the snapshot')
    expect(make([], 1, 2, 1)).to.throw('before its snapshot')
  })
})
