/**
 * DataFolder: the two databases of a node's folder, opened and checked, and what the folder says of itself.
 *
 * Invariants: 1. the log's half is written before the state's, so a state without a log beside it is a folder that lost a part, and is refused; 2. of a folder's replicas each has one
 * record, written with `sync` before the replica takes part.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { RefusedError } from '../base/errors.js'
import type { NodeId } from '../raft/types.js'
import type { Database, DatabaseBatch, OpenDatabase } from './database.js'
import {
  checkIdentity,
  deleteReplica,
  type Entrance,
  type Identity,
  putBinding,
  putEntrance,
  putIdentity,
  putMap,
  putReplica,
  type ReplicaRecord,
  readBinding,
  readEntrance,
  readIdentity,
  readMap,
  readReplicas,
} from './identity.js'

/** The database of a store without replication, in a data folder of its own (local-engine.ts). A node's are `log` and `state`. */
export const localFolder = 'local'

export class DataFolder {
  readonly location: string
  readonly log: Database
  readonly state: Database

  private constructor(location: string, log: Database, state: Database) {
    this.location = location
    this.log = log
    this.state = state
  }

  static async open(location: string, openDatabase: OpenDatabase, cacheBytes: number): Promise<DataFolder> {
    if (existsSync(join(location, localFolder))) throw new RefusedError('WRONG_FOLDER', `${location} belongs to a store without replication`)
    const log = await openDatabase(join(location, 'log'), { cacheBytes: 8 * 1024 * 1024, writeBufferBytes: 16 * 1024 * 1024 })
    try {
      const state = await openDatabase(join(location, 'state'), { cacheBytes, writeBufferBytes: 16 * 1024 * 1024 })
      return new DataFolder(location, log, state)
    } catch (error) {
      await log.close()
      throw error
    }
  }

  /** Whom the folder belongs to; undefined when it is new. Refuses halves that do not belong together. */
  identity(): Identity | undefined {
    const log = readIdentity(this.log)
    const state = readIdentity(this.state)
    if (log !== undefined && state !== undefined) checkIdentity(join(this.location, 'state'), state, { nodeId: log.nodeId, clusterId: log.originId })
    // The state database is written second: without the log's identity there must be no state.
    if (log === undefined && state !== undefined)
      throw new RefusedError('WRONG_FOLDER', `${this.location}/log is missing beside ${this.location}/state`)
    return log
  }

  /** Told when a write fails: what is on disk is unknown from then on, and the node must not go on. */
  onFailure: (error: unknown) => void = () => {}

  async #write(batch: DatabaseBatch): Promise<void> {
    try {
      await batch.write({ sync: true })
    } catch (error) {
      this.onFailure(error)
      throw error
    }
  }

  /** Makes the folder that of a node, with the cluster map and the replicas that it begins with. `entrance`: what it has to wait for before it takes part. */
  async claim(identity: Identity, map: Uint8Array, replicas: readonly ReplicaRecord[], entrance: Entrance | null = null): Promise<void> {
    const batch = this.log.batch()
    putIdentity(batch, identity)
    putMap(batch, map)
    putEntrance(batch, entrance)
    for (const replica of replicas) putReplica(batch, replica)
    await this.#write(batch)
    const stateBatch = this.state.batch()
    putIdentity(stateBatch, identity)
    await this.#write(stateBatch)
  }

  /** What the node still has to wait for; undefined when it takes part. */
  entrance(): Entrance | undefined {
    return readEntrance(this.log)
  }

  /** The node is in the cluster map. */
  async entered(): Promise<void> {
    const batch = this.log.batch()
    putEntrance(batch, null)
    await this.#write(batch)
  }

  binding(founder: NodeId): number | undefined {
    return readBinding(this.log, founder)
  }

  async bind(founder: NodeId, incarnation: number): Promise<void> {
    const batch = this.log.batch()
    putBinding(batch, founder, incarnation)
    await this.#write(batch)
  }

  /** The last cluster map that was stored, encoded. */
  map(): Uint8Array | undefined {
    return readMap(this.log)
  }

  async storeMap(map: Uint8Array): Promise<void> {
    const batch = this.log.batch()
    putMap(batch, map)
    await this.#write(batch)
  }

  replicas(): Promise<ReplicaRecord[]> {
    return readReplicas(this.log)
  }

  async storeReplica(record: ReplicaRecord): Promise<void> {
    const batch = this.log.batch()
    putReplica(batch, record)
    await this.#write(batch)
  }

  async forgetReplica(group: number): Promise<void> {
    const batch = this.log.batch()
    deleteReplica(batch, group)
    await this.#write(batch)
  }

  async close(): Promise<void> {
    await Promise.all([this.log.close(), this.state.close()])
  }
}
