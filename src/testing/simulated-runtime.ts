/**
 * SimulatedRuntime: a Runtime whose clock, chance and event loop belong to a seed. Time passes only when the driver (`settle`, `advance`) says so.
 *
 * Invariants: 1. events run in the order (time, sequence of scheduling), one at a time; 2. after each event all microtasks are drained (a real
 * `setImmediate` hop) before the next is taken; 3. nothing inside reads a real clock or real chance: the same seed and the same program give
 * the same `trace`. Code under simulation must not wait for real I/O or timers: the driver would find nothing scheduled and report it as stuck.
 */
import type { Cancel, Runtime } from '../base/runtime.js'
import { SeededRandom } from './seeded-random.js'

/** When simulated time begins, by the wall clock: the same for every run. */
const simulationEpochMs = 1_700_000_000_000

interface SimulatedEvent {
  readonly timeMs: number
  readonly sequence: number
  /** Null: cancelled. The task is let go of at once, for it may hold much; the event goes when its time comes, or with the next sweep. */
  task: (() => void) | null
}

export interface SettleOptions {
  /** Fails when so much simulated time passes first. Default: one day. */
  readonly maxSimulatedMs?: number
  /** Fails when so many events run first: a wedged simulation ends by count, not by wall time. Default: 20 million. */
  readonly maxEvents?: number
}

/** Lets everything that is ready in the real event loop's microtask queue run. */
function drainMicrotasks(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

export class SimulatedRuntime implements Runtime {
  /** The seed that fixes this run: print it when a test fails. */
  readonly seed: number
  readonly #random: SeededRandom
  #heap: SimulatedEvent[] = []
  #cancelled = 0
  #nowMs = 0
  #sequence = 0
  #eventsRun = 0
  #trace = 0x811c9dc5
  #driving = false

  constructor(options: { readonly seed: number }) {
    this.seed = options.seed
    this.#random = new SeededRandom(options.seed, 'runtime')
  }

  nowMs(): number {
    return this.#nowMs
  }

  wallClockMs(): number {
    return simulationEpochMs + this.#nowMs
  }

  random(): number {
    return this.#random.next()
  }

  randomBytes(length: number): Uint8Array {
    return this.#random.bytes(length)
  }

  defer(task: () => void): void {
    this.#push(this.#nowMs, task)
  }

  schedule(delayMs: number, task: () => void): Cancel {
    if (Number.isNaN(delayMs)) throw new RangeError('a delay that is not a number')
    const event = this.#push(this.#nowMs + Math.max(0, delayMs), task)
    return () => this.#cancel(event)
  }

  /** How many events have run. */
  get eventsRun(): number {
    return this.#eventsRun
  }

  /** A rolling hash over the times and order of all events run: equal for two runs of the same seed, or something is not deterministic. */
  get trace(): number {
    return this.#trace >>> 0
  }

  /** A stream of chance of its own, fixed by the seed and this name. */
  stream(name: string): SeededRandom {
    return new SeededRandom(this.seed, name)
  }

  /** A process within the simulation: it can be paused as by SIGSTOP, and its clock may run at another rate. */
  process(name: string, options: { readonly clockRate?: number } = {}): SimulatedProcess {
    return new SimulatedProcess(this, this.stream(`process ${name}`), options.clockRate ?? 1)
  }

  /** Resolves after `delayMs` of simulated time. */
  sleep(delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      this.schedule(delayMs, resolve)
    })
  }

  /**
   * Lets time pass until the promise settles, and gives its value or error.
   *
   * @example
   * const runtime = new SimulatedRuntime({ seed: 1 })
   * const kv = new ModelKV({ runtime })
   * await runtime.settle(kv.put('k', 'v'))
   */
  async settle<T>(promise: Promise<T> | (() => Promise<T>), options: SettleOptions = {}): Promise<T> {
    const endMs = this.#nowMs + (options.maxSimulatedMs ?? 86_400_000)
    const maxEvents = this.#eventsRun + (options.maxEvents ?? 20_000_000)
    const awaited = typeof promise === 'function' ? promise() : promise
    let settled = false
    const mark = () => {
      settled = true
    }
    awaited.then(mark, mark)
    await this.#drive(() => {
      if (settled) return false
      const next = this.#peek()
      if (next === undefined)
        throw new Error(`simulation stuck at ${this.#nowMs} ms: nothing is scheduled and the promise is pending (seed ${this.seed})`)
      if (next.timeMs > endMs) throw new Error(`simulation over its limit of time at ${this.#nowMs} ms (seed ${this.seed})`)
      if (this.#eventsRun >= maxEvents) throw new Error(`simulation over its limit of events at ${this.#nowMs} ms (seed ${this.seed})`)
      return true
    })
    return awaited
  }

  /** Runs all that is due within the next `durationMs`, and sets the clock to its end. */
  async advance(durationMs: number): Promise<void> {
    const endMs = this.#nowMs + durationMs
    await this.#drive(() => {
      const next = this.#peek()
      return next !== undefined && next.timeMs <= endMs
    })
    this.#nowMs = endMs
  }

  async #drive(goOn: () => boolean): Promise<void> {
    if (this.#driving) throw new Error('settle and advance drive the one clock: they cannot run inside each other')
    this.#driving = true
    try {
      await drainMicrotasks()
      while (goOn()) {
        const event = this.#pop()
        this.#nowMs = event.timeMs
        this.#eventsRun++
        this.#trace = Math.imul(this.#trace ^ event.sequence, 0x01000193) ^ Math.floor(event.timeMs * 1000)
        const { task } = event
        event.task = null
        task?.()
        await drainMicrotasks()
      }
    } finally {
      this.#driving = false
    }
  }

  #cancel(event: SimulatedEvent): void {
    if (event.task === null) return
    event.task = null
    this.#cancelled++
    if (this.#cancelled < 64 || this.#cancelled < this.#heap.length / 2) return
    // Timers that are cancelled as a rule (deadlines) must not pile up until their time comes.
    const remaining = this.#heap.filter(({ task }) => task !== null)
    this.#heap = []
    this.#cancelled = 0
    for (const each of remaining) this.#add(each)
  }

  #push(timeMs: number, task: () => void): SimulatedEvent {
    const event: SimulatedEvent = { timeMs, sequence: this.#sequence++, task }
    this.#add(event)
    return event
  }

  #add(event: SimulatedEvent): void {
    const heap = this.#heap
    let position = heap.length
    heap.push(event)
    while (position > 0) {
      const parent = (position - 1) >> 1
      const above = heap[parent] as SimulatedEvent
      if (!isBefore(event, above)) break
      heap[position] = above
      position = parent
    }
    heap[position] = event
  }

  /** The next event that was not cancelled. */
  #peek(): SimulatedEvent | undefined {
    while (this.#heap[0]?.task === null) {
      this.#pop()
      this.#cancelled--
    }
    return this.#heap[0]
  }

  #pop(): SimulatedEvent {
    const heap = this.#heap
    const first = heap[0] as SimulatedEvent
    const moved = heap.pop() as SimulatedEvent
    if (heap.length === 0) return first
    let position = 0
    for (;;) {
      let child = 2 * position + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && isBefore(heap[child + 1] as SimulatedEvent, heap[child] as SimulatedEvent)) child++
      if (!isBefore(heap[child] as SimulatedEvent, moved)) break
      heap[position] = heap[child] as SimulatedEvent
      position = child
    }
    heap[position] = moved
    return first
  }
}

