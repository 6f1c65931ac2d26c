/**
 * The inline engine: the same plan, the same tasks and the same sinks as on a cluster, one after the other in the calling thread. For tests, for debugging a job's
 * functions, and for inputs too small to send anywhere.
 *
 * Invariant: its output is byte for byte that of the cluster, for functions that depend on their arguments alone.
 */
import { mkdir, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Runtime } from '../base/runtime.js'
import type { KV } from '../engine/kv.js'
import { type AttemptRecord, JobFailedError, TaskError } from './errors.js'
import type { JobEvent } from './events.js'
import { scanRange } from './fetch.js'
import { type CheckedOptions, type JobResult, StatsCollector } from './job-options.js'
import type { Sink } from './output.js'
import { limits } from './protocol.js'
import type { InputPlan, PlanOptions, Split } from './splits.js'
import { type MapTaskResult, type ReduceRun, runMapTask, runReduceTask } from './task.js'
import { loadJob, toFailure } from './thread.js'
import { bytesToValue } from './value-codec.js'

export interface InlineOptions {
  readonly jobId: string
  readonly job: CheckedOptions
  readonly url: URL
  readonly kv: KV
  readonly nodeId: string
  readonly runtime: Runtime
  readonly folder: string
  readonly makeSink: (keys: () => 'text' | 'bytes') => Sink
  readonly planInput: (options: PlanOptions) => Promise<InputPlan>
  readonly emit: (event: JobEvent) => void
  readonly taskMemoryBytes: number
}

