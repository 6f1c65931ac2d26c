/**
 * What callers hand to a KV: taken as bytes, copied, and checked against the limits before anything is sent.
 *
 * Invariants: 1. what passes here passes `checkBatch` on a node with the same limits; 2. what comes out shares no memory with the caller.
 */
import { toBytes } from '../base/bytes.js'
import { InvalidArgumentError } from '../base/errors.js'
import { type CommandFence, type Limits, shardOf } from './command.js'
import { isInteger } from './integer.js'
import type { BatchOperation, Compare, Fence, KeyLike, TxnOperation, TxnRequest, ValueLike } from './kv.js'
import { type KeyCondition, type Step, StepKind, type Transaction } from './transaction.js'

/** A key's bytes, as a copy: the caller may reuse its buffer while a retry still needs the key. */
export function keyBytes(key: KeyLike, { maxKeyBytes }: Limits): Uint8Array {
  if (typeof key !== 'string' && !(key instanceof Uint8Array)) {
    throw new InvalidArgumentError(`Expected a key of type string or Uint8Array, got ${typeof key}`)
  }
  const bytes = typeof key === 'string' ? toBytes(key) : Buffer.from(key)
  if (bytes.length === 0) throw new InvalidArgumentError('The key is empty', 'EMPTY_KEY')
  if (bytes.length > maxKeyBytes) throw new InvalidArgumentError(`The key has ${bytes.length} bytes, the limit is ${maxKeyBytes}`, 'KEY_TOO_LARGE')
  return bytes
}

/** A value's bytes, as a copy. */
export function valueBytes(value: ValueLike, { maxValueBytes }: Limits): Uint8Array {
  if (typeof value !== 'string' && !(value instanceof Uint8Array)) {
    throw new InvalidArgumentError(`Expected a value of type string or Uint8Array, got ${typeof value}`)
  }
  const bytes = toBytes(value)
  if (bytes.length > maxValueBytes) {
    throw new InvalidArgumentError(`The value has ${bytes.length} bytes, the limit is ${maxValueBytes}`, 'VALUE_TOO_LARGE')
  }
  return typeof value === 'string' ? bytes : Buffer.from(bytes)
}

export function checkCount(name: string, value: number | undefined): void {
  if (value !== undefined && (!Number.isSafeInteger(value) || value < 0)) {
    throw new InvalidArgumentError(`Expected \`${name}\` to be a whole number of at least 0, got ${value}`)
  }
}

/** What `increment` is to add. */
export function incrementBy(by: number | bigint): bigint {
  const isWhole = typeof by === 'bigint' ? isInteger(by) : Number.isSafeInteger(by)
  if (!isWhole) throw new InvalidArgumentError(`Expected \`by\` to be a whole number of at most 64 bits, as a number up to 2^53-1, got ${String(by)}`)
  return BigInt(by)
}

/** The fence of something that is written in a shard. */
export function fenceOf(fence: Fence | undefined, shard: number, shards: number, limits: Limits): CommandFence | undefined {
  if (fence === undefined) return undefined
  const key = keyBytes(fence.key, limits)
  if (fence.revision === undefined) throw new InvalidArgumentError('Expected the fence to have a `revision`')
  checkCount('fence.revision', fence.revision)
  if (shardOf(key, shards) !== shard) throw crossShard('The key of the fence is in another shard than what is written')
  return { key, revision: fence.revision }
}

function crossShard(what: string): InvalidArgumentError {
  return new InvalidArgumentError(`${what}; a common text in braces, like {order 7}/lines, keeps keys together`, 'CROSS_SHARD')
}

/** A transaction with the shard that it is for. */
export interface PlacedTransaction {
  readonly shard: number
  readonly transaction: Transaction
}

/** What a caller of `txn` asks for. */
export function transactionOf(request: TxnRequest, shards: number, limits: Limits): PlacedTransaction {
  const { if: compares = [], then = [], else: otherwise = [] } = request
  const all = [...listOf(compares, 'if'), ...listOf(then, 'then'), ...listOf(otherwise, 'else')]
  checkSize(all.length, limits)
  const transaction: Transaction = {
    wantsResults: true,
    compares: compares.map((compare) => conditionOf(compare, limits)),
    branches: [then.map((operation) => stepOf(operation, limits)), otherwise.map((operation) => stepOf(operation, limits))],
  }
  return { shard: placeOf(transaction, shards, limits), transaction }
}

