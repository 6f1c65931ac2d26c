/**
 * Many deadlines, few timers: entries of the same duration form one list in order of their end, with one timer for its head, so that adding and
 * removing are constant work (Varghese & Lauck, «Hashed and hierarchical timing wheels», scheme of one list per interval; Node's own timers do the same).
 *
 * Invariants: 1. durations are rounded up to one of 16 steps per power of two, so that lists are few; 2. an entry is in at most one list;
 * 3. an entry expires once, not before its duration, at most 1/16 (and one step of the timer) later.
 */
import type { Cancel, Runtime } from '../base/runtime.js'

class List {
  readonly durationMs: number
  head: Deadline | null = null
  tail: Deadline | null = null
  cancel: Cancel | null = null

  constructor(durationMs: number) {
    this.durationMs = durationMs
  }
}

/** Base of what can expire. The fields belong to Deadlines. */
export abstract class Deadline {
  /** @internal */ endMs = 0
  /** @internal */ list: List | null = null
  /** @internal */ before: Deadline | null = null
  /** @internal */ after: Deadline | null = null
  /** Called once when the time is over. */
  abstract expire(): void
}

/** The longest delay that a timer takes. */
const maxTimerMs = 2 ** 31 - 1

function roundUp(durationMs: number): number {
  const step = 2 ** Math.max(0, Math.floor(Math.log2(durationMs)) - 4)
  return Math.ceil(durationMs / step) * step
}

export class Deadlines {
  readonly #runtime: Runtime
  readonly #lists = new Map<number, List>()
  #lastAskedMs = -1
  #lastRoundedMs = 0

  constructor(runtime: Runtime) {
    this.#runtime = runtime
  }

  /** Lets the entry expire after `durationMs`; Infinity means never. */
  add(entry: Deadline, durationMs: number): void {
    if (durationMs === Number.POSITIVE_INFINITY) return
    if (durationMs !== this.#lastAskedMs) {
      this.#lastAskedMs = durationMs
      this.#lastRoundedMs = roundUp(Math.max(1, durationMs))
    }
    const rounded = this.#lastRoundedMs
    let list = this.#lists.get(rounded)
    if (list === undefined) {
      list = new List(rounded)
      this.#lists.set(rounded, list)
    }
    entry.list = list
    entry.endMs = this.#runtime.nowMs() + rounded
    entry.before = list.tail
    entry.after = null
    if (list.tail === null) list.head = entry
    else list.tail.after = entry
    list.tail = entry
    if (list.cancel === null) this.#arm(list, rounded)
  }

  remove(entry: Deadline): void {
    const list = entry.list
    if (list === null) return
    if (entry.before === null) list.head = entry.after
    else entry.before.after = entry.after
    if (entry.after === null) list.tail = entry.before
    else entry.after.before = entry.before
    entry.list = null
    entry.before = null
    entry.after = null
  }

  #arm(list: List, delayMs: number): void {
    list.cancel = this.#runtime.schedule(Math.min(delayMs, maxTimerMs), () => this.#fire(list))
  }

  #fire(list: List): void {
    list.cancel = null
    const nowMs = this.#runtime.nowMs()
    for (let entry = list.head; entry !== null && entry.endMs <= nowMs; entry = list.head) {
      this.remove(entry)
      entry.expire()
    }
    // expire() may have added to this list and armed it.
    if (list.cancel !== null) return
    if (list.head === null) this.#lists.delete(list.durationMs)
    else this.#arm(list, Math.max(1, list.head.endMs - nowMs))
  }

  /** Forgets every entry and timer; nothing expires any more. */
  clear(): void {
    for (const list of this.#lists.values()) {
      list.cancel?.()
      for (let entry = list.head; entry !== null; entry = list.head) this.remove(entry)
    }
    this.#lists.clear()
  }
}
