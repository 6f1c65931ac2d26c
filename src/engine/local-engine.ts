/**
 * LocalEngine: the storage half of a store without replication: one LevelDB, opened and checked, and the replica over it.
 *
 * Invariants: 1. every write is synced; 2. a folder is opened by what it was made for: one that a node of a cluster has made is refused, and the other way round (data-folder.ts); 3. the number of shards is
 * the folder's own, for good: it decides where every key lies.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError, RefusedError, storageFailure } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { localFolder } from './data-folder.js'
import type { Database, OpenDatabase } from './database.js'
import { decodeLink, FlushChain, isLink } from './flush-chain.js'
import { KvMachine } from './kv-machine.js'
import { LocalReplica } from './local-replica.js'
import { decodeRecord } from './records.js'
import type { ReplicaSource } from './served-replica.js'
import { StateStore } from './state-store.js'

/** The group that owns all shards. */
export const localGroup = 1

const identityKey = Buffer.from([0x00])
/** Unlike every version of a node's identity: neither takes the other's database for its own. */
const identityKind = 0x4c
const identityVersion = 1
const defaultShards = 64
const idBytes = 8

/** What a folder is, for good. */
export interface LocalIdentity {
  readonly shards: number
  /** Tells it from other folders: a cursor of one means nothing in another. */
  readonly id: string
}

export interface LocalEngineOptions {
  readonly location: string
  readonly openDatabase: OpenDatabase
  readonly runtime: Runtime
  /** For a new folder. Undefined: 64, or what the folder has. */
  readonly shards: number | undefined
  readonly cacheBytes: number
  readonly recordCacheBytes: number
  /** A write failed: what is on the disk is unknown from now on, and nothing is served any more. */
  readonly onFailure: (error: unknown) => void
}

export class LocalEngine implements ReplicaSource {
  readonly #options: LocalEngineOptions
  readonly #database: Database
  readonly #store: StateStore
  readonly #chain: FlushChain
  readonly #replica: LocalReplica
  #identity: LocalIdentity = { shards: 0, id: '' }

  static async open(options: LocalEngineOptions): Promise<LocalEngine> {
    const { location, openDatabase, cacheBytes } = options
    if (existsSync(join(location, 'log')) || existsSync(join(location, 'state')))
      throw new RefusedError('WRONG_FOLDER', `${location} belongs to a node of a cluster`)
    const database = await openDatabase(join(location, localFolder), { cacheBytes, writeBufferBytes: 16 * 1024 * 1024 })
    const engine = new LocalEngine(options, database)
    try {
      await engine.#open()
      return engine
    } catch (error) {
      await engine.close().catch(() => {})
      throw error
    }
  }

  private constructor(options: LocalEngineOptions, database: Database) {
    const { runtime, recordCacheBytes } = options
    this.#options = options
    this.#database = database
    const onFailure = (error: unknown) => {
      // Callers are told why before the replica gives up on them.
      options.onFailure(error)
      this.#replica.stop()
    }
    this.#store = new StateStore({
      database,
      runtime,
      group: localGroup,
      decode: (key, bytes) => (isLink(key) ? decodeLink() : decodeRecord(key, bytes)),
      cacheBytes: () => recordCacheBytes,
      // The replica flushes after each turn: these are never reached.
      flushBytes: Number.POSITIVE_INFINITY,
      flushAfterMs: 60_000,
      durableIndex: () => Number.POSITIVE_INFINITY,
      beforeFreeze: () => {
        this.#replica.machine.saveShards()
        this.#chain.extend()
      },
      onFlushed: () => this.#replica.flushed(),
      onFailure,
    })
    this.#chain = new FlushChain(this.#store)
    // Each turn is a flush: long blocks would be written again and again.
    const machine = new KvMachine(this.#store, { historyJoinBytes: 1024 })
    this.#replica = new LocalReplica({ group: localGroup, store: this.#store, machine, runtime, onFailure })
  }

  get identity(): LocalIdentity {
    return this.#identity
  }

  async #open(): Promise<void> {
    const { location, shards: wanted } = this.#options
    const found = readIdentity(location, this.#database)
    await this.#store.open()
    await this.#chain.verify()
    if (found === undefined && this.#store.appliedIndex > 0) throw new CorruptionError(`${location} has lost its identity`)
    if (found !== undefined && wanted !== undefined && wanted !== found.shards)
      throw new RefusedError('WRONG_FOLDER', `${location} has ${found.shards} shards, not ${wanted}`)
    this.#identity = found ?? { shards: wanted ?? defaultShards, id: Buffer.from(this.#options.runtime.randomBytes(idBytes)).toString('hex') }
    if (found === undefined) await this.#claim()
  }

  async #claim(): Promise<void> {
    const batch = this.#database.batch()
    const { shards, id } = this.#identity
    batch.put(identityKey, new Writer(16).u8(identityKind).u8(identityVersion).varint(shards).raw(Buffer.from(id, 'hex')).finish())
    try {
      await batch.write({ sync: true })
    } catch (error) {
      throw storageFailure(this.#options.location, error)
    }
  }

  get replicas(): readonly LocalReplica[] {
    return [this.#replica]
  }

  replica(group: number): LocalReplica | undefined {
    return group === localGroup ? this.#replica : undefined
  }

  /** Writes what is applied, and closes the database. */
  async close(): Promise<void> {
    this.#replica.stop()
    await this.#store.close()
    await this.#database.close()
  }
}

/** Undefined in a new folder. */
function readIdentity(location: string, database: Database): LocalIdentity | undefined {
  const bytes = database.getSync(identityKey)
  if (bytes === undefined) return undefined
  const reader = new Reader(bytes)
  const kind = reader.u8()
  if (kind !== identityKind) throw new RefusedError('WRONG_FOLDER', `${location} belongs to a node of a cluster`)
  const version = reader.u8()
  if (version !== identityVersion) throw new CorruptionError(`${location} was written by another version of quorate (version ${version})`)
  const identity = { shards: reader.varint(), id: Buffer.from(reader.raw(idBytes)).toString('hex') }
  reader.end()
  return identity
}
