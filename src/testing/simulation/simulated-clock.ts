/**
 * One node's monotonic clock in virtual time.
 *
 * Invariants: 1. it never goes back, whatever its rate becomes; 2. it starts anywhere and runs at any positive rate.
 */
import type { EventQueue } from './event-queue.js'

export class SimulatedClock {
  readonly #queue: EventQueue
  #rate: number
  /** The clock showed `#baseMs` at `#baseUs` of virtual time. */
  #baseMs: number
  #baseUs = 0

  constructor(queue: EventQueue, startMs: number, rate: number) {
    this.#queue = queue
    this.#baseMs = startMs
    this.#rate = rate
  }

  get nowMs(): number {
    return this.#baseMs + ((this.#queue.nowUs - this.#baseUs) * this.#rate) / 1000
  }

  /** Milliseconds on this clock for one of virtual time. */
  get rate(): number {
    return this.#rate
  }

  set rate(rate: number) {
    this.#baseMs = this.nowMs
    this.#baseUs = this.#queue.nowUs
    this.#rate = rate
  }

  /** When, in virtual time, this clock will show so much, if its rate stays. */
  timeOfUs(clockMs: number): number {
    return this.#baseUs + Math.ceil(((clockMs - this.#baseMs) * 1000) / this.#rate)
  }
}
