/**
 * Recovery from a lost quorum: makes the data folder of one surviving node a cluster of its own. Offline, asked for by a person, never by a timer.
 *
 * Why one node and not several: what each survivor has of a group differs, and only an election with a majority can say what was committed; that majority is what is lost. So the person chooses
 * the node that has most (`inspectFolder` tells), and the others join it anew, with empty folders.
 *
 * Invariants: 1. the folder has a new cluster id, durably, before any group on it can be led by it alone: the nodes of the old cluster, should they come back, refuse it and are refused, so there are never two
 * leaders for one client; 2. nothing that the folder holds is deleted; 3. a recovery that was cut short is begun again by calling it again.
 */
import { InvalidArgumentError, RefusedError } from '../base/errors.js'
import { type Runtime, systemRuntime } from '../base/runtime.js'
import { DataFolder } from '../engine/data-folder.js'
import { type OpenDatabase, openLevel } from '../engine/database.js'
import { type Identity, memberId, type ReplicaRecord } from '../engine/identity.js'
import { type LoadedLog, LogStore } from '../engine/log-store.js'
import { openLog } from '../engine/open-log.js'
import { decodeRecord } from '../engine/records.js'
import { StateStore } from '../engine/state-store.js'
import { encodeConfiguration } from '../raft/message-codec.js'
import { EntryKind, type NodeId } from '../raft/types.js'
import { type ClusterMap, decodeClusterMap, encodeClusterMap } from './cluster-map.js'

export interface FolderOptions {
  /** The node's data folder. No process may have it open. */
  readonly location: string
  /** Opens a database; for simulations. */
  readonly openDatabase?: OpenDatabase
  readonly runtime?: Runtime
}

/** What a folder holds of a group. Of two nodes the one with the higher last term, and then the higher last index, has more. */
export interface FolderGroup {
  readonly group: number
  readonly lastTerm: number
  readonly lastIndex: number
  /** The nodes that vote in the group, as far as this folder knows. */
  readonly voters: readonly NodeId[]
}

export interface FolderInspection {
  readonly nodeId: NodeId
  readonly clusterId: string
  readonly groups: readonly FolderGroup[]
  /** Groups of the cluster that have no replica, or a damaged one, in this folder. */
  readonly missing: readonly number[]
}

export interface RecoveryOptions extends FolderOptions {
  /** Groups that this folder does not hold begin empty: what they held is lost. Default false: then they make the recovery fail before anything is changed. */
  readonly acceptLostGroups?: boolean
}

export interface Recovery extends FolderInspection {
  /** The id of the new cluster. */
  readonly newClusterId: string
}

/**
 * Reads what a folder holds, to compare the survivors. Changes nothing that matters.
 *
 * @throws RefusedError `NO_DATA` for an empty folder, `FOLDER_IN_USE`. CorruptionError when it is damaged as a whole.
 */
export function inspectFolder(options: FolderOptions): Promise<FolderInspection> {
  return withFolder(options, async (folder, runtime) => (await examine(folder, runtime)).inspection)
}

/**
 * Makes one survivor of a cluster that has lost its majority for good the only node of a new cluster. **What may be lost:** writes that were acknowledged, when this node had not received them yet: at most those that a majority
 * without it had. **What may appear:** writes that were under way and never acknowledged. Open the node afterwards as ever; give the others empty folders and let them join by `seeds`.
 *
 * @throws RefusedError `NO_DATA`, `FOLDER_IN_USE`, `GROUPS_LOST` when the folder lacks groups of the cluster and `acceptLostGroups` is not set. CorruptionError.
 * @example
 * const { newClusterId } = await recoverFromQuorumLoss({ location: './data' })
 */
export function recoverFromQuorumLoss(options: RecoveryOptions): Promise<Recovery> {
  return withFolder(options, (folder, runtime) => recover(folder, runtime, options.acceptLostGroups ?? false))
}

async function withFolder<Result>(options: FolderOptions, run: (folder: DataFolder, runtime: Runtime) => Promise<Result>): Promise<Result> {
  const { location, openDatabase = openLevel, runtime = systemRuntime } = options
  if (typeof location !== 'string' || location === '') throw new InvalidArgumentError('Expected `location` to name the data folder')
  const folder = await DataFolder.open(location, openDatabase, 8 * 1024 * 1024)
  try {
    return await run(folder, runtime)
  } finally {
    await folder.close()
  }
}

