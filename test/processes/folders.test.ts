/** Data folders of real nodes in the wrong hands: another node's, another cluster's, a half, an old copy, one that is in use. What is promised: docs/operations.md. */
import { appendFile, cp, open, readdir, rename, rm, stat, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { freeAddresses } from '../../scripts/workplace.js'
import type { Node } from '../../src/index.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { NodeProcess, StartFailedError } from '../support/node-process.js'
import { newSeed } from '../support/seed.js'
import { ProcessCluster, until } from './support/process-cluster.js'

/** The code with which a node process refuses to start. */
async function refusal(node: NodeProcess): Promise<string | null> {
  try {
    await node.start()
  } catch (error) {
    expect(error).to.be.instanceOf(StartFailedError)
    return (error as StartFailedError).code
  }
  await node.kill()
  throw new Error(`${node.id} started on ${node.options.location}`)
}

/** Changes one file of a data folder, as a broken disk or a curious user would; says how. */
async function damage(location: string, random: SeededRandom): Promise<string> {
  const folder = join(location, random.pick(['log', 'state']))
  const names = (await readdir(folder)).filter((name) => name !== 'LOCK' && name !== 'LOG').sort()
  const name = random.pick(names)
  const file = join(folder, name)
  const { size } = await stat(file)
  const how = random.pick(['half', 'nothing', 'more', 'missing', 'bit', 'bit', 'bit'])
  if (how === 'half') await truncate(file, size >> 1)
  else if (how === 'nothing') await truncate(file, 0)
  else if (how === 'more') await appendFile(file, random.bytes(random.integer(1, 100)))
  else if (how === 'missing') await rm(file)
  else if (size > 0) {
    const handle = await open(file, 'r+')
    const position = random.integer(0, size - 1)
    const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, position)
    buffer[0]! ^= 1 << random.integer(0, 7)
    await handle.write(buffer, 0, 1, position)
    await handle.close()
  }
  return `${how} in ${file}`
}

