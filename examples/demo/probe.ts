/**
 * Writers that never stop: each writes its own key again and again and notes how long each write took. They tell how long writes were held up
 * when a leader died, and whether an acknowledged write was lost or done twice.
 *
 * 1. A writer has one write under way at a time. 2. Its key is written by nobody else, so the version that the store answers must be the number
 * of its writes: a lost one would leave it behind, one done twice ahead.
 */
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KV } from 'quorate'

/** Time between a writer's writes: often enough to see a stall of a few tens of milliseconds, seldom enough to leave the disk to the job. */
const pauseMs = 10

export interface ProbeSummary {
  readonly writes: number
  /** The longest wait of a write that ended before the kill. */
  readonly usualHoldUpMs: number
  /** The longest wait of a write that was under way at the kill or begun after it: until the store took writes of that key again. */
  readonly holdUpMs: number
}

export class WriteProbe {
  readonly #kv: KV
  readonly #keys: readonly string[]
  readonly #stop = new AbortController()
  #running: Promise<void>[] = []
  #writes = 0
  #killedAtMs = Number.POSITIVE_INFINITY
  #usualHoldUpMs = 0
  #holdUpMs = 0
  #failure: unknown

  /** One writer a key; keys hash to different shards, so that together they see every group. */
  constructor(kv: KV, writers: number) {
    this.#kv = kv
    this.#keys = Array.from({ length: writers }, (_, number) => `probe/${number}`)
  }

  start(): void {
    this.#running = this.#keys.map((key) =>
      this.#write(key).catch((error: unknown) => {
        this.#failure ??= error
      }),
    )
  }

  /** To be called right before the kill. */
  markKill(): void {
    this.#killedAtMs = performance.now()
  }

  /** Stops the writers; rejects when one of them saw an error or a version that it should not have. */
  async stop(): Promise<ProbeSummary> {
    this.#stop.abort()
    await Promise.all(this.#running)
    if (this.#failure !== undefined) throw this.#failure
    return { writes: this.#writes, usualHoldUpMs: this.#usualHoldUpMs, holdUpMs: this.#holdUpMs }
  }

  async #write(key: string): Promise<void> {
    for (let count = 1; !this.#stop.signal.aborted; count++) {
      const begunMs = performance.now()
      const { version } = await this.#kv.put(key, String(count), { timeoutMs: 30_000 })
      const endedMs = performance.now()
      if (version !== count) throw new Error(`write ${count} of ${key} is version ${version}: a write was ${version < count ? 'lost' : 'done twice'}`)
      this.#writes += 1
      if (endedMs < this.#killedAtMs) this.#usualHoldUpMs = Math.max(this.#usualHoldUpMs, endedMs - begunMs)
      else this.#holdUpMs = Math.max(this.#holdUpMs, endedMs - begunMs)
      await sleep(pauseMs)
    }
  }
}
