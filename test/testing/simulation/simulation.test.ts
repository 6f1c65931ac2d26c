/** The simulator itself: it holds over seeds, it is deterministic, and it reaches what it is meant to reach. */
import { expect } from 'chai'
import { runCampaign } from '../../../src/testing/simulation/campaign.js'
import { drawPlan, faultKinds } from '../../../src/testing/simulation/plan.js'
import { runSimulation, soundParts } from '../../../src/testing/simulation/simulation.js'

describe('the simulator', () => {
  it('finds no violation in 150 seeds, in which every kind of fault happens', () => {
    const summary = runCampaign({ firstSeed: 1, seeds: 150 })
    expect(summary.violations, JSON.stringify(summary.violations, null, 2)).to.deep.equal([])
    const own = [
      'lost',
      'repeated',
      'replayed-later',
      'reordered',
      'late',
      'cut',
      'filtered',
      'held',
      'disk-error',
      'crash-in-write-kept',
      'crash-in-write-lost',
    ]
    expect(summary.faults).to.include.keys(...faultKinds, ...own, 'state-lost', 'unwritten-lost', 'crash-at-change', 'crash-at-truncation')
    expect(summary.reached).to.include.keys('truncation', 'fetch', 'overloaded', 'two-leaders', 'majority-alone-healed')
    expect(summary.elections).to.be.greaterThan(500)
    expect(summary.operations['acknowledged']).to.be.greaterThan(5000)
    expect(summary.operations['readsConfirmed']).to.be.greaterThan(1000)
  })

  it('gives the same trace for the same seed, and another for another', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const first = runSimulation({ seed })
      const second = runSimulation({ seed })
      expect(second, `seed ${seed}`).to.deep.equal(first)
      expect(runSimulation({ seed: seed + 1000 }).traceHash, `seed ${seed}`).to.not.equal(first.traceHash)
    }
  })

  it('writes the same run as lines', () => {
    const lines: string[] = []
    const quiet = runSimulation({ seed: 3 })
    const told = runSimulation({ seed: 3, onLine: (line) => lines.push(line) })
    expect(told).to.deep.equal(quiet)
    expect(lines.length).to.be.greaterThan(100)
    expect(lines.every((line) => /^ *\d+\.\d{6} {2}\S/.test(line) && !line.includes('\n'))).to.equal(true)
  })

  it('reports what a core throws as a violation', () => {
    const result = runSimulation({
      seed: 1,
      parts: {
        ...soundParts,
        createCore: (options) => {
          const core = soundParts.createCore(options)
          const step = core.step.bind(core)
          core.step = (input) => {
            if (input.type === 'propose') throw new Error('planted')
            step(input)
          }
          return core
        },
      },
    })
    expect(result.violation?.invariant).to.equal('exception')
    expect(result.violation?.message).to.include('planted')
  })

  it('notices a cluster that does not heal', () => {
    const result = runSimulation({
      seed: 1,
      plan: { ...drawPlan(1), faults: [], clients: 1 },
      parts: {
        ...soundParts,
        createCore: (options) => {
          const core = soundParts.createCore(options)
          const step = core.step.bind(core)
          // Votes never arrive: nobody can be elected.
          core.step = (input) => {
            if (input.type !== 'message' || input.message.type !== 'vote-reply' || input.message.from === options.id) step(input)
          }
          return core
        },
      },
    })
    expect(result.violation?.invariant).to.equal('R18')
  })
})
