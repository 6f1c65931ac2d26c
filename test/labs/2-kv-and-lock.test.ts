/** Lab 2 by the names of its tests, on the model store in simulated time. (The same scenarios run on a real cluster elsewhere.) */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { expect } from 'chai'
import { systemRuntime } from '../../src/base/runtime.js'
import { type ModelFaults, ModelKV, reliableFaults, unreliableFaults } from '../../src/testing/model-kv.js'
import { ModelStore } from '../../src/testing/model-store.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'
import type { Lab } from './support/kv-helpers.js'
import {
  appendOneKey,
  genericLoad,
  type MemoryLab,
  memoryLargeValues,
  memoryManyClients,
  memoryPutManyClients,
  putConcurrent,
  reliablePut,
  semantics,
  unreliableNet,
  unreliableNetExactlyOnce,
} from './support/kv-scenarios.js'
import { basic, exclusion, nested } from './support/lock-scenarios.js'

const seeds = [1, 2, 3, 4, 5]

interface ModelLab extends Lab {
  readonly runtime: SimulatedRuntime
}

function lab(network: Lab['network'], seed: number, faults: Partial<ModelFaults> = {}): ModelLab {
  const runtime = new SimulatedRuntime({ seed })
  const store = new ModelStore()
  const base = network === 'reliable' ? { ...reliableFaults, minimumDelayMs: 0.1, maximumDelayMs: 1 } : unreliableFaults
  return {
    runtime,
    network,
    createClient: async () => new ModelKV({ runtime, store, faults: { ...base, ...faults }, maxValueBytes: 16 * 1024 * 1024 }),
  }
}

/** Runs a scenario on a lab for each seed; a failure names the seed. */
async function forSeeds<Result>(network: Lab['network'], scenario: (lab: ModelLab) => Promise<Result>): Promise<Result[]> {
  const results: Result[] = []
  for (const seed of seeds) {
    const where = lab(network, seed)
    try {
      results.push(await where.runtime.settle(() => scenario(where)))
    } catch (error) {
      throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
    }
  }
  return results
}

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void
/** Buffers are swept beside the collection: twice, with a turn between. */
/** Large buffers are freed by another thread, some time after they were found to be garbage: measured until no less is found. */
async function usedBytes(): Promise<number> {
  let least = Number.POSITIVE_INFINITY
  for (;;) {
    collectGarbage()
    await new Promise((resolve) => setTimeout(resolve, 5))
    collectGarbage()
    const { heapUsed, arrayBuffers } = process.memoryUsage()
    const used = heapUsed + arrayBuffers
    if (used > least - 64 * 1024) return Math.min(used, least)
    least = used
  }
}

/** In real time: the simulation's own book of events would be counted otherwise. */
/** Its server keeps no writes for watches, as the lab's does: they are bounded, but by more than the lab allows. */
function memoryLab(clients: number): MemoryLab {
  const store = new ModelStore({ keptWrites: 0 })
  const createClient = async () => new ModelKV({ runtime: systemRuntime, store, maxValueBytes: 16 * 1024 * 1024 })
  return { runtime: systemRuntime, network: 'reliable', createClient, usedBytes, clients }
}

describe('lab 2: key/value server', () => {
  it('2 TestReliablePut: what put and get answer', () => forSeeds('reliable', reliablePut))
  it('2 TestReliablePut: for every version that a key may have and that a caller may name', () => forSeeds('reliable', semantics))
  it('2 TestReliablePut: and on an unreliable network, where every answer is still the first one', () => forSeeds('unreliable', reliablePut))

  it('2 TestPutConcurrentReliable: the version counts the puts that succeeded', () => forSeeds('reliable', putConcurrent))
  it('2 TestPutConcurrentReliable: unreliable, with deadlines short enough for unknown outcomes', async () => {
    const counts = await forSeeds('unreliable', (where) => putConcurrent(where, { timeoutMs: 60 }))
    expect(counts.reduce((sum, { maybe }) => sum + maybe, 0)).to.be.greaterThan(0)
  })

  it('2 TestMemPutManyClientsReliable: 100,000 clients, 200 bytes for each at most', async function () {
    this.timeout(120_000)
    await memoryPutManyClients(memoryLab(100_000), 200)
  })

  it('2 TestMemPutManyClientsReliable: 2026, 20,000 clients, 10 bytes for each at most', async function () {
    this.timeout(120_000)
    await memoryPutManyClients(memoryLab(20_000), 10)
  })

  it('2 TestUnreliableNet: an unknown outcome is found out by trying again', async () => {
    const results = await forSeeds('unreliable', (where) => unreliableNet(where, 40))
    // Both ways: done although unknown, and not done.
    expect(results.reduce((sum, { done }) => sum + done, 0)).to.be.greaterThan(0)
    expect(results.reduce((sum, { done, unknown }) => sum + unknown - done, 0)).to.be.greaterThan(0)
  })
  it('2 TestUnreliableNet: without a deadline in reach nothing is in doubt', () => forSeeds('unreliable', unreliableNetExactlyOnce))
})

describe('lab 2: key/value server, 2024', () => {
  it('2 TestBasic2: one client', () => forSeeds('reliable', (where) => genericLoad(where, 1)))
  it('2 TestConcurrent2: five clients', () => forSeeds('reliable', (where) => genericLoad(where, 5, { randomKeys: true })))
  it('2 TestUnreliable2: five clients, unreliable', () => forSeeds('unreliable', (where) => genericLoad(where, 5, { randomKeys: true })))
  it('2 TestUnreliableOneKey2: five clients append to one key', () => forSeeds('unreliable', appendOneKey))
  it('2 TestUnreliableOneKey2: with deadlines short enough for unknown outcomes', () =>
    forSeeds('unreliable', (where) => appendOneKey(where, { timeoutMs: 40 })))
  it('2 TestMemGet2, TestMemPut2, TestMemAppend2: large values that were replaced are let go of', async () => {
    await memoryLargeValues(memoryLab(2), 10 * 1024 * 1024)
  })
  it('2 TestMemPutMany: 100,000 clients put once', async function () {
    this.timeout(120_000)
    await memoryManyClients(memoryLab(100_000), (kv) => kv.put('k', 'x'.repeat(1000)), 200)
  })
  it('2 TestMemGetMany: 100,000 clients get once', async function () {
    this.timeout(120_000)
    await memoryManyClients(memoryLab(100_000), (kv) => kv.get('k'), 10)
  })
})

describe('lab 2: lock', () => {
  it('2 TestReliableBasic: acquire and release', () => forSeeds('reliable', basic))
  it('2 TestReliableNested: two locks at once, in either order', () => forSeeds('reliable', nested))
  it('2 TestOneClientReliable: one client for two seconds', async () => {
    for (const { grants } of await forSeeds('reliable', (where) => exclusion(where, 1))) expect(grants).to.be.greaterThan(100)
  })
  it('2 TestManyClientsReliable: ten clients for two seconds', async () => {
    for (const { grants } of await forSeeds('reliable', (where) => exclusion(where, 10))) expect(grants).to.be.greaterThan(20)
  })
  it('2 TestOneClientUnreliable: one client for two seconds', async () => {
    for (const { grants } of await forSeeds('unreliable', (where) => exclusion(where, 1))) expect(grants).to.be.greaterThan(3)
  })
  it('2 TestManyClientsUnreliable: ten clients for two seconds', async () => {
    for (const { grants } of await forSeeds('unreliable', (where) => exclusion(where, 10))) expect(grants).to.be.at.least(10)
  })
})
