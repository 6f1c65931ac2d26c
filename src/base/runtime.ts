/**
 * The only door to time, chance and the event loop. Everything above `src/base` takes a Runtime instead of calling
 * `Date`, `Math.random`, `setTimeout` or `setImmediate`, so that a simulator can own them all.
 */
import { randomBytes } from 'node:crypto'
import { performance } from 'node:perf_hooks'

/** Stops a scheduled task; calling it again, or after the task ran, does nothing. */
export type Cancel = () => void

export interface Runtime {
  /** Monotonic milliseconds, fractions included; only differences mean anything. */
  nowMs(): number
  /** Milliseconds since 1970 as this machine believes. It may be wrong and may jump either way: nothing may rest on it. */
  wallClockMs(): number
  /** Uniform in [0, 1). */
  random(): number
  /** Fresh unpredictable bytes, for ids. */
  randomBytes(length: number): Uint8Array
  /** Runs the task after the current turn of the event loop: what a turn produces can be coalesced then. */
  defer(task: () => void): void
  /** Runs the task once, no earlier than `delayMs` from now. */
  schedule(delayMs: number, task: () => void): Cancel
}

/** The real clock, random source and event loop. Timers keep no process alive by themselves. */
export const systemRuntime: Runtime = {
  nowMs: () => performance.now(),
  wallClockMs: () => Date.now(),
  random: () => Math.random(),
  randomBytes: (length) => new Uint8Array(randomBytes(length)),
  defer: (task) => {
    setImmediate(task)
  },
  schedule: (delayMs, task) => {
    const timer = setTimeout(task, delayMs)
    timer.unref()
    return () => clearTimeout(timer)
  },
}

/**
 * Keeps this process alive until it is called off. Timers of a Runtime do not, so whoever waits by them alone (for an election, for a seed that answers) must:
 * else Node.js ends the process in the middle of an `await`.
 */
export function keepProcessAlive(): Cancel {
  const timer = setInterval(() => {}, 0x7fffffff)
  return () => clearInterval(timer)
}
