/**
 * Identity: what a data folder says of itself: which cluster and which node it belongs to. Written once, in both databases, before anything else.
 *
 * Invariant: a folder serves only the node and the cluster that it was made for; anything else is refused before a byte is changed.
 */
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError, RefusedError } from '../base/errors.js'
import type { Database } from './database.js'

const identityKey = Buffer.from([0x00])
const identityVersion = 1

export interface Identity {
  readonly nodeId: string
  readonly clusterId: string
  /** The encoded cluster map. */
  readonly map: Uint8Array
}

/** Reads a database's identity; undefined in a new one. Throws CorruptionError. */
export function readIdentity(database: Database): Identity | undefined {
  const bytes = database.getSync(identityKey)
  if (bytes === undefined) return undefined
  const reader = new Reader(bytes)
  const version = reader.u8()
  if (version !== identityVersion) throw new CorruptionError(`the folder was written by another version of quorate (identity version ${version})`)
  const identity = { nodeId: reader.text(), clusterId: reader.text(), map: reader.bytes() }
  reader.end()
  return identity
}

export async function writeIdentity(database: Database, { nodeId, clusterId, map }: Identity): Promise<void> {
  const batch = database.batch()
  batch.put(identityKey, new Writer().u8(identityVersion).text(nodeId).text(clusterId).bytes(map).finish())
  await batch.write({ sync: true })
}

/** Throws RefusedError `WRONG_NODE` or `WRONG_CLUSTER` unless the folder belongs to this node of this cluster. */
export function checkIdentity(location: string, found: Identity, expected: { nodeId?: string | undefined; clusterId?: string | undefined }): void {
  if (expected.nodeId !== undefined && found.nodeId !== expected.nodeId) {
    throw new RefusedError('WRONG_NODE', `${location} belongs to node ${found.nodeId}, not to ${expected.nodeId}`)
  }
  if (expected.clusterId !== undefined && found.clusterId !== expected.clusterId) {
    throw new RefusedError('WRONG_CLUSTER', `${location} belongs to cluster ${found.clusterId}, not to ${expected.clusterId}`)
  }
}
