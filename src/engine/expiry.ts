/**
 * Expiry: what a leader does for time: it looks at its clock often enough for the clock to go on, finds what has outlived its time, and proposes that it goes.
 *
 * Invariants:
 * 1. It only proposes: what is named is gone when the state machines say so, all of them alike (expiry-entry.ts).
 * 2. One search a replica at a time, in slices, with one bounded entry under way: a million things that expire at once hold up nobody.
 * 3. Where nothing was written since a search found nothing, nothing is searched for.
 */
import { fromLatin1 } from '../base/bytes.js'
import type { Cancel, Runtime } from '../base/runtime.js'
import { metaGroup, metaShard, stampEntry } from './command.js'
import { type ExpiryItem, ExpiryKind, encodeExpiryEntry, isOver } from './expiry-entry.js'
import type { ServedReplica } from './served-replica.js'
import type { SessionRecord } from './session-record.js'

/** How often the clock is looked at: well within what a gap counts for (log-clock.ts). */
const lookIntervalMs = 500
const maxItemsPerEntry = 256
const recordsPerSlice = 256
/** Sessions are searched for at least so many times in a session's time to live: they may outlive it by this part. */
const searchesPerTtl = 8

export interface ExpiryOptions {
  readonly runtime: Runtime
  readonly source: { readonly replicas: readonly ServedReplica[] }
  readonly ownership: { shardsOf(group: number): readonly number[] }
  /** A session that was silent for so long is forgotten. */
  readonly sessionTtlMs: number
}

/** What is known while one replica leads, in one term. */
interface Leadership {
  readonly term: number
  isSearching: boolean
  /** When to search for silent sessions next, in log time. */
  nextSearchMs: number
  /** Up to where the last search saw all sessions, and found none left; −1 when there are some, or it did not come to its end. */
  emptyAtIndex: number
}

export class Expiry {
  readonly #options: ExpiryOptions
  readonly #leaderships = new WeakMap<ServedReplica, Leadership>()
  #cancelLook: Cancel = () => {}
  #closed = false

  constructor(options: ExpiryOptions) {
    this.#options = options
    this.#lookLater()
  }

  #lookLater(): void {
    this.#cancelLook = this.#options.runtime.schedule(lookIntervalMs, () => {
      for (const replica of this.#options.source.replicas) if (!replica.stopped && replica.isLeader) this.#look(replica)
      this.#lookLater()
    })
  }

  #look(replica: ServedReplica): void {
    const timeMs = replica.logTimeMs()
    let leadership = this.#leaderships.get(replica)
    if (leadership === undefined || leadership.term !== replica.term) {
      const nextSearchMs = timeMs + this.#options.sessionTtlMs / searchesPerTtl
      leadership = { term: replica.term, isSearching: false, nextSearchMs, emptyAtIndex: -1 }
      this.#leaderships.set(replica, leadership)
    }
    if (leadership.isSearching || timeMs < leadership.nextSearchMs) return
    const held = leadership
    held.isSearching = true
    // A search that fails (the node is closing, the disk is broken) is nobody's loss: the next one begins anew.
    this.#searchSessions(replica, held)
      .catch(() => {})
      .finally(() => {
        held.isSearching = false
      })
  }

  #leads(replica: ServedReplica, { term }: Leadership): boolean {
    return !this.#closed && !replica.stopped && replica.isLeader && replica.term === term
  }

  async #searchSessions(replica: ServedReplica, leadership: Leadership): Promise<void> {
    const { sessionTtlMs } = this.#options
    const startMs = replica.logTimeMs()
    leadership.nextSearchMs = startMs + sessionTtlMs / searchesPerTtl
    if (replica.appliedIndex === leadership.emptyAtIndex) return
    const { appliedIndex } = replica
    leadership.emptyAtIndex = -1
    let earliestMs = Number.POSITIVE_INFINITY
    for (const shard of this.#shardsOf(replica)) {
      earliestMs = Math.min(earliestMs, await this.#searchShard(replica, leadership, shard))
      if (!this.#leads(replica, leadership)) return
    }
    if (earliestMs === Number.POSITIVE_INFINITY) leadership.emptyAtIndex = appliedIndex
    leadership.nextSearchMs = Math.max(leadership.nextSearchMs, Math.min(earliestMs, startMs + sessionTtlMs))
  }

  #shardsOf({ group }: ServedReplica): readonly number[] {
    return group === metaGroup ? [metaShard] : this.#options.ownership.shardsOf(group)
  }

  /** Lets a shard forget its silent sessions. Resolves to when the next one of those that are left will have been silent for too long. */
  async #searchShard(replica: ServedReplica, leadership: Leadership, shard: number): Promise<number> {
    const { sessionTtlMs } = this.#options
    let earliestMs = Number.POSITIVE_INFINITY
    let items: ExpiryItem[] = []
    const cursor = replica.machine.sessions(shard)
    try {
      for (let count = 1; ; count++) {
        const found = await cursor.next()
        if (!this.#leads(replica, leadership)) return earliestMs
        const { touchedMs: sinceMs } = (found?.record as SessionRecord | undefined) ?? { touchedMs: 0 }
        if (found !== undefined && !isOver(sinceMs, sessionTtlMs, replica.logTimeMs())) earliestMs = Math.min(earliestMs, sinceMs + sessionTtlMs)
        else if (found !== undefined)
          items.push({ kind: ExpiryKind.session, shard, sinceMs, ttlMs: sessionTtlMs, id: fromLatin1(found.key.slice(3)) })
        if (items.length >= maxItemsPerEntry || (found === undefined && items.length > 0)) {
          if (!(await propose(replica, items))) return 0
          items = []
        }
        if (found === undefined) return earliestMs
        if (count % recordsPerSlice === 0) await this.#nextTurn()
      }
    } finally {
      await cursor.close()
    }
  }

  #nextTurn(): Promise<void> {
    return new Promise((resolve) => this.#options.runtime.defer(resolve))
  }

  close(): void {
    this.#closed = true
    this.#cancelLook()
  }
}

/** Resolves to whether it was done. */
function propose(replica: ServedReplica, items: readonly ExpiryItem[]): Promise<boolean> {
  const entry = encodeExpiryEntry(items)
  stampEntry(entry, replica.logTimeMs())
  return new Promise((resolve) => replica.propose(entry, (_results, refusal) => resolve(refusal === null)))
}
