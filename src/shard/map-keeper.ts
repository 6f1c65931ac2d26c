/**
 * MapKeeper: keeps this node's copy of the cluster map up to date, and changes the map.
 *
 * The map is the value of one key in the meta group. Until somebody has changed it for the first time there is no such value, and the first map, which all founders have in their
 * folders, is the map.
 *
 * Invariants:
 * 1. The copy only moves to later epochs of this node's own cluster, and is in the folder before anything is done by it that another node sees.
 * 2. A change is a compare-and-set on the latest map, repeated until it is in or there is nothing to change; so a change is a function that may run more than once.
 * 3. Nodes that hold the meta group take the map from their own replica; all others ask one node after the other, so that a node is found again after every other one has moved.
 */
import { ClosedError, ConditionFailedError, CorruptionError, OutcomeUnknownError, QuorateError } from '../base/errors.js'
import type { Cancel, Runtime } from '../base/runtime.js'
import type { ValueRecord } from '../engine/value-record.js'
import type { MessengerFace } from '../transport/messenger.js'
import type { Address } from '../transport/transport.js'
import { type ClusterMap, decodeClusterMap, encodeClusterMap, type Router } from './cluster-map.js'
import { decodeIntroduction, encodeIntroduction, type Introduction } from './introduction.js'
import type { KvClient } from './kv-client.js'

export const mapKey = Buffer.from('cluster-map')

/** This node, as others should know it. */
export interface Self {
  readonly nodeId: string
  readonly incarnation: number
  readonly address: Address
}

export interface MapKeeperOptions {
  readonly runtime: Runtime
  readonly messenger: MessengerFace
  readonly router: Router
  readonly client: KvClient
  /** Addresses to ask besides those of the map: seeds, founders. */
  readonly hints: readonly Address[]
  /** Null for a client. */
  readonly self: (() => Self) | null
  /** The map as this node's own replica of the meta group has it; undefined without one. */
  readonly local: () => ValueRecord | undefined
  /** Puts the map into the node's folder. */
  readonly store: (encoded: Uint8Array) => Promise<void>
  readonly refreshIntervalMs: number
  /** The folder does not take the map. */
  readonly onFailure?: (error: unknown) => void
}

const askTimeoutMs = 500
/** Between two attempts of a change that could not be made. */
const changePauseMs = 100
const nothing = new Uint8Array(0)
/** Refreshes asked for are at least so far apart. */
const leastRefreshMs = 50

export class MapKeeper {
  readonly #options: MapKeeperOptions
  #cancelTimer: Cancel | null = null
  #nextRefreshMs = 0
  #lastRefreshMs = Number.NEGATIVE_INFINITY
  #turn = 0
  #localRevision = 0
  #storing: Promise<void> = Promise.resolve()
  #closed = false

  constructor(options: MapKeeperOptions) {
    this.#options = options
  }

  /** Starts to refresh; tells every node that is known where this one is. */
  start(): void {
    for (const address of this.#addresses()) void this.#ask(address)
    this.#schedule(this.#options.refreshIntervalMs)
  }

  /** The map may be old: looks for a later one soon. */
  refreshSoon(): void {
    this.#schedule(leastRefreshMs)
  }

  #schedule(delayMs: number): void {
    if (this.#closed) return
    const { runtime } = this.#options
    const atMs = Math.max(runtime.nowMs() + delayMs, this.#lastRefreshMs + leastRefreshMs)
    if (this.#cancelTimer !== null && this.#nextRefreshMs <= atMs) return
    this.#cancelTimer?.()
    this.#nextRefreshMs = atMs
    this.#cancelTimer = runtime.schedule(atMs - runtime.nowMs(), () => {
      this.#cancelTimer = null
      this.#refresh()
      this.#schedule(this.#options.refreshIntervalMs * (0.75 + runtime.random() / 2))
    })
  }

  #refresh(): void {
    this.#lastRefreshMs = this.#options.runtime.nowMs()
    const local = this.#options.local()
    if (local !== undefined && local.revision !== this.#localRevision) {
      this.#localRevision = local.revision
      this.#take(local.value)
    }
    const addresses = this.#addresses()
    if (addresses.length > 0) void this.#ask(addresses[this.#turn++ % addresses.length]!)
  }

