/**
 * Histories: what clients asked of a KV store and what they were told, one line for each operation, and the recorder that makes them. `history-checker.ts` judges them.
 *
 * A line is JSON: `{client, call, ret, op, key, value, version, result}`, with `ifVersion`, `ifRevision`, `revision` and `deleted` where they apply.
 *
 * Invariants: 1. `call` is read before the operation is handed to the store and `ret` after its answer, from one clock that never shows the same time twice: so
 * `ret` before `call` means «before» and all else is concurrent; 2. an operation stands in the history from its call on: a client that dies in the middle leaves one of unknown outcome;
 * 3. whatever the recorder does not understand is `unknown`, which the checker allows to have happened or not: never the reverse.
 */
import { ConditionFailedError, InvalidArgumentError, OverloadedError, UnavailableError } from '../base/errors.js'
import { type Runtime, systemRuntime } from '../base/runtime.js'
import type {
  BatchOperation,
  DeleteResult,
  FenceOptions,
  KeyLike,
  KeyValue,
  KV,
  ReadOptions,
  ScanOptions,
  TxnOperation,
  TxnRequest,
  ValueLike,
  WriteOptions,
  WriteResult,
} from '../engine/kv.js'
import { getOrPut, update } from '../engine/kv-conveniences.js'

/**
 * `ok`; `condition-failed`: certainly not done, and `version` is what the key had instead; `failed`: certainly not done, for a reason that says nothing of the key;
 * `unknown`: done at some time after the call, or never.
 */
export type OperationResult = 'ok' | 'condition-failed' | 'failed' | 'unknown'

export interface Operation {
  readonly client: string
  /** Milliseconds. */
  readonly call: number
  /** Milliseconds; null while, or when, no answer came. */
  ret: number | null
  readonly op: 'get' | 'put' | 'delete'
  /** The key as text; `0x…` in hexadecimal when it is not UTF-8 or starts so itself. */
  readonly key: string
  /** What a put wrote or a get read, coded like the key; null when a get found nothing. Long values stand as `0x…` of their beginning, their length and a checksum. */
  value: string | null
  /** After an `ok`: the version that the key had, for a get, or has now, for a write; 0 when it is absent. After `condition-failed`: the version found. Null when not known. */
  version: number | null
  result: OperationResult
  readonly ifVersion?: number
  readonly ifRevision?: number
  /** The revision that goes with `version`; absent when not known. */
  revision?: number
  /** Of a delete: whether there was something to delete. */
  deleted?: boolean
}

const maxValueBytes = 64
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function toText(input: string | Uint8Array): string {
  // Of a wrong kind: the store refuses it.
  if (typeof input !== 'string' && !(input instanceof Uint8Array)) return String(input)
  if (typeof input === 'string') return input.startsWith('0x') ? hexadecimal(new TextEncoder().encode(input)) : input
  try {
    const text = utf8.decode(input)
    return text.startsWith('0x') ? hexadecimal(input) : text
  } catch {
    return hexadecimal(input)
  }
}

function hexadecimal(bytes: Uint8Array): string {
  return `0x${Buffer.from(bytes).toString('hex')}`
}

/** Values are only ever compared: of a long one its length, its beginning and a 64-bit checksum (two FNV-1a with different starts) are kept. */
function valueText(value: ValueLike): string {
  const bytes = typeof value === 'string' ? new TextEncoder().encode(value) : value
  if (!(bytes instanceof Uint8Array)) return String(bytes)
  if (bytes.length <= maxValueBytes) return toText(bytes)
  let low = 0x811c9dc5
  let high = 0x01234567
  for (const byte of bytes) {
    low = Math.imul(low ^ byte, 0x01000193)
    high = Math.imul(high ^ byte, 0x01000193) ^ (high >>> 15)
  }
  return `${hexadecimal(bytes.subarray(0, 16))}…${bytes.length}/${(low >>> 0).toString(16)}${(high >>> 0).toString(16)}`
}

export class History {
  readonly operations: Operation[] = []
  readonly #runtime: Runtime
  #lastMs = 0

  constructor(options: { readonly runtime?: Runtime } = {}) {
    this.#runtime = options.runtime ?? systemRuntime
  }

