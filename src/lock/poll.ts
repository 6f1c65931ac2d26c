/**
 * When to look again. The head of a queue watches the record (wakeup.ts); whoever stands behind it, and everybody on a store without watches, polls; the pauses are such that many waiters
 * cost little and a release is still seen soon.
 *
 * 1. The pause grows with the time that the present holder has had the lock (an eighth of it): who holds for long is asked seldom, and the wait gets at most an eighth longer.
 * 2. It grows with the place in the queue: a third of the time that it will take to come to the head, at the pace seen so far. So a waiter is awake when its turn comes, after a
 * number of polls that grows with the logarithm of its place only. (Pauses proportional to the place alone overslept: each hand-over then waited for a sleeper. Measured with 100 waiters
 * that hold for 10 ms: 340 ms for each grant with those, 40 ms and 14 requests with these, and 22 ms and 18 requests since the head and the next one watch.)
 * 3. All pauses are drawn at random from a quarter around their length, so that waiters do not step together. 4. Contended writes back off at random, doubling.
 */
import type { Cancel, Runtime } from '../base/runtime.js'

const minimumPollMs = 10
const maximumPollMs = 500
/** For whoever is not the head. Below `skipGraceMs`, or the living would be taken for dead. */
const maximumFarPollMs = 1000
/** A queue that moves faster is believed at once, one that moves slower by this share each time: one slow hand-over must not send those behind to sleep through the next fast ones. */
const slowingShare = 0.3
const firstConflictMs = 8
const maximumConflictMs = 1000
const firstTroubleMs = 50
const maximumTroubleMs = 1000

/**
 * How fast a queue moves, as one waiter sees it between two of its polls. (Not between two moves: the first move after a long hold would look like a slow queue,
 * and the waiter would oversleep.)
 */
export class Pace {
  #place = -1
  #polledAtMs = 0
  #msPerPlace = minimumPollMs

  observe(place: number, nowMs: number): void {
    if (place < this.#place) {
      const seenMs = (nowMs - this.#polledAtMs) / (this.#place - place)
      this.#msPerPlace = Math.min(seenMs, this.#msPerPlace + slowingShare * (seenMs - this.#msPerPlace))
    }
    this.#place = place
    this.#polledAtMs = nowMs
  }

  get msPerPlace(): number {
    return this.#msPerPlace
  }
}

/** `heldForMs`: 0 while nobody holds the lock. */
export function pollDelayMs(heldForMs: number, place: number, pace: Pace, runtime: Runtime): number {
  const wantedMs = Math.max(heldForMs / 8, (place * pace.msPerPlace) / 3, minimumPollMs)
  return Math.min(wantedMs, place === 0 ? maximumPollMs : maximumFarPollMs) * (0.75 + 0.5 * runtime.random())
}

/** While a watch of the record is alive: it tells what matters. */
export function watchedPollDelayMs(place: number, runtime: Runtime): number {
  return (place === 0 ? maximumPollMs : maximumFarPollMs) * (0.75 + 0.25 * runtime.random())
}

/** After so many lost races for the record in a row. */
export function conflictDelayMs(conflicts: number, runtime: Runtime): number {
  return Math.min(firstConflictMs * 2 ** Math.min(conflicts, 10), maximumConflictMs) * runtime.random()
}

/** After so many failures of the store in a row. */
export function troubleDelayMs(failures: number, runtime: Runtime): number {
  return Math.min(firstTroubleMs * 2 ** Math.min(failures, 10), maximumTroubleMs) * (0.5 + 0.5 * runtime.random())
}

/** Resolves after the delay, or at once when the signal aborts: the caller looks at the signal anyway. */
export function pause(runtime: Runtime, delayMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve()
      return
    }
    let cancel: Cancel = () => {}
    const end = () => {
      cancel()
      signal.removeEventListener('abort', end)
      resolve()
    }
    signal.addEventListener('abort', end, { once: true })
    cancel = runtime.schedule(delayMs, end)
  })
}
