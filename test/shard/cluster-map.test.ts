import { encode } from '@msgpack/msgpack'
import { expect } from 'chai'
import fc from 'fast-check'
import { CorruptionError, InvalidArgumentError } from '../../src/base/errors.js'
import { type BootstrapOptions, checkNodeId, decodeClusterMap, encodeClusterMap, makeClusterMap, Router } from '../../src/shard/cluster-map.js'
import { newSeed } from '../support/seed.js'

const nodesOf = (count: number) => Array.from({ length: count }, (_, at) => ({ id: `n${at + 1}`, address: `127.0.0.1:${7001 + at}` }))

const options: fc.Arbitrary<BootstrapOptions> = fc
  .record({
    count: fc.integer({ min: 1, max: 12 }),
    groups: fc.integer({ min: 1, max: 20 }),
    more: fc.nat({ max: 100 }),
    replicas: fc.integer({ min: 1, max: 7 }),
  })
  .map(({ count, groups, more, replicas }) => ({ nodes: nodesOf(count), groups, shards: groups + more, replicas }))

describe('ClusterMap', () => {
  it('S1: gives every shard one owner, every group as many different members as asked for or as there are, and survives its encoding', () => {
    fc.assert(
      fc.property(options, (each) => {
        const map = makeClusterMap(each)
        expect(decodeClusterMap(encodeClusterMap(map))).to.deep.equal(map)
        const router = new Router(map)
        const owned = map.groups.flatMap(({ id }) => router.shardsOf(id))
        expect([...owned].sort((a, b) => a - b)).to.deep.equal(Array.from({ length: map.shards }, (_, shard) => shard))
        for (const { id, members } of map.groups) {
          expect(new Set(members).size).to.equal(Math.min(each.replicas!, each.nodes.length))
          for (const member of members) expect(router.addressOf(member)).to.be.a('string')
          for (const shard of router.shardsOf(id)) expect(router.groupOf(shard)).to.equal(id)
          // Balance: shards of groups differ by one at most (S8).
          expect(Math.abs(router.shardsOf(id).length - map.shards / map.groups.length)).to.be.below(1)
        }
      }),
      { seed: newSeed() | 0, numRuns: 200 },
    )
  })

  it('is the same on every node: the order of the nodes and their addresses do not matter, everything else does', () => {
    const base = { nodes: nodesOf(4) }
    const { clusterId } = makeClusterMap(base)
    expect(makeClusterMap({ nodes: nodesOf(4).reverse() })).to.deep.equal(makeClusterMap(base))
    expect(makeClusterMap({ nodes: base.nodes.map(({ id }, at) => ({ id, address: `other:${at}` })) }).clusterId).to.equal(clusterId)
    for (const other of [{ name: 'other' }, { shards: 63 }, { groups: 3 }, { replicas: 2 }]) {
      expect(makeClusterMap({ ...base, ...other }).clusterId, JSON.stringify(other)).not.to.equal(clusterId)
    }
  })

  it('hazard E1.35: refuses options that make no sense', () => {
    const wrong: Partial<BootstrapOptions>[] = [
      { nodes: [] },
      { nodes: nodesOf(257) },
      { nodes: [...nodesOf(2), { id: 'n1', address: 'elsewhere' }] },
      { nodes: [...nodesOf(2), { id: 'n3', address: '127.0.0.1:7001' }] },
      { nodes: [{ id: '', address: 'x' }] },
      { nodes: [{ id: 'n1', address: '' }] },
      { nodes: [{ id: 'n1', address: 7 as unknown as string }] },
      { groups: 0 },
      { groups: 1.5 },
      { groups: 1025, shards: 2000 },
      { shards: 1, groups: 2 },
      { shards: 4097 },
      { replicas: 0 },
      { replicas: 8 },
      { shards: '64' as unknown as number },
    ]
    for (const each of wrong)
      expect(() => makeClusterMap({ nodes: nodesOf(3), ...each }), JSON.stringify(each).slice(0, 100)).to.throw(InvalidArgumentError)
    for (const id of ['', 'a b', 'a/b', 'a\n', 'x'.repeat(65), 'ü', 7 as unknown as string])
      expect(() => checkNodeId(id), String(id)).to.throw(InvalidArgumentError)
  })

  it('hazard E1.10: refuses encodings that are no map, and maps that cannot be', () => {
    const id = '0123456789abcdef'
    const nodes = [
      ['a', 'address of a'],
      ['b', 'address of b'],
    ]
    const good = [id, 8, nodes, [[1, ['a', 'b']]]]
    expect(decodeClusterMap(encode(good)).groups).to.deep.equal([{ id: 1, members: ['a', 'b'] }])
    const wrong: unknown[] = [
      null,
      {},
      [],
      'map',
      ['xyz', 8, nodes, [[1, ['a']]]],
      [id, 0, nodes, [[1, ['a']]]],
      [id, 2 ** 40, nodes, [[1, ['a']]]],
      [id, 8, [], [[1, ['a']]]],
      [id, 8, nodes, []],
      [id, 8, nodes, [[0, ['a']]]],
      [id, 8, nodes, [[1, []]]],
      [id, 8, nodes, [[1, ['stranger']]]],
      [id, 8, nodes, [[1, ['a', 'a']]]],
      [
        id,
        8,
        nodes,
        [
          [1, ['a']],
          [1, ['b']],
        ],
      ],
      [id, 8, [...nodes, ['a', 'elsewhere']], [[1, ['a']]]],
      [id, 8, [['a', 7]], [[1, ['a']]]],
      [id, 8, nodes, 'groups'],
    ]
    for (const each of wrong) expect(() => decodeClusterMap(encode(each)), JSON.stringify(each)).to.throw(CorruptionError)
    const bytes = encode(good)
    for (let length = 0; length < bytes.length; length++)
      expect(() => decodeClusterMap(bytes.subarray(0, length)), `${length} bytes`).to.throw(CorruptionError)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), (random) => {
        expect(() => decodeClusterMap(random)).to.throw(CorruptionError)
      }),
      { seed: newSeed() | 0, numRuns: 1000 },
    )
  })
})