  /** The time, in milliseconds, later than every time given before. */
  now(): number {
    // Ten nanoseconds: above the resolution of a double for years of milliseconds.
    this.#lastMs = Math.max(this.#runtime.nowMs(), this.#lastMs + 1e-5)
    return this.#lastMs
  }

  /** Adds an operation that starts now, of unknown outcome until told otherwise. */
  begin(
    operation: Pick<Operation, 'client' | 'op'> &
      Pick<WriteOptions, 'ifVersion' | 'ifRevision'> & { readonly key: KeyLike; readonly value?: ValueLike },
  ): Operation {
    const { client, op, key, value, ifVersion, ifRevision } = operation
    const begun: Operation = {
      client,
      call: this.now(),
      ret: null,
      op,
      key: toText(key),
      value: value === undefined ? null : valueText(value),
      version: null,
      result: 'unknown',
      ...(ifVersion === undefined ? {} : { ifVersion }),
      ...(ifRevision === undefined ? {} : { ifRevision }),
    }
    this.operations.push(begun)
    return begun
  }

  /** One JSON line for each operation, in the order of their calls. */
  toLines(): string {
    return this.operations.map((operation) => `${JSON.stringify(operation)}\n`).join('')
  }

  static fromLines(lines: string): Operation[] {
    return lines
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as Operation)
  }
}

/**
 * The same KV, with every operation of this client written down. `getMany` and `scan` count as one get for each key that they return (what a scan does not return is not
 * written down). Stale reads are not written down: they promise nothing that a history could break. Of a transaction each operation is written down by itself: what the checker finds wrong is
 * wrong, while that they happened together it does not check. An increment stands as a put of the sum: one of unknown outcome has no value, so histories with those cannot be judged.
 *
 * @example
 * const history = new History()
 * const client = recordHistory(kv, history, 'client-1')
 * await client.put('k', 'v')
 * assertLinearizable(history.operations)
 */
