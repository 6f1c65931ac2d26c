/**
 * Engine: the storage half of a node: its two databases, its replicas, and the host that drives them.
 *
 * Invariants: 1. both databases are written with `sync` only (LevelDB closes a rotated log file without fsync, so a mixture could lose a middle range); they are
 * two, because small log records that live for seconds and a state that lives for years would be compacted together otherwise; 2. a folder is opened for exactly the node and cluster that it belongs to.
 */
import { CorruptionError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { RaftCore } from '../raft/core.js'
import type { NodeId, RaftStatus } from '../raft/types.js'
import type { TransferStatus } from '../snapshot/receiver.js'
import type { MessengerFace } from '../transport/messenger.js'
import type { Address } from '../transport/transport.js'
import type { DataFolder } from './data-folder.js'
import { Host } from './host.js'
import { memberId, nodeOf, type ReplicaRecord } from './identity.js'
import { KvMachine } from './kv-machine.js'
import { Lives } from './lives.js'
import { LogStore } from './log-store.js'
import { openLog } from './open-log.js'
import { decodeRecord } from './records.js'
import { Replica } from './replica.js'
import { Snapshots } from './snapshots.js'
import { deleteState } from './state-area.js'
import { StateStore } from './state-store.js'

/** Between two batches of deletions. */
const deletionPauseMs = 10

/** Timers and bounds of the consensus groups. */
export interface EngineTuning {
  /** A follower that hears no leader campaigns after this time to twice this time. */
  readonly electionTimeoutMs: number
  readonly heartbeatIntervalMs: number
  /** These bounds in bytes hold for each group while a node has up to eight; more groups share what eight may hold. */
  readonly maxInflightBytes: number
  readonly maxAppendBytes: number
  readonly maxTailBytes: number
  readonly maxUncommittedBytes: number
  /** Bytes of applied records that a node keeps in memory though its state database has them, over all groups. */
  readonly recordCacheBytes: number
  /** A group's state is flushed when so many bytes are newer than its database … */
  readonly flushBytes: number
  /** … or when its oldest change is so old. */
  readonly flushAfterMs: number
  readonly cacheBytes: number
  /** Bytes of the latest writes that each group keeps for watchers to catch up with; beyond that they get CompactedError. */
  readonly historyBytes: number
  /**
   * A client that has written nothing in a shard for so long is forgotten there, by the group's own time: a repeat of an earlier write of its is refused from then on. Longer than any write is
   * waited for. Default 10 minutes.
   */
  readonly sessionTtlMs: number
  /** A group's log is cut to half of this size when it is larger … */
  readonly compactLogBytes: number
  /** … or to half of so many entries when it has more. What live followers still need is kept up to twice as much. */
  readonly compactLogEntries: number
  /** Snapshots are sent in portions of about so many bytes … */
  readonly snapshotChunkBytes: number
  /** … and fetched at this rate, over all groups of a node. */
  readonly snapshotBytesPerSecond: number
}

export const defaultTuning: EngineTuning = {
  electionTimeoutMs: 250,
  heartbeatIntervalMs: 50,
  maxInflightBytes: 8 * 1024 * 1024,
  maxAppendBytes: 512 * 1024,
  maxTailBytes: 16 * 1024 * 1024,
  maxUncommittedBytes: 64 * 1024 * 1024,
  recordCacheBytes: 64 * 1024 * 1024,
  flushBytes: 4 * 1024 * 1024,
  flushAfterMs: 5000,
  cacheBytes: 64 * 1024 * 1024,
  historyBytes: 8 * 1024 * 1024,
  sessionTtlMs: 600_000,
  compactLogBytes: 64 * 1024 * 1024,
  compactLogEntries: 1_000_000,
  snapshotChunkBytes: 256 * 1024,
  snapshotBytesPerSecond: 32 * 1024 * 1024,
}

export interface EngineOptions {
  readonly nodeId: NodeId
  readonly folder: DataFolder
  readonly runtime: Runtime
  readonly messenger: MessengerFace
  readonly tuning: EngineTuning
  readonly addressOf: (nodeId: NodeId) => Address | undefined
  readonly onFailure: (error: unknown) => void
  readonly onStatus: (status: GroupStatus) => void
}

/** A replica on this node, and how well its group is replicated as far as this one knows. Nodes are named by their ids. */
export interface GroupStatus extends Omit<RaftStatus, 'id'> {
  readonly group: number
  /** The snapshot that this replica is fetching; null when it needs none. */
  readonly receiving: TransferStatus | null
  /** Nodes whose disks count for a majority. */
  readonly voters: readonly NodeId[]
  /** Nodes that get everything and do not count yet. */
  readonly learners: readonly NodeId[]
  /** How many of the voters the leader hears, itself included; null on other replicas, which do not know. */
  readonly live: number | null
}

export class Engine {
  readonly host: Host
  readonly snapshots: Snapshots
  /** Makes and destroys replicas while the node runs. */
  readonly lives: Lives
  readonly #options: EngineOptions
  readonly #log: LogStore
  readonly #stores = new Map<number, StateStore>()
  /** Replicas that are loaded and take part once all are. */
  #loaded: Replica[] | null = []
  #closing = false

  private constructor(options: EngineOptions) {
    this.#options = options
    this.#log = new LogStore(options.folder.log)
    const { runtime, messenger, tuning, addressOf, onFailure, onStatus } = options
    this.host = new Host({
      runtime,
      messenger,
      log: this.#log,
      addressOf,
      electionTimeoutMs: tuning.electionTimeoutMs,
      heartbeatIntervalMs: tuning.heartbeatIntervalMs,
      onFailure: (error, replica) => {
        if (replica !== null && error instanceof CorruptionError) void this.#markDamaged(replica.group, error)
        onFailure(error)
      },
      onStatus: (replica) => onStatus(this.#statusOf(replica)),
    })
    this.snapshots = new Snapshots({
      messenger,
      runtime,
      addressOf: (node) => this.host.addressOf(node),
      replicaOf: (group) => this.host.replica(group),
      chunkBytes: options.tuning.snapshotChunkBytes,
      maxBytesPerSecond: options.tuning.snapshotBytesPerSecond,
      onFailure: (group, error) => {
        const replica = this.host.replica(group)
        if (replica !== undefined) this.host.fail(replica, error)
      },
    })
    this.lives = new Lives({
      folder: options.folder,
      runtime,
      start: (record) => this.#start(record),
      stop: (group) => this.#stop(group),
      deleteData: (group) => this.#deleteData(group),
      onFailure,
    })
  }

  /** Loads every group from the folder and starts to take part. */
  static async open(options: EngineOptions): Promise<Engine> {
    const engine = new Engine(options)
    await engine.lives.open()
    const loaded = engine.#loaded!
    engine.#loaded = null
    for (const replica of loaded) engine.host.add(replica)
    return engine
  }

  /** A replica that has lost a part of what it stored is not started: it would not keep its promises. The others of the node go on. */
  async #start(record: ReplicaRecord): Promise<Replica | null> {
    const { group } = record
    let replica: Replica
    try {
      const damage = this.#log.damage(group)
      if (damage !== undefined) throw new CorruptionError(damage)
      replica = await this.#load(record)
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error
      const store = this.#stores.get(group)
      this.#stores.delete(group)
      await store?.close()
      await this.#markDamaged(group, error)
      this.#options.onFailure(error)
      return null
    }
    if (this.#loaded === null) this.host.add(replica)
    else this.#loaded.push(replica)
    return replica
  }

  /** For good: after a restart too it neither votes nor acknowledges, until it is replaced. */
  async #markDamaged(group: number, error: CorruptionError): Promise<void> {
    this.lives.markDamaged(group)
    try {
      await this.#log.markDamaged(group, error.message)
    } catch (cause) {
      this.#options.onFailure(cause)
    }
  }

  async #stop(group: number): Promise<void> {
    const replica = this.host.replica(group)
    if (replica !== undefined) await this.host.remove(replica)
    await this.snapshots.stop(group)
    const store = this.#stores.get(group)
    this.#stores.delete(group)
    await store?.close()
  }

  /** Deletes what a group has stored, in parts that nobody feels. */
  async #deleteData(group: number): Promise<void> {
    const { folder, runtime } = this.#options
    await this.#log.remove(group)
    const pause = () => new Promise<boolean>((resolve) => runtime.schedule(deletionPauseMs, () => resolve(!this.#closing)))
    await deleteState(folder.state, group, pause)
  }

  async #load({ group, life, founders }: ReplicaRecord): Promise<Replica> {
    const { nodeId, runtime, folder, onFailure } = this.#options
    const tuning = shareTuning(this.#options.tuning, this.#stores.size + 1)
    let machine: KvMachine | null = null
    let core: RaftCore | null = null
    let replica: Replica | null = null
    const store = new StateStore({
      database: folder.state,
      group,
      runtime,
      decode: decodeRecord,
      cacheBytes: () => tuning.recordCacheBytes / Math.max(1, this.#stores.size),
      flushBytes: tuning.flushBytes,
      flushAfterMs: tuning.flushAfterMs,
      durableIndex: () => core?.status().durableIndex ?? 0,
      beforeFreeze: () => machine?.saveShards(),
      heldBackBytes: () => machine?.history.recentBytes ?? 0,
      onFlushed: () => {
        if (replica !== null) this.host.considerCompaction(replica)
      },
      // A group that cannot be flushed would fill the memory.
      onFailure: (error) => (replica === null ? onFailure(error) : this.host.fail(replica, error)),
    })
    await store.open()
    machine = new KvMachine(store, { historyBytes: tuning.historyBytes })
    this.#stores.set(group, store)
    const { hardState, terms, lastIndex, base, configurations } = await openLog(this.#log, store, group, founders)
    core = new RaftCore({
      id: memberId(nodeId, life),
      configurations,
      hardState,
      terms,
      lastIndex,
      snapshotIndex: base.index,
      snapshotTerm: base.term,
      commitIndex: store.appliedIndex,
      nowMs: runtime.nowMs(),
      electionTimeoutMs: tuning.electionTimeoutMs,
      heartbeatIntervalMs: tuning.heartbeatIntervalMs,
      restAfterHeartbeats: 20,
      maxInflightBytes: tuning.maxInflightBytes,
      maxAppendBytes: tuning.maxAppendBytes,
      maxTailBytes: tuning.maxTailBytes,
      maxUncommittedBytes: tuning.maxUncommittedBytes,
      random: () => runtime.random(),
    })
    replica = new Replica({
      group,
      member: memberId(nodeId, life),
      life,
      core,
      store,
      machine,
      log: this.#log,
      neededAfter: () => this.snapshots.neededAfter(group),
      snapshotBytes: () => this.snapshots.sentBytes(group),
      onOffer: (offered, request) => this.snapshots.offered(offered, request),
      compaction: { maxBytes: tuning.compactLogBytes, maxEntries: tuning.compactLogEntries },
      runtime,
      onDirty: (dirty) => this.host.wake(dirty),
      onFailure: (failed, error) => this.host.fail(failed, error),
    })
    return replica
  }

  status(): GroupStatus[] {
    return this.host.replicas.map((replica) => this.#statusOf(replica))
  }

  #statusOf(replica: Replica): GroupStatus {
    const { core, group, appliedIndex, member } = replica
    const { id: _id, leader, ...status } = core.status()
    const { voters, learners } = core.configuration
    const heard = new Set(core.progress().flatMap(({ peer, isActive }) => (isActive ? [peer] : [])))
    const live = core.role === 'leader' ? voters.filter((voter) => voter === member || heard.has(voter)).length : null
    const members = { voters: voters.map(nodeOf), learners: learners.map(nodeOf), live }
    const receiving = this.snapshots.receiving(group) ?? null
    return { group, ...status, leader: leader === null ? null : nodeOf(leader), appliedIndex, ...members, receiving }
  }

  /** Stops the groups and writes what is applied. The folder stays open. */
  async close(): Promise<void> {
    this.#closing = true
    try {
      await this.lives.close()
      await this.snapshots.close()
      await this.host.stop()
    } finally {
      // Also when the log failed: a timer of a store must not come upon a closed folder.
      for (const store of this.#stores.values()) await store.close()
    }
  }
}

/** Up to so many groups have the bounds of the tuning each; more of them share what so many may hold, so that a node's memory is bounded too. */
const groupsWithFullBounds = 8
const leastBoundBytes = 128 * 1024

/** The bounds of the group that is the `count`-th of its node. */
export function shareTuning(tuning: EngineTuning, count: number): EngineTuning {
  const share = (bytes: number) => Math.min(bytes, Math.max(leastBoundBytes, (bytes * groupsWithFullBounds) / count))
  return {
    ...tuning,
    maxInflightBytes: share(tuning.maxInflightBytes),
    maxAppendBytes: share(tuning.maxAppendBytes),
    maxTailBytes: share(tuning.maxTailBytes),
    maxUncommittedBytes: share(tuning.maxUncommittedBytes),
    flushBytes: share(tuning.flushBytes),
    historyBytes: share(tuning.historyBytes),
    compactLogBytes: share(tuning.compactLogBytes),
  }
}
