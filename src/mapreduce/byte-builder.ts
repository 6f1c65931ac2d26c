/**
 * ByteBuilder and the byte helpers of the data path: what every emitted pair passes through, so each method is written for speed.
 * (`Writer` of base is for fixed messages; a TextEncoder call for each key would cost more here than all the rest.)
 *
 * Invariants: 1. `take` hands the bytes over: no view of the builder's buffer survives it; 2. `reset` keeps the buffer for the next use.
 */
import { Buffer } from 'node:buffer'

export class ByteBuilder {
  #buffer: Buffer
  #length = 0
  readonly #float = new DataView(new ArrayBuffer(8))

  constructor(initialBytes = 1024) {
    this.#buffer = Buffer.allocUnsafeSlow(initialBytes)
  }

  get length(): number {
    return this.#length
  }

  #reserve(bytes: number): void {
    const needed = this.#length + bytes
    if (needed <= this.#buffer.length) return
    const grown = Buffer.allocUnsafeSlow(Math.max(needed, this.#buffer.length * 2))
    this.#buffer.copy(grown, 0, 0, this.#length)
    this.#buffer = grown
  }

  byte(value: number): void {
    this.#reserve(1)
    this.#buffer[this.#length++] = value
  }

  /** A number of bytes, big end first. */
  uint(value: number, byteLength: 2 | 4): void {
    this.#reserve(byteLength)
    this.#length = this.#buffer.writeUIntBE(value, this.#length, byteLength)
  }

  double(value: number): void {
    this.#float.setFloat64(0, value)
    this.#reserve(8)
    for (let index = 0; index < 8; index++) this.#buffer[this.#length++] = this.#float.getUint8(index)
  }

  /** An unsigned integer of at most 2^53-1, seven bits a byte, low bits first. */
  varint(value: number): void {
    this.#reserve(8)
    let rest = value
    while (rest > 0x7f) {
      this.#buffer[this.#length++] = (rest % 128) | 0x80
      rest = rest > 0x7fffffff ? Math.floor(rest / 128) : rest >>> 7
    }
    this.#buffer[this.#length++] = rest
  }

  raw(bytes: Uint8Array, start = 0, end = bytes.length): void {
    const length = end - start
    this.#reserve(length)
    const buffer = this.#buffer
    let at = this.#length
    // A loop beats the call into the runtime for what is short.
    if (length <= 32) for (let index = start; index < end; index++) buffer[at++] = bytes[index] as number
    else buffer.set(start === 0 && end === bytes.length ? bytes : bytes.subarray(start, end), at)
    this.#length += length
  }

  /** UTF-8 text without a length; returns how many bytes it took. */
  utf8(text: string): number {
    const characters = text.length
    this.#reserve(characters * 3)
    const buffer = this.#buffer
    const start = this.#length
    if (characters <= 48) {
      let at = start
      let index = 0
      for (; index < characters; index++) {
        const code = text.charCodeAt(index)
        if (code > 0x7f) break
        buffer[at++] = code
      }
      if (index === characters) {
        this.#length = at
        return characters
      }
    }
    const written = buffer.write(text, start, 'utf8')
    this.#length = start + written
    return written
  }

  /** Text that is known to be ASCII. */
  ascii(text: string): void {
    const characters = text.length
    this.#reserve(characters)
    const buffer = this.#buffer
    let at = this.#length
    if (characters <= 48) for (let index = 0; index < characters; index++) buffer[at++] = text.charCodeAt(index)
    else buffer.write(text, at, 'latin1')
    this.#length += characters
  }

  /** The bytes from `start` on, as a view that the next write may invalidate. */
  view(start = 0): Buffer {
    return this.#buffer.subarray(start, this.#length)
  }

  /** Everything written, in an ArrayBuffer of its own; the builder starts empty. */
  take(): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.#buffer.buffer as ArrayBuffer, this.#buffer.byteOffset, this.#length)
    // What is nearly full is handed over as it is; else the slack would stay in memory as long as the bytes do.
    const taken = this.#length * 2 > this.#buffer.length ? bytes : bytes.slice()
    this.#buffer = Buffer.allocUnsafeSlow(1024)
    this.#length = 0
    return taken
  }

  /** Forgets what was written after `length`. */
  truncate(length: number): void {
    this.#length = length
  }

  reset(): void {
    this.#length = 0
  }
}

/** A copy, also of a Buffer, whose own `slice` gives a view. */
export function copyBytes(bytes: Uint8Array, start = 0, end = bytes.length): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(bytes.subarray(start, end))
}
