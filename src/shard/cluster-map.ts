/**
 * ClusterMap: which nodes there are, which nodes each group wants as its members, and which group owns each shard.
 *
 * The map is one value in the meta group (group 0), changed by compare-and-set; every node and client holds a copy, which may be old. What a group's members really are
 * stands in its own Raft configuration, and its leader moves that towards the map (reconciler.ts).
 *
 * Invariants: 1. every shard has exactly one owner; 2. the same founders and options give the same first map and cluster id on every node; 3. the epoch rises with each
 * change, and a copy is only ever replaced by one of a later epoch; 4. a node's id is never given to another folder without another incarnation.
 */
import { createHash } from 'node:crypto'
import { decode, encode } from '@msgpack/msgpack'
import { CorruptionError, InvalidArgumentError } from '../base/errors.js'
import { metaGroup, metaShard } from '../engine/command.js'
import type { Ownership } from '../engine/kv-service.js'
import type { NodeId } from '../raft/types.js'
import type { Address } from '../transport/transport.js'

export interface ClusterNode {
  readonly id: NodeId
  readonly address: Address
}

/** A node as the map knows it. */
export interface MapNode extends ClusterNode {
  /** Which folder is this node: 0 for the one that a founder began with, else a random number drawn when the folder was made. */
  readonly incarnation: number
}

export interface ClusterGroup {
  /** 0 is the meta group; the others own shards. */
  readonly id: number
  /** The nodes that should hold the group; its leader brings its members there. */
  readonly members: readonly NodeId[]
}

export interface ClusterMap {
  /** Eight bytes in hex. */
  readonly clusterId: string
  /** Rises with each change. */
  readonly epoch: number
  readonly shards: number
  /** How many nodes are to hold each group, as far as there are so many. */
  readonly replicas: number
  readonly nodes: readonly MapNode[]
  readonly groups: readonly ClusterGroup[]
}

/** What creates a cluster. Every founder is given the same. */
export interface BootstrapOptions {
  /**
   * The founders. Without this list the node that is given these options founds the cluster alone, and others join it by their `seeds`. With it every founder gets the same list, and the cluster
   * begins when all of them have met.
   */
  readonly nodes?: readonly ClusterNode[]
  /** How many Raft groups share the shards. Default: 2. */
  readonly groups?: number
  /** How many shards the key space is cut into. Default: 64. */
  readonly shards?: number
  /** How many nodes hold each group; with fewer nodes all of them do, and more are added as they join. Default: 3. */
  readonly replicas?: number
  /** Tells apart clusters of the same nodes. Default: `quorate`. */
  readonly name?: string
}

/** Bootstrap options with a list of founders. */
export type FoundersOptions = BootstrapOptions & { readonly nodes: readonly ClusterNode[] }

const maxGroups = 1024
const maxShards = 4096
const maxNodes = 256
const maxReplicas = 7

