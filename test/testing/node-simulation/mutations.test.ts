/** The proof of the node simulator: every known bug that is put back is caught, and a failing plan shrinks. */
import { expect } from 'chai'
import { runNodeMutation } from '../../../src/testing/node-simulation/campaign.js'
import { nodeMutations } from '../../../src/testing/node-simulation/mutations.js'
import { shrinkPlan } from '../../../src/testing/node-simulation/shrink.js'
import { runNodeSimulation } from '../../../src/testing/node-simulation/simulation.js'
import { mutations } from '../../../src/testing/simulation/mutations.js'

describe('the node simulator with a known bug', function () {
  this.timeout(600_000)
  for (const mutation of nodeMutations) {
    it(`catches ${mutation.name}: ${mutation.description}`, async () => {
      const outcome = await runNodeMutation(mutation, 1, 500)
      expect(outcome.caughtAfterSeeds, `${mutation.name}: seeds 1 to 500`).to.not.equal(null)
    })
  }

  it('has names that differ, also from those of the core', () => {
    const names = [...nodeMutations, ...mutations].map(({ name }) => name)
    expect(new Set(names).size).to.equal(names.length)
  })

  it('shrinks a failing plan to a smaller one that fails by the same invariant, and runs the same from JSON', async () => {
    const { plant } = nodeMutations.find(({ name }) => name === 'completion-records-not-read')!
    for (let seed = 1; ; seed++) {
      const { violation, plan } = await runNodeSimulation({ seed, plant })
      if (violation === null) continue
      const shrunk = await shrinkPlan({ plan, invariant: violation.invariant, plant, maxRuns: 60 })
      expect(shrunk.plan.operations.length).to.be.lessThan(plan.operations.length / 2)
      expect(shrunk.plan.faults.length).to.be.at.most(plan.faults.length)
      const saved = JSON.parse(JSON.stringify(shrunk.plan))
      const again = await runNodeSimulation({ seed, plan: saved, plant })
      expect(again.violation).to.deep.equal(shrunk.result.violation)
      expect(again.traceHash).to.equal(shrunk.result.traceHash)
      return
    }
  })
})
