/**
 * World: the one event loop of a simulation of whole nodes: virtual time, the processes in it, and the drive that runs one event after the other.
 *
 * Invariants:
 * 1. Everything that happens is an event of one heap, in the order (time, sequence); the program has no other source of events.
 * 2. After each event all microtasks run before the next. Node.js drains them between two callbacks of `setImmediate`, so each event runs in one of its own:
 *    as complete as a turn of the event loop, at a tenth of the price.
 * 3. Whatever runs, runs for one process, which `current` names, microtasks included. A process that crashed runs nothing any more.
 * 4. The rolling hash of all events is the same for two runs of the same seed and plan, or something is not deterministic.
 */
import type { Cancel, Runtime } from '../../base/runtime.js'
import { SeededRandom } from '../seeded-random.js'
import { EventQueue } from '../simulation/event-queue.js'
import { mixHash } from '../simulation/log-shape.js'

/** Events put into one turn of Node's event loop. */
const eventsPerTurn = 128

/** What kind of task waits for a process: after a pause Node.js runs what is due in this order. */
export const TaskKind = { timer: 0, io: 1, deferred: 2 } as const
export type TaskKind = (typeof TaskKind)[keyof typeof TaskKind]

export class World {
  readonly seed: number
  readonly queue = new EventQueue()
  /** The process that runs now; null between processes. */
  current: SimulatedProcess | null = null
  #hash = 0
  #failure: unknown
  #failed = false

  constructor(seed: number) {
    this.seed = seed
  }

  get nowUs(): number {
    return this.queue.nowUs
  }

