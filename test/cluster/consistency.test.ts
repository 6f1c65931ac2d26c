/** What reads see: linearizable, by lease, stale. Real disks; a network that can be cut. */
import { join } from 'node:path'
import { expect } from 'chai'
import { InvalidArgumentError, type Node, openNode, type ReadOptions, type ReadPosition, UnavailableError } from '../../src/index.js'
import { History } from '../../src/testing/history.js'
import { MemoryNetwork } from '../../src/transport/memory.js'
import { withFolder } from '../support/folders.js'
import { checkRecorded, recordNode } from '../support/recorded.js'
import { newSeed } from '../support/seed.js'

const ids = ['a', 'b', 'c']

interface Fixture {
  readonly network: MemoryNetwork
  readonly nodes: ReadonlyMap<string, Node>
  /** The node that leads the group. */
  leader(): Promise<Node>
}

async function withNodes(run: (fixture: Fixture) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const network = new MemoryNetwork({ seed: newSeed() })
    const bootstrap = { nodes: ids.map((id) => ({ id, address: id })), groups: 1 }
    const open = (id: string) => openNode({ id, location: join(folder, id), bootstrap, transport: network.transport(id) })
    const history = new History()
    const nodes = new Map((await Promise.all(ids.map(open))).map((node) => [node.id, recordNode(node, history)]))
    const leader = async () => {
      for (;;) {
        for (const node of nodes.values()) if (node.status().groups.some(({ group, role }) => group === 1 && role === 'leader')) return node
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
    try {
      await run({ network, nodes, leader })
      checkRecorded(history)
    } finally {
      network.heal()
      await Promise.all([...nodes.values()].map((node) => node.close()))
    }
  })
}

/** Reads a key with where the answer stands. */
async function read(node: Node, key: string, options: ReadOptions): Promise<{ value: string | undefined; position: ReadPosition }> {
  let position: ReadPosition | undefined
  const found = await node.kv.get(key, {
    ...options,
    onPosition: (each) => {
      position = each
    },
  })
  return { value: found && Buffer.from(found.value).toString(), position: position! }
}

describe('consistency of reads', () => {
  it('stale: a node that is cut off answers with what it has, and says how far that is; with the others back it catches up', () =>
    withNodes(async ({ network, nodes, leader }) => {
      const leading = await leader()
      await leading.kv.put('k', 'old')
      const follower = [...nodes.values()].find((node) => node !== leading)!
      let before = await read(follower, 'k', { consistency: 'stale' })
      while (before.value !== 'old') before = await read(follower, 'k', { consistency: 'stale' })
      network.isolate(follower.id)
      await leading.kv.put('k', 'new')
      const during = await read(follower, 'k', { consistency: 'stale' })
      expect(during).to.deep.equal(before)
      for (const consistency of ['linearizable', 'lease'] as const) {
        const error = await follower.kv.get('k', { consistency, timeoutMs: 300 }).catch((reason: unknown) => reason)
        expect(error, consistency).to.be.instanceOf(UnavailableError)
      }
      network.heal()
      let after = await read(follower, 'k', { consistency: 'stale' })
      while (after.value !== 'new') after = await read(follower, 'k', { consistency: 'stale' })
      expect(after.position.index).to.be.greaterThan(before.position.index)
      const latest = await read(follower, 'k', {})
      expect(latest.value).to.equal('new')
      expect(latest.position.index).to.be.at.least(after.position.index)
    }))

  it('lease, hazard D4.36: a leader that is cut off never answers with what was overwritten since', () =>
    withNodes(async ({ network, nodes, leader }) => {
      for (let round = 0; round < 3; round++) {
        const old = await leader()
        await old.kv.put('k', `old ${round}`)
        expect((await read(old, 'k', { consistency: 'lease' })).value).to.equal(`old ${round}`)
        network.isolate(old.id)
        const other = [...nodes.values()].find((node) => node !== old)!
        let acknowledged = false
        const writing = other.kv.put('k', `new ${round}`).then(() => {
          acknowledged = true
        })
        let answers = 0
        for (;;) {
          const after = acknowledged
          try {
            const { value } = await read(old, 'k', { consistency: 'lease', timeoutMs: 40 })
            expect(after && value === `old ${round}`, 'an overwritten value after the write was acknowledged').to.equal(false)
            answers++
          } catch (error) {
            if (!(error instanceof UnavailableError)) throw error
            if (after) break
          }
        }
        expect(answers, 'the lease holds for a while').to.be.greaterThan(0)
        await writing
        network.heal()
        while ((await leader()) === old);
        let back = await read(old, 'k', { consistency: 'lease' })
        expect(back.value).to.equal(`new ${round}`)
        back = await read(old, 'k', {})
        expect(back.value).to.equal(`new ${round}`)
      }
    }))

  it('scans take it too; a wrong word is refused at the call', () =>
    withNodes(async ({ nodes, leader }) => {
      const leading = await leader()
      for (const key of ['a', 'b', 'c']) await leading.kv.put(key, key)
      for (const consistency of ['linearizable', 'lease'] as const) {
        const keys: string[] = []
        const positions: ReadPosition[] = []
        for await (const { key } of leading.kv.scan({ consistency, onPosition: (position) => positions.push(position) }))
          keys.push(Buffer.from(key).toString())
        expect(keys).to.deep.equal(['a', 'b', 'c'])
        expect(positions.map(({ group }) => group)).to.deep.equal([1])
      }
      const follower = [...nodes.values()].find((node) => node !== leading)!
      let count = 0
      while (count < 3) {
        count = 0
        for await (const _ of follower.kv.scan({ consistency: 'stale' })) count++
      }
      for (const run of [
        () => leading.kv.get('a', { consistency: 'strong' as 'stale' }),
        async () => leading.kv.scan({ consistency: 'toString' as 'stale' }),
      ]) {
        expect(await run().catch((error: unknown) => error)).to.be.instanceOf(InvalidArgumentError)
      }
    }))
})
