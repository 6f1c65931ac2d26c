/**
 * openNode(): puts the layers together into one embedded node.
 *
 * Invariants: 1. a node with data rejoins by what its folder says; only `bootstrap` creates a cluster; 2. `close` releases every connection, timer, file and thread, whatever failed before.
 */
import { EventEmitter } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ClosedError, InvalidArgumentError } from './base/errors.js'
import { type Cancel, keepProcessAlive, type Runtime, systemRuntime } from './base/runtime.js'
import { defaultLimits, type Limits } from './engine/command.js'
import { type OpenDatabase, openLevel } from './engine/database.js'
import { defaultTuning, type EngineTuning, type GroupStatus } from './engine/engine.js'
import type { KV } from './engine/kv.js'
import { createLocks, type Locks, type LocksOptions, type NamedLock } from './lock/index.js'
import { type JobHandle, type JobOptions, type JobOutput, JobRunner } from './mapreduce/index.js'
import { Administration } from './shard/administration.js'
import { type BootstrapOptions, type ClusterNode, Router } from './shard/cluster-map.js'
import { KvClient } from './shard/kv-client.js'
import { MapKeeper } from './shard/map-keeper.js'
import { Member, type MemberSettings, type MemberState, refreshIntervalMs } from './shard/member.js'
import { describeCluster } from './shard/seeds.js'
import { Messenger, type Refusal } from './transport/messenger.js'
import type { Address, Transport } from './transport/transport.js'

/** Options that every node takes. */
interface CommonOptions {
  /** How this node reaches the others: `tcp({ listen: '127.0.0.1:7001' })`, or an adapter of your own. The node owns it from now on. */
  readonly transport: Transport
  /** Deadline of KV operations that name none. Default 10 000. */
  readonly requestTimeoutMs?: number
  /** A request to another node that gets no answer for so long is sent again, perhaps elsewhere. Default 1000; shorter where the transport loses frames. */
  readonly attemptTimeoutMs?: number
  /** Bounds of keys and values; the same on every node. */
  readonly limits?: Partial<Limits>
  /** Timers and bounds of the consensus groups. */
  readonly tuning?: Partial<EngineTuning>
  /** Lease and names of `node.locks`. */
  readonly locks?: Omit<LocksOptions, 'runtime'>
  /** Clock, chance and event loop; for simulations. */
  readonly runtime?: Runtime
}

/** A node with data. */
export interface MemberOptions extends CommonOptions {
  readonly role?: 'member'
  /** The data folder; made when it is not there. */
  readonly location: string
  /** This node's id; needed with a list in `bootstrap`. With data in the folder it must be the folder's own. Default: drawn at random, and kept in the folder. */
  readonly id?: string
  /**
   * Creates a cluster when the folder has no data, and does nothing when it has. `true`, or options without a list of nodes: of this node alone, which others join by their `seeds`. With
   * a list of nodes: of all of these; the same on each of them.
   */
  readonly bootstrap?: true | BootstrapOptions
  /** Addresses of nodes of the cluster to join when the folder has no data; one that answers is enough. With data, a hint where others may be found. */
  readonly seeds?: readonly Address[]
  /** Ends the search for a seed that answers. Default: `requestTimeoutMs`. */
  readonly openTimeoutMs?: number
  /** The jobs that this node can run tasks of: modules by the names of their jobs. Only names cross the wire, never code or paths. */
  readonly jobs?: Readonly<Record<string, URL>>
  /** Worker threads for tasks of jobs. Default: the processors of the machine. */
  readonly workers?: number
  /** Opens a database; for simulations. */
  readonly openDatabase?: OpenDatabase
}

/** A node without data: the same object, asking others. */
export interface ClientOptions extends CommonOptions {
  readonly role: 'client'
  /** Addresses of nodes of the cluster; one that answers is enough. */
  readonly seeds: readonly Address[]
  /** Ends the search for a seed that answers. Default: `requestTimeoutMs`. */
  readonly openTimeoutMs?: number
}

export type NodeOptions = MemberOptions | ClientOptions

/** What a node says of itself. */
export interface NodeStatus {
  readonly id: string
  readonly role: 'member' | 'client'
  /** What it is to the cluster: whether it has come in yet, or was removed. */
  readonly state: MemberState | 'client'
  readonly clusterId: string
  /** The replicas on this node, and how well their groups are replicated: `live` of `voters`, where `wanted` should be. */
  readonly groups: readonly (GroupStatus & { readonly wanted: number })[]
  /** Why this node, or a group of it, stopped serving; null while all is well. */
  readonly failure: unknown
  /** Log writes (fsyncs) since the node was opened. */
  readonly logWrites: number
}

export interface NodeEvents {
  /** A replica on this node changed its role, term or leader. */
  status: [GroupStatus]
  /** This node, or a group of it, stopped serving. */
  failure: [unknown]
  /** Something that does not belong here knocked, or this node was refused elsewhere: another cluster, another protocol, damaged or malformed bytes. */
  refused: [Refusal]
}