describe('data folders', function () {
  this.timeout(120_000)
  let cluster: ProcessCluster
  let client: Node
  /** The last version of each key that was acknowledged. */
  const acknowledged = new Map<string, number>()

  beforeEach(async () => {
    cluster = await ProcessCluster.open({ size: 3, groups: 2, seed: 1, proxied: false })
    client = await cluster.client()
    acknowledged.clear()
    await write()
  })

  afterEach(async () => {
    await cluster.close()
  })

  /** Writes each of some keys once more. */
  async function write(): Promise<void> {
    const keys = Array.from({ length: 20 }, (_, at) => `key-${at}`)
    await Promise.all(keys.map(async (key) => acknowledged.set(key, (await client.kv.put(key, `${key} ${acknowledged.size}`)).version)))
  }

  async function nothingIsLost(): Promise<void> {
    for (const [key, version] of acknowledged) expect((await client.kv.get(key))?.version, key).to.equal(version)
  }

  const second = (of: NodeProcess, changes: Partial<NodeProcess['options']>) => new NodeProcess({ ...of.options, ...changes })

  it('a second process on a folder that is in use is refused, and the first serves on; when the first is dead the second may have it', async () => {
    const [first] = cluster.nodes as [NodeProcess]
    const [listen] = (await freeAddresses(1)) as [string]
    const other = second(first, { listen, advertise: first.options.listen })
    expect(await refusal(other)).to.equal('FOLDER_IN_USE')
    await write()
    expect((await first.status()).failure).to.equal(null)
    await first.kill()
    const heir = second(first, {})
    try {
      await heir.start()
      await write()
      await nothingIsLost()
    } finally {
      await heir.kill()
    }
  })

  it('hazard p4: a node does not start with the disk of another node, nor with that of another cluster, and nothing is changed by trying', async () => {
    const [one, other] = cluster.nodes as [NodeProcess, NodeProcess]
    await Promise.all([one.close(), other.close()])
    expect(await refusal(second(one, { location: other.options.location }))).to.equal('WRONG_NODE')
    const { bootstrap } = one.options
    const foreign = second(one, { bootstrap: { ...bootstrap!, name: 'another cluster' } })
    expect(await refusal(foreign)).to.equal('WRONG_CLUSTER')
    // Swapped, as when disks are put back into the wrong machines.
    const aside = join(cluster.folder, 'aside')
    await rename(one.options.location, aside)
    await rename(other.options.location, one.options.location)
    await rename(aside, other.options.location)
    expect(await refusal(second(one, {}))).to.equal('WRONG_NODE')
    expect(await refusal(second(other, {}))).to.equal('WRONG_NODE')
    await rename(one.options.location, aside)
    await rename(other.options.location, one.options.location)
    await rename(aside, other.options.location)
    await Promise.all([one.start(), other.start()])
    await cluster.healed()
    await nothingIsLost()
  })

  it('hazard p4, d10: halves that do not belong together are refused', async () => {
    const [one, other] = cluster.nodes as [NodeProcess, NodeProcess]
    await Promise.all([one.close(), other.close()])
    const mixed = join(cluster.folder, 'mixed')
    await cp(join(one.options.location, 'log'), join(mixed, 'log'), { recursive: true })
    await cp(join(other.options.location, 'state'), join(mixed, 'state'), { recursive: true })
    expect(await refusal(second(one, { location: mixed }))).to.equal('WRONG_NODE')
    await rm(join(mixed, 'log'), { recursive: true })
    expect(await refusal(second(other, { location: mixed }))).to.equal('WRONG_FOLDER')
    await Promise.all([one.start(), other.start()])
    await cluster.healed()
    await nothingIsLost()
  })

  it('hazard E1.34, d5, d9, d10: files of a folder that were changed by hand are refused or told as damage, by a code, and nothing else comes of it', async () => {
    const [node, ...others] = cluster.nodes as [NodeProcess, ...NodeProcess[]]
    // Nobody else is there to hear what it makes of the damage.
    await Promise.all([node.close(), ...others.map((other) => other.close())])
    const { location } = node.options
    const whole = join(cluster.folder, 'whole')
    await rename(location, whole)
    const seed = newSeed()
    const random = new SeededRandom(seed, 'damage')
    const outcomes: Record<string, number> = {}
    for (let attempt = 0; attempt < 15; attempt++) {
      await cp(whole, location, { recursive: true })
      const what = await damage(location, random)
      const outcome = await node.start().then(
        async () => (await node.status()).failure?.code ?? 'as if nothing had happened',
        (error: unknown) => (error as StartFailedError).code,
      )
      expect(outcome, `seed ${seed}: ${what}`).to.be.oneOf(['as if nothing had happened', 'CORRUPTION', 'MALFORMED', 'OPEN_FAILED', 'WRONG_FOLDER'])
      outcomes[outcome!] = (outcomes[outcome!] ?? 0) + 1
      await node.kill()
      await rm(location, { recursive: true })
    }
    expect(Object.keys(outcomes), `seed ${seed}`).to.have.length.greaterThan(1)
    await rename(whole, location)
    await Promise.all(cluster.nodes.map((each) => each.start()))
    await cluster.healed()
    await nothingIsLost()
  })

  it('hazard E1.35: nonsense in the options is refused at the start, with the reason', async () => {
    const [node] = cluster.nodes as [NodeProcess]
    const { bootstrap } = node.options
    const nodes = bootstrap!.nodes!
    const fresh = (changes: Partial<NodeProcess['options']>) => refusal(second(node, { location: join(cluster.folder, 'fresh'), ...changes }))
    const cases: Partial<NodeProcess['options']>[] = [
      { bootstrap: { nodes: [...nodes, nodes[0]!] } },
      { bootstrap: { nodes: nodes.map(({ id }) => ({ id, address: nodes[0]!.address })) } },
      { bootstrap: { nodes: [] } },
      { bootstrap: { nodes, shards: 0 } },
      { bootstrap: { nodes, groups: -1 } },
      { bootstrap: { nodes, replicas: 2.5 } },
      { id: 'stranger' },
      { id: '../n1' },
      { listen: 'nowhere' },
    ]
    for (const changes of cases) expect(await fresh(changes), JSON.stringify(changes)).to.equal('INVALID_ARGUMENT')
    expect(await fresh({ listen: '0.0.0.0:7777' })).to.equal('INSECURE_LISTEN')
    await nothingIsLost()
  })

  it('hazard d20: one node that is put back to an old copy of its folder is found out by what it acknowledged, takes no part any more, and nothing is lost', async () => {
    const [restored] = cluster.nodes as [NodeProcess]
    const copy = join(cluster.folder, 'copy')
    await restored.close()
    await cp(restored.options.location, copy, { recursive: true })
    await restored.start()
    await cluster.healed()
    // What comes now it acknowledges, and forgets.
    for (let round = 0; round < 5; round++) await write()
    await cluster.healed()
    // Nobody else has led meanwhile, so the leaders know what it acknowledged.
    const leaders = await cluster.leaders()
    const followed = [...leaders].filter(([group, leader]) => group > 0 && leader !== restored).map(([group]) => group)
    expect(followed).to.have.length(2)
    await restored.kill()
    await rm(restored.options.location, { recursive: true })
    await cp(copy, restored.options.location, { recursive: true })
    await restored.start()
    await until('it says so', async () => (await restored.status()).failure !== null)
    const { failure } = await restored.status()
    expect(failure?.code).to.equal('CORRUPTION')
    await nothingIsLost()
    await write()
    await nothingIsLost()
  })
})