function isBefore(left: SimulatedEvent, right: SimulatedEvent): boolean {
  return left.timeMs < right.timeMs || (left.timeMs === right.timeMs && left.sequence < right.sequence)
}

/**
 * One process of a simulation, as a Runtime. While it is paused its clock runs on but none of its tasks does; all that became due runs at `resume`,
 * in order, at once (hazards p6, t4, t5). Never resumed, it is a process that was killed.
 */
export class SimulatedProcess implements Runtime {
  readonly #runtime: SimulatedRuntime
  readonly #random: SeededRandom
  readonly #clockRate: number
  #held: (() => void)[] = []
  #paused = false

  /** Made by `SimulatedRuntime.process`. `clockRate` 1.05 is a clock that runs five percent fast. */
  constructor(runtime: SimulatedRuntime, random: SeededRandom, clockRate: number) {
    this.#runtime = runtime
    this.#random = random
    this.#clockRate = clockRate
  }

  get paused(): boolean {
    return this.#paused
  }

  nowMs(): number {
    return this.#runtime.nowMs() * this.#clockRate
  }

  wallClockMs(): number {
    return this.#runtime.wallClockMs()
  }

  random(): number {
    return this.#random.next()
  }

  randomBytes(length: number): Uint8Array {
    return this.#random.bytes(length)
  }

  defer(task: () => void): void {
    this.#runtime.defer(() => this.#run(task))
  }

  schedule(delayMs: number, task: () => void): Cancel {
    let cancelled = false
    const runUnlessCancelled = () => {
      if (!cancelled) task()
    }
    const cancel = this.#runtime.schedule(delayMs / this.#clockRate, () => this.#run(runUnlessCancelled))
    return () => {
      cancelled = true
      cancel()
    }
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    if (!this.#paused) return
    this.#paused = false
    const held = this.#held
    this.#held = []
    for (const task of held) this.defer(task)
  }

  #run(task: () => void): void {
    if (this.#paused) this.#held.push(task)
    else task()
  }
}