/** Makes the first map of a new cluster. Throws InvalidArgumentError. */
export function makeClusterMap(options: FoundersOptions): ClusterMap {
  const { nodes, groups: groupCount = 2, shards = 64, replicas = 3, name = 'quorate' } = options
  wholeNumber('groups', groupCount, 1, maxGroups)
  wholeNumber('shards', shards, groupCount, maxShards)
  wholeNumber('replicas', replicas, 1, maxReplicas)
  if (nodes.length < 1 || nodes.length > maxNodes) throw new InvalidArgumentError(`Expected 1 to ${maxNodes} bootstrap nodes, got ${nodes.length}`)
  const sorted = [...nodes]
    .sort((a, b) => (a.id < b.id ? -1 : 1))
    .map(({ id, address }) => ({ id: checkNodeId(id), address: checkAddress(address), incarnation: 0 }))
  if (new Set(sorted.map(({ id }) => id)).size < nodes.length) throw new InvalidArgumentError('Two bootstrap nodes have the same id')
  if (new Set(sorted.map(({ address }) => address)).size < nodes.length) throw new InvalidArgumentError('Two bootstrap nodes have the same address')
  const count = Math.min(replicas, sorted.length)
  const membersFrom = (first: number) => Array.from({ length: count }, (_, member) => sorted[(first + member) % sorted.length]!.id).sort()
  const groups = [
    { id: metaGroup, members: membersFrom(0) },
    ...Array.from({ length: groupCount }, (_, at) => ({ id: at + 1, members: membersFrom(at) })),
  ]
  const identity = JSON.stringify([name, shards, replicas, groups])
  const clusterId = createHash('sha256').update(identity).digest('hex').slice(0, 16)
  return { clusterId, epoch: 1, shards, replicas, nodes: sorted, groups }
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

/**
 * The map with this node in it: a new one gets a place in every group that has fewer members than wanted; one whose folder was lost keeps its places under its new incarnation; one
 * that moved gets its new address. Null when nothing is to be changed. Throws InvalidArgumentError when there are too many nodes.
 */
export function withNode(map: ClusterMap, node: MapNode): ClusterMap | null {
  const known = map.nodes.find(({ id }) => id === node.id)
  if (known !== undefined && known.address === node.address && known.incarnation === node.incarnation) return null
  if (known === undefined && map.nodes.length >= maxNodes) throw new InvalidArgumentError(`The cluster has ${maxNodes} nodes already`)
  const nodes = [...map.nodes.filter(({ id }) => id !== node.id), node].sort((a, b) => (a.id < b.id ? -1 : 1))
  return fillPlaces({ ...map, epoch: map.epoch + 1, nodes })
}

/**
 * The map without a node; its places go to `replacement`, or to the nodes with the fewest places. Null when it is not in the map.
 * Throws InvalidArgumentError when it is the last one, or the replacement is not in the map.
 */
export function withoutNode(map: ClusterMap, id: NodeId, replacement: NodeId | null): ClusterMap | null {
  if (replacement !== null && (replacement === id || !map.nodes.some((node) => node.id === replacement))) {
    throw new InvalidArgumentError(`Node ${replacement} cannot take the places of ${id}: it is not another node of the cluster`)
  }
  if (!map.nodes.some((node) => node.id === id)) return null
  if (map.nodes.length === 1) throw new InvalidArgumentError(`Node ${id} is the last one of the cluster`)
  const groups = map.groups.map(({ id: group, members }) => {
    if (!members.includes(id)) return { id: group, members }
    const left = members.filter((member) => member !== id)
    return { id: group, members: replacement === null || left.includes(replacement) ? left : [...left, replacement].sort() }
  })
  return fillPlaces({ ...map, epoch: map.epoch + 1, nodes: map.nodes.filter((node) => node.id !== id), groups })
}

/** Gives groups with fewer members than wanted more of them: first the nodes that have the fewest places. */
function fillPlaces(map: ClusterMap): ClusterMap {
  const places = new Map(map.nodes.map(({ id }) => [id, 0]))
  for (const { members } of map.groups) for (const member of members) places.set(member, places.get(member)! + 1)
  const groups = map.groups.map(({ id, members }) => {
    const filled = [...members]
    while (filled.length < Math.min(map.replicas, map.nodes.length)) {
      const [next] = map.nodes.filter((node) => !filled.includes(node.id)).sort((a, b) => places.get(a.id)! - places.get(b.id)!)
      filled.push(next!.id)
      places.set(next!.id, places.get(next!.id)! + 1)
    }
    return { id, members: filled.sort() }
  })
  return { ...map, groups }
}

/** Answers where a shard is and how a node is reached, from the latest map that was seen. */
export class Router implements Ownership {
  #map!: ClusterMap
  #dataGroups: number[] = []
  readonly #shardsOf = new Map<number, number[]>()
  #nodes = new Map<NodeId, MapNode>()
  #members = new Map<number, readonly NodeId[]>()
  /** Where nodes were heard that the map has elsewhere: they have moved, and the map does not say so yet. */
  readonly #heardAt = new Map<NodeId, Address>()
  /** Where nodes were that the map has no more: a group can let go of them only while it reaches them. */
  readonly #former = new Map<NodeId, Address>()
  readonly #listeners: (() => void)[] = []

  constructor(map: ClusterMap) {
    this.#take(map)
  }

  get map(): ClusterMap {
    return this.#map
  }

  /** Takes a map of a later epoch of the same cluster; returns whether it was one. */
  update(map: ClusterMap): boolean {
    if (map.clusterId !== this.#map.clusterId || map.epoch <= this.#map.epoch) return false
    const before = this.#nodes
    this.#take(map)
    for (const id of [...this.#heardAt.keys()]) if (before.get(id)?.address !== this.#nodes.get(id)?.address) this.#heardAt.delete(id)
    for (const listener of this.#listeners) listener()
    return true
  }

  /** Takes the map of another cluster: this node has none of its own yet. */
  replace(map: ClusterMap): void {
    this.#heardAt.clear()
    this.#take(map)
    this.#former.clear()
    for (const listener of this.#listeners) listener()
  }

  /** Called after each update. */
  onUpdate(listener: () => void): void {
    this.#listeners.push(listener)
  }

  #take(map: ClusterMap): void {
    this.#map = map
    this.#dataGroups = map.groups.map(({ id }) => id).filter((id) => id !== metaGroup)
    const before = this.#nodes
    this.#nodes = new Map(map.nodes.map((node) => [node.id, node]))
    for (const { id, address } of before.values()) if (!this.#nodes.has(id)) this.#former.set(id, this.#heardAt.get(id) ?? address)
    this.#members = new Map(map.groups.map(({ id, members }) => [id, members]))
    this.#shardsOf.clear()
    for (let shard = 0; shard < map.shards; shard++) {
      const group = this.groupOf(shard)
      const shards = this.#shardsOf.get(group)
      if (shards === undefined) this.#shardsOf.set(group, [shard])
      else shards.push(shard)
    }
  }

  /** A node of the map was heard at this address. */
  heard(id: NodeId, address: Address): void {
    const node = this.#nodes.get(id)
    if (node === undefined) return
    if (node.address === address) this.#heardAt.delete(id)
    else this.#heardAt.set(id, address)
  }

  get shards(): number {
    return this.#map.shards
  }

  /** The groups that own shards. */
  get dataGroups(): readonly number[] {
    return this.#dataGroups
  }

  groupOf(shard: number): number {
    return shard === metaShard ? metaGroup : this.#dataGroups[shard % this.#dataGroups.length]!
  }

  /** The shards of the key space that a group owns; the meta group owns none of them. */
  shardsOf(group: number): readonly number[] {
    return this.#shardsOf.get(group) ?? []
  }

  /** The nodes that should hold a group. */
  membersOf(group: number): readonly NodeId[] {
    return this.#members.get(group) ?? []
  }

  node(id: NodeId): MapNode | undefined {
    return this.#nodes.get(id)
  }

  addressOf(id: NodeId): Address | undefined {
    return this.#heardAt.get(id) ?? this.#nodes.get(id)?.address ?? this.#former.get(id)
  }

  nodeAt(address: Address): NodeId | undefined {
    return this.#map.nodes.find(({ id }) => this.addressOf(id) === address)?.id
  }
}

export function encodeClusterMap(map: ClusterMap): Uint8Array {
  const nodes = map.nodes.map(({ id, address, incarnation }) => [id, address, incarnation])
  const groups = map.groups.map(({ id, members }) => [id, members])
  return encode([map.clusterId, map.epoch, map.shards, map.replicas, nodes, groups])
}

/** Decodes and verifies a map. Throws CorruptionError `MALFORMED`. */
export function decodeClusterMap(bytes: Uint8Array): ClusterMap {
  try {
    const [clusterId, epoch, shards, replicas, nodes, groups] = decode(bytes, { maxArrayLength: maxShards, maxStrLength: 4096, maxMapLength: 0 }) as [
      string,
      number,
      number,
      number,
      [string, string, number][],
      [number, string[]][],
    ]
    if (!/^[0-9a-f]{16}$/.test(clusterId)) throw new InvalidArgumentError('wrong cluster id')
    wholeNumber('epoch', epoch, 1, Number.MAX_SAFE_INTEGER)
    wholeNumber('groups', groups.length, 2, maxGroups + 1)
    wholeNumber('shards', shards, groups.length - 1, maxShards)
    wholeNumber('replicas', replicas, 1, maxReplicas)
    wholeNumber('nodes', nodes.length, 1, maxNodes)
    const map = {
      clusterId,
      epoch,
      shards,
      replicas,
      nodes: nodes.map(([id, address, incarnation]) => {
        wholeNumber('incarnation', incarnation, 0, 0xffffffff)
        return { id: checkNodeId(id), address: checkAddress(address), incarnation }
      }),
      groups: groups.map(([id, members]) => ({ id, members: members.map(checkNodeId) })),
    }
    const known = new Set(map.nodes.map(({ id }) => id))
    if (known.size < map.nodes.length) throw new InvalidArgumentError('two nodes with the same id')
    if (new Set(map.groups.map(({ id }) => id)).size < map.groups.length) throw new InvalidArgumentError('two groups with the same id')
    if (map.groups[0]!.id !== metaGroup) throw new InvalidArgumentError('no meta group')
    for (const { id, members } of map.groups) {
      wholeNumber('group', id, 0, 0xfffe)
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
