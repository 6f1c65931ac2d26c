/**
 * TaskTable: the state of every task of a job at its coordinator. Synchronous and without I/O: what happens to tasks is decided here, and only here.
 *
 * States: waiting -> running -> done for maps; reduces have two more before `done`: `collecting`, while the output is on its way to the coordinator, and `storing`, when
 * it is there and only the sink has yet to take it. A map that is done goes back to waiting when its output is lost and some reduce still needs it.
 *
 * Invariants: 1. a task has at most one current attempt, and numbers of attempts only rise; 2. a report counts only for the current attempt, of the node and
 * session that it was given to (M7); 3. reduces run only while every map is done, each with exactly one committed attempt (M4); 4. failures of a task are
 * bounded by `maxAttempts`, losses by a multiple, so that every job ends (M5); 5. nothing runs twice unless something failed or was lost.
 */
import type { AttemptRecord } from './errors.js'
import type { SegmentIndex } from './map-buffer.js'
import type { RunReference } from './protocol.js'
import type { Split } from './splits.js'

export interface Attempt {
  readonly number: number
  readonly nodeId: string
  readonly session: number
  readonly startedMs: number
  /** The node has confirmed that it works on it. */
  acknowledgedMs: number | undefined
  /** It was told as started. */
  begun: boolean
  /** Its report is being dealt with. */
  reported: boolean
}

interface TaskBase {
  readonly id: number
  current: Attempt | undefined
  /** Numbers given so far. */
  attempts: number
  failures: number
  losses: number
  notBeforeMs: number
  readonly history: AttemptRecord[]
}

export interface MapOutput {
  readonly nodeId: string
  readonly attempt: number
  readonly segments: readonly SegmentIndex[]
}

export interface MapTask extends TaskBase {
  readonly kind: 'map'
  state: 'waiting' | 'running' | 'done'
  split: Split
  output: MapOutput | undefined
  /** What it reported is in the job's sums: a second run adds nothing. */
  counted: boolean
}

export interface ReduceTask extends TaskBase {
  readonly kind: 'reduce'
  state: 'waiting' | 'running' | 'collecting' | 'storing' | 'done'
}

export type Task = MapTask | ReduceTask

export interface RetryPolicy {
  readonly maxAttempts: number
  readonly backoff: { readonly initialMs: number; readonly factor: number; readonly maxMs: number }
}

/** How many losses of nodes a task may have for each failure that it may have. */
const lossesPerAttempt = 4

export function taskName(task: Task): string {
  return `${task.kind}-${task.id}`
}

export class TaskTable {
  readonly #retry: RetryPolicy
  readonly #random: () => number
  /** In the order of the input. */
  readonly #maps: MapTask[] = []
  readonly #mapsById = new Map<number, MapTask>()
  readonly #reduces: ReduceTask[] = []
  readonly #waitingMaps = new Set<MapTask>()
  readonly #waitingReduces = new Set<ReduceTask>()
  #mapsDone = 0
  #reducesDone = 0

  constructor(options: { splits: readonly Split[]; reducers: number; retry: RetryPolicy; random: () => number }) {
    this.#retry = options.retry
    this.#random = options.random
    for (const split of options.splits) this.#addMap(split, this.#maps.length)
    for (let id = 0; id < options.reducers; id++) {
      const task: ReduceTask = { kind: 'reduce', id, state: 'waiting', ...fresh() }
      this.#reduces.push(task)
      this.#waitingReduces.add(task)
    }
  }

  #addMap(split: Split, position: number): void {
    const task: MapTask = { kind: 'map', id: this.#mapsById.size, state: 'waiting', split, output: undefined, counted: false, ...fresh() }
    this.#mapsById.set(task.id, task)
    this.#maps.splice(position, 0, task)
    this.#waitingMaps.add(task)
  }

  get maps(): readonly MapTask[] {
    return this.#maps
  }

  get reduces(): readonly ReduceTask[] {
    return this.#reduces
  }

  get mapsDone(): number {
    return this.#mapsDone
  }

  get reducesDone(): number {
    return this.#reducesDone
  }

  get allDone(): boolean {
    return this.#mapsDone === this.#maps.length && this.#reducesDone === this.#reduces.length
  }

  find(kind: 'map' | 'reduce', id: number): Task | undefined {
    return kind === 'map' ? this.#mapsById.get(id) : this.#reduces[id]
  }

  /** Tasks that may start now, the first first; reduces only when all maps are done. */
  *runnable(nowMs: number): Generator<Task> {
    const waiting = this.#mapsDone < this.#maps.length ? this.#waitingMaps : this.#waitingReduces
    for (const task of waiting) if (task.notBeforeMs <= nowMs) yield task
  }

  /** How long until a task that waits for its back-off may start; undefined: none does. */
  nextDelayMs(nowMs: number): number | undefined {
    let delayMs: number | undefined
    for (const waiting of [this.#waitingMaps, this.#waitingReduces]) {
      for (const { notBeforeMs } of waiting) {
        if (notBeforeMs > nowMs) delayMs = Math.min(delayMs ?? Number.POSITIVE_INFINITY, notBeforeMs - nowMs)
      }
    }
    return delayMs
  }

  start(task: Task, nodeId: string, session: number, nowMs: number): Attempt {
    if (task.state !== 'waiting') throw new Error(`${taskName(task)} is ${task.state}`)
    this.#unwait(task)
    task.state = 'running'
    task.current = { number: ++task.attempts, nodeId, session, startedMs: nowMs, acknowledgedMs: undefined, begun: false, reported: false }
    return task.current
  }

  #unwait(task: Task): void {
    if (task.kind === 'map') this.#waitingMaps.delete(task)
    else this.#waitingReduces.delete(task)
  }

