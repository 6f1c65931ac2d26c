/**
 * Plans the splits of a list: the items are written to a temporary file as entries, and each split is a range of it.
 *
 * Invariant: the list is gone through once, and never in memory as a whole.
 */
import { type FileHandle, mkdir, open } from 'node:fs/promises'
import { join } from 'node:path'
import { InvalidArgumentError } from '../base/errors.js'
import { copyBytes } from './byte-builder.js'
import { entryHeader } from './entries.js'
import type { InputItem } from './input.js'
import { limits } from './protocol.js'
import type { HeldSplit, InputPlan, PlanOptions } from './splits.js'

export async function planItems(items: Iterable<InputItem> | AsyncIterable<InputItem>, folder: string, options: PlanOptions): Promise<InputPlan> {
  await mkdir(folder, { recursive: true })
  const file = await open(join(folder, 'input'), 'wx+')
  const splits: HeldSplit[] = []
  let pending: Uint8Array[] = []
  let pendingBytes = 0
  let written = 0
  const close = async (): Promise<void> => {
    if (pending.length === 0) return
    await file.appendFile(Buffer.concat(pending, pendingBytes))
    splits.push(new SpooledSplit(file, written, pendingBytes))
    written += pendingBytes
    pending = []
    pendingBytes = 0
    if (splits.length > options.maxTasks) {
      throw new InvalidArgumentError(`the input makes more than ${options.maxTasks} tasks: choose larger splitBytes`, 'TOO_MANY_TASKS')
    }
  }
  try {
    let position = 0
    for await (const item of items) {
      options.signal.throwIfAborted()
      const named = typeof item === 'object' && !(item instanceof Uint8Array)
      const value = named ? item.value : item
      if (typeof value !== 'string' && !(value instanceof Uint8Array))
        throw new InvalidArgumentError(`item ${position} of the input is neither text nor bytes`)
      const content = typeof value === 'string' ? Buffer.from(value) : copyBytes(value)
      const header = entryHeader(Buffer.from(named ? item.key : String(position)), 0, content.length)
      if (content.length + header.length > limits.maxSplitBytes) throw new InvalidArgumentError(`item ${position} is too large`, 'RECORD_TOO_LARGE')
      if (pendingBytes > 0 && pendingBytes + header.length + content.length > options.splitBytes) await close()
      pending.push(header, content)
      pendingBytes += header.length + content.length
      position++
    }
    await close()
  } catch (error) {
    await file.close()
    throw error
  }
  return { splits, divide: async () => [], close: () => file.close() }
}

class SpooledSplit implements HeldSplit {
  readonly kind = 'held'
  readonly length: number
  readonly #file: FileHandle
  readonly #start: number

  constructor(file: FileHandle, start: number, length: number) {
    this.#file = file
    this.#start = start
    this.length = length
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const result = new Uint8Array(length)
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.#file.read(result, done, length - done, this.#start + offset + done)
      if (bytesRead === 0) throw new InvalidArgumentError('the temporary file of the input was cut', 'INPUT_CHANGED')
      done += bytesRead
    }
    return result
  }
}
