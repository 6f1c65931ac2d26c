/**
 * Values of emitted pairs as bytes: MessagePack behind a length, with short ways for what most jobs emit (small integers, other
 * numbers, text), which are bytes for bytes what the library writes.
 *
 * Invariant: a value read is what was written, except that undefined becomes null and -0 becomes 0.
 */
import { Buffer } from 'node:buffer'
import { Decoder, Encoder } from '@msgpack/msgpack'
import { CorruptionError, InvalidArgumentError } from '../base/errors.js'
import { type ByteBuilder, copyBytes } from './byte-builder.js'

const encoder = new Encoder({ ignoreUndefined: true, maxDepth: 32 })
const decoder = new Decoder()

function encodeAny(value: unknown): Uint8Array {
  try {
    const bytes = encoder.encodeSharedRef(value)
    // The decoder refuses an object with this key: better now, where the value comes from, than in the reduce.
    if (Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).includes('__proto__')) decoder.decode(bytes)
    return bytes
  } catch (cause) {
    throw new InvalidArgumentError(
      `a value cannot be carried by MessagePack: ${cause instanceof Error ? cause.message : String(cause)}`,
      'INVALID_VALUE',
      {
        cause,
      },
    )
  }
}

/** Appends the value's length and its bytes. */
export function writeValue(builder: ByteBuilder, value: unknown): void {
  if (typeof value === 'number') {
    if (value >= 0 && value <= 0xffffffff && Math.floor(value) === value) {
      if (value <= 0x7f) {
        builder.byte(1)
        builder.byte(value)
      } else if (value <= 0xff) {
        builder.byte(2)
        builder.byte(0xcc)
        builder.byte(value)
      } else if (value <= 0xffff) {
        builder.byte(3)
        builder.byte(0xcd)
        builder.uint(value, 2)
      } else {
        builder.byte(5)
        builder.byte(0xce)
        builder.uint(value, 4)
      }
      return
    }
    if (!Number.isSafeInteger(value)) {
      builder.byte(9)
      builder.byte(0xcb)
      builder.double(value)
      return
    }
  } else if (typeof value === 'string' && value.length < 32) {
    const start = builder.length
    builder.byte(0)
    builder.byte(0)
    const length = builder.utf8(value)
    if (length < 32) {
      const written = builder.view(start)
      written[0] = length + 1
      written[1] = 0xa0 | length
      return
    }
    builder.truncate(start)
  }
  const bytes = encodeAny(value)
  builder.varint(bytes.length)
  builder.raw(bytes)
}

/** The value of the bytes from `start` to `end`. */
export function readValue(bytes: Buffer, start: number, end: number): unknown {
  const head = bytes[start] as number
  const length = end - start
  if (length === 1 && head <= 0x7f) return head
  if (length === 2 && head === 0xcc) return bytes[start + 1]
  if (length === 3 && head === 0xcd) return bytes.readUInt16BE(start + 1)
  if (length === 5 && head === 0xce) return bytes.readUInt32BE(start + 1)
  if (length === 9 && head === 0xcb) return bytes.readDoubleBE(start + 1)
  if (head >= 0xa0 && head <= 0xbf && length === head - 0xa0 + 1) return bytes.toString('utf8', start + 1, end)
  try {
    // A copy: byte strings within are views of what is decoded, and the source is a window that moves on.
    return decoder.decode(copyBytes(bytes, start, end))
  } catch (cause) {
    throw new CorruptionError('a stored value is not MessagePack', 'CORRUPTION', { cause })
  }
}

/** A value as bytes, without a length. */
export function valueToBytes(value: unknown): Uint8Array {
  return encodeAny(value).slice()
}

/** Reads what `valueToBytes` wrote. */
export function bytesToValue(bytes: Uint8Array): unknown {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return readValue(buffer, 0, buffer.length)
}
