/** The KV suite and lab 2 on real clusters: three nodes with LevelDB folders, over TCP where the lab's network is reliable, over a network that loses frames where it is not. */
import { expect } from 'chai'
import { systemRuntime } from '../../src/base/runtime.js'
import { defaultLimits } from '../../src/engine/command.js'
import { maxResultBytes } from '../../src/engine/transaction.js'
import type { Node } from '../../src/index.js'
import { kvSuite } from '../../src/testing/kv-suite.js'
import { MemoryNetwork, networkPresets } from '../../src/transport/memory.js'
import type { Lab } from '../labs/support/kv-helpers.js'
import { appendOneKey, genericLoad, putConcurrent, reliablePut, semantics, unreliableNetExactlyOnce } from '../labs/support/kv-scenarios.js'
import { basic, exclusion, nested } from '../labs/support/lock-scenarios.js'
import { TestCluster } from '../support/cluster.js'
import { newSeed } from '../support/seed.js'

describe('three nodes over TCP', () => {
  let cluster: TestCluster
  let client: Node
  before(async () => {
    cluster = await TestCluster.open(3, { node: { tuning: { historyBytes: 400_000, flushAfterMs: 100 } } })
    client = await cluster.openClient()
  })
  after(async () => {
    await client?.close()
    await cluster?.close()
  })

  kvSuite({
    describe,
    it,
    name: 'a client of a cluster over TCP',
    manifest: { manyClients: true, cut: false, boundedHistory: true },
    create: () => ({ kv: client.kv, another: async () => cluster.nodes.get('n1')!.kv, ...defaultLimits, maxResultBytes }),
  })
})

describe('three nodes over a network in memory', () => {
  const network = new MemoryNetwork({ seed: 1 })
  let cluster: TestCluster
  let client: Node
  before(async () => {
    cluster = await TestCluster.open(3, { network })
    client = await cluster.openClient()
  })
  after(async () => {
    network.heal()
    await client?.close()
    await cluster?.close()
  })

  kvSuite({
    describe,
    it,
    name: 'a client that can be cut off',
    manifest: { manyClients: true, cut: true },
    create: () => ({
      kv: client.kv,
      another: async () => cluster.nodes.get('n2')!.kv,
      cutOff: () => network.isolate('client-1'),
      reconnect: () => network.heal(),
      ...defaultLimits,
      maxResultBytes,
    }),
  })
})

/** Runs a scenario on a cluster of its own. */
async function onCluster<Result>(kind: Lab['network'], scenario: (lab: Lab) => Promise<Result>): Promise<Result> {
  const seed = newSeed()
  const lossy = { network: new MemoryNetwork({ seed, faults: networkPresets.unreliable }), node: { attemptTimeoutMs: 200 } }
  const cluster = await TestCluster.open(3, kind === 'reliable' ? {} : lossy)
  const clients: Node[] = []
  const createClient = async () => {
    const client = await cluster.openClient({ attemptTimeoutMs: kind === 'reliable' ? 1000 : 200 })
    clients.push(client)
    return client.kv
  }
  try {
    return await scenario({ createClient, network: kind, runtime: systemRuntime, durationMs: 1000 })
  } catch (error) {
    throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
  } finally {
    await Promise.all(clients.map((client) => client.close()))
    await cluster.close()
  }
}

describe('lab 2 on a real cluster', function () {
  this.timeout(120_000)
  it('2 TestReliablePut: what put and get answer', () => onCluster('reliable', reliablePut))
  it('2 TestReliablePut: for every version that a key may have and that a caller may name', () => onCluster('reliable', semantics))
  it('2 TestReliablePut: and on an unreliable network, where every answer is still the first one', () => onCluster('unreliable', reliablePut))
  it('2 TestPutConcurrentReliable: the version counts the puts that succeeded', () => onCluster('reliable', putConcurrent))
  it('2 TestUnreliableNet: without a deadline in reach nothing is in doubt', () => onCluster('unreliable', unreliableNetExactlyOnce))
  it('2 TestBasic2: one client', () => onCluster('reliable', (lab) => genericLoad(lab, 1)))
  it('2 TestConcurrent2: five clients', () => onCluster('reliable', (lab) => genericLoad(lab, 5, { randomKeys: true })))
  it('2 TestUnreliable2: five clients, unreliable', () => onCluster('unreliable', (lab) => genericLoad(lab, 5, { randomKeys: true })))
  it('2 TestUnreliableOneKey2: five clients append to one key', () => onCluster('unreliable', appendOneKey))
  it('2 lock TestReliableBasic', () => onCluster('reliable', basic))
  it('2 lock TestReliableNested', () => onCluster('reliable', nested))
  it('2 lock TestOneClientReliable', async () => {
    expect((await onCluster('reliable', (lab) => exclusion(lab, 1))).grants).to.be.greaterThan(0)
  })
  it('2 lock TestManyClientsReliable', async () => {
    expect((await onCluster('reliable', (lab) => exclusion(lab, 10))).grants).to.be.greaterThan(10)
  })
  it('2 lock TestManyClientsUnreliable', async () => {
    expect((await onCluster('unreliable', (lab) => exclusion(lab, 10))).grants).to.be.greaterThan(0)
  })
})