  /** A hash of all that happened. */
  get hash(): string {
    return (this.#hash >>> 0).toString(16).padStart(8, '0')
  }

  mix(value: number): void {
    this.#hash = mixHash(this.#hash, value)
  }

  /** A stream of chance of its own, fixed by the seed and this name. */
  stream(name: string): SeededRandom {
    return new SeededRandom(this.seed, name)
  }

  /** Runs a task of the world itself (network, disk, faults) after a delay. */
  schedule(delayUs: number, task: () => void): void {
    this.queue.schedule(delayUs, () => {
      this.current = null
      task()
    })
  }

  /** Ends the drive with this error, unless an earlier one did. Safe at any place, also where a throw would be swallowed. */
  fail(error: unknown): void {
    if (this.#failed) return
    this.#failed = true
    this.#failure = error
  }

  get failed(): boolean {
    return this.#failed
  }

  /** Runs events until the condition holds (looked at before each event) or the time has passed; tells whether it holds. Rejects with what `fail` was given. */
  runUntil(condition: () => boolean, durationUs: number, maxEvents = Number.POSITIVE_INFINITY): Promise<boolean> {
    const { queue } = this
    const limitUs = queue.nowUs + Math.floor(durationUs)
    const lastStep = queue.steps + maxEvents
    return new Promise((resolve, reject) => {
      let ended = false
      const step = (): void => {
        if (ended) return
        try {
          if (this.#failed) {
            ended = true
            reject(this.#failure)
          } else if (condition()) {
            ended = true
            resolve(true)
          } else if (queue.steps >= lastStep || !queue.runNext(limitUs)) {
            ended = true
            resolve(condition())
          } else {
            this.#hash = mixHash(this.#hash, queue.nowUs)
          }
        } catch (error) {
          ended = true
          reject(error)
        }
      }
      const turn = (): void => {
        for (let count = 0; count < eventsPerTurn; count++) setImmediate(step)
        setImmediate(() => {
          if (!ended) turn()
        })
      }
      turn()
    })
  }

  runFor(durationUs: number): Promise<boolean> {
    return this.runUntil(() => false, durationUs)
  }

  /** Lets time pass until the promise settles; rejects when it has not within the time. */
  async settle<T>(promise: Promise<T>, durationUs: number, what: string): Promise<T> {
    let settled = false
    const mark = (): void => {
      settled = true
    }
    promise.then(mark, mark)
    if (!(await this.runUntil(() => settled, durationUs))) throw new Error(`not done within ${durationUs / 1e6} s of simulated time: ${what}`)
    return promise
  }
}

/** One life of a process: its clock, its chance, its event loop. Killed, it never runs again; the next life of the same machine is another object. */
export class SimulatedProcess implements Runtime {
  readonly name: string
  readonly world: World
  readonly clockRate: number
  readonly #random: SeededRandom
  readonly #startMs: number
  readonly #number: number
  /** What its wall clock is off by. */
  readonly #wallClockErrorMs: number
  #alive = true
  #paused = false
  /** Each task takes so long while the process is slow. */
  #taskUs = 0
  #busyUntilUs = 0
  #backlog: { kind: TaskKind; task: () => void }[] = []
  #draining = false

  constructor(world: World, name: string, life: number, clockRate: number) {
    this.world = world
    this.name = name
    this.clockRate = clockRate
    this.#random = world.stream(`process ${name} ${life}`)
    // Clocks of different lives have nothing to do with each other.
    this.#startMs = this.#random.integer(0, 1_000_000)
    this.#number = this.#random.uint32()
    const clocks = world.stream(`wall clock ${name} ${life}`)
    this.#wallClockErrorMs = clocks.pick([0, 0, clocks.integer(-60_000, 60_000), clocks.integer(-1e12, 1e12)])
  }

  get alive(): boolean {
    return this.#alive
  }

  get paused(): boolean {
    return this.#paused
  }

  nowMs(): number {
    return this.#startMs + (this.world.nowUs / 1000) * this.clockRate
  }

  wallClockMs(): number {
    return 1_700_000_000_000 + this.nowMs() + this.#wallClockErrorMs
  }

  random(): number {
    return this.#random.next()
  }

  randomBytes(length: number): Uint8Array {
    return this.#random.bytes(length)
  }

  defer(task: () => void): void {
    this.world.queue.schedule(0, () => this.#due(TaskKind.deferred, task))
  }

  schedule(delayMs: number, task: () => void): Cancel {
    if (Number.isNaN(delayMs)) throw new RangeError('a delay that is not a number')
    let wanted: (() => void) | null = task
    const run = (): void => {
      const due = wanted
      wanted = null
      due?.()
    }
    // As Node.js does: a timer too far away for it would fire at once.
    const delayUs = Math.ceil((Math.min(Math.max(delayMs, 0), 0x7fffffff) * 1000) / this.clockRate)
    this.world.queue.schedule(delayUs, () => {
      if (wanted !== null) this.#due(TaskKind.timer, run)
    })
    return () => {
      wanted = null
    }
  }

  /** Hands the process the end of an I/O operation, or a frame, after a delay. */
  complete(delayUs: number, task: () => void): void {
    this.world.queue.schedule(delayUs, () => this.#due(TaskKind.io, task))
  }

  /** Nothing of it runs any more. */
  kill(): void {
    this.#alive = false
    this.#backlog = []
  }

  /** As SIGSTOP: what becomes due waits. */
  pause(): void {
    this.#paused = true
  }

  /** As SIGCONT: all that waited runs at once, timers first, then I/O, then what was deferred, as in a turn of Node's event loop. */
  resume(): void {
    if (!this.#paused) return
    this.#paused = false
    this.#backlog.sort((one, other) => one.kind - other.kind)
    this.#drain()
  }

  /** From now on each task takes so long; 0 for no time at all. */
  slow(taskUs: number): void {
    this.#taskUs = taskUs
  }

  #due(kind: TaskKind, task: () => void): void {
    if (!this.#alive) return
    if (this.#paused || this.#draining || this.#busyUntilUs > this.world.nowUs) {
      this.#backlog.push({ kind, task })
      if (!this.#paused && !this.#draining) this.#drain()
      return
    }
    this.#run(task)
  }

  #drain(): void {
    if (this.#backlog.length === 0 || this.#draining) return
    this.#draining = true
    this.world.queue.schedule(Math.max(0, this.#busyUntilUs - this.world.nowUs), () => {
      this.#draining = false
      if (!this.#alive || this.#paused) return
      const next = this.#backlog.shift()
      if (next !== undefined) this.#run(next.task)
      this.#drain()
    })
  }

  #run(task: () => void): void {
    const { world } = this
    world.current = this
    world.mix(this.#number)
    if (this.#taskUs > 0) this.#busyUntilUs = world.nowUs + this.#taskUs
    try {
      task()
    } catch (error) {
      world.fail(new Error(`uncaught exception in ${this.name}`, { cause: error }))
    }
  }
}
