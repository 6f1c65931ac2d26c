/** What a broken connection to the leader, and a split vote, may shorten, and what they may not: the promise that the leader's lease rests on. */
import { expect } from 'chai'
import { Solo } from './support/solo.js'

const electionTimeoutMs = 100
const heartbeatIntervalMs = 10

/** A follower of n2 that heard it last at 1000 ms. */
function follower(draw: number): Solo {
  const solo = new Solo({ raft: { random: () => draw } })
  solo.tick(1000).heartbeat({ from: 'n2', term: 1 }).settle()
  return solo
}

function lose(solo: Solo, peer: string): Solo {
  solo.core.step({ type: 'unreachable', peer })
  return solo
}

describe('a follower whose connection to the leader broke', () => {
  it('asks for pre-votes when what it promised to the leader is over, drawn from half a heartbeat interval, and not before', () => {
    for (const draw of [0, 0.5, 0.999]) {
      const solo = lose(follower(draw).tick(20), 'n2')
      // In term 1 n3 goes first: an interval later it is the turn of n1.
      const expectedMs = 1000 + electionTimeoutMs + heartbeatIntervalMs + (heartbeatIntervalMs / 2) * draw
      expect(solo.core.nextTickMs).to.be.closeTo(expectedMs, 1e-6)
      solo.tick(expectedMs - solo.nowMs - 0.01)
      expect(solo.settle()).to.deep.equal([])
      expect(solo.core.role).to.equal('follower')
      solo.tick(0.02)
      expect(solo.settle().map(({ type, to }) => `${type} ${to}`)).to.deep.equal(['pre-vote-request n2', 'pre-vote-request n3'])
      expect(solo.core.term, 'a pre-vote raises no term').to.equal(1)
    }
  })

  it('takes turns with the others, in an order that changes with the term', () => {
    const turnOf = (id: string, term: number): number => {
      const solo = new Solo({ raft: { id, random: () => 0 }, voters: ['n1', 'n2', 'n3', 'n4', 'n5'] })
      solo.tick(1000).message({ type: 'heartbeat', from: 'n3', to: id, term, commitIndex: 0, round: 0 })
      solo.core.step({ type: 'unreachable', peer: 'n3' })
      return (solo.core.nextTickMs - 1000 - electionTimeoutMs) / heartbeatIntervalMs
    }
    const turns = (term: number) => ['n1', 'n2', 'n4', 'n5'].map((id) => turnOf(id, term))
    expect(turns(4)).to.deep.equal([0, 1, 2, 3])
    expect(turns(5)).to.deep.equal([1, 2, 3, 0])
  })

  it('hazard D4.36: stands by the leader as long as before: its lease holds, whatever the network says', () => {
    const solo = lose(follower(0.5).tick(20), 'n2')
    const ask = (sequence: number) =>
      solo.message({ type: 'vote-request', from: 'n3', to: 'n1', term: 2, lastIndex: 0, lastTerm: 0, sequence, transfer: false }).settle()
    solo.tick(electionTimeoutMs - 20 - 0.01)
    expect(ask(1)).to.deep.equal([])
    expect(solo.core.term).to.equal(1)
    solo.tick(0.02)
    expect(ask(2).map(({ type }) => type)).to.deep.equal(['vote-reply'])
    expect(solo.core.term).to.equal(2)
  })

  it('waits as usual again when it hears the leader', () => {
    const solo = lose(follower(0.5).tick(20), 'n2')
    solo.heartbeat({ from: 'n2', term: 1 }).settle()
    expect(solo.core.nextTickMs).to.equal(1020 + 1.5 * electionTimeoutMs)
  })

  it('draws once, however often it is told', () => {
    let draws = 0
    const solo = new Solo({ raft: { random: () => 1 / ++draws } })
    solo.tick(1000).heartbeat({ from: 'n2', term: 1 }).settle()
    lose(solo, 'n2')
    const atMs = solo.core.nextTickMs
    for (let turn = 0; turn < 10; turn++) lose(solo, 'n2')
    expect(solo.core.nextTickMs).to.equal(atMs)
  })

  it('does nothing of the kind for others than its leader, nor as a candidate', () => {
    const solo = follower(0.5)
    const atMs = solo.core.nextTickMs
    lose(solo, 'n3')
    expect(solo.core.nextTickMs).to.equal(atMs)
    solo.tick(1.5 * electionTimeoutMs).settle()
    expect(solo.core.role).to.equal('pre-candidate')
    const nextMs = solo.core.nextTickMs
    lose(solo, 'n2')
    expect(solo.core.nextTickMs).to.equal(nextMs)
  })

  it('does nothing of the kind as a learner', () => {
    const solo = new Solo({ voters: ['n2'], learners: ['n1'] })
    solo.tick(1000).heartbeat({ from: 'n2', term: 1 }).settle()
    const atMs = solo.core.nextTickMs
    expect(lose(solo, 'n2').core.nextTickMs).to.equal(atMs)
  })
})

describe('two candidates in one term', () => {
  /** n1 in term 2, with a log of one entry of term 1, and a voter that is n0 or n2. */
  function candidate(other: string): Solo {
    const solo = new Solo({ voters: ['n1', other, 'n3'], terms: [1] })
    solo.tick(1.5 * electionTimeoutMs)
    const [request] = solo.settle()
    if (request?.type !== 'pre-vote-request') throw new Error('no campaign')
    solo.message({ type: 'pre-vote-reply', from: 'n3', to: 'n1', term: 2, granted: true, sequence: request.sequence })
    expect(solo.settle().map(({ type }) => type)).to.deep.equal(['vote-request', 'vote-request'])
    return solo
  }

  const rival = (solo: Solo, from: string, lastIndex: number) =>
    solo.message({ type: 'vote-request', from, to: 'n1', term: 2, lastIndex, lastTerm: lastIndex, sequence: 1, transfer: false }).settle()

  const cases = [
    ['the lower id, of equal logs', 'n0', 1, true],
    ['the greater id, of equal logs', 'n2', 1, false],
    ['the greater id, but a shorter log', 'n2', 0, true],
  ] as const
  for (const [what, other, lastIndex, retries] of cases)
    it(`${retries ? 'tries the next term soon, with a pre-vote,' : 'waits as always'} when the other has ${what}`, () => {
      const solo = candidate(other)
      expect(rival(solo, other, lastIndex)).to.deep.include({ type: 'vote-reply', from: 'n1', to: other, term: 2, granted: false, sequence: 1 })
      // One interval for those who have not voted yet, and half an interval that is drawn.
      solo.tick(heartbeatIntervalMs).settle()
      expect(solo.core.role).to.equal('candidate')
      solo.tick(heartbeatIntervalMs / 2)
      expect(solo.settle().map(({ type }) => type)).to.deep.equal(retries ? ['pre-vote-request', 'pre-vote-request'] : [])
      expect(solo.core.term).to.equal(2)
      expect(solo.core.role).to.equal(retries ? 'pre-candidate' : 'candidate')
    })
})
