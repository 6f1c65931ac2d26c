/**
 * Gets the input of tasks together: splits from the coordinator, ranges of keys from the store, and for reduces the runs from the nodes that keep them.
 *
 * Invariants: 1. everything is pulled, in pieces, with a bounded number of requests under way; 2. a reduce's runs are in memory up to `memoryBytes`
 * and beyond that in a file; 3. which run could not be had is told, so that its map can run again.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import PQueue from 'p-queue'
import { InvalidArgumentError, OverloadedError, QuorateError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { KV } from '../engine/kv.js'
import { ByteBuilder } from './byte-builder.js'
import type { JobMessenger } from './loopback.js'
import { inputRequest, limits, Method, type ReadItem, type RunReference, readRequest } from './protocol.js'
import { sleep } from './sleep.js'
import type { ReduceRun } from './task.js'
import type { TaskOutputs } from './task-outputs.js'

const requestsUnderWay = 4
/** Tries of a request for bytes, with waits between them. */
const maxTries = 3
const firstWaitMs = 100
const pieceTimeoutMs = 10_000

/** The output of a map cannot be had: it has to run again. */
export class LostMapError extends QuorateError {
  readonly map: number
  readonly attempt: number
  /** The node says that it has no such output; else it just did not answer. */
  readonly gone: boolean

  constructor(run: RunReference, cause: unknown) {
    super('MAP_OUTPUT_LOST', `the output of map ${run.map} cannot be had: ${cause instanceof Error ? cause.message : String(cause)}`, true, { cause })
    this.map = run.map
    this.attempt = run.attempt
    this.gone = cause instanceof QuorateError && cause.code === 'NO_OUTPUT'
  }
}

export interface FetchContext {
  readonly messenger: JobMessenger
  readonly runtime: Runtime
  readonly signal: AbortSignal
}

/** Asks for bytes, and again when the peer does not answer or is busy. */
export async function requestBytes(
  context: FetchContext,
  address: string,
  method: string,
  payload: Uint8Array,
  expected: number,
): Promise<Uint8Array> {
  for (let tries = 1; ; tries++) {
    try {
      const reply = await context.messenger.request(address, method, payload, { lane: 'bulk', timeoutMs: pieceTimeoutMs, signal: context.signal })
      if (reply.length !== expected) throw new QuorateError('NO_OUTPUT', `${reply.length} bytes came instead of ${expected}`, false)
      return reply
    } catch (error) {
      context.signal.throwIfAborted()
      const passing = error instanceof UnavailableError || error instanceof OverloadedError
      if (!passing || tries >= maxTries) throw error
      await sleep(context.runtime, firstWaitMs * 4 ** (tries - 1), context.signal)
    }
  }
}

/** The bytes of a split, from the coordinator. */
export async function fetchSplit(
  context: FetchContext,
  coordinator: string,
  split: { readonly jobId: string; readonly taskId: number; readonly length: number },
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(new ArrayBuffer(split.length))
  const queue = new PQueue({ concurrency: requestsUnderWay })
  const pieces: Promise<void>[] = []
  for (let offset = 0; offset < split.length; offset += limits.maxPieceBytes) {
    const length = Math.min(limits.maxPieceBytes, split.length - offset)
    pieces.push(
      queue.add(async () => {
        const payload = inputRequest.encode({ jobId: split.jobId, taskId: split.taskId, offset, length })
        bytes.set(await requestBytes(context, coordinator, Method.input, payload, length), offset)
      }),
    )
  }
  try {
    await Promise.all(pieces)
  } catch (error) {
    queue.clear()
    throw error
  }
  return bytes
}

/** The keys of a range with their values, as entries. Stops after `maxBytes` and says at which key to go on. */
export async function scanRange(
  kv: KV,
  range: { readonly from: Uint8Array; readonly to: Uint8Array | undefined; readonly maxBytes: number | undefined },
  signal: AbortSignal,
): Promise<{ bytes: Uint8Array<ArrayBuffer>; next: Uint8Array | undefined }> {
  const builder = new ByteBuilder(64 * 1024)
  // The store has no empty key: an empty bound is none.
  for await (const { key, value } of kv.scan({ gte: range.from.length === 0 ? undefined : range.from, lt: range.to, signal })) {
    if (range.maxBytes !== undefined && builder.length >= range.maxBytes) return { bytes: builder.take(), next: key }
    builder.varint(key.length)
    builder.raw(key)
    builder.varint(0)
    builder.varint(value.length)
    builder.raw(value)
    if (builder.length > limits.maxSplitBytes)
      throw new InvalidArgumentError('a range of keys has grown too large while the job was running', 'INPUT_CHANGED')
  }
  return { bytes: builder.take(), next: undefined }
}

/** One request: neighbouring pieces of runs that one node keeps. */
interface Batch {
  readonly node: number
  readonly items: { readonly run: RunReference; readonly item: ReadItem; readonly target: number }[]
  bytes: number
}

export interface FetchRunsOptions {
  readonly jobId: string
  readonly part: number
  readonly runs: readonly RunReference[]
  /** Addresses by number; undefined: not known here. */
  readonly addresses: readonly (string | undefined)[]
  /** Which number is this node. */
  readonly own: number
  readonly outputs: TaskOutputs
  readonly memoryBytes: number
  readonly fileName: string
}

export interface FetchedRuns {
  readonly runs: readonly ReduceRun[]
  readonly transfer: ArrayBuffer[]
  /** Bytes that came from other nodes. */
  readonly fetchedBytes: number
}

