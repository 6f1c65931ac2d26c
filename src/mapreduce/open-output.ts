/**
 * Reading the output that a job left in the store.
 *
 * Invariant: only a committed generation is ever read.
 */
import { toBytes } from '../base/bytes.js'
import { UnavailableError } from '../base/errors.js'
import type { KeyLike, KV, WaitOptions } from '../engine/kv.js'
import type { JobKey } from './job.js'
import { type Committed, generationPrefix, readManifest } from './output-claim.js'
import { bytesToValue } from './value-codec.js'

export interface OutputScanOptions extends WaitOptions {
  readonly prefix?: KeyLike | undefined
  readonly gte?: KeyLike | undefined
  readonly lt?: KeyLike | undefined
  readonly reverse?: boolean | undefined
  readonly limit?: number | undefined
}

/** The committed output of a job at a prefix of the store. */
export class OutputReader<Value = unknown> {
  readonly #kv: KV
  readonly #prefix: KeyLike
  #committed: Committed

  constructor(kv: KV, prefix: KeyLike, committed: Committed) {
    this.#kv = kv
    this.#prefix = prefix
    this.#committed = committed
  }

  /** Which generation is read. */
  get generation(): string {
    return this.#committed.generation
  }

  /** The fencing token of the job that made it: greater than that of every job at this prefix before. */
  get fence(): number {
    return this.#committed.fence
  }

  /** Pairs in the output. */
  get pairs(): number {
    return this.#committed.pairs
  }

  /** The name of the job that made it. */
  get job(): string {
    return this.#committed.job
  }

  /** The value of a key, or undefined. When a newer output has taken the place of the one that was opened, reads go over to it. */
  async get(key: JobKey, options: WaitOptions = {}): Promise<Value | undefined> {
    for (;;) {
      const { generation } = this.#committed
      const entry = await this.#kv.get(Buffer.concat([generationPrefix(this.#prefix, generation), toBytes(key)]), options)
      if (entry !== undefined) return bytesToValue(entry.value) as Value
      // Absent, or removed because there is a newer generation.
      const { current } = (await readManifest(this.#kv, this.#prefix, options.signal)).manifest
      if (current === undefined || current.generation === generation) return undefined
      this.#committed = current
    }
  }

  /**
   * Pairs in byte order of their keys.
   * @throws UnavailableError `OUTPUT_REPLACED` when a newer output took its place meanwhile: scan again.
   */
  async *scan(options: OutputScanOptions = {}): AsyncGenerator<readonly [JobKey, Value]> {
    const { prefix, gte, lt, ...rest } = options
    const { generation, keys } = this.#committed
    const base = generationPrefix(this.#prefix, generation)
    const under = (key: KeyLike | undefined): Uint8Array | undefined => (key === undefined ? undefined : Buffer.concat([base, toBytes(key)]))
    for await (const { key, value } of this.#kv.scan({ ...rest, prefix: under(prefix ?? ''), gte: under(gte), lt: under(lt) })) {
      const own = key.subarray(base.length)
      yield [keys === 'text' ? Buffer.from(own).toString('utf8') : own, bytesToValue(value) as Value]
    }
    const { current } = (await readManifest(this.#kv, this.#prefix, options.signal)).manifest
    if (current?.generation === generation) return
    if (current !== undefined) this.#committed = current
    throw new UnavailableError('a newer output took the place of the one that was being read', 'OUTPUT_REPLACED')
  }
}

/**
 * Opens what a job with `output: toKv({ prefix })` has committed.
 * @throws UnavailableError `NO_OUTPUT` when there is none (yet).
 */
export async function openOutput<Value = unknown>(kv: KV, prefix: KeyLike, options: WaitOptions = {}): Promise<OutputReader<Value>> {
  const { current } = (await readManifest(kv, prefix, options.signal)).manifest
  if (current === undefined) throw new UnavailableError('no job has committed an output at this prefix', 'NO_OUTPUT')
  return new OutputReader<Value>(kv, prefix, current)
}