  #wait(task: Task, notBeforeMs: number): void {
    task.state = 'waiting'
    task.current = undefined
    task.notBeforeMs = notBeforeMs
    if (task.kind === 'map') this.#waitingMaps.add(task)
    else this.#waitingReduces.add(task)
  }

  /** The task whose current attempt this is, or undefined: then the report is stale. */
  current(kind: 'map' | 'reduce', id: number, attempt: number, nodeId: string, session: number): Task | undefined {
    const task = this.find(kind, id)
    const now = task?.current
    return now?.number === attempt && now.nodeId === nodeId && now.session === session ? task : undefined
  }

  /** A map is done. `rest`: new splits for what it left of its range, which come right behind it. */
  mapDone(task: MapTask, segments: readonly SegmentIndex[], rest: readonly Split[] = []): void {
    const attempt = this.#requireRunning(task)
    task.state = 'done'
    task.output = { nodeId: attempt.nodeId, attempt: attempt.number, segments }
    this.#mapsDone++
    const position = this.#maps.indexOf(task) + 1
    rest.forEach((split, index) => {
      this.#addMap(split, position + index)
    })
  }

  reduceCollecting(task: ReduceTask): void {
    this.#requireRunning(task)
    task.state = 'collecting'
  }

  /** The output is here: its node is needed no more. */
  reduceStoring(task: ReduceTask): void {
    if (task.state !== 'collecting') throw new Error(`${taskName(task)} is ${task.state}`)
    task.state = 'storing'
  }

  reduceDone(task: ReduceTask): void {
    if (task.state !== 'storing') throw new Error(`${taskName(task)} is ${task.state}`)
    task.state = 'done'
    this.#reducesDone++
  }

  #requireRunning(task: Task): Attempt {
    if (task.state !== 'running' || task.current === undefined) throw new Error(`${taskName(task)} is ${task.state}`)
    return task.current
  }

  /** The attempt has not failed, but did not run either: the node refused it for now. */
  giveBack(task: Task, notBeforeMs: number): void {
    this.#requireRunning(task)
    this.#wait(task, notBeforeMs)
  }

  /** The attempt failed by itself. Gives the delay until the next; undefined: it was the last. */
  fail(task: Task, record: AttemptRecord, nowMs: number): number | undefined {
    task.history.push(record)
    const delayMs = ++task.failures >= this.#retry.maxAttempts ? undefined : this.#backoffMs(task.failures)
    this.#wait(task, nowMs + (delayMs ?? Number.POSITIVE_INFINITY))
    return delayMs
  }

  /** The attempt was lost without a fault of its own: with its node, or because its inputs were. Gives the delay until the next; undefined: there were too many. */
  lose(task: Task, record: AttemptRecord, nowMs: number): number | undefined {
    task.history.push(record)
    const delayMs = ++task.losses >= this.#retry.maxAttempts * lossesPerAttempt ? undefined : task.losses === 1 ? 0 : this.#backoffMs(task.losses - 1)
    this.#wait(task, nowMs + (delayMs ?? Number.POSITIVE_INFINITY))
    return delayMs
  }

  #backoffMs(failures: number): number {
    const { initialMs, factor, maxMs } = this.#retry.backoff
    // Between half and all of it, so that tasks that failed together do not come back together.
    return Math.min(maxMs, initialMs * factor ** (failures - 1)) * (0.5 + this.#random() / 2)
  }

  /** The output of this attempt of a map cannot be had any more. True: the map runs again. */
  mapLost(id: number, attempt: number): boolean {
    const task = this.#mapsById.get(id)
    if (task === undefined || task.state !== 'done' || task.output?.attempt !== attempt || this.#reducesDone === this.#reduces.length) return false
    task.output = undefined
    this.#mapsDone--
    this.#wait(task, 0)
    return true
  }

  /** What a lost node takes with it: attempts that run there or are being collected from there, and outputs that are still needed. */
  heldBy(nodeId: string): { readonly attempts: Task[]; readonly outputs: MapTask[] } {
    const active = (task: Task): boolean => (task.state === 'running' || task.state === 'collecting') && task.current?.nodeId === nodeId
    return {
      attempts: [...this.#maps, ...this.#reduces].filter(active),
      outputs: this.#maps.filter((task) => task.state === 'done' && task.output?.nodeId === nodeId),
    }
  }

  /** The runs of a part in the order of the input, with the nodes that keep them. */
  runsOf(part: number): { nodes: string[]; runs: RunReference[] } {
    const nodes: string[] = []
    const numbers = new Map<string, number>()
    const runs: RunReference[] = []
    for (const { id: map, output } of this.#maps) {
      if (output === undefined) throw new Error(`map-${map} is not done`)
      let node = numbers.get(output.nodeId)
      if (node === undefined) {
        node = nodes.push(output.nodeId) - 1
        numbers.set(output.nodeId, node)
      }
      for (const [segment, { lengths, checksums }] of output.segments.entries()) {
        const length = lengths[part] ?? 0
        if (length > 0) runs.push({ node, map, attempt: output.attempt, segment, length, checksum: checksums[part] as number })
      }
    }
    return { nodes, runs }
  }
}

function fresh(): TaskBaseState {
  return { current: undefined, attempts: 0, failures: 0, losses: 0, notBeforeMs: 0, history: [] }
}

type TaskBaseState = Omit<TaskBase, 'id'>
