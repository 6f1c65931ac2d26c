/**
 * Reads the pairs of a collected part: `keyLength varint, key, valueLength varint, value as MessagePack`, from a file through a window.
 *
 * Invariant: memory is bounded by the window and the largest pair.
 */
import { open } from 'node:fs/promises'
import { CorruptionError } from '../base/errors.js'

const windowBytes = 256 * 1024

export interface Pair {
  readonly key: Buffer
  /** MessagePack. */
  readonly value: Buffer
}

/** The pairs of a file, in order. Keys and values are copies. */
export async function* readPairs(path: string): AsyncGenerator<Pair> {
  const file = await open(path, 'r')
  try {
    let rest: Buffer = Buffer.alloc(0)
    for (;;) {
      // Twice as much each time that one pair takes more, so that it is copied a few times only.
      const window = Buffer.allocUnsafe(Math.max(windowBytes, rest.length))
      const { bytesRead } = await file.read(window, 0, window.length)
      if (bytesRead === 0) break
      const bytes = rest.length === 0 ? window.subarray(0, bytesRead) : Buffer.concat([rest, window.subarray(0, bytesRead)])
      let at = 0
      for (;;) {
        const key = slice(bytes, at)
        const value = key === undefined ? undefined : slice(bytes, key.end)
        if (key === undefined || value === undefined) break
        yield { key: Buffer.from(key.bytes), value: Buffer.from(value.bytes) }
        at = value.end
      }
      rest = bytes.subarray(at)
    }
    if (rest.length > 0) throw new CorruptionError(`a part of the output ends within a pair`)
  } finally {
    await file.close()
  }
}

/** Length-prefixed bytes at a position, or undefined when they are not all there. */
function slice(bytes: Buffer, start: number): { bytes: Buffer; end: number } | undefined {
  let length = 0
  let scale = 1
  for (let at = start; at < bytes.length && at < start + 8; at++) {
    const byte = bytes[at] as number
    length += (byte & 0x7f) * scale
    if (byte < 0x80) return at + 1 + length > bytes.length ? undefined : { bytes: bytes.subarray(at + 1, at + 1 + length), end: at + 1 + length }
    scale *= 128
  }
  return undefined
}
