/**
 * openLocal(): the same store, locks and jobs as a node's, on one LevelDB, without replication: for tests, tools and small applications.
 *
 * Invariants: 1. what a caller sees differs from a cluster of one node in nothing but speed: the same client, protocol, service and state machine serve it; 2. a failed write is final: what is
 * under way and all that comes later is rejected, with the failure as its cause; 3. `close` releases every timer, file and thread, whatever failed before.
 */
import { EventEmitter } from 'node:events'
import { join } from 'node:path'
import { InvalidArgumentError, UnavailableError } from './base/errors.js'
import { keepProcessAlive, type Runtime, systemRuntime } from './base/runtime.js'
import { defaultLimits, type Limits } from './engine/command.js'
import { type OpenDatabase, openLevel } from './engine/database.js'
import { defaultTuning } from './engine/engine.js'
import { Expiry } from './engine/expiry.js'
import type { KV } from './engine/kv.js'
import { KvService } from './engine/kv-service.js'
import { LocalEngine, type LocalIdentity } from './engine/local-engine.js'
import { createLocks, type Locks, type LocksOptions, type NamedLock } from './lock/index.js'
import { type JobHandle, type JobOptions, type JobOutput, JobRunner } from './mapreduce/index.js'
import { makeClusterMap, Router } from './shard/cluster-map.js'
import { KvClient } from './shard/kv-client.js'
import type { MessengerFace } from './transport/messenger.js'

export interface LocalOptions {
  /** The data folder; made when it is not there. It is one process's, and no node's of a cluster. */
  readonly location: string
  /** How many shards a new folder gets: what is in one shard can be written atomically. Default 64, as a cluster has; 1 makes all of the store one shard. */
  readonly shards?: number
  /** Bounds of keys and values. */
  readonly limits?: Partial<Limits>
  /** Deadline of KV operations that name none. Default 10 000. */
  readonly requestTimeoutMs?: number
  /** Bytes of records that are kept in memory. Default 64 MiB. */
  readonly recordCacheBytes?: number
  /** Bytes of LevelDB's own cache. Default 64 MiB. */
  readonly cacheBytes?: number
  /** Lease and names of `locks`. */
  readonly locks?: Omit<LocksOptions, 'runtime'>
  /** The jobs that can be run here: modules by the names of their jobs. */
  readonly jobs?: Readonly<Record<string, URL>>
  /** Worker threads for tasks of jobs. Default: the processors of the machine. Jobs with `engine: 'inline'` need none. */
  readonly workers?: number
  /** Clock, chance and event loop; for simulations. */
  readonly runtime?: Runtime
  /** Opens a database; for simulations. */
  readonly openDatabase?: OpenDatabase
}

export interface LocalEvents {
  /** The store stopped serving: its disk failed. */
  failure: [unknown]
}

const nodeId = 'local'

/**
 * Opens a store without replication: the interface of a node's `kv`, with all its promises but that of more than one disk. A write resolves when it is fsynced; writes of the same
 * moment share one fsync.
 *
 * Rejects with InvalidArgumentError for wrong options, RefusedError `FOLDER_IN_USE` or `WRONG_FOLDER` (it is a cluster's, or has another number of shards), CorruptionError when it is damaged.
 *
 * @example
 * const store = await openLocal({ location: './data' })
 * await store.kv.put('greeting', 'hello')
 * await store.close()
 */
export async function openLocal(options: LocalOptions): Promise<LocalStore> {
  const { location, shards, runtime = systemRuntime, openDatabase = openLevel } = options
  if (typeof location !== 'string' || location === '') throw new InvalidArgumentError('Expected `location` to name the data folder')
  // Checks the number of shards too.
  const router = (identity: LocalIdentity) =>
    new Router(makeClusterMap({ nodes: [{ id: nodeId, address: nodeId }], groups: 1, shards: identity.shards, replicas: 1, name: identity.id }))
  if (shards !== undefined) router({ shards, id: '' })
  let store: LocalStore | null = null
  const { cacheBytes = defaultTuning.cacheBytes, recordCacheBytes = defaultTuning.recordCacheBytes } = options
  let earlyFailure: unknown = null
  const onFailure = (error: unknown) => {
    if (store === null) earlyFailure ??= error
    else store.fail(error)
  }
  const engine = await LocalEngine.open({ location, openDatabase, runtime, shards, cacheBytes, recordCacheBytes, onFailure })
  try {
    store = new LocalStore(options, engine, router(engine.identity), runtime)
    if (earlyFailure !== null) store.fail(earlyFailure)
    return store
  } catch (error) {
    await engine.close()
    throw error
  }
}

