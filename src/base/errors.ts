/**
 * Every error that quorate hands to a caller. One class per decision that the caller takes; `code` is stable, messages are not.
 *
 * | class | decision |
 * |---|---|
 * | InvalidArgumentError | fix the call |
 * | ConditionFailedError | read again, then decide |
 * | UnavailableError | nothing was done: try again later |
 * | OverloadedError | nothing was done: slow down, then try again |
 * | OutcomeUnknownError | the write may or may not have been done: read to find out |
 * | CompactedError | a watch missed events: read what there is, then watch anew |
 * | ClosedError | stop using this object |
 * | RefusedError | the other side, or a folder, belongs to something else: fix the deployment |
 * | CorruptionError | stored bytes are damaged: stop, heal from a peer or a backup |
 *
 * `STORAGE_FAILED` is not thrown at callers: it is the `failure` of a node whose disk failed (full, broken): mend the disk, then open the node again.
 */

/** Options that every quorate error takes. */
export interface QuorateErrorOptions {
  /** What led to this error. */
  cause?: unknown
}

/** Base of all errors of this package: a stable `code`, the `cause`, and whether the same call may succeed later. */
export class QuorateError extends Error {
  /** Stable, SCREAMING_SNAKE; safe to switch on. */
  readonly code: string
  /** True when the same call, unchanged, may succeed later. */
  readonly retryable: boolean

  constructor(code: string, message: string, retryable: boolean, options?: QuorateErrorOptions) {
    super(message, options)
    this.name = new.target.name
    this.code = code
    this.retryable = retryable
  }
}

/** A wrong argument or one over a limit; nothing was sent. Codes: `INVALID_ARGUMENT`, `KEY_TOO_LARGE`, `VALUE_TOO_LARGE`, `EMPTY_KEY`, `CROSS_SHARD`, … */
export class InvalidArgumentError extends QuorateError {
  constructor(message: string, code = 'INVALID_ARGUMENT', options?: QuorateErrorOptions) {
    super(code, message, false, options)
  }
}

/** Which condition it was. */
export type ConditionCode = 'CONDITION_FAILED' | 'FENCED' | 'NOT_A_NUMBER' | 'NUMBER_OUT_OF_RANGE'

/**
 * A condition of the write did not hold; nothing was changed. Codes: `CONDITION_FAILED` (`ifVersion`, `ifRevision`), `FENCED` (the fence; version and revision are those of the
 * fence's key), and of `increment`: `NOT_A_NUMBER`, `NUMBER_OUT_OF_RANGE`.
 */
export class ConditionFailedError extends QuorateError {
  declare readonly code: ConditionCode
  /** The version that the key has now; 0 when it is absent. */
  readonly actualVersion: number
  /** The revision of the key's last write; 0 when it is absent. */
  readonly actualRevision: number

  constructor(message: string, actualVersion: number, actualRevision: number, options?: QuorateErrorOptions & { code?: ConditionCode }) {
    super(options?.code ?? 'CONDITION_FAILED', message, false, options)
    this.actualVersion = actualVersion
    this.actualRevision = actualRevision
  }
}

/** The cluster could not do it in time, and certainly did not do it. Codes: `UNAVAILABLE`, `TIMEOUT`. */
export class UnavailableError extends QuorateError {
  constructor(message: string, code = 'UNAVAILABLE', options?: QuorateErrorOptions) {
    super(code, message, true, options)
  }
}

/** A bounded queue is full; nothing was done. Code `OVERLOADED`. */
export class OverloadedError extends QuorateError {
  constructor(message: string, options?: QuorateErrorOptions) {
    super('OVERLOADED', message, true, options)
  }
}

/** The deadline or signal ended first, and the write may or may not have happened or may yet happen. Code `OUTCOME_UNKNOWN`. */
export class OutcomeUnknownError extends QuorateError {
  constructor(message: string, options?: QuorateErrorOptions) {
    super('OUTCOME_UNKNOWN', message, false, options)
  }
}

/**
 * A watch wants events that the cluster does not keep any more: its cursor is too old, or its consumer was too slow. What was missed cannot be had; read the present state instead
 * (`KV.watch` has an example). Code `COMPACTED`.
 */
export class CompactedError extends QuorateError {
  /** The oldest cursor from which all is there: a watch from here goes on, having missed what was between. */
  readonly oldest: string

  constructor(message: string, oldest: string, options?: QuorateErrorOptions) {
    super('COMPACTED', message, false, options)
    this.oldest = oldest
  }
}

/** The node, transport or handle was closed. Code `CLOSED`. */
export class ClosedError extends QuorateError {
  constructor(message: string, options?: QuorateErrorOptions) {
    super('CLOSED', message, false, options)
  }
}

/** Something belongs to another cluster, node or version. Codes: `WRONG_CLUSTER`, `WRONG_NODE`, `WRONG_PROTOCOL`, `WRONG_FOLDER`. */
export class RefusedError extends QuorateError {
  constructor(code: string, message: string, options?: QuorateErrorOptions) {
    super(code, message, false, options)
  }
}

/** Stored or received bytes are damaged. Codes: `CORRUPTION`, `MALFORMED`. */
export class CorruptionError extends QuorateError {
  constructor(message: string, code = 'CORRUPTION', options?: QuorateErrorOptions) {
    super(code, message, false, options)
  }
}

/** What a node says of itself when its disk would not take a write: code `STORAGE_FAILED`, and what the system said as its cause. */
export function storageFailure(what: string, cause: unknown): QuorateError {
  return new QuorateError('STORAGE_FAILED', `${what} could not be written: ${cause instanceof Error ? cause.message : String(cause)}`, false, {
    cause,
  })
}
