/**
 * A closed loop of concurrent callers: each starts its next operation when its last one is done, as callers of a library do.
 *
 * 1. What completes during the warm-up, or after the time is up, is not counted. 2. Every latency that counts is kept: percentiles are exact.
 * 3. An operation that fails ends the measurement with its error; a rate with failures in it means nothing.
 */
import { performance } from 'node:perf_hooks'

export type OperationName = 'put' | 'get'

/** What a system under test offers to the loop. */
export interface Operations {
  put(key: Uint8Array, value: Uint8Array): Promise<unknown>
  /** Linearizable; must resolve to the value. */
  get(key: Uint8Array): Promise<Uint8Array | undefined>
}

export interface CellOptions {
  readonly operation: OperationName
  readonly callers: number
  readonly warmUpMs: number
  readonly durationMs: number
  /** How many keys there are; by default `keyCount`. */
  readonly keys?: number
}

/** One measured cell of the table. */
export interface CellResult {
  readonly operations: number
  readonly opsPerSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  readonly maxMs: number
  /** The longest time in which not one operation of any caller completed. */
  readonly longestStallMs: number
}

export const keyCount = 100_000
export const valueBytes = 100

/** The keys: eight bytes each, the same for every system, known before the clock starts. */
const keys: readonly Uint8Array[] = Array.from({ length: keyCount }, (_, number) => makeKey(number))

function makeKey(number: number): Uint8Array {
  return Buffer.from(`k${String(number).padStart(7, '0')}`)
}

function keyOf(number: number): Uint8Array {
  return keys[number] ?? makeKey(number)
}

/** Values are windows of one random block, so that no store gains by compressing them. */
const randomBlock = crypto.getRandomValues(new Uint8Array(1 << 16))

function randomKey(count: number): Uint8Array {
  return keyOf(Math.floor(Math.random() * count))
}

function randomValue(): Uint8Array {
  const start = Math.floor(Math.random() * (randomBlock.length - valueBytes))
  return randomBlock.subarray(start, start + valueBytes)
}

/** Latencies of a cell; grows by doubling, since the rate is not known before. */
class Samples {
  #values = new Float64Array(1 << 16)
  #count = 0

  get count(): number {
    return this.#count
  }

  add(value: number): void {
    if (this.#count === this.#values.length) {
      const larger = new Float64Array(this.#values.length * 2)
      larger.set(this.#values)
      this.#values = larger
    }
    this.#values[this.#count++] = value
  }

  sorted(): Float64Array {
    return this.#values.subarray(0, this.#count).sort()
  }
}

/** Writes every key once, so that each get finds a value. */
export async function preload(operations: Operations, count = keyCount, callers = 256): Promise<void> {
  let next = 0
  const work = async () => {
    for (let number = next++; number < count; number = next++) await operations.put(keyOf(number), randomValue())
  }
  await Promise.all(Array.from({ length: callers }, work))
}

/** Writes so many bytes in values of 2 KiB, each under a key of its own. */
export async function fill(operations: Operations, bytes: number, callers = 64): Promise<void> {
  const size = 2048
  let next = 0
  const work = async () => {
    for (let number = next++; number * size < bytes; number = next++) {
      const start = (number * 7919) % (randomBlock.length - size)
      await operations.put(Buffer.from(`fill ${number}`), randomBlock.subarray(start, start + size))
    }
  }
  await Promise.all(Array.from({ length: callers }, work))
}

/** Runs one cell. The clock can be replaced, for tests. */
export async function measure(operations: Operations, options: CellOptions, nowMs = () => performance.now()): Promise<CellResult> {
  const samples = new Samples()
  const count = options.keys ?? keyCount
  const startMs = nowMs()
  const countFromMs = startMs + options.warmUpMs
  const endMs = countFromMs + options.durationMs
  let lastCompletionMs = countFromMs
  let longestStallMs = 0

  const once =
    options.operation === 'put'
      ? () => operations.put(randomKey(count), randomValue())
      : async () => {
          const value = await operations.get(randomKey(count))
          if (value?.length !== valueBytes)
            throw new Error(`a get resolved to ${value?.length ?? 'no'} bytes, not to the ${valueBytes} that were put`)
        }
  const caller = async () => {
    for (;;) {
      const begunMs = nowMs()
      if (begunMs >= endMs) return
      await once()
      const doneMs = nowMs()
      if (doneMs < countFromMs || doneMs > endMs) continue
      samples.add(doneMs - begunMs)
      longestStallMs = Math.max(longestStallMs, doneMs - lastCompletionMs)
      lastCompletionMs = doneMs
    }
  }
  await Promise.all(Array.from({ length: options.callers }, caller))
  if (samples.count === 0) throw new Error(`no ${options.operation} completed in ${options.durationMs} ms`)
  longestStallMs = Math.max(longestStallMs, endMs - lastCompletionMs)
  const sorted = samples.sorted()
  const quantile = (fraction: number) => sorted[Math.min(sorted.length - 1, Math.floor(fraction * sorted.length))]!
  return {
    operations: sorted.length,
    opsPerSecond: sorted.length / (options.durationMs / 1000),
    p50Ms: quantile(0.5),
    p99Ms: quantile(0.99),
    maxMs: sorted[sorted.length - 1]!,
    longestStallMs,
  }
}
