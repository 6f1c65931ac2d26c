/**
 * Identity: what a data folder says of itself: which cluster and which node it belongs to, the last cluster map that it saw, and which replicas live in it.
 *
 * Identity proper is written once, in both databases, before anything else. Map and replicas are in the log database, whose writes are all synced.
 *
 * Invariants: 1. a folder serves only the node and the cluster that it was made for; anything else is refused before a byte is changed; 2. a replica takes part only once its record
 * is durable, and its record goes last when it is destroyed: so its life is never given to another one.
 */
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError, RefusedError } from '../base/errors.js'
import type { NodeId } from '../raft/types.js'
import type { Database, DatabaseBatch } from './database.js'

const identityKey = Buffer.from([0x00])
const mapKey = Buffer.from([0x00, 0x01])
const replicaPrefix = [0x00, 0x02]
const entranceKey = Buffer.from([0x00, 0x03])
const bindingPrefix = [0x00, 0x04]
const identityVersion = 2
const replicaVersion = 1

export interface Identity {
  readonly nodeId: string
  readonly clusterId: string
  /** The cluster id that bootstrap options give; differs from `clusterId` once the cluster was recovered from a lost quorum. */
  readonly originId: string
  /** Tells this folder from earlier ones of the same node: 0 for the one a founder began with, else a random number. */
  readonly incarnation: number
}

/** A replica that lives in this folder. */
export interface ReplicaRecord {
  readonly group: number
  /** Tells this replica from earlier ones of the same node and group: 0 for a founder's, else a random number. */
  readonly life: number
  /** The members of the group when it was founded; empty for a replica that joined: it learns of the members by its log. */
  readonly founders: readonly NodeId[]
  /** It is being destroyed: it takes part in nothing, and what it stored goes. */
  readonly isDoomed: boolean
}

/** The name of a member in a group's configuration: its node, and its life unless it is a founder. */
export function memberId(nodeId: NodeId, life: number): NodeId {
  return life === 0 ? nodeId : `${nodeId}#${life}`
}

/** The node of a member. */
export function nodeOf(member: NodeId): NodeId {
  const at = member.indexOf('#')
  return at < 0 ? member : member.slice(0, at)
}

/** The life of a member. */
export function lifeOf(member: NodeId): number {
  const at = member.indexOf('#')
  return at < 0 ? 0 : Number(member.slice(at + 1))
}

/** Reads a database's identity; undefined in a new one. Throws CorruptionError. */
export function readIdentity(database: Database): Identity | undefined {
  const bytes = database.getSync(identityKey)
  if (bytes === undefined) return undefined
  const reader = new Reader(bytes)
  const version = reader.u8()
  if (version !== identityVersion) throw new CorruptionError(`the folder was written by another version of quorate (identity version ${version})`)
  const identity = { nodeId: reader.text(), clusterId: reader.text(), originId: reader.text(), incarnation: reader.u32() }
  reader.end()
  return identity
}

export function putIdentity(batch: DatabaseBatch, { nodeId, clusterId, originId, incarnation }: Identity): void {
  batch.put(identityKey, new Writer().u8(identityVersion).text(nodeId).text(clusterId).text(originId).u32(incarnation).finish())
}

/** The last cluster map that was put into a log database, encoded. */
export function readMap(log: Database): Uint8Array | undefined {
  return log.getSync(mapKey)
}

export function putMap(batch: DatabaseBatch, map: Uint8Array): void {
  batch.put(mapKey, map)
}

/** What a folder is still waiting for: the other founders' answers, or its place in the cluster map. */
export interface Entrance {
  readonly kind: 'founding' | 'joining'
  /** The incarnation that the folder has, should it join. */
  readonly incarnation: number
}

/** Undefined when the folder's node is, or was, in the map. */
export function readEntrance(log: Database): Entrance | undefined {
  const bytes = log.getSync(entranceKey)
  if (bytes === undefined) return undefined
  const reader = new Reader(bytes)
  return { kind: reader.u8() === 1 ? 'founding' : 'joining', incarnation: reader.u32() }
}

export function putEntrance(batch: DatabaseBatch, entrance: Entrance | null): void {
  if (entrance === null) batch.del(entranceKey)
  else
    batch.put(
      entranceKey,
      new Writer(5)
        .u8(entrance.kind === 'founding' ? 1 : 2)
        .u32(entrance.incarnation)
        .finish(),
    )
}

/** The number of the folder that another founder asked with. */
export function readBinding(log: Database, founder: NodeId): number | undefined {
  const bytes = log.getSync(bindingKey(founder))
  return bytes === undefined ? undefined : new Reader(bytes).u32()
}

export function putBinding(batch: DatabaseBatch, founder: NodeId, incarnation: number): void {
  batch.put(bindingKey(founder), new Writer(4).u32(incarnation).finish())
}

function bindingKey(founder: NodeId): Uint8Array {
  return Buffer.concat([Buffer.from(bindingPrefix), Buffer.from(founder)])
}

function replicaKey(group: number): Uint8Array {
  return Buffer.from([...replicaPrefix, group >> 8, group & 0xff])
}

/** All replicas of a folder, by its log database. */
export async function readReplicas(log: Database): Promise<ReplicaRecord[]> {
  const found: ReplicaRecord[] = []
  const iterator = log.iterate({ gte: Buffer.from(replicaPrefix), lt: Buffer.from([0x00, 0x03]) })
  try {
    for (;;) {
      const page = await iterator.nextv(1000)
      if (page.length === 0) return found
      for (const [key, value] of page) {
        const reader = new Reader(value)
        if (reader.u8() !== replicaVersion) throw new CorruptionError('the folder holds a replica of another version of quorate')
        const isDoomed = reader.u8() === 1
        const life = reader.u32()
        const founders: NodeId[] = []
        for (let left = reader.count(1); left > 0; left--) founders.push(reader.text())
        reader.end()
        found.push({ group: key[2]! * 256 + key[3]!, life, founders, isDoomed })
      }
    }
  } finally {
    await iterator.close()
  }
}

export function putReplica(batch: DatabaseBatch, { group, life, founders, isDoomed }: ReplicaRecord): void {
  const writer = new Writer()
    .u8(replicaVersion)
    .u8(isDoomed ? 1 : 0)
    .u32(life)
    .varint(founders.length)
  for (const founder of founders) writer.text(founder)
  batch.put(replicaKey(group), writer.finish())
}

export function deleteReplica(batch: DatabaseBatch, group: number): void {
  batch.del(replicaKey(group))
}

/** Throws RefusedError `WRONG_NODE` or `WRONG_CLUSTER` unless the folder belongs to this node of this cluster. */
export function checkIdentity(location: string, found: Identity, expected: { nodeId?: string | undefined; clusterId?: string | undefined }): void {
  if (expected.nodeId !== undefined && found.nodeId !== expected.nodeId) {
    throw new RefusedError('WRONG_NODE', `${location} belongs to node ${found.nodeId}, not to ${expected.nodeId}`)
  }
  if (expected.clusterId !== undefined && found.clusterId !== expected.clusterId && found.originId !== expected.clusterId) {
    throw new RefusedError('WRONG_CLUSTER', `${location} belongs to cluster ${found.clusterId}, not to ${expected.clusterId}`)
  }
}
