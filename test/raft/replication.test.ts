/** What a leader sends and what followers make of it: Raft paper §5.3, and the hazards of log matching and flow control. */
import { expect } from 'chai'
import { CorruptionError } from '../../src/base/errors.js'
import { InvariantError } from '../../src/raft/invariant.js'
import { entryBytes } from '../../src/raft/log.js'
import type { AppendRequest } from '../../src/raft/types.js'
import { Cluster } from './support/cluster.js'
import { logOf } from './support/entries.js'
import { only, Solo } from './support/solo.js'

/** The terms of what a core holds, from index 1. */
function termsOf({ core }: Solo): (number | undefined)[] {
  return Array.from({ length: core.lastIndex }, (_, position) => core.termAt(position + 1))
}

/** A long proposal: about 100 bytes as an entry. */
const hundred = 'x'.repeat(68)

describe('raft replication', () => {
  describe('a follower (§5.3)', () => {
    it('appends what follows on what it has, and acknowledges it when it is durable', () => {
      const follower = new Solo()
      follower.append({ from: 'n2', term: 1, entries: logOf([1, 1]), session: 3, sequence: 9 })
      const output = follower.drain()
      expect(output.sendNow).to.deep.equal([])
      expect(output.persist?.entries.map(({ index }) => index)).to.deep.equal([1, 2])
      expect(output.persist?.hardState).to.deep.equal({ term: 1, vote: null })
      expect(follower.persist()).to.deep.equal([
        {
          type: 'append-reply',
          from: 'n1',
          to: 'n2',
          term: 1,
          session: 3,
          sequence: 9,
          accepted: true,
          matchIndex: 2,
          conflictTerm: 0,
          conflictIndex: 0,
        },
      ])
    })

    it('refuses what does not follow, with the term and first index of its conflict', () => {
      const follower = new Solo({ terms: [1, 1, 4, 4, 4] })
      const refusal = (fields: Partial<AppendRequest>) => {
        follower.append({ from: 'n2', term: 7, ...fields })
        const [reply] = only(follower.settle(), 'append-reply')
        return [reply?.accepted, reply?.conflictTerm, reply?.conflictIndex]
      }
      expect(refusal({ previousIndex: 8, previousTerm: 4 })).to.deep.equal([false, 0, 6])
      expect(refusal({ previousIndex: 5, previousTerm: 6 })).to.deep.equal([false, 4, 3])
      expect(refusal({ previousIndex: 2, previousTerm: 2 })).to.deep.equal([false, 1, 1])
      expect(termsOf(follower), 'a refusal drops nothing').to.deep.equal([1, 1, 4, 4, 4])
    })

    it('hazard D2.12: replaces a conflicting entry and all that follow it', () => {
      const follower = new Solo({ terms: [1, 2, 2, 2, 2] })
      follower.append({ from: 'n2', term: 3, previousIndex: 1, previousTerm: 1, entries: logOf([2, 3], 2) })
      expect(termsOf(follower)).to.deep.equal([1, 2, 3])
      const { persist } = follower.drain()
      expect(persist?.truncateFrom).to.equal(3)
      expect(persist?.entries.map(({ index, term }) => [index, term])).to.deep.equal([[3, 3]])
    })

    it('hazard D2.11: an old, repeated or shorter append drops nothing', () => {
      const follower = new Solo()
      const first = { from: 'n2', term: 2, entries: logOf([1, 1]), sequence: 1 } as const
      const second = { from: 'n2', term: 2, previousIndex: 2, previousTerm: 1, entries: logOf([2, 2, 2], 3), sequence: 2 } as const
      follower.append(first).append(second).settle()
      for (const old of [first, second, { ...first, entries: [] }, { ...second, entries: second.entries.slice(0, 1) }, first]) {
        follower.append(old)
        expect(termsOf(follower)).to.deep.equal([1, 1, 2, 2, 2])
        const output = follower.drain()
        expect(output.persist).to.equal(null)
        expect(only(output.sendAfterPersist, 'append-reply')[0]).to.include({ accepted: true })
        follower.persist()
      }
    })

    it('hazard D1.5: no answer overtakes a write under way, not even to a repeated or empty append', () => {
      const follower = new Solo()
      const request = { from: 'n2', term: 1, entries: logOf([1, 1, 1]) } as const
      follower.append(request)
      follower.drain()
      follower.append(request).append({ ...request, previousIndex: 3, previousTerm: 1, entries: [] })
      const output = follower.drain()
      expect(output.sendNow).to.deep.equal([])
      expect(output.sendAfterPersist).to.have.length(1)
      expect(follower.core.status().durableIndex).to.equal(0)
    })

    it('hazard D2.13: commits no further than the request at hand reaches', () => {
      const follower = new Solo({ terms: [1, 1, 1, 1] })
      follower.append({ from: 'n2', term: 2, previousIndex: 1, previousTerm: 1, entries: logOf([1], 2), commitIndex: 4 })
      expect(follower.core.commitIndex).to.equal(2)
      follower.append({ from: 'n2', term: 2, previousIndex: 3, previousTerm: 1, entries: [], commitIndex: 9 })
      expect(follower.core.commitIndex).to.equal(3)
      follower.append({ from: 'n2', term: 2, previousIndex: 1, previousTerm: 1, entries: [], commitIndex: 1 })
      expect(follower.core.commitIndex, 'never back').to.equal(3)
      follower.append({ from: 'n2', term: 2, previousIndex: 9, previousTerm: 2, entries: [], commitIndex: 9 })
      expect(follower.core.commitIndex, 'a refused request commits nothing').to.equal(3)
    })

    it('hazard D5.45, d20: a heartbeat commits what the log holds; one that names more is proof that what was acknowledged is lost, and ends the replica', () => {
      const follower = new Solo({ terms: [1, 1, 1] })
      follower.heartbeat({ from: 'n2', term: 1, commitIndex: 2 })
      expect(follower.core.commitIndex).to.equal(2)
      expect(() => follower.heartbeat({ from: 'n2', term: 1, commitIndex: 4 })).to.throw(CorruptionError)
      expect(follower.core.commitIndex).to.equal(2)
    })

    it('stops rather than drop a committed entry', () => {
      const follower = new Solo({ terms: [1, 1, 1] })
      follower.heartbeat({ from: 'n2', term: 1, commitIndex: 2 })
      const contradiction = () => follower.append({ from: 'n3', term: 2, previousIndex: 1, previousTerm: 1, entries: logOf([2], 2) })
      expect(contradiction).to.throw(InvariantError)
      expect(termsOf(follower)).to.deep.equal([1, 1, 1])
    })

    it('hazard D1.3: hard state, truncation and entries of all inputs of a drain are one write', () => {
      const follower = new Solo({ terms: [1, 1, 1, 1] })
      follower.append({ from: 'n2', term: 2, previousIndex: 2, previousTerm: 1, entries: logOf([2, 2], 3) })
      follower.append({ from: 'n3', term: 3, previousIndex: 1, previousTerm: 1, entries: logOf([3], 2) })
      follower.append({ from: 'n3', term: 3, previousIndex: 2, previousTerm: 3, entries: logOf([3, 3], 3) })
      const { persist, sendAfterPersist } = follower.drain()
      expect(persist).to.deep.include({ sequence: 1, hardState: { term: 3, vote: null }, truncateFrom: 2 })
      expect(persist?.entries.map(({ index, term }) => [index, term])).to.deep.equal([
        [2, 3],
        [3, 3],
        [4, 3],
      ])
      expect(
        only(sendAfterPersist, 'append-reply').map(({ to, matchIndex }) => [to, matchIndex]),
        'the last acceptance says it all',
      ).to.deep.equal([['n3', 4]])
    })

    it('answers requests of different sessions apart', () => {
      const follower = new Solo({ terms: [1, 1] })
      follower.append({ from: 'n2', term: 2, previousIndex: 1, previousTerm: 1, session: 1, sequence: 4 })
      follower.append({ from: 'n2', term: 2, previousIndex: 2, previousTerm: 1, session: 2, sequence: 5 })
      follower.append({ from: 'n2', term: 2, previousIndex: 1, previousTerm: 1, session: 2, sequence: 6 })
      expect(only(follower.settle(), 'append-reply').map(({ session, sequence, matchIndex }) => [session, sequence, matchIndex])).to.deep.equal([
        [1, 4, 1],
        [2, 5, 2],
        [2, 6, 1],
      ])
    })

    it('truncating what was never handed out writes no truncation', () => {
      const follower = new Solo({ terms: [1] })
      follower.append({ from: 'n2', term: 2, previousIndex: 1, previousTerm: 1, entries: logOf([2, 2], 2) })
      follower.append({ from: 'n3', term: 3, previousIndex: 1, previousTerm: 1, entries: logOf([3], 2) })
      const { persist } = follower.drain()
      expect(persist?.truncateFrom).to.equal(null)
      expect(persist?.entries.map(({ index, term }) => [index, term])).to.deep.equal([[2, 3]])
    })

    it('hazard D3.32: hears no second leader in a term', () => {
      const follower = new Solo()
      follower.append({ from: 'n2', term: 1, entries: logOf([1]) })
      follower.append({ from: 'n3', term: 1, entries: logOf([1, 1]) }).heartbeat({ from: 'n3', term: 1, commitIndex: 1 })
      expect(follower.core).to.include({ leader: 'n2', lastIndex: 1, commitIndex: 0 })
      expect(follower.core.status().malformedMessages).to.equal(2)
      const leader = new Solo().leadAgreed()
      leader.append({ from: 'n2', previousIndex: 0, previousTerm: 0, entries: logOf([1]) }).heartbeat({ from: 'n2' })
      expect(leader.core.role).to.equal('leader')
    })
  })

  describe('durability', () => {
    it('hazard D1.6: a write that completes after its entries were replaced makes nothing durable but what is left of them', () => {
      const follower = new Solo()
      follower.append({ from: 'n2', term: 1, entries: logOf([1, 1, 1, 1]) })
      const first = follower.drain().persist!
      follower.append({ from: 'n3', term: 2, previousIndex: 2, previousTerm: 1, entries: logOf([2, 2], 3) })
      const second = follower.drain().persist!
      follower.core.step({ type: 'persisted', sequence: first.sequence })
      expect(follower.core.status().durableIndex, 'entries 3 and 4 were replaced').to.equal(2)
      follower.core.step({ type: 'persisted', sequence: second.sequence })
      expect(follower.core.status().durableIndex).to.equal(4)
    })

    it('hazard D1.6: the same, when the replacement waits for its drain, and when it is replaced again', () => {
      const follower = new Solo()
      follower.append({ from: 'n2', term: 1, entries: logOf([1, 1, 1, 1]) })
      const first = follower.drain().persist!
      follower.append({ from: 'n3', term: 2, previousIndex: 3, previousTerm: 1, entries: logOf([2], 4) })
      follower.core.step({ type: 'persisted', sequence: first.sequence })
      expect(follower.core.status().durableIndex).to.equal(3)
      const second = follower.drain().persist!
      follower.append({ from: 'n2', term: 3, previousIndex: 1, previousTerm: 1, entries: logOf([3, 3, 3], 2) })
      expect(follower.core.status().durableIndex).to.equal(1)
      follower.core.step({ type: 'persisted', sequence: second.sequence })
      expect(follower.core.status().durableIndex).to.equal(1)
      const third = follower.drain().persist!
      expect(third.truncateFrom).to.equal(2)
      follower.core.step({ type: 'persisted', sequence: third.sequence })
      follower.core.step({ type: 'persisted', sequence: first.sequence })
      expect(follower.core.status().durableIndex).to.equal(4)
      expect(() => follower.core.step({ type: 'persisted', sequence: third.sequence + 1 })).to.throw(InvariantError)
    })

    it('hazard D1.4: the leader counts itself only by its own acknowledgement, and may commit on the word of others before', () => {
      const leader = new Solo().leadAgreed()
      leader.propose('a')
      const output = leader.drain()
      const requests = only(output.sendNow, 'append-request')
      expect(requests).to.have.length(2)
      expect(
        only(output.sendAfterPersist, 'append-reply').map(({ from, to, matchIndex, accepted }) => [from, to, matchIndex, accepted]),
      ).to.deep.equal([['n1', 'n1', 2, true]])
      leader.accept(requests[0]!, 2)
      expect(leader.core.commitIndex).to.equal(1)
      leader.accept(requests[1]!, 2)
      expect(leader.core.commitIndex, 'both followers, not the own disk').to.equal(2)
      expect(leader.core.status().durableIndex).to.equal(1)
      leader.persist()
      expect(leader.core.status().durableIndex).to.equal(2)
    })

    it('keeps what is not durable in memory, and what is not applied, however small the tail may be', () => {
      const solo = new Solo({ voters: ['n1'], raft: { maxTailBytes: 100 } })
      solo.tick(0).settle()
      for (let count = 0; count < 10; count++) solo.propose('a')
      solo.drain()
      expect(solo.core.entries(1, 11, 10_000)).to.have.length(11)
      solo.persist()
      expect(solo.core.commitIndex).to.equal(11)
      expect(solo.core.entries(1, 11, 10_000)).to.have.length(11)
      solo.core.step({ type: 'applied', index: 4 })
      expect(solo.core.entries(4, 11, 10_000)).to.have.length(0)
      expect(solo.core.entries(5, 11, 10_000)).to.have.length(7)
      solo.core.step({ type: 'applied', index: 11 })
      expect(solo.core.tailBytes).to.be.within(33, 100)
      expect(() => solo.core.step({ type: 'applied', index: 12 })).to.throw(InvariantError)
    })

    it('a state machine that hangs does not fill the memory', () => {
      const cluster = new Cluster({ voters: 3, apply: false, raft: { maxTailBytes: 1000 } })
      cluster.elect('n1')
      for (let count = 0; count < 500; count++) {
        cluster.propose('n1', hundred)
        if (count % 10 === 0) cluster.advance(3)
      }
      cluster.until(() => cluster.up.every(({ core }) => core.commitIndex === 501), 'commits go on')
      for (const { core } of cluster.up) expect(core.tailBytes).to.be.at.most(4000)
    })

    it('keeps what it committed on the word of others and applied, while its own disk still writes it', () => {
      const leader = new Solo({ raft: { maxTailBytes: 0 } }).leadAgreed()
      leader.core.step({ type: 'applied', index: 1 })
      leader.propose('a')
      for (const request of only(leader.drain().sendNow, 'append-request')) leader.accept(request, 2)
      leader.core.step({ type: 'applied', index: 2 })
      expect(leader.core.entries(2, 2, 1000)).to.have.length(1)
      leader.persist()
      expect(leader.core.entries(2, 2, 1000)).to.have.length(0)
    })

    it('hazard D5.45: refuses to start with state that its log does not hold', () => {
      expect(() => new Solo({ terms: [1, 1], raft: { commitIndex: 3 } })).to.throw('applied up to 3')
      expect(() => new Solo({ terms: [1, 4], hardState: { term: 3, vote: null } })).to.throw('the log holds term 4')
      expect(() => new Solo({ raft: { heartbeatIntervalMs: 80 } })).to.throw('twice')
      expect(() => new Solo({ raft: { maxInflightBytes: 0 } })).to.throw('maxInflightBytes')
    })
  })

  describe('a leader (§5.3)', () => {
    it('sends the proposals of one drain in one append per follower, and the commit index with the next', () => {
      const leader = new Solo().leadAgreed()
      const ids = ['a', 'b', 'c'].map((text) => leader.propose(text))
      const output = leader.drain()
      expect(output.accepted).to.deep.equal(ids.map((id, position) => ({ id, index: 2 + position, term: 1 })))
      const requests = only(output.sendNow, 'append-request')
      expect(requests.map(({ to, previousIndex, entries }) => [to, previousIndex, entries.length])).to.deep.equal([
        ['n2', 1, 3],
        ['n3', 1, 3],
      ])
      leader.accept(requests[0]!, 4)
      leader.persist()
      expect(leader.core.commitIndex).to.equal(4)
      expect(leader.drain().sendNow, 'a commit alone sends nothing').to.deep.equal([])
      leader.propose('d')
      expect(only(leader.drain().sendNow, 'append-request')[0]).to.include({ commitIndex: 4 })
    })

    it('refuses proposals when it does not lead', () => {
      const follower = new Solo()
      const id = follower.propose('a')
      expect(follower.drain().rejected).to.deep.equal([{ id, reason: 'not-leader' }])
      expect(follower.core.lastIndex).to.equal(0)
    })

    it('sends heartbeats by the clock, with what each follower is known to hold', () => {
      const leader = new Solo()
      const [request] = only(leader.lead(), 'append-request', 'n2')
      leader.accept(request!, 1)
      leader.settle()
      expect(leader.core.commitIndex).to.equal(1)
      const beats = only(leader.tick(10).settle(), 'heartbeat')
      expect(beats.map(({ to, commitIndex, term }) => [to, commitIndex, term])).to.deep.equal([
        ['n2', 1, 1],
        ['n3', 0, 1],
      ])
      expect(leader.tick(9).settle()).to.deep.equal([])
      expect(leader.core.nextTickMs).to.equal(leader.nowMs + 1)
    })

    it('holds back what exceeds the window in bytes, and goes on as it drains', () => {
      const leader = new Solo({ raft: { maxInflightBytes: 1000, maxAppendBytes: 400 } }).leadAgreed()
      for (let count = 0; count < 30; count++) leader.propose(hundred)
      const requests = only(leader.drain().sendNow, 'append-request', 'n2')
      expect(requests.map(({ previousIndex, entries }) => [previousIndex, entries.length])).to.deep.equal([
        [1, 4],
        [5, 4],
        [9, 4],
      ])
      for (const { entries } of requests) expect(entries.reduce((sum, entry) => sum + entryBytes(entry), 0)).to.be.at.most(400)
      leader.persist()
      leader.accept(requests[1]!, 9)
      const more = only(leader.drain().sendNow, 'append-request', 'n2')
      expect(more.map(({ previousIndex, entries }) => [previousIndex, entries.length])).to.deep.equal([
        [13, 4],
        [17, 4],
      ])
    })

    it('sends an entry that exceeds every limit alone', () => {
      const leader = new Solo({ raft: { maxInflightBytes: 100, maxAppendBytes: 50 } }).leadAgreed()
      for (const text of [hundred.repeat(9), hundred, 'a']) leader.propose(text)
      const [request, ...others] = only(leader.settle(), 'append-request', 'n2')
      expect(request!.entries).to.have.length(1)
      expect(others).to.deep.equal([])
      leader.accept(request!, 2)
      expect(only(leader.settle(), 'append-request', 'n2').map(({ entries }) => entries.length)).to.deep.equal([1])
    })

    it('hazard D2.22: a match index never reaches the next index, whatever is answered and when', () => {
      const leader = new Solo().leadAgreed()
      for (const text of ['a', 'b', 'c']) {
        leader.propose(text)
        leader.settle()
      }
      const progress = () => leader.core.progressOf('n2')!
      const session = progress().session
      const answer = { to: 'n2', session, sequence: 2 }
      for (const act of [
        () => leader.accept(answer, 4),
        () => leader.reject(answer, 0, 1),
        () => leader.accept(answer, 2),
        () => leader.reject({ ...answer, session: progress().session }, 1, 1),
        () => leader.accept({ ...answer, session: progress().session }, 4),
      ]) {
        act()
        leader.settle()
        expect(progress().matchIndex).to.equal(4)
        expect(progress().nextIndex).to.equal(5)
      }
    })

    it('ignores acknowledgements of what it never had or sent', () => {
      const leader = new Solo().leadAgreed()
      const progress = leader.core.progressOf('n2')!
      leader.accept({ to: 'n2', session: progress.session, sequence: 1 }, 99)
      leader.accept({ to: 'n2', session: progress.session + 1, sequence: 1 }, 1)
      leader.accept({ to: 'n2', session: progress.session, sequence: 99 }, 1)
      leader.answerHeartbeat('n2', 5)
      expect(leader.core.status().malformedMessages).to.equal(4)
      expect(leader.core.commitIndex).to.equal(1)
    })

    it('hazard D2.19: 100 000 divergent entries of few terms converge in as many round trips as there are terms', () => {
      const common = 1000
      const followerTerms = [
        ...Array.from({ length: common }, () => 1),
        ...Array.from({ length: 40_000 }, () => 2),
        ...Array.from({ length: 30_000 }, () => 4),
        ...Array.from({ length: 30_000 }, () => 6),
      ]
      const leaderTerms = [
        ...Array.from({ length: common }, () => 1),
        ...Array.from({ length: 50_000 }, () => 3),
        ...Array.from({ length: 50_000 }, () => 5),
      ]
      const cluster = new Cluster({
        voters: 3,
        initial: {
          n1: { hardState: { term: 7, vote: null }, entries: logOf(leaderTerms) },
          n2: { hardState: { term: 7, vote: null }, entries: logOf(leaderTerms) },
          n3: { hardState: { term: 7, vote: null }, entries: logOf(followerTerms) },
        },
        raft: { maxAppendBytes: 1 << 20, maxInflightBytes: 1 << 24 },
      })
      // The follower hears nothing until there is a leader, so that it does not vote.
      cluster.filter = ({ from, to }) => from !== 'n3' && to !== 'n3'
      cluster.elect('n1')
      cluster.heal()
      cluster.sent = []
      cluster.until(() => cluster.core('n3').commitIndex === cluster.core('n1').commitIndex, 'the follower converges', 1000)
      const refusals = cluster.sent.filter((message) => message.type === 'append-reply' && message.from === 'n3' && !message.accepted)
      expect(refusals.length).to.be.at.most(4)
      expect(cluster.core('n3').lastIndex).to.equal(cluster.core('n1').lastIndex)
    })

    const paperLogs: [string, number[]][] = [
      ['a: short by one', [1, 1, 1, 4, 4, 5, 5, 6, 6]],
      ['b: short by many', [1, 1, 1, 4]],
      ['c: one too many', [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]],
      ['d: two of a later term', [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]],
      ['e: other entries of a shared term', [1, 1, 1, 4, 4, 4, 4]],
      ['f: other terms', [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]],
      ['nothing at all', []],
    ]
    for (const [what, terms] of paperLogs) {
      it(`brings the log of figure 7 in line: ${what}`, () => {
        const leaderTerms = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
        const cluster = new Cluster({
          voters: 3,
          initial: {
            n1: { hardState: { term: 7, vote: null }, entries: logOf(leaderTerms) },
            n2: { hardState: { term: 7, vote: null }, entries: logOf(leaderTerms) },
            n3: { hardState: { term: 7, vote: null }, entries: logOf(terms) },
          },
        })
        cluster.filter = ({ from, to }) => from !== 'n3' && to !== 'n3'
        cluster.elect('n1')
        cluster.heal()
        cluster.sent = []
        cluster.until(() => cluster.core('n3').commitIndex === 11, 'the logs agree', 500)
        expect(cluster.get('n3').disk.entries.map(({ term }) => term)).to.deep.equal([...leaderTerms, 8])
        const refusals = cluster.sent.filter((message) => message.type === 'append-reply' && message.from === 'n3' && !message.accepted)
        expect(refusals.length).to.be.at.most(3)
      })
    }
  })

  describe('losses', () => {
    it('hazard D2.21: a refusal that comes late does not move anything back', () => {
      const leader = new Solo().leadAgreed()
      leader.propose('a')
      leader.propose('b')
      const [request] = only(leader.settle(), 'append-request', 'n2')
      leader.reject(request!, 0, 2)
      const [probe] = only(leader.settle(), 'append-request', 'n2')
      leader.accept(probe!, 3)
      const { session } = leader.core.progressOf('n2')!
      leader.reject(request!, 0, 2).reject(request!, 0, 2)
      expect(leader.core.progressOf('n2')).to.include({ session, state: 'replicate', matchIndex: 3, nextIndex: 4 })
      expect(leader.settle()).to.deep.equal([])
    })

    it('hazard D2.21: an acceptance that comes after a step back still counts', () => {
      const leader = new Solo().leadAgreed()
      leader.propose('a')
      const [first] = only(leader.settle(), 'append-request', 'n2')
      leader.propose('b')
      const [second] = only(leader.settle(), 'append-request', 'n2')
      leader.reject(second!, 0, 2)
      const [probe] = only(leader.settle(), 'append-request', 'n2')
      expect(probe!.session).to.be.above(first!.session)
      leader.accept(first!, 2)
      expect(leader.core.commitIndex).to.equal(2)
    })

    it('a refusal of one of many under way steps back once, to what the follower lacks', () => {
      const leader = new Solo({ raft: { maxAppendBytes: 100 } }).leadAgreed()
      const requests: AppendRequest[] = []
      for (let count = 0; count < 5; count++) {
        leader.propose(hundred)
        requests.push(...only(leader.settle(), 'append-request', 'n2'))
      }
      expect(requests).to.have.length(5)
      for (const request of requests.slice(1)) leader.reject(request, 0, 2)
      const resent = only(leader.settle(), 'append-request', 'n2')
      expect(resent.map(({ previousIndex, entries }) => [previousIndex, entries.length])).to.deep.equal([[1, 1]])
      leader.accept(resent[0]!, 2)
      expect(only(leader.settle(), 'append-request', 'n2').map(({ previousIndex }) => previousIndex)).to.deep.equal([2, 3, 4, 5])
    })

    it('hazard D7.55: the last append lost, and nothing after it: asked about within two heartbeat intervals, by one empty message', () => {
      const leader = new Solo().leadAgreed()
      leader.propose('lost')
      leader.settle()
      const asked = () => only(leader.tick(10).settle(), 'append-request', 'n2')
      const [check, ...others] = [...asked(), ...asked()]
      expect(others).to.deep.equal([])
      expect(check).to.deep.include({ previousIndex: 2, entries: [] })
      leader.reject(check!, 0, 2)
      const [resent] = only(leader.settle(), 'append-request', 'n2')
      expect(resent!.entries.map(({ index }) => index)).to.deep.equal([2])
    })

    it('hazard D7.55: a follower that is only slow is asked, and nothing is sent to it twice', () => {
      const leader = new Solo({ raft: { maxInflightBytes: 300, maxAppendBytes: 100 } }).leadAgreed()
      for (let count = 0; count < 10; count++) leader.propose(hundred)
      const first = only(leader.settle(), 'append-request', 'n2')
      expect(first).to.have.length(3)
      const later: AppendRequest[] = []
      for (let beat = 0; beat < 8; beat++) {
        leader.tick(10).answerHeartbeat('n2').answerHeartbeat('n3')
        later.push(...only(leader.settle(), 'append-request', 'n2'))
      }
      expect(later.length).to.be.within(6, 8)
      expect(later.every(({ entries, previousIndex }) => entries.length === 0 && previousIndex === 4)).to.equal(true)
      for (const [position, request] of first.entries()) leader.accept(request, 2 + position)
      for (const request of later) leader.accept(request, 4)
      expect(only(leader.settle(), 'append-request', 'n2').map(({ previousIndex }) => previousIndex)).to.deep.equal([4, 5, 6])
    })

    it('a dead follower gets its window once, then one small message a heartbeat', () => {
      const leader = new Solo({ raft: { maxInflightBytes: 400, maxAppendBytes: 100 } }).leadAgreed()
      const toDead: AppendRequest[] = []
      for (let beat = 0; beat < 50; beat++) {
        for (let count = 0; count < 5; count++) leader.propose(hundred)
        leader.tick(10).answerHeartbeat('n3')
        for (const request of leader.settle()) {
          if (request.type !== 'append-request') continue
          if (request.to === 'n2') toDead.push(request)
          else leader.accept(request, request.previousIndex + request.entries.length)
        }
        leader.settle()
      }
      const entries = toDead.reduce((sum, request) => sum + request.entries.length, 0)
      expect(entries).to.be.at.most(4)
      expect(toDead.length).to.be.at.most(50 + 4)
      expect(leader.core.commitIndex).to.be.above(100)
    })

    it('a follower that was never heard of gets entries once, then one empty message a heartbeat', () => {
      const leader = new Solo()
      const first = only(leader.lead(), 'append-request', 'n2')
      expect(first.map(({ entries }) => entries.length)).to.deep.equal([1])
      const later: AppendRequest[] = []
      for (let beat = 0; beat < 9; beat++) later.push(...only(leader.tick(10).answerHeartbeat('n3').settle(), 'append-request', 'n2'))
      expect(later.map(({ entries }) => entries.length)).to.deep.equal(Array.from({ length: 9 }, () => 0))
      expect(new Set(later.map(({ session }) => session)), 'one question, however often asked').to.deep.equal(new Set([first[0]!.session]))
      leader.accept(later[2]!, 0)
      expect(
        only(leader.settle(), 'append-request', 'n2').map(({ entries }) => entries.length),
        'a late answer counts',
      ).to.deep.equal([1])
    })

    it('hazard D5.45: a follower that contradicts what it acknowledged sets no pace', () => {
      const leader = new Solo().leadAgreed()
      let answered = 0
      for (let beat = 0; beat < 9; beat++) {
        leader.propose('a')
        leader.tick(10).answerHeartbeat('n3')
        for (let turn = 0; turn < 20; turn++) {
          for (const request of only(leader.settle(), 'append-request', 'n2')) {
            answered++
            leader.reject(request, 0, 1)
          }
        }
      }
      expect(answered).to.be.at.most(30)
      expect(leader.core.progressOf('n2')!.matchIndex).to.equal(1)
    })

    it('a hint of the transport makes the next heartbeat ask, and sends nothing itself', () => {
      const leader = new Solo().leadAgreed()
      leader.tick(10).settle()
      leader.tick(5)
      leader.propose('lost')
      leader.settle()
      leader.core.step({ type: 'unreachable', peer: 'n2' })
      leader.core.step({ type: 'unreachable', peer: 'n7' })
      expect(leader.core.dirty).to.equal(false)
      const asked = leader.tick(5).settle()
      expect(only(asked, 'append-request', 'n2')).to.have.length(1)
      expect(only(asked, 'append-request', 'n3')).to.have.length(0)
    })

    it('hazard D7.55: whatever single message is lost, the group catches up within four heartbeat intervals', () => {
      const run = (lose: number) => {
        const cluster = new Cluster({ voters: 3, raft: { maxAppendBytes: 100, maxInflightBytes: 400 } })
        cluster.elect('n1')
        cluster.advance(50)
        let count = 0
        cluster.filter = () => count++ !== lose
        for (let proposal = 0; proposal < 6; proposal++) cluster.propose('n1', `${proposal}${hundred}`)
        cluster.advance(12)
        for (let proposal = 6; proposal < 9; proposal++) cluster.propose('n1', `${proposal}${hundred}`)
        cluster.until(() => cluster.up.every(({ core }) => core.commitIndex === 10), `all have all though message ${lose} is lost`, 60)
        return count
      }
      const messages = run(-1)
      for (let lose = 0; lose < messages; lose++) run(lose)
    })

    it('hazard D7.53: windows and counters are back at zero after every kind of reset', () => {
      const cluster = new Cluster({ voters: 3, seed: 9, raft: { maxInflightBytes: 300, maxAppendBytes: 100, maxUncommittedBytes: 500 } })
      for (let round = 0; round < 12; round++) {
        const leader = cluster.elect()
        if (round % 3 === 0) cluster.cut(leader.id)
        for (let count = 0; count < 8; count++) cluster.propose(leader.id, hundred)
        cluster.advance(round % 2 === 0 ? 3 : 150)
        if (round % 4 === 1) {
          cluster.crash(leader.id)
          cluster.restart(leader.id)
        }
        cluster.heal()
        cluster.advance(400)
        for (const { core, id } of cluster.up) {
          expect(core.uncommittedBytes).to.equal(0)
          for (const { id: peer } of cluster.up) if (peer !== id) expect(core.progressOf(peer)?.inflight.bytes ?? 0).to.equal(0)
        }
        const proposal = cluster.propose(cluster.leader!.id, 'accepted')
        expect(cluster.leader!.accepted.has(proposal)).to.equal(true)
      }
    })
  })

  describe('entries that are no longer in memory', () => {
    /** Leads over a log of which nothing is in memory, with a follower that lacks it all. */
    function leadOverDisk(): { leader: Solo; entries: readonly ReturnType<typeof logOf>[number][] } {
      const terms = Array.from({ length: 20 }, (_, position) => 1 + Math.floor(position / 8))
      const leader = new Solo({ terms, raft: { maxAppendBytes: 150 } })
      for (const request of only(leader.lead(), 'append-request')) {
        if (request.to === 'n2') leader.reject(request, 0, 1)
        else leader.accept(request, 21)
      }
      return { leader, entries: leader.entries }
    }

    it('are asked for once, by range and size, and sent as they come', () => {
      const { leader, entries } = leadOverDisk()
      const probe = leader.drain()
      expect(probe.fetch, 'the logs agree nowhere yet').to.deep.equal([])
      const [request] = only(probe.sendNow, 'append-request', 'n2')
      expect(request).to.deep.include({ previousIndex: 0, entries: [] })
      leader.accept(request!, 0)
      const { fetch } = leader.drain()
      expect(fetch).to.deep.equal([{ peer: 'n2', firstIndex: 1, lastIndex: 20, maxBytes: 150 }])
      leader.propose('more')
      expect(leader.drain().fetch, 'at most one under way').to.deep.equal([])
      leader.core.step({ type: 'fetched', peer: 'n2', entries: entries.slice(0, 4) })
      const output = leader.drain()
      expect(only(output.sendNow, 'append-request', 'n2').map(({ previousIndex, entries: sent }) => [previousIndex, sent.length])).to.deep.equal([
        [0, 4],
      ])
      expect(output.fetch).to.deep.equal([{ peer: 'n2', firstIndex: 5, lastIndex: 20, maxBytes: 150 }])
    })

    it('hazard D2.16 D2.17: are dropped unless they are consecutive, of this log, and still wanted', () => {
      const { leader, entries } = leadOverDisk()
      leader.accept(only(leader.settle(), 'append-request', 'n2')[0]!, 0)
      const isSent = () => only(leader.settle(), 'append-request', 'n2').length > 0
      const fetched = (list: readonly (typeof entries)[number][]) => leader.core.step({ type: 'fetched', peer: 'n2', entries: list })
      leader.settle()
      fetched([])
      expect(isSent()).to.equal(false)
      expect(leader.drain().fetch, 'asked again only after a heartbeat').to.deep.equal([])
      const fetches = () => {
        leader.tick(10).answerHeartbeat('n2').answerHeartbeat('n3')
        return leader.drain().fetch.length
      }
      expect(fetches()).to.equal(1)
      fetched([{ ...entries[0]!, term: 2 }])
      expect(isSent()).to.equal(false)
      expect(fetches()).to.equal(1)
      fetched([entries[0]!, entries[2]!])
      expect(isSent()).to.equal(false)
      expect(fetches()).to.equal(1)
      fetched(entries.slice(3, 5))
      expect(isSent(), 'the answer to another question').to.equal(false)
      leader.core.step({ type: 'fetched', peer: 'n7', entries })
      leader.accept({ to: 'n2', session: leader.core.progressOf('n2')!.session, sequence: 1 }, 2)
      fetched(entries.slice(0, 4))
      expect(isSent(), 'the follower is past them').to.equal(false)
      expect(leader.outputs.at(-1)!.fetch, 'and what it lacks was asked for at once').to.deep.equal([
        { peer: 'n2', firstIndex: 3, lastIndex: 20, maxBytes: 150 },
      ])
      fetched(entries.slice(2, 4))
      expect(isSent()).to.equal(true)
    })

    it('are dropped after leadership or the session changed', () => {
      const { leader, entries } = leadOverDisk()
      leader.accept(only(leader.settle(), 'append-request', 'n2')[0]!, 0)
      leader.settle()
      leader.heartbeat({ from: 'n3', term: 99 })
      leader.core.step({ type: 'fetched', peer: 'n2', entries: entries.slice(0, 4) })
      expect(only(leader.settle(), 'append-request')).to.deep.equal([])
    })

    it('are asked for again when no answer comes for an election timeout', () => {
      const { leader } = leadOverDisk()
      leader.accept(only(leader.settle(), 'append-request', 'n2')[0]!, 0)
      let fetches = leader.drain().fetch.length
      for (let beat = 0; beat < 15; beat++) {
        leader.tick(10).answerHeartbeat('n2').answerHeartbeat('n3')
        fetches += leader.drain().fetch.length
      }
      expect(fetches).to.equal(2)
    })

    it('hazard D2.18: below a snapshot nothing is sent but heartbeats, until snapshots are', () => {
      const leader = new Solo({ terms: [1, 1, 1, 1, 1, 1], raft: { snapshotIndex: 4, snapshotTerm: 1, commitIndex: 4 } })
      const [request] = only(leader.lead(), 'append-request', 'n2')
      leader.reject(request!, 0, 3)
      for (let beat = 0; beat < 5; beat++) {
        const sent = leader.tick(10).answerHeartbeat('n2').answerHeartbeat('n3').settle()
        expect(only(sent, 'append-request', 'n2')).to.deep.equal([])
        expect(only(sent, 'heartbeat', 'n2')).to.have.length(1)
      }
      expect(leader.core.dirty).to.equal(false)
    })

    it('hazard D2.20: a follower whose log begins with a snapshot takes what overlaps it', () => {
      const follower = new Solo({ terms: [1, 1, 1, 1, 1, 1], raft: { snapshotIndex: 4, snapshotTerm: 1, commitIndex: 4 } })
      follower.append({ from: 'n2', term: 2, previousIndex: 2, previousTerm: 1, entries: logOf([1, 1, 1, 2], 3) })
      expect(only(follower.settle(), 'append-reply')[0]).to.include({ accepted: true, matchIndex: 6 })
      expect(follower.core.termAt(6)).to.equal(2)
      follower.append({ from: 'n2', term: 2, previousIndex: 1, previousTerm: 1, entries: logOf([1], 2) })
      expect(only(follower.settle(), 'append-reply')[0]).to.include({ accepted: true, matchIndex: 2 })
      follower.append({ from: 'n2', term: 2, previousIndex: 4, previousTerm: 1, entries: [] })
      expect(only(follower.settle(), 'append-reply')[0]).to.include({ accepted: true, matchIndex: 4 })
    })

    it('a follower far behind catches up from the log store while commands go on', () => {
      const cluster = new Cluster({ voters: 3, raft: { maxTailBytes: 500 } })
      cluster.elect('n1')
      cluster.cut('n3')
      for (let count = 0; count < 200; count++) cluster.propose('n1', `${count}${hundred}`)
      cluster.advance(100)
      expect(cluster.core('n1').tailBytes).to.be.at.most(500)
      cluster.heal()
      for (let count = 0; count < 20; count++) {
        cluster.propose('n1', `late${count}`)
        cluster.advance(2)
      }
      cluster.until(() => cluster.core('n3').commitIndex === 221, 'the follower catches up', 500)
      expect(cluster.get('n3').commands).to.deep.equal(cluster.get('n1').commands)
    })
  })
})