/** What a caller of `batch` asks for. */
export function batchOf(operations: readonly BatchOperation[], shards: number, limits: Limits): PlacedTransaction {
  checkSize(listOf(operations, 'operations').length, limits)
  const steps = operations.map((operation) => {
    const step = stepOf(operation, limits)
    if (step.kind === StepKind.get) throw new InvalidArgumentError('A batch only writes; `txn` reads as well')
    return step
  })
  const transaction: Transaction = { wantsResults: false, compares: [], branches: [steps, []] }
  return { shard: placeOf(transaction, shards, limits), transaction }
}

function listOf<Part>(list: readonly Part[], name: string): readonly Part[] {
  if (!Array.isArray(list)) throw new InvalidArgumentError(`Expected \`${name}\` to be an array, got ${typeof list}`)
  return list
}

function checkSize(count: number, { maxBatchOperations }: Limits): void {
  if (count === 0) throw new InvalidArgumentError('There is nothing to do')
  if (count <= maxBatchOperations) return
  throw new InvalidArgumentError(`There are ${count} conditions and operations, the limit is ${maxBatchOperations}`, 'TOO_MANY_OPERATIONS')
}

function conditionOf(compare: Compare, limits: Limits): KeyCondition {
  if (typeof compare !== 'object' || compare === null) throw new InvalidArgumentError(`Expected a condition to be an object, got ${typeof compare}`)
  const { version, revision, value, absent: isAbsent } = compare
  const key = keyBytes(compare.key, limits)
  checkCount('version', version)
  checkCount('revision', revision)
  if (isAbsent !== undefined && typeof isAbsent !== 'boolean')
    throw new InvalidArgumentError(`Expected \`absent\` to be true or false, got ${isAbsent}`)
  if (version === undefined && revision === undefined && value === undefined && isAbsent === undefined) {
    throw new InvalidArgumentError('A condition says nothing of its key: expected `version`, `revision`, `value` or `absent`')
  }
  return { key, version, revision, value: value === undefined ? undefined : valueBytes(value, limits), isAbsent }
}

function stepOf(operation: TxnOperation, limits: Limits): Step {
  if (typeof operation !== 'object' || operation === null)
    throw new InvalidArgumentError(`Expected an operation to be an object, got ${typeof operation}`)
  const { get, put, delete: remove, value } = operation as { get?: KeyLike; put?: KeyLike; delete?: KeyLike; value?: ValueLike }
  if ([get, put, remove].filter((key) => key !== undefined).length !== 1) {
    throw new InvalidArgumentError('Expected an operation to have a key as `get`, `put` or `delete`, and only one of them')
  }
  if (put !== undefined) return { kind: StepKind.put, key: keyBytes(put, limits), value: valueBytes(value as ValueLike, limits) }
  if (value !== undefined) throw new InvalidArgumentError('Only a `put` has a value')
  if (get !== undefined) return { kind: StepKind.get, key: keyBytes(get, limits), value: null }
  return { kind: StepKind.delete, key: keyBytes(remove as KeyLike, limits), value: null }
}

/** The shard of all keys of a transaction, which is also within its bound in bytes. */
function placeOf({ compares, branches }: Transaction, shards: number, { maxBatchBytes }: Limits): number {
  const parts = [...compares, ...branches[0], ...branches[1]]
  const bytes = parts.reduce((sum, { key, value }) => sum + key.length + (value?.length ?? 0), 0)
  if (bytes > maxBatchBytes)
    throw new InvalidArgumentError(`The keys and values have ${bytes} bytes, the limit is ${maxBatchBytes}`, 'BATCH_TOO_LARGE')
  const shard = shardOf(parts[0]!.key, shards)
  if (parts.some(({ key }) => shardOf(key, shards) !== shard)) throw crossShard('The keys are in several shards, and nothing is atomic over shards')
  return shard
}
