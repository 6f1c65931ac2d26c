/**
 * WatchPolls: those who wait for the next writes in a group's shards, on the replica that leads it.
 *
 * Invariants: 1. a poll that waits has no event of its range between its positions and what was last told: whoever has one is answered in the turn that applied it; 2. each poll is
 * answered once: by a page, by its time (a page without events), or by the reason why there is none; 3. a write in a shard that nobody watches costs nothing, and one in a shard
 * where many watch single keys costs those of the other keys nothing; 4. looking for events is bounded: what did not fit goes with the next poll.
 */
import { toLatin1 } from '../base/bytes.js'
import type { Cancel, Runtime } from '../base/runtime.js'
import type { History } from './history.js'
import type { HistoryEvent } from './history-block.js'
import type { Refusal } from './served-replica.js'
import type { OldestPosition, WatchPage, WatchRequest, WatchSection } from './watch-protocol.js'

/** Bytes of keys and values that are looked at for one page. */
const maxLookedAtBytes = 1024 * 1024
const maxPageBytes = 1024 * 1024
const longestWaitMs = 30_000

export type PollReply = (page: WatchPage | null, refusal: Refusal | null) => void

/** A poll that waits. */
class Poll {
  readonly gte: string
  readonly lt: string | null
  /** By shard: it has everything up to here. */
  readonly positions: Map<number, number>
  /** The one key that can match, or null for a range. */
  readonly key: string | null
  readonly maxBytes: number
  readonly reply: PollReply
  cancelTimer: Cancel = () => {}

  constructor(request: WatchRequest, positions: Map<number, number>, reply: PollReply) {
    this.gte = toLatin1(request.gte)
    this.lt = request.lt === null ? null : toLatin1(request.lt)
    this.key = this.lt === `${this.gte}\0` ? this.gte : null
    this.maxBytes = Math.max(1, Math.min(request.maxBytes, maxPageBytes))
    this.positions = positions
    this.reply = reply
  }

  matches(key: string): boolean {
    return key >= this.gte && (this.lt === null || key < this.lt)
  }
}

/** Who waits for one shard. */
interface WatchedShard {
  readonly byKey: Map<string, Set<Poll>>
  readonly ranges: Set<Poll>
  /** Those who wait have been told of everything up to here. */
  told: number
}

export interface WatchPollsOptions {
  readonly history: History
  readonly revisionOf: (shard: number) => number
}

export class WatchPolls {
  readonly #options: WatchPollsOptions
  readonly #polls = new Set<Poll>()
  readonly #shards = new Map<number, WatchedShard>()

  constructor(options: WatchPollsOptions) {
    this.#options = options
  }

  /** How many wait. */
  get size(): number {
    return this.#polls.size
  }

  /** Whether what is stored must be loaded before this request can be served. */
  needsLoad({ positions }: WatchRequest): boolean {
    const { history } = this.#options
    return !history.isLoaded && positions.some(({ shard, after }) => after !== null && after + 1 < history.oldest(shard))
  }

  /** Positions that are not from here: «now», and those ahead of the shard, which this replica may not have reached yet. */
  needsConfirmation({ positions }: WatchRequest): boolean {
    return positions.some(({ shard, after }) => after === null || after > this.#options.revisionOf(shard))
  }

  /** The shards whose history does not reach back, or not up, to the request's positions. */
  missing({ positions }: WatchRequest): OldestPosition[] {
    const { history, revisionOf } = this.#options
    return positions.flatMap(({ shard, after }) => {
      const oldest = history.oldest(shard)
      return after !== null && (after + 1 < oldest || after > revisionOf(shard)) ? [{ shard, after: oldest - 1 }] : []
    })
  }

  /** Answers at once with what there is, or when there is something, or when the time is up. The request's positions must not be `missing`. */
  serve(request: WatchRequest, runtime: Runtime, reply: PollReply): void {
    const { revisionOf } = this.#options
    const positions = new Map(request.positions.map(({ shard, after }) => [shard, after ?? revisionOf(shard)]))
    const poll = new Poll(request, positions, reply)
    const { sections, isCut } = this.#collect(poll)
    const isNew = request.positions.some(({ after }) => after === null)
    if (isNew || isCut || request.waitMs === 0 || sections.some(({ events }) => events.length > 0)) return reply({ sections }, null)
    for (const { shard, position } of sections) positions.set(shard, position)
    this.#add(poll)
    poll.cancelTimer = runtime.schedule(Math.min(request.waitMs, longestWaitMs), () => this.#expire(poll))
  }

  /** Events of a poll's range after its positions, within its bounds. All its shards have a section, but for those that were not looked at. */
  #collect(poll: Poll): { sections: WatchSection[]; isCut: boolean } {
    const { history, revisionOf } = this.#options
    const sections: WatchSection[] = []
    let bytes = 0
    let lookedAt = 0
    let isCut = false
    for (const [shard, after] of poll.positions) {
      if (isCut) break
      const events: HistoryEvent[] = []
      let position = after
      history.read(shard, after, (event) => {
        if ((bytes >= poll.maxBytes || lookedAt >= maxLookedAtBytes) && event.revision !== position) {
          isCut = true
          return false
        }
        position = event.revision
        const size = event.key.length + event.valueBytes + 16
        lookedAt += size
        if (poll.matches(event.key)) {
          events.push(event)
          bytes += size
        }
        return true
      })
      sections.push({ shard, events, position: isCut ? position : revisionOf(shard) })
    }
    return { sections, isCut }
  }

  #add(poll: Poll): void {
    this.#polls.add(poll)
    for (const shard of poll.positions.keys()) {
      const watched = this.#watch(shard)
      if (poll.key === null) {
        watched.ranges.add(poll)
        continue
      }
      const polls = watched.byKey.get(poll.key)
      if (polls === undefined) watched.byKey.set(poll.key, new Set([poll]))
      else polls.add(poll)
    }
  }

