/**
 * Coordinator: runs one job from the node that started it: plans the input, gives tasks to nodes, takes their reports, collects the parts of the
 * output and commits it.
 *
 * Invariants: 1. what happens to tasks is decided by the TaskTable alone; 2. a part goes to the sink once, whole and checked against the checksum that its attempt
 * reported; 3. the output is committed only when every reduce is done; 4. whatever ends the job, its nodes are told, its temporary files go, and an
 * uncommitted output is taken back.
 */

import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import PQueue from 'p-queue'
import { toBytes } from '../base/bytes.js'
import { ClosedError, InvalidArgumentError, QuorateError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { KV } from '../engine/kv.js'
import type { Sender } from '../transport/messenger.js'
import { copyBytes } from './byte-builder.js'
import { collectPart } from './collect.js'
import { Dispatcher } from './dispatcher.js'
import { type AttemptRecord, JobFailedError, TaskError } from './errors.js'
import type { JobEvent } from './events.js'
import { type CheckedOptions, type JobResult, StatsCollector } from './job-options.js'
import type { JobMessenger } from './loopback.js'
import { type Member, Members } from './members.js'
import type { Sink } from './output.js'
import { endRequest, limits, Method, type Outcome, type Report, type TaskRequest, type TaskWork } from './protocol.js'
import { sharedController } from './sleep.js'
import type { InputPlan, PlanOptions } from './splits.js'
import type { AttemptName } from './task-outputs.js'
import { type Attempt, type MapTask, type ReduceTask, type Task, TaskTable, taskName } from './task-table.js'
import type { JobDescription } from './thread.js'
import type { PeerAddress } from './worker-service.js'

export interface CoordinatorTiming {
  readonly heartbeatMs: number
  readonly nodeTimeoutMs: number
  /** How long a job waits for a node that can run it. */
  readonly noWorkersTimeoutMs: number
}

export interface CoordinatorOptions {
  readonly jobId: string
  readonly job: CheckedOptions
  readonly messenger: JobMessenger
  readonly kv: KV
  readonly peers: () => readonly PeerAddress[]
  readonly runtime: Runtime
  readonly timing: CoordinatorTiming
  /** This job's own folder on this node. */
  readonly folder: string
  readonly makeSink: (keys: () => 'text' | 'bytes') => Sink
  readonly planInput: (options: PlanOptions) => Promise<InputPlan>
  readonly emit: (event: JobEvent) => void
}

const partsCollectedAtOnce = 2
/** Reduces that lost an input wait a little, so that a node that is gone is known as such. */
const lostInputWaitMs = 200

export class Coordinator {
  readonly #options: CoordinatorOptions
  readonly #runtime: Runtime
  readonly #members: Members
  readonly #dispatcher: Dispatcher
  readonly #stats = new StatsCollector()
  readonly #collecting = new PQueue({ concurrency: partsCollectedAtOnce })
  readonly #ending = sharedController()
  readonly #startedMs: number
  #description: JobDescription | undefined
  #onDescription: (() => void) | undefined
  #table: TaskTable | undefined
  #plan: InputPlan | undefined
  #sink: Sink | undefined
  #sinkFolder = ''
  #settle: { resolve: () => void; reject: (error: unknown) => void } | undefined
  #cancelWake: () => void = () => {}
  #cancelWatch: () => void = () => {}
  #scheduling = false

  constructor(options: CoordinatorOptions) {
    this.#options = options
    this.#runtime = options.runtime
    this.#startedMs = options.runtime.nowMs()
    this.#members = new Members({
      messenger: options.messenger,
      runtime: options.runtime,
      peers: options.peers,
      jobId: options.jobId,
      job: options.job.job,
      heartbeatMs: options.timing.heartbeatMs,
      nodeTimeoutMs: options.timing.nodeTimeoutMs,
      onUsable: (member, description) => this.#usable(member, description),
      onLost: (member) => this.#lost(member),
      onAttempts: (member, attempts, askedMs) => this.#compare(member, attempts, askedMs),
    })
    this.#dispatcher = new Dispatcher({
      messenger: options.messenger,
      runtime: options.runtime,
      members: this.#members,
      heartbeatMs: options.timing.heartbeatMs,
      nodeTimeoutMs: options.timing.nodeTimeoutMs,
      signal: this.#ending.signal,
      onAccepted: (task, attempt) => this.#begun(task, attempt),
      onRefused: (task) => {
        this.#table?.giveBack(task, 0)
        this.#schedule()
      },
    })
  }

  /** Runs the job to its end. */
  async run(signal: AbortSignal): Promise<JobResult> {
    const { job, planInput, makeSink, emit } = this.#options
    const ended = new Promise<never>((_, reject) => {
      const end = (): void => {
        this.#ending.abort(signal.reason)
        reject(signal.reason)
      }
      if (signal.aborted) end()
      else signal.addEventListener('abort', end, { once: true })
    })
    ended.catch(() => {})
    const warnings: string[] = []
    try {
      this.#members.start()
      this.#watchWorkers()
      const described = new Promise<void>((resolve, reject) => {
        this.#onDescription = resolve
        this.#settle = { resolve: () => {}, reject }
      })
      await Promise.race([described, ended])
      this.#sink = makeSink(() => this.#description?.keys ?? 'text')
      this.#sinkFolder = await Promise.race([this.#sink.prepare(this.#ending.signal), ended])
      const records = this.#recordsOf(this.#description)
      const planOptions = { splitBytes: job.splitBytes, maxTasks: limits.maxTasks, records, signal: this.#ending.signal }
      this.#plan = await planInput(planOptions)
      signal.throwIfAborted()
      const retry = { maxAttempts: job.maxAttempts, backoff: job.backoff }
      this.#table = new TaskTable({ splits: this.#plan.splits, reducers: job.reducers, retry, random: () => this.#runtime.random() })
      emit({ type: 'job-started', jobId: this.#options.jobId, maps: this.#table.maps.length, reducers: job.reducers })
      const allDone = new Promise<void>((resolve, reject) => {
        this.#settle = { resolve, reject }
      })
      this.#schedule()
      await Promise.race([allDone, ended])
      const output = await this.#sink.commit(this.#ending.signal)
      this.#sink = undefined
      const stats = this.#stats.finish(this.#table.maps.length, job.reducers, this.#runtime.nowMs() - this.#startedMs)
      return { jobId: this.#options.jobId, output, counters: { ...this.#stats.counters }, stats, warnings }
    } finally {
      await this.#end(warnings)
    }
  }

  #recordsOf(description: JobDescription | undefined): 'lines' | 'whole' {
    const byInput = this.#options.job.input.kind === 'files' ? 'lines' : 'files'
    return (description?.input ?? byInput) === 'lines' ? 'lines' : 'whole'
  }

  /** Ends all that still goes on, and removes all that is left. */
  async #end(warnings: string[]): Promise<void> {
    this.#ending.abort(this.#ending.signal.reason ?? new UnavailableError('the job is over'))
    this.#cancelWake()
    this.#cancelWatch()
    this.#members.stop()
    this.#collecting.clear()
    await this.#collecting.onIdle()
    const { messenger, jobId, timing, folder } = this.#options
    const payload = endRequest.encode({ jobId })
    const tell = this.#members.all
      .filter(({ state, session }) => state === 'usable' || (state === 'lost' && session > 1))
      // A node that cannot be told ends the job by itself, when it hears no more of it.
      .map(({ address }) => messenger.request(address, Method.end, payload, { timeoutMs: timing.nodeTimeoutMs }).catch(() => {}))
    const cleaning = [this.#plan?.close(), this.#sink?.abort().then((left) => warnings.push(...left))]
    for (const { status, reason } of (await Promise.allSettled([...cleaning, ...tell])) as { status: string; reason?: unknown }[]) {
      if (status === 'rejected') warnings.push(`not all could be cleaned up: ${String(reason)}`)
    }
    await rm(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 }).catch((error) => {
      warnings.push(`temporary files could not be removed: ${String(error)}`)
    })
  }

  #fail(error: unknown): void {
    this.#settle?.reject(error)
  }

  // Nodes.

  #usable(member: Member, description: JobDescription): void {
    if (this.#description === undefined) {
      this.#description = description
      this.#onDescription?.()
    } else if (description.input !== this.#description.input || description.keys !== this.#description.keys) {
      // Another version of the job: its results would not fit.
      member.state = 'without'
    }
    this.#schedule()
  }

  /** Fails the job when no node can run it. */
  #watchWorkers(): void {
    if (this.#ending.signal.aborted) return
    const { timing, jobId, job } = this.#options
    if (this.#members.nobodyHasIt) {
      const problem = this.#members.all.find((member) => member.problem !== undefined)?.problem
      this.#fail(problem ?? new InvalidArgumentError(`no node has a job ${job.job}`, 'UNKNOWN_JOB'))
    } else if (this.#members.idleMs > timing.noWorkersTimeoutMs) {
      this.#fail(new JobFailedError('NO_WORKERS', `no node that could run it has answered for ${timing.noWorkersTimeoutMs} ms`, jobId))
    }
    this.#cancelWatch = this.#runtime.schedule(timing.heartbeatMs, () => this.#watchWorkers())
  }

  #lost(member: Member): void {
    const table = this.#table
    if (table === undefined || this.#ending.signal.aborted) return
    const { attempts, outputs } = table.heldBy(member.id)
    const lost: string[] = []
    for (const { id, output } of outputs) if (table.mapLost(id, output?.attempt ?? 0)) lost.push(`map-${id}`)
    for (const task of attempts) {
      lost.push(taskName(task))
      this.#loseAttempt(task, 'WORKER_LOST', `node ${member.id} does not answer`)
    }
    this.#options.emit({ type: 'worker-lost', nodeId: member.id, tasks: lost })
    this.#schedule()
  }

  #loseAttempt(task: Task, code: string, message: string): void {
    const nowMs = this.#runtime.nowMs()
    const record = this.#record(task, { code, message })
    this.#stats.retried++
    if (this.#table?.lose(task, record, nowMs) === undefined) this.#exhausted(task, record)
  }

  /** Attempts that a node has confirmed but knows no more of are lost. */
  #compare(member: Member, attempts: readonly AttemptName[], askedMs: number): void {
    const table = this.#table
    if (table === undefined || this.#ending.signal.aborted) return
    const known = new Set(attempts.map(({ kind, taskId, attempt }) => `${kind}-${taskId}-${attempt}`))
    for (const task of table.heldBy(member.id).attempts) {
      const { current } = task
      if (task.state !== 'running' || current?.acknowledgedMs === undefined || current.acknowledgedMs >= askedMs || current.reported) continue
      if (known.has(`${task.kind}-${task.id}-${current.number}`)) continue
      member.running--
      this.#loseAttempt(task, 'ATTEMPT_LOST', `node ${member.id} knows no more of it`)
    }
    this.#schedule()
  }

  // Tasks.

  /** Gives out what can be given out, at the end of the turn. */
  #schedule(): void {
    if (this.#scheduling || this.#table === undefined || this.#ending.signal.aborted) return
    this.#scheduling = true
    queueMicrotask(() => {
      this.#scheduling = false
      this.#giveOut()
    })
  }

  #giveOut(): void {
    const table = this.#table
    if (table === undefined || this.#ending.signal.aborted) return
    if (table.allDone) {
      this.#settle?.resolve()
      return
    }
    const nowMs = this.#runtime.nowMs()
    for (const task of table.runnable(nowMs)) {
      const member = this.#dispatcher.choose(task, nowMs)
      if (member === undefined) break
      const attempt = table.start(task, member.id, member.session, nowMs)
      member.running++
      void this.#dispatcher.send(task, attempt, member, this.#requestFor(task, attempt))
    }
    this.#cancelWake()
    let delayMs = table.nextDelayMs(nowMs)
    for (const { notBeforeMs } of this.#members.all) if (notBeforeMs > nowMs) delayMs = Math.min(delayMs ?? notBeforeMs - nowMs, notBeforeMs - nowMs)
    if (delayMs !== undefined && Number.isFinite(delayMs)) this.#cancelWake = this.#runtime.schedule(delayMs, () => this.#schedule())
  }

  #requestFor(task: Task, attempt: Attempt): TaskRequest {
    const { jobId, job } = this.#options
    return {
      jobId,
      session: attempt.session,
      taskId: task.id,
      attempt: attempt.number,
      job: job.job,
      params: job.params,
      timeoutMs: job.taskTimeoutMs,
      outputPrefix: job.output.kind === 'kv' ? toBytes(job.output.prefix) : undefined,
      work: this.#workOf(task),
    }
  }

  /** An attempt has begun, as its node's answer or its report shows, whichever comes first. */
  #begun(task: Task, attempt: Attempt): void {
    if (attempt.begun) return
    attempt.begun = true
    this.#stats.attempts++
    this.#options.emit({ type: 'task-started', taskId: taskName(task), attempt: attempt.number, nodeId: attempt.nodeId })
  }

  #workOf(task: Task): TaskWork {
    const { job } = this.#options
    if (task.kind === 'map') {
      const { split } = task
      const input =
        split.kind === 'held'
          ? ({ kind: 'split', length: split.length } as const)
          : ({ kind: 'range', from: split.range.from, to: split.range.to, maxBytes: split.maxBytes } as const)
      return { kind: 'map', partitions: job.reducers, records: this.#recordsOf(this.#description), input }
    }
    const { nodes, runs } = (this.#table as TaskTable).runsOf(task.id)
    return { kind: 'reduce', part: task.id, output: (this.#sink as Sink).format, nodes, runs }
  }

  /** Bytes of a split, for the node that maps it. */
  async readInput(taskId: number, offset: number, length: number): Promise<Uint8Array> {
    const task = this.#table?.find('map', taskId) as MapTask | undefined
    if (task?.split.kind !== 'held' || offset + length > task.split.length) throw new InvalidArgumentError(`map-${taskId} has no such input`)
    try {
      return await task.split.read(offset, length)
    } catch (error) {
      // The input itself is at fault: no other attempt would fare better.
      if (error instanceof InvalidArgumentError) this.#fail(error)
      if (error instanceof QuorateError) throw error
      if (this.#ending.signal.aborted) throw new ClosedError('the job is over')
      throw new UnavailableError(`the input of map-${taskId} cannot be read: ${error instanceof Error ? error.message : String(error)}`)
    }
  }

  /** An attempt has ended, says its node. Resolves to false when the report is stale. */
  async report(from: Sender, report: Report): Promise<'accepted' | 'stale'> {
    const table = this.#table
    if (table === undefined || this.#ending.signal.aborted) return 'stale'
    const { kind, taskId, attempt, session, outcome } = report
    const task = table.current(kind, taskId, attempt, from.nodeId, session)
    if (task === undefined) return 'stale'
    // It is not news: the first reply was lost. The output is wanted still.
    const current = task.current as Attempt
    if (task.state !== 'running' || current.reported) return 'accepted'
    const member = this.#members.get(from.nodeId)
    if (outcome.kind === 'mapped' && task.kind === 'map' && !this.#fits(outcome)) {
      throw new InvalidArgumentError(`the report of ${taskName(task)} does not have ${this.#options.job.reducers} parts`)
    }
    if (outcome.kind !== 'failed' && (outcome.kind === 'mapped') !== (task.kind === 'map'))
      throw new InvalidArgumentError('a report of the wrong kind')
    current.reported = true
    this.#begun(task, current)
    let rest: InputPlan['splits'] = []
    if (outcome.kind === 'mapped' && outcome.next !== undefined) {
      try {
        rest = await this.#divideRest(task as MapTask, outcome.next)
      } catch (error) {
        // The node reports again.
        current.reported = false
        throw error
      }
      if (task.current !== current) return 'stale'
    }
    if (member !== undefined && member.session === session) member.running--
    if (outcome.kind === 'failed') this.#failed(task, outcome)
    else if (outcome.kind === 'mapped') this.#mapped(task as MapTask, outcome, rest)
    else this.#reduced(task as ReduceTask, outcome)
    this.#schedule()
    return 'accepted'
  }

  #fits(outcome: Outcome & { kind: 'mapped' }): boolean {
    const { reducers } = this.#options.job
    return outcome.segments.every(({ lengths, checksums }) => lengths.length === reducers && checksums.length === reducers)
  }

  /** New splits for what a task left of its range. */
  async #divideRest({ split }: MapTask, next: Uint8Array): Promise<InputPlan['splits']> {
    if (split.kind !== 'range' || split.maxBytes === undefined) throw new InvalidArgumentError('a task stopped early that should not have')
    // Copied: what came with a message lives as long as the message.
    return (await this.#plan?.divide({ from: copyBytes(next), to: split.range.to })) ?? []
  }

  #mapped(task: MapTask, outcome: Outcome & { kind: 'mapped' }, rest: InputPlan['splits']): void {
    const { split } = task
    // From now on its range is fixed: should it run again, it has the same input.
    if (split.kind === 'range') {
      const { from, to } = split.range
      task.split = { kind: 'range', range: { from, to: outcome.next === undefined ? to : copyBytes(outcome.next) }, maxBytes: undefined }
    }
    this.#table?.mapDone(task, outcome.segments, rest)
    this.#finished(task)
    if (!task.counted) {
      task.counted = true
      this.#stats.inputBytes += outcome.inputBytes
      this.#stats.inputRecords += outcome.records
      this.#stats.mapPairs += outcome.pairs
      this.#stats.spilledBytes += outcome.spilledBytes
      this.#stats.count(outcome.counters)
    }
    this.#progress('map')
  }

  #reduced(task: ReduceTask, outcome: Outcome & { kind: 'reduced' }): void {
    const table = this.#table as TaskTable
    table.reduceCollecting(task)
    const attempt = task.current as Attempt
    void this.#collecting.add(async () => {
      if (task.current !== attempt || this.#ending.signal.aborted) return
      const path = join(this.#sinkFolder, `collected-${task.id}-${attempt.number}`)
      const { messenger, jobId } = this.#options
      const signal = this.#ending.signal
      try {
        const address = this.#members.get(attempt.nodeId)?.address
        if (address === undefined) throw new UnavailableError(`node ${attempt.nodeId} is gone`)
        const source = { address, jobId, taskId: task.id, attempt: attempt.number, length: outcome.length, checksum: outcome.checksum }
        await collectPart({ messenger, runtime: this.#runtime, signal }, source, path)
      } catch (error) {
        await rm(path, { force: true })
        if (signal.aborted || task.current !== attempt) return
        if (!(error instanceof QuorateError)) return this.#fail(error)
        this.#loseAttempt(task, 'OUTPUT_LOST', `its output could not be had from node ${attempt.nodeId}: ${error.message}`)
        this.#schedule()
        return
      }
      if (task.current !== attempt) return rm(path, { force: true })
      try {
        table.reduceStoring(task)
        await this.#sink?.accept(task.id, path, { bytes: outcome.length, pairs: outcome.pairs, checksum: outcome.checksum }, signal)
        table.reduceDone(task)
      } catch (error) {
        return this.#fail(error)
      }
      this.#stats.outputBytes += outcome.length
      this.#stats.outputPairs += outcome.pairs
      this.#stats.shuffledBytes += outcome.inputBytes
      this.#stats.spilledBytes += outcome.spilledBytes
      this.#stats.count(outcome.counters)
      this.#finished(task)
      this.#progress('reduce')
      this.#schedule()
    })
  }

  #failed(task: Task, outcome: Outcome & { kind: 'failed' }): void {
    const table = this.#table as TaskTable
    const { lostMap } = outcome
    if (lostMap !== undefined && task.kind === 'reduce') {
      const output = (table.find('map', lostMap.map) as MapTask | undefined)?.output
      const holder = output === undefined ? undefined : this.#members.get(output.nodeId)
      // Not merely slow to answer: it has it no more, or is lost, or was tried before.
      if (output?.attempt === lostMap.attempt && (lostMap.gone || holder?.state !== 'usable' || task.losses > 0))
        table.mapLost(lostMap.map, lostMap.attempt)
      this.#loseAttempt(task, outcome.code, outcome.message)
      if (task.state === 'waiting') task.notBeforeMs = Math.max(task.notBeforeMs, this.#runtime.nowMs() + lostInputWaitMs)
      return
    }
    const record = this.#record(task, outcome)
    const { nodeId, number } = task.current as Attempt
    const willRetryInMs = table.fail(task, record, this.#runtime.nowMs())
    this.#stats.retried++
    const { code, message } = record
    this.#options.emit({ type: 'task-failed', taskId: taskName(task), attempt: number, nodeId, code, message, willRetryInMs })
    if (willRetryInMs === undefined) this.#exhausted(task, record)
  }

  #record(task: Task, failure: { code: string; message: string; at?: string | undefined; stack?: string | undefined }): AttemptRecord {
    const { number, nodeId, startedMs } = task.current as Attempt
    const { code, message, at, stack } = failure
    return { attempt: number, nodeId, code, message, at, stack, durationMs: this.#runtime.nowMs() - startedMs }
  }

  #exhausted(task: Task, last: AttemptRecord): void {
    const taskId = taskName(task)
    const first = task.history[0] ?? last
    const message = `${taskId} did not succeed in ${task.history.length} attempts; the first: ${first.message}`
    this.#fail(
      new JobFailedError('TASK_FAILED', message, this.#options.jobId, { taskId, attempts: [...task.history] }, { cause: new TaskError(first) }),
    )
  }

  #finished(task: Task): void {
    const { number, nodeId, startedMs } = task.current as Attempt
    this.#options.emit({ type: 'task-finished', taskId: taskName(task), attempt: number, nodeId, durationMs: this.#runtime.nowMs() - startedMs })
  }

  #progress(phase: 'map' | 'reduce'): void {
    const table = this.#table as TaskTable
    const [done, total, bytes] =
      phase === 'map'
        ? [table.mapsDone, table.maps.length, this.#stats.inputBytes]
        : [table.reducesDone, table.reduces.length, this.#stats.shuffledBytes]
    this.#options.emit({ type: 'progress', phase, done, total, bytes, elapsedMs: this.#runtime.nowMs() - this.#startedMs })
  }
}
