/**
 * Watchers: consumers of `kv.watch` in a simulation, each with a range, for the whole run. When its process dies or its node closes, a watcher goes on in the next life from the cursor that it
 * kept, as an application would. Every event is compared with the log.
 *
 * W1 the events of a shard come in the order of its revisions, each once, and are what the log says · W2 none is left out, over failovers, restarts and snapshots: what a cursor or a bookmark claims
 * was told was told · W3 the events of a transaction come one right after the other, and the last says so; no cursor is between them · W4 CompactedError comes only where the history is bounded, and its
 * cursor goes forward · W5 in the end every watcher is ready and has been told everything.
 */
import { toLatin1 } from '../../base/bytes.js'
import { ClosedError, CompactedError } from '../../base/errors.js'
import { metaGroup, shardOf } from '../../engine/command.js'
import type { KV, WatchEvent, WatchOptions } from '../../engine/kv.js'
import { decodeCursor } from '../../shard/watch-cursor.js'
import type { NodeInvariants } from './checker.js'
import type { KnownWrite } from './known-order.js'
import type { NodePlan, PlannedWatch } from './plan.js'
import { describeError, type SimulatedNode } from './simulated-node.js'
import { keyName, keyPrefix } from './workload.js'
import type { SimulatedProcess, World } from './world.js'

export interface WatchersEnvironment {
  readonly world: World
  readonly plan: NodePlan
  readonly checker: NodeInvariants
  home(client: number): SimulatedNode
  violation(invariant: string, message: string): void
}

/** A history of this size never loses anything in a run. */
export const unboundedHistoryBytes = 64 * 1024 * 1024

/** How often a watcher looks whether its node is there again. */
const lookUs = 100_000

class Watcher {
  readonly #environment: WatchersEnvironment
  readonly #plan: PlannedWatch
  readonly #name: string
  #cursor: string | undefined
  /** By shard: everything up to this revision was told. Null before the first start is known. */
  #told: Map<number, number> | null = null
  /** The transaction that is being told: what is left of it. */
  #current: { readonly shard: number; readonly revision: number; readonly left: Map<string, KnownWrite> } | null = null
  #process: SimulatedProcess | null = null
  #clusterId = ''

  constructor(environment: WatchersEnvironment, plan: PlannedWatch, number: number) {
    this.#environment = environment
    this.#plan = plan
    this.#name = `watcher ${number} of ${JSON.stringify(this.#range)}`
    environment.world.schedule(plan.atUs, () => this.#look())
  }

  /** Looks whether its node has a life in which it does not watch yet. */
  #look(): void {
    const { world, home } = this.#environment
    const { process, node, state } = home(this.#plan.client)
    if (process !== null && node !== null && state === 'up' && process !== this.#process) {
      this.#process = process
      this.#clusterId = node.status().clusterId
      process.complete(0, () => void this.#watch(process, node.kv))
    }
    world.schedule(lookUs, () => this.#look())
  }

  get #range(): Pick<WatchOptions, 'key' | 'prefix'> {
    const { of, key } = this.#plan
    if (of === 'key') return { key: keyName(key) }
    return of === 'tag' ? { prefix: keyPrefix(key) } : {}
  }

  #isInRange(key: string): boolean {
    const { key: one, prefix = '' } = this.#range
    return one === undefined ? key.startsWith(prefix as string) : key === one
  }

  #violation(invariant: string, message: string): void {
    this.#environment.violation(invariant, `${this.#name}: ${message}`)
  }