  #watch(shard: number): WatchedShard {
    let watched = this.#shards.get(shard)
    if (watched === undefined) {
      watched = { byKey: new Map(), ranges: new Set(), told: this.#options.revisionOf(shard) }
      this.#shards.set(shard, watched)
      this.#options.history.shard(shard).isWatched = true
    }
    return watched
  }

  #remove(poll: Poll): void {
    poll.cancelTimer()
    this.#polls.delete(poll)
    for (const shard of poll.positions.keys()) {
      const watched = this.#shards.get(shard)!
      watched.ranges.delete(poll)
      const polls = poll.key === null ? undefined : watched.byKey.get(poll.key)
      polls?.delete(poll)
      if (polls?.size === 0) watched.byKey.delete(poll.key!)
      if (watched.ranges.size > 0 || watched.byKey.size > 0) continue
      this.#shards.delete(shard)
      this.#options.history.shard(shard).isWatched = false
    }
  }

  /** Tells those who wait for what was applied since the last time: called when what was applied may be seen, before anything else sees it. */
  wake(): void {
    const { history, revisionOf } = this.#options
    if (!history.hasWoken) return
    const matched = new Set<Poll>()
    const behind = new Set<Poll>()
    const woken = history.takeWoken()
    for (const shard of woken) {
      const watched = this.#shards.get(shard)
      if (watched === undefined) continue
      if (history.oldest(shard) > watched.told + 1) {
        // A flush in between has let go of what is to be told: whoever waits is sent back with what it has, and hears of the gap when it asks again.
        for (const poll of [...watched.ranges, ...[...watched.byKey.values()].flatMap((polls) => [...polls])]) behind.add(poll)
        continue
      }
      history.read(shard, watched.told, ({ key }) => {
        for (const poll of watched.byKey.get(key) ?? []) matched.add(poll)
        for (const poll of watched.ranges) if (poll.matches(key)) matched.add(poll)
        return true
      })
    }
    // Before they were told this they had been told everything: nothing older is looked at again.
    for (const poll of behind) this.#expire(poll)
    for (const poll of matched) if (!behind.has(poll)) this.#answer(poll)
    for (const shard of woken) {
      const watched = this.#shards.get(shard)
      if (watched !== undefined) watched.told = revisionOf(shard)
    }
  }

  /** Everything that was told is nothing to this poll. */
  #advance(poll: Poll): void {
    for (const [shard, position] of poll.positions) poll.positions.set(shard, Math.max(position, this.#shards.get(shard)!.told))
  }

  #expire(poll: Poll): void {
    this.#advance(poll)
    this.#remove(poll)
    poll.reply({ sections: [...poll.positions].map(([shard, position]) => ({ shard, position, events: [] })) }, null)
  }

  /** Answers with what is there since it was last told. */
  #answer(poll: Poll): void {
    this.#advance(poll)
    this.#remove(poll)
    poll.reply({ sections: this.#collect(poll).sections }, null)
  }

  /** Answers all who wait: this replica serves them no more. */
  end(refusal: Refusal): void {
    for (const poll of [...this.#polls]) {
      this.#remove(poll)
      poll.reply(null, refusal)
    }
  }
}
