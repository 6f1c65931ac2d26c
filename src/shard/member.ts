/**
 * Member: what makes a process one node of a cluster: its folder, its replicas, its copy of the map, and the client that reaches all groups. How it comes into the cluster:
 *
 * | folder | options | what happens |
 * |---|---|---|
 * | data | any | it rejoins as what its folder says; a new address is put into the map |
 * | empty | `bootstrap` without a list, or a list of this node alone | it founds a cluster |
 * | empty | `bootstrap` with a list | it founds together with the others of the list; when one of them knows an earlier folder of it, it joins as a new one instead |
 * | empty | `seeds` | it joins the cluster of the first seed that answers |
 *
 * Invariants: 1. nothing but `bootstrap` creates a cluster, and no timer ever does; 2. a node takes part in nothing before its folder says, durably, who it is; 3. a node whose folder was lost is never
 * again who it was: its replicas are new ones (hazards p5, D5.45); 4. one that was removed from the map stays out.
 */
import { ClosedError, CorruptionError, InvalidArgumentError, RefusedError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { type Limits, metaGroup, metaShard } from '../engine/command.js'
import { DataFolder } from '../engine/data-folder.js'
import type { OpenDatabase } from '../engine/database.js'
import { Engine, type EngineTuning, type GroupStatus } from '../engine/engine.js'
import { Expiry } from '../engine/expiry.js'
import { checkIdentity, type Identity, type ReplicaRecord } from '../engine/identity.js'
import { KvService } from '../engine/kv-service.js'
import { Messenger, type Refusal } from '../transport/messenger.js'
import type { Address, Transport } from '../transport/transport.js'
import { handOver, serveTransfers } from './administration.js'
import {
  type BootstrapOptions,
  type ClusterMap,
  checkNodeId,
  decodeClusterMap,
  encodeClusterMap,
  type MapNode,
  makeClusterMap,
  Router,
  withNode,
} from './cluster-map.js'
import { askFounders, Bindings } from './founding.js'
import { encodeIntroduction } from './introduction.js'
import { KvClient, type KvClientOptions } from './kv-client.js'
import { MapKeeper, mapKey, type Self } from './map-keeper.js'
import { Reconciler } from './reconciler.js'
import { describeCluster } from './seeds.js'

export interface MemberSettings {
  readonly location: string
  readonly id: string | undefined
  readonly transport: Transport
  readonly bootstrap: BootstrapOptions | undefined
  readonly seeds: readonly Address[]
  readonly runtime: Runtime
  readonly tuning: EngineTuning
  readonly limits: Limits
  readonly openDatabase: OpenDatabase
  readonly openTimeoutMs: number
  readonly client: Pick<KvClientOptions, 'requestTimeoutMs' | 'attemptTimeoutMs' | 'sessionTtlMs' | 'maxWaitingOperations' | 'maxWaitingBytes'>
  readonly onFailure: (error: unknown) => void
  readonly onStatus: (status: GroupStatus) => void
  readonly onRefused: (refusal: Refusal) => void
}

/**
 * `founding`: it waits for the other founders; `joining`: for its place in the map; `member`: it has one; `removed`: it has none any more, or another folder has taken its name.
 */
export type MemberState = 'founding' | 'joining' | 'member' | 'removed'

/** How often a node looks for a later map, and at its groups. */
export const refreshIntervalMs = 1000
/** How long a reconciler waits for the latest map. */
const mapTimeoutMs = 2000
/** How long a node that joins under a known id waits for the one of that id to show that it lives. */
const namesakeTimeoutMs = 500
const unknownCluster = new Uint8Array(8)

/** What a folder says, or what an empty one is made to say. */
interface Beginning {
  readonly identity: Identity
  readonly map: ClusterMap
}

export class Member {
  readonly nodeId: string
  readonly router: Router
  readonly messenger: Messenger
  readonly engine: Engine
  readonly client: KvClient
  readonly keeper: MapKeeper
  readonly #settings: MemberSettings
  readonly #folder: DataFolder
  readonly #reconciler: Reconciler
  readonly #expiry: Expiry
  readonly #founding = new AbortController()
  #identity: Identity
  #entrance: MemberState = 'member'
  /** The other founders have not all answered yet. */
  #isFounding: boolean
  #entering: Promise<void> = Promise.resolve()

  /** Opens the folder and everything on it. Rejects as `openNode` says; nothing stays open then. */
  static async open(settings: MemberSettings): Promise<Member> {
    const { location, id, bootstrap, transport, runtime, tuning, onFailure, onStatus, onRefused } = settings
    if (id !== undefined) checkNodeId(id)
    const listed = bootstrap?.nodes === undefined ? undefined : makeClusterMap({ ...bootstrap, nodes: bootstrap.nodes })
    const folder = await DataFolder.open(location, settings.openDatabase, tuning.cacheBytes)
    folder.onFailure = onFailure
    let messenger: Messenger | null = null
    let engine: Engine | null = null
    try {
      let beginning = readBeginning(location, folder, id, listed?.clusterId)
      if (beginning === undefined) checkEntrance(settings, listed)
      const nodeId = beginning?.identity.nodeId ?? id ?? `node-${Buffer.from(runtime.randomBytes(6)).toString('hex')}`
      messenger = new Messenger({ transport, runtime, clusterId: unknownCluster, nodeId, openMethods: ['describe', 'found'], onRefused })
      let isOpen = false
      if (beginning === undefined) {
        if (listed === undefined) {
          // Whoever joins asks first, and whoever is alone knows its address only once it listens.
          await messenger.open()
          isOpen = true
        }
        beginning =
          bootstrap === undefined
            ? await join(folder, messenger, nodeId, settings)
            : await found(
                folder,
                nodeId,
                listed ?? makeClusterMap({ ...bootstrap, nodes: [{ id: nodeId, address: messenger.address }] }),
                listed !== undefined,
                runtime,
              )
      }
      const { identity, map } = beginning
      if (folder.entrance()?.kind !== 'founding') messenger.setClusterId(Buffer.from(identity.clusterId, 'hex'))
      const router = new Router(map)
      engine = await Engine.open({ nodeId, folder, runtime, messenger, tuning, addressOf: (node) => router.addressOf(node), onFailure, onStatus })
      if (!isOpen) await messenger.open()
      // In this very turn, before anything can arrive.
      return new Member(settings, folder, messenger, engine, router, identity)
    } catch (error) {
      // Why it could not be opened says more than what goes wrong after that.
      for (const close of [() => engine?.close(), () => messenger?.close(), () => folder.close()]) await Promise.resolve(close()).catch(() => {})
      throw error
    }
  }

  private constructor(settings: MemberSettings, folder: DataFolder, messenger: Messenger, engine: Engine, router: Router, identity: Identity) {
    const { runtime, bootstrap, seeds, limits, tuning } = settings
    this.#settings = settings
    this.#folder = folder
    this.messenger = messenger
    this.engine = engine
    this.router = router
    this.#identity = identity
    this.nodeId = identity.nodeId
    const entrance = folder.entrance()
    this.#isFounding = entrance?.kind === 'founding'
    const service = new KvService({ host: engine.host, messenger, ownership: router, limits, runtime })
    this.#expiry = new Expiry({ runtime, source: engine.host, ownership: router, sessionTtlMs: tuning.sessionTtlMs })
    const local = { nodeId: this.nodeId, service }
    const onWrongGroup = () => this.keeper.refreshSoon()
    this.client = new KvClient({ ...settings.client, runtime, messenger, router, limits, local, onWrongGroup, isHeld: entrance?.kind === 'founding' })
    this.keeper = new MapKeeper({
      ...{ runtime, messenger, router, refreshIntervalMs },
      client: this.client,
      hints: [...(bootstrap?.nodes ?? []).map(({ address }) => address), ...seeds],
      self: () => this.#self,
      local: () => engine.host.replica(metaGroup)?.machine.read(metaShard, mapKey),
      store: (encoded) => folder.storeMap(encoded),
      onFailure: settings.onFailure,
    })
    this.#reconciler = new Reconciler({
      ...{ nodeId: this.nodeId, runtime, messenger, router, host: engine.host, lives: engine.lives },
      refreshMap: () => this.keeper.latest({ timeoutMs: mapTimeoutMs }),
      electionTimeoutMs: tuning.electionTimeoutMs,
      intervalMs: refreshIntervalMs,
    })
    const bindings = new Bindings({
      originId: identity.originId,
      // One who joined, or was recovered, does not know what founders promised one another.
      isFounder: () => this.#identity.incarnation === 0 && this.#identity.clusterId === this.#identity.originId,
      isFounding: () => this.#isFounding,
      binding: (founder) => folder.binding(founder),
      bind: (founder, incarnation) => folder.bind(founder, incarnation),
      map: () => encodeClusterMap(router.map),
      onStranger: (from, detail) => settings.onRefused({ kind: 'wrong-cluster', from, detail }),
    })
    const whenEntered = <T>(answer: () => T): T => {
      if (this.#entrance === 'founding') throw new UnavailableError(`node ${this.nodeId} waits for the other founders`)
      return answer()
    }
    serveTransfers(messenger, engine.host)
    messenger.handle('found', (from, request) => bindings.answer(from.address, request))
    messenger.handle('describe', () => whenEntered(() => encodeClusterMap(router.map)))
    messenger.handle('introduce', (_from, request) => whenEntered(() => this.keeper.answer(request)))
    if (entrance?.kind === 'founding') {
      this.#entrance = 'founding'
      this.#entering = this.#found(entrance.incarnation).catch((error: unknown) => {
        if (!this.#founding.signal.aborted) settings.onFailure(error)
      })
    } else this.#enter(entrance?.kind === 'joining')
  }

  /** This node, as others should know it. */
  get #self(): Self {
    const { nodeId, incarnation } = this.#identity
    // The list of founders may name an address that the transport does not know as its own: a proxy, a mapped port.
    const listed = this.#settings.bootstrap?.nodes?.find(({ id }) => id === nodeId)?.address
    return { nodeId, incarnation, address: listed ?? this.messenger.address }
  }

  get state(): MemberState {
    if (this.#entrance !== 'member') return this.#entrance
    return this.router.node(this.nodeId)?.incarnation === this.#identity.incarnation ? 'member' : 'removed'
  }

  /** Founds the cluster with the others, or joins it when one of them knows an earlier folder of this node. */
  async #found(incarnation: number): Promise<void> {
    const { runtime, bootstrap, onRefused } = this.#settings
    const { messenger, router, nodeId } = this
    const founders = bootstrap?.nodes ?? router.map.nodes
    const { originId } = this.#identity
    const known = await askFounders({
      ...{ runtime, messenger, originId, nodeId, incarnation },
      others: founders.filter(({ id }) => id !== nodeId),
      signal: this.#founding.signal,
      onRefused: (from, error) => onRefused({ kind: 'refused-by-peer', from, detail: error.message }),
    })
    this.#isFounding = false
    if (known === null) {
      const records = foundingReplicas(router.map, nodeId)
      await this.#folder.claim(this.#identity, encodeClusterMap(router.map), records)
      await this.engine.lives.found(records)
    } else {
      const map = decodeClusterMap(known)
      this.#identity = { nodeId, clusterId: map.clusterId, originId, incarnation }
      await this.#folder.claim(this.#identity, known, [], { kind: 'joining', incarnation })
      router.replace(map)
    }
    if (this.#founding.signal.aborted) return
    messenger.setClusterId(Buffer.from(this.#identity.clusterId, 'hex'))
    this.#enter(known !== null)
  }

  /** Takes part from now on. */
  #enter(isJoining: boolean): void {
    this.#entrance = isJoining ? 'joining' : 'member'
    this.keeper.start()
    this.#reconciler.start()
    this.client.release()
    this.#entering = this.#announce(isJoining).catch((error: unknown) => {
      if (!(error instanceof ClosedError)) this.#settings.onFailure(error)
    })
  }

  /** Puts this node, or its new address, into the map. A node that was removed from it stays out. */
  async #announce(isJoining: boolean): Promise<void> {
    const { nodeId, incarnation, address } = this.#self
    await this.keeper.change((map) => {
      const isKnown = map.nodes.find(({ id }) => id === nodeId)?.incarnation === incarnation
      return isKnown || isJoining ? withNode(map, { id: nodeId, address, incarnation }) : null
    })
    if (!isJoining) return
    await this.#folder.entered()
    this.#entrance = 'member'
  }

  /** A replica here changed its role, term or leader. */
  statusChanged(): void {
    this.#reconciler.wake()
  }

  /** Stops everything and closes the folder; runs every step, and rejects with the first failure. */
  async close(): Promise<void> {
    this.#founding.abort(new ClosedError('the node is closed'))
    this.#reconciler.close()
    this.#expiry.close()
    const { runtime, tuning } = this.#settings
    const steps = [
      () => handOver(this.engine.host, runtime, 2 * tuning.electionTimeoutMs),
      () => this.client.close(),
      () => this.keeper.close(),
      () => this.#entering,
      () => this.engine.close(),
      () => this.messenger.close(),
      () => this.#folder.close(),
    ]
    const failures: unknown[] = []
    for (const step of steps) {
      try {
        await step()
      } catch (error) {
        failures.push(error)
      }
    }
    if (failures.length > 0) throw failures[0]
  }
}

