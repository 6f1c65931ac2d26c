/** What an operator does to a cluster: real LevelDB folders and real sockets. */
import { join } from 'node:path'
import { expect } from 'chai'
import { InvalidArgumentError, type MemberOptions, type Node, openNode } from '../../src/index.js'
import { tcp } from '../../src/transport/tcp.js'
import { until } from '../support/conditions.js'
import { freePorts, withFolder } from '../support/folders.js'

interface Site {
  readonly nodes: Map<string, Node>
  open(id: string, options: Partial<MemberOptions>): Promise<Node>
  close(id: string): Promise<void>
  readonly addresses: Map<string, string>
}

async function withNodes(count: number, run: (site: Site) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const ids = ['a', 'b', 'c', 'd', 'e']
    const ports = await freePorts(ids.length)
    const addresses = new Map(ids.map((id, at) => [id, `127.0.0.1:${ports[at]}`]))
    const nodes = new Map<string, Node>()
    const site: Site = {
      nodes,
      addresses,
      async open(id, options) {
        const node = await openNode({
          id,
          location: join(folder, id),
          transport: tcp({ listen: addresses.get(id)! }),
          requestTimeoutMs: 30_000,
          ...options,
        })
        nodes.set(id, node)
        return node
      },
      async close(id) {
        const node = nodes.get(id)
        nodes.delete(id)
        await node?.close()
      },
    }
    const founders = ids.slice(0, count)
    const bootstrap = { nodes: founders.map((id) => ({ id, address: addresses.get(id)! })) }
    try {
      await Promise.all(founders.map((id) => site.open(id, { bootstrap })))
      await until(() => ledGroups([...nodes.values()]).size === 3)
      await run(site)
    } finally {
      await Promise.all([...nodes.keys()].map((id) => site.close(id)))
    }
  })
}

/** Groups by the node that leads them, and their voters. */
function ledGroups(nodes: readonly Node[]): Map<number, { leader: string; voters: readonly string[] }> {
  const led = new Map<number, { leader: string; voters: readonly string[] }>()
  for (const node of nodes) {
    for (const { group, role, voters, learners } of node.status().groups)
      if (role === 'leader' && learners.length === 0) led.set(group, { leader: node.id, voters })
  }
  return led
}

function areOn(nodes: readonly Node[], ids: readonly string[]): boolean {
  const led = ledGroups(nodes)
  return led.size === 3 && [...led.values()].every(({ voters }) => [...voters].sort().join() === ids.join())
}

describe('administration of a cluster', function () {
  this.timeout(60_000)

  it('hazards m1, m4, m7: a node is replaced under load: each write counts once, the removed one holds nothing and disturbs nobody', () =>
    withNodes(3, async (site) => {
      const { nodes } = site
      await site.open('d', { seeds: [site.addresses.get('a')!] })
      await until(() => nodes.get('d')!.status().state === 'member')
      const writer = nodes.get('b')!
      let writing = true
      let acknowledged = 0
      const load = Promise.all(
        Array.from({ length: 4 }, async (_, at) => {
          while (writing) {
            await writer.kv.put(`counter-${at}`, 'x')
            acknowledged++
          }
        }),
      )
      await nodes.get('b')!.cluster.replace('a', 'd')
      expect(
        nodes
          .get('b')!
          .cluster.nodes()
          .map(({ id }) => id),
      ).to.deep.equal(['b', 'c', 'd'])
      await until(() => areOn([...nodes.values()], ['b', 'c', 'd']))
      await until(() => nodes.get('a')!.status().state === 'removed' && nodes.get('a')!.status().groups.length === 0)
      const terms = () => [...nodes.values()].flatMap((node) => node.status().groups.map(({ term }) => term)).reduce((sum, term) => sum + term, 0)
      const before = terms()
      const seen = acknowledged
      await until(() => acknowledged > seen + 200)
      expect(terms(), 'the removed node made nobody campaign').to.equal(before)
      writing = false
      await load
      const versions = await Promise.all([0, 1, 2, 3].map(async (at) => (await nodes.get('d')!.kv.get(`counter-${at}`))!.version))
      expect(versions.reduce((sum, version) => sum + version, 0)).to.equal(acknowledged)
    }))

  it('removes down to one, and refuses the last; a repeated call changes nothing', () =>
    withNodes(3, async (site) => {
      const { nodes } = site
      const one = nodes.get('a')!
      await one.kv.put('k', 'v')
      await one.cluster.remove('c')
      await one.cluster.remove('c')
      await until(() => areOn([...nodes.values()], ['a', 'b']))
      await one.cluster.remove('b')
      await until(() => areOn([...nodes.values()], ['a']))
      await Promise.all(['b', 'c'].map((id) => site.close(id)))
      expect((await one.kv.put('k', 'w')).version).to.equal(2)
      expect(await one.cluster.remove('a').catch((error: unknown) => error)).to.be.instanceOf(InvalidArgumentError)
    }))

  it('hazard m12, D7.56: hands leadership over on request among writes, and all of it before it closes', () =>
    withNodes(3, async (site) => {
      const { nodes } = site
      const writer = nodes.get('c')!
      const leaderOf = (group: number) => ledGroups([...nodes.values()]).get(group)?.leader
      for (const to of ['a', 'b', 'c', 'a']) {
        const writes = Promise.all(Array.from({ length: 50 }, (_, at) => writer.kv.put(`${to}-${at}`, 'x')))
        await Promise.all([0, 1, 2].map((group) => writer.cluster.transfer(group, to)))
        await until(() => [0, 1, 2].every((group) => leaderOf(group) === to))
        for (const { version } of await writes) expect(version).to.be.at.least(1)
      }
      expect(await writer.cluster.transfer(1, 'nobody').catch((error: unknown) => error)).to.be.instanceOf(InvalidArgumentError)
      const terms = new Map(
        nodes
          .get('b')!
          .status()
          .groups.map(({ group, term }) => [group, term]),
      )
      await site.close('a')
      // Whoever was told to campaign won at once, in the very next term: nobody waited for a timeout and tried in vain.
      await until(() => ledGroups([...nodes.values()]).size === 3)
      for (const { group, term } of nodes.get('b')!.status().groups) expect(term).to.equal(terms.get(group)! + 1)
    }))
})
