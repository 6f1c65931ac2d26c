/**
 * Errors across the wire: class, code, message and retryable survive; a stack never leaves its node.
 *
 * Invariants: 1. a QuorateError comes back as the class that it was (conditions as plain QuorateError: their numbers stay behind); 2. any other error becomes
 * `INTERNAL`; 3. code and message are bounded.
 */
import {
  ClosedError,
  CorruptionError,
  InvalidArgumentError,
  OutcomeUnknownError,
  OverloadedError,
  QuorateError,
  RefusedError,
  UnavailableError,
} from '../base/errors.js'
import type { FrameReader } from './frame.js'
import type { Address } from './transport.js'

export const maxCodeBytes = 64
export const maxErrorTextBytes = 1024

/** The class that an error comes back as. Values are wire format. */
const ErrorKind = { other: 0, invalidArgument: 1, unavailable: 2, overloaded: 3, outcomeUnknown: 4, refused: 5, corruption: 6 } as const

/** Text from outside, fit for a message. */
export function printable(text: string): string {
  return text.replace(/[^ -~]/g, '?')
}

/** Kind, code and retryable of an error as it goes over the wire. */
export function describeError(error: unknown): [kind: number, code: string, retryable: boolean] {
  if (!(error instanceof QuorateError)) return [ErrorKind.other, 'INTERNAL', false]
  // Closed is that node, not what the requester holds in its hands: for the requester it is another node's turn.
  if (error instanceof ClosedError) return [ErrorKind.unavailable, 'UNAVAILABLE', true]
  let kind: number = ErrorKind.other
  if (error instanceof InvalidArgumentError) kind = ErrorKind.invalidArgument
  else if (error instanceof UnavailableError) kind = ErrorKind.unavailable
  else if (error instanceof OverloadedError) kind = ErrorKind.overloaded
  else if (error instanceof OutcomeUnknownError) kind = ErrorKind.outcomeUnknown
  else if (error instanceof RefusedError) kind = ErrorKind.refused
  else if (error instanceof CorruptionError) kind = ErrorKind.corruption
  return [kind, error.code, error.retryable]
}

export function readError(reader: FrameReader, from: Address): QuorateError {
  const kind = reader.u8()
  const retryable = reader.u8() === 1
  const code = printable(reader.latin1(maxCodeBytes)) || 'INTERNAL'
  const message = `${reader.utf8(maxErrorTextBytes)} (${from})`
  reader.end()
  switch (kind) {
    case ErrorKind.invalidArgument:
      return new InvalidArgumentError(message, code)
    case ErrorKind.unavailable:
      return new UnavailableError(message, code)
    case ErrorKind.overloaded:
      return new OverloadedError(message)
    case ErrorKind.outcomeUnknown:
      return new OutcomeUnknownError(message)
    case ErrorKind.refused:
      return new RefusedError(code, message)
    case ErrorKind.corruption:
      return new CorruptionError(message, code)
    default:
      return new QuorateError(code, message, retryable)
  }
}
