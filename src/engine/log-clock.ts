/**
 * LogClock: the time that a leader stamps its entries with. State machines know no other (the highest stamp that they have applied), so time is the same on every replica, and whatever lasts
 * until a time lasts until an entry says that the time has come.
 *
 * Invariants:
 * 1. Between two entries of a log no more log time passes than real time passed between their stampings, by the clocks of the leaders that stamped them: what expires by log time is never early, over
 *    leader changes, jumps of a clock and stalled loops (hazards L4, D9.63, t1, p6, p10). It may be late: log time stands still while nobody leads.
 * 2. A leader begins where the state machine stands, in each of its terms: what passed while others led, or nobody, is not counted.
 * 3. A look that comes long after the one before counts for a bounded time only: the loop was stalled, and what it should have heard meanwhile still waits in its sockets.
 *
 * Why the first holds: what a leader finds in its log was stamped before it came to lead, and its clock starts from a stamp of that log, so it is never ahead of (a stamp, plus what has passed since).
 */

/** What a gap between two looks counts for at most. Whoever waits for the time to pass must look more often than that. */
export const longestGapMs = 1000

export class LogClock {
  #term = -1
  #timeMs = 0
  #lookedAtMs = 0

  /** The time to stamp an entry with, in whole milliseconds: asked by a leader in its term, at `nowMs` of its monotonic clock, when its state machine stands at `machineTimeMs`. */
  look(term: number, machineTimeMs: number, nowMs: number): number {
    if (term === this.#term) {
      this.#timeMs = Math.max(this.#timeMs + Math.min(Math.max(nowMs - this.#lookedAtMs, 0), longestGapMs), machineTimeMs)
    } else {
      this.#term = term
      this.#timeMs = machineTimeMs
    }
    this.#lookedAtMs = nowMs
    return Math.floor(this.#timeMs)
  }
}
