/** Sharding: which shard a key is in. The one place that knows of `{tag}`. */
import { asBuffer, fnv1a } from '../base/bytes.js'

/** The tag of a key, and of all keys that begin so: what stands between the first `{` and the next `}` when that is not empty. */
export function tagOf(beginning: Uint8Array): Buffer | undefined {
  const bytes = asBuffer(beginning)
  const open = bytes.indexOf(0x7b)
  if (open < 0) return undefined
  const close = bytes.indexOf(0x7d, open + 1)
  return close > open + 1 ? bytes.subarray(open + 1, close) : undefined
}

/** The shard of a key: by its tag, or by the whole of it. */
export function shardOf(key: Uint8Array, shards: number): number {
  return fnv1a(tagOf(key) ?? key) % shards
}

/** The shard of all keys that begin like this, if the beginning decides it. */
export function shardOfTag(beginning: Uint8Array, shards: number): number | undefined {
  const tag = tagOf(beginning)
  return tag && fnv1a(tag) % shards
}

/** What all keys in [gte, lt) begin with; a null `lt` means to the end. */
export function commonBeginning(gte: Uint8Array, lt: Uint8Array | null): Uint8Array {
  if (lt === null) return gte.subarray(0, 0)
  let length = 0
  while (length < gte.length && length < lt.length && gte[length] === lt[length]) length++
  // Such is the end of a prefix: its last byte is one more, and is never reached.
  const isEndOfPrefix = lt.length === length + 1 && length < gte.length && lt[length] === gte[length]! + 1
  return gte.subarray(0, isEndOfPrefix ? length + 1 : length)
}

/** The one shard that keys in [gte, lt) can be in; undefined when they can be in any. */
export function shardOfRange(gte: Uint8Array, lt: Uint8Array | null, shards: number): number | undefined {
  return shardOfTag(commonBeginning(gte, lt), shards)
}