/** An open store without replication. Made by `openLocal`. */
export class LocalStore extends EventEmitter<LocalEvents> {
  /** The key-value store: what a node calls `kv`. */
  readonly kv: KV
  /** Locks on that store; `lock(name)` is the short way. */
  readonly locks: Locks
  readonly #engine: LocalEngine
  readonly #runner: JobRunner
  readonly #expiry: Expiry
  readonly #newClient: () => KvClient
  readonly #clients: KvClient[] = []
  readonly #letGo: () => void
  #failure: unknown = null
  #closing: Promise<void> | null = null

  /** @internal */
  constructor(options: LocalOptions, engine: LocalEngine, router: Router, runtime: Runtime) {
    super()
    const { location, jobs = {}, workers, requestTimeoutMs = 10_000 } = options
    const limits = { ...defaultLimits, ...options.limits }
    this.#engine = engine
    const service = new KvService({ host: engine, messenger: noMessenger, ownership: router, limits, runtime })
    this.#expiry = new Expiry({ runtime, source: engine, ownership: router, sessionTtlMs: defaultTuning.sessionTtlMs })
    const bounds = { requestTimeoutMs, maxWaitingOperations: 100_000, maxWaitingBytes: 64 * 1024 * 1024 }
    // Nothing gets lost on the way: no attempt is ever repeated.
    const attemptTimeoutMs = Number.POSITIVE_INFINITY
    this.#newClient = () => {
      const client = new KvClient({ ...bounds, attemptTimeoutMs, runtime, messenger: noMessenger, router, limits, local: { nodeId, service } })
      this.#clients.push(client)
      return client
    }
    this.kv = this.#newClient()
    this.locks = createLocks(this.kv, { ...options.locks, runtime })
    const peers = () => [{ id: nodeId, address: nodeId }]
    const threads = workers === undefined ? {} : { workers }
    this.#runner = new JobRunner({
      ...{ messenger: noMessenger, kv: this.kv, nodeId, peers, jobs, runtime, ...threads },
      temporaryFolder: join(location, 'temporary'),
    })
    this.#letGo = runtime === systemRuntime ? keepProcessAlive() : () => {}
  }

  /** A lock by its name, for all that use this store. See `Node.lock`. */
  lock(name: string): NamedLock {
    return this.locks.lock(name)
  }

  /** Runs a MapReduce job in this process: in worker threads, or with `engine: 'inline'` in this one. See `Node.mapReduce`. */
  mapReduce<Output extends JobOutput>(options: JobOptions<Output>): JobHandle<Output> {
    return this.#runner.run(options)
  }

  /** Why the store stopped serving; null while all is well. */
  get failure(): unknown {
    return this.#failure
  }

  /** @internal Another client, with a session of its own. */
  another(): KV {
    return this.#newClient()
  }

  /** @internal */
  fail(error: unknown): void {
    if (this.#failure !== null) return
    this.#failure = error
    this.#expiry.close()
    for (const client of this.#clients) client.close(error)
    // What a listener throws is the application's to see, and must not keep callers from their answers.
    queueMicrotask(() => this.emit('failure', error))
  }

  /** Closes the store; what waits rejects with ClosedError or OutcomeUnknownError. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    try {
      await this.#runner.close()
      await this.locks.close()
    } finally {
      this.#expiry.close()
      for (const client of this.#clients) client.close()
      await this.#engine.close().finally(() => this.#letGo())
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** There is nobody else to talk to. */
const noMessenger: MessengerFace = {
  address: nodeId,
  send: () => {},
  onMessage: () => {},
  request: (to) => Promise.reject(new UnavailableError(`${to} cannot be reached from a store without replication`)),
  handle: () => {},
  flush: () => {},
  open: async () => {},
  close: async () => {},
}
