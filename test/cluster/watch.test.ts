/**
 * Watches on real nodes under faults: the guarantees that etcd's robustness tests check of every watch (ordered, unique, atomic, complete, resumable, bookmarkable), on a network
 * that loses, repeats and reorders frames, while nodes restart and leaders change.
 */
import { join } from 'node:path'
import { expect } from 'chai'
import { shardOf } from '../../src/engine/command.js'
import { type Node, openNode, type WatchDelete, type WatchEvent, type WatchPut } from '../../src/index.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { MemoryNetwork } from '../../src/transport/memory.js'
import { withCluster } from '../support/cluster.js'
import { withFolder } from '../support/folders.js'
import { newSeed } from '../support/seed.js'

const ids = ['a', 'b', 'c']
const shards = 8
const writers = 6
const writesEach = 40
const end = 'the end'

/** What one watch has told. */
class Log {
  readonly name: string
  readonly events: (WatchPut | WatchDelete)[] = []
  /** By shard: the last revision. */
  readonly last = new Map<number, number>()
  bookmarks = 0
  resumes = 0
  /** Shards whose last write was seen. */
  readonly ended = new Set<number>()
  #transaction: (WatchPut | WatchDelete)[] = []

  constructor(name: string) {
    this.name = name
  }

  /** Takes the next event, which must be the first of the next revision of its shard, or the next one of the same transaction. */
  take(event: WatchEvent): void {
    if (event.type === 'bookmark') {
      this.bookmarks++
      return
    }
    const shard = shardOf(event.key, shards)
    const last = this.last.get(shard) ?? 0
    const [first] = this.#transaction
    if (first === undefined) expect(event.revision, `${this.name}: shard ${shard} after ${last}`).to.equal(last + 1)
    else expect([shardOf(first.key, shards), first.revision], `${this.name}: a torn transaction`).to.deep.equal([shard, event.revision])
    this.#transaction.push(event)
    this.events.push(event)
    if (!event.isLast) return
    this.#transaction = []
    this.last.set(shard, event.revision)
    if (event.type === 'put' && Buffer.from(event.value).toString() === end) this.ended.add(shard)
  }

