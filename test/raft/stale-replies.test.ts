/**
 * Answers to messages of an earlier leadership: they carry the present term, and must name nothing that the same node, leading again, takes for
 * its present leadership's (found by the simulator: a window that stayed full for ever).
 */
import { expect } from 'chai'
import { only, Solo } from './support/solo.js'

describe('answers across leaderships', () => {
  it('hazard D2.21: a refusal of an append of an earlier term names no session and no sequence', () => {
    const follower = new Solo({ terms: [1], hardState: { term: 1, vote: null } })
    follower.heartbeat({ from: 'n2', term: 3 })
    follower.settle()
    follower.append({ from: 'n2', term: 1, session: 4, sequence: 59, previousIndex: 1, previousTerm: 1 })
    expect(only(follower.settle(), 'append-reply')).to.deep.equal([
      {
        type: 'append-reply',
        from: 'n1',
        to: 'n2',
        term: 3,
        session: 0,
        sequence: 0,
        accepted: false,
        matchIndex: 0,
        conflictTerm: 0,
        conflictIndex: 2,
      },
    ])
  })

  it('hazard D2.21: such a refusal does not pass for the answer to what is under way', () => {
    const leader = new Solo()
    leader.leadAgreed()
    leader.propose('lost on the way')
    const [request] = only(leader.settle(), 'append-request').filter(({ to }) => to === 'n2')
    leader.reject({ to: 'n2', session: 0, sequence: 0 }, 0, 1)
    leader.settle()
    // Both answer heartbeats, so leadership holds; the loss is found within about two intervals.
    const asked = []
    for (let interval = 0; interval < 4; interval++) {
      leader.tick(10)
      asked.push(...only(leader.settle(), 'append-request').filter(({ to }) => to === 'n2'))
      leader.answerHeartbeat('n2').answerHeartbeat('n3')
    }
    expect(asked.map(({ previousIndex, entries }) => [previousIndex, entries.length])).to.deep.include([request!.previousIndex + 1, 0])
  })

  it('hazard D4.34: an answer to a heartbeat of an earlier term confirms no round of reads', () => {
    const follower = new Solo({ hardState: { term: 1, vote: null } })
    follower.heartbeat({ from: 'n2', term: 3, round: 2 })
    expect(only(follower.settle(), 'heartbeat-reply').map(({ term, round }) => [term, round])).to.deep.equal([[3, 2]])
    follower.heartbeat({ from: 'n2', term: 1, round: 50 })
    expect(only(follower.settle(), 'heartbeat-reply').map(({ term, round }) => [term, round])).to.deep.equal([[3, 0]])
  })
})