  async #watch(process: SimulatedProcess, kv: KV): Promise<void> {
    const { checker } = this.#environment
    // What was told of a transaction when the life before ended is told anew: the cursor is before it.
    this.#current = null
    const watch = kv.watch({ ...this.#range, bookmarks: this.#plan.bookmarks, ...(this.#cursor === undefined ? {} : { cursor: this.#cursor }) })
    try {
      await watch.ready
      if (this.#cursor === undefined) {
        this.#cursor = watch.cursor
        this.#told = this.#positionsOf(watch.cursor)
        checker.reach('watch-began')
      } else checker.reach('watch-resumed')
      for await (const event of watch) {
        if (!process.alive) return
        this.#onEvent(event)
        if (event.type === 'bookmark') this.#onCursor(event.cursor)
        else if (event.isLast) this.#onCursor(watch.cursor)
        if (this.#plan.pauseMs > 0) await new Promise<void>((resolve) => process.schedule(this.#plan.pauseMs, resolve))
      }
    } catch (error) {
      if (error instanceof CompactedError) this.#onGap(error)
      else if (!(error instanceof ClosedError)) this.#violation('W5', `ended by ${describeError(error)}`)
    }
    // In this life again when it was behind; else in the next one.
    if (process.alive && this.#environment.home(this.#plan.client).state === 'up' && this.#process === process) this.#process = null
  }

  #positionsOf(cursor: string): Map<number, number> {
    return decodeCursor(cursor, this.#clusterId, this.#environment.plan.shards)
  }

  /** Writes in the range that were not told, up to a revision, by shard. */
  #missing(shard: number, upTo = Number.POSITIVE_INFINITY): [key: string, write: KnownWrite][] {
    const { checker, plan } = this.#environment
    const after = this.#told?.get(shard)
    if (after === undefined) return []
    const missing: [string, KnownWrite][] = []
    for (const [group, { reference }] of checker.groups) {
      if (group === metaGroup) continue
      for (const [key, writes] of reference.writes) {
        if (!this.#isInRange(key) || shardOf(Buffer.from(key), plan.shards) !== shard) continue
        for (const write of writes) if (write.revision > after && write.revision <= upTo) missing.push([key, write])
      }
    }
    return missing
  }

  #onEvent(event: WatchEvent): void {
    const { plan, checker } = this.#environment
    if (event.type === 'bookmark') {
      if (this.#current !== null) this.#violation('W3', `a bookmark within the transaction ${this.#current.revision} of shard ${this.#current.shard}`)
      return checker.reach('watch-bookmark')
    }
    checker.reach('watch-event')
    const key = toLatin1(event.key)
    const shard = shardOf(event.key, plan.shards)
    const told = `${event.type} of ${key}, revision ${event.revision}, shard ${shard}`
    if (!this.#isInRange(key)) return this.#violation('W1', `${told} is not in its range`)
    if (this.#current === null) {
      const missing = this.#missing(shard)
      const revision = Math.min(...missing.map(([, write]) => write.revision))
      const left = new Map(missing.filter(([, write]) => write.revision === revision))
      this.#current = { shard, revision, left }
      if (event.revision !== revision) {
        const isOld = event.revision <= (this.#told?.get(shard) ?? 0)
        return this.#violation(isOld ? 'W1' : 'W2', `${told} comes after ${this.#told?.get(shard)}; the next one is ${revision}`)
      }
    }
    const { left } = this.#current
    const wanted = shard === this.#current.shard && event.revision === this.#current.revision ? left.get(key) : undefined
    if (wanted === undefined)
      return this.#violation('W3', `${told} comes within the transaction ${this.#current.revision} of shard ${this.#current.shard}`)
    const isRight = event.type === 'delete' ? wanted.version === 0 : event.version === wanted.version && toLatin1(event.value) === wanted.value
    if (!isRight) return this.#violation('W1', `${told} is not what the log says: ${JSON.stringify(wanted)}`)
    left.delete(key)
    if (event.isLast !== (left.size === 0))
      return this.#violation('W3', `${told} is ${event.isLast ? '' : 'not '}the last, and ${left.size} are left`)
    if (left.size > 0) return
    this.#told!.set(shard, event.revision)
    this.#current = null
  }

  /** All that this cursor stands behind was told. */
  #onCursor(cursor: string): void {
    this.#cursor = cursor
    for (const [shard, position] of this.#positionsOf(cursor)) {
      const [first] = this.#missing(shard, position)
      if (first !== undefined)
        return this.#violation('W2', `its cursor is at ${position} of shard ${shard}, and revision ${first[1].revision} was not told`)
      if (position < (this.#told?.get(shard) ?? 0)) return this.#violation('W2', `its cursor goes back to ${position} in shard ${shard}`)
      this.#told?.set(shard, position)
    }
  }

  #onGap({ oldest }: CompactedError): void {
    const { plan, checker } = this.#environment
    checker.reach('watch-compacted')
    if (plan.tuning.historyBytes >= unboundedHistoryBytes) this.#violation('W4', 'events are not kept any more although nothing bounds the history')
    this.#cursor = oldest
    this.#current = null
    for (const [shard, position] of this.#positionsOf(oldest)) {
      if (position < (this.#told?.get(shard) ?? 0)) this.#violation('W4', `the oldest cursor goes back to ${position} in shard ${shard}`)
      this.#told?.set(shard, position)
    }
  }

  /** What it was not told yet; null for nothing. */
  get behind(): string | null {
    if (this.#told === null) return `${this.#name} is not ready`
    for (const shard of this.#told.keys()) {
      const [first] = this.#missing(shard)
      if (first !== undefined) return `${this.#name} was not told of ${first[0]}, revision ${first[1].revision} of shard ${shard}`
    }
    return null
  }

  get client(): number {
    return this.#plan.client
  }
}

export class NodeWatchers {
  readonly #environment: WatchersEnvironment
  readonly #watchers: Watcher[]

  constructor(environment: WatchersEnvironment) {
    this.#environment = environment
    this.#watchers = environment.plan.watches.map((plan, number) => new Watcher(environment, plan, number))
  }

  /** What a watcher on one of these nodes was not told yet; null for nothing. */
  behind(nodes: readonly SimulatedNode[]): string | null {
    for (const watcher of this.#watchers) {
      const problem = nodes.includes(this.#environment.home(watcher.client)) ? watcher.behind : null
      if (problem !== null) return problem
    }
    return null
  }
}
