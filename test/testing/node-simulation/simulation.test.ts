/** Whole nodes in a simulated world: a short campaign, and that a seed decides everything. `npm run sim -- --node` runs more. */
import { expect } from 'chai'
import { runNodeCampaign } from '../../../src/testing/node-simulation/campaign.js'
import { drawNodePlan } from '../../../src/testing/node-simulation/plan.js'
import { runNodeSimulation } from '../../../src/testing/node-simulation/simulation.js'

describe('the simulator of whole nodes', function () {
  // One run at a time: a run that goes on after its test was given up would meet the next one in the classes that both watch.
  this.timeout(600_000)

  it('finds no violation in 40 seeds, and reaches what it is there for', async () => {
    const { violations, faults, reached } = await runNodeCampaign({ firstSeed: 1, seeds: 40, repeatEvery: 0 })
    expect(violations).to.deep.equal([])
    for (const fault of [
      'kill',
      'power-loss',
      'crashed-at-operation',
      'pause',
      'io-error',
      'disk-full',
      'write-under-way-kept',
      'write-under-way-lost',
      'frame-lost',
    ]) {
      expect(faults[fault] ?? 0, fault).to.be.greaterThan(0)
    }
    for (const state of ['truncation', 'healed', 'history-searched', 'repeated-request']) expect(reached[state] ?? 0, state).to.be.greaterThan(0)
  })

  it('does the same twice with one seed, and something else with another', async () => {
    for (const seed of [3, 12, 25]) {
      const lines: string[][] = [[], []]
      const results = []
      for (const into of lines) results.push(await runNodeSimulation({ seed, onLine: (line) => into.push(line) }))
      expect(lines[1], `seed ${seed}`).to.deep.equal(lines[0])
      expect(results[1]!.traceHash, `seed ${seed}`).to.equal(results[0]!.traceHash)
      expect(results[1]!.steps, `seed ${seed}`).to.equal(results[0]!.steps)
    }
    const [one, other] = [await runNodeSimulation({ seed: 8 }), await runNodeSimulation({ seed: 13 })]
    expect(one.traceHash).to.not.equal(other.traceHash)
  })

  it('runs a plan that was saved as it runs the seed', async () => {
    const plan = JSON.parse(JSON.stringify(drawNodePlan(8)))
    expect((await runNodeSimulation({ seed: 8, plan })).traceHash).to.equal((await runNodeSimulation({ seed: 8 })).traceHash)
  })
})