/** Runs a job in this thread. */
export async function runInline(options: InlineOptions, signal: AbortSignal): Promise<JobResult> {
  const { jobId, job: checked, runtime, emit, folder } = options
  const startedMs = runtime.nowMs()
  const stats = new StatsCollector()
  const warnings: string[] = []
  const job = await loadJob(options.url.href, checked.job)
  const params = bytesToValue(checked.params)
  const sink = options.makeSink(() => job.keys ?? 'text')
  let plan: InputPlan | undefined
  let committed = false
  /** Runs one task, with the events and the error that a cluster would give. */
  const attempt = async <T>(taskId: string, run: () => Promise<T>): Promise<T> => {
    signal.throwIfAborted()
    stats.attempts++
    emit({ type: 'task-started', taskId, attempt: 1, nodeId: options.nodeId })
    const taskStartedMs = runtime.nowMs()
    try {
      const result = await run()
      emit({ type: 'task-finished', taskId, attempt: 1, nodeId: options.nodeId, durationMs: runtime.nowMs() - taskStartedMs })
      // Lets the caller's timers and events have their turn between tasks.
      await new Promise<void>((resolve) => runtime.defer(resolve))
      return result
    } catch (error) {
      const { code, message, at, stack } = toFailure(error)
      const record: AttemptRecord = { attempt: 1, nodeId: options.nodeId, code, message, at, stack, durationMs: runtime.nowMs() - taskStartedMs }
      emit({ type: 'task-failed', taskId, attempt: 1, nodeId: options.nodeId, code, message, willRetryInMs: undefined })
      throw new JobFailedError('TASK_FAILED', `${taskId} failed: ${message}`, jobId, { taskId, attempts: [record] }, { cause: new TaskError(record) })
    }
  }
  try {
    await mkdir(folder, { recursive: true })
    const sinkFolder = await sink.prepare(signal)
    const byInput = checked.input.kind === 'files' ? 'lines' : 'files'
    const records = (job.input ?? byInput) === 'lines' ? 'lines' : 'whole'
    plan = await options.planInput({ splitBytes: checked.splitBytes, maxTasks: limits.maxTasks, records, signal })
    emit({ type: 'job-started', jobId, maps: plan.splits.length, reducers: checked.reducers })
    const runs: ReduceRun[][] = Array.from({ length: checked.reducers }, () => [])
    const waiting: Split[] = [...plan.splits]
    let maps = 0
    for (let split = waiting.shift(); split !== undefined; split = waiting.shift()) {
      const map = maps++
      const { bytes, next } = await readSplit(split, options.kv, signal)
      if (next !== undefined && split.kind === 'range') waiting.unshift(...(await plan.divide({ from: next, to: split.range.to })))
      stats.inputBytes += bytes.length
      const result = await attempt(`map-${map}`, () =>
        runMapTask({
          ...{ job, params, taskId: `map-${map}`, attempt: 1, folder, fileName: `map-${map}`, split: bytes, records },
          ...{ keepBytes: 1024 * 1024, partitions: checked.reducers, memoryBytes: options.taskMemoryBytes },
        }),
      )
      addRuns(runs, map, result)
      stats.inputRecords += result.records
      stats.mapPairs += result.pairs
      stats.spilledBytes += result.spilledBytes
      stats.count(Object.entries(result.counters).map(([name, sum]) => ({ name, sum })))
      emit({
        type: 'progress',
        phase: 'map',
        done: maps,
        total: maps + waiting.length,
        bytes: stats.inputBytes,
        elapsedMs: runtime.nowMs() - startedMs,
      })
    }
    for (const [part, partRuns] of runs.entries()) {
      stats.shuffledBytes += partRuns.reduce((sum, { length }) => sum + length, 0)
      const result = await attempt(`reduce-${part}`, () =>
        runReduceTask({
          ...{ job, params, taskId: `reduce-${part}`, attempt: 1, folder, fileName: `reduce-${part}` },
          ...{ keepBytes: 1024 * 1024, runs: partRuns, output: sink.format },
        }),
      )
      const path = join(sinkFolder, `collected-${part}`)
      if ('bytes' in result.output) await writeFile(path, result.output.bytes, { flag: 'wx' })
      else await moveFile(result.output.path, path)
      await sink.accept(part, path, { bytes: result.length, pairs: result.pairs, checksum: result.checksum }, signal)
      stats.outputBytes += result.length
      stats.outputPairs += result.pairs
      stats.spilledBytes += result.spilledBytes
      stats.count(Object.entries(result.counters).map(([name, sum]) => ({ name, sum })))
      const { shuffledBytes: bytes } = stats
      emit({ type: 'progress', phase: 'reduce', done: part + 1, total: checked.reducers, bytes, elapsedMs: runtime.nowMs() - startedMs })
    }
    const output = await sink.commit(signal)
    committed = true
    return { jobId, output, counters: { ...stats.counters }, stats: stats.finish(maps, checked.reducers, runtime.nowMs() - startedMs), warnings }
  } finally {
    await plan?.close()
    if (!committed) await sink.abort()
    await rm(folder, { recursive: true, force: true })
  }
}

async function readSplit(split: Split, kv: KV, signal: AbortSignal): Promise<{ bytes: Uint8Array; next: Uint8Array | undefined }> {
  if (split.kind === 'held') return { bytes: await split.read(0, split.length), next: undefined }
  return scanRange(kv, { ...split.range, maxBytes: split.maxBytes }, signal)
}

function addRuns(runs: ReduceRun[][], map: number, result: MapTaskResult): void {
  for (const { data, index } of result.segments) {
    let at = 0
    index.lengths.forEach((length, part) => {
      const checksum = index.checksums[part] as number
      if (length > 0) {
        runs[part]?.push(
          'bytes' in data
            ? { map, length, checksum, bytes: data.bytes.subarray(at, at + length) }
            : { map, length, checksum, path: data.path, offset: at },
        )
      }
      at += length
    })
  }
}

/** Renames, or copies where the two are on different file systems. */
async function moveFile(from: string, to: string): Promise<void> {
  try {
    await rename(from, to)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error
    const { copyFile } = await import('node:fs/promises')
    await copyFile(from, to)
    await rm(from)
  }
}
