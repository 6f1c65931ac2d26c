/** Three nodes over TCP: a follower that was away while the log was compacted past it catches up by a snapshot, with writes going on. */
import { join } from 'node:path'
import { expect } from 'chai'
import { type Database, openLevel } from '../../src/engine/database.js'
import { RecordType } from '../../src/engine/records.js'
import { areaPrefix, readCurrentArea } from '../../src/engine/state-area.js'
import type { Node } from '../../src/index.js'
import { withCluster } from '../support/cluster.js'

const tuning = { compactLogBytes: 20_000, flushBytes: 8_000, snapshotChunkBytes: 4_000 }

describe('a follower behind the compacted log', () => {
  it('hazard m10, D6.48: catches up by a snapshot while writes go on, and holds then what the others hold', () =>
    withCluster(
      3,
      async (cluster) => {
        const writer = await cluster.openClient()
        const written = new Map<string, string>()
        let next = 0
        const put = async () => {
          const key = `key ${next++ % 700}`
          const value = `${next} `.repeat(20)
          await writer.kv.put(key, value)
          written.set(key, value)
        }
        for (let count = 0; count < 50; count++) await put()
        const away = ['n1', 'n2', 'n3'].find((id) => id !== cluster.leaderOf(1))!
        await cluster.stop(away)
        for (let round = 0; round < 40; round++) await Promise.all(Array.from({ length: 25 }, put))
        let isBack = false
        const writes = (async () => {
          for (; !isBack; ) await put()
        })()
        const node = await cluster.start(away, { tuning })
        await untilCaughtUp(node, () => lastIndexOf(cluster.nodes.get(cluster.leaderOf(1)!)!))
        isBack = true
        await writes
        for (const [key, value] of written) expect(Buffer.from((await writer.kv.get(key))!.value).toString()).to.equal(value)
        const folders = ['n1', 'n2', 'n3'].map((id) => join(cluster.folder, id))
        await writer.close()
        const last = lastIndexOf(cluster.nodes.get(cluster.leaderOf(1)!)!)
        for (const each of cluster.nodes.values()) await untilCaughtUp(each, () => last)
        for (const id of ['n1', 'n2', 'n3']) await cluster.stop(id)
        const states = await Promise.all(folders.map((folder) => withDatabase(join(folder, 'state'), (state) => recordsOf(state, 1))))
        expect(states[0]!.length).to.be.greaterThan(700)
        expect(states[1]).to.deep.equal(states[0])
        expect(states[2]).to.deep.equal(states[0])
        // It cannot have come by the log.
        const origin = await withDatabase(join(cluster.folder, away, 'state'), async (state) => {
          return state.getSync(Buffer.from(`${areaPrefix(1, readCurrentArea(state, 1))}\xff\xffo`, 'latin1'))
        })
        expect(origin).to.not.equal(undefined)
      },
      { groups: 1 },
      { tuning },
    ))
})

describe('a follower that nobody writes to', () => {
  it('hazard D6.49: gets its snapshot from a leader that has compacted its log and is idle since', () =>
    withCluster(
      3,
      async (cluster) => {
        const writer = await cluster.openClient()
        await writer.kv.put('first', 'value')
        const away = ['n1', 'n2', 'n3'].find((id) => id !== cluster.leaderOf(1))!
        await cluster.stop(away)
        for (let round = 0; round < 20; round++) {
          await Promise.all(Array.from({ length: 25 }, (_, at) => writer.kv.put(`key ${at}`, `${round}`.repeat(100))))
        }
        await writer.close()
        const node = await cluster.start(away, { tuning })
        await untilCaughtUp(node, () => lastIndexOf(cluster.nodes.get(cluster.leaderOf(1)!)!))
        expect(node.status().failure).to.equal(null)
      },
      { groups: 1 },
      { tuning },
    ))
})

function lastIndexOf(node: Node): number {
  return node.status().groups.find(({ group }) => group === 1)!.lastIndex
}

async function untilCaughtUp(node: Node, target: () => number): Promise<void> {
  const wanted = target()
  while (node.status().groups.find(({ group }) => group === 1)!.appliedIndex < wanted) await new Promise((resolve) => setTimeout(resolve, 5))
}

async function withDatabase<T>(location: string, run: (database: Database) => Promise<T>): Promise<T> {
  const database = await openLevel(location, { cacheBytes: 1024 * 1024, writeBufferBytes: 1024 * 1024 })
  try {
    return await run(database)
  } finally {
    await database.close()
  }
}

/** All that a group's state machine holds. (How far it is applied differs: closing hands leadership over, which adds entries without a command.) */
async function recordsOf(state: Database, group: number): Promise<string[]> {
  const prefix = areaPrefix(group, readCurrentArea(state, group))
  const end = `${prefix.slice(0, -1)}${String.fromCharCode(prefix.charCodeAt(2) + 1)}`
  const iterator = state.iterate({ gte: Buffer.from(prefix, 'latin1'), lt: Buffer.from(end, 'latin1') })
  const found: string[] = []
  for (let page = await iterator.nextv(1000); page.length > 0; page = await iterator.nextv(1000)) {
    for (const [key, value] of page) {
      const name = Buffer.from(key).subarray(3).toString('latin1')
      // Replicas flush at different times: their history is cut into other blocks, and may reach back further.
      const isHistory = name.charCodeAt(2) === RecordType.history
      if (!name.startsWith('\xff\xff') && !isHistory) found.push(`${name}=${Buffer.from(value).toString('hex')}`)
    }
  }
  await iterator.close()
  return found
}
