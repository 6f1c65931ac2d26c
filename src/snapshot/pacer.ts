/**
 * Pacer: keeps a flow of bytes within a rate, over all who share it.
 *
 * Invariant: what passes in any time is at most the rate times that time, and one portion.
 */
import type { Runtime } from '../base/runtime.js'

export class Pacer {
  readonly #runtime: Runtime
  readonly #bytesPerMs: number
  #freeAtMs = 0

  constructor(runtime: Runtime, bytesPerSecond: number) {
    this.#runtime = runtime
    this.#bytesPerMs = bytesPerSecond / 1000
  }

  /** Takes note of a portion that passed, and resolves when the next one may. Rejects when the signal fires. */
  async passed(bytes: number, signal: AbortSignal): Promise<void> {
    const nowMs = this.#runtime.nowMs()
    this.#freeAtMs = Math.max(this.#freeAtMs, nowMs) + bytes / this.#bytesPerMs
    await pause(this.#runtime, this.#freeAtMs - nowMs, signal)
  }
}

/** Waits; rejects with the signal's reason when that fires. */
export function pause(runtime: Runtime, delayMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason)
    const onAbort = () => {
      cancel()
      reject(signal.reason)
    }
    const cancel = runtime.schedule(delayMs, () => {
      signal.removeEventListener('abort', onAbort)
      resolve()
    })
    signal.addEventListener('abort', onAbort, { once: true })
  })
}
