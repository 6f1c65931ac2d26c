/**
 * WatchStream: a watch over all groups of a range: pages of each group, fetched by long polls, as one sequence of events.
 *
 * Invariants:
 * 1. A group is asked again from exactly where its last page ended, so whatever fails in between, no event is left out or comes twice.
 * 2. At most two pages with events are held of a group: the one that is consumed, and the one after it. A group whose pages are not consumed is not asked. (Pages without events
 * melt into one: a slow consumer falls behind only by what it has not seen.)
 * 3. The groups take turns, a transaction each. `cursor` moves when the last event of a transaction was given out.
 * 4. It ends once: by `close`, its signal, the client's end, or a gap (CompactedError), which is told after all events before it.
 */
import { fromLatin1 } from '../base/bytes.js'
import { ClosedError, CompactedError, InvalidArgumentError, QuorateError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { shardOf as shardOfKey, shardOfTag } from '../engine/command.js'
import type { HistoryEvent } from '../engine/history-block.js'
import type { Watch, WatchEvent, WatchOptions } from '../engine/kv.js'
import { HistoryMissingError, type OldestPosition, type WatchPage, type WatchRequest } from '../engine/watch-protocol.js'
import { watchSignal } from './operations.js'
import { after, type KeyRange } from './scan.js'
import { badCursor, decodeCursor, encodeCursor } from './watch-cursor.js'

export interface WatchSource {
  readonly runtime: Runtime
  /** In hexadecimal digits. */
  readonly clusterId: () => string
  readonly shards: number
  readonly groupOf: (shard: number) => number
  /** Asks a group, however often it takes. Rejects with HistoryMissingError, the signal's reason, ClosedError, or OverloadedError. */
  readonly poll: (group: number, request: WatchRequest, signal: AbortSignal) => Promise<WatchPage>
}

/** What the groups of one watch may hold here, together and each. */
const totalPageBytes = 4 * 1024 * 1024
const leastPageBytes = 32 * 1024
const mostPageBytes = 512 * 1024
const maxFullPages = 2
/** A poll waits for so long at the group; longer each time that it is answered, shorter when answers get lost. */
const firstWaitMs = 250
const longestWaitMs = 2000
/** An answer that took so much longer than its wait was not the first. */
const lateMs = 500
const firstPauseMs = 20
const longestPauseMs = 1000

/** The range of one key. */
export function keyRange(key: Uint8Array): KeyRange {
  return { gte: key, lt: after(key) }
}

/** A transaction's events in the range, a position without any, or the end of a page that had none. */
type Step =
  | { readonly type: 'events'; readonly shard: number; readonly revision: number; readonly events: readonly HistoryEvent[] }
  | { readonly type: 'position'; readonly shard: number; readonly revision: number }
  | { readonly type: 'quiet' }
  | { readonly type: 'gap'; readonly oldest: readonly OldestPosition[] }

interface Page {
  readonly steps: Step[]
  readonly hasEvents: boolean
}

/** One group's part of a watch. */
interface Feed {
  readonly group: number
  /** Where the next page begins, by shard, in the order in which they are to be looked at. Null: now. */
  positions: Map<number, number | null>
  readonly pages: Page[]
  waitMs: number
  pauseMs: number
  /** Goes on fetching, once there is room. */
  onRoom: (() => void) | null
}

export class WatchStream implements Watch {
  readonly ready: Promise<void>
  readonly #range: KeyRange
  readonly #source: WatchSource
  readonly #bookmarks: boolean
  readonly #feeds: Feed[]
  readonly #shards: readonly number[]
  readonly #pageBytes: number
  readonly #stop = new AbortController()
  readonly #detach: (() => void) | null
  /** By shard: what the consumer was given. */
  readonly #given = new Map<number, number>()
  #becomeReady!: () => void
  #failReady!: (error: unknown) => void
  /** Whose turn it is. */
  #turn = 0
  /** The transaction that is being given out, and how much of it was. */
  #current: Extract<Step, { type: 'events' }> | null = null
  #currentAt = 0
  #toldCursor = ''
  #end: { readonly error: unknown } | 'closed' | null = null
  /** Calls of `next` are served one after the other. */
  #lastNext: Promise<unknown> = Promise.resolve()
  #wake: (() => void) | null = null

  /** Throws InvalidArgumentError. */
  constructor(options: WatchOptions, range: KeyRange, source: WatchSource) {
    this.#range = range
    this.#source = source
    this.#bookmarks = options.bookmarks ?? false
    this.#shards = shardsOf(options, range, source.shards)
    const start = options.cursor === undefined ? null : decodeCursor(options.cursor, source.clusterId(), source.shards)
    const groups = new Map<number, Feed>()
    for (const shard of this.#shards) {
      const position = start === null ? null : start.get(shard)
      if (position === undefined) throw badCursor('it is of a range that does not hold this one')
      if (position !== null) this.#given.set(shard, position)
      const group = source.groupOf(shard)
      const feed = groups.get(group)
      if (feed !== undefined) feed.positions.set(shard, position)
      else groups.set(group, { group, positions: new Map([[shard, position]]), pages: [], waitMs: firstWaitMs, pauseMs: firstPauseMs, onRoom: null })
    }
    this.#feeds = [...groups.values()]
    this.#pageBytes = Math.max(leastPageBytes, Math.min(mostPageBytes, Math.floor(totalPageBytes / this.#feeds.length)))
    this.ready = new Promise((resolve, reject) => {
      this.#becomeReady = resolve
      this.#failReady = reject
    })
    // Whoever does not wait for it learns by the iteration.
    this.ready.catch(() => {})
    if (this.#isReady) this.#becomeReady()
    this.#detach = watchSignal(options, ({ reason }) => this.#finish({ error: reason }))
    if (options.signal?.aborted) this.#finish({ error: options.signal.reason })
    else for (const feed of this.#feeds) void this.#fetch(feed)
  }

  get #isReady(): boolean {
    return this.#given.size === this.#shards.length
  }

  get cursor(): string {
    if (!this.#isReady) throw new UnavailableError('the watch stands nowhere before it is ready', 'NOT_READY')
    return encodeCursor(this.#source.clusterId(), this.#source.shards, this.#given)
  }

  /** Fetches pages for as long as there is room for them. */
  async #fetch(feed: Feed): Promise<void> {
    const { runtime, poll } = this.#source
    while (this.#end === null) {
      if (feed.pages.filter(({ hasEvents }) => hasEvents).length >= maxFullPages) {
        await new Promise<void>((resolve) => {
          feed.onRoom = resolve
        })
        continue
      }
      const positions = [...feed.positions].map(([shard, position]) => ({ shard, after: position }))
      const request = { ...this.#range, positions, maxBytes: this.#pageBytes, waitMs: feed.waitMs }
      const sentAtMs = runtime.nowMs()
      try {
        const page = await poll(feed.group, request, this.#stop.signal)
        if (this.#end !== null) return
        const isLate = runtime.nowMs() - sentAtMs > feed.waitMs + lateMs
        feed.waitMs = isLate ? Math.max(feed.waitMs / 4, firstWaitMs) : Math.min(feed.waitMs * 2, longestWaitMs)
        feed.pauseMs = firstPauseMs
        this.#take(feed, page)
      } catch (error) {
        if (this.#end !== null) return
        if (error instanceof HistoryMissingError) {
          feed.pages.push({ steps: [{ type: 'gap', oldest: error.oldest }], hasEvents: true })
          return this.#notify()
        }
        if (!(error instanceof QuorateError && error.retryable)) return this.#finish({ error })
        await this.#pause(feed.pauseMs)
        feed.pauseMs = Math.min(feed.pauseMs * 2, longestPauseMs)
      }
    }
  }

  #pause(delayMs: number): Promise<void> {
    const { signal } = this.#stop
    return new Promise((resolve) => {
      const end = () => {
        cancel()
        signal.removeEventListener('abort', end)
        resolve()
      }
      const cancel = this.#source.runtime.schedule(delayMs, end)
      signal.addEventListener('abort', end, { once: true })
    })
  }

  #take(feed: Feed, { sections }: WatchPage): void {
    const steps: Step[] = []
    for (const { shard, position, events } of sections) {
      const before = feed.positions.get(shard)
      if (before === undefined) continue
      // A shard that was looked at comes last the next time: a busy one must not keep the others waiting.
      feed.positions.delete(shard)
      feed.positions.set(shard, position)
      if (before === null) this.#given.set(shard, position)
      for (let at = 0; at < events.length; ) {
        const { revision } = events[at]!
        const first = at
        while (events[at]?.revision === revision) at++
        steps.push({ type: 'events', shard, revision, events: events.slice(first, at) })
      }
      if (before !== null && position > (events.at(-1)?.revision ?? before)) steps.push({ type: 'position', shard, revision: position })
    }
    const hasEvents = sections.some(({ events }) => events.length > 0)
    if (!hasEvents) steps.push({ type: 'quiet' })
    const last = feed.pages.at(-1)
    if (!hasEvents && last?.hasEvents === false) {
      feed.pages.pop()
      const moved = new Set(steps.flatMap((step) => (step.type === 'position' ? [step.shard] : [])))
      steps.unshift(...last.steps.filter((step) => step.type === 'position' && !moved.has(step.shard)))
    }
    feed.pages.push({ steps, hasEvents })
    if (this.#isReady) this.#becomeReady()
    this.#notify()
  }

  #notify(): void {
    this.#wake?.()
    this.#wake = null
  }

  #finish(end: { readonly error: unknown } | 'closed'): void {
    if (this.#end !== null) return
    this.#end = end
    this.#detach?.()
    this.#failReady(end === 'closed' ? new ClosedError('the watch was closed') : end.error)
    this.#stop.abort()
    for (const feed of this.#feeds) {
      feed.pages.length = 0
      feed.onRoom?.()
    }
    this.#notify()
  }

  [Symbol.asyncIterator](): AsyncIterator<WatchEvent, void, void> {
    return {
      next: () => {
        const result = this.#lastNext.then(() => this.#next())
        this.#lastNext = result.catch(() => {})
        return result
      },
      return: async () => {
        await this.close()
        return { done: true, value: undefined }
      },
    }
  }

  async #next(): Promise<IteratorResult<WatchEvent, void>> {
    for (;;) {
      if (this.#end !== null) {
        const end = this.#end
        // Told once; from then on the sequence is over.
        this.#end = 'closed'
        if (end !== 'closed') throw end.error
        return { done: true, value: undefined }
      }
      const value = this.#event() ?? this.#step()
      if (value !== undefined) return { done: false, value }
      if (this.#end !== null) continue
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  /** The next event of the transaction that is being given out. */
  #event(): WatchEvent | undefined {
    const current = this.#current
    if (current === null) return undefined
    const { key, value, version, revision } = current.events[this.#currentAt++]!
    const isLast = this.#currentAt === current.events.length
    if (isLast) {
      this.#given.set(current.shard, revision)
      this.#current = null
      this.#currentAt = 0
    }
    const bytes = fromLatin1(key)
    if (value === null) return { type: 'delete', key: bytes, revision, isLast }
    // A copy of the value: it is a view of a frame that holds many.
    return { type: 'put', key: bytes, value: Buffer.from(value), version, revision, isLast }
  }

  /** Takes steps until one gives an event; undefined when there are none. */
  #step(): WatchEvent | undefined {
    for (;;) {
      const step = this.#nextStep()
      if (step === undefined) return undefined
      switch (step.type) {
        case 'events':
          this.#current = step
          return this.#event()
        case 'position':
          this.#given.set(step.shard, step.revision)
          break
        case 'quiet': {
          if (!this.#bookmarks || !this.#isReady) break
          const { cursor } = this
          if (cursor === this.#toldCursor) break
          this.#toldCursor = cursor
          return { type: 'bookmark', cursor }
        }
        case 'gap':
          this.#finish({ error: this.#compacted(step.oldest) })
          return undefined
        default:
          step satisfies never
      }
    }
  }

  #nextStep(): Step | undefined {
    for (let tried = 0; tried < this.#feeds.length; tried++) {
      const feed = this.#feeds[this.#turn]!
      this.#turn = (this.#turn + 1) % this.#feeds.length
      const [page] = feed.pages
      if (page === undefined) continue
      const step = page.steps.shift()
      if (page.steps.length === 0) {
        feed.pages.shift()
        feed.onRoom?.()
        feed.onRoom = null
      }
      if (step !== undefined) return step
    }
    return undefined
  }

  #compacted(oldest: readonly OldestPosition[]): CompactedError {
    const positions = new Map(this.#given)
    for (const { shard, after: position } of oldest) if (positions.has(shard)) positions.set(shard, position)
    const cursor = encodeCursor(this.#source.clusterId(), this.#source.shards, positions)
    return new CompactedError('events that the watch has not seen are not kept any more', cursor)
  }

  async close(): Promise<void> {
    this.#finish('closed')
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** The shards in which keys of the range may be. */
function shardsOf(options: WatchOptions, range: KeyRange, shards: number): readonly number[] {
  const { key, prefix, gt, gte, lt, lte } = options
  if (key !== undefined) {
    if ([prefix, gt, gte, lt, lte].some((bound) => bound !== undefined)) throw new InvalidArgumentError('Expected either `key` or bounds, got both')
    return [shardOfKey(range.gte, shards)]
  }
  const tagged = prefix === undefined ? undefined : shardOfTag(Buffer.from(prefix), shards)
  return tagged === undefined ? Array.from({ length: shards }, (_, shard) => shard) : [tagged]
}
