import { expect } from 'chai'
import fc from 'fast-check'
import { nodeOf } from '../../src/engine/identity.js'
import { CatchUp, type GroupFacts, isAsWanted, nextMembers } from '../../src/shard/placement.js'
import { newSeed } from '../support/seed.js'

/** Facts in short: members that are dead are marked by `!`, learners that have caught up by `+`. */
function facts(voters: string, learners: string, wanted: string, lives = ''): GroupFacts {
  const words = (text: string) => text.split(' ').filter((word) => word !== '')
  const plain = (word: string) => word.replace(/[!+]/g, '')
  const all = [...words(voters), ...words(learners)]
  return {
    configuration: { voters: words(voters).map(plain), learners: words(learners).map(plain), votersOutgoing: [] },
    wanted: words(wanted),
    lives: new Map(words(lives).map((member) => [nodeOf(member), member])),
    isCaughtUp: (member) => all.includes(`${member}+`),
    isActive: (member) => !all.includes(`${member}!`),
  }
}

function next(...of: Parameters<typeof facts>): string {
  const found = nextMembers(facts(...of))
  return found === null ? 'nothing' : `${found.voters.join(' ')} / ${found.learners.join(' ')}`.trim()
}

describe('placement', () => {
  it('1 node grows to 3: each comes as a learner and votes when it has caught up (hazard D5.43)', () => {
    expect(next('a', '', 'a')).to.equal('nothing')
    expect(next('a', '', 'a b c')).to.equal('nothing')
    expect(next('a', '', 'a b c', 'b#1')).to.equal('a / b#1')
    expect(next('a', 'b#1', 'a b c', 'b#1 c#2')).to.equal('a / b#1 c#2')
    expect(next('a', 'b#1+ c#2', 'a b c', 'b#1 c#2')).to.equal('a b#1 / c#2')
    expect(next('a', 'b#1+ c#2+', 'a b c', 'b#1 c#2')).to.equal('a b#1 c#2 /')
    // A learner that was heard once and no more is not counted upon.
    expect(next('a', 'b#1+!', 'a b', 'b#1')).to.equal('nothing')
  })

  it('hazard m7: one is replaced in one change, when the other is ready; until then it stays', () => {
    expect(next('a b c', '', 'a b d', 'd#1')).to.equal('a b c / d#1')
    expect(next('a b c', 'd#1', 'a b d', 'd#1')).to.equal('nothing')
    expect(next('a b c', 'd#1+', 'a b d', 'd#1')).to.equal('a b d#1 /')
    expect(next('a b c!', 'd#1+', 'a b d', 'd#1')).to.equal('a b d#1 /')
  })

  it('hazards p5, D5.45: a new life of a node takes the place of the old one', () => {
    expect(next('a b c!', '', 'a b c', 'c#1')).to.equal('a b c / c#1')
    expect(next('a b c!', 'c#1+', 'a b c', 'c#1')).to.equal('a b c#1 /')
    // Wiped again before it was ready.
    expect(next('a b c!', 'c#1!', 'a b c', 'c#2')).to.equal('a b c / c#2')
  })

  it('hazard D5.46: who is ready goes ahead of who is not', () => {
    expect(next('a b c', 'd#1+ e#1', 'a d e', 'd#1 e#1')).to.equal('a b d#1 / e#1')
    expect(next('a b! c', 'd#1+', 'a d e', 'd#1')).to.equal('a c d#1 /')
  })

  it('hazard m1: nobody is removed when those who stay could not go on', () => {
    expect(next('a b! c', '', 'a b')).to.equal('nothing')
    expect(next('a b c', '', 'a b')).to.equal('a b /')
    expect(next('a b! c! d e', '', 'a b c')).to.equal('nothing')
    // Even then learners that nobody wants go.
    expect(next('a b! c', 'x', 'a b', 'b')).to.equal('a b c /')
  })

  it('hazard m4: a leader that is not wanted is removed like any other', () => {
    expect(next('a', 'b#1', 'b', 'b#1')).to.equal('nothing')
    expect(next('a', 'b#1+', 'b', 'b#1')).to.equal('b#1 /')
  })

  it('whatever the facts: a majority of the next voters lives, each of them voted before or has caught up, and steps lead to what is wanted', () => {
    const nodes = ['a', 'b', 'c', 'd', 'e', 'f']
    const arbitrary = fc.record({
      voters: fc.subarray(nodes, { minLength: 1 }),
      wanted: fc.subarray(nodes, { minLength: 1 }),
      dead: fc.subarray(nodes),
      wiped: fc.subarray(nodes),
    })
    fc.assert(
      fc.property(arbitrary, ({ voters, wanted, dead, wiped }) => {
        const isDead = (member: string) => dead.includes(nodeOf(member)) || (wiped.includes(member) && !member.includes('#'))
        if (voters.filter((voter) => !isDead(voter)).length * 2 <= voters.length) return
        const lives = new Map(
          wanted.filter((node) => !dead.includes(node)).map((node) => [node, wiped.includes(node) || !voters.includes(node) ? `${node}#1` : node]),
        )
        let configuration = { voters: [...voters], learners: [] as string[], votersOutgoing: [] }
        for (let steps = 0; ; steps++) {
          expect(steps).to.be.below(20)
          const found = nextMembers({ configuration, wanted, lives, isCaughtUp: () => true, isActive: (member) => !isDead(member) })
          if (found === null) break
          expect(found.voters.filter((voter) => !isDead(voter)).length * 2).to.be.above(found.voters.length)
          for (const voter of found.voters) expect([...configuration.voters, ...configuration.learners]).to.include(voter)
          expect(new Set(found.voters.map(nodeOf)).size).to.equal(found.voters.length)
          configuration = { voters: [...found.voters], learners: [...found.learners], votersOutgoing: [] }
        }
        if (dead.length === 0) expect(isAsWanted(configuration, wanted), JSON.stringify(configuration)).to.equal(true)
      }),
      { seed: newSeed() | 0, numRuns: 2000 },
    )
  })

  it('a learner has caught up when one round took no longer than an election timeout', () => {
    const catchUp = new CatchUp(100_000, 0)
    catchUp.reached(50_000, 150_000, 1000, 250)
    expect(catchUp.isDone).to.equal(false)
    catchUp.reached(100_000, 200_000, 2000, 250)
    expect(catchUp.isDone).to.equal(false)
    catchUp.reached(200_000, 210_000, 3000, 250)
    expect(catchUp.isDone).to.equal(false)
    catchUp.reached(210_000, 211_000, 3200, 250)
    expect(catchUp.isDone).to.equal(true)
    catchUp.lost(211_000, 4000)
    expect(catchUp.isDone).to.equal(false)
    // Nothing more to get is caught up, too, however long it took.
    catchUp.reached(211_000, 211_000, 9000, 250)
    expect(catchUp.isDone).to.equal(true)
  })
})
