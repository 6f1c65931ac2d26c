import { expect } from 'chai'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'

describe('SimulatedRuntime', () => {
  it('runs events in the order of their time, then of their scheduling', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const seen: string[] = []
    runtime.schedule(20, () => seen.push(`c ${runtime.nowMs()}`))
    runtime.schedule(10, () => seen.push(`a ${runtime.nowMs()}`))
    runtime.schedule(10, () => seen.push(`b ${runtime.nowMs()}`))
    const cancel = runtime.schedule(15, () => seen.push('cancelled'))
    cancel()
    runtime.defer(() => seen.push(`now ${runtime.nowMs()}`))
    await runtime.advance(100)
    expect(seen).to.deep.equal(['now 0', 'a 10', 'b 10', 'c 20'])
    expect(runtime.nowMs()).to.equal(100)
  })

  it('keeps the order over thousands of random events', async () => {
    const runtime = new SimulatedRuntime({ seed: 7 })
    const times: number[] = []
    for (let count = 0; count < 3000; count++) runtime.schedule(Math.floor(runtime.random() * 500), () => times.push(runtime.nowMs()))
    await runtime.advance(500)
    expect(times).to.have.length(3000)
    expect(times).to.deep.equal([...times].sort((left, right) => left - right))
  })

  it('cancelled events never run, hold nothing, and leave the order of the others alone', async () => {
    const runtime = new SimulatedRuntime({ seed: 8 })
    const times: number[] = []
    for (let count = 0; count < 5000; count++) {
      const cancel = runtime.schedule(runtime.random() * 500, () => times.push(runtime.nowMs()))
      if (count % 5 === 0) continue
      cancel()
      cancel()
    }
    await runtime.advance(500)
    expect(times).to.have.length(1000)
    expect(times).to.deep.equal([...times].sort((left, right) => left - right))
    expect(runtime.eventsRun).to.equal(1000)
  })

  it('drains all microtasks of an event before the next event, however long their chain', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const seen: string[] = []
    runtime.schedule(1, async () => {
      for (let hop = 0; hop < 50; hop++) await null
      seen.push('chain done')
    })
    runtime.schedule(1, () => seen.push('next event'))
    await runtime.advance(2)
    expect(seen).to.deep.equal(['chain done', 'next event'])
  })

  it('settles with the value, the error, or a report that nothing is left to run', async () => {
    const runtime = new SimulatedRuntime({ seed: 3 })
    expect(await runtime.settle(async () => runtime.sleep(3_600_000).then(() => 'an hour later'))).to.equal('an hour later')
    const failure = await runtime.settle(Promise.reject(new Error('planted'))).catch((error: Error) => error)
    expect(failure).to.have.property('message', 'planted')
    const stuck = await runtime.settle(new Promise(() => {})).catch((error: Error) => error)
    expect(stuck)
      .to.be.instanceOf(Error)
      .with.property('message')
      .that.matches(/stuck.*seed 3/)
    const endless = () => runtime.schedule(1, endless)
    endless()
    const wedged = await runtime.settle(new Promise(() => {}), { maxEvents: 100 }).catch((error: Error) => error)
    expect(wedged)
      .to.be.instanceOf(Error)
      .with.property('message')
      .that.matches(/limit of events/)
  })

  it('gives the same trace for the same seed and another for another', async () => {
    const run = async (seed: number) => {
      const runtime = new SimulatedRuntime({ seed })
      const step = (left: number) => {
        if (left > 0) runtime.schedule(runtime.random() * 10, () => step(left - 1))
      }
      step(100)
      await runtime.advance(2000)
      return runtime.trace
    }
    expect(await run(5)).to.equal(await run(5))
    expect(await run(5)).not.to.equal(await run(6))
  })

  it('hazard t5: a paused process runs nothing, then all that became due at once, in order', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const process = runtime.process('p')
    const seen: string[] = []
    process.schedule(10, () => seen.push(`first at ${process.nowMs()}`))
    process.schedule(20, () => seen.push(`second at ${process.nowMs()}`))
    const cancel = process.schedule(30, () => seen.push('cancelled while held'))
    process.pause()
    await runtime.advance(50)
    expect(seen).to.deep.equal([])
    process.resume()
    cancel()
    await runtime.advance(1)
    expect(seen).to.deep.equal(['first at 50', 'second at 50'])
  })

  it('hazard t7: a process with a fast clock sees its timers on its own time', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const process = runtime.process('fast', { clockRate: 2 })
    let firedMs = 0
    process.schedule(100, () => {
      firedMs = process.nowMs()
    })
    await runtime.advance(50)
    expect(firedMs).to.equal(100)
  })
})

describe('SeededRandom', () => {
  it('repeats by seed and name, and differs by either', () => {
    const draw = (seed: number, name: string) => {
      const random = new SeededRandom(seed, name)
      return Array.from({ length: 4 }, () => random.uint32())
    }
    expect(draw(1, 'network')).to.deep.equal(draw(1, 'network'))
    expect(draw(1, 'network')).not.to.deep.equal(draw(2, 'network'))
    expect(draw(1, 'network')).not.to.deep.equal(draw(1, 'clients'))
  })

  it('is uniform enough', () => {
    const random = new SeededRandom(42)
    const buckets = new Array<number>(16).fill(0)
    for (let count = 0; count < 16_000; count++) buckets[random.integer(0, 15)]!++
    for (const bucket of buckets) expect(bucket).to.be.within(800, 1200)
  })
})
