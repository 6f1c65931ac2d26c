/** How a leader comes to be: Raft paper §5.2 and §5.4.1, thesis §9.6, and the hazards of elections. */
import { expect } from 'chai'
import { Cluster } from './support/cluster.js'
import { logOf } from './support/entries.js'
import { seededRandom } from './support/random.js'
import { only, Solo } from './support/solo.js'

const preVote = (fields: { from?: string; term: number; lastIndex?: number; lastTerm?: number; sequence?: number }) =>
  ({ type: 'pre-vote-request', from: 'n2', to: 'n1', lastIndex: 0, lastTerm: 0, sequence: 7, ...fields }) as const
const vote = (fields: { from?: string; term: number; lastIndex?: number; lastTerm?: number; sequence?: number }) =>
  ({ type: 'vote-request', from: 'n2', to: 'n1', lastIndex: 0, lastTerm: 0, sequence: 7, transfer: false, ...fields }) as const

describe('raft election', () => {
  describe('the timer (§5.2)', () => {
    it('starts as a follower and campaigns when it hears nobody for a time drawn from [T, 2T)', () => {
      for (const random of [0, 0.25, 0.999]) {
        const solo = new Solo({ raft: { random: () => random } })
        const timeoutMs = 100 * (1 + random)
        expect(solo.core.role).to.equal('follower')
        expect(solo.core.nextTickMs).to.be.closeTo(timeoutMs, 1e-6)
        expect(solo.tick(timeoutMs - 0.5).core.role).to.equal('follower')
        expect(solo.tick(1).core.role).to.equal('pre-candidate')
      }
    })

    it('hazard D3.29: draws the time anew for every wait', () => {
      const draws = [0.1, 0.9, 0.3, 0.6, 0.2]
      const solo = new Solo({ raft: { random: () => draws.shift() ?? 0.5 } })
      const first = solo.core.nextTickMs
      solo.heartbeat({ from: 'n2', term: 1 })
      const second = solo.core.nextTickMs
      solo.heartbeat({ from: 'n2', term: 1 })
      expect(new Set([first, second, solo.core.nextTickMs]).size).to.equal(3)
    })

    it('starts again on each append and heartbeat of the leader', () => {
      const solo = new Solo()
      for (let round = 0; round < 20; round++) {
        if (round % 2 === 0) solo.tick(90).heartbeat({ from: 'n2', term: 1 })
        else solo.tick(90).append({ from: 'n2', term: 1 })
      }
      expect(solo.core.role).to.equal('follower')
      expect(solo.core.leader).to.equal('n2')
    })

    it('does not start again on messages of an earlier term', () => {
      const solo = new Solo({ hardState: { term: 5, vote: null } })
      const deadlineMs = solo.core.nextTickMs
      solo.tick(50).heartbeat({ from: 'n2', term: 4 }).append({ from: 'n2', term: 4 })
      expect(solo.core.nextTickMs).to.equal(deadlineMs)
      expect(solo.core.leader).to.equal(null)
    })

    it('hazard D3.24: granting a pre-vote and refusing a vote leave it alone; granting a vote restarts it', () => {
      const solo = new Solo({ terms: [1, 1] })
      const deadlineMs = solo.core.nextTickMs
      solo.tick(100).message(preVote({ term: 2, lastIndex: 2, lastTerm: 1 }))
      expect(only(solo.settle(), 'pre-vote-reply')[0]).to.include({ granted: true, term: 2, sequence: 7 })
      expect(solo.core.nextTickMs).to.equal(deadlineMs)
      solo.message(vote({ term: 2, lastIndex: 1, lastTerm: 1 }))
      expect(only(solo.settle(), 'vote-reply')[0]).to.include({ granted: false, term: 2 })
      expect(solo.core.nextTickMs).to.equal(deadlineMs)
      solo.message(vote({ term: 3, lastIndex: 2, lastTerm: 1 }))
      expect(only(solo.settle(), 'vote-reply')[0]).to.include({ granted: true, term: 3 })
      expect(solo.core.nextTickMs).to.be.above(deadlineMs)
    })

    it('never goes back in time', () => {
      const solo = new Solo()
      solo.tick(50)
      solo.core.step({ type: 'tick', nowMs: 10 })
      solo.heartbeat({ from: 'n2', term: 1 })
      expect(solo.core.nextTickMs).to.be.at.least(150)
    })
  })

  describe('pre-vote (thesis §9.6)', () => {
    it('changes no term and no vote, here or there, until a quorum agrees', () => {
      const solo = new Solo({ hardState: { term: 3, vote: 'n3' } })
      const questions = solo.timeout()
      expect(questions.map(({ type, to, term }) => [type, to, term])).to.deep.equal([
        ['pre-vote-request', 'n2', 4],
        ['pre-vote-request', 'n3', 4],
      ])
      expect(solo.core.term).to.equal(3)
      expect(solo.outputs.every(({ persist }) => persist === null)).to.equal(true)
      const voter = new Solo({ hardState: { term: 3, vote: 'n3' } })
      voter.tick(100).message(preVote({ term: 4 }))
      expect(only(voter.settle(), 'pre-vote-reply')[0]).to.include({ granted: true })
      expect(voter.core.term).to.equal(3)
      expect(voter.outputs.every(({ persist }) => persist === null)).to.equal(true)
    })

    it('a cut-off replica does not raise its term, and disturbs nobody when it returns', () => {
      const cluster = new Cluster({ voters: 3 })
      const leader = cluster.elect()
      const { term } = leader.core
      const lonely = cluster.up.find(({ id }) => id !== leader.id)!
      cluster.cut(lonely.id)
      cluster.advance(3000)
      expect(lonely.core.role).to.equal('pre-candidate')
      expect(lonely.core.term).to.equal(term)
      cluster.heal()
      cluster.advance(500)
      expect(cluster.leader?.id).to.equal(leader.id)
      expect(leader.core.term).to.equal(term)
      expect(lonely.core.leader).to.equal(leader.id)
    })

    it('is asked again each heartbeat interval of whoever has not granted', () => {
      const solo = new Solo({ voters: ['n1', 'n2', 'n3', 'n4', 'n5'] })
      const questions = only(solo.timeout(), 'pre-vote-request')
      solo.vote(questions[0]!)
      solo.vote(questions[1]!, false)
      const again = only(solo.tick(10).settle(), 'pre-vote-request')
      expect(again.map(({ to }) => to)).to.deep.equal(['n3', 'n4', 'n5'])
      expect(again[0]!.sequence).to.equal(questions[0]!.sequence)
      solo.vote(again[0]!)
      expect(solo.core.role).to.equal('candidate')
    })

    it('is refused to a log that is behind, with the term that the candidate has to learn', () => {
      const solo = new Solo({ terms: [1, 2, 2], hardState: { term: 5, vote: null } }).tick(100)
      solo.message(preVote({ term: 6, lastIndex: 9, lastTerm: 1 }))
      solo.message(preVote({ term: 6, lastIndex: 2, lastTerm: 2 }))
      solo.message(preVote({ term: 5, lastIndex: 3, lastTerm: 2 }))
      solo.message(preVote({ term: 3, lastIndex: 3, lastTerm: 2 }))
      solo.message(preVote({ term: 6, lastIndex: 3, lastTerm: 2 }))
      const replies = only(solo.settle(), 'pre-vote-reply')
      expect(replies.map(({ granted, term }) => [granted, term])).to.deep.equal([
        [false, 5],
        [false, 5],
        [false, 5],
        [false, 5],
        [true, 6],
      ])
    })

    it('hazard D3.23: a refusal brings a candidate to the later term, so that long logs of low terms and short logs of high terms cannot block each other', () => {
      const cluster = new Cluster({
        voters: 3,
        initial: {
          n1: { hardState: { term: 2, vote: null }, entries: logOf([1, 1, 2, 2]) },
          n2: { hardState: { term: 9, vote: null }, entries: logOf([1, 1]) },
          n3: { hardState: { term: 9, vote: null }, entries: logOf([1]) },
        },
      })
      cluster.crash('n3')
      cluster.until(() => cluster.leader?.id === 'n1', 'the longer log wins at the higher term', 2000)
      expect(cluster.core('n1').term).to.be.at.least(10)
    })
  })

  describe('votes (§5.2, §5.4.1)', () => {
    it('one a term, first come first served, and the same answer when asked again', () => {
      const solo = new Solo()
      solo
        .message(vote({ term: 1, from: 'n2' }))
        .message(vote({ term: 1, from: 'n3' }))
        .message(vote({ term: 1, from: 'n2' }))
      expect(only(solo.settle(), 'vote-reply').map(({ to, granted }) => [to, granted])).to.deep.equal([
        ['n2', true],
        ['n3', false],
        ['n2', true],
      ])
    })

    it('hazard D1.1: remembers its vote over a restart', () => {
      const solo = new Solo({ hardState: { term: 4, vote: 'n3' } })
      solo.message(vote({ term: 4, from: 'n2' })).message(vote({ term: 4, from: 'n3' }))
      expect(only(solo.settle(), 'vote-reply').map(({ to, granted }) => [to, granted])).to.deep.equal([
        ['n2', false],
        ['n3', true],
      ])
    })

    const logs: [string, number, number, boolean][] = [
      ['a later last term, though shorter', 1, 3, true],
      ['the same last term and length', 3, 2, true],
      ['the same last term, longer', 4, 2, true],
      ['the same last term, shorter', 2, 2, false],
      ['an earlier last term, though longer', 9, 1, false],
      ['nothing', 0, 0, false],
    ]
    for (const [what, lastIndex, lastTerm, granted] of logs) {
      it(`${granted ? 'go' : 'do not go'} to a log with ${what} (§5.4.1)`, () => {
        const solo = new Solo({ terms: [1, 2, 2] }).tick(100)
        solo.message(vote({ term: 9, lastIndex, lastTerm }))
        expect(only(solo.settle(), 'vote-reply')[0]).to.include({ granted, term: 9 })
        expect(solo.core.term, 'the term is entered either way').to.equal(9)
      })
    }

    it('of an earlier term are refused with the present one', () => {
      const solo = new Solo({ hardState: { term: 5, vote: null } })
      solo.message(vote({ term: 4 }))
      expect(only(solo.settle(), 'vote-reply')[0]).to.include({ granted: false, term: 5 })
    })

    it('do not go to a second candidate of a term that has a leader', () => {
      const solo = new Solo()
      solo.heartbeat({ from: 'n3', term: 1 }).message(vote({ term: 1, from: 'n2' }))
      expect(only(solo.settle(), 'vote-reply')[0]).to.include({ granted: false })
    })

    it('hazard D1.1 D1.2: nothing of a vote, a candidacy or a later term is said before it is durable', () => {
      const voter = new Solo()
      voter.message(vote({ term: 3 }))
      const output = voter.drain()
      expect(output.sendNow).to.deep.equal([])
      expect(output.persist).to.deep.include({ hardState: { term: 3, vote: 'n2' }, entries: [] })
      expect(only(output.sendAfterPersist, 'vote-reply')).to.have.length(1)
      const candidate = new Solo({ hardState: { term: 3, vote: null } })
      for (const question of candidate.timeout()) candidate.vote(question)
      const campaign = candidate.drain()
      expect(campaign.sendNow).to.deep.equal([])
      expect(campaign.persist?.hardState).to.deep.equal({ term: 4, vote: 'n1' })
      expect(campaign.sendAfterPersist.map(({ type, to }) => [type, to])).to.deep.equal([
        ['vote-reply', 'n1'],
        ['vote-request', 'n2'],
        ['vote-request', 'n3'],
      ])
      const follower = new Solo()
      follower.heartbeat({ from: 'n2', term: 8 })
      const answer = follower.drain()
      expect(answer.sendNow, 'a heartbeat reply carries the term').to.deep.equal([])
      expect(only(answer.sendAfterPersist, 'heartbeat-reply')).to.have.length(1)
      follower.heartbeat({ from: 'n2', term: 8 })
      expect(follower.drain().sendNow, 'the write is still under way').to.deep.equal([])
      follower.persist()
      follower.heartbeat({ from: 'n2', term: 8 })
      expect(only(follower.drain().sendNow, 'heartbeat-reply')).to.have.length(1)
    })

    it('what waits for the disk in an earlier term is dropped when the term rises', () => {
      const solo = new Solo()
      solo.message(vote({ term: 1, from: 'n2' })).message(vote({ term: 2, from: 'n3' }))
      const output = solo.drain()
      expect(output.persist?.hardState).to.deep.equal({ term: 2, vote: 'n3' })
      expect(output.sendAfterPersist.map(({ to, term }) => [to, term])).to.deep.equal([['n3', 2]])
    })
  })

  describe('winning and losing (§5.2)', () => {
    it('a quorum makes a leader, which sends at once to all', () => {
      const solo = new Solo({ learners: ['n9'] })
      const sent = solo.lead()
      expect(solo.core.role).to.equal('leader')
      expect(solo.core.leader).to.equal('n1')
      expect(only(sent, 'append-request').map(({ to, term, entries }) => [to, term, entries.map(({ kind }) => kind)])).to.deep.equal([
        ['n2', 1, [0]],
        ['n3', 1, [0]],
        ['n9', 1, [0]],
      ])
    })

    it('hazard D3.26: a learner never campaigns and its vote does not count', () => {
      const learner = new Solo({ voters: ['n2', 'n3'], learners: ['n1'] })
      expect(learner.tick(1000).settle()).to.deep.equal([])
      expect(learner.core.role).to.equal('follower')
      const stranger = new Solo({ voters: ['n2', 'n3'] })
      expect(stranger.tick(1000).settle()).to.deep.equal([])
      const solo = new Solo({ voters: ['n1', 'n2', 'n3'], learners: ['n4', 'n5'] })
      const [question] = solo.timeout()
      for (const from of ['n4', 'n5', 'n8']) solo.vote({ ...question!, to: from })
      expect(solo.core.role).to.equal('pre-candidate')
      solo.vote(question!)
      const [request] = only(solo.settle(), 'vote-request')
      for (const from of ['n4', 'n5', 'n8']) solo.vote({ ...request!, to: from })
      expect(solo.core.role).to.equal('candidate')
      solo.vote(request!)
      expect(solo.core.role).to.equal('leader')
    })

    it('hazard D3.27: a learner votes when it is asked: it may have been promoted without knowing', () => {
      const learner = new Solo({ voters: ['n2', 'n3'], learners: ['n1'] })
      learner.message(preVote({ term: 1 })).message(vote({ term: 1 }))
      expect(learner.settle()).to.have.length(2)
      expect(learner.outputs.flatMap(({ sendNow, sendAfterPersist }) => [...sendNow, ...sendAfterPersist])).to.satisfy(
        (list: { granted: boolean }[]) => list.every(({ granted }) => granted),
      )
    })

    it('a split vote ends in a new campaign, in the next term, after another drawn time', () => {
      const solo = new Solo()
      for (const question of solo.timeout()) solo.vote(question)
      for (const request of only(solo.settle(), 'vote-request')) solo.vote(request, false)
      expect(solo.core.role).to.equal('candidate')
      while (solo.core.role === 'candidate') solo.tick(1)
      expect(solo.core.role).to.equal('pre-candidate')
      expect(solo.core.term).to.equal(1)
      for (const question of only(solo.settle(), 'pre-vote-request')) solo.vote(question)
      expect(solo.core.term).to.equal(2)
    })

    it('a candidate steps back for a leader of its term, and for any later term', () => {
      const make = () => {
        const solo = new Solo()
        for (const question of solo.timeout()) solo.vote(question)
        solo.settle()
        expect(solo.core.role).to.equal('candidate')
        return solo
      }
      expect(make().heartbeat({ from: 'n2', term: 1 }).core).to.include({ role: 'follower', leader: 'n2', term: 1 })
      expect(make().append({ from: 'n2', term: 2 }).core).to.include({ role: 'follower', leader: 'n2', term: 2 })
      const refused = make().message({ type: 'vote-reply', from: 'n2', to: 'n1', term: 7, granted: false, sequence: 0 })
      expect(refused.core).to.include({ role: 'follower', leader: null, term: 7 })
    })

    it('whoever grants a vote while asking for pre-votes gives up its own campaign', () => {
      const solo = new Solo({ hardState: { term: 3, vote: null } })
      const questions = solo.timeout()
      solo.message(vote({ term: 3, from: 'n2' }))
      for (const question of questions) solo.vote(question)
      expect(solo.core).to.include({ role: 'follower', term: 3 })
    })

    it('a repeated request for a vote is answered, and changes nothing else', () => {
      const solo = new Solo({ raft: { random: seededRandom(8) } })
      solo.message(vote({ term: 1 })).heartbeat({ from: 'n2', term: 1 })
      solo.settle()
      const deadlineMs = solo.core.nextTickMs
      solo.tick(1).message(vote({ term: 1 }))
      expect(only(solo.settle(), 'vote-reply')[0]).to.include({ granted: true })
      expect(solo.core).to.include({ leader: 'n2', nextTickMs: deadlineMs })
      solo.timeout()
      solo.message(vote({ term: 1 }))
      expect(solo.core.role).to.equal('pre-candidate')
    })

    it('hazard D3.28: late and repeated replies change nothing for whoever has won or moved on', () => {
      const solo = new Solo()
      const questions = solo.timeout()
      for (const question of questions) solo.vote(question)
      const requests = only(solo.settle(), 'vote-request')
      for (const request of requests) solo.vote(request)
      solo.settle()
      const { term } = solo.core
      for (const message of [...questions, ...requests]) solo.vote(message)
      solo.tick(1)
      expect(solo.core).to.include({ role: 'leader', term })
      expect(solo.core.lastIndex, 'one no-op').to.equal(1)
    })

    it('a reply counts only in the campaign that it answers', () => {
      const solo = new Solo()
      const old = solo.timeout()
      while (solo.core.nextTickMs < 400 && solo.outputs.length < 40) {
        solo.tick(solo.core.nextTickMs - solo.nowMs)
        solo.settle()
      }
      expect(solo.core.role).to.equal('pre-candidate')
      for (const question of old) solo.vote(question)
      expect(solo.core.role, 'pre-votes of an earlier campaign').to.equal('pre-candidate')
    })

    it('hazard D1.4: a group of one elects itself at once, once its vote is durable, and commits once its entry is', () => {
      const solo = new Solo({ voters: ['n1'], learners: ['n9'] })
      expect(solo.core.nextTickMs).to.equal(0)
      solo.tick(0)
      expect(solo.core.role).to.equal('candidate')
      expect(solo.drain().sendNow, 'its term is not known to anybody before it is durable').to.deep.equal([])
      solo.persist()
      expect(solo.core.role).to.equal('leader')
      solo.drain()
      expect(solo.core.commitIndex).to.equal(0)
      solo.persist()
      expect(solo.core.commitIndex).to.equal(1)
    })
  })

  describe('a live leader', () => {
    it('is stood by: (pre-)votes are ignored, terms included, until it was silent for T', () => {
      const solo = new Solo()
      solo.heartbeat({ from: 'n3', term: 1 })
      solo.settle()
      solo
        .tick(99)
        .message(preVote({ term: 5 }))
        .message(vote({ term: 5 }))
      expect(solo.settle()).to.deep.equal([])
      expect(solo.core.term).to.equal(1)
      solo.tick(1).message(vote({ term: 5 }))
      expect(only(solo.settle(), 'vote-reply')[0]).to.include({ granted: true, term: 5 })
    })

    it('hazard D3.24: is not stood by against itself: when it asks, it leads no more', () => {
      const solo = new Solo()
      solo.heartbeat({ from: 'n2', term: 1 })
      solo.settle()
      solo.message(preVote({ from: 'n2', term: 2 }))
      expect(only(solo.settle(), 'pre-vote-reply')[0]).to.include({ granted: true })
    })

    it('ignores candidates itself', () => {
      const solo = new Solo().leadAgreed()
      solo.message(preVote({ term: 5, lastIndex: 9, lastTerm: 1 })).message(vote({ term: 5, lastIndex: 9, lastTerm: 1 }))
      expect(solo.core).to.include({ role: 'leader', term: 1 })
    })

    it('hazard D3.23: is forgotten by whoever starts to campaign, which then helps others', () => {
      const solo = new Solo()
      solo.heartbeat({ from: 'n3', term: 1 })
      solo.timeout()
      expect(solo.core).to.include({ role: 'pre-candidate', leader: null })
      solo.message(preVote({ term: 2 }))
      expect(only(solo.settle(), 'pre-vote-reply')[0]).to.include({ granted: true })
    })

    it('hazard D3.26: is not deposed by a node that is no member, whatever its term', () => {
      const solo = new Solo().leadAgreed()
      solo.message({
        type: 'append-reply',
        from: 'n8',
        to: 'n1',
        term: 99,
        session: 1,
        sequence: 1,
        accepted: false,
        matchIndex: 0,
        conflictTerm: 0,
        conflictIndex: 1,
      })
      solo.message({ type: 'heartbeat-reply', from: 'n8', to: 'n1', term: 99, round: 0 })
      solo.message({ type: 'vote-reply', from: 'n8', to: 'n1', term: 99, granted: false, sequence: 0 })
      solo.message(vote({ from: 'n8', term: 99, lastIndex: 99, lastTerm: 98 }))
      expect(solo.core).to.include({ role: 'leader', term: 1 })
    })

    it('of an earlier term is told of the later one, so that a replica with a higher term does not stay alone', () => {
      const solo = new Solo({ hardState: { term: 5, vote: null } })
      solo.heartbeat({ from: 'n2', term: 3, round: 4 }).append({ from: 'n2', term: 3, session: 2, sequence: 8 })
      const sent = solo.settle()
      expect(only(sent, 'heartbeat-reply')[0]).to.include({ to: 'n2', term: 5 })
      expect(only(sent, 'append-reply')[0]).to.include({ to: 'n2', term: 5, accepted: false })
      const leader = new Solo({ hardState: { term: 2, vote: null } }).leadAgreed()
      leader.message({ type: 'heartbeat-reply', from: 'n2', to: 'n1', term: 5, round: 0 })
      expect(leader.core).to.include({ role: 'follower', term: 5, leader: null })
    })

    it('a group whose one replica has a higher term finds a common one', () => {
      const cluster = new Cluster({ voters: 3, initial: { n3: { hardState: { term: 40, vote: null }, entries: [] } } })
      cluster.filter = ({ from, to }) => from !== 'n3' && to !== 'n3'
      cluster.elect('n1')
      cluster.heal()
      cluster.until(() => cluster.up.every(({ core }) => core.term > 40 && core.leader !== null), 'all follow one leader')
    })
  })

  describe('check-quorum', () => {
    it('a leader that no quorum answers for an election timeout steps down, in its term', () => {
      const solo = new Solo({ voters: ['n1', 'n2', 'n3', 'n4', 'n5'] }).leadAgreed()
      for (let passed = 0; passed < 300; passed += 10) {
        solo.tick(10).answerHeartbeat('n2').answerHeartbeat('n3')
        solo.settle()
      }
      expect(solo.core.role, 'two of four answer').to.equal('leader')
      for (let passed = 0; passed < 90; passed += 10) solo.tick(10).answerHeartbeat('n2')
      expect(solo.core.role, 'not yet a whole timeout').to.equal('leader')
      for (let passed = 0; passed < 20; passed += 10) solo.tick(10).answerHeartbeat('n2')
      expect(solo.core).to.include({ role: 'follower', term: 1, leader: null })
    })

    it('counts each follower by its own time, not answers at large, and no learners', () => {
      const solo = new Solo({ voters: ['n1', 'n2', 'n3', 'n4', 'n5'], learners: ['n8', 'n9'] }).leadAgreed()
      for (let passed = 0; passed < 130; passed += 10) {
        solo.tick(10)
        for (const from of ['n2', 'n2', 'n2', 'n8', 'n9']) solo.answerHeartbeat(from)
      }
      expect(solo.core.role).to.equal('follower')
    })

    it('hazard D3.25: a leader that reaches one bridge only gives way to one that the majority can elect', () => {
      const cluster = new Cluster({ voters: 5, seed: 3 })
      const old = cluster.elect('n1')
      // n1 reaches n2 alone; n2 reaches all; the others reach each other.
      cluster.filter = ({ from, to }) => (from !== 'n1' && to !== 'n1') || from === 'n2' || to === 'n2'
      cluster.until(() => cluster.leader !== undefined && cluster.leader.id !== 'n1' && old.core.role !== 'leader', 'a leader with a majority', 600)
    })

    it('hazard D3.25: a star around one follower finds its leader', () => {
      const cluster = new Cluster({ voters: 5, seed: 4 })
      cluster.elect('n1')
      cluster.filter = ({ from, to }) => from === 'n2' || to === 'n2'
      cluster.until(() => cluster.leader?.id === 'n2' && cluster.core('n1').role !== 'leader', 'the middle leads', 2000)
      const { term } = cluster.core('n2')
      cluster.advance(1000)
      expect(cluster.core('n2')).to.include({ role: 'leader', term })
    })

    it('survives a follower that hears nothing but is heard (one-way cut)', () => {
      const cluster = new Cluster({ voters: 3, seed: 5 })
      const leader = cluster.elect('n1')
      const { term } = leader.core
      cluster.filter = ({ to }) => to !== 'n3'
      cluster.advance(2000)
      expect(cluster.leader?.id).to.equal('n1')
      expect(leader.core.term).to.equal(term)
    })

    it('hazard D3.31: a leader whose disk hangs gives way, and does not campaign meanwhile', () => {
      const cluster = new Cluster({ voters: 3 })
      cluster.elect('n1')
      cluster.disk = 'manual'
      cluster.propose('n1', 'stuck')
      const pump = () => {
        for (const id of ['n2', 'n3']) cluster.completeWrites(id)
        return cluster.leader !== undefined && cluster.leader.id !== 'n1' && cluster.core('n1').role === 'follower'
      }
      cluster.until(pump, 'another leader', 1000)
      const preVotes = () => cluster.sent.filter(({ type, from }) => type === 'pre-vote-request' && from === 'n1').length
      const before = preVotes()
      cluster.cut('n1')
      cluster.advance(1000)
      expect(preVotes(), 'a hung replica campaigns').to.equal(before)
    })

    it('a follower whose disk hangs does not heap up answers, and answers again when the disk does', () => {
      const follower = new Solo()
      let waiting = 0
      const beat = () => {
        follower
          .tick(10)
          .heartbeat({ from: 'n2', term: 1 })
          .append({ from: 'n2', term: 1, entries: logOf([1, 1]) })
        const output = follower.drain()
        waiting += output.sendAfterPersist.length
        return output
      }
      for (let count = 0; count < 200; count++) beat()
      expect(waiting).to.be.within(1, 25)
      follower.persist()
      expect(only(beat().sendAfterPersist, 'append-reply')[0]).to.include({ accepted: true, matchIndex: 2 })
    })

    it('a leader alone never steps down, whatever its disk does', () => {
      const solo = new Solo({ voters: ['n1'] })
      solo.tick(0).settle()
      solo.propose('slow')
      solo.drain()
      for (let passed = 0; passed < 1000; passed += 10) solo.tick(10)
      expect(solo.core.role).to.equal('leader')
    })
  })

  describe('a host that stood still (hazard p10)', () => {
    it('hazard p10: a follower looks at what lies unread before it campaigns, and puts that off once', () => {
      const solo = new Solo()
      solo.heartbeat({ from: 'n2', term: 1 })
      solo.settle()
      solo.tick(400)
      expect(solo.core).to.include({ role: 'follower', leader: 'n2', nextTickMs: 410 })
      solo.heartbeat({ from: 'n2', term: 1 })
      expect(solo.core.nextTickMs).to.equal(550)
      solo.tick(400)
      expect(solo.core.role).to.equal('follower')
      solo.tick(30)
      expect(solo.core.role, 'late again').to.equal('pre-candidate')
    })

    it('hazard p10: a leader looks at the answers that lie unread before it steps down, and puts that off once', () => {
      const stood = new Solo().leadAgreed()
      stood.read(1)
      stood.settle()
      expect(only(stood.tick(400).settle(), 'heartbeat')).to.have.length(2)
      expect(stood.core.role).to.equal('leader')
      stood.answerHeartbeat('n2', 1)
      stood.tick(10)
      expect(stood.core.role).to.equal('leader')
      expect(stood.drain().reads).to.have.length(1)
      const cutOff = new Solo().leadAgreed()
      cutOff.tick(400).tick(30)
      expect(cutOff.core.role, 'late again').to.equal('follower')
    })

    it('hazard p6 p10: a whole group that was paused goes on under its leader', () => {
      for (let seed = 1; seed <= 10; seed++) {
        const cluster = new Cluster({ voters: 3, seed })
        const leader = cluster.elect()
        const { term } = leader.core
        cluster.nowMs += 10_000
        cluster.advance(500)
        expect(leader.core, `seed ${seed}`).to.include({ role: 'leader', term })
      }
    })
  })

  it('heals lost messages of a campaign within a heartbeat interval', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const cluster = new Cluster({ voters: 3, seed })
      let lost = 0
      cluster.filter = ({ type }) => !(type.includes('vote') && lost++ % 3 === 0)
      cluster.until(() => cluster.leader !== undefined, `a leader (seed ${seed})`, 320)
    }
  })

  it('3A ReElection3A: leaders come and go with their connections', () => {
    const cluster = new Cluster({ voters: 3, seed: 6 })
    const first = cluster.elect()
    cluster.cut(first.id)
    cluster.until(() => cluster.leader !== undefined && cluster.leader.id !== first.id, 'a second leader')
    const second = cluster.leader!
    cluster.heal()
    cluster.until(() => first.core.role === 'follower' && first.core.leader === second.id, 'the first follows')
    cluster.filter = () => false
    cluster.advance(1000)
    expect(cluster.leader, 'no leader without a quorum').to.equal(undefined)
    cluster.heal()
    cluster.until(() => cluster.up.every(({ core }) => core.leader === cluster.leader?.id && core.leader !== undefined), 'one leader')
  })

  it('3A ManyElections3A: of seven, any four make a leader', () => {
    const cluster = new Cluster({ voters: 7, seed: 7 })
    cluster.elect()
    for (let round = 0; round < 9; round++) {
      const away = new Set(Array.from({ length: 3 }, () => `n${1 + Math.floor(cluster.random() * 7)}`))
      cluster.cut(...away)
      cluster.until(() => cluster.up.some(({ id, core }) => !away.has(id) && core.role === 'leader'), 'a connected leader')
      cluster.heal()
      cluster.advance(200)
    }
  })
})
