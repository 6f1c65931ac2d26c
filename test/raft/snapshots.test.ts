/** Compaction, offers, installs: what a replica does when the log does not begin at 1 (Raft paper §7, figure 13). */
import { expect } from 'chai'
import { InvariantError } from '../../src/raft/invariant.js'
import { encodeConfiguration } from '../../src/raft/message-codec.js'
import { mergeWork } from '../../src/raft/persistence.js'
import { type Entry, EntryKind, type PersistWork } from '../../src/raft/types.js'
import { Cluster } from './support/cluster.js'
import { only, Solo } from './support/solo.js'

const three = { voters: ['n1', 'n2', 'n3'], learners: [], votersOutgoing: [] }

/** A leader n1 with so many committed commands and no follower n3, whose log is then compacted. */
function leftBehind(count: number, compactTo: number, options: Partial<ConstructorParameters<typeof Cluster>[0]> = {}): Cluster {
  const cluster = new Cluster({ voters: 3, ...options })
  cluster.elect('n1')
  cluster.cut('n3')
  for (let number = 0; number < count; number++) cluster.propose('n1', `command ${number}`)
  cluster.until(() => cluster.core('n1').commitIndex === count + 1, 'committed without n3')
  for (const id of ['n1', 'n2']) {
    cluster.until(() => cluster.get(id).appliedIndex === count + 1, `${id} applied`)
    cluster.compact(id, compactTo)
  }
  return cluster
}

