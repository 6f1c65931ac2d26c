/**
 * Load: clients that write and read without end while faults happen, and what they were told, written down.
 *
 * Owners write a key each, alone, so that the version answered must be the number of their writes; contenders write, delete and read the same few keys; readers read all.
 * Every operation is in the history, which must be linearizable; and a key that nobody writes any more must keep its last value for good (`Ledger`).
 *
 * Invariants: 1. only errors that the documentation allows are expected (unavailable, overloaded, outcome unknown); any other stops the load; 2. the order of draws is
 * fixed by the seed for each worker, although real processes make each run different.
 */
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { ConditionFailedError, type KV, OutcomeUnknownError, QuorateError } from '../../../src/index.js'
import { History, recordHistory } from '../../../src/testing/history.js'
import { assertLinearizable } from '../../../src/testing/history-checker.js'
import { SeededRandom } from '../../../src/testing/seeded-random.js'

/** Between the operations of a worker: the load is to find faults, not to fill the machine. */
const pauseMs = 5
const owners = 8
const contenders = 3
const readers = 3
const sharedKeys = 2
/** A stall this long is a failure. */
const patienceMs = 45_000

/** A write of an owner that was acknowledged. */
interface Watched {
  readonly callMs: number
  readonly retMs: number
}

interface Wait {
  readonly sinceMs: number
  readonly count: number
  readonly done: Map<string, number>
  readonly resolve: () => void
  readonly reject: (error: unknown) => void
}

export class Load {
  readonly history = new History()
  readonly #clients: readonly KV[]
  readonly #prefix: string
  readonly #seed: number
  #loops: Promise<void>[] = []
  #stopping = false
  #failure: unknown
  #waits: Wait[] = []
  #watched: Watched[] | null = null

  /** `prefix` sets the keys of this load apart from those of others. */
  constructor(clients: readonly KV[], prefix: string, seed: number) {
    this.#clients = clients.map((client, at) => recordHistory(client, this.history, `client-${at}`))
    this.#prefix = prefix
    this.#seed = seed
  }

  get ownedKeys(): string[] {
    return Array.from({ length: owners }, (_, at) => `${this.#prefix}/own-${at}`)
  }

  get keys(): string[] {
    return [...this.ownedKeys, ...Array.from({ length: sharedKeys }, (_, at) => `${this.#prefix}/shared-${at}`)]
  }

