/**
 * JobRunner: a node's MapReduce. Works for the jobs of other nodes, and runs those that are started here.
 *
 * Invariants: 1. a job is coordinated by the runner on which `run` was called, which need not run tasks itself; 2. temporary files lie in a folder of
 * this runner's own, which is cleared when it starts and removed when it closes; 3. after `close` no thread, timer or file of it is left.
 */
import { readdir, rm, rmdir } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { ClosedError, InvalidArgumentError, QuorateError } from '../base/errors.js'
import { type Runtime, systemRuntime } from '../base/runtime.js'
import type { KV } from '../engine/kv.js'
import type { MessengerFace } from '../transport/messenger.js'
import { Coordinator, type CoordinatorTiming } from './coordinator.js'
import { JobCancelledError, JobFailedError } from './errors.js'
import { JobEvents } from './events.js'
import { runInline } from './inline.js'
import { isJobName } from './job.js'
import { JobHandle } from './job-handle.js'
import { type CheckedOptions, checkOptions, type JobOptions, type JobResult } from './job-options.js'
import { Loopback } from './loopback.js'
import type { JobOutput, Sink } from './output.js'
import { ArraySink } from './output-array.js'
import { type ClaimTiming, defaultClaimTiming } from './output-claim.js'
import { FolderSink, recoverFolderOutput } from './output-folder.js'
import { KvSink } from './output-kv.js'
import { planFiles } from './plan-files.js'
import { planItems } from './plan-items.js'
import { planKeys, refuseCyclicKeys } from './plan-keys.js'
import { inputRequest, Method, reportReply, reportRequest } from './protocol.js'
import { sharedController } from './sleep.js'
import type { InputPlan, PlanOptions } from './splits.js'
import { type PeerAddress, WorkerService } from './worker-service.js'

export interface JobRunnerOptions {
  readonly messenger: MessengerFace
  readonly kv: KV
  readonly nodeId: string
  /** The nodes of the cluster that may run tasks, this one included if it may. Asked again and again: it may change. */
  readonly peers: () => readonly PeerAddress[]
  /** The jobs that this node can run: modules by the names of their jobs. */
  readonly jobs?: Readonly<Record<string, URL>>
  /** Where temporary files may be put; `quorate-jobs` is made in it. */
  readonly temporaryFolder: string
  readonly runtime?: Runtime
  /** Worker threads; 0: only coordinates. Default: the processors of the machine. */
  readonly workers?: number
  /** JavaScript heap of a worker thread, in bytes: user code that takes more loses its thread. Default 512 MiB. */
  readonly threadHeapBytes?: number
  /** Memory of a task for what it groups, in bytes. Default 64 MiB. */
  readonly taskMemoryBytes?: number
  /** Outputs of tasks that are kept in memory, over all jobs, in bytes; more goes to files. Default 128 MiB. */
  readonly outputMemoryBytes?: number
  readonly timing?: Partial<JobTiming>
}

export interface JobTiming extends CoordinatorTiming {
  /** A node that hears nothing of a job's coordinator for so long drops the job. */
  readonly coordinatorTimeoutMs: number
  /** How an unfinished output in the store tells that its job lives. */
  readonly claim: ClaimTiming
}

/** Heartbeats each 500 ms, a node is given up after 3 s, a coordinator after 15 s, a job without any node after 30 s. */
export const defaultJobTiming: JobTiming = {
  heartbeatMs: 500,
  nodeTimeoutMs: 3000,
  noWorkersTimeoutMs: 30_000,
  coordinatorTimeoutMs: 15_000,
  claim: defaultClaimTiming,
}

const maxJobsAtOnce = 64

interface RunningJob {
  readonly controller: AbortController
  readonly ended: Promise<unknown>
  coordinator: Coordinator | undefined
}

export class JobRunner {
  readonly #options: JobRunnerOptions
  readonly #runtime: Runtime
  readonly #timing: JobTiming
  readonly #folder: string
  readonly #messenger: Loopback
  readonly #service: WorkerService
  readonly #jobs = new Map<string, RunningJob>()
  readonly #cleared: Promise<void>
  #closed = false

