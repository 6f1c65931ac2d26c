/** Data folders of real nodes in the wrong hands: another node's, another cluster's, a half, an old copy, one that is in use. What is promised: docs/operations.md. */
import { cp, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { freeAddresses } from '../../scripts/workplace.js'
import type { Node } from '../../src/index.js'
import { NodeProcess, StartFailedError } from '../support/node-process.js'
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
