/** Real processes, real disks, real sockets: what kills, pauses, full disks, failing syncs and bad links must not break. `npm run torture` does the same for longer. */
import { expect } from 'chai'
import { newSeed } from '../support/seed.js'
import { type FaultName, faultNames } from './support/faults.js'
import { runTorture, type TortureOptions, type TortureSummary } from './support/torture.js'

/** Runs a campaign that must find nothing. */
async function torture(test: Mocha.Context, options: Omit<TortureOptions, 'seed'>): Promise<TortureSummary> {
  const seed = newSeed()
  const summary = await runTorture({ seed, ...options })
  expect(summary.violations, `seed ${seed}`).to.deep.equal([])
  expect(summary.operations).to.be.greaterThan(summary.rounds * 100)
  if (summary.leftOut.length > 0) console.log(`      left out on this machine: ${summary.leftOut.join('; ')}`)
  if (summary.rounds === 0) test.skip()
  return summary
}

describe('real processes', function () {
  this.timeout(300_000)

  const kills = ['kill-one', 'kill-leader', 'kill-all'] as const satisfies readonly FaultName[]

  it('hazard p1, p2, p3, p11: 20 rounds of SIGKILL, of one and of all, under load: nothing acknowledged is lost, every history is linearizable', async function () {
    const summary = await torture(this, { rounds: 20, only: kills, size: 3 })
    expect(Object.values(summary.faults).reduce((sum, count) => sum + count, 0)).to.equal(20)
    expect(summary.heldUp.killed.count).to.be.greaterThan(0)
  })

  it('hazard m7, m8, m10, p5, p6, d12, d14, d17, n4, n6, n11, n13, n15, n16: each fault once, on processes, disks and links: nothing acknowledged is lost, every history is linearizable', async function () {
    const others = faultNames.filter((name) => !(kills as readonly string[]).includes(name))
    const summary = await torture(this, { rounds: others.length, only: others, size: 3 })
    const done = Object.keys(summary.faults)
    const leftOut = summary.leftOut.map((line) => line.split(':')[0]!)
    expect([...done, ...leftOut]).to.have.members(others)
  })
})
