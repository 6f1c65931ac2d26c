/**
 * Plans the splits of keys of the store, which tells nobody how many keys a range has: the key space is divided by probing it as a trie, one scan of one
 * entry for each branch, and a task whose range proves too large stops and hands the rest back to be divided again.
 *
 * Invariants: 1. the ranges are disjoint and in order, and cover exactly the range given; 2. the same keys give the same ranges; 3. a range that a task has ended
 * early is fixed from then on: whoever runs it again scans the same keys.
 */
import { toBytes } from '../base/bytes.js'
import { InvalidArgumentError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { KeyLike, KV } from '../engine/kv.js'
import { copyBytes } from './byte-builder.js'
import { limits } from './protocol.js'
import { persist } from './sleep.js'
import type { InputPlan, KeyRange, PlanOptions, RangeSplit } from './splits.js'

/** Ranges to begin with: enough for a dozen nodes with some to spare for balance. */
const initialRanges = 48
/** Ranges into which the rest of a range is divided. */
const furtherRanges = 8

/** The least key that is greater than all keys with this prefix; undefined when there is none. */
export function afterPrefix(prefix: Uint8Array): Uint8Array | undefined {
  for (let length = prefix.length; length > 0; length--) {
    if (prefix[length - 1] === 0xff) continue
    const next = copyBytes(prefix, 0, length)
    next[length - 1] = (next[length - 1] as number) + 1
    return next
  }
  return undefined
}

/** The store may be away for so long while an input is divided. */
const patienceMs = 60_000

export async function planKeys(kv: KV, prefix: KeyLike, options: PlanOptions & { readonly runtime: Runtime }): Promise<InputPlan> {
  const from = toBytes(prefix)
  const plan = async (range: KeyRange, wanted: number): Promise<readonly RangeSplit[]> => {
    const maxBytes = Math.min(options.splitBytes, limits.maxSplitBytes)
    const { runtime, signal } = options
    const ranges = await persist({ runtime, timeoutMs: patienceMs, signal }, () => divideRange(kv, range, wanted, signal))
    return ranges.map((part) => ({ kind: 'range', range: part, maxBytes }))
  }
  return {
    splits: await plan({ from, to: afterPrefix(from) }, initialRanges),
    divide: (range) => plan(range, furtherRanges),
    close: async () => {},
  }
}

/** A subtree of the trie of keys, with its first key. */
interface Branch {
  readonly prefix: Uint8Array
  readonly first: Uint8Array
}

/** Divides a range into at most about `wanted` parts that all have keys; none, when it has no keys. */
export async function divideRange(kv: KV, range: KeyRange, wanted: number, signal: AbortSignal): Promise<KeyRange[]> {
  let probesLeft = wanted * 4
  const probe = async (from: Uint8Array, to: Uint8Array | undefined, reverse = false): Promise<Uint8Array | undefined> => {
    probesLeft--
    // A store has no empty key, so an empty bound is none.
    for await (const { key } of kv.scan({ gte: from.length === 0 ? undefined : from, lt: to, limit: 1, reverse, signal })) return key
    return undefined
  }
  const first = await probe(range.from, range.to)
  if (first === undefined) return []
  const within = (branch: Branch): KeyRange => {
    const after = afterPrefix(branch.prefix)
    const from = Buffer.compare(branch.prefix, range.from) < 0 ? range.from : branch.prefix
    const to = after === undefined ? range.to : range.to === undefined || Buffer.compare(after, range.to) < 0 ? after : range.to
    return { from, to }
  }
  const boundaries: Uint8Array[] = []
  let level: Branch[] = [{ prefix: new Uint8Array(0), first }]
  while (level.length > 0 && boundaries.length + 1 < wanted && probesLeft > 0) {
    const next: Branch[] = []
    for (const branch of level) {
      if (boundaries.length + 1 >= wanted || probesLeft <= 0) break
      const { from, to } = within(branch)
      const last = await probe(from, to, true)
      if (last === undefined || Buffer.compare(last, branch.first) === 0) continue
      const depth = commonLength(branch.first, last)
      let child: Uint8Array | undefined = branch.first
      while (child !== undefined && probesLeft > 0) {
        const prefix: Uint8Array = copyBytes(child, 0, depth + 1)
        if (Buffer.compare(child, branch.first) > 0) boundaries.push(prefix)
        // A key that ends at the fork is a branch of its own without branches.
        const ends: boolean = child.length <= depth
        if (!ends) next.push({ prefix, first: child })
        const after: Uint8Array | undefined = ends ? Buffer.concat([child, Buffer.of(0)]) : afterPrefix(prefix)
        child = after === undefined || (to !== undefined && Buffer.compare(after, to) >= 0) ? undefined : await probe(after, to)
      }
    }
    level = next
  }
  boundaries.sort(Buffer.compare)
  const ranges: KeyRange[] = []
  let from = range.from
  for (const boundary of boundaries) {
    if (Buffer.compare(boundary, from) <= 0) continue
    ranges.push({ from, to: boundary })
    from = boundary
  }
  ranges.push({ from, to: range.to })
  return ranges
}

function commonLength(left: Uint8Array, right: Uint8Array): number {
  const length = Math.min(left.length, right.length)
  for (let index = 0; index < length; index++) if (left[index] !== right[index]) return index
  return length
}

/** Refuses a job that would read the keys that it writes. */
export function refuseCyclicKeys(input: KeyLike, output: KeyLike): void {
  const [inputBytes, outputBytes] = [toBytes(input), toBytes(output)]
  const common = commonLength(inputBytes, outputBytes)
  if (common === inputBytes.length || common === outputBytes.length) {
    throw new InvalidArgumentError('the prefixes of input and output overlap: a job cannot read what it writes', 'CYCLIC_INPUT')
  }
}