export function recordHistory(kv: KV, history: History, client: string): KV {
  const clock = { nowMs: () => history.now() }
  const read = (operation: Operation, entry: KeyValue | undefined) => {
    operation.ret = history.now()
    operation.result = 'ok'
    operation.value = entry === undefined ? null : valueText(entry.value)
    operation.version = entry?.version ?? 0
    if (entry !== undefined) operation.revision = entry.revision
  }
  const fail = (operation: Operation, error: unknown) => {
    if (error instanceof ConditionFailedError && error.code === 'CONDITION_FAILED') {
      operation.ret = history.now()
      operation.result = 'condition-failed'
      operation.version = error.actualVersion
      operation.revision = error.actualRevision
    } else if (
      operation.op === 'get' ||
      error instanceof UnavailableError ||
      error instanceof OverloadedError ||
      error instanceof ConditionFailedError ||
      error instanceof InvalidArgumentError
    ) {
      operation.ret = history.now()
      operation.result = 'failed'
    }
    // Anything else leaves the outcome unknown, as it stands.
  }
  const wrote = (operation: Operation, version: number | null, revision: number | null) => {
    operation.ret = history.now()
    operation.result = 'ok'
    operation.version = version
    if (revision !== null) operation.revision = revision
  }
  const beginStep = (step: TxnOperation) => {
    if ('get' in step) return history.begin({ client, op: 'get', key: step.get })
    if ('put' in step) return history.begin({ client, op: 'put', key: step.put, value: step.value })
    return history.begin({ client, op: 'delete', key: step.delete })
  }
  /** Of two writes of one key in a transaction both have its revision, and the checker takes every revision for that of one write: the last one has it. */
  const isLastWrite = (operations: readonly Operation[], at: number) =>
    !operations.slice(at + 1).some(({ op, key }) => op !== 'get' && key === operations[at]!.key)
  async function* recordScan(entries: AsyncIterable<KeyValue>): AsyncIterable<KeyValue> {
    // An entry was read at some time between the call of the scan and its arrival here.
    const call = history.now()
    for await (const entry of entries) {
      const operation: Operation = { client, call, ret: null, op: 'get', key: toText(entry.key), value: null, version: null, result: 'unknown' }
      read(operation, entry)
      history.operations.push(operation)
      yield entry
    }
  }
  const recorded: KV = {
    async get(key: KeyLike, options?: ReadOptions) {
      if (options?.consistency === 'stale') return kv.get(key, options)
      const operation = history.begin({ client, op: 'get', key })
      try {
        const entry = await kv.get(key, options)
        read(operation, entry)
        return entry
      } catch (error) {
        fail(operation, error)
        throw error
      }
    },
    async getMany(keys: readonly KeyLike[], options?: ReadOptions) {
      if (options?.consistency === 'stale') return kv.getMany(keys, options)
      const operations = keys.map((key) => history.begin({ client, op: 'get', key }))
      try {
        const entries = await kv.getMany(keys, options)
        for (const [position, operation] of operations.entries()) read(operation, entries[position])
        return entries
      } catch (error) {
        for (const operation of operations) fail(operation, error)
        throw error
      }
    },
    async put(key: KeyLike, value: ValueLike, options: WriteOptions = {}): Promise<WriteResult> {
      const operation = history.begin({ client, op: 'put', key, value, ifVersion: options.ifVersion, ifRevision: options.ifRevision })
      try {
        const result = await kv.put(key, value, options)
        operation.ret = history.now()
        operation.result = 'ok'
        operation.version = result.version
        operation.revision = result.revision
        return result
      } catch (error) {
        fail(operation, error)
        throw error
      }
    },
    async delete(key: KeyLike, options: WriteOptions = {}): Promise<DeleteResult> {
      const operation = history.begin({ client, op: 'delete', key, ifVersion: options.ifVersion, ifRevision: options.ifRevision })
      try {
        const result = await kv.delete(key, options)
        operation.ret = history.now()
        operation.result = 'ok'
        operation.version = 0
        operation.deleted = result.deleted
        if (result.deleted) operation.revision = result.revision
        return result
      } catch (error) {
        fail(operation, error)
        throw error
      }
    },
    watch: (options) => kv.watch(options),
    scan(options?: ScanOptions) {
      const entries = kv.scan(options)
      return options?.consistency === 'stale' ? entries : recordScan(entries)
    },
    async txn(request: TxnRequest, options?: FenceOptions) {
      const branches = [request.then ?? [], request.else ?? []].map((steps) => steps.map(beginStep))
      try {
        const answer = await kv.txn(request, options)
        const done = branches[answer.succeeded ? 0 : 1]!
        for (const operation of branches[answer.succeeded ? 1 : 0]!) {
          operation.ret = history.now()
          operation.result = 'failed'
        }
        for (const [at, operation] of done.entries()) {
          const result = answer.results[at]
          if (operation.op === 'get') {
            read(operation, result as KeyValue | undefined)
            continue
          }
          const { deleted } = result as DeleteResult
          if (operation.op === 'delete') operation.deleted = deleted
          const hasRevision = (operation.op === 'put' || deleted) && isLastWrite(done, at)
          wrote(operation, operation.op === 'put' ? (result as WriteResult).version : 0, hasRevision ? answer.revision : null)
        }
        return answer
      } catch (error) {
        for (const operation of branches.flat()) fail(operation, error)
        throw error
      }
    },
    async batch(operations: readonly BatchOperation[], options?: FenceOptions) {
      const begun = operations.map(beginStep)
      try {
        const answer = await kv.batch(operations, options)
        for (const [at, operation] of begun.entries()) {
          if (operation.op === 'put') wrote(operation, null, isLastWrite(begun, at) ? answer.revision : null)
          else wrote(operation, 0, null)
        }
        return answer
      } catch (error) {
        for (const operation of begun) fail(operation, error)
        throw error
      }
    },
    async increment(key: KeyLike, by?: number | bigint, options: WriteOptions = {}) {
      const operation = history.begin({ client, op: 'put', key, ifVersion: options.ifVersion, ifRevision: options.ifRevision })
      try {
        const answer = await kv.increment(key, by, options)
        operation.value = valueText(answer.value.toString())
        wrote(operation, answer.version, answer.revision)
        return answer
      } catch (error) {
        fail(operation, error)
        throw error
      }
    },
    getOrPut: (key, value, options = {}) => getOrPut({ kv: recorded, runtime: clock }, key, value, options),
    update: (key, change, options = {}) => update({ kv: recorded, runtime: clock }, key, change, options),
    count: (options) => kv.count(options),
  }
  return recorded
}
