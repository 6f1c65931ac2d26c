/** Nodes that come, go, move and lose their disks: real LevelDB folders and real sockets. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { openLevel } from '../../src/engine/database.js'
import { recordKey, recordsEnd } from '../../src/engine/log-records.js'
import { CorruptionError, type MemberOptions, type Node, openNode, RefusedError, UnavailableError } from '../../src/index.js'
import { History } from '../../src/testing/history.js'
import { tcp } from '../../src/transport/tcp.js'
import { until } from '../support/conditions.js'
import { freePorts, withFolder } from '../support/folders.js'
import { checkRecorded, recordNode } from '../support/recorded.js'

/** Nodes by id, each with a folder and an address of its own, opened with options that the test gives. */
class Site {
  readonly folder: string
  readonly nodes = new Map<string, Node>()
  readonly addresses = new Map<string, string>()
  readonly history = new History()

  constructor(folder: string) {
    this.folder = folder
  }

  location(id: string): string {
    return join(this.folder, id)
  }

  async open(id: string, options: Partial<MemberOptions> = {}): Promise<Node> {
    if (!this.addresses.has(id)) this.addresses.set(id, `127.0.0.1:${(await freePorts(1))[0]}`)
    const transport = tcp({ listen: this.addresses.get(id)! })
    const node = await openNode({ id, location: this.location(id), transport, requestTimeoutMs: 30_000, ...options })
    this.nodes.set(id, node)
    return recordNode(node, this.history)
  }

  /** The list of founders with these ids. */
  async founders(...ids: string[]): Promise<Partial<MemberOptions>> {
    const ports = await freePorts(ids.length)
    for (const [at, id] of ids.entries()) if (!this.addresses.has(id)) this.addresses.set(id, `127.0.0.1:${ports[at]}`)
    return { bootstrap: { nodes: ids.map((id) => ({ id, address: this.addresses.get(id)! })) } }
  }

  /** The node's disk is lost. */
  async wipe(id: string): Promise<void> {
    await this.close(id)
    await rm(this.location(id), { recursive: true })
  }

  async close(id: string): Promise<void> {
    const node = this.nodes.get(id)
    this.nodes.delete(id)
    await node?.close()
  }

  node(id: string): Node {
    return this.nodes.get(id)!
  }

  async closeAll(): Promise<void> {
    await Promise.all([...this.nodes.keys()].map((id) => this.close(id)))
  }
}

function withSite(run: (site: Site) => Promise<void>): Promise<void> {
  return withFolder(async (folder) => {
    const site = new Site(folder)
    try {
      await run(site)
      checkRecorded(site.history)
    } finally {
      await site.closeAll()
    }
  })
}

/** Whether every group is led by one of these nodes, has exactly them as voters, and they all live. */
function isReplicatedOn(nodes: readonly Node[], ids: readonly string[]): boolean {
  const led = nodes.flatMap((node) => node.status().groups).filter(({ role }) => role === 'leader')
  const groups = new Set(led.map(({ group }) => group))
  return (
    groups.size === 3 &&
    led.every(({ voters, learners, live }) => [...voters].sort().join() === [...ids].sort().join() && learners.length === 0 && live === ids.length)
  )
}

const keys = Array.from({ length: 100 }, (_, at) => `key-${at}`)

