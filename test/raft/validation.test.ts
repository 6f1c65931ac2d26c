/** Messages that no correct node sends: counted, ignored, and nothing else (bad input E1.17, E1.21, E1.24). */
import { expect } from 'chai'
import fc from 'fast-check'
import { CorruptionError } from '../../src/base/errors.js'
import { InvariantError } from '../../src/raft/invariant.js'
import type { Entry, Message } from '../../src/raft/types.js'
import { maxCounter } from '../../src/raft/validation.js'
import { logOf } from './support/entries.js'
import { Solo } from './support/solo.js'

const append = {
  type: 'append-request',
  from: 'n2',
  to: 'n1',
  term: 3,
  previousIndex: 2,
  previousTerm: 1,
  entries: logOf([2, 3], 3),
  commitIndex: 0,
  session: 1,
  sequence: 1,
} as const satisfies Message

const withEntries = (change: (entry: Entry, position: number) => Entry) => ({ ...append, entries: append.entries.map(change) })

const bad: [string, Message][] = [
  ['a term out of range', { ...append, term: maxCounter + 2 }],
  ['the largest integer as term', { ...append, term: Number.MAX_SAFE_INTEGER }],
  ['a broken term', { ...append, term: 2.5 }],
  ['a negative term', { ...append, term: -1 }],
  ['no number as term', { ...append, term: Number.NaN }],
  ['an append in term 0', { ...append, term: 0, previousIndex: 0, previousTerm: 0, entries: [] }],
  ['a message for another replica', { ...append, to: 'n3' }],
  ['a request from itself', { ...append, from: 'n1' }],
  ['a previous term later than its own', { ...append, previousTerm: 4, entries: [] }],
  ['a previous index without a term', { ...append, previousTerm: 0 }],
  ['a previous term without an index', { ...append, previousIndex: 0 }],
  ['a negative previous index', { ...append, previousIndex: -2 }],
  ['entries that leave a gap', withEntries((entry) => ({ ...entry, index: entry.index + 1 }))],
  ['entries out of order', { ...append, entries: [...append.entries].reverse() }],
  ['an entry twice', { ...append, entries: [append.entries[0]!, append.entries[0]!] }],
  ['an entry later than the message', withEntries((entry) => ({ ...entry, term: 4 }))],
  ['terms that fall', withEntries((entry, position) => ({ ...entry, term: 3 - position }))],
  ['terms below the previous one', { ...append, previousTerm: 3 }],
  ['an entry of no term', withEntries((entry) => ({ ...entry, term: Number.NaN }))],
  ['an entry of a broken term', withEntries((entry) => ({ ...entry, term: 2.5 }))],
  ['an entry of an unknown kind', withEntries((entry) => ({ ...entry, kind: 7 as Entry['kind'] }))],
  ['a broken commit index', { ...append, commitIndex: 1.5 }],
  ['a negative session', { ...append, session: -1 }],
  [
    'a candidate with a log of the term it campaigns in',
    { type: 'vote-request', from: 'n2', to: 'n1', term: 3, lastIndex: 2, lastTerm: 3, sequence: 1, transfer: false },
  ],
  [
    'a candidate with an index and no term',
    { type: 'vote-request', from: 'n2', to: 'n1', term: 3, lastIndex: 2, lastTerm: 0, sequence: 1, transfer: false },
  ],
  ['a broken sequence', { type: 'pre-vote-request', from: 'n2', to: 'n1', term: 3, lastIndex: 0, lastTerm: 0, sequence: 0.5 }],
  ['a broken round', { type: 'heartbeat', from: 'n2', to: 'n1', term: 3, commitIndex: 0, round: -1 }],
  ['a heartbeat from itself', { type: 'heartbeat', from: 'n1', to: 'n1', term: 3, commitIndex: 0, round: 1 }],
  ['its own acknowledgement of a later term', { ...reply(), from: 'n1', term: 9 }],
  ['a type that nobody knows', { type: 'gossip', from: 'n2', to: 'n1', term: 9 } as unknown as Message],
]

function reply(): Message {
  return {
    type: 'append-reply',
    from: 'n2',
    to: 'n1',
    term: 1,
    session: 1,
    sequence: 1,
    accepted: true,
    matchIndex: 1,
    conflictTerm: 0,
    conflictIndex: 0,
  }
}

