/** The proof of the simulator: every known bug that is put back is caught. */
import { expect } from 'chai'
import { runMutation } from '../../../src/testing/simulation/campaign.js'
import { mutations } from '../../../src/testing/simulation/mutations.js'

describe('the simulator with a known bug', function () {
  // Some need hundreds of runs, and the machine may be busy.
  this.timeout(300_000)

  for (const mutation of mutations) {
    it(`catches ${mutation.name}: ${mutation.description}`, () => {
      const outcome = runMutation(mutation, 1, 500)
      expect(outcome.caughtAfterSeeds, `${mutation.name}: seeds 1 to 500`).to.not.equal(null)
    })
  }

  it('has names that differ', () => {
    expect(new Set(mutations.map(({ name }) => name)).size).to.equal(mutations.length)
  })
})
