/**
 * Output to an array in the result.
 *
 * Invariant: more than `maxBytes` are refused before they are read into memory.
 */
import { mkdir, rm } from 'node:fs/promises'
import { JobFailedError } from './errors.js'
import type { JobKey } from './job.js'
import type { ArrayOutput, ArrayResult, PartInfo, Sink } from './output.js'
import { readPairs } from './pair-file.js'
import { bytesToValue } from './value-codec.js'

export class ArraySink implements Sink {
  readonly format = 'pairs'
  readonly #maxBytes: number
  readonly #folder: string
  readonly #jobId: string
  readonly #keys: () => 'text' | 'bytes'
  readonly #parts: (readonly [JobKey, unknown])[][] = []
  #bytes = 0

  constructor(output: ArrayOutput, options: { folder: string; jobId: string; keys: () => 'text' | 'bytes' }) {
    this.#maxBytes = output.maxBytes
    this.#folder = options.folder
    this.#jobId = options.jobId
    this.#keys = options.keys
  }

  async prepare(): Promise<string> {
    await mkdir(this.#folder, { recursive: true })
    return this.#folder
  }

  async accept(part: number, path: string, info: PartInfo): Promise<void> {
    this.#bytes += info.bytes
    if (this.#bytes > this.#maxBytes) {
      throw new JobFailedError('OUTPUT_FAILED', `the output has more than the ${this.#maxBytes} bytes that toArray allows`, this.#jobId)
    }
    const pairs: [JobKey, unknown][] = []
    const asText = this.#keys() === 'text'
    for await (const { key, value } of readPairs(path)) pairs.push([asText ? key.toString('utf8') : new Uint8Array(key), bytesToValue(value)])
    this.#parts[part] = pairs
    await rm(path)
  }

  async commit(): Promise<ArrayResult> {
    return { kind: 'array', pairs: this.#parts.flat() }
  }

  async abort(): Promise<string[]> {
    return []
  }
}
