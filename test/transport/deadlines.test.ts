/** Deadlines against a plain model, in simulated time. */
import { expect } from 'chai'
import fc from 'fast-check'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'
import { Deadline, Deadlines } from '../../src/transport/deadlines.js'

class Recorded extends Deadline {
  readonly dueMs: number
  readonly durationMs: number
  readonly #runtime: SimulatedRuntime
  expiredMs = -1
  removed = false

  constructor(runtime: SimulatedRuntime, durationMs: number) {
    super()
    this.#runtime = runtime
    this.durationMs = durationMs
    this.dueMs = runtime.nowMs() + durationMs
  }

  expire(): void {
    expect(this.expiredMs, 'expired twice').to.equal(-1)
    expect(this.removed, 'expired after its removal').to.equal(false)
    this.expiredMs = this.#runtime.nowMs()
  }
}

describe('Deadlines', () => {
  it('every entry that is not removed expires once, not early, and at most a sixteenth late', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.tuple(fc.double({ min: 0.1, max: 20_000, noNaN: true }), fc.double({ min: 0, max: 50, noNaN: true }), fc.integer({ min: 0, max: 3 })),
          {
            maxLength: 100,
          },
        ),
        async (steps) => {
          const runtime = new SimulatedRuntime({ seed: 1 })
          const deadlines = new Deadlines(runtime)
          const entries: Recorded[] = []
          for (const [durationMs, waitMs, remove] of steps) {
            const entry = new Recorded(runtime, durationMs)
            deadlines.add(entry, durationMs)
            entries.push(entry)
            await runtime.advance(waitMs)
            const chosen = remove === 0 ? entries[Math.floor(entries.length / 2)] : undefined
            if (chosen !== undefined && chosen.expiredMs < 0) {
              chosen.removed = true
              deadlines.remove(chosen)
              deadlines.remove(chosen)
            }
          }
          await runtime.advance(30_000)
          for (const entry of entries) {
            if (entry.removed) expect(entry.expiredMs).to.equal(-1)
            else expect(entry.expiredMs).to.be.within(entry.dueMs, entry.dueMs + Math.max(1, entry.durationMs / 16) + 1.001)
          }
        },
      ),
      { numRuns: 200 },
    )
  })

  it('uses few timers for many entries', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const deadlines = new Deadlines(runtime)
    let scheduled = 0
    const schedule = runtime.schedule.bind(runtime)
    runtime.schedule = (delayMs, task) => {
      scheduled++
      return schedule(delayMs, task)
    }
    for (let number = 0; number < 10_000; number++) deadlines.add(new Recorded(runtime, 9000 + (number % 1000)), 9000 + (number % 1000))
    expect(scheduled).to.be.below(20)
  })

  it('never expires what waits for ever, nor anything after clear', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const deadlines = new Deadlines(runtime)
    const entries = [new Recorded(runtime, 10), new Recorded(runtime, 10)] as const
    deadlines.add(entries[0], Number.POSITIVE_INFINITY)
    deadlines.add(entries[1], 10)
    deadlines.clear()
    await runtime.advance(1_000_000)
    expect(entries.map((entry) => entry.expiredMs)).to.deep.equal([-1, -1])
  })

  it('an entry that is added again while it expires expires again later', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const deadlines = new Deadlines(runtime)
    let times = 0
    class Again extends Deadline {
      expire(): void {
        if (++times < 5) deadlines.add(this, 10)
      }
    }
    deadlines.add(new Again(), 10)
    await runtime.advance(45)
    expect(times).to.equal(4)
    await runtime.advance(1000)
    expect(times).to.equal(5)
  })
})
