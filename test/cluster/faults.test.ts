/** Nodes on real disks over a network that loses, repeats and reorders frames, while nodes restart: each write takes effect once, and no read goes back. */
import { join } from 'node:path'
import { expect } from 'chai'
import { type Node, OutcomeUnknownError, openNode } from '../../src/index.js'
import { History } from '../../src/testing/history.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { MemoryNetwork } from '../../src/transport/memory.js'
import { withFolder } from '../support/folders.js'
import { checkRecorded, recordNode } from '../support/recorded.js'
import { newSeed } from '../support/seed.js'

const ids = ['a', 'b', 'c']
const keys = ['one', 'two', 'three', 'four', 'five']
const writers = 10
const writesEach = 24

describe('a cluster over a bad network', () => {
  it('K1, K2, K3: every acknowledged put counts exactly once in the key’s version, unknown ones at most once, and reads never go back', () =>
    withFolder(async (folder) => {
      const seed = newSeed()
      const random = new SeededRandom(seed, 'faults')
      const network = new MemoryNetwork({
        seed,
        faults: { maxDelayMs: 3, dropProbability: 0.02, repeatProbability: 0.2, reorderProbability: 0.05, reorderMinMs: 5, reorderMaxMs: 400 },
      })
      const bootstrap = { nodes: ids.map((id) => ({ id, address: id })), groups: 2, shards: 8 }
      const history = new History()
      const open = async (id: string) =>
        recordNode(await openNode({ id, location: join(folder, id), bootstrap, transport: network.transport(id) }), history)
      const nodes = new Map<string, Node>()
      for (const node of await Promise.all(ids.map(open))) nodes.set(node.id, node)
      const client = recordNode(
        await openNode({ role: 'client', transport: network.transport('client'), seeds: ids, requestTimeoutMs: 30_000 }),
        history,
        'client',
      )
      const acknowledged = new Map<string, number>()
      const unknown = new Map<string, number>()
      const count = (counts: Map<string, number>, key: string) => counts.set(key, (counts.get(key) ?? 0) + 1)
      try {
        let done = 0
        const write = async (writer: number) => {
          for (let at = 0; at < writesEach; at++) {
            const key = keys[(writer + at) % keys.length]!
            try {
              const { version } = await client.kv.put(key, `${writer}-${at}`, { timeoutMs: at % 8 === 7 ? 3 : 30_000 })
              count(acknowledged, key)
              const found = await client.kv.get(key)
              expect(found?.version, `seed ${seed}: ${key} after version ${version}`).to.be.at.least(version)
            } catch (error) {
              if (!(error instanceof OutcomeUnknownError)) throw error
              count(unknown, key)
            }
            done++
          }
        }
        const restart = async () => {
          while (done < writers * writesEach) {
            const id = ids[random.integer(0, ids.length - 1)]!
            await nodes.get(id)!.close()
            nodes.set(id, await open(id))
            const until = done + 60
            while (done < Math.min(until, writers * writesEach)) await new Promise((resolve) => setTimeout(resolve, 5))
          }
        }
        await Promise.all([...Array.from({ length: writers }, (_, writer) => write(writer)), restart()])
        for (const key of keys) {
          const found = await client.kv.get(key)
          const least = acknowledged.get(key) ?? 0
          expect(found?.version, `seed ${seed}: ${key}`).to.be.within(least, least + (unknown.get(key) ?? 0))
        }
        // What the members themselves say is the same, and none of them failed.
        for (const node of nodes.values()) {
          expect(node.status().failure, `seed ${seed}`).to.equal(null)
          for (const key of keys) {
            const [one, other] = await Promise.all([node.kv.get(key), client.kv.get(key)])
            expect(Math.abs(one!.version - other!.version), `seed ${seed}`).to.be.at.most(unknown.get(key) ?? 0)
          }
        }
        checkRecorded(history)
      } finally {
        await Promise.all([client, ...nodes.values()].map((node) => node.close()))
      }
    }))
})
