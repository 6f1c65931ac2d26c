/** The arithmetic of majorities against its naive definition. */
import { expect } from 'chai'
import fc from 'fast-check'
import { hasQuorum, majorityValue, membersOf, normalizeConfiguration, quorumValue, votersOf } from '../../src/raft/quorum.js'
import type { Configuration, NodeId } from '../../src/raft/types.js'

/** By definition: n is reached by a majority when more than half of the voters have n or more. */
function naiveMajority(voters: readonly NodeId[], numbers: ReadonlyMap<NodeId, number>): number {
  const reached = [0, ...numbers.values()].filter(
    (number) => voters.filter((voter) => (numbers.get(voter) ?? 0) >= number).length * 2 > voters.length,
  )
  return voters.length === 0 ? 0 : Math.max(0, ...reached)
}

const ids = ['a', 'b', 'c', 'd', 'e', 'f', 'g']
const numbersOfVoters = fc.array(fc.nat(6), { minLength: 7, maxLength: 7 }).map((numbers) => new Map(ids.map((id, at) => [id, numbers[at]!])))

describe('raft quorum', () => {
  it('hazard D2.15: equals the naive definition for 0 to 7 voters', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 7 }), numbersOfVoters, (count, numbers) => {
        const voters = ids.slice(0, count)
        expect(majorityValue(voters, (id) => numbers.get(id)!)).to.equal(naiveMajority(voters, numbers))
      }),
      { numRuns: 3000 },
    )
  })

  it('hazard D2.15: needs both majorities while a joint configuration is in force', () => {
    fc.assert(
      fc.property(fc.subarray(ids, { minLength: 1 }), fc.subarray(ids), numbersOfVoters, (voters, votersOutgoing, numbers) => {
        const configuration: Configuration = { voters, votersOutgoing, learners: [] }
        const incoming = naiveMajority(voters, numbers)
        const naive = votersOutgoing.length === 0 ? incoming : Math.min(incoming, naiveMajority(votersOutgoing, numbers))
        expect(quorumValue(configuration, (id) => numbers.get(id)!)).to.equal(naive)
        expect(hasQuorum(configuration, (id) => numbers.get(id)! >= 3)).to.equal(naive >= 3)
      }),
      { numRuns: 3000 },
    )
  })

  it('any two quorums share a voter', () => {
    fc.assert(
      fc.property(fc.subarray(ids, { minLength: 1 }), fc.subarray(ids), fc.subarray(ids), (voters, one, other) => {
        const configuration: Configuration = { voters, votersOutgoing: [], learners: [] }
        const areQuorums = hasQuorum(configuration, (id) => one.includes(id)) && hasQuorum(configuration, (id) => other.includes(id))
        if (areQuorums) expect(voters.some((id) => one.includes(id) && other.includes(id))).to.equal(true)
      }),
    )
  })

  it('counts no learner and no stranger, and knows no quorum without voters', () => {
    expect(hasQuorum({ voters: ['a', 'b', 'c'], learners: ['d', 'e'], votersOutgoing: [] }, (id) => ['a', 'd', 'e', 'x'].includes(id))).to.equal(
      false,
    )
    expect(hasQuorum({ voters: [], learners: ['a'], votersOutgoing: [] }, () => true)).to.equal(false)
  })

  it('counts a node that is listed twice once', () => {
    const configuration = normalizeConfiguration({ voters: ['a', 'a', 'b', 'c'], learners: ['d', 'd'], votersOutgoing: ['a', 'e'] })
    expect(configuration).to.deep.equal({ voters: ['a', 'b', 'c'], learners: ['d'], votersOutgoing: ['a', 'e'] })
    expect(membersOf(configuration)).to.deep.equal(['a', 'b', 'c', 'e', 'd'])
    expect(votersOf(configuration)).to.deep.equal(['a', 'b', 'c', 'e'])
    expect(() => normalizeConfiguration({ voters: ['a'], learners: ['a'], votersOutgoing: [] })).to.throw('voter and learner')
  })
})
