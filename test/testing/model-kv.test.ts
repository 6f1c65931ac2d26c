import { expect } from 'chai'
import { ConditionFailedError, OutcomeUnknownError, type QuorateError, UnavailableError } from '../../src/base/errors.js'
import { ModelKV, type ModelKVOptions } from '../../src/testing/model-kv.js'
import { ModelStore, type ModelWrite } from '../../src/testing/model-store.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'

function setUp(options: Partial<ModelKVOptions> = {}, seed = 1) {
  const runtime = new SimulatedRuntime({ seed })
  const writes: ModelWrite[] = []
  const store = new ModelStore({ onWrite: (write) => writes.push(write) })
  return { runtime, writes, store, kv: new ModelKV({ runtime, store, ...options }) }
}

const failure = (promise: Promise<unknown>): Promise<QuorateError> =>
  promise.then(
    () => expect.fail('should have failed'),
    (error) => error,
  )

describe('ModelKV', () => {
  it('retries a lost request and a lost reply, and takes effect once', async () => {
    for (let seed = 1; seed <= 50; seed++) {
      const { runtime, writes, kv } = setUp({ faults: { requestLost: 0.4, replyLost: 0.4, maximumDelayMs: 30 } }, seed)
      for (let round = 0; round < 5; round++) {
        const result = await runtime.settle(kv.put('k', `${round}`, { ifVersion: round }))
        expect(result.version, `seed ${seed}`).to.equal(round + 1)
      }
      await runtime.advance(10_000)
      expect(writes, `seed ${seed}`).to.have.length(5)
    }
  })

  it('hazard c1: a lost reply is OutcomeUnknown at the deadline, and the write is there', async () => {
    const { runtime, kv } = setUp({ faults: { replyLost: 1 } })
    expect(await runtime.settle(failure(kv.put('k', 'v', { timeoutMs: 250 })))).to.be.instanceOf(OutcomeUnknownError)
    expect(runtime.nowMs()).to.equal(250)
    kv.faults = { ...kv.faults, replyLost: 0 }
    expect((await runtime.settle(kv.get('k')))?.version).to.equal(1)
  })

  it('hazard c2: a request may take effect after its caller has given up', async () => {
    const { runtime, kv, store } = setUp({ faults: { minimumDelayMs: 500, maximumDelayMs: 500 } })
    expect(await runtime.settle(failure(kv.put('k', 'v', { timeoutMs: 100 })))).to.be.instanceOf(OutcomeUnknownError)
    expect(store.revision).to.equal(0)
    await runtime.advance(1000)
    expect(store.revision).to.equal(1)
  })

  it('hazard c6: an abort under way leaves a write in doubt and a read with its reason; before the send nothing is in doubt', async () => {
    const { runtime, kv, store } = setUp({ faults: { minimumDelayMs: 50, maximumDelayMs: 50 } })
    const controller = new AbortController()
    const write = failure(kv.put('k', 'v', { signal: controller.signal }))
    const read = failure(kv.get('k', { signal: controller.signal }))
    runtime.schedule(10, () => controller.abort(new Error('no longer wanted')))
    expect(await runtime.settle(write)).to.be.instanceOf(OutcomeUnknownError)
    expect(await runtime.settle(read)).to.have.property('message', 'no longer wanted')
    await runtime.advance(1000)
    expect(store.revision).to.equal(1)
    expect(await runtime.settle(failure(kv.put('k', 'v', { signal: controller.signal })))).to.have.property('message', 'no longer wanted')
    expect(await runtime.settle(failure(kv.put('k', 'v', { timeoutMs: 0 })))).to.be.instanceOf(UnavailableError)
    await runtime.advance(1000)
    expect(store.revision).to.equal(1)
  })

  it('a refused write was certainly not done', async () => {
    const { runtime, kv, store } = setUp({ faults: { refused: 1 } })
    expect(await runtime.settle(failure(kv.put('k', 'v')))).to.be.instanceOf(UnavailableError)
    await runtime.advance(10_000)
    expect(store.revision).to.equal(0)
  })

  it('a cut client waits for its deadline; another client of the same store does not', async () => {
    const { runtime, kv, store } = setUp()
    const other = new ModelKV({ runtime, store })
    kv.cut = 'both'
    expect(await runtime.settle(failure(kv.get('k', { timeoutMs: 300 })))).to.have.property('code', 'TIMEOUT')
    await runtime.settle(other.put('k', 'v'))
    const pending = kv.get('k')
    runtime.schedule(500, () => {
      kv.cut = 'none'
    })
    expect((await runtime.settle(pending))?.version).to.equal(1)
  })

  it('a paused client gets its answer when it resumes', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const process = runtime.process('client')
    const kv = new ModelKV({ runtime: process, network: runtime })
    let answered = false
    const put = kv.put('k', 'v', { timeoutMs: 60_000 }).then(() => {
      answered = true
    })
    process.pause()
    await runtime.advance(20_000)
    expect(answered).to.equal(false)
    expect(kv.store.revision).to.equal(1)
    process.resume()
    await runtime.settle(put)
    expect(answered).to.equal(true)
  })

  it('shares no memory with its callers', async () => {
    const { runtime, kv } = setUp()
    const value = new Uint8Array([1, 2, 3])
    const written = kv.put('k', value)
    value.fill(9)
    await runtime.settle(written)
    const first = await runtime.settle(kv.get('k'))
    first!.value.fill(7)
    expect((await runtime.settle(kv.get('k')))?.value).to.deep.equal(new Uint8Array([1, 2, 3]))
  })

  it('a failed condition carries what the key has now', async () => {
    const { runtime, kv } = setUp()
    await runtime.settle(kv.put('k', 'v'))
    const error = await runtime.settle(failure(kv.put('k', 'w', { ifVersion: 0 })))
    expect(error).to.be.instanceOf(ConditionFailedError).that.includes({ actualVersion: 1, actualRevision: 1 })
  })

  it('the same seed runs the same way', async () => {
    const run = async () => {
      const { runtime, kv } = setUp({ faults: { requestLost: 0.3, replyLost: 0.3, maximumDelayMs: 20 } }, 11)
      for (let round = 0; round < 20; round++) await runtime.settle(kv.put(`k${round % 3}`, 'v'))
      return runtime.trace
    }
    expect(await run()).to.equal(await run())
  })
})
