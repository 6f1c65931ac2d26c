/** A node as its application sees it: clusters of other shapes, listeners that throw, and what a failed start leaves behind. */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect } from 'chai'
import { openLevel } from '../../src/engine/database.js'
import { InvalidArgumentError, type Node, openNode } from '../../src/index.js'
import { tcp } from '../../src/transport/tcp.js'
import { withCluster } from '../support/cluster.js'
import { freePorts, withFolder } from '../support/folders.js'

async function useAll(nodes: Iterable<Node>): Promise<void> {
  const keys = Array.from({ length: 40 }, (_, at) => `key-${String(at).padStart(2, '0')}`)
  for (const node of nodes) {
    await Promise.all(keys.map((key) => node.kv.put(key, node.id)))
    const seen: string[] = []
    for await (const { key, value } of node.kv.scan()) {
      seen.push(Buffer.from(key).toString())
      expect(Buffer.from(value).toString()).to.equal(node.id)
    }
    expect(seen).to.deep.equal(keys)
    const down: string[] = []
    for await (const { key } of node.kv.scan({ reverse: true, limit: 3, lt: 'key-20', gt: 'key-17' })) down.push(Buffer.from(key).toString())
    expect(down).to.deep.equal(['key-19', 'key-18'])
    expect((await node.kv.get('key-07'))?.value).to.deep.equal(Buffer.from(node.id))
    expect((await node.kv.delete('key-00')).deleted).to.equal(true)
  }
}

/** Runs something that ends in an uncaught exception, and gives that back instead of ending the process. */
async function uncaught(run: () => Promise<void>): Promise<unknown> {
  const listeners = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  let found: unknown
  process.on('uncaughtException', (error) => {
    found ??= error
  })
  try {
    await run()
  } finally {
    process.removeAllListeners('uncaughtException')
    for (const listener of listeners) process.on('uncaughtException', listener)
  }
  return found
}

describe('a cluster of another shape', () => {
  it('one node, two groups', () => withCluster(1, (cluster) => useAll(cluster.nodes.values())))

  it('one node, one group, one shard', () => withCluster(1, (cluster) => useAll(cluster.nodes.values()), { groups: 1, shards: 1 }))

  it('two nodes', () => withCluster(2, (cluster) => useAll(cluster.nodes.values())))

  it('five nodes with three replicas of each group, some nodes in no group', () =>
    withCluster(
      5,
      async (cluster) => {
        expect(cluster.nodes.get('n5')!.status().groups).to.deep.equal([])
        await useAll(cluster.nodes.values())
      },
      { groups: 2 },
    ))

  it('reads of many large values at once are answered, in several replies', () =>
    withCluster(1, async (cluster) => {
      const client = await cluster.openClient()
      try {
        const keys = Array.from({ length: 80 }, (_, at) => `large-${at}`)
        for (let at = 0; at < keys.length; at += 10) {
          await Promise.all(keys.slice(at, at + 10).map((key) => client.kv.put(key, Buffer.alloc(1024 * 1024, at))))
        }
        const found = await client.kv.getMany(keys)
        expect(found.every((entry) => entry?.value.length === 1024 * 1024)).to.equal(true)
      } finally {
        await client.close()
      }
    }))
})

describe('Node', () => {
  it('hazard p9: a listener that throws ends in an uncaught exception of the application, and the groups serve on', () =>
    withCluster(1, async (cluster) => {
      const node = cluster.nodes.get('n1')!
      const mistake = new Error('a mistake of the application')
      const found = await uncaught(async () => {
        node.on('status', () => {
          throw mistake
        })
        await node.kv.put('a', '1')
        expect((await node.kv.get('a'))?.version).to.equal(1)
      })
      expect(found).to.equal(mistake)
      expect(node.status().failure).to.equal(null)
    }))

  it('a failed start says why, and leaves the folder free', () =>
    withFolder(async (location) => {
      const [port] = await freePorts(1)
      const address = `127.0.0.1:${port}`
      const bootstrap = { nodes: [{ id: 'a', address }] }
      const wrong = await openNode({ id: 'b', location, transport: tcp({ listen: address }), bootstrap }).catch((error: unknown) => error)
      expect(wrong).to.be.instanceOf(InvalidArgumentError)
      const broken = await openNode({
        id: 'a',
        location,
        transport: tcp({ listen: address }),
        bootstrap: { ...bootstrap, nodes: [] },
      }).catch((error: unknown) => error)
      expect(broken).to.be.instanceOf(InvalidArgumentError)
      // The reason counts, not what went wrong while it was cleaned up.
      const closing = await openNode({
        id: 'b',
        location,
        transport: tcp({ listen: address }),
        bootstrap,
        openDatabase: async (folder, options) => {
          const database = await openLevel(folder, options)
          return {
            ...database,
            close: async () => {
              await database.close()
              throw new Error('could not close')
            },
          }
        },
      }).catch((error: unknown) => error)
      expect(closing).to.be.instanceOf(InvalidArgumentError)
      const node = await openNode({ id: 'a', location, transport: tcp({ listen: address }), bootstrap })
      try {
        await node.kv.put('a', '1')
      } finally {
        await node.close()
      }
    }))

  it('hazard D7: when the log cannot be written, the node says so, acknowledges nothing more, and closes', () =>
    withFolder(async (location) => {
      const [port] = await freePorts(1)
      const address = `127.0.0.1:${port}`
      const failure = new Error('disk full')
      let failing = false
      const node = await openNode({
        id: 'a',
        location,
        transport: tcp({ listen: address }),
        bootstrap: { nodes: [{ id: 'a', address }], groups: 1 },
        openDatabase: async (folder, options) => {
          const database = await openLevel(folder, options)
          if (folder !== join(location, 'log')) return database
          return {
            ...database,
            batch: () => {
              const batch = database.batch()
              return {
                put: (key, value) => batch.put(key, value),
                del: (key) => batch.del(key),
                write: (writeOptions) => (failing ? Promise.reject(failure) : batch.write(writeOptions)),
              }
            },
          }
        },
      })
      await node.kv.put('a', '1')
      const told = new Promise<unknown>((resolve) => node.once('failure', resolve))
      failing = true
      const write = await node.kv.put('a', '2', { timeoutMs: 200 }).catch((error: unknown) => error)
      expect(write).to.include({ code: 'OUTCOME_UNKNOWN' })
      expect(await told).to.include({ code: 'STORAGE_FAILED', cause: failure })
      expect(node.status().failure).to.equal(await told)
      const read = await node.kv.get('a', { timeoutMs: 200 }).catch((error: unknown) => error)
      expect(read).to.include({ code: 'TIMEOUT' })
      await node.close()
      const again = await openNode({ location, transport: tcp({ listen: address }) })
      try {
        expect((await again.kv.get('a'))?.version).to.equal(1)
      } finally {
        await again.close()
      }
    }))

  it('an open node keeps its process alive: who waits for it gets an answer', async () => {
    const script = `
      import { openNode } from ${JSON.stringify(new URL('../../src/index.js', import.meta.url).href)}
      import { tcp } from ${JSON.stringify(new URL('../../src/transport/tcp.js', import.meta.url).href)}
      try {
        await openNode({ role: 'client', transport: tcp(), seeds: ['127.0.0.1:1'], openTimeoutMs: 300 })
      } catch (error) {
        console.log(error.code)
      }`
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script])
    expect(stdout.trim()).to.equal('TIMEOUT')
  })
})