/**
 * Opens a node: with data in its folder it rejoins, with `bootstrap` it creates the cluster, as a client it asks the seeds.
 *
 * Rejects with InvalidArgumentError for wrong options, RefusedError `WRONG_NODE`, `WRONG_CLUSTER`, `WRONG_FOLDER` or `FOLDER_IN_USE` when the folder is not this
 * node's, CorruptionError when it is damaged, UnavailableError when no seed answers.
 *
 * @example
 * const node = await openNode({
 *   location: './data', id: 'a', transport: tcp({ listen: '127.0.0.1:7001' }),
 *   bootstrap: { nodes: [{ id: 'a', address: '127.0.0.1:7001' }] },
 * })
 * await node.kv.put('greeting', 'hello')
 */
export async function openNode(options: NodeOptions): Promise<Node> {
  return options.role === 'client' ? openClient(options) : openMember(options)
}

/** An open node keeps its process alive, unless its time is not the process's own. */
function keepAlive(runtime: Runtime): Cancel {
  return runtime === systemRuntime ? keepProcessAlive() : () => {}
}

async function openMember(options: MemberOptions): Promise<Node> {
  const { location, transport, runtime = systemRuntime, bootstrap, requestTimeoutMs = 10_000 } = options
  if (typeof location !== 'string' || location === '') throw new InvalidArgumentError('Expected `location` to name the data folder')
  let node: Node | null = null
  let member: Member | null = null
  let earlyFailure: unknown = null
  const letGo = keepAlive(runtime)
  try {
    member = await Member.open({
      ...{ location, transport, runtime, id: options.id, seeds: options.seeds ?? [] },
      bootstrap: bootstrap === true ? {} : bootstrap,
      tuning: { ...defaultTuning, ...options.tuning },
      limits: { ...defaultLimits, ...options.limits },
      openDatabase: options.openDatabase ?? openLevel,
      openTimeoutMs: options.openTimeoutMs ?? requestTimeoutMs,
      client: clientBounds(options),
      onFailure: (error) => {
        if (node === null) earlyFailure ??= error
        else node.fail(error)
      },
      onStatus: (status) => {
        member?.statusChanged()
        tell(() => node?.emit('status', status))
      },
      onRefused: (refusal) => tell(() => node?.emit('refused', refusal)),
    })
    const { nodeId, router, messenger, client } = member
    watchPeers(messenger, router, client)
    const { host } = member.engine
    messenger.onPeerState((address, state) => {
      const peer = router.nodeAt(address)
      if (state === 'lost' && peer !== undefined) host.peerLost(peer)
    })
    const { jobs = {}, workers } = options
    const tasks = { jobs, temporaryFolder: join(location, 'temporary'), ...(workers === undefined ? {} : { workers }) }
    const opened = member
    node = makeNode(
      { id: nodeId, role: 'member', router, messenger, client, keeper: member.keeper, member, closers: [() => opened.close(), letGo], tasks },
      options,
      runtime,
    )
    if (earlyFailure !== null) node.fail(earlyFailure)
    return node
  } catch (error) {
    await member?.close().catch(() => {})
    letGo()
    throw error
  }
}

function clientBounds(options: CommonOptions): MemberSettings['client'] {
  const { requestTimeoutMs = 10_000, attemptTimeoutMs = 1000, tuning } = options
  return { requestTimeoutMs, attemptTimeoutMs, sessionTtlMs: tuning?.sessionTtlMs, maxWaitingOperations: 100_000, maxWaitingBytes: 64 * 1024 * 1024 }
}

function watchPeers(messenger: Messenger, router: Router, client: KvClient): void {
  messenger.onPeerState((address, state) => {
    const peer = router.nodeAt(address)
    if (peer === undefined) return
    if (state === 'lost') client.onPeerLost(peer)
    else client.onPeerConnected(peer)
  })
}

async function openClient(options: ClientOptions): Promise<Node> {
  const { transport, seeds, runtime = systemRuntime, requestTimeoutMs = 10_000, openTimeoutMs = requestTimeoutMs } = options
  if (seeds.length === 0) throw new InvalidArgumentError('Expected `seeds` to name at least one node')
  const nodeId = `client-${Buffer.from(runtime.randomBytes(8)).toString('hex')}`
  const messenger = new Messenger({ transport, runtime, clusterId: new Uint8Array(8), nodeId })
  const closers: (() => Promise<void> | void)[] = [keepAlive(runtime), () => messenger.close()]
  try {
    await messenger.open()
    const map = await describeCluster(messenger, seeds, runtime, openTimeoutMs)
    messenger.setClusterId(Buffer.from(map.clusterId, 'hex'))
    const router = new Router(map)
    const limits = { ...defaultLimits, ...options.limits }
    const onWrongGroup = () => keeper.refreshSoon()
    const client = new KvClient({ ...clientBounds(options), runtime, messenger, router, limits, local: null, onWrongGroup })
    watchPeers(messenger, router, client)
    closers.unshift(() => client.close())
    const nothing = { self: null, local: () => undefined, store: async () => {} }
    const keeper = new MapKeeper({ runtime, messenger, router, client, hints: seeds, refreshIntervalMs, ...nothing })
    closers.unshift(() => keeper.close())
    keeper.start()
    const tasks = { jobs: {}, temporaryFolder: tmpdir(), workers: 0 }
    return makeNode({ id: nodeId, role: 'client', router, messenger, client, keeper, member: null, closers, tasks }, options, runtime)
  } catch (error) {
    // Why it could not be opened says more than what went wrong after that.
    await closeAll(closers).catch(() => {})
    throw error
  }
}

