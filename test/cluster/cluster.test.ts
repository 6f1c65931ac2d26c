/** A cluster end to end: real disks, real sockets, all layers. */
import { randomBytes } from 'node:crypto'
import { connect } from 'node:net'
import { join } from 'node:path'
import { expect } from 'chai'
import {
  ClosedError,
  ConditionFailedError,
  fromKv,
  InvalidArgumentError,
  type Node,
  OutcomeUnknownError,
  openNode,
  QuorateError,
  RefusedError,
  toArray,
  UnavailableError,
} from '../../src/index.js'
import { tcp } from '../../src/transport/tcp.js'
import { withCluster } from '../support/cluster.js'
import { failureOf } from '../support/conditions.js'
import { freePorts, withFolder } from '../support/folders.js'

describe('a cluster of three nodes', () => {
  it('keeps what is put, on any node and for a client, in key order over all shards', () =>
    withCluster(3, async (cluster) => {
      const [one, two] = [...cluster.nodes.values()]
      const client = await cluster.openClient()
      try {
        const keys = Array.from({ length: 300 }, (_, at) => `key-${String(at).padStart(3, '0')}`)
        await Promise.all(keys.map((key, at) => [one, two, client][at % 3]!.kv.put(key, `value of ${key}`)))
        for (const node of [one!, two!, client]) {
          const seen: string[] = []
          for await (const { key, value, version } of node.kv.scan({ prefix: 'key-' })) {
            seen.push(Buffer.from(key).toString())
            expect(Buffer.from(value).toString()).to.equal(`value of ${Buffer.from(key)}`)
            expect(version).to.equal(1)
          }
          expect(seen).to.deep.equal(keys)
        }
        const found = await two!.kv.getMany(['key-007', 'nothing', 'key-299'])
        expect(found.map((entry) => entry && Buffer.from(entry.value).toString())).to.deep.equal(['value of key-007', undefined, 'value of key-299'])
      } finally {
        await client.close()
      }
    }))

  it('goes on without its leaders, and a node that was down catches up and can lead', () =>
    withCluster(3, async (cluster) => {
      const client = await cluster.openClient()
      try {
        await client.kv.put('a', '1')
        for (const group of [1, 2]) {
          const leader = cluster.leaderOf(group)!
          await cluster.stop(leader)
          await Promise.all(Array.from({ length: 50 }, (_, at) => client.kv.put(`${group}-${at}`, 'while it was down')))
          await cluster.start(leader)
        }
        // Only the restarted nodes are left to make a majority: they must have caught up.
        const last = cluster.leaderOf(1)!
        await cluster.stop(last)
        expect((await client.kv.get('a'))?.version).to.equal(1)
        for (const group of [1, 2]) expect((await client.kv.get(`${group}-49`))?.version).to.equal(1)
      } finally {
        await client.close()
      }
    }))

  it('has everything after all nodes were closed and opened again', () =>
    withCluster(3, async (cluster) => {
      const first = cluster.nodes.get('n1')!
      await Promise.all(Array.from({ length: 100 }, (_, at) => first.kv.put(`k${at}`, `${at}`)))
      const { revision } = await first.kv.delete('k7')
      await Promise.all(cluster.members.map(({ id }) => cluster.stop(id)))
      await Promise.all(cluster.members.map(({ id }) => cluster.start(id)))
      const { kv } = cluster.nodes.get('n2')!
      for (let at = 0; at < 100; at++) expect((await kv.get(`k${at}`))?.version, `k${at}`).to.equal(at === 7 ? undefined : 1)
      expect((await kv.put('k7', 'again')).revision).to.be.greaterThan(revision)
    }))

  it('hazard c6: without a majority writes end in OutcomeUnknownError and reads in UnavailableError, at the deadline; never before, never a lie', () =>
    withCluster(3, async (cluster) => {
      const { kv } = cluster.nodes.get('n1')!
      await kv.put('a', '1')
      await cluster.stop('n2')
      await cluster.stop('n3')
      const [write, read] = await Promise.all([failureOf(kv.put('a', '2', { timeoutMs: 600 })), failureOf(kv.get('a', { timeoutMs: 600 }))])
      expect(write).to.be.instanceOf(OutcomeUnknownError)
      expect(read).to.be.instanceOf(UnavailableError)
      expect(read).to.include({ code: 'TIMEOUT', retryable: true })
      const controller = new AbortController()
      const reason = new Error('enough')
      const aborted = failureOf(kv.get('a', { signal: controller.signal }))
      controller.abort(reason)
      expect(await aborted).to.equal(reason)
      await cluster.start('n2')
      expect((await kv.get('a'))?.version).to.be.oneOf([1, 2])
    }))

  it('hazard E1.27: wrong arguments get a typed error at the call, and nothing is written', () =>
    withCluster(3, async (cluster) => {
      const { kv } = cluster.nodes.get('n1')!
      const cases: [Promise<unknown>, string][] = [
        [kv.put('', 'x'), 'EMPTY_KEY'],
        [kv.put('k'.repeat(4097), 'x'), 'KEY_TOO_LARGE'],
        [kv.put('k', Buffer.alloc(1024 * 1024 + 1)), 'VALUE_TOO_LARGE'],
        [kv.put('k', 'x', { ifVersion: -1 }), 'INVALID_ARGUMENT'],
        [kv.put('k', 'x', { ifVersion: 0.5 }), 'INVALID_ARGUMENT'],
        [kv.put('k', 'x', { ifRevision: 2 ** 60 }), 'INVALID_ARGUMENT'],
        [kv.put('k', 'x', { timeoutMs: Number.NaN }), 'INVALID_ARGUMENT'],
        [kv.put(7 as unknown as string, 'x'), 'INVALID_ARGUMENT'],
        [kv.put('k', null as unknown as string), 'INVALID_ARGUMENT'],
        [kv.get(''), 'EMPTY_KEY'],
      ]
      for (const [promise, code] of cases) {
        const error = await failureOf(promise)
        expect(error, code).to.be.instanceOf(InvalidArgumentError)
        expect((error as QuorateError).code).to.equal(code)
      }
      for await (const entry of kv.scan()) expect.fail(`${Buffer.from(entry.key)} was written`)
      // At the limits all is well (hazard q2), and names of Object.prototype are keys like others (hazard E1.14).
      await kv.put('k'.repeat(4096), Buffer.alloc(1024 * 1024, 7))
      expect((await kv.get('k'.repeat(4096)))?.value.length).to.equal(1024 * 1024)
      for (const key of ['__proto__', 'constructor', 'then', 'toString']) await kv.put(key, key)
      expect((await kv.getMany(['__proto__', 'then'])).map((entry) => Buffer.from(entry!.value).toString())).to.deep.equal(['__proto__', 'then'])
    }))

  it('of many callers that create the same key exactly one succeeds', () =>
    withCluster(3, async (cluster) => {
      const nodes = [...cluster.nodes.values()]
      const results = await Promise.all(
        Array.from({ length: 60 }, (_, at) => failureOf(nodes[at % 3]!.kv.put('only-once', `${at}`, { ifVersion: 0 }))),
      )
      expect(results.filter((error) => error === undefined)).to.have.length(1)
      for (const error of results) if (error !== undefined) expect(error).to.be.instanceOf(ConditionFailedError).and.include({ actualVersion: 1 })
    }))

  it('a lock excludes over all nodes, and its fence rises with each grant', () =>
    withCluster(
      3,
      async (cluster) => {
        const nodes = [...cluster.nodes.values()]
        const fences: bigint[] = []
        let inside = 0
        const work = nodes.flatMap((node) =>
          Array.from({ length: 3 }, () =>
            node.lock('report').run(async ({ fence }) => {
              expect(++inside).to.equal(1)
              fences.push(fence)
              await node.kv.put('touched', `${fence}`)
              inside--
            }),
          ),
        )
        await Promise.all(work)
        expect(fences).to.have.length(9)
        for (let at = 1; at < fences.length; at++) expect(fences[at]! > fences[at - 1]!).to.equal(true)
      },
      { groups: 1 },
    ))

  it('runs a job over its own keys on all nodes, coordinated by a client', () =>
    withCluster(
      3,
      async (cluster) => {
        const client = await cluster.openClient()
        try {
          const texts = Array.from({ length: 60 }, (_, at) => `the ${at % 7} of ${at % 3} words`)
          await Promise.all(texts.map((text, at) => client.kv.put(`doc/${at}`, text)))
          const result = await client.mapReduce({ job: 'word-count', input: fromKv({ prefix: 'doc/' }), output: toArray(), splitBytes: 200 }).result()
          const counts = new Map<string, number>()
          for (const word of texts.join(' ').match(/[a-z]+/g)!) counts.set(word, (counts.get(word) ?? 0) + 1)
          const found = new Map(result.output.pairs)
          expect(found.size).to.equal(counts.size)
          for (const [word, count] of counts) expect(found.get(word), word).to.equal(count)
        } finally {
          await client.close()
        }
      },
      {},
      { jobs: { 'word-count': new URL('../../examples/jobs/word-count.js', import.meta.url) }, workers: 1 },
    ))

  it('a closed node refuses work and settles what waited', () =>
    withCluster(3, async (cluster) => {
      const node = cluster.nodes.get('n1')!
      await cluster.stop('n2')
      await cluster.stop('n3')
      const write = failureOf(node.kv.put('a', '1'))
      const read = failureOf(node.kv.get('a'))
      await new Promise(setImmediate)
      await node.close()
      expect(await write).to.be.instanceOf(QuorateError)
      expect(await read).to.be.instanceOf(ClosedError)
      expect(await failureOf(node.kv.get('a'))).to.be.instanceOf(ClosedError)
      await node.close()
    }))
})