interface Examination {
  readonly identity: Identity
  readonly map: ClusterMap
  readonly log: LogStore
  readonly whole: readonly { readonly record: ReplicaRecord; readonly loaded: LoadedLog }[]
  readonly inspection: FolderInspection
}

async function examine(folder: DataFolder, runtime: Runtime): Promise<Examination> {
  const identity = folder.identity()
  const encodedMap = folder.map()
  if (identity === undefined || encodedMap === undefined) throw new RefusedError('NO_DATA', `${folder.location} holds no data of a cluster`)
  const map = decodeClusterMap(encodedMap)
  const log = new LogStore(folder.log)
  const whole: { record: ReplicaRecord; loaded: LoadedLog }[] = []
  for (const record of await folder.replicas()) {
    if (record.isDoomed || log.damage(record.group) !== undefined) continue
    const loaded = await load(folder, runtime, log, record)
    if (loaded !== null) whole.push({ record, loaded })
  }
  const groups = whole.map(({ record: { group }, loaded: { terms, lastIndex, base, configurations } }): FolderGroup => {
    const voters = configurations.at(-1)!.configuration.voters
    return { group, lastTerm: terms.at(-1)?.term ?? base.term, lastIndex, voters }
  })
  const here = new Set(groups.map(({ group }) => group))
  const missing = map.groups.map(({ id }) => id).filter((id) => !here.has(id))
  return { identity, map, log, whole, inspection: { nodeId: identity.nodeId, clusterId: identity.clusterId, groups, missing } }
}

/** A replica's log; null when it, or the state beside it, is damaged. */
async function load(folder: DataFolder, runtime: Runtime, log: LogStore, { group, founders }: ReplicaRecord): Promise<LoadedLog | null> {
  const store = new StateStore({
    ...{ database: folder.state, group, runtime, decode: decodeRecord },
    ...{ cacheBytes: () => 0, flushBytes: 1, flushAfterMs: 1, durableIndex: () => 0, beforeFreeze: () => {}, onFailure: () => {} },
  })
  await store.open()
  try {
    return await openLog(log, store, group, founders)
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'CORRUPTION') throw error
    return null
  } finally {
    await store.close()
  }
}

async function recover(folder: DataFolder, runtime: Runtime, acceptLostGroups: boolean): Promise<Recovery> {
  const { identity, map, log, whole, inspection } = await examine(folder, runtime)
  const { missing } = inspection
  if (missing.length > 0 && !acceptLostGroups)
    throw new RefusedError('GROUPS_LOST', `${folder.location} holds nothing of the groups ${missing.join(', ')}: what they held would be lost`)
  const { nodeId } = identity
  const newClusterId = Buffer.from(runtime.randomBytes(8)).toString('hex')
  const address = map.nodes.find(({ id }) => id === nodeId)?.address ?? 'unknown'
  const incarnation = drawNumber(runtime)
  const groups = map.groups.map(({ id }) => ({ id, members: [nodeId] }))
  const nextMap: ClusterMap = { ...map, clusterId: newClusterId, epoch: map.epoch + 1, nodes: [{ id: nodeId, address, incarnation }], groups }
  const begun = missing.map((group): ReplicaRecord => {
    const life = drawNumber(runtime)
    return { group, life, founders: [memberId(nodeId, life)], isDoomed: false }
  })
  for (const { group } of begun) await log.remove(group)
  // Before any group can be led from here alone, the folder is another cluster's.
  await folder.claim({ ...identity, clusterId: newClusterId, incarnation }, encodeClusterMap(nextMap), begun)
  await log.write(
    whole.map(({ record: { group, life }, loaded: { hardState, terms, lastIndex, base } }) => {
      const term = Math.max(hardState.term, terms.at(-1)?.term ?? base.term) + 1
      const configuration = { voters: [memberId(nodeId, life)], learners: [], votersOutgoing: [] }
      const entry = { term, index: lastIndex + 1, kind: EntryKind.configuration, data: encodeConfiguration(configuration) }
      return { group, work: { sequence: 1, hardState: { term, vote: null }, reset: null, truncateFrom: null, entries: [entry] } }
    }),
  )
  return { ...inspection, newClusterId }
}

function drawNumber(runtime: Runtime): number {
  return Buffer.from(runtime.randomBytes(4)).readUInt32BE() || 1
}
