/**
 * Owns the one error that the core throws: a rule that cannot be broken while the algorithm, the host and the disk do what they promise was broken.
 *
 * 1. No message from outside ever leads here: those are validated first and ignored when malformed. The one exception is a well-formed append that
 * contradicts committed entries, which means that two histories exist and going on would choose one silently.
 * 2. After it was thrown the core's memory is not to be trusted: the host stops the replica and never retries.
 */
import { QuorateError } from '../base/errors.js'

/** A safety rule of the consensus core does not hold; the host must stop this replica. Code `INVARIANT_VIOLATED`. */
export class InvariantError extends QuorateError {
  constructor(message: string) {
    super('INVARIANT_VIOLATED', message, false)
  }
}

/** Throws InvariantError unless the condition holds. Messages are constant text on hot paths: build details only in a failing branch. */
export function invariant(condition: boolean, message: string): asserts condition {
  if (!condition) throw new InvariantError(message)
}

/** The end of an exhaustive `switch`: does not compile while a case is missing. */
export function unreachable(value: never): never {
  throw new InvariantError(`unexpected value ${String(value)}`)
}