describe('bad input to a running node', () => {
  it('hazard E1.1-E1.8, n5: garbage on the TCP port is refused and the node goes on', () =>
    withCluster(3, async (cluster) => {
      const { kv } = cluster.nodes.get('n1')!
      await kv.put('a', '1')
      const [host, port] = cluster.addresses[0]!.split(':')
      const inputs = [
        Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'),
        Buffer.from([0, 0, 0, 0]),
        Buffer.from([0xff, 0xff, 0xff, 0xff]),
        Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00]),
        ...Array.from({ length: 20 }, () => randomBytes(200)),
      ]
      await Promise.all(
        inputs.map(
          (input) =>
            new Promise<void>((resolve) => {
              const socket = connect(Number(port), host, () => socket.write(input))
              socket.on('error', () => {})
              socket.on('close', () => resolve())
              socket.resume()
            }),
        ),
      )
      await kv.put('a', '2')
      expect((await kv.get('a'))?.version).to.equal(2)
      expect(cluster.nodes.get('n1')!.status().failure).to.equal(null)
    }))

  it('hazard E1.21, n18: a node of another cluster is refused on both sides, and both go on', () =>
    withCluster(3, async (cluster) => {
      await withFolder(async (folder) => {
        const [port] = await freePorts(1)
        const stranger = { id: 'n4', address: `127.0.0.1:${port}` }
        // It believes that n1 is a member of its own, other cluster.
        const node = await openNode({
          id: 'n4',
          location: folder,
          transport: tcp({ listen: stranger.address }),
          bootstrap: { nodes: [stranger, cluster.members[0]!], name: 'another' },
        })
        try {
          const refusal = (side: Node, wanted: string) =>
            new Promise<void>((resolve) => side.on('refused', ({ kind }) => kind === wanted && resolve()))
          await Promise.all([refusal(node, 'refused-by-peer'), refusal(cluster.nodes.get('n1')!, 'wrong-cluster')])
          await cluster.nodes.get('n1')!.kv.put('a', '1')
        } finally {
          await node.close()
        }
      })
    }))

  it('hazard p4, E1.21: a folder of another node, of another cluster, or in use is refused, unchanged', () =>
    withCluster(3, async (cluster) => {
      const open = (options: object) => openNode({ id: 'n2', location: join(cluster.folder, 'n1'), transport: tcp(), ...options })
      expect(await failureOf(open({ bootstrap: cluster.bootstrap })))
        .to.be.instanceOf(RefusedError)
        .and.include({ code: 'FOLDER_IN_USE' })
      await cluster.nodes.get('n1')!.kv.put('a', '1')
      await cluster.stop('n1')
      expect(await failureOf(open({ bootstrap: cluster.bootstrap })))
        .to.be.instanceOf(RefusedError)
        .and.include({ code: 'WRONG_NODE' })
      const other = { ...cluster.bootstrap, name: 'another' }
      expect(await failureOf(open({ id: 'n1', bootstrap: other })))
        .to.be.instanceOf(RefusedError)
        .and.include({ code: 'WRONG_CLUSTER' })
      await withFolder(async (empty) => {
        expect(await failureOf(open({ location: empty })))
          .to.be.instanceOf(RefusedError)
          .and.include({ code: 'NO_DATA' })
      })
      const again = await cluster.start('n1')
      expect((await again.kv.get('a'))?.version).to.equal(1)
    }))

  it('hazard E1.35: a bootstrap that makes no sense is refused, with the reason', async () => {
    const address = '127.0.0.1:7001'
    const nodes = [{ id: 'a', address }]
    const cases: [object, string][] = [
      [{ nodes: [] }, 'bootstrap nodes'],
      [{ nodes: [...nodes, { id: 'a', address: '127.0.0.1:7002' }] }, 'same id'],
      [{ nodes: [...nodes, { id: 'b', address }] }, 'same address'],
      [{ nodes, shards: 0 }, 'shards'],
      [{ nodes, groups: 0 }, 'groups'],
      [{ nodes, groups: 65, shards: 64 }, 'shards'],
      [{ nodes: [{ id: '../a', address }] }, 'node id'],
      [{ nodes: [{ id: 'b', address }] }, 'not among'],
    ]
    await withFolder(async (location) => {
      for (const [bootstrap, text] of cases) {
        const error = await failureOf(openNode({ id: 'a', location, transport: tcp(), bootstrap: bootstrap as never }))
        expect(error, text).to.be.instanceOf(InvalidArgumentError)
        expect((error as Error).message).to.contain(text)
      }
    })
  })
})
