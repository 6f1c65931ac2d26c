/**
 * WorkerService: a node's side as a worker. Answers coordinators, runs attempts in its worker threads, keeps what they made until the job ends.
 *
 * Invariants: 1. every request is idempotent: an attempt that is known is not started again; 2. only jobs that this node has registered run, by
 * name; 3. a report is repeated until the coordinator has answered it or the job is over; 4. jobs, attempts and memory are bounded: beyond, OverloadedError; 5. the
 * output of an attempt that the coordinator does not want is removed.
 */
import { join } from 'node:path'
import { ClosedError, InvalidArgumentError, OverloadedError, QuorateError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { KeyLike, KV } from '../engine/kv.js'
import type { Sender } from '../transport/messenger.js'
import { copyBytes } from './byte-builder.js'
import { fetchRuns, fetchSplit, LostMapError, scanRange } from './fetch.js'
import type { JobMessenger } from './loopback.js'
import { type ClaimTiming, discardDeadOutput } from './output-claim.js'
import {
  beatReply,
  beatRequest,
  describeReply,
  describeRequest,
  endRequest,
  limits,
  Method,
  type Outcome,
  readRequest,
  reportReply,
  reportRequest,
  type TaskRequest,
  taskReply,
  taskRequest,
} from './protocol.js'
import { sharedController, sleep } from './sleep.js'
import { type AttemptName, attemptKey, MemoryBudget } from './task-outputs.js'
import type { Failure, JobDescription, ThreadAnswer, ThreadTask } from './thread.js'
import { toFailure } from './thread.js'
import { ThreadPool } from './thread-pool.js'
import { WorkerJob } from './worker-job.js'

export interface PeerAddress {
  readonly id: string
  readonly address: string
}

export interface WorkerServiceOptions {
  readonly messenger: JobMessenger
  readonly kv: KV
  readonly nodeId: string
  readonly peers: () => readonly PeerAddress[]
  /** Modules by the names of their jobs. */
  readonly jobs: Readonly<Record<string, URL>>
  /** This runner's own folder. */
  readonly folder: string
  readonly runtime: Runtime
  readonly workers: number
  /** Different each time that the node starts. */
  readonly incarnation: string
  /** A job that hears nothing of its coordinator for so long is over. */
  readonly coordinatorTimeoutMs: number
  /** JavaScript heap of each thread. */
  readonly threadHeapBytes: number
  /** Map buffer of each thread. */
  readonly taskMemoryBytes: number
  /** Outputs kept in memory over all jobs. */
  readonly outputMemoryBytes: number
  readonly claimTiming: ClaimTiming
}

const maxJobs = 64
/** Jobs that have ended are remembered with their session, so that a late message does not start them again. */
const rememberedEnds = 1000
const reportWaitMs = { first: 100, last: 2000 }
const describeTimeoutMs = 30_000

export class WorkerService {
  readonly #options: WorkerServiceOptions
  readonly #pool: ThreadPool
  readonly #budget: MemoryBudget
  readonly #jobs = new Map<string, WorkerJob>()
  readonly #ended = new Map<string, number>()
  readonly #descriptions = new Map<string, Promise<JobDescription>>()
  readonly #closing = sharedController()
  #cancelWatch: () => void = () => {}
  readonly #cleanups = new Set<Promise<unknown>>()

  constructor(options: WorkerServiceOptions) {
    this.#options = options
    this.#pool = new ThreadPool({ workers: options.workers, runtime: options.runtime, heapBytes: options.threadHeapBytes })
    this.#budget = new MemoryBudget(options.outputMemoryBytes)
    const { messenger } = options
    messenger.handle(Method.describe, (_from, payload) => this.#describe(describeRequest.decode(payload).job))
    messenger.handle(Method.task, (from, payload) => this.#task(from, taskRequest.decode(payload)))
    messenger.handle(Method.beat, (from, payload) => this.#beat(from, beatRequest.decode(payload)))
    messenger.handle(Method.read, (_from, payload) => {
      const { jobId, items } = readRequest.decode(payload)
      const total = items.reduce((sum, { length }) => sum + length, 0)
      if (total > limits.maxPieceBytes) throw new InvalidArgumentError(`${total} bytes are more than one request may ask for`)
      const job = this.#jobs.get(jobId)
      if (job === undefined) throw new QuorateError('NO_OUTPUT', `nothing of job ${jobId} here`, false)
      return job.outputs.read(items)
    })
    messenger.handle(Method.end, async (from, payload) => {
      const { jobId } = endRequest.decode(payload)
      const job = this.#jobs.get(jobId)
      job?.hear(from, undefined, options.runtime.nowMs())
      await this.#end(jobId, new ClosedError('the job is over'), Number.POSITIVE_INFINITY)
      return new Uint8Array(0)
    })
    this.#watch()
  }

  /** Jobs that this node works for. */
  get jobIds(): readonly string[] {
    return [...this.#jobs.keys()]
  }

  async #describe(name: string): Promise<Uint8Array> {
    const { incarnation, workers, jobs } = this.#options
    const known = workers > 0 && Object.hasOwn(jobs, name)
    return describeReply.encode({ incarnation, workers, job: known ? await this.#description(name) : undefined })
  }

  #description(name: string): Promise<JobDescription> {
    let description = this.#descriptions.get(name)
    if (description === undefined) {
      description = this.#runInThread(
        async () => ({ task: { kind: 'describe', job: this.#reference(name, new Uint8Array([0xc0])) }, transfer: [] }),
        {
          timeoutMs: describeTimeoutMs,
          signal: this.#closing.signal,
        },
      ).then((answer) => {
        if (answer.kind === 'described') return answer.description
        const { code, message } = answer.kind === 'failed' ? answer.failure : { code: 'INVALID_JOB', message: `job ${name} cannot be described` }
        throw new InvalidArgumentError(message, code)
      })
      this.#descriptions.set(name, description)
      description.catch(() => this.#descriptions.delete(name))
    }
    return description
  }

  #reference(name: string, params: Uint8Array): ThreadTask['job'] {
    const url = Object.hasOwn(this.#options.jobs, name) ? this.#options.jobs[name] : undefined
    if (url === undefined) throw new InvalidArgumentError(`this node has no job ${name}`, 'UNKNOWN_JOB')
    return { url: url.href, name, params }
  }

  #runInThread(
    prepare: () => Promise<{ task: ThreadTask; transfer: ArrayBuffer[] }>,
    options: { timeoutMs: number; signal: AbortSignal },
  ): Promise<ThreadAnswer> {
    return this.#pool.run(prepare, options)
  }

  #task(from: Sender, request: TaskRequest): Uint8Array {
    const { runtime, incarnation, folder } = this.#options
    this.#reference(request.job, request.params)
    if (this.#closing.signal.aborted) throw new ClosedError('the node is closed')
    if ((this.#ended.get(request.jobId) ?? 0) >= request.session) throw new QuorateError('JOB_ENDED', `job ${request.jobId} has ended here`, false)
    let job = this.#jobs.get(request.jobId)
    if (job === undefined) {
      if (this.#jobs.size >= maxJobs) throw new OverloadedError(`this node works for ${maxJobs} jobs already`)
      job = new WorkerJob({
        id: request.jobId,
        coordinator: from,
        session: request.session,
        nowMs: runtime.nowMs(),
        folder: join(folder, request.jobId),
        budget: this.#budget,
        outputPrefix: request.outputPrefix === undefined ? undefined : copyBytes(request.outputPrefix),
      })
      this.#jobs.set(request.jobId, job)
    }
    job.hear(from, request.session, runtime.nowMs())
    const name: AttemptName = { kind: request.work.kind, taskId: request.taskId, attempt: request.attempt }
    if (!job.knows(name)) {
      // Not queued here: the coordinator may know of a node that is free, and other jobs' tasks may be long.
      if (this.#pool.load >= this.#options.workers) throw new OverloadedError('every worker thread is busy')
      const started = job
      job.start(name, (signal) => this.#attempt(started, name, request, signal))
    }
    return taskReply.encode({ incarnation })
  }

  async #attempt(job: WorkerJob, name: AttemptName, request: TaskRequest, signal: AbortSignal): Promise<void> {
    let outcome: Outcome
    try {
      outcome = request.work.kind === 'map' ? await this.#map(job, name, request, signal) : await this.#reduce(job, name, request, signal)
    } catch (error) {
      if (signal.aborted) return
      outcome = failedOutcome(error instanceof LostMapError ? { code: error.code, message: error.message } : toFailure(error), lostMapOf(error))
    }
    await this.#report(job, name, request.session, outcome, signal)
  }

  async #map(job: WorkerJob, name: AttemptName, request: TaskRequest, signal: AbortSignal): Promise<Outcome> {
    const { work } = request
    if (work.kind !== 'map') throw new InvalidArgumentError('not a map')
    let inputBytes = 0
    let next: Uint8Array | undefined
    const answer = await this.#runInThread(
      async () => {
        let split: Uint8Array<ArrayBuffer>
        if (work.input.kind === 'split') {
          const context = { messenger: this.#options.messenger, runtime: this.#options.runtime, signal }
          split = await fetchSplit(context, job.coordinator.address, { jobId: job.id, taskId: name.taskId, length: work.input.length })
        } else {
          const scanned = await scanRange(this.#options.kv, work.input, signal)
          split = scanned.bytes
          next = scanned.next
        }
        inputBytes = split.length
        await job.outputs.makeFolder()
        const { partitions, records } = work
        const options = { ...this.#taskOptions(job, name), split, records, partitions, memoryBytes: this.#options.taskMemoryBytes }
        return { task: { kind: 'map', job: this.#reference(request.job, request.params), options }, transfer: [split.buffer] }
      },
      { timeoutMs: request.timeoutMs, signal },
    )
    if (answer.kind === 'failed') return failedOutcome(answer.failure)
    if (answer.kind !== 'mapped') throw new QuorateError('WORKER_CRASHED', 'the worker thread gave another answer', true)
    const { segments, records, pairs, spilledBytes, counters } = answer.result
    signal.throwIfAborted()
    await job.outputs.storeMap(name, segments)
    return {
      kind: 'mapped',
      segments: segments.map(({ index }) => index),
      inputBytes,
      records,
      pairs,
      spilledBytes,
      next,
      counters: toList(counters),
    }
  }

  async #reduce(job: WorkerJob, name: AttemptName, request: TaskRequest, signal: AbortSignal): Promise<Outcome> {
    const { work } = request
    if (work.kind !== 'reduce') throw new InvalidArgumentError('not a reduce')
    const { messenger, runtime, nodeId, taskMemoryBytes } = this.#options
    const addresses = this.#addresses(work.nodes)
    const inputBytes = work.runs.reduce((sum, { length }) => sum + length, 0)
    const answer = await this.#runInThread(
      async () => {
        await job.outputs.makeFolder()
        const { runs, transfer } = await fetchRuns(
          { messenger, runtime, signal },
          {
            jobId: job.id,
            part: work.part,
            runs: work.runs,
            addresses,
            own: work.nodes.indexOf(nodeId),
            outputs: job.outputs,
            memoryBytes: taskMemoryBytes,
            fileName: attemptKey(name),
          },
        )
        const options = { ...this.#taskOptions(job, name), runs, output: work.output }
        return { task: { kind: 'reduce', job: this.#reference(request.job, request.params), options }, transfer }
      },
      { timeoutMs: request.timeoutMs, signal },
    )
    if (answer.kind === 'failed') {
      const { damagedMap } = answer.failure
      const run = work.runs.find(({ map }) => map === damagedMap)
      return failedOutcome(answer.failure, run === undefined ? undefined : { map: run.map, attempt: run.attempt, gone: true })
    }
    if (answer.kind !== 'reduced') throw new QuorateError('WORKER_CRASHED', 'the worker thread gave another answer', true)
    const { output, length, checksum, groups, pairs, spilledBytes, counters } = answer.result
    signal.throwIfAborted()
    await job.outputs.storeReduce(name, output, length)
    return { kind: 'reduced', length, checksum, groups, pairs, inputBytes, spilledBytes, counters: toList(counters) }
  }

  #taskOptions(job: WorkerJob, name: AttemptName): { taskId: string; attempt: number; folder: string; fileName: string; keepBytes: number } {
    const keepBytes = Math.floor(this.#options.outputMemoryBytes / 4)
    return { taskId: `${name.kind}-${name.taskId}`, attempt: name.attempt, folder: job.outputs.folder, fileName: attemptKey(name), keepBytes }
  }

  /** Addresses of nodes by this node's own list: an address never comes out of a message. */
  #addresses(nodes: readonly string[]): (string | undefined)[] {
    const peers = new Map(this.#options.peers().map(({ id, address }) => [id, address]))
    return nodes.map((id) => peers.get(id))
  }

  /** Tells the coordinator, until it answers. */
  async #report(job: WorkerJob, name: AttemptName, session: number, outcome: Outcome, signal: AbortSignal): Promise<void> {
    const { messenger, runtime } = this.#options
    const payload = reportRequest.encode({ jobId: job.id, session, ...name, outcome })
    for (let waitMs = reportWaitMs.first; !signal.aborted; waitMs = Math.min(waitMs * 2, reportWaitMs.last)) {
      try {
        const { answer } = reportReply.decode(await messenger.request(job.coordinator.address, Method.report, payload, { timeoutMs: 5000, signal }))
        if (answer === 'stale') await job.outputs.drop(name)
        else if (answer === 'unknown') this.#background(this.#end(job.id, new ClosedError('the coordinator knows no such job')))
        return
      } catch {
        // Not reached, or not understood: the coordinator's own watch decides how long this goes on.
        await sleep(runtime, waitMs, signal).catch(() => {})
      }
    }
  }

  #beat(from: Sender, { jobId, session }: { jobId: string; session: number }): Uint8Array {
    const job = this.#jobs.get(jobId)
    job?.hear(from, session, this.#options.runtime.nowMs())
    return beatReply.encode({ incarnation: this.#options.incarnation, attempts: job?.running ?? [] })
  }

  async #end(jobId: string, reason: unknown, lastSession?: number): Promise<void> {
    const job = this.#jobs.get(jobId)
    this.#ended.delete(jobId)
    this.#ended.set(jobId, lastSession ?? job?.session ?? 0)
    if (this.#ended.size > rememberedEnds) this.#ended.delete(this.#ended.keys().next().value as string)
    if (job === undefined) return
    await job.close(reason)
    this.#jobs.delete(jobId)
  }

  #background(task: Promise<unknown>): void {
    this.#cleanups.add(task)
    task.catch(() => {}).finally(() => this.#cleanups.delete(task))
  }

  /** Ends jobs whose coordinator is gone. */
  #watch(): void {
    const { runtime, coordinatorTimeoutMs } = this.#options
    this.#cancelWatch = runtime.schedule(coordinatorTimeoutMs / 3, () => {
      const nowMs = runtime.nowMs()
      for (const job of this.#jobs.values()) {
        if (job.closed || !job.isAbandoned(nowMs, coordinatorTimeoutMs)) continue
        this.#background(this.#end(job.id, new ClosedError('nothing was heard of the coordinator')))
        if (job.outputPrefix !== undefined) this.#discardOutput(job.outputPrefix, job.id)
      }
      this.#watch()
    })
  }

  /** Removes the keys that a dead coordinator has written. */
  #discardOutput(prefix: KeyLike, generation: string): void {
    const { kv, runtime, claimTiming } = this.#options
    this.#background(discardDeadOutput({ kv, prefix, generation, runtime, timing: claimTiming }, this.#closing.signal))
  }

  /** Stops all attempts and threads and removes all that jobs left here. Idempotent. */
  async close(): Promise<void> {
    const reason = new ClosedError('the node is closed')
    this.#closing.abort(reason)
    this.#cancelWatch()
    await Promise.all([...this.#jobs.keys()].map((jobId) => this.#end(jobId, reason)))
    await this.#pool.close()
    await Promise.allSettled(this.#cleanups)
  }
}

function toList(counters: Readonly<Record<string, number>>): { name: string; sum: number }[] {
  return Object.entries(counters).map(([name, sum]) => ({ name, sum }))
}

function lostMapOf(error: unknown): { map: number; attempt: number; gone: boolean } | undefined {
  return error instanceof LostMapError ? { map: error.map, attempt: error.attempt, gone: error.gone } : undefined
}

function failedOutcome(failure: Failure, lostMap?: { map: number; attempt: number; gone: boolean }): Outcome {
  return {
    kind: 'failed',
    code: failure.code.slice(0, 100),
    message: failure.message.slice(0, 10_000),
    stack: failure.stack?.slice(0, 20_000),
    at: failure.at?.slice(0, 2000),
    lostMap,
  }
}
