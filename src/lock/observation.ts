/**
 * Observation: what this process has itself watched of one lock, by its own monotonic clock, and what follows from it. There is no shared clock and no time to live
 * on the server: a lease is over for a watcher only when he has seen the very same renewal for the whole lease.
 *
 * Why that is safe. The holder counts its lease from before it sent renewal b; b took effect later than that, and the watcher read it later still. So when the watcher
 * has seen (nonce, b) for `ttlMs` of his own time, `ttlMs` have passed for the holder as well, up to the difference of the two clocks' rates, which the margins cover
 * on both sides (`marginMs`). And the takeover is written with `ifRevision` of a read that still showed b: a renewal in between makes it fail.
 * (The same reasoning as Amazon's DynamoDB lock client: durations only.)
 *
 * Invariants: 1. an observation is never moved to an earlier time; 2. it stands for one (nonce, beat) and starts anew when either changes: beats only rise and nonces
 * are never reused, so seeing the same pair twice means that it stood there all the time between. (Found by seed 852 of the invariants' test when a second claim of one acquire
 * started again at beat 0: a watcher that had slept in between took its new lease for the old one.)
 */
import type { LockRecord } from './record.js'

/** How much of a lease is cut off at its end by the holder, and waited on top by everybody else: clocks' rates may differ by so much. */
const marginFraction = 0.05

export function marginMs(ttlMs: number): number {
  return ttlMs * marginFraction
}

/** How long the head of the queue may leave a free lock unclaimed before the next may take it. Longer than the longest pause between two polls (`poll.ts`). */
export const skipGraceMs = 2500
/** Between the turns of the waiters after that one, so that of the living the first comes first. */
export const skipStepMs = 500
/** From this place in the queue on all turns come at the same time: the wait for a lock with a queue full of the dead is bounded. */
export const maxSkipSteps = 16

export class Observation {
  #nonce = ''
  #beat = -1
  #beatSinceMs = 0
  #nonceSinceMs = 0
  #head = ''
  #headSinceMs = 0
  #goneSinceMs = 0

  /** Takes in what a read has shown. `nowMs` is a time after its answer. */
  observe(record: LockRecord, nowMs: number): void {
    const nonce = record.holder?.nonce ?? ''
    const beat = record.holder?.beat ?? 0
    if (nonce !== this.#nonce) this.#nonceSinceMs = nowMs
    if (nonce !== this.#nonce || beat !== this.#beat) {
      this.#nonce = nonce
      this.#beat = beat
      this.#beatSinceMs = nowMs
      this.#goneSinceMs = record.holder === null ? nowMs : nowMs + record.holder.ttlMs + marginMs(record.holder.ttlMs)
    }
    const head = record.waiters[0]?.nonce ?? ''
    if (head !== this.#head) {
      this.#head = head
      this.#headSinceMs = nowMs
    }
  }

  /** Since when the present holder, or nobody, holds the lock. */
  get holderSinceMs(): number {
    return this.#nonceSinceMs
  }

  /** Since when the present renewal has been seen. */
  get beatSinceMs(): number {
    return this.#beatSinceMs
  }

  /**
   * From when on a waiter at this place of the queue (0: the head, or nobody waits) may take the lock, should nothing change until then.
   * The head may as soon as the holder is gone. Whoever stands behind may only when those before him let their turns pass: then they are dead or stalled.
   */
  claimableAtMs(position: number): number {
    if (position === 0) return this.#goneSinceMs
    const steps = Math.min(position, maxSkipSteps) - 1
    return Math.max(this.#goneSinceMs, this.#headSinceMs) + skipGraceMs + steps * skipStepMs
  }
}

/** The observations of many locks, the most recently used `limit` of them: forgetting one only means to watch anew. */
export class Observations {
  readonly #byName = new Map<string, Observation>()
  readonly #limit: number

  constructor(limit = 1024) {
    this.#limit = limit
  }

  of(name: string): Observation {
    const observation = this.#byName.get(name) ?? new Observation()
    this.#byName.delete(name)
    this.#byName.set(name, observation)
    if (this.#byName.size > this.#limit) {
      for (const oldest of this.#byName.keys()) {
        this.#byName.delete(oldest)
        break
      }
    }
    return observation
  }
}