/** Who a folder is; undefined for an empty one. */
function readBeginning(location: string, folder: DataFolder, nodeId: string | undefined, clusterId: string | undefined): Beginning | undefined {
  const identity = folder.identity()
  if (identity === undefined) return undefined
  checkIdentity(location, identity, { nodeId, clusterId })
  const map = folder.map()
  if (map === undefined) throw new CorruptionError(`${location} holds no cluster map`)
  return { identity, map: decodeClusterMap(map) }
}

/** Throws unless the options say how a node with an empty folder comes into a cluster. */
function checkEntrance({ location, id, bootstrap, seeds }: MemberSettings, listed: ClusterMap | undefined): void {
  if (bootstrap === undefined && seeds.length === 0)
    throw new RefusedError('NO_DATA', `${location} holds no data: only \`bootstrap\` creates a cluster, and only \`seeds\` lead to one`)
  if (bootstrap !== undefined && seeds.length > 0)
    throw new InvalidArgumentError('Expected either `bootstrap` or `seeds` for an empty folder: a node founds a cluster or joins one')
  if (listed === undefined) return
  if (id === undefined) throw new InvalidArgumentError('Expected `id` to say which of the bootstrap nodes this is')
  if (!listed.nodes.some((node) => node.id === id)) throw new InvalidArgumentError(`Node ${id} is not among the bootstrap nodes`)
}