describe('raft snapshots', () => {
  describe('compaction', () => {
    it('moves the first index on, keeps the term before it, and forgets what lies below', () => {
      const cluster = leftBehind(20, 10)
      const { core } = cluster.get('n1')
      expect(core.firstIndex).to.equal(11)
      expect(core.termAt(10)).to.equal(core.term)
      expect(core.termAt(9)).to.equal(undefined)
      expect(core.entries(10, 12, 1000)).to.deep.equal([])
      expect(core.entries(11, 12, 1000).map(({ index }) => index)).to.deep.equal([11, 12])
      expect(core.configurationAt(9)).to.equal(undefined)
      expect(core.configurationAt(10)).to.deep.equal(three)
      cluster.step('n1', { type: 'compacted', index: 5 })
      expect(core.firstIndex, 'an older report says nothing new').to.equal(11)
    })

    it('hazard D2.18: is refused for what is not applied, and the one that only the commit index covers', () => {
      const cluster = new Cluster({ voters: 3, apply: false })
      cluster.elect('n1')
      expect(() => cluster.core('n1').step({ type: 'compacted', index: 1 })).to.throw(InvariantError)
    })

    it('hazard D2.20: a log that starts right after its snapshot, and holds nothing more, follows and votes', () => {
      const cluster = leftBehind(5, 6)
      cluster.heal()
      cluster.until(() => cluster.get('n3').appliedIndex === 6, 'n3 installs')
      expect(cluster.core('n3').firstIndex).to.equal(7)
      cluster.restart('n3')
      cluster.cut('n1')
      cluster.until(() => cluster.leader !== undefined && cluster.leader.id !== 'n1', 'n2 or n3 leads')
      const proposal = cluster.propose(cluster.leader!.id, 'after')
      const leader = cluster.leader!
      cluster.until(() => leader.accepted.has(proposal) && leader.appliedIndex >= leader.accepted.get(proposal)!.index, 'it commits')
    })
  })

  describe('a follower whose next entry is compacted away', () => {
    it('hazard D2.18: is offered a snapshot, installs it, and goes on from there', () => {
      const cluster = leftBehind(20, 15)
      cluster.heal()
      cluster.until(() => cluster.get('n3').appliedIndex === 21, 'n3 caught up')
      expect(cluster.get('n3').commands).to.deep.equal(cluster.get('n1').commands)
      expect(only(cluster.sent, 'snapshot-offer', 'n3').length).to.be.at.least(1)
      cluster.propose('n1', 'more')
      cluster.until(() => cluster.get('n3').commands.at(-1) === 'more', 'replication goes on')
      expect(cluster.core('n1').progressOf('n3')).to.include({ state: 'replicate' })
      expect(cluster.core('n3').status().malformedMessages).to.equal(0)
      expect(cluster.core('n1').status().malformedMessages).to.equal(0)
    })

    it('hazard D6.49: is offered it again each heartbeat interval while the leader idles, and nothing else is sent to it but heartbeats', () => {
      const cluster = leftBehind(20, 15, { installs: 'manual' })
      cluster.heal()
      cluster.until(() => cluster.get('n3').installs.length > 0, 'an offer')
      cluster.sent = []
      cluster.advance(100)
      expect(only(cluster.sent, 'snapshot-offer', 'n3')).to.have.length(10)
      expect(only(cluster.sent, 'append-request', 'n3')).to.have.length(0)
      expect(only(cluster.sent, 'heartbeat', 'n3')).to.have.length(10)
      expect(cluster.get('n3').installs.length).to.be.within(10, 12)
      expect(cluster.get('n3').installs[0]).to.deep.equal({ from: 'n1', index: 15, term: 1 })
      expect(cluster.leader?.id, 'a heartbeat is answered all the while').to.equal('n1')
    })

    it('hazard D6.50: says at once when it has installed, and again when it is offered what it holds', () => {
      const cluster = leftBehind(20, 15, { installs: 'manual' })
      cluster.heal()
      cluster.until(() => cluster.get('n3').installs.length > 0, 'an offer')
      cluster.sent = []
      cluster.install('n3', 'n1')
      const replies = only(cluster.sent, 'append-reply', 'n1')
      expect(replies).to.have.length(1)
      expect(replies[0]).to.include({ accepted: true, matchIndex: 15 })
      cluster.dropInFlight()
      cluster.sent = []
      cluster.until(() => cluster.core('n1').progressOf('n3')!.state === 'replicate', 'the next offer is answered too', 30)
      expect(cluster.get('n3').installs).to.deep.equal([])
    })

    it('hazard D6.48: gets the rest of the log although more was compacted while it installed', () => {
      const cluster = leftBehind(20, 10, { installs: 'manual' })
      cluster.heal()
      cluster.until(() => cluster.get('n3').installs.length > 0, 'an offer')
      cluster.compact('n1', 20)
      cluster.install('n3', 'n2')
      cluster.until(() => cluster.get('n3').appliedIndex === 21, 'caught up')
      expect(cluster.get('n3').commands).to.deep.equal(cluster.get('n1').commands)
    })

    it('hazard D5.41: learns the configuration with the snapshot', () => {
      const cluster = new Cluster({ voters: 3, joiners: 1 })
      cluster.elect('n1')
      for (let number = 0; number < 10; number++) cluster.propose('n1', `${number}`)
      cluster.advance(20)
      cluster.compact('n1', 8)
      const request = cluster.configure('n1', ['n1', 'n2', 'n3'], ['n4'])
      cluster.until(() => cluster.get('n1').configured.has(request), 'the learner is a member')
      cluster.until(() => cluster.get('n4').appliedIndex === cluster.get('n1').appliedIndex, 'the learner caught up')
      expect(cluster.core('n4').configuration).to.deep.equal({ ...three, learners: ['n4'] })
      cluster.restart('n4')
      expect(cluster.core('n4').configuration, 'over a restart').to.deep.equal({ ...three, learners: ['n4'] })
      expect(cluster.get('n4').commands).to.deep.equal(cluster.get('n1').commands)
    })
  })

  describe('restored', () => {
    it('hazard D6.47: keeps the entries that follow on the same entry, and drops those that follow on another', () => {
      const same = new Solo({ terms: [1, 1, 2, 2] })
      same.core.step({ type: 'restored', index: 3, term: 2, configuration: three })
      const kept = same.drain().persist!
      expect(kept.reset).to.deep.equal({ index: 3, term: 2, configuration: three, keepsLater: true })
      expect(same.core.lastIndex).to.equal(4)
      expect(same.core.commitIndex).to.equal(3)
      const other = new Solo({ terms: [1, 1, 1, 1] })
      other.core.step({ type: 'restored', index: 3, term: 2, configuration: three })
      const dropped = other.drain().persist!
      expect(dropped.reset).to.include({ index: 3, term: 2, keepsLater: false })
      expect([other.core.firstIndex, other.core.lastIndex, other.core.termAt(3), other.core.commitIndex]).to.deep.equal([4, 3, 2, 3])
      expect(other.core.term, 'what is committed in a term was written in it').to.equal(2)
    })

    it('hazard D6.47: never moves a replica back', () => {
      const solo = new Solo({ terms: [1, 1, 1], raft: { commitIndex: 3 } })
      expect(() => solo.core.step({ type: 'restored', index: 2, term: 1, configuration: three })).to.throw(InvariantError)
      expect(solo.core.dirty).to.equal(false)
    })

    it('hazard D3.26: who learns from it that it was removed campaigns no more, and pre-votes that are still granted begin nothing', () => {
      const without = { voters: ['n2', 'n3'], learners: ['n1'], votersOutgoing: [] }
      const removed = new Solo({ terms: [1, 1] })
      const questions = removed.timeout()
      expect(removed.core.role).to.equal('pre-candidate')
      removed.core.step({ type: 'restored', index: 4, term: 1, configuration: without })
      expect(removed.core.role).to.equal('follower')
      for (const question of questions) removed.vote(question)
      expect([removed.core.role, removed.core.term]).to.deep.equal(['follower', 1])

      const candidate = new Solo({ terms: [1, 1] })
      for (const question of candidate.timeout()) candidate.vote(question)
      const requests = only(candidate.settle(), 'vote-request')
      expect(candidate.core.role).to.equal('candidate')
      candidate.core.step({ type: 'restored', index: 4, term: 1, configuration: without })
      for (const request of requests) candidate.vote(request)
      expect([candidate.core.role, candidate.core.term]).to.deep.equal(['follower', 2])
      expect(candidate.settle()).to.deep.equal([])

      const stays = new Solo({ terms: [1, 1] })
      const asked = stays.timeout()
      stays.core.step({ type: 'restored', index: 4, term: 1, configuration: three })
      for (const question of asked) stays.vote(question)
      expect(stays.core.role, 'whoever is still a voter goes on').to.equal('candidate')
    })

    it('hazard D3.26: nor who held its removal in its log, and learns that it was committed', () => {
      const solo = new Solo({ terms: [1, 1] })
      const removal = encodeConfiguration({ voters: ['n2', 'n3'], learners: [], votersOutgoing: [] })
      solo.append({
        from: 'n2',
        previousIndex: 2,
        previousTerm: 1,
        entries: [{ index: 3, term: 1, kind: EntryKind.configuration, data: removal }],
      })
      solo.settle()
      solo.timeout()
      expect(solo.core.role, 'perhaps nobody else can commit it').to.equal('pre-candidate')
      solo.core.step({ type: 'restored', index: 3, term: 1, configuration: { voters: ['n2', 'n3'], learners: [], votersOutgoing: [] } })
      expect(solo.core.role).to.equal('follower')
    })

    it('hazard D6.47: a leader whose log it contradicts was deposed: it leads no more, and appends nothing twice in its term', () => {
      const solo = new Solo({ terms: [1, 1, 1, 1], hardState: { term: 3, vote: null } })
      solo.lead()
      const sent = { term: solo.core.term, index: solo.core.lastIndex }
      expect(sent).to.deep.equal({ term: 4, index: 5 })
      solo.read(7)
      solo.settle()
      solo.core.step({ type: 'restored', index: 3, term: 2, configuration: three })
      const { rejected } = solo.drain()
      expect(rejected.map(({ id }) => id)).to.deep.equal([7])
      expect([solo.core.role, solo.core.term, solo.core.lastIndex]).to.deep.equal(['follower', 4, 3])
      solo.propose('another entry 5 of term 4')
      solo.propose('and 6')
      expect(solo.core.lastIndex).to.equal(3)
      expect(only(solo.tick(10).settle(), 'heartbeat')).to.deep.equal([])

      const agreed = new Solo({ terms: [1, 1, 1, 1], hardState: { term: 3, vote: null } })
      agreed.lead()
      agreed.core.step({ type: 'restored', index: 3, term: 1, configuration: three })
      expect([agreed.core.role, agreed.core.lastIndex], 'one that agrees with it leads on').to.deep.equal(['leader', 5])
    })

    it('hazard D1.6: a write of the log that was replaced makes nothing of the new one durable, however late it completes', () => {
      const solo = new Solo({ terms: [1] })
      const entry = (index: number): Entry => ({ index, term: 1, kind: EntryKind.command, data: new Uint8Array(4) })
      solo.append({ from: 'n2', term: 1, previousIndex: 1, previousTerm: 1, entries: [entry(2), entry(3)] })
      const first = solo.drain().persist!
      solo.core.step({ type: 'restored', index: 9, term: 2, configuration: three })
      solo.append({ from: 'n2', term: 2, previousIndex: 9, previousTerm: 2, entries: [{ ...entry(10), term: 2 }] })
      const second = solo.drain().persist!
      expect(second).to.deep.include({ hardState: { term: 2, vote: null }, truncateFrom: null })
      expect(second.reset).to.include({ index: 9, keepsLater: false })
      expect(second.entries.map(({ index }) => index)).to.deep.equal([10])
      solo.core.step({ type: 'persisted', sequence: first.sequence })
      expect(solo.core.status().durableIndex).to.be.at.most(3)
      solo.core.step({ type: 'persisted', sequence: second.sequence })
      expect(solo.core.status().durableIndex).to.equal(10)
    })

    it('waits for the disk before the leader is told', () => {
      const solo = new Solo({ terms: [1], hardState: { term: 3, vote: null } })
      solo.message({ type: 'snapshot-offer', from: 'n2', to: 'n1', term: 3, snapshotIndex: 5, snapshotTerm: 2, session: 4, sequence: 6 })
      expect(solo.drain().install).to.deep.equal({ from: 'n2', index: 5, term: 2 })
      solo.core.step({ type: 'restored', index: 7, term: 2, configuration: three })
      const { sendNow, sendAfterPersist, persist } = solo.drain()
      expect(sendNow).to.deep.equal([])
      expect(persist!.reset).to.include({ index: 7 })
      expect(only(sendAfterPersist, 'append-reply')[0], 'no more than was offered').to.include({
        to: 'n2',
        session: 4,
        sequence: 6,
        matchIndex: 5,
        accepted: true,
      })
    })

    it('a leader whose log contradicts what was installed is not followed over it, and nothing is thrown', () => {
      // n2 leads term 3 and does not know that a later leader has replaced its entries 3 and 4.
      const solo = new Solo({ terms: [1, 1], hardState: { term: 3, vote: null } })
      solo.heartbeat({ from: 'n2', term: 3 })
      solo.core.step({ type: 'restored', index: 3, term: 2, configuration: three })
      const entries = [3, 4].map((index): Entry => ({ index, term: 3, kind: EntryKind.command, data: new Uint8Array(0) }))
      solo.append({ from: 'n2', term: 3, previousIndex: 2, previousTerm: 1, entries })
      expect(solo.core.lastIndex).to.equal(3)
      expect(only(solo.settle(), 'append-reply')).to.deep.equal([])
    })
  })

  it('an offer of an earlier term is answered with the present one, and echoes nothing', () => {
    const solo = new Solo({ hardState: { term: 5, vote: null } })
    solo.message({ type: 'snapshot-offer', from: 'n2', to: 'n1', term: 4, snapshotIndex: 5, snapshotTerm: 2, session: 4, sequence: 6 })
    const [reply] = only(solo.settle(), 'append-reply')
    expect(reply).to.include({ term: 5, accepted: false, session: 0, sequence: 0 })
    expect(solo.outputs.every(({ install }) => install === null)).to.equal(true)
  })

  it('hazard D2.17 D2.18: entries that were read from a log that was compacted meanwhile are not sent', () => {
    const solo = new Solo({ terms: [1, 1, 1, 1, 1, 1], raft: { commitIndex: 6, maxTailBytes: 0 } })
    const probe = only(solo.lead(), 'append-request', 'n2')[0]!
    solo.reject(probe, 0, 4)
    solo.settle()
    solo.accept(
      only(
        solo.outputs.flatMap(({ sendNow }) => sendNow),
        'append-request',
        'n2',
      ).at(-1)!,
      3,
    )
    const [fetch] = solo.drain().fetch
    expect(fetch).to.include({ peer: 'n2', firstIndex: 4 })
    solo.core.step({ type: 'compacted', index: 4 })
    solo.core.step({ type: 'fetched', peer: 'n2', entries: solo.entries.slice(3, 6) })
    expect(only(solo.settle(), 'append-request', 'n2')).to.deep.equal([])
    expect(only(solo.tick(10).settle(), 'snapshot-offer', 'n2')).to.have.length.at.least(0)
    expect(solo.core.progressOf('n2')).to.include({ state: 'snapshot' })
  })

  it('a snapshot of a term that was never entered here is started from, and its term entered: a crash came before the write that would have', () => {
    const solo = new Solo({
      hardState: { term: 2, vote: 'n3' },
      raft: { lastIndex: 7, snapshotIndex: 7, snapshotTerm: 4, commitIndex: 7, configurations: [{ index: 7, configuration: three }] },
    })
    expect(solo.core.term).to.equal(4)
    expect(solo.drain().persist).to.deep.include({ hardState: { term: 4, vote: null } })
  })

  it('hazard D2.21: a rejection of before the offer does not disturb it', () => {
    const solo = new Solo({ terms: [1, 1, 1, 1, 1, 1], raft: { commitIndex: 6 } })
    const sent = solo.lead()
    const probe = only(sent, 'append-request', 'n2')[0]!
    solo.core.step({ type: 'compacted', index: 5 })
    solo.reject(probe, 0, 2)
    const offer = only(solo.settle(), 'snapshot-offer', 'n2')[0]!
    expect(offer).to.include({ snapshotIndex: 5, snapshotTerm: 1 })
    solo.reject(probe, 0, 1)
    expect(solo.core.progressOf('n2')).to.include({ state: 'snapshot', nextIndex: 6 })
    solo.accept(offer, 5)
    expect(solo.core.progressOf('n2')).to.include({ state: 'replicate', matchIndex: 5 })
  })

  describe('works that are merged before they are written', () => {
    const entry = (index: number, term: number): Entry => ({ index, term, kind: EntryKind.command, data: new Uint8Array(1) })
    const work = (fields: Partial<PersistWork>): PersistWork => ({
      sequence: 1,
      hardState: null,
      reset: null,
      truncateFrom: null,
      entries: [],
      ...fields,
    })
    const reset = (index: number, keepsLater: boolean) => ({ index, term: 2, configuration: three, keepsLater })

    it('keep what follows a reset, and drop what it replaces', () => {
      const before = work({ truncateFrom: 4, entries: [entry(4, 2), entry(5, 2), entry(6, 2)] })
      expect(mergeWork(before, work({ sequence: 2, reset: reset(5, true), entries: [entry(7, 2)] }))).to.deep.equal(
        work({ sequence: 2, reset: reset(5, false), entries: [entry(6, 2), entry(7, 2)] }),
      )
      expect(mergeWork(before, work({ sequence: 2, reset: reset(9, false), entries: [entry(10, 3)] }))).to.deep.equal(
        work({ sequence: 2, reset: reset(9, false), entries: [entry(10, 3)] }),
      )
      expect(mergeWork(before, work({ sequence: 2, reset: reset(2, true) }))).to.deep.equal(
        work({ sequence: 2, reset: reset(2, true), truncateFrom: 4, entries: before.entries }),
      )
      const appended = work({ entries: [entry(7, 2), entry(8, 2)] })
      expect(mergeWork(appended, work({ reset: reset(7, true), truncateFrom: 8, entries: [entry(8, 3)] }))).to.deep.equal(
        work({ reset: reset(7, false), entries: [entry(8, 3)] }),
      )
    })

    it('keep the newest hard state, and an earlier reset', () => {
      const before = work({ hardState: { term: 2, vote: 'a' }, reset: reset(5, false), entries: [entry(6, 2)] })
      const after = work({ sequence: 2, truncateFrom: 6, entries: [entry(6, 3)] })
      expect(mergeWork(before, after)).to.deep.equal(
        work({ sequence: 2, hardState: { term: 2, vote: 'a' }, reset: reset(5, false), truncateFrom: 6, entries: [entry(6, 3)] }),
      )
      expect(mergeWork(before, { ...after, hardState: { term: 3, vote: null } }).hardState).to.deep.equal({ term: 3, vote: null })
    })
  })
})
