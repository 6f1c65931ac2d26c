/**
 * Output to the store: pairs are written under a generation that nobody reads, and made visible by one conditional write (output-claim.ts).
 *
 * Invariants: 1. data is written only under a claim, and only of parts that are whole and checked; 2. writes under way are bounded; two writes of
 * one key follow each other; 3. what an earlier generation left is removed only after the new one is visible.
 */
import { mkdir, rm } from 'node:fs/promises'
import PQueue from 'p-queue'
import { OutcomeUnknownError } from '../base/errors.js'
import { JobFailedError } from './errors.js'
import type { KvOutput, KvResult, PartInfo, Sink } from './output.js'
import { type ClaimOptions, deleteGeneration, generationPrefix, OutputClaim, patienceMs, sweepGenerations } from './output-claim.js'
import { readPairs } from './pair-file.js'
import { isPassing, persist } from './sleep.js'

const writesUnderWay = 64
const revokeMs = 10_000

export class KvSink implements Sink {
  readonly format = 'pairs'
  readonly #output: KvOutput
  readonly #claimOptions: ClaimOptions
  readonly #folder: string
  readonly #keys: () => 'text' | 'bytes'
  readonly #jobId: string
  readonly #writes = new PQueue({ concurrency: writesUnderWay })
  #claim: OutputClaim | undefined
  #pairs = 0
  #bytes = 0

  constructor(output: KvOutput, options: { claim: ClaimOptions; folder: string; jobId: string; keys: () => 'text' | 'bytes' }) {
    this.#output = output
    this.#claimOptions = options.claim
    this.#folder = options.folder
    this.#jobId = options.jobId
    this.#keys = options.keys
  }

  async prepare(signal: AbortSignal): Promise<string> {
    const { kv, prefix, generation, runtime } = this.#claimOptions
    this.#claim = await OutputClaim.take(this.#claimOptions, this.#output.overwrite, signal)
    const keep = [this.#claim.previous?.generation, generation]
    await persist({ runtime, timeoutMs: patienceMs, signal }, () => sweepGenerations(kv, prefix, keep, signal))
    await mkdir(this.#folder, { recursive: true })
    return this.#folder
  }

  #requireClaim(): OutputClaim {
    if (this.#claim === undefined) throw new JobFailedError('OUTPUT_FAILED', 'the output was not claimed', this.#jobId)
    if (this.#claim.lost !== undefined) throw this.#claim.lost
    return this.#claim
  }

  async accept(_part: number, path: string, info: PartInfo, signal: AbortSignal): Promise<void> {
    const { prefix, generation } = this.#claimOptions
    const base = generationPrefix(prefix, generation)
    const underWay = new Map<string, Promise<void>>()
    let failure: unknown
    for await (const pair of readPairs(path)) {
      this.#requireClaim()
      signal.throwIfAborted()
      if (failure !== undefined) break
      const key = Buffer.concat([base, pair.key])
      const name = key.toString('latin1')
      // The later of two writes of a key must not overtake the earlier.
      await underWay.get(name)
      await this.#writes.onSizeLessThan(writesUnderWay)
      const write = this.#writes
        .add(() => this.#put(key, pair.value, signal))
        .catch((error) => {
          failure ??= error
        })
        .finally(() => underWay.delete(name)) as Promise<void>
      underWay.set(name, write)
    }
    await Promise.all(underWay.values())
    if (failure !== undefined) throw failure
    this.#pairs += info.pairs
    this.#bytes += info.bytes
    await rm(path)
  }

  /** Writing the same pair again changes nothing that anybody could see, so doubt is no problem here. */
  async #put(key: Uint8Array, value: Uint8Array, signal: AbortSignal): Promise<void> {
    const { kv, runtime } = this.#claimOptions
    await persist({ runtime, timeoutMs: patienceMs, signal }, () => kv.put(key, value, { signal }))
  }

  async commit(signal: AbortSignal): Promise<KvResult> {
    const claim = this.#requireClaim()
    const { kv, prefix, generation, runtime } = this.#claimOptions
    const previous = claim.previous?.generation
    try {
      await claim.commit({ pairs: this.#pairs, bytes: this.#bytes, keys: this.#keys() }, signal)
    } catch (cause) {
      if (!isPassing(cause)) throw cause
      // The store was away for too long, and a try may have come through: whoever revokes the claim finds out.
      const revoked = await claim.revoke(revokeMs).catch(() => {
        throw new OutcomeUnknownError('the store cannot be reached: the output may or may not have become visible', { cause })
      })
      if (revoked) throw new JobFailedError('OUTPUT_FAILED', 'the store could not be reached to commit the output', this.#jobId, {}, { cause })
    }
    // Readers of the earlier generation find out and turn to this one; what cannot be removed now is swept by the next job.
    if (previous !== undefined) {
      await persist({ runtime, timeoutMs: revokeMs, signal }, () => deleteGeneration(kv, prefix, previous)).catch(() => {})
    }
    return { kind: 'kv', generation, fence: claim.fence, pairs: this.#pairs }
  }

  async abort(): Promise<string[]> {
    if (this.#claim === undefined) return []
    const { kv, prefix, generation, runtime } = this.#claimOptions
    await this.#writes.onIdle()
    try {
      if (await this.#claim.revoke(revokeMs)) await persist({ runtime, timeoutMs: revokeMs }, () => deleteGeneration(kv, prefix, generation))
      return []
    } catch (error) {
      return [
        `the keys of generation ${generation} could not be removed, the next job at this prefix will: ${error instanceof Error ? error.message : String(error)}`,
      ]
    }
  }
}