  constructor(options: JobRunnerOptions) {
    const { jobs = {}, workers = availableParallelism() } = options
    for (const [name, url] of Object.entries(jobs)) {
      if (!isJobName(name)) throw new InvalidArgumentError(`${name} cannot be the name of a job`, 'INVALID_JOB')
      if (!(url instanceof URL)) throw new InvalidArgumentError(`job ${name} must be registered by the URL of its module`, 'INVALID_JOB')
    }
    if (!Number.isSafeInteger(workers) || workers < 0 || workers > 1024)
      throw new InvalidArgumentError(`workers must be a whole number from 0 to 1024`)
    this.#options = options
    this.#runtime = options.runtime ?? systemRuntime
    this.#timing = { ...defaultJobTiming, ...options.timing }
    // By the node's id, as several nodes may share the folder.
    this.#folder = join(options.temporaryFolder, 'quorate-jobs', `node-${encodeURIComponent(options.nodeId)}`)
    this.#cleared = clearFolder(this.#folder)
    this.#cleared.catch(() => {})
    const { kv, nodeId, peers } = options
    const messenger = new Loopback(options.messenger, nodeId)
    this.#messenger = messenger
    this.#service = new WorkerService({
      ...{ messenger, kv, nodeId, peers, jobs, workers, folder: join(this.#folder, 'tasks'), runtime: this.#runtime },
      incarnation: Buffer.from(this.#runtime.randomBytes(8)).toString('hex'),
      coordinatorTimeoutMs: this.#timing.coordinatorTimeoutMs,
      threadHeapBytes: options.threadHeapBytes ?? 512 * 1024 * 1024,
      taskMemoryBytes: options.taskMemoryBytes ?? 64 * 1024 * 1024,
      outputMemoryBytes: options.outputMemoryBytes ?? 128 * 1024 * 1024,
      claimTiming: this.#timing.claim,
    })
    messenger.handle(Method.report, async (from, payload) => {
      const report = reportRequest.decode(payload)
      const answer = (await this.#jobs.get(report.jobId)?.coordinator?.report(from, report)) ?? 'unknown'
      return reportReply.encode({ answer })
    })
    messenger.handle(Method.input, (_from, payload) => {
      const { jobId, taskId, offset, length } = inputRequest.decode(payload)
      const coordinator = this.#jobs.get(jobId)?.coordinator
      if (coordinator === undefined) throw new QuorateError('UNKNOWN_JOB', `no job ${jobId} here`, false)
      return coordinator.readInput(taskId, offset, length)
    })
  }

  /**
   * Starts a job on the cluster, coordinated from here.
   *
   * ```ts
   * const { output } = await runner.run({ job: 'word-count', input: fromKv({ prefix: 'doc/' }), output: toArray() }).result()
   * ```
   *
   * @throws InvalidArgumentError when an option is wrong; everything later comes with `result()`.
   */
  run<Output extends JobOutput>(options: JobOptions<Output>): JobHandle<Output> {
    const checked = checkOptions(options)
    if (this.#closed) throw new ClosedError('the node is closed')
    if (this.#jobs.size >= maxJobsAtOnce) throw new InvalidArgumentError(`${maxJobsAtOnce} jobs are running from here already`)
    if (checked.input.kind === 'kv' && checked.output.kind === 'kv') refuseCyclicKeys(checked.input.prefix, checked.output.prefix)
    const jobId = Buffer.from(this.#runtime.randomBytes(16)).toString('hex')
    const events = new JobEvents()
    const controller = sharedController()
    // Started in a later turn, so that whoever iterates at once sees every event.
    const result = new Promise<void>((resolve) => this.#runtime.defer(resolve)).then(() => this.#run(jobId, checked, events, controller))
    const running: RunningJob = { controller, ended: result.catch(() => {}), coordinator: undefined }
    this.#jobs.set(jobId, running)
    return new JobHandle<Output>({
      jobId,
      events,
      result: result as Promise<JobResult<Output>>,
      cancel: (reason) => controller.abort(new JobCancelledError(jobId, reason)),
    })
  }

  async #run(jobId: string, checked: CheckedOptions, events: JobEvents, controller: AbortController): Promise<JobResult> {
    const startedMs = this.#runtime.nowMs()
    const { signal, timeoutMs } = checked
    const onAbort = (): void => controller.abort(new JobCancelledError(jobId, signal?.reason))
    const cancelTimer =
      timeoutMs === undefined
        ? (): void => {}
        : this.#runtime.schedule(timeoutMs, () =>
            controller.abort(new JobFailedError('JOB_TIMEOUT', `the job took more than ${timeoutMs} ms`, jobId)),
          )
    let outcome: 'succeeded' | 'failed' | 'cancelled' = 'failed'
    try {
      if (signal?.aborted) onAbort()
      signal?.addEventListener('abort', onAbort, { once: true })
      await this.#cleared
      controller.signal.throwIfAborted()
      const result = await this.#runEngine(jobId, checked, events, controller.signal)
      outcome = 'succeeded'
      return result
    } catch (error) {
      if (error instanceof JobCancelledError) outcome = 'cancelled'
      throw error
    } finally {
      cancelTimer()
      signal?.removeEventListener('abort', onAbort)
      this.#jobs.delete(jobId)
      events.emit({ type: 'job-finished', outcome, elapsedMs: this.#runtime.nowMs() - startedMs })
    }
  }

  #runEngine(jobId: string, job: CheckedOptions, events: JobEvents, signal: AbortSignal): Promise<JobResult> {
    const { kv, nodeId, peers, jobs = {} } = this.#options
    const folder = join(this.#folder, 'coordinated', jobId)
    const shared = {
      ...{ jobId, job, kv, folder, runtime: this.#runtime },
      makeSink: (keys: () => 'text' | 'bytes') => this.#makeSink(jobId, job, folder, keys),
      planInput: (options: PlanOptions) => this.#planInput(job, folder, options),
      emit: (event: Parameters<JobEvents['emit']>[0]) => events.emit(event),
    }
    if (job.engine === 'inline') {
      const url = Object.hasOwn(jobs, job.job) ? jobs[job.job] : undefined
      if (url === undefined) throw new InvalidArgumentError(`this node has no job ${job.job}`, 'UNKNOWN_JOB')
      return runInline({ ...shared, url, nodeId, taskMemoryBytes: this.#options.taskMemoryBytes ?? 64 * 1024 * 1024 }, signal)
    }
    const coordinator = new Coordinator({ ...shared, messenger: this.#messenger, peers, timing: this.#timing })
    const running = this.#jobs.get(jobId)
    if (running !== undefined) running.coordinator = coordinator
    return coordinator.run(signal)
  }

  #makeSink(jobId: string, { job, output }: CheckedOptions, folder: string, keys: () => 'text' | 'bytes'): Sink {
    const { kv, nodeId } = this.#options
    switch (output.kind) {
      case 'folder':
        return new FolderSink(output, { name: job, id: jobId, folder })
      case 'array':
        return new ArraySink(output, { folder: join(folder, 'parts'), jobId, keys })
      case 'kv': {
        const claim = { kv, prefix: output.prefix, generation: jobId, nodeId, job, runtime: this.#runtime, timing: this.#timing.claim }
        return new KvSink(output, { claim, folder: join(folder, 'parts'), jobId, keys })
      }
    }
  }

  #planInput({ input, output }: CheckedOptions, folder: string, options: PlanOptions): Promise<InputPlan> {
    switch (input.kind) {
      case 'files':
        return planFiles(input.paths, output.kind === 'folder' ? output.path : undefined, options)
      case 'kv':
        return planKeys(this.#options.kv, input.prefix, { ...options, runtime: this.#runtime })
      case 'items':
        return planItems(input.items, folder, options)
    }
  }

  /** Cancels the jobs that were started here, drops those that it works for, stops all threads and removes all temporary files. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true
    const reason = new ClosedError('the node is closed')
    for (const [jobId, { controller }] of this.#jobs) controller.abort(new JobCancelledError(jobId, reason))
    await Promise.all([...this.#jobs.values()].map(({ ended }) => ended))
    await this.#service.close()
    await rm(this.#folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 })
    // The folder that runners share goes with the last of them; while there is another one it is not empty.
    await rmdir(dirname(this.#folder)).catch(() => {})
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** Removes what an earlier life of this node has left, beside outputs too. */
async function clearFolder(folder: string): Promise<void> {
  const coordinated = join(folder, 'coordinated')
  for (const jobId of await readdir(coordinated).catch(() => [])) await recoverFolderOutput(join(coordinated, jobId))
  await rm(folder, { recursive: true, force: true })
}