  /** The reader goes back to the last cursor: what it had of a transaction is told again. */
  rewind(): void {
    this.events.splice(this.events.length - this.#transaction.length)
    this.#transaction = []
    this.resumes++
  }

  get isDone(): boolean {
    return this.ended.size === shards
  }

  text(): string[] {
    return this.events
      .map((event) => {
        const at = `${shardOf(event.key, shards)}/${String(event.revision).padStart(6, '0')} ${Buffer.from(event.key)}`
        return event.type === 'put' ? `${at}=${Buffer.from(event.value)} v${event.version}` : `${at} deleted`
      })
      .sort()
  }
}

describe('watches on a cluster under faults', () => {
  it('are ordered, unique, atomic, complete, resumable and bookmarked, over lost frames, restarts and changes of leaders', function () {
    this.timeout(240_000)
    return withFolder(async (folder) => {
      const seed = newSeed()
      const random = new SeededRandom(seed, 'watch')
      const network = new MemoryNetwork({
        seed,
        faults: { maxDelayMs: 3, dropProbability: 0.02, repeatProbability: 0.2, reorderProbability: 0.05, reorderMinMs: 5, reorderMaxMs: 100 },
      })
      const bootstrap = { nodes: ids.map((id) => ({ id, address: id })), groups: 2, shards }
      // A flush now and then, so that events go through the blocks too.
      const open = (id: string) =>
        openNode({ id, location: join(folder, id), bootstrap, transport: network.transport(id), tuning: { flushAfterMs: 50 }, attemptTimeoutMs: 300 })
      const nodes = new Map<string, Node>()
      for (const node of await Promise.all(ids.map(open))) nodes.set(node.id, node)
      const openClient = (name: string) =>
        openNode({ role: 'client', transport: network.transport(name), seeds: ids, requestTimeoutMs: 60_000, attemptTimeoutMs: 300 })
      const [writer, reader] = await Promise.all([openClient('writer'), openClient('reader')])
      try {
        const steady = new Log('steady')
        const restless = new Log('restless')
        const first = reader!.kv.watch({ bookmarks: true })
        await first.ready
        const start = first.cursor

        const follow = async () => {
          for await (const event of first) {
            steady.take(event)
            if (steady.isDone) return
          }
        }
        /** Gives up after a few events, and goes on from the cursor with another watch. */
        const follow2 = async () => {
          let cursor = start
          while (!restless.isDone) {
            const watch = reader!.kv.watch({ cursor, bookmarks: random.chance(0.5) })
            let left = random.integer(0, 40)
            for await (const event of watch) {
              restless.take(event)
              if (event.type === 'bookmark') expect(event.cursor).to.equal(watch.cursor)
              if (restless.isDone || --left < 0) break
            }
            cursor = watch.cursor
            restless.rewind()
          }
        }

        const acknowledged = new Set<string>()
        let done = 0
        const write = async (number: number) => {
          for (let at = 0; at < writesEach; at++) {
            const value = `${number}-${at}`
            const note = (key: string, { revision }: { revision: number }) =>
              acknowledged.add(`${shardOf(Buffer.from(key), shards)}/${String(revision).padStart(6, '0')} ${key}=${value}`)
            if (at % 4 === 3) {
              const keys = ['x', 'y', 'z']
                .map((name) => `{t${random.integer(0, 5)}}`.concat(name))
                .filter((key, _at, all) => key.slice(0, 4) === all[0]!.slice(0, 4))
              const result = await writer!.kv.batch(keys.map((key) => ({ put: key, value })))
              for (const key of keys) note(key, result)
            } else if (at % 7 === 6) {
              await writer!.kv.delete(`k${random.integer(0, 9)}`)
            } else {
              const key = `k${random.integer(0, 9)}`
              note(key, await writer!.kv.put(key, value))
            }
            done++
          }
        }
        const all = writers * writesEach
        const restart = async () => {
          while (done < all) {
            const id = ids[random.integer(0, ids.length - 1)]!
            if (random.chance(0.5)) network.crash(id)
            await nodes
              .get(id)!
              .close()
              .catch(() => {})
            nodes.set(id, await open(id))
            const until = Math.min(done + 50, all)
            while (done < until) await new Promise((resolve) => setTimeout(resolve, 5))
          }
        }
        const watching = Promise.all([follow(), follow2()])
        watching.catch(() => {})
        await Promise.all([...Array.from({ length: writers }, (_, number) => write(number)), restart()])
        // One last write in each shard.
        const last = new Map<number, string>()
        for (let at = 0; last.size < shards; at++) last.set(shardOf(Buffer.from(`end ${at}`), shards), `end ${at}`)
        for (const key of last.values()) await writer!.kv.put(key, end)
        await watching

        expect(restless.resumes, 'resumes').to.be.greaterThan(3)
        expect(steady.text(), 'two watches of the same range').to.deep.equal(restless.text())
        const told = new Set(steady.text().map((event) => event.replace(/ v\d+$/, '')))
        for (const event of acknowledged) expect(told.has(event), `${event} was acknowledged and not told`).to.equal(true)
        // Complete: what was told leads to what is there.
        const replayed = new Map<string, string>()
        for (const event of steady.events) {
          if (event.type === 'put')
            replayed.set(Buffer.from(event.key).toString(), `${Buffer.from(event.value)} v${event.version} r${event.revision}`)
          else replayed.delete(Buffer.from(event.key).toString())
        }
        const present = new Map<string, string>()
        for await (const { key, value, version, revision } of reader!.kv.scan()) {
          present.set(Buffer.from(key).toString(), `${Buffer.from(value)} v${version} r${revision}`)
        }
        expect([...replayed].sort()).to.deep.equal([...present].sort())
        for (const node of nodes.values()) expect(node.status().failure).to.equal(null)
      } catch (error) {
        throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
      } finally {
        await Promise.all([writer, reader, ...nodes.values()].map((node) => node!.close()))
      }
    })
  })

  it('resume from before the restart of every node, from what was flushed and from what the log replays', () =>
    withCluster(
      3,
      async (cluster) => {
        const watch = cluster.nodes.get('n1')!.kv.watch({ prefix: 'k' })
        await watch.ready
        const { cursor } = watch
        for (let at = 0; at < 200; at++) await cluster.nodes.get('n1')!.kv.put(`k${at % 20}`, `${at}`)
        await Promise.all(['n1', 'n2', 'n3'].map((id) => cluster.stop(id)))
        await Promise.all(['n1', 'n2', 'n3'].map((id) => cluster.start(id, { tuning: { flushAfterMs: 30 } })))
        const resumed = cluster.nodes.get('n2')!.kv.watch({ prefix: 'k', cursor })
        const byKey = new Map<string, string[]>()
        let left = 200
        for await (const event of resumed) {
          if (event.type !== 'put') throw new Error(`a ${event.type} that nobody made`)
          const key = Buffer.from(event.key).toString()
          byKey.set(key, [...(byKey.get(key) ?? []), Buffer.from(event.value).toString()])
          if (--left === 0) break
        }
        for (let at = 0; at < 20; at++) expect(byKey.get(`k${at}`)).to.deep.equal(Array.from({ length: 10 }, (_, round) => `${round * 20 + at}`))
      },
      { groups: 2, shards: 4 },
      { tuning: { flushAfterMs: 30 } },
    ))

  it('a follower that got its state as a snapshot serves cursors from before it', () =>
    withCluster(
      3,
      async (cluster) => {
        const tuning = { compactLogBytes: 20_000, compactLogEntries: 50, flushAfterMs: 30 }
        const writer = cluster.nodes.get('n1')!
        const watch = writer.kv.watch({ key: 'k' })
        await watch.ready
        const { cursor } = watch
        await cluster.stop('n3')
        for (let at = 0; at < 400; at++) await writer.kv.put(at % 10 === 0 ? 'k' : `other${at % 7}`, `${at} ${'x'.repeat(200)}`)
        const late = await cluster.start('n3', { tuning })
        const target = () =>
          Math.max(...[...cluster.nodes.values()].map((node) => node.status().groups.find(({ group }) => group === 1)!.commitIndex))
        const own = () => late.status().groups.find(({ group }) => group === 1)!
        while (own().appliedIndex < target()) await new Promise((resolve) => setTimeout(resolve, 5))
        // It leads now, whatever it takes.
        while (cluster.leaderOf(1) !== 'n3') {
          await writer.cluster.transfer(1, 'n3').catch(() => {})
          await new Promise((resolve) => setTimeout(resolve, 20))
        }
        const resumed = cluster.nodes.get('n2')!.kv.watch({ key: 'k', cursor })
        const seen: string[] = []
        for await (const event of resumed) {
          if (event.type === 'put') seen.push(Buffer.from(event.value).toString().split(' ')[0]!)
          if (seen.length === 40) break
        }
        expect(seen).to.deep.equal(Array.from({ length: 40 }, (_, at) => `${at * 10}`))
      },
      { groups: 1, shards: 2 },
      { tuning: { compactLogBytes: 20_000, compactLogEntries: 50, flushAfterMs: 30 } },
    ))
})