describe('nodes that come and go', function () {
  this.timeout(60_000)

  it('1 node grows to 3, says how well it is replicated, and survives the loss of the first', () =>
    withSite(async (site) => {
      const a = await site.open('a', { bootstrap: true })
      await Promise.all(keys.map((key) => a.kv.put(key, 'from a')))
      expect(a.status().state).to.equal('member')
      for (const { voters, live, wanted } of a.status().groups) expect({ voters, live, wanted }).to.deep.equal({ voters: ['a'], live: 1, wanted: 3 })
      const seeds = [site.addresses.get('a')!]
      const b = await site.open('b', { seeds })
      const c = await site.open('c', { seeds })
      await until(() => isReplicatedOn([a, b, c], ['a', 'b', 'c']))
      expect([b.status().state, c.status().state]).to.deep.equal(['member', 'member'])
      await Promise.all(keys.map((key) => c.kv.put(key, 'from c')))
      await site.close('a')
      for (const key of keys) expect((await b.kv.get(key))?.version).to.equal(2)
      const again = await site.open('a')
      await until(() => isReplicatedOn([again, b, c], ['a', 'b', 'c']))
    }))

  it('hazards p5, D5.45: a wiped disk of one of three is a new node: it never counts as the old one, and nothing is lost when another crashes', () =>
    withSite(async (site) => {
      const list = await site.founders('a', 'b', 'c')
      const ids = ['a', 'b', 'c']
      const nodes = () => [...site.nodes.values()]
      await Promise.all(ids.map((id) => site.open(id, list)))
      const writer = site.node('a')
      await Promise.all(keys.map((key) => writer.kv.put(key, 'first')))
      // Only a and b hold these.
      await site.close('c')
      await Promise.all(keys.map((key) => writer.kv.put(key, 'second')))
      await site.wipe('b')
      const wiped = await site.open('b', list)
      await site.open('c', list)
      await site.close('a')
      // Were b still counted as what it was, b and c would be a majority that has lost the second writes.
      const read = await wiped.kv.get(keys[0]!, { timeoutMs: 1500 }).catch((error: unknown) => error)
      expect(read).to.be.instanceOf(UnavailableError)
      await site.open('a', list)
      const isWhole = () => wiped.status().groups.every(({ voters, learners }) => voters.includes('b') && learners.length === 0)
      await until(
        () => wiped.status().groups.length === 3 && isWhole() && isReplicatedOn(nodes(), ids),
        () => nodes().map((node) => node.status()),
      )
      expect(wiped.status().state).to.equal('member')
      // Now it counts.
      await site.close('a')
      for (const key of keys) expect((await wiped.kv.get(key))?.version, key).to.equal(2)
    }))

  it('hazards d5, d6: a replica whose log is damaged takes part in nothing, and is replaced by a new one that heals from the others', () =>
    withSite(async (site) => {
      const ids = ['a', 'b', 'c']
      const list = await site.founders(...ids)
      await Promise.all(ids.map((id) => site.open(id, list)))
      const writer = site.node('a')
      for (const key of keys) await writer.kv.put(key, 'v')
      await site.close('c')
      const log = await openLevel(join(site.location('c'), 'log'), { cacheBytes: 1024 * 1024, writeBufferBytes: 1024 * 1024 })
      const records = log.iterate({ gte: recordKey(1, 0), lt: recordsEnd(1) })
      const found = await records.nextv(1000)
      await records.close()
      expect(found.length).to.be.greaterThan(10)
      const [key, value] = found[5]!
      const damaged = Buffer.from(value)
      damaged[damaged.length - 8]! ^= 1
      const batch = log.batch()
      batch.put(key, damaged)
      await batch.write({ sync: true })
      await log.close()
      const c = await site.open('c', list)
      expect(c.status().failure).to.be.instanceOf(CorruptionError)
      const nodes = () => [...site.nodes.values()]
      const hasNewReplica = () => c.status().groups.some(({ group, voters }) => group === 1 && voters.includes('c'))
      await until(() => hasNewReplica() && isReplicatedOn(nodes(), ids))
      await writer.kv.put(keys[0]!, 'w')
      await site.close('a')
      for (const [at, name] of keys.entries()) expect((await c.kv.get(name))?.version).to.equal(at === 0 ? 2 : 1)
    }))

  it('hazard p5: founders take part when all have met; one that is wiped before that is not taken for another', () =>
    withSite(async (site) => {
      const list = await site.founders('a', 'b', 'c')
      const a = await site.open('a', list)
      await site.open('b', list)
      expect(await a.kv.put('k', 'v', { timeoutMs: 500 }).catch((error: unknown) => error)).to.be.instanceOf(UnavailableError)
      expect(a.status()).to.include({ state: 'founding' }).and.have.property('groups').that.deep.equals([])
      await site.wipe('b')
      const b = await site.open('b', list)
      await site.open('c', list)
      await until(() => isReplicatedOn([...site.nodes.values()], ['a', 'b', 'c']))
      await b.kv.put('k', 'v')
      expect((await a.kv.get('k'))?.version).to.equal(1)
    }))

  it('hazard n16: addresses may change, of one node and of all at once; ids do not', () =>
    withSite(async (site) => {
      const ids = ['a', 'b', 'c']
      await Promise.all(ids.map(async (id) => site.open(id, await site.founders(...ids))))
      const nodes = () => [...site.nodes.values()]
      await site.node('a').kv.put('k', '1')
      await site.close('b')
      site.addresses.delete('b')
      await site.open('b')
      await until(() => isReplicatedOn(nodes(), ids))
      await site.close('a')
      expect((await site.node('b').kv.put('k', '2')).version).to.equal(2)
      await site.open('a')
      await site.closeAll()
      for (const id of ids) site.addresses.delete(id)
      await site.open('c')
      const seeds = [site.addresses.get('c')!]
      await site.open('a', { seeds })
      await site.open('b', { seeds })
      await until(() => isReplicatedOn(nodes(), ids))
      expect((await site.node('b').kv.get('k'))?.version).to.equal(2)
      // The map says so by now, or soon: a client that knows one address finds the others.
      const client = await openNode({ role: 'client', transport: tcp(), seeds })
      try {
        await client.kv.put('k', '3')
      } finally {
        await client.close()
      }
    }))

  it('an empty folder needs `bootstrap` or `seeds`, not both; an id that lives is not given away', () =>
    withSite(async (site) => {
      const failure = (promise: Promise<unknown>) =>
        promise.then(
          () => undefined,
          (error: unknown) => error,
        )
      const a = await site.open('a', { bootstrap: true })
      const seeds = [site.addresses.get('a')!]
      expect(await failure(site.open('b')))
        .to.be.instanceOf(RefusedError)
        .and.include({ code: 'NO_DATA' })
      expect(await failure(site.open('b', { bootstrap: true, seeds }))).to.include({ code: 'INVALID_ARGUMENT' })
      expect(await failure(site.open('b', { seeds: ['127.0.0.1:1'], openTimeoutMs: 300 }))).to.be.instanceOf(UnavailableError)
      await site.open('b', { seeds })
      await until(() => a.status().groups.every(({ voters }) => voters.length === 2))
      const [port] = await freePorts(1)
      const twin = openNode({ id: 'b', location: site.location('twin'), transport: tcp({ listen: `127.0.0.1:${port}` }), seeds })
      expect(await failure(twin))
        .to.be.instanceOf(RefusedError)
        .and.include({ code: 'ID_IN_USE' })
    }))
})