  /** Everywhere a node of the cluster may be, this one left out. */
  #addresses(): Address[] {
    const { router, hints, self, messenger } = this.#options
    const own = self?.().nodeId
    const all = new Set(router.map.nodes.flatMap(({ id, address }) => (id === own ? [] : [router.addressOf(id) ?? address, address])))
    for (const hint of hints) all.add(hint)
    all.delete(messenger.address)
    return [...all]
  }

  async #ask(address: Address): Promise<void> {
    try {
      const reply = await this.#options.messenger.request(address, 'introduce', this.#introduction(Number.MAX_SAFE_INTEGER), {
        timeoutMs: askTimeoutMs,
      })
      if (!this.#closed) this.#meet(decodeIntroduction(reply))
    } catch (error) {
      // Nobody there, or no node of ours: the next one will know.
      if (!(error instanceof QuorateError)) throw error
    }
  }

  /** Answers an introduction: learns where the sender is, and says who this node is. */
  answer(request: Uint8Array): Uint8Array {
    const theirs = decodeIntroduction(request)
    this.#meet(theirs)
    return this.#introduction(theirs.epoch)
  }

  #introduction(theirEpoch: number): Uint8Array {
    const { router, self } = this.#options
    const { epoch } = router.map
    const map = epoch > theirEpoch ? encodeClusterMap(router.map) : nothing
    return encodeIntroduction({ nodeId: '', incarnation: 0, address: '', ...self?.(), epoch, map })
  }

  #meet({ nodeId, incarnation, address, epoch, map }: Introduction): void {
    const { router, self } = this.#options
    if (map.length > 0) this.#take(map)
    else if (epoch > router.map.epoch) this.refreshSoon()
    if (nodeId !== self?.().nodeId && router.node(nodeId)?.incarnation === incarnation) router.heard(nodeId, address)
  }

  /** Takes a map that was found somewhere, if it is later than the own one. Throws CorruptionError when it is none. */
  #take(encoded: Uint8Array): void {
    const map = decodeClusterMap(encoded)
    if (!this.#options.router.update(map) || this.#closed) return
    const bytes = Buffer.from(encoded)
    this.#storing = this.#storing
      .then(() => this.#options.store(bytes))
      // The disk is sick: the node says so itself, and a map that is only in memory does no harm.
      .catch((error: unknown) => this.#options.onFailure?.(error))
  }

  /** The latest map, linearizably. Rejects like a read of the store. */
  async latest(options: { readonly timeoutMs?: number; readonly signal?: AbortSignal } = {}): Promise<ClusterMap> {
    return (await this.#read(options)).map
  }

  async #read(options: { readonly timeoutMs?: number; readonly signal?: AbortSignal }): Promise<{ map: ClusterMap; version: number }> {
    const { client, router } = this.#options
    const found = await client.readMeta(mapKey, options)
    if (found === undefined) return { map: router.map, version: 0 }
    const map = decodeClusterMap(found.value)
    // A cluster that was recovered from a lost quorum still holds the map of the one that it comes from.
    if (map.clusterId !== router.map.clusterId) return { map: router.map, version: found.version }
    this.#take(found.value)
    return { map, version: found.version }
  }

  /**
   * Changes the map: `change` gets the latest one and returns the next, or null when there is nothing to change. Tries until it is done or the signal ends it; resolves to the latest map
   * and whether it was changed here. What `change` throws is thrown.
   */
  async change(change: (map: ClusterMap) => ClusterMap | null, options: { readonly signal?: AbortSignal } = {}): Promise<ClusterMap> {
    for (;;) {
      options.signal?.throwIfAborted()
      if (this.#closed) throw new ClosedError('the node is closed')
      let next: ClusterMap | null = null
      try {
        const { map, version } = await this.#read(options)
        next = change(map)
        if (next === null) return map
        const encoded = encodeClusterMap(next)
        await this.#options.client.writeMeta(mapKey, encoded, { ...options, ifVersion: version })
        this.#take(encoded)
        await this.#storing
        return next
      } catch (error) {
        const isPassing =
          error instanceof ConditionFailedError || error instanceof OutcomeUnknownError || (error instanceof QuorateError && error.retryable)
        if (!isPassing || error instanceof CorruptionError) throw error
        await new Promise<void>((resolve) => this.#options.runtime.schedule(changePauseMs * (0.5 + this.#options.runtime.random()), resolve))
      }
    }
  }

  /** Stops refreshing; resolves when the last map is in the folder. */
  async close(): Promise<void> {
    this.#closed = true
    this.#cancelTimer?.()
    await this.#storing
  }
}
