import { encode } from '@msgpack/msgpack'
import { expect } from 'chai'
import fc from 'fast-check'
import { CorruptionError, InvalidArgumentError } from '../../src/base/errors.js'
import {
  type BootstrapOptions,
  checkNodeId,
  decodeClusterMap,
  encodeClusterMap,
  type FoundersOptions,
  makeClusterMap,
  Router,
  withNode,
  withoutNode,
} from '../../src/shard/cluster-map.js'
import { newSeed } from '../support/seed.js'

const nodesOf = (count: number) => Array.from({ length: count }, (_, at) => ({ id: `n${at + 1}`, address: `127.0.0.1:${7001 + at}` }))

const options: fc.Arbitrary<FoundersOptions> = fc
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
          if (id === 0) expect(router.shardsOf(id)).to.deep.equal([])
          else expect(Math.abs(router.shardsOf(id).length - map.shards / router.dataGroups.length)).to.be.below(1)
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
      ['a', 'address of a', 0],
      ['b', 'address of b', 7],
    ]
    const meta = [0, ['a']]
    const good = [id, 5, 8, 3, nodes, [meta, [1, ['a', 'b']]]]
    expect(decodeClusterMap(encode(good))).to.deep.equal({
      ...{ clusterId: id, epoch: 5, shards: 8, replicas: 3 },
      nodes: [
        { id: 'a', address: 'address of a', incarnation: 0 },
        { id: 'b', address: 'address of b', incarnation: 7 },
      ],
      groups: [
        { id: 0, members: ['a'] },
        { id: 1, members: ['a', 'b'] },
      ],
    })
    const wrong: unknown[] = [
      null,
      {},
      [],
      'map',
      ['xyz', 5, 8, 3, nodes, [meta, [1, ['a']]]],
      [id, 0, 8, 3, nodes, [meta, [1, ['a']]]],
      [id, 5, 0, 3, nodes, [meta, [1, ['a']]]],
      [id, 5, 2 ** 40, 3, nodes, [meta, [1, ['a']]]],
      [id, 5, 8, 0, nodes, [meta, [1, ['a']]]],
      [id, 5, 8, 3, [], [meta, [1, ['a']]]],
      [id, 5, 8, 3, nodes, []],
      [id, 5, 8, 3, nodes, [meta]],
      [id, 5, 8, 3, nodes, [[1, ['a']], meta]],
      [id, 5, 8, 3, nodes, [meta, [0, ['a']]]],
      [id, 5, 8, 3, nodes, [meta, [1, []]]],
      [id, 5, 8, 3, nodes, [meta, [1, ['stranger']]]],
      [id, 5, 8, 3, nodes, [meta, [1, ['a', 'a']]]],
      [id, 5, 8, 3, nodes, [meta, [1, ['a']], [1, ['b']]]],
      [id, 5, 8, 3, [...nodes, ['a', 'elsewhere', 0]], [meta, [1, ['a']]]],
      [id, 5, 8, 3, [['a', 7, 0]], [meta, [1, ['a']]]],
      [id, 5, 8, 3, [['a', 'x', -1]], [meta, [1, ['a']]]],
      [id, 5, 8, 3, nodes, 'groups'],
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

  it('a change of nodes keeps every group at its number of replicas, as far as there are nodes, and raises the epoch', () => {
    const step = fc.record({ node: fc.nat({ max: 9 }), kind: fc.constantFrom('add', 'remove', 'replace', 'move', 'wipe'), other: fc.nat({ max: 9 }) })
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 4 }), fc.array(step, { maxLength: 30 }), (replicas, count, steps) => {
        let map = makeClusterMap({ nodes: nodesOf(count), groups: 4, shards: 8, replicas })
        for (const { node, kind, other } of steps) {
          const id = `n${node}`
          const entry = map.nodes.find((each) => each.id === id)
          const before = map
          let next: typeof map | null = null
          if (kind === 'add' && entry === undefined) next = withNode(map, { id, address: `new address of ${id}`, incarnation: 9 })
          else if (kind === 'move' && entry !== undefined) next = withNode(map, { ...entry, address: `${entry.address}0` })
          else if (kind === 'wipe' && entry !== undefined) next = withNode(map, { ...entry, incarnation: entry.incarnation + 1 })
          else if (kind === 'remove' && map.nodes.length > 1) next = withoutNode(map, id, null)
          else if (kind === 'replace' && map.nodes.length > 1 && other !== node && map.nodes.some((each) => each.id === `n${other}`))
            next = withoutNode(map, id, `n${other}`)
          if (next === null) continue
          map = next
          expect(map.epoch).to.equal(before.epoch + 1)
          expect(decodeClusterMap(encodeClusterMap(map))).to.deep.equal(map)
          const router = new Router(before)
          expect(router.update(map)).to.equal(true)
          expect(router.update(before)).to.equal(false)
          expect(router.update({ ...map, epoch: map.epoch + 1, clusterId: '0'.repeat(16) })).to.equal(false)
          for (const group of map.groups) {
            expect(group.members.length).to.equal(Math.min(replicas, map.nodes.length))
            const stayed = before.groups
              .find((each) => each.id === group.id)!
              .members.filter((member) => map.nodes.some((each) => each.id === member))
            // Nothing moves that need not.
            expect(group.members).to.include.members(stayed)
          }
        }
      }),
      { seed: newSeed() | 0, numRuns: 200 },
    )
    const alone = makeClusterMap({ nodes: nodesOf(1) })
    expect(() => withoutNode(alone, 'n1', null)).to.throw(InvalidArgumentError)
    expect(() => withoutNode(alone, 'n1', 'n2')).to.throw(InvalidArgumentError)
    expect(withoutNode(makeClusterMap({ nodes: nodesOf(2) }), 'n3', null)).to.equal(null)
    expect(withNode(alone, { id: 'n1', address: '127.0.0.1:7001', incarnation: 0 })).to.equal(null)
  })

  it('a node that was heard elsewhere is asked there, until the map says where it is', () => {
    const map = makeClusterMap({ nodes: nodesOf(2) })
    const router = new Router(map)
    router.heard('n2', 'new')
    router.heard('stranger', 'nowhere')
    expect(router.addressOf('n2')).to.equal('new')
    expect(router.nodeAt('new')).to.equal('n2')
    expect(router.addressOf('stranger')).to.equal(undefined)
    // Another node's change says nothing about this one.
    router.update(withNode(map, { id: 'n3', address: 'third', incarnation: 1 })!)
    expect(router.addressOf('n2')).to.equal('new')
    router.update(withNode(router.map, { id: 'n2', address: 'newest', incarnation: 0 })!)
    expect(router.addressOf('n2')).to.equal('newest')
  })

  it('a node that the map has no more is still reached where it was heard last: its groups can let go of it only while they hear it', () => {
    const router = new Router(makeClusterMap({ nodes: nodesOf(3) }))
    router.heard('n2', '127.0.0.1:9000')
    expect(router.update(withoutNode(router.map, 'n2', null)!)).to.equal(true)
    expect(router.map.nodes.map(({ id }) => id)).to.deep.equal(['n1', 'n3'])
    expect(router.addressOf('n2')).to.equal('127.0.0.1:9000')
    expect(router.addressOf('n9')).to.equal(undefined)
    // Of another cluster's map nothing is left.
    router.replace(makeClusterMap({ nodes: nodesOf(1) }))
    expect(router.addressOf('n2')).to.equal(undefined)
  })
})
