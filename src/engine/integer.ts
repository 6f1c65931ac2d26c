/**
 * The numbers that `increment` counts with: whole ones of 64 bits with a sign. In a command they are eight bytes, as a value they are decimal text, so that they can be read and
 * written by `get` and `put` in any language.
 *
 * Invariant: one number has one text (no leading zeros, no `+`, no `-0`): what an increment wrote can be compared as bytes.
 */
import { asBuffer } from '../base/bytes.js'

export const integerBytes = 8
const least = -(2n ** 63n)
const greatest = 2n ** 63n - 1n
/** The longest text, that of -2^63. */
const maxTextBytes = 20
const decimal = /^(0|-?[1-9][0-9]*)$/

export function isInteger(value: bigint): boolean {
  return value >= least && value <= greatest
}

/** Eight bytes, big-endian two's complement, of a number in range. */
export function encodeInteger(value: bigint): Uint8Array {
  const bytes = Buffer.alloc(integerBytes)
  bytes.writeBigInt64BE(value)
  return bytes
}

export function decodeInteger(bytes: Uint8Array): bigint {
  return asBuffer(bytes).readBigInt64BE()
}

/** The number that a value is the text of; null when it is none. */
export function parseInteger(value: Uint8Array): bigint | null {
  if (value.length === 0 || value.length > maxTextBytes) return null
  const text = asBuffer(value).toString('latin1')
  if (!decimal.test(text)) return null
  const number = BigInt(text)
  return isInteger(number) ? number : null
}

/** The text of a number. In memory of its own: answers are kept for long, and a small Buffer would hold on to what it shares a pool with. */
export function formatInteger(value: bigint): Uint8Array {
  return new Uint8Array(Buffer.from(value.toString(), 'latin1'))
}
