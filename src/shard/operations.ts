/**
 * Operations: what a caller asked of the KV client and still waits for. Each settles exactly once, by its answer, its deadline, its signal, or the client's end.
 */
import { ConditionFailedError, InvalidArgumentError, OutcomeUnknownError, UnavailableError } from '../base/errors.js'
import { type Command, type CommandResult, CommandStatus } from '../engine/command.js'
import type { ReadOptions, WaitOptions } from '../engine/kv.js'
import type { Consistency, ReadKey, ReadResult, ScanPage, ScanRequest } from '../engine/kv-protocol.js'
import { maxResultBytes } from '../engine/transaction.js'
import type { WatchPage, WatchRequest } from '../engine/watch-protocol.js'

export interface Waiting<Result> {
  readonly deadlineMs: number
  readonly resolve: (result: Result) => void
  readonly reject: (error: unknown) => void
  settled: boolean
  /** A request that holds it was sent and may be done without our hearing of it. */
  uncertain: boolean
  /** Ends the watch on the caller's signal. */
  detach: (() => void) | null
  /** What waits in its stead, under another sequence. */
  successor: Operation | null
}

export interface WriteAnswer {
  readonly version: number
  readonly revision: number
  /** A delete found nothing. */
  readonly absent: boolean
  /** A view of the frame: to be read at once. */
  readonly body: Uint8Array | undefined
}

export interface WriteOperation extends Waiting<WriteAnswer>, Command {
  readonly kind: 'write'
  readonly group: number
  /** The birth of the session under which it was sent first, and is sent ever after; 0 before that. */
  birth: number
  /** The group's log time as it was known when the operation was sent first. */
  seenMs: number
}

/** How reads and scans are asked. */
interface Asked {
  readonly group: number
  readonly consistency: Consistency
  readonly onPosition: ReadOptions['onPosition']
}

export interface ReadOperation extends Waiting<ReadResult | undefined>, ReadKey, Asked {
  readonly kind: 'read'
}

export interface ScanOperation extends Waiting<ScanPage>, Asked {
  readonly kind: 'scan'
  readonly request: ScanRequest
}

/** A long poll: it has no deadline of its own, and each attempt takes as long as it is to wait, and the usual time. */
export interface WatchOperation extends Waiting<WatchPage>, Asked {
  readonly kind: 'watch'
  readonly request: WatchRequest
}

export type Operation = WriteOperation | ReadOperation | ScanOperation | WatchOperation

/** Bytes that an operation adds to a request, roughly. */
export function sizeOf(operation: Operation): number {
  if (operation.kind === 'write') return operation.key.length + (operation.value?.length ?? 0) + 16
  return operation.kind === 'read' ? operation.key.length + 8 : 64
}

/** The error of an operation whose time is up. */
export function expiredError(operation: Operation): Error {
  if (operation.kind === 'write' && operation.uncertain) {
    return new OutcomeUnknownError('the deadline passed while the write was under way: it may have happened, or may yet happen')
  }
  return new UnavailableError('the deadline passed before the cluster could serve the request', 'TIMEOUT')
}

/** The error of an operation whose signal was aborted. */
export function abortedError(operation: Operation, signal: AbortSignal): unknown {
  if (operation.kind === 'write' && operation.uncertain) {
    return new OutcomeUnknownError('aborted while the write was under way: it may have happened, or may yet happen', { cause: signal.reason })
  }
  return signal.reason
}

/** Who waits on a signal: one listener for all, because Node.js warns of a leak from the eleventh on, and callers share a signal among many operations. */
const watchers = new WeakMap<AbortSignal, { readonly waiting: Set<() => void>; readonly listener: () => void }>()

/** Watches a signal for an operation. Returns how to stop watching; null when there is none. */
export function watchSignal({ signal }: WaitOptions, onAbort: (signal: AbortSignal) => void): (() => void) | null {
  if (signal === undefined) return null
  let watcher = watchers.get(signal)
  if (watcher === undefined) {
    const waiting = new Set<() => void>()
    const listener = () => {
      for (const notify of waiting) notify()
    }
    watcher = { waiting, listener }
    watchers.set(signal, watcher)
    signal.addEventListener('abort', listener, { once: true })
  }
  const { waiting, listener } = watcher
  const notify = () => onAbort(signal)
  waiting.add(notify)
  return () => {
    // The last one takes the listener away: a signal with a listener is kept alive by the signals that it follows.
    if (!waiting.delete(notify) || waiting.size > 0) return
    watchers.delete(signal)
    signal.removeEventListener('abort', listener)
  }
}

/** Hands a write's answer to its caller. */
export function finishWrite(operation: WriteOperation, { status, version, revision, body }: CommandResult): void {
  switch (status) {
    case CommandStatus.ok:
    case CommandStatus.absent:
      return operation.resolve({ version, revision, absent: status === CommandStatus.absent, body })
    case CommandStatus.conditionFailed: {
      const wanted = operation.ifVersion === undefined ? `revision ${operation.ifRevision}` : `version ${operation.ifVersion}`
      return operation.reject(
        new ConditionFailedError(`expected ${wanted}, the key has version ${version} and revision ${revision}`, version, revision),
      )
    }
    case CommandStatus.fenced: {
      const text = `expected revision ${operation.fence?.revision} of the fence, it has revision ${revision}`
      return operation.reject(new ConditionFailedError(text, version, revision, { code: 'FENCED' }))
    }
    case CommandStatus.notANumber:
      return operation.reject(
        new ConditionFailedError('the value is not the decimal text of a whole number', version, revision, { code: 'NOT_A_NUMBER' }),
      )
    case CommandStatus.outOfRange:
      return operation.reject(new ConditionFailedError('the sum is out of the range of 64 bits', version, revision, { code: 'NUMBER_OUT_OF_RANGE' }))
    case CommandStatus.tooLarge:
      return operation.reject(
        new InvalidArgumentError(`the gets of the transaction found more than ${maxResultBytes} bytes; nothing was done`, 'RESULT_TOO_LARGE'),
      )
    case CommandStatus.again:
      throw new Error('a request that is to be asked again has no answer')
    case CommandStatus.stale:
    case CommandStatus.expired:
      return operation.reject(new OutcomeUnknownError('the request was answered before, and the answer is no longer kept'))
    default:
      status satisfies never
  }
}

const birthOf = (operation: Operation): number => (operation.kind === 'write' ? operation.birth : 0)

const maxOperationsPerRequest = 4096
const maxBytesPerRequest = 512 * 1024

/** Cuts what waits into requests of bounded size, each of one birth, leaving out what was settled meanwhile. */
export function chunks(operations: readonly Operation[]): { operations: readonly Operation[]; bytes: number }[] {
  const result: { operations: readonly Operation[]; bytes: number }[] = []
  let current: Operation[] = []
  let bytes = 0
  for (const operation of operations) {
    if (operation.settled) continue
    const size = sizeOf(operation)
    const isFull = current.length >= maxOperationsPerRequest || bytes + size > maxBytesPerRequest
    if (current.length > 0 && (isFull || birthOf(operation) !== birthOf(current[0]!))) {
      result.push({ operations: current, bytes })
      current = []
      bytes = 0
    }
    current.push(operation)
    bytes += size
  }
  if (current.length > 0) result.push({ operations: current, bytes })
  return result
}