  start(): void {
    const run = (name: string, make: (client: KV, random: SeededRandom) => () => Promise<void>) => {
      const random = new SeededRandom(this.#seed, `${this.#prefix} ${name}`)
      this.#loops.push(this.#loop(make(this.#clients[this.#loops.length % this.#clients.length]!, random)))
    }
    for (const key of this.ownedKeys) run(key, (client, random) => this.#owner(client, random, key))
    for (let at = 0; at < contenders; at++) run(`contender ${at}`, (client, random) => this.#contender(client, random, `contender-${at}`))
    for (let at = 0; at < readers; at++) run(`reader ${at}`, (client, random) => this.#reader(client, random))
  }

  async #loop(step: () => Promise<void>): Promise<void> {
    try {
      while (!this.#stopping) {
        try {
          await step()
        } catch (error) {
          if (!isAllowed(error)) throw error
        }
        await sleep(pauseMs)
      }
    } catch (error) {
      this.#failure ??= error
      this.#stopping = true
      for (const { reject } of this.#waits.splice(0)) reject(error)
    }
  }

  #owner(client: KV, random: SeededRandom, key: string): () => Promise<void> {
    let version = 0
    /** Writes whose outcome is not known since the last one that was answered. */
    let doubts = 0
    return async () => {
      const isShort = random.chance(0.02)
      const timeoutMs = random.integer(1, 20)
      const isConditional = random.chance(0.5) && doubts === 0
      const callMs = performance.now()
      try {
        const value = `${version}+${doubts} ${random.uint32()}`
        const written = await client.put(key, value, { ...(isShort ? { timeoutMs } : {}), ...(isConditional ? { ifVersion: version } : {}) })
        if (written.version < version + 1 || written.version > version + 1 + doubts) {
          throw new Error(`${key}: version ${written.version} after ${version} and ${doubts} unknown: a write was lost or done twice`)
        }
        version = written.version
        doubts = 0
        this.#acknowledged(key, callMs)
      } catch (error) {
        if (error instanceof OutcomeUnknownError) doubts++
        throw error
      }
    }
  }

  #contender(client: KV, random: SeededRandom, name: string): () => Promise<void> {
    let count = 0
    const seen = new Map<string, number>()
    return async () => {
      const key = `${this.#prefix}/shared-${random.integer(0, sharedKeys - 1)}`
      const draw = random.next()
      const options = random.chance(0.02) ? { timeoutMs: random.integer(1, 20) } : {}
      try {
        if (draw < 0.1) await client.delete(key, options)
        else if (draw < 0.4) await client.put(key, `${name} ${++count}`, { ...options, ifVersion: seen.get(key) ?? 0 })
        else if (draw < 0.7) await client.put(key, `${name} ${++count}`, options)
        else seen.set(key, (await client.get(key, options))?.version ?? 0)
      } catch (error) {
        if (!(error instanceof ConditionFailedError)) throw error
        seen.set(key, error.actualVersion)
      }
    }
  }

  #reader(client: KV, random: SeededRandom): () => Promise<void> {
    const { keys } = this
    return async () => {
      // A read by lease promises as much as any other, as long as clocks run alike: a leader that was stopped must not answer from before.
      const consistency = random.chance(0.5) ? 'lease' : 'linearizable'
      if (random.chance(0.1)) await client.getMany(random.shuffle(keys).slice(0, 3), { consistency })
      else await client.get(random.pick(keys), { consistency })
    }
  }

  #acknowledged(key: string, callMs: number): void {
    const retMs = performance.now()
    this.#watched?.push({ callMs, retMs })
    for (const wait of [...this.#waits]) {
      if (callMs < wait.sinceMs) continue
      wait.done.set(key, (wait.done.get(key) ?? 0) + 1)
      if (wait.done.size < owners || [...wait.done.values()].some((done) => done < wait.count)) continue
      this.#waits = this.#waits.filter((other) => other !== wait)
      wait.resolve()
    }
  }

  /** Resolves when every owner has had so many writes acknowledged that it began after this call; rejects when the load fails or stalls. */
  async progress(count = 2): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    let timer: NodeJS.Timeout | undefined
    try {
      await new Promise<void>((resolve, reject) => {
        const wait = { sinceMs: performance.now(), count, done: new Map<string, number>(), resolve, reject }
        this.#waits.push(wait)
        timer = setTimeout(() => reject(new Error(`writes stood still for ${patienceMs} ms; got on: ${JSON.stringify([...wait.done])}`)), patienceMs)
      })
    } finally {
      clearTimeout(timer)
    }
  }

  /** Notes from now on how long writes take; the function that is returned tells how long the longest was held up since the time given. */
  watch(): (sinceMs: number) => number {
    const watched: Watched[] = []
    this.#watched = watched
    return (sinceMs) => {
      this.#watched = null
      return watched.filter(({ retMs }) => retMs > sinceMs).reduce((most, { callMs, retMs }) => Math.max(most, retMs - Math.max(callMs, sinceMs)), 0)
    }
  }

  /** Ends all workers; rejects with what stopped one of them early. */
  async stop(): Promise<void> {
    this.#stopping = true
    await Promise.all(this.#loops)
    if (this.#failure !== undefined) throw this.#failure
  }

  /** Writes and reads every key once more and judges the whole history. Returns what the keys hold for good. */
  async check(): Promise<Map<string, string>> {
    const last = new Map<string, string>()
    // A write of unknown outcome may still be on its way; once its client has an answer for a later one, the group takes it no more.
    for (const client of this.#clients) await Promise.all(this.keys.map((key) => client.put(key, 'closing')))
    for (const key of this.keys) last.set(key, describe(await this.#clients[0]!.get(key)))
    assertLinearizable(this.history.operations)
    return last
  }
}

function isAllowed(error: unknown): boolean {
  return error instanceof QuorateError && (error.retryable || error instanceof OutcomeUnknownError)
}

function describe(entry: Awaited<ReturnType<KV['get']>>): string {
  return entry === undefined ? 'absent' : `${entry.version} ${entry.revision} ${Buffer.from(entry.value).toString()}`
}

/** What keys that nobody writes any more must hold, for ever. */
export class Ledger {
  readonly #last = new Map<string, string>()

  get size(): number {
    return this.#last.size
  }

  add(last: ReadonlyMap<string, string>): void {
    for (const [key, value] of last) this.#last.set(key, value)
  }

  async check(client: KV): Promise<void> {
    for (const [key, value] of this.#last) {
      const found = describe(await client.get(key))
      if (found !== value) throw new Error(`${key} holds "${found}", but the last that was acknowledged is "${value}"`)
    }
  }
}
