import { expect } from 'chai'
import { LogClock, longestGapMs } from '../../src/engine/log-clock.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { newSeed } from '../support/seed.js'

describe('LogClock', () => {
  it('begins where the state machine stands, and goes on with the monotonic clock', () => {
    const clock = new LogClock()
    expect(clock.look(1, 5000, 77)).to.equal(5000)
    expect(clock.look(1, 5000, 78.5)).to.equal(5001)
    expect(clock.look(1, 5000, 79)).to.equal(5002)
    expect(clock.look(1, 5001, 1000)).to.equal(5923)
  })

  it('hazard L4: a new term begins anew: what passed while others led is not counted', () => {
    const clock = new LogClock()
    clock.look(1, 0, 0)
    expect(clock.look(1, 0, 900)).to.equal(900)
    expect(clock.look(3, 400, 1300)).to.equal(400)
    expect(clock.look(3, 400, 1301)).to.equal(401)
  })

  it('hazard p10, t4, t5: a stalled loop counts for a bounded time', () => {
    const clock = new LogClock()
    clock.look(1, 0, 0)
    expect(clock.look(1, 0, 60_000)).to.equal(longestGapMs)
    expect(clock.look(1, 0, 60_010)).to.equal(longestGapMs + 10)
  })

  it('hazard t1: a clock that jumps back counts for nothing, and time never goes back', () => {
    const clock = new LogClock()
    clock.look(1, 0, 10_000)
    expect(clock.look(1, 0, 10_500)).to.equal(500)
    expect(clock.look(1, 0, 3)).to.equal(500)
    expect(clock.look(1, 0, 103)).to.equal(600)
  })

  it('follows the state machine when that is ahead', () => {
    const clock = new LogClock()
    clock.look(2, 100, 0)
    expect(clock.look(2, 700, 10), 'entries of its predecessors that it had not applied yet').to.equal(700)
    expect(clock.look(2, 700, 20)).to.equal(710)
  })

  it('hazards L4, D9.63, t1, p6: whatever leaders come and go, no more log time passes between two entries than real time', () => {
    const first = newSeed()
    for (let seed = first; seed < first + 200; seed++) {
      const random = new SeededRandom(seed, 'log clock')
      // Each node has a clock, and the log as far as it has it. Entries: when they were stamped in truth, and the machine's time after them.
      const log: { realMs: number; timeMs: number }[] = []
      const nodes = [0, 1, 2].map(() => ({ clock: new LogClock(), offsetMs: random.integer(0, 1_000_000), applied: 0 }))
      let realMs = 0
      let least = Number.POSITIVE_INFINITY
      let term = 1
      let leader = nodes[0]!
      for (let step = 0; step < 300; step++) {
        realMs += random.pick([0, 1, 30, 400, 900, random.integer(0, 20_000)])
        if (random.chance(0.1)) {
          leader = random.pick(nodes)
          term++
        }
        leader.applied = random.integer(leader.applied, log.length)
        if (random.chance(0.02)) leader.offsetMs -= random.integer(0, 100_000)
        const machineTimeMs = leader.applied === 0 ? 0 : log[leader.applied - 1]!.timeMs
        const stampMs = leader.clock.look(term, machineTimeMs, realMs + leader.offsetMs)
        if (random.chance(0.5)) continue
        // Stamp less an entry's time is at most the real time since that entry, for every one of them.
        expect(stampMs - realMs, `seed ${seed}, step ${step}`).to.be.at.most(least)
        least = Math.min(least, Math.max(stampMs, log.at(-1)?.timeMs ?? 0) - realMs)
        log.push({ realMs, timeMs: Math.max(stampMs, log.at(-1)?.timeMs ?? 0) })
      }
    }
  })
})
