/**
 * What the abstract-level face rejects with: the codes that users of abstract-level know, with the store's own error as the cause.
 *
 * | code | cause |
 * |---|---|
 * | LEVEL_ABORTED | the reason of the caller's signal |
 * | LEVEL_CONNECTION_LOST | UnavailableError: nothing was done |
 * | LEVEL_DATABASE_NOT_OPEN | ClosedError: the store below was closed |
 * | LEVEL_INVALID_KEY, LEVEL_INVALID_VALUE | InvalidArgumentError: over a limit |
 * | LEVEL_NOT_SUPPORTED | InvalidArgumentError: a batch over several shards, or over a limit of one |
 * | LEVEL_CORRUPTION | CorruptionError |
 * | LEVEL_REMOTE_ERROR | any other QuorateError; look at the `cause`: OutcomeUnknownError, OverloadedError, ConditionFailedError |
 *
 * Wrong options are a TypeError without a code, as everywhere in abstract-level.
 */
import { ClosedError, CorruptionError, InvalidArgumentError, QuorateError, UnavailableError } from '../base/errors.js'

/** An error of the database, with a code of abstract-level. */
export class LevelError extends Error {
  /** `LEVEL_…`; stable. */
  readonly code: string
  /** The same call may succeed later. */
  readonly transient: boolean

  constructor(code: string, message: string, options: { readonly cause: unknown; readonly transient?: boolean }) {
    super(message, { cause: options.cause })
    this.name = code === 'LEVEL_ABORTED' ? 'AbortError' : new.target.name
    this.code = code
    this.transient = options.transient ?? false
  }
}

const codesOfArguments: Readonly<Record<string, string>> = {
  EMPTY_KEY: 'LEVEL_INVALID_KEY',
  KEY_TOO_LARGE: 'LEVEL_INVALID_KEY',
  VALUE_TOO_LARGE: 'LEVEL_INVALID_VALUE',
  CROSS_SHARD: 'LEVEL_NOT_SUPPORTED',
  TOO_MANY_OPERATIONS: 'LEVEL_NOT_SUPPORTED',
  BATCH_TOO_LARGE: 'LEVEL_NOT_SUPPORTED',
}

function codeOf(error: QuorateError): string | undefined {
  if (error instanceof InvalidArgumentError) return codesOfArguments[error.code]
  if (error instanceof UnavailableError) return 'LEVEL_CONNECTION_LOST'
  if (error instanceof ClosedError) return 'LEVEL_DATABASE_NOT_OPEN'
  if (error instanceof CorruptionError) return 'LEVEL_CORRUPTION'
  return 'LEVEL_REMOTE_ERROR'
}

/** The error to reject with in place of one of the store. */
export function toLevelError(cause: unknown, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted && cause === signal.reason) return new LevelError('LEVEL_ABORTED', 'Operation has been aborted', { cause })
  if (!(cause instanceof QuorateError)) return cause
  const code = codeOf(cause)
  if (code === undefined) return new TypeError(cause.message, { cause })
  return new LevelError(code, cause.message, { cause, transient: cause.retryable })
}