interface Foundation {
  readonly id: string
  readonly role: 'member' | 'client'
  readonly router: Router
  readonly messenger: Messenger
  readonly client: KvClient
  readonly keeper: MapKeeper
  /** Null for a client. */
  readonly member: Member | null
  readonly tasks: { readonly jobs: Readonly<Record<string, URL>>; readonly temporaryFolder: string; readonly workers?: number }
  /** In the order to close. */
  readonly closers: (() => Promise<void> | void)[]
}

interface NodeParts extends Foundation {
  readonly locks: Locks
  readonly runner: JobRunner
  readonly cluster: Administration
}

/** The nodes that may work for jobs, and where they are. */
function peersOf(router: Router): ClusterNode[] {
  return router.map.nodes.map(({ id, address }) => ({ id, address: router.addressOf(id) ?? address }))
}

/** Puts locks and jobs on top of the store, which is all that they know of it. */
function makeNode(foundation: Foundation, options: CommonOptions, runtime: Runtime): Node {
  const { id: nodeId, router, messenger, client, closers, tasks } = foundation
  const locks = createLocks(client, { ...options.locks, runtime })
  closers.unshift(() => locks.close())
  const runner = new JobRunner({ messenger, kv: client, nodeId, peers: () => peersOf(router), runtime, ...tasks })
  closers.unshift(() => runner.close())
  const { requestTimeoutMs = 10_000 } = options
  const cluster = new Administration({ runtime, messenger, router, keeper: foundation.keeper, requestTimeoutMs })
  return new Node({ ...foundation, locks, runner, cluster })
}

/** One embedded node. Made by `openNode`. */
export class Node extends EventEmitter<NodeEvents> {
  readonly id: string
  /** The cluster's key-value store. */
  readonly kv: KV
  /** Locks on that store; `lock(name)` is the short way. */
  readonly locks: Locks
  /** Who is in the cluster, and changes of that. */
  readonly cluster: Administration
  readonly #parts: NodeParts
  #failure: unknown = null
  #closing: Promise<void> | null = null

  /** @internal */
  constructor(parts: NodeParts) {
    super()
    this.#parts = parts
    this.id = parts.id
    this.kv = parts.client
    this.locks = parts.locks
    this.cluster = parts.cluster
  }

  /**
   * A distributed lock by its name. It is a lease: give `fence` to whatever must not happen twice, and `signal` to all that the callback waits for.
   *
   * @example
   * await node.lock('report').run(async ({ fence, signal }) => writeReport({ fence, signal }))
   */
  lock(name: string): NamedLock {
    return this.locks.lock(name)
  }

  /**
   * Runs a MapReduce job on the nodes of the cluster, coordinated from here.
   *
   * @throws InvalidArgumentError when an option is wrong; everything later comes with `result()`: JobFailedError, JobCancelledError, OutputExistsError.
   * @example
   * const { output } = await node.mapReduce({ job: 'word-count', input: fromKv({ prefix: 'doc/' }), output: toArray() }).result()
   */
  mapReduce<Output extends JobOutput>(options: JobOptions<Output>): JobHandle<Output> {
    return this.#parts.runner.run(options)
  }

  status(): NodeStatus {
    const { id, role, router, member } = this.#parts
    const { clusterId, replicas } = router.map
    const groups = (member?.engine.status() ?? []).map((status) => ({ ...status, wanted: replicas }))
    const state = member?.state ?? 'client'
    return { id, role, state, clusterId, groups, failure: this.#failure, logWrites: member?.engine.host.logWrites ?? 0 }
  }

  /** @internal */
  fail(error: unknown): void {
    this.#failure ??= error
    tell(() => this.emit('failure', error))
  }

  /** Closes the node; what waits rejects with ClosedError or OutcomeUnknownError. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= closeAll(this.#parts.closers)
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** Calls listeners of the application in the midst of our own work: what they throw is the application's to see, and must not stop a group. */
function tell(emit: () => void): void {
  try {
    emit()
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
  }
}

/** Runs every closer, and rejects with the first failure afterwards. */
async function closeAll(closers: readonly (() => Promise<void> | void)[]): Promise<void> {
  const failures: unknown[] = []
  for (const close of closers) {
    try {
      await close()
    } catch (error) {
      failures.push(error)
    }
  }
  if (failures.length > 0) throw new ClosedError('the node was closed, but not everything could be written', { cause: failures[0] })
}
