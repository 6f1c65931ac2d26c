/** Lease reads (thesis §6.4.1): when they may be answered without asking, and what followers promise. */
import { expect } from 'chai'
import { Cluster } from './support/cluster.js'
import { only, Solo } from './support/solo.js'

/** Whether a read by lease is answered at once. */
function isAnswered(leader: Solo, id: number): boolean {
  leader.core.step({ type: 'tick', nowMs: leader.nowMs })
  leader.core.step({ type: 'read', id, lease: true })
  return leader.drain().reads.some((read) => read.id === id)
}

/** Sends the next heartbeats and returns their round. */
function beat(leader: Solo): number {
  return only(leader.tick(10).drain().sendNow, 'heartbeat').at(-1)!.round
}

describe('raft lease', () => {
  it('holds for three quarters of an election timeout from when a quorum was asked', () => {
    const leader = new Solo().leadAgreed()
    const round = beat(leader)
    leader.tick(9)
    leader.answerHeartbeat('n2', round)
    expect(isAnswered(leader, 1)).to.equal(true)
    leader.tick(65)
    expect(isAnswered(leader, 2), '74 ms after the round was sent').to.equal(true)
    leader.tick(1)
    expect(isAnswered(leader, 3), '75 ms after').to.equal(false)
  })

  it('hazard D4.36: is measured from when the round was sent, not from the answer', () => {
    const leader = new Solo().leadAgreed()
    const round = beat(leader)
    leader.tick(70)
    leader.answerHeartbeat('n2', round)
    expect(isAnswered(leader, 1)).to.equal(true)
    leader.tick(6)
    expect(isAnswered(leader, 2), 'the answer came 6 ms ago').to.equal(false)
  })

  it('hazard D4.33: not before an entry of the own term is committed', () => {
    const leader = new Solo()
    leader.lead()
    leader.answerHeartbeat('n2', beat(leader))
    expect(isAnswered(leader, 1)).to.equal(false)
  })

  it('hazard D4.35: learners, strangers and one of two majorities do not make it', () => {
    const leader = new Solo({ voters: ['n1', 'n2', 'n3', 'n4', 'n5'], learners: ['l1', 'l2'] }).leadAgreed()
    const round = beat(leader)
    for (const from of ['l1', 'l2', 'n9', 'n2', 'n2']) leader.answerHeartbeat(from, round)
    expect(isAnswered(leader, 1)).to.equal(false)
    leader.answerHeartbeat('n3', round)
    expect(isAnswered(leader, 2)).to.equal(true)
    leader.core.step({ type: 'configure', id: 9, voters: ['n1', 'n6', 'n7'], learners: [] })
    expect(isAnswered(leader, 3), 'no majority of the incoming voters').to.equal(false)
  })

  it('an answer to an earlier leadership, or to a round that nobody sent, is none', () => {
    const leader = new Solo().leadAgreed()
    const round = beat(leader)
    leader.answerHeartbeat('n2', round + 5)
    expect(isAnswered(leader, 1)).to.equal(false)
    leader.message({ type: 'heartbeat-reply', from: 'n2', to: 'n1', term: leader.core.term - 1, round })
    expect(isAnswered(leader, 2)).to.equal(false)
  })

  it('hazard D4.36: a loop that stood still finds it over', () => {
    const leader = new Solo().leadAgreed()
    leader.answerHeartbeat('n2', beat(leader))
    leader.nowMs += 5000
    expect(isAnswered(leader, 1)).to.equal(false)
  })

  it('hazard D4.36: is void from when another was told to campaign, also when the transfer failed', () => {
    const leader = new Solo().leadAgreed()
    leader.answerHeartbeat('n2', beat(leader))
    expect(isAnswered(leader, 1)).to.equal(true)
    leader.core.step({ type: 'transfer', id: 9, to: 'n3' })
    expect(only(leader.drain().sendNow, 'timeout-now')).to.have.length(1)
    expect(isAnswered(leader, 2)).to.equal(false)
    for (let beats = 0; beats < 12; beats++) for (const from of ['n2', 'n3']) leader.answerHeartbeat(from, beat(leader))
    expect(leader.outputs.flatMap(({ rejected }) => rejected).filter(({ id }) => id === 9)).to.deep.equal([{ id: 9, reason: 'timeout' }])
    expect(isAnswered(leader, 3), 'the message may still be under way').to.equal(false)
  })

  it('hazard D5.44: a leader that removed itself has none: who is alone after it asks nobody when it starts again', () => {
    const leader = new Solo({ voters: ['n1', 'n2'] }).leadAgreed()
    leader.core.step({ type: 'configure', id: 1, voters: ['n2'], learners: [] })
    for (let drains = 0; leader.core.configuration.votersOutgoing.length > 0 || leader.core.configuration.voters.length > 1; drains++) {
      if (drains > 3) throw new Error('the joint configuration is not left')
      for (const request of only(leader.settle(), 'append-request', 'n2')) leader.accept(request, request.previousIndex + request.entries.length)
    }
    leader.settle()
    expect(leader.core.configuration.voters).to.deep.equal(['n2'])
    leader.answerHeartbeat('n2', beat(leader))
    expect(isAnswered(leader, 2)).to.equal(false)
  })

  it('a leader that is alone has it always', () => {
    const leader = new Solo({ voters: ['n1'] })
    leader.tick(1).settle()
    expect(leader.core.role).to.equal('leader')
    leader.tick(100_000)
    expect(isAnswered(leader, 1)).to.equal(true)
  })

  it('on others and without it a read is as any read', () => {
    const follower = new Solo()
    follower.core.step({ type: 'read', id: 1, lease: true })
    expect(follower.drain().rejected).to.deep.equal([{ id: 1, reason: 'not-leader' }])
    const leader = new Solo().leadAgreed().tick(80)
    leader.settle()
    leader.core.step({ type: 'read', id: 1, lease: true })
    leader.answerHeartbeat('n2', only(leader.drain().sendNow, 'heartbeat').at(-1)!.round)
    expect(leader.drain().reads.map(({ id }) => id)).to.deep.equal([1])
  })

  describe('what followers promise: no vote against a leader within an election timeout of hearing it', () => {
    const preVote = { type: 'pre-vote-request', to: 'n1', lastIndex: 9, lastTerm: 3, sequence: 1 } as const
    const vote = { ...preVote, type: 'vote-request', transfer: false } as const
    const votes = (solo: Solo) => solo.settle().filter(({ type }) => type.endsWith('vote-reply')).length

    it('nor right after a restart, when one may have been heard before it', () => {
      const solo = new Solo({ hardState: { term: 3, vote: null } })
      solo
        .tick(99)
        .message({ ...preVote, from: 'n3', term: 4 })
        .message({ ...vote, from: 'n3', term: 4 })
      expect(votes(solo)).to.equal(0)
      expect(solo.core.term).to.equal(3)
      solo
        .tick(1)
        .message({ ...preVote, from: 'n3', term: 4 })
        .message({ ...vote, from: 'n3', term: 4 })
      expect(votes(solo)).to.equal(2)
      const fresh = new Solo()
      fresh.message({ ...vote, lastIndex: 0, lastTerm: 0, from: 'n3', term: 1 })
      expect(votes(fresh), 'there was no leader before term 1').to.equal(1)
    })

    it('nor in a later term that it heard of otherwise', () => {
      const solo = new Solo({ hardState: { term: 3, vote: null } })
      solo.tick(120).heartbeat({ from: 'n2', term: 3 })
      solo.message({ type: 'heartbeat-reply', from: 'n3', to: 'n1', term: 6, round: 0 })
      expect(solo.core.term).to.equal(6)
      solo.tick(90).message({ ...vote, from: 'n3', term: 6 })
      expect(
        only(solo.settle(), 'vote-reply').map(({ granted }) => granted),
        'votes of that very term are refused',
      ).to.deep.equal([false])
      solo.message({ ...vote, from: 'n3', term: 7 })
      expect(solo.core.term, 'votes of later terms are not heard of').to.equal(6)
      solo.settle()
      solo.tick(11).message({ ...vote, from: 'n3', term: 7 })
      expect(votes(solo)).to.equal(1)
    })

    it('but the leader itself may ask: it is none any more', () => {
      const solo = new Solo({ hardState: { term: 3, vote: null } })
      solo.tick(120).heartbeat({ from: 'n2', term: 3 })
      solo.message({ ...vote, from: 'n2', term: 4 })
      expect(votes(solo)).to.equal(1)
    })
  })

  it('serves reads in a cluster without a message', () => {
    const cluster = new Cluster({ voters: 3 })
    cluster.elect('n1')
    cluster.advance(30)
    cluster.sent = []
    const read = cluster.read('n1', true)
    expect(cluster.get('n1').reads.get(read)).to.equal(cluster.core('n1').commitIndex)
    expect(cluster.sent).to.deep.equal([])
  })
})