function foundingReplicas(map: ClusterMap, nodeId: string): ReplicaRecord[] {
  const own = map.groups.filter(({ members }) => members.includes(nodeId))
  return own.map(({ id: group, members }) => ({ group, life: 0, founders: members, isDoomed: false }))
}

/** Makes an empty folder that of a founder. */
async function found(folder: DataFolder, nodeId: string, founders: ClusterMap, isListed: boolean, runtime: Runtime): Promise<Beginning> {
  if (founders.nodes.length > 1) {
    const identity = { nodeId, clusterId: founders.clusterId, originId: founders.clusterId, incarnation: 0 }
    await folder.claim(identity, encodeClusterMap(founders), [], { kind: 'founding', incarnation: drawIncarnation(runtime) })
    return { identity, map: founders }
  }
  // Nobody else can tell this folder from an earlier one that is lost: the cluster's id must, since others may have joined that one.
  const clusterId = Buffer.from(runtime.randomBytes(8)).toString('hex')
  const map = { ...founders, clusterId }
  const identity = { nodeId, clusterId, originId: isListed ? founders.clusterId : clusterId, incarnation: 0 }
  await folder.claim(identity, encodeClusterMap(map), foundingReplicas(map, nodeId))
  return { identity, map }
}

/** Makes an empty folder that of a new node of the cluster that the seeds belong to. */
async function join(folder: DataFolder, messenger: Messenger, nodeId: string, { seeds, runtime, openTimeoutMs }: MemberSettings): Promise<Beginning> {
  const map = await describeCluster(messenger, seeds, runtime, openTimeoutMs)
  messenger.setClusterId(Buffer.from(map.clusterId, 'hex'))
  const namesake = map.nodes.find(({ id }) => id === nodeId)
  if (namesake !== undefined && namesake.address !== messenger.address) await checkGone(namesake, map, messenger)
  const incarnation = drawIncarnation(runtime)
  const identity = { nodeId, clusterId: map.clusterId, originId: map.clusterId, incarnation }
  await folder.claim(identity, encodeClusterMap(map), [], { kind: 'joining', incarnation })
  return { identity, map }
}

/** Throws RefusedError `ID_IN_USE` when the node that the map has under an id lives. */
async function checkGone({ id, address }: MapNode, { epoch }: ClusterMap, messenger: Messenger): Promise<void> {
  const question = encodeIntroduction({ nodeId: '', incarnation: 0, address: '', epoch, map: new Uint8Array(0) })
  try {
    await messenger.request(address, 'introduce', question, { timeoutMs: namesakeTimeoutMs })
  } catch (error) {
    // Who has our own id refuses to talk to us.
    if (error instanceof RefusedError && error.code === 'WRONG_NODE')
      throw new RefusedError('ID_IN_USE', `node ${id} of this cluster lives at ${address}`)
  }
}

function drawIncarnation(runtime: Runtime): number {
  return Buffer.from(runtime.randomBytes(4)).readUInt32BE() || 1
}
