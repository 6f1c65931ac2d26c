/** Lab 3A, elections, on the simulated clock: every row of the lab by its name. */

import { scenario } from './support/over-seeds.js'
import { labElectionTimeoutMs } from './support/raft-lab.js'

describe('lab 3A: elections', () => {
  scenario('3A InitialElection3A: one leader, and terms that stay agreed', { servers: 3, seeds: 100 }, (lab) => {
    lab.checkOneLeader()
    lab.sleep(50)
    const term = lab.checkTerms()
    lab.check(term >= 1, `term is ${term}, but should be at least 1`)
    lab.sleep(2 * labElectionTimeoutMs)
    // The lab only warns when the term changed; nothing failed, so here it must not.
    lab.check(lab.checkTerms() === term, 'the term changed though nothing failed')
    lab.checkOneLeader()
  })

  scenario('3A ReElection3A: a new leader after a failure, none without a quorum', { servers: 3, seeds: 100 }, (lab) => {
    const leader1 = lab.checkOneLeader()
    lab.disconnect(leader1)
    lab.checkOneLeader()
    // The old leader's return must not disturb the new one.
    lab.connect(leader1)
    const leader2 = lab.checkOneLeader()
    lab.disconnect(leader2)
    const another = (leader2 + 1) % 3
    lab.disconnect(another)
    lab.sleep(2 * labElectionTimeoutMs)
    lab.checkNoLeader()
    lab.connect(another)
    lab.checkOneLeader()
    lab.connect(leader2)
    lab.checkOneLeader()
  })

  scenario('3A ManyElections3A: nine rounds with three of seven cut off', { servers: 7, seeds: 100 }, (lab) => {
    lab.checkOneLeader()
    for (let round = 0; round < 9; round++) {
      const cut = [lab.random.integer(0, 6), lab.random.integer(0, 6), lab.random.integer(0, 6)]
      for (const server of cut) lab.disconnect(server)
      // Either the current leader is alive, or the four others elect one.
      lab.checkOneLeader()
      for (const server of cut) lab.connect(server)
    }
    lab.checkOneLeader()
  })
})
