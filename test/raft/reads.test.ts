/** Linearizable reads by ReadIndex: thesis §6.4, and its hazards. */
import { expect } from 'chai'
import { maxWaitingReads } from '../../src/raft/reads.js'
import { Cluster } from './support/cluster.js'
import { only, Solo } from './support/solo.js'

describe('raft reads', () => {
  it('get the commit index once a quorum has answered a heartbeat sent after them', () => {
    const leader = new Solo().leadAgreed()
    leader.read(1).read(2)
    const beats = only(leader.drain().sendNow, 'heartbeat')
    expect(beats.map(({ to }) => to)).to.deep.equal(['n2', 'n3'])
    expect(new Set(beats.map(({ round }) => round)).size, 'one round for both').to.equal(1)
    expect(leader.core.dirty).to.equal(false)
    leader.answerHeartbeat('n2', beats[0]!.round)
    expect(leader.drain().reads).to.deep.equal([
      { id: 1, index: 1 },
      { id: 2, index: 1 },
    ])
  })

  it('hazard D4.34: an answer to an earlier round confirms no later read, repeated or delayed', () => {
    const leader = new Solo().leadAgreed()
    leader.read(1)
    const first = only(leader.drain().sendNow, 'heartbeat')[0]!.round
    leader.answerHeartbeat('n2', first)
    expect(leader.drain().reads).to.have.length(1)
    leader.read(1)
    const second = only(leader.drain().sendNow, 'heartbeat')[0]!.round
    expect(second).to.be.above(first)
    leader.answerHeartbeat('n2', first).answerHeartbeat('n3', first)
    expect(leader.drain().reads).to.deep.equal([])
    leader.answerHeartbeat('n3', second)
    expect(leader.drain().reads).to.have.length(1)
  })

  it('hazard D4.34: a read that comes after the round was sent needs a round of its own', () => {
    const leader = new Solo().leadAgreed()
    leader.read(1)
    const { round } = only(leader.drain().sendNow, 'heartbeat')[0]!
    leader.read(2)
    leader.answerHeartbeat('n2', round)
    expect(leader.drain().reads.map(({ id }) => id)).to.deep.equal([1])
  })

  it('a later round confirms the earlier ones, each with its own index', () => {
    const leader = new Solo().leadAgreed()
    leader.read(1)
    leader.drain()
    leader.propose('a')
    const [request] = only(leader.settle(), 'append-request')
    leader.accept(request!, 2)
    leader.read(2)
    const beats = only(leader.drain().sendNow, 'heartbeat')
    leader.answerHeartbeat('n3', beats[0]!.round)
    expect(leader.drain().reads).to.deep.equal([
      { id: 1, index: 1 },
      { id: 2, index: 2 },
    ])
  })

  it('hazard D4.33: wait until an entry of the leader itself is committed', () => {
    const leader = new Solo({ terms: [1, 1] })
    const [request] = only(leader.lead(), 'append-request')
    leader.read(1)
    expect(leader.core.dirty).to.equal(false)
    expect(leader.drain().reads).to.deep.equal([])
    leader.answerHeartbeat('n2').answerHeartbeat('n3')
    expect(leader.drain().reads).to.deep.equal([])
    leader.accept(request!, 3)
    expect(leader.core.dirty).to.equal(true)
    const beats = only(leader.drain().sendNow, 'heartbeat')
    leader.answerHeartbeat('n2', beats[0]!.round)
    expect(leader.drain().reads).to.deep.equal([{ id: 1, index: 3 }])
  })

  it('hazard D4.37: those that wait for that too long are rejected', () => {
    const leader = new Solo()
    leader.lead()
    leader.read(1)
    for (let passed = 0; passed < 90; passed += 10) leader.tick(10).answerHeartbeat('n2').answerHeartbeat('n3')
    expect(leader.drain().rejected).to.deep.equal([])
    leader.tick(10)
    expect(leader.drain().rejected).to.deep.equal([{ id: 1, reason: 'overloaded' }])
  })

  it('hazard D4.37: those whose heartbeats get no answer are rejected, though appends are answered', () => {
    const leader = new Solo().leadAgreed()
    leader.read(1)
    leader.settle()
    leader.tick(10).read(2)
    for (let passed = 10; passed < 100; passed += 10) {
      leader.propose('a')
      for (const request of only(leader.settle(), 'append-request')) leader.accept(request, request.previousIndex + request.entries.length)
      leader.tick(10)
    }
    expect(leader.drain().rejected).to.deep.equal([{ id: 1, reason: 'overloaded' }])
    expect(leader.core.role).to.equal('leader')
    leader.tick(10)
    expect(leader.drain().rejected).to.deep.equal([{ id: 2, reason: 'overloaded' }])
    leader.read(3)
    leader.answerHeartbeat('n2', only(leader.drain().sendNow, 'heartbeat')[0]!.round)
    expect(leader.drain().reads).to.deep.equal([{ id: 3, index: leader.core.commitIndex }])
  })

  it('hazard D4.35: neither learners nor strangers nor the same follower twice confirm', () => {
    const leader = new Solo({ voters: ['n1', 'n2', 'n3', 'n4', 'n5'], learners: ['l1', 'l2'] }).leadAgreed()
    leader.read(1)
    const beats = only(leader.drain().sendNow, 'heartbeat')
    expect(beats.map(({ to }) => to)).to.deep.equal(['n2', 'n3', 'n4', 'n5'])
    const { round } = beats[0]!
    for (const from of ['l1', 'l2', 'n9', 'n2', 'n2']) leader.answerHeartbeat(from, round)
    expect(leader.drain().reads).to.deep.equal([])
    leader.answerHeartbeat('n5', round)
    expect(leader.drain().reads).to.have.length(1)
  })

  it('hazard D4.37: end with leadership, whatever they wait for', () => {
    const confirming = new Solo().leadAgreed()
    confirming.read(1)
    confirming.drain()
    confirming.read(2)
    confirming.heartbeat({ from: 'n3', term: 9 })
    expect(confirming.drain().rejected).to.deep.equal([
      { id: 1, reason: 'not-leader' },
      { id: 2, reason: 'not-leader' },
    ])
    const silent = new Solo().leadAgreed()
    silent.read(1)
    for (let passed = 0; passed < 120; passed += 10) silent.tick(10).settle()
    expect(silent.outputs.flatMap(({ rejected }) => rejected)).to.deep.equal([{ id: 1, reason: 'not-leader' }])
    const follower = new Solo().read(3)
    expect(follower.drain().rejected).to.deep.equal([{ id: 3, reason: 'not-leader' }])
  })

  it('hazard D4.34: answers to an earlier leadership do not confirm reads of a later one', () => {
    const leader = new Solo().leadAgreed()
    leader.read(1)
    const { round, term } = only(leader.drain().sendNow, 'heartbeat')[0]!
    leader.heartbeat({ from: 'n3', term: 2 })
    leader.settle()
    leader.tick(1000).leadAgreed()
    leader.read(2)
    const beats = only(leader.drain().sendNow, 'heartbeat')
    expect(beats[0]!.round, 'rounds only rise').to.be.above(round)
    for (const from of ['n2', 'n3']) leader.message({ type: 'heartbeat-reply', from, to: 'n1', term, round: beats[0]!.round })
    expect(leader.drain().reads).to.deep.equal([])
  })

  it('are given at once where there is nobody to ask, but not before the first entry is committed', () => {
    const solo = new Solo({ voters: ['n1'], learners: ['n2'] })
    solo.tick(0).drain()
    solo.persist()
    solo.read(1)
    expect(solo.drain().reads).to.deep.equal([])
    solo.persist()
    const output = solo.drain()
    expect(output.reads).to.deep.equal([{ id: 1, index: 1 }])
    expect(output.sendNow).to.deep.equal([])
  })

  it('hazard p10: a stall of the host between a read and its drain is no wait of the read: it gets its round, and the time for an answer', () => {
    const leader = new Solo().leadAgreed()
    leader.read(1)
    for (let passedMs = 0; passedMs < 150; passedMs += 50) leader.tick(50).answerHeartbeat('n2', 0)
    const { rejected, sendNow } = leader.drain()
    expect(rejected).to.deep.equal([])
    leader.tick(10)
    expect(leader.drain().rejected).to.deep.equal([])
    leader.answerHeartbeat('n2', only(sendNow, 'heartbeat').at(-1)!.round)
    expect(leader.drain().reads).to.deep.equal([{ id: 1, index: 1 }])
  })

  it('a lost answer costs a heartbeat interval', () => {
    const leader = new Solo().leadAgreed()
    leader.read(1)
    const { round } = only(leader.drain().sendNow, 'heartbeat')[0]!
    const [again] = only(leader.tick(10).drain().sendNow, 'heartbeat')
    expect(again!.round, 'a later round, which confirms the earlier one too').to.be.above(round)
    leader.answerHeartbeat('n2', again!.round)
    expect(leader.drain().reads).to.have.length(1)
  })

  it('hazard D4.37: no more wait than may, and room returns', () => {
    const leader = new Solo().leadAgreed()
    for (let id = 0; id <= maxWaitingReads; id++) leader.read(id)
    const output = leader.drain()
    expect(output.rejected).to.deep.equal([{ id: maxWaitingReads, reason: 'overloaded' }])
    leader.answerHeartbeat('n2', only(output.sendNow, 'heartbeat')[0]!.round)
    expect(leader.drain().reads).to.have.length(maxWaitingReads)
    leader.read(7)
    const { sendNow, rejected } = leader.drain()
    expect(rejected).to.deep.equal([])
    leader.answerHeartbeat('n2', only(sendNow, 'heartbeat')[0]!.round)
    expect(leader.drain().reads).to.deep.equal([{ id: 7, index: 1 }])
    for (let id = 0; id < 10; id++) leader.read(id)
    leader.heartbeat({ from: 'n2', term: 5 })
    expect(leader.drain().rejected).to.have.length(10)
  })

  it('hazard D4.36: a leader that was cut off and paused gives no index for a read, and a new one knows all writes', () => {
    const cluster = new Cluster({ voters: 3 })
    const old = cluster.elect('n1')
    cluster.cut('n1')
    const stale = cluster.read('n1')
    cluster.until(() => cluster.up.some(({ id, core }) => id !== 'n1' && core.role === 'leader'), 'another leader')
    const fresh = cluster.up.find(({ id, core }) => id !== 'n1' && core.role === 'leader')!
    cluster.propose(fresh.id, 'newer')
    cluster.until(() => fresh.commands.includes('newer'), 'committed')
    const { index } = [...fresh.accepted.values()].at(-1)!
    const read = cluster.read(fresh.id)
    cluster.until(() => fresh.reads.has(read), 'read confirmed')
    expect(fresh.reads.get(read)).to.be.at.least(index)
    cluster.heal()
    cluster.until(() => old.rejected.has(stale), 'the stale read ends')
    expect(old.reads.has(stale)).to.equal(false)
  })
})
