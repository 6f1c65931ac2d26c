/**
 * ClusterMap: which nodes there are, which groups they form, and which group owns each shard. Fixed when the cluster is bootstrapped, for now; callers ask
 * through the router, so that a map that changes later changes nothing for them.
 *
 * Invariants: 1. every shard has exactly one owner; 2. the same bootstrap options give the same map and cluster id on every node.
 */
import { createHash } from 'node:crypto'
import { decode, encode } from '@msgpack/msgpack'
import { CorruptionError, InvalidArgumentError } from '../base/errors.js'
import type { Ownership } from '../engine/kv-service.js'
import type { NodeId } from '../raft/types.js'
import type { Address } from '../transport/transport.js'

export interface ClusterNode {
  readonly id: NodeId
  readonly address: Address
}

export interface ClusterGroup {
  /** 1 and up; 0 is kept for the meta group. */
  readonly id: number
  readonly members: readonly NodeId[]
}

export interface ClusterMap {
  /** Eight bytes in hex. */
  readonly clusterId: string
  readonly shards: number
  readonly nodes: readonly ClusterNode[]
  readonly groups: readonly ClusterGroup[]
}

/** What creates a cluster. Every node is given the same. */
export interface BootstrapOptions {
  /** All nodes of the new cluster. */
  readonly nodes: readonly ClusterNode[]
  /** How many Raft groups share the shards. Default: 2. */
  readonly groups?: number
  /** How many shards the key space is cut into. Default: 64. */
  readonly shards?: number
  /** How many nodes hold each group. Default: 3, or all nodes when there are fewer. */
  readonly replicas?: number
  /** Tells apart clusters of the same nodes. Default: `quorate`. */
  readonly name?: string
}

const maxGroups = 1024
const maxShards = 4096
const maxNodes = 256

/** Makes the map of a new cluster. Throws InvalidArgumentError. */
export function makeClusterMap(options: BootstrapOptions): ClusterMap {
  const { nodes, groups: groupCount = 2, shards = 64, replicas = 3, name = 'quorate' } = options
  wholeNumber('groups', groupCount, 1, maxGroups)
  wholeNumber('shards', shards, groupCount, maxShards)
  wholeNumber('replicas', replicas, 1, 7)
  if (nodes.length < 1 || nodes.length > maxNodes) throw new InvalidArgumentError(`Expected 1 to ${maxNodes} bootstrap nodes, got ${nodes.length}`)
  const sorted = [...nodes].sort((a, b) => (a.id < b.id ? -1 : 1)).map(({ id, address }) => ({ id: checkNodeId(id), address: checkAddress(address) }))
  if (new Set(sorted.map(({ id }) => id)).size < nodes.length) throw new InvalidArgumentError('Two bootstrap nodes have the same id')
  if (new Set(sorted.map(({ address }) => address)).size < nodes.length) throw new InvalidArgumentError('Two bootstrap nodes have the same address')
  const count = Math.min(replicas, sorted.length)
  const groups = Array.from({ length: groupCount }, (_, at) => ({
    id: at + 1,
    members: Array.from({ length: count }, (_, member) => sorted[(at + member) % sorted.length]!.id).sort(),
  }))
  const identity = JSON.stringify([name, shards, groups])
  const clusterId = createHash('sha256').update(identity).digest('hex').slice(0, 16)
  return { clusterId, shards, nodes: sorted, groups }
}

/** A node id: 1 to 64 characters of letters, digits, `.`, `_` and `-`. Returns it or throws InvalidArgumentError. */
export function checkNodeId(id: string): string {
  if (typeof id !== 'string' || !/^[\w.-]{1,64}$/.test(id)) {
    throw new InvalidArgumentError(`Expected a node id of 1 to 64 letters, digits, '.', '_' or '-', got ${JSON.stringify(id)}`)
  }
  return id
}

function checkAddress(address: Address): Address {
  if (typeof address !== 'string' || address === '') throw new InvalidArgumentError(`Expected an address, got ${JSON.stringify(address)}`)
  return address
}

function wholeNumber(name: string, value: number, least: number, most: number): void {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new InvalidArgumentError(`Expected \`${name}\` to be a whole number from ${least} to ${most}, got ${value}`)
  }
}

/** Answers where a shard is, from a map. */
export class Router implements Ownership {
  readonly map: ClusterMap
  readonly #shardsOf = new Map<number, number[]>()
  readonly #addresses: Map<NodeId, Address>
  readonly #members: Map<number, readonly NodeId[]>

  constructor(map: ClusterMap) {
    this.map = map
    this.#addresses = new Map(map.nodes.map(({ id, address }) => [id, address]))
    this.#members = new Map(map.groups.map(({ id, members }) => [id, members]))
    for (let shard = 0; shard < map.shards; shard++) {
      const group = this.groupOf(shard)
      const shards = this.#shardsOf.get(group)
      if (shards === undefined) this.#shardsOf.set(group, [shard])
      else shards.push(shard)
    }
  }

  get shards(): number {
    return this.map.shards
  }

  groupOf(shard: number): number {
    return this.map.groups[shard % this.map.groups.length]!.id
  }

  shardsOf(group: number): readonly number[] {
    return this.#shardsOf.get(group) ?? []
  }

  membersOf(group: number): readonly NodeId[] {
    return this.#members.get(group) ?? []
  }

  addressOf(id: NodeId): Address | undefined {
    return this.#addresses.get(id)
  }

  nodeAt(address: Address): NodeId | undefined {
    return this.map.nodes.find((node) => node.address === address)?.id
  }
}

export function encodeClusterMap(map: ClusterMap): Uint8Array {
  return encode([map.clusterId, map.shards, map.nodes.map(({ id, address }) => [id, address]), map.groups.map(({ id, members }) => [id, members])])
}

/** Decodes and verifies a map. Throws CorruptionError `MALFORMED`. */
export function decodeClusterMap(bytes: Uint8Array): ClusterMap {
  try {
    const [clusterId, shards, nodes, groups] = decode(bytes, { maxArrayLength: maxShards, maxStrLength: 4096, maxMapLength: 0 }) as [
      string,
      number,
      [string, string][],
      [number, string[]][],
    ]
    if (!/^[0-9a-f]{16}$/.test(clusterId)) throw new InvalidArgumentError('wrong cluster id')
    wholeNumber('groups', groups.length, 1, maxGroups)
    wholeNumber('shards', shards, groups.length, maxShards)
    const map = {
      clusterId,
      shards,
      nodes: nodes.map(([id, address]) => ({ id: checkNodeId(id), address: checkAddress(address) })),
      groups: groups.map(([id, members]) => ({ id, members: members.map(checkNodeId) })),
    }
    const known = new Set(map.nodes.map(({ id }) => id))
    if (known.size < map.nodes.length) throw new InvalidArgumentError('two nodes with the same id')
    if (new Set(map.groups.map(({ id }) => id)).size < map.groups.length) throw new InvalidArgumentError('two groups with the same id')
    for (const { id, members } of map.groups) {
      wholeNumber('group', id, 1, 0xfffe)
      const different = new Set(members)
      if (members.length === 0 || different.size < members.length || members.some((member) => !known.has(member))) {
        throw new InvalidArgumentError(`the members of group ${id} make no sense`)
      }
    }
    return map
  } catch (cause) {
    throw new CorruptionError('malformed cluster map', 'MALFORMED', { cause })
  }
}
