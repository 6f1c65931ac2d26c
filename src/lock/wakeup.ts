/**
 * Wakeup: tells a waiter near the head of a queue that the lock's record has changed in a way that concerns it, by a watch of the record's key, so that it need not wait for its next poll.
 *
 * Invariants: 1. what a watch tells only wakes, or stands in for a read: every write is conditional on the revision of what was seen, so nothing rests on it; 2. polling goes on, seldom, while the
 * watch lives, and as ever when it ends or the store has none; 3. a record older than what the waiter has read says nothing.
 */
import type { Runtime } from '../base/runtime.js'
import type { KV, Watch, WatchEvent } from '../engine/kv.js'
import type { CellState } from './cell.js'
import { pause } from './poll.js'
import { decodeRecord, freeRecord } from './record.js'

/** Whether a waiter wants to hear of a record. */
export type Concern = (state: CellState) => boolean

export class Wakeup {
  readonly #kv: KV
  readonly #key: string
  #watch: Watch | null = null
  #isLive = false
  #isOver = false
  /** Wakes the one who waits. */
  #wake: AbortController | null = null
  #concern: Concern = () => false
  /** The newest record that was told and that concerns the waiter. */
  #told: CellState | null = null
  #mustRead = false

  constructor(kv: KV, key: string) {
    this.#kv = kv
    this.#key = key
  }

  /** The watch tells everything from here on: polls are for the worst case only. */
  get isLive(): boolean {
    return this.#isLive
  }

  /** Begins to watch, once. */
  open(): void {
    if (this.#watch !== null || this.#isOver || typeof this.#kv.watch !== 'function') return
    try {
      this.#watch = this.#kv.watch({ key: this.#key })
    } catch {
      // A store that offers watches and then has none: the waiter polls.
      this.#isOver = true
      return
    }
    this.#follow(this.#watch).catch(() => {
      this.#isLive = false
      this.#isOver = true
    })
  }

  async #follow(watch: Watch): Promise<void> {
    await watch.ready
    this.#isLive = true
    // What was written between the last read and the start of the watch is told by nobody.
    this.#mustRead = true
    this.#wake?.abort()
    for await (const event of watch) this.#take(event)
    this.#isLive = false
  }

  #take(event: WatchEvent): void {
    if (event.type === 'bookmark') return
    const state = event.type === 'delete' ? { record: freeRecord, revision: 0 } : { record: decodeRecord(event.value), revision: event.revision }
    // Who reads an absent key cannot tell when it was deleted: it is read again.
    if (event.type === 'delete') this.#mustRead = true
    else if (this.#concern(state)) this.#told = state
    else return
    this.#wake?.abort()
  }

  /**
   * Waits until the delay is over, the signal aborts, or something is told that concerns the waiter. Resolves to the record when it was told and is newer than `seen`; null: read.
   */
  async wait(runtime: Runtime, delayMs: number, signal: AbortSignal, seen: CellState, concern: Concern): Promise<CellState | null> {
    this.#concern = concern
    const wake = new AbortController()
    this.#wake = wake
    const stop = () => wake.abort()
    signal.addEventListener('abort', stop, { once: true })
    try {
      if (signal.aborted || this.#mustRead || (this.#told !== null && this.#told.revision > seen.revision)) wake.abort()
      await pause(runtime, delayMs, wake.signal)
    } finally {
      signal.removeEventListener('abort', stop)
      this.#wake = null
    }
    const told = this.#told
    const mustRead = this.#mustRead
    this.#told = null
    this.#mustRead = false
    return !mustRead && told !== null && told.revision > seen.revision ? told : null
  }

  close(): void {
    this.#isOver = true
    void this.#watch?.close()
  }
}
