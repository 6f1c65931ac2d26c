/**
 * The members of KV that need only other members: every implementation has them from here.
 *
 * Invariant: each is exactly as atomic as the one transaction that it ends in; what was read before is a condition of that.
 */
import { toBytes } from '../base/bytes.js'
import { UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { FenceOptions, KeyLike, KeyValue, KV, Updater, ValueLike, ValueSource, WriteResult } from './kv.js'

/** What they need of an implementation. */
export interface ConvenienceOptions {
  readonly kv: Pick<KV, 'get' | 'txn'>
  readonly runtime: Pick<Runtime, 'nowMs'>
  /** The implementation's default. Without one each step has its own. */
  readonly requestTimeoutMs?: number
}

/** The options of each of several steps that share one deadline. */
function steps({ runtime, requestTimeoutMs }: ConvenienceOptions, options: FenceOptions): () => FenceOptions {
  const { timeoutMs = requestTimeoutMs } = options
  if (timeoutMs === undefined) return () => options
  const deadlineMs = runtime.nowMs() + timeoutMs
  let isFirst = true
  return () => {
    const leftMs = deadlineMs - runtime.nowMs()
    // What is wrong with a timeout is the first step's to say.
    if (isFirst) {
      isFirst = false
      return options
    }
    if (leftMs <= 0) throw new UnavailableError('the deadline passed before the write was asked for', 'TIMEOUT')
    return { ...options, timeoutMs: leftMs }
  }
}

/** `KV.getOrPut`. */
export async function getOrPut(
  parts: ConvenienceOptions,
  key: KeyLike,
  value: ValueSource,
  options: FenceOptions,
): Promise<KeyValue & { readonly created: boolean }> {
  const { kv } = parts
  const next = steps(parts, options)
  // A copy: the caller may reuse its buffers while this waits.
  const own = copy(key)
  const given = typeof value === 'function' ? value : copy(value)
  const found = await kv.get(own, next())
  if (found !== undefined) return { ...found, created: false }
  const content = toBytes(typeof given === 'function' ? copy(await given()) : given)
  const { succeeded, results } = await kv.txn(
    { if: [{ key: own, absent: true }], then: [{ put: own, value: content }], else: [{ get: own }] },
    next(),
  )
  if (!succeeded) return { ...(results[0] as KeyValue), created: false }
  return { ...entryOf(own, content, results[0] as WriteResult), created: true }
}

/** `KV.update`. */
export async function update(parts: ConvenienceOptions, key: KeyLike, change: Updater, options: FenceOptions): Promise<KeyValue | undefined> {
  const { kv } = parts
  const next = steps(parts, options)
  const own = copy(key)
  let current = await kv.get(own, next())
  for (;;) {
    const wanted = await change(current)
    if (wanted === undefined) return current
    if (wanted === null && current === undefined) return undefined
    const condition = { key: own, revision: current?.revision ?? 0 }
    if (wanted === null) {
      const { succeeded, results } = await kv.txn({ if: [condition], then: [{ delete: own }], else: [{ get: own }] }, next())
      if (succeeded) return undefined
      current = results[0] as KeyValue | undefined
    } else {
      const content = toBytes(copy(wanted))
      const { succeeded, results } = await kv.txn({ if: [condition], then: [{ put: own, value: content }], else: [{ get: own }] }, next())
      if (succeeded) return entryOf(own, content, results[0] as WriteResult)
      current = results[0] as KeyValue | undefined
    }
  }
}

function copy<Input extends ValueLike>(input: Input): Input {
  return input instanceof Uint8Array ? (Buffer.from(input) as Uint8Array as Input) : input
}

/** The entry that a put has left. */
function entryOf(key: KeyLike, value: Uint8Array, { version, revision }: WriteResult): KeyValue {
  return { key: toBytes(key), value, version, revision }
}