/** All runs of a part: those of this node where they lie, the others fetched. @throws LostMapError */
export async function fetchRuns(context: FetchContext, options: FetchRunsOptions): Promise<FetchedRuns> {
  const { jobId, part, outputs, own } = options
  const placed: (ReduceRun | undefined)[] = []
  const batches: Batch[] = []
  const open: (Batch | undefined)[] = []
  const targets: number[] = []
  let total = 0
  let fetchedBytes = 0
  for (const [position, run] of options.runs.entries()) {
    const whole: ReadItem = { kind: 'map', taskId: run.map, attempt: run.attempt, segment: run.segment, part, offset: 0, length: run.length }
    if (run.node === own) {
      const file = locate(outputs, run, whole)
      if (file !== undefined) {
        placed[position] = { map: run.map, length: run.length, checksum: run.checksum, ...file }
        continue
      }
    } else {
      fetchedBytes += run.length
    }
    targets[position] = total
    for (let offset = 0; offset < run.length; ) {
      let batch = open[run.node]
      if (batch === undefined || batch.bytes >= limits.maxPieceBytes || batch.items.length >= 1000) {
        batch = { node: run.node, items: [], bytes: 0 }
        open[run.node] = batch
        batches.push(batch)
      }
      const length = Math.min(run.length - offset, limits.maxPieceBytes - batch.bytes)
      batch.items.push({ run, item: { ...whole, offset, length }, target: total + offset })
      batch.bytes += length
      offset += length
    }
    total += run.length
  }
  const target = total <= options.memoryBytes ? new MemoryTarget(total) : await FileTarget.make(outputs, options.fileName)
  try {
    await fetchBatches(context, options, jobId, batches, target)
    const runs = options.runs.map((run, position) => placed[position] ?? target.place(run, targets[position] as number))
    return { runs, transfer: target.transfer, fetchedBytes }
  } finally {
    await target.close()
  }
}

function locate(outputs: TaskOutputs, run: RunReference, whole: ReadItem): { path: string; offset: number } | undefined {
  try {
    return outputs.locate(whole)
  } catch (error) {
    throw new LostMapError(run, error)
  }
}

async function fetchBatches(
  context: FetchContext,
  options: FetchRunsOptions,
  jobId: string,
  batches: readonly Batch[],
  target: Target,
): Promise<void> {
  const queue = new PQueue({ concurrency: requestsUnderWay })
  const fetchBatch = async (batch: Batch): Promise<void> => {
    const items = batch.items.map(({ item }) => item)
    let bytes: Uint8Array
    try {
      if (batch.node === options.own) bytes = await options.outputs.read(items)
      else {
        const address = options.addresses[batch.node]
        if (address === undefined) throw new UnavailableError('its node is not among the peers of this one')
        bytes = await requestBytes(context, address, Method.read, readRequest.encode({ jobId, items }), batch.bytes)
      }
    } catch (error) {
      context.signal.throwIfAborted()
      const lost = new LostMapError((batch.items[0] as Batch['items'][0]).run, error)
      if (!lost.gone || batch.items.length === 1) throw lost
      // One of them is gone: find out which.
      const middle = batch.items.length >> 1
      for (const half of [batch.items.slice(0, middle), batch.items.slice(middle)]) {
        await fetchBatch({ node: batch.node, items: half, bytes: half.reduce((sum, { item }) => sum + item.length, 0) })
      }
      return
    }
    let at = 0
    for (const { item, target: position } of batch.items) {
      await target.write(bytes.subarray(at, at + item.length), position)
      at += item.length
    }
  }
  try {
    await Promise.all(batches.map((batch) => queue.add(() => fetchBatch(batch))))
  } catch (error) {
    queue.clear()
    // Those under way still write to the target: let them end before it is closed.
    await queue.onIdle()
    throw error
  }
}

interface Target {
  readonly transfer: ArrayBuffer[]
  write(bytes: Uint8Array, position: number): Promise<void>
  place(run: RunReference, position: number): ReduceRun
  close(): Promise<void>
}

class MemoryTarget implements Target {
  readonly #bytes: Uint8Array<ArrayBuffer>
  readonly transfer: ArrayBuffer[]

  constructor(length: number) {
    this.#bytes = new Uint8Array(new ArrayBuffer(length))
    this.transfer = [this.#bytes.buffer]
  }

  async write(bytes: Uint8Array, position: number): Promise<void> {
    this.#bytes.set(bytes, position)
  }

  place({ map, length, checksum }: RunReference, position: number): ReduceRun {
    return { map, length, checksum, bytes: this.#bytes.subarray(position, position + length) }
  }

  async close(): Promise<void> {}
}

class FileTarget implements Target {
  readonly transfer: ArrayBuffer[] = []
  readonly #file: FileHandle
  readonly #path: string

  private constructor(file: FileHandle, path: string) {
    this.#file = file
    this.#path = path
  }

  static async make(outputs: TaskOutputs, name: string): Promise<FileTarget> {
    await outputs.makeFolder()
    const path = join(outputs.folder, `${name}-fetched`)
    return new FileTarget(await open(path, 'wx'), path)
  }

  async write(bytes: Uint8Array, position: number): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      done += (await this.#file.write(bytes, done, bytes.length - done, position + done)).bytesWritten
    }
  }

  place({ map, length, checksum }: RunReference, position: number): ReduceRun {
    return { map, length, checksum, path: this.#path, offset: position }
  }

  async close(): Promise<void> {
    await this.#file.close()
  }
}