describe('raft validation', () => {
  for (const [what, message] of bad) {
    it(`hazard E1.24: counts and ignores ${what}`, () => {
      const solo = new Solo({ terms: [1, 1] })
      solo.message(message)
      expect(solo.core.status()).to.include({ malformedMessages: 1, term: 1, lastIndex: 2, commitIndex: 0, role: 'follower', leader: null })
      expect(solo.core.dirty).to.equal(false)
    })
  }

  it('takes the good ones that these were made from', () => {
    const solo = new Solo({ terms: [1, 1] })
    solo.message(append)
    expect(solo.core.status()).to.include({ malformedMessages: 0, term: 3, lastIndex: 4 })
  })

  const nodes = fc.constantFrom('n1', 'n2', 'n3', 'n4', 'x')
  const small = fc.oneof(
    { weight: 8, arbitrary: fc.nat(6) },
    { weight: 1, arbitrary: fc.constantFrom(-1, 0.5, Number.NaN, maxCounter, Number.MAX_SAFE_INTEGER) },
  )
  const anyMessage = fc.record({
    type: fc.constantFrom<Message['type']>(
      'pre-vote-request',
      'pre-vote-reply',
      'vote-request',
      'vote-reply',
      'append-request',
      'append-reply',
      'heartbeat',
      'heartbeat-reply',
    ),
    from: nodes,
    to: fc.oneof({ weight: 9, arbitrary: fc.constant('n1') }, { weight: 1, arbitrary: nodes }),
    term: small,
    lastIndex: small,
    lastTerm: small,
    granted: fc.boolean(),
    accepted: fc.boolean(),
    sequence: small,
    session: small,
    previousIndex: small,
    previousTerm: small,
    commitIndex: small,
    matchIndex: small,
    conflictTerm: small,
    conflictIndex: small,
    round: small,
    entries: fc.array(fc.nat(4), { maxLength: 4 }).chain((terms) => small.map((first) => logOf([...terms].sort(), first))),
  }) as unknown as fc.Arbitrary<Message>
  const anyAct = fc.oneof(
    { weight: 6, arbitrary: fc.record({ message: anyMessage }) },
    { weight: 2, arbitrary: fc.record({ passMs: fc.nat(120) }) },
    { weight: 2, arbitrary: fc.constant('settle' as const) },
    { weight: 1, arbitrary: fc.constant('propose' as const) },
    { weight: 1, arbitrary: fc.constant('read' as const) },
    { weight: 1, arbitrary: fc.constant('win' as const) },
  )

  it('hazard E1.24: whatever is sent, in whatever role, the core keeps its own rules and throws for nothing but a contradiction of what is committed or acknowledged', () => {
    fc.assert(
      fc.property(fc.array(anyAct, { minLength: 1, maxLength: 60 }), (acts) => {
        const solo = new Solo({ terms: [1, 1, 2] })
        let { term, commitIndex } = solo.core
        for (const act of acts) {
          try {
            if (act === 'settle') solo.settle()
            else if (act === 'propose') solo.propose('a')
            else if (act === 'read') solo.read(1)
            else if (act === 'win') {
              if (solo.core.role !== 'leader') solo.campaign()
            } else if ('passMs' in act) solo.tick(act.passMs)
            else solo.message(act.message)
          } catch (error) {
            const isContradiction = error instanceof InvariantError && error.message.includes('contradicts a committed entry')
            const named = typeof act === 'object' && 'message' in act && act.message.type === 'heartbeat' ? act.message.commitIndex : 0
            const isLoss = error instanceof CorruptionError && named > solo.core.lastIndex
            if (!isContradiction && !isLoss) throw error
            return
          }
          const { core } = solo
          expect(core.term).to.be.at.least(term)
          expect(core.commitIndex).to.be.within(commitIndex, core.lastIndex)
          expect(core.nextTickMs).to.be.a('number').and.not.NaN
          if (core.role !== 'leader') expect(core.uncommittedBytes).to.equal(0)
          for (const peer of ['n2', 'n3']) {
            const progress = core.progressOf(peer)
            if (progress !== undefined) expect(progress.matchIndex).to.be.below(progress.nextIndex)
          }
          term = core.term
          commitIndex = core.commitIndex
        }
      }),
      { numRuns: 3000 },
    )
  })
})
