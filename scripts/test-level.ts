/**
 * `npm run test:level`: abstract-level's own suite against quorate/level over real clusters; prints the totals of each run, and exits with 1 when any assertion failed.
 *
 * The cluster of a run is opened once; every database that the suite asks for (some 1300) is a fresh prefix of it.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type KV, openLocal } from '../src/index.js'
import { QuorateLevel } from '../src/level/index.js'
import { MemoryNetwork } from '../src/transport/memory.js'
import { runLevelSuite } from '../test/level/support/level-suite.js'
import { TestCluster } from '../test/support/cluster.js'
import { memoryDatabases } from '../test/support/memory-database.js'

const usage = `npm run test:level -- [options]
  --on A,B       memory: three nodes with two groups and four shards, in this process, over a network in memory
                 tcp: three nodes on disk, with the default 64 shards, over TCP on loopback, seen by a client
                 local: openLocal, on disk
                 default: all of them
  --layout A,B   colocated: each database in one shard; spread: over all shards, batches split; default: both`

interface Target {
  readonly kv: KV
  close(): Promise<void>
}

const targets: Readonly<Record<string, () => Promise<Target>>> = {
  memory: async () => {
    const network = new MemoryNetwork({ seed: 1 })
    const cluster = await TestCluster.open(3, { network, bootstrap: { groups: 2, shards: 4 }, node: { openDatabase: memoryDatabases() } })
    return { kv: cluster.nodes.get('n1')!.kv, close: () => cluster.close() }
  },
  tcp: async () => {
    const cluster = await TestCluster.open(3)
    const client = await cluster.openClient()
    const close = async () => {
      await client.close()
      await cluster.close()
    }
    return { kv: client.kv, close }
  },
  local: async () => {
    const location = await mkdtemp(join(tmpdir(), 'quorate-level-'))
    const store = await openLocal({ location: join(location, 'data') })
    const close = async () => {
      await store.close()
      await rm(location, { recursive: true, force: true })
    }
    return { kv: store.kv, close }
  },
}

const layouts: Readonly<Record<string, (kv: KV, number: number, options: object) => QuorateLevel>> = {
  colocated: (kv, number, options) => new QuorateLevel(kv, { ...options, prefix: `{${number}}` }),
  spread: (kv, number, options) => new QuorateLevel(kv, { ...options, prefix: `${number}/`, spread: true, crossShardBatch: 'split' }),
}

function chosen<T>(all: Readonly<Record<string, T>>, names: string | undefined, option: string): [string, T][] {
  return (names?.split(',') ?? Object.keys(all)).map((name) => {
    const found = all[name]
    if (found === undefined) throw new RangeError(`--${option} knows ${Object.keys(all).join(', ')}, not ${name}`)
    return [name, found]
  })
}

async function main(): Promise<number> {
  const { values } = parseArgs({ options: { on: { type: 'string' }, layout: { type: 'string' }, help: { type: 'boolean', default: false } } })
  if (values.help) {
    console.log(usage)
    return 0
  }
  let failures = 0
  for (const [targetName, open] of chosen(targets, values.on, 'on')) {
    for (const [layoutName, layOut] of chosen(layouts, values.layout, 'layout')) {
      const { kv, close } = await open()
      let databases = 0
      try {
        const { tests, assertions, failed, seconds } = await runLevelSuite({
          factory: (options = {}) => layOut(kv, databases++, options),
          onFailure: (test, assertion, error) => console.log(`not ok: ${test}: ${assertion}\n${error?.stack ?? ''}`),
        })
        const passed = assertions - failed
        console.log(
          `${targetName}, ${layoutName}: ${passed} of ${assertions} assertions passed, in ${tests} tests on ${databases} databases, ${seconds.toFixed(1)} s`,
        )
        failures += failed + (assertions === 0 ? 1 : 0)
      } finally {
        await close()
      }
    }
  }
  return failures === 0 ? 0 : 1
}

process.exitCode = await main()
