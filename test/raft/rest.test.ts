/** A leader with nothing to do speaks less often, and what that must not change. */
import { expect } from 'chai'
import { only, Solo } from './support/solo.js'

const restAfterHeartbeats = 3
const options = { raft: { restAfterHeartbeats } }

/** A leader that rests: its followers hold everything. */
function resting(): Solo {
  const leader = new Solo(options).leadAgreed()
  let beats = 0
  for (let passed = 0; passed < 20 * 10; passed += 10) {
    for (const beat of only(leader.tick(10).drain().sendNow, 'heartbeat')) {
      leader.answerHeartbeat(beat.to, beat.round)
      if (beat.isResting) beats++
    }
  }
  expect(beats).to.be.greaterThan(0)
  return leader
}

/** When heartbeats come within a time, relative to now. */
function beatsWithin(leader: Solo, durationMs: number, answer = true): number[] {
  const times: number[] = []
  const startMs = leader.nowMs
  while (leader.nowMs < startMs + durationMs) {
    const beats = only(leader.tick(1).drain().sendNow, 'heartbeat')
    if (beats.length > 0) times.push(leader.nowMs - startMs)
    if (answer) for (const { to, round } of beats) leader.answerHeartbeat(to, round)
  }
  return times
}

describe('raft rest', () => {
  it('hazard D8.60: an idle leader sends a tenth of the heartbeats, and says so', () => {
    const leader = resting()
    const times = beatsWithin(leader, 1000)
    expect(times).to.have.length(10)
    expect(leader.core.role).to.equal('leader')
    for (let passed = 0; passed < 110; passed++) {
      const { sendNow } = leader.tick(1).drain()
      expect(
        leader.core.progress().every(({ isActive }) => isActive),
        'followers are as active as they can be',
      ).to.equal(true)
      for (const { to, round } of only(sendNow, 'heartbeat')) leader.answerHeartbeat(to, round)
    }
  })

  it('a proposal, or a read, ends the rest at once: appends and heartbeats come as ever', () => {
    for (const wake of [
      (leader: Solo) => leader.core.step({ type: 'propose', id: 1, data: Buffer.from('x') }),
      (leader: Solo) => leader.core.step({ type: 'read', id: 1 }),
    ]) {
      const leader = resting()
      wake(leader)
      const { sendNow } = leader.drain()
      expect(sendNow).to.have.length(2)
      expect(only(sendNow, 'heartbeat').filter(({ isResting }) => isResting)).to.deep.equal([])
      expect(leader.core.nextTickMs - leader.nowMs).to.be.at.most(10)
      // Two intervals until it is answered, and then again three until it rests.
      expect(beatsWithin(leader, 20, false)).to.have.length(2)
    }
  })

  it('does not rest while a follower that is heard lacks something', () => {
    const leader = new Solo(options)
    leader.lead()
    expect(beatsWithin(leader, 200)).to.have.length(20)
  })

  it('hazard D3.25: still steps down when no quorum answers, in bounded time', () => {
    const leader = resting()
    beatsWithin(leader, 300, false)
    expect(leader.core.role).to.equal('follower')
  })

  it('hazard D3.25: a follower waits longer after a resting heartbeat, and stands by the leader until the next one is due; any other sign of the leader, or of its end, shortens that', () => {
    const follower = new Solo({ raft: { random: () => 0 } })
    follower.tick(1000)
    follower.message({ type: 'heartbeat', from: 'n2', to: 'n1', term: 1, commitIndex: 0, round: 1, isResting: true }).settle()
    expect(follower.core.nextTickMs).to.equal(1600)
    const ask = (sequence: number) =>
      follower.message({ type: 'vote-request', from: 'n3', to: 'n1', term: 2, lastIndex: 0, lastTerm: 0, sequence, transfer: false }).settle()
    follower.tick(99)
    expect(ask(1), 'before an election timeout has passed').to.deep.equal([])
    follower.message({ type: 'heartbeat', from: 'n2', to: 'n1', term: 1, commitIndex: 0, round: 1 }).settle()
    expect(follower.core.nextTickMs).to.equal(1199)
    follower.message({ type: 'heartbeat', from: 'n2', to: 'n1', term: 1, commitIndex: 0, round: 2, isResting: true }).settle()
    // Ten intervals of 10 ms lie between two heartbeats: one that cannot hear the leader is not to slip in between.
    follower.tick(199)
    expect(ask(2)).to.deep.equal([])
    follower.tick(1)
    expect(only(ask(3), 'vote-reply').map(({ granted }) => granted)).to.deep.equal([true])
    follower.message({ type: 'heartbeat', from: 'n3', to: 'n1', term: 2, commitIndex: 0, round: 1, isResting: true }).settle()
    follower.core.step({ type: 'unreachable', peer: 'n3' })
    follower.tick(99).message({ type: 'pre-vote-request', from: 'n2', to: 'n1', term: 3, lastIndex: 0, lastTerm: 0, sequence: 4 })
    expect(only(follower.settle(), 'pre-vote-reply')).to.deep.equal([])
    follower.tick(1).message({ type: 'pre-vote-request', from: 'n2', to: 'n1', term: 3, lastIndex: 0, lastTerm: 0, sequence: 4 })
    expect(only(follower.settle(), 'pre-vote-reply')).to.have.length(1)
  })
})
