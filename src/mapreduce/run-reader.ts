/**
 * RunReader: reads the groups of one sorted run, from memory or from a file through a small window.
 *
 * Invariants: 1. a run is checked against its CRC-32 before its first group is used, so that user code never sees damaged bytes; 2. memory: the
 * window, which only a key or value larger than it can make grow; 3. the head's key is valid until the first of its values is read.
 */
import { Buffer } from 'node:buffer'
import { readSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { QuorateError } from '../base/errors.js'
import { copyBytes } from './byte-builder.js'
import { maxKeyBytes } from './map-buffer.js'
import { readValue } from './value-codec.js'

/** Where a run lies. */
export interface RunSource {
  /** The whole run in memory, or undefined when it is in a file. */
  readonly bytes?: Uint8Array
  /** An open file. */
  readonly file?: number
  /** Where the run begins in the file. */
  readonly offset?: number
  readonly length: number
  readonly checksum: number
  /** Which map the run comes from, to say whose output is damaged; undefined for runs made here. */
  readonly map?: number
}

/** A run does not have the bytes that its map reported. Code `RUN_DAMAGED`; `map` tells which one has to run again. */
export class RunDamagedError extends QuorateError {
  readonly map: number | undefined

  constructor(source: RunSource, why: string) {
    super('RUN_DAMAGED', `the output of map ${source.map ?? '(merged here)'} is damaged: ${why}`, true)
    this.map = source.map
  }
}

const verifyBytes = 1024 * 1024

export class RunReader {
  readonly #source: RunSource
  /** The run's place in the order of the input: values of equal keys are read in this order. */
  readonly order: number
  readonly #windowBytes: number
  #window: Buffer
  #at = 0
  #end: number
  /** Bytes of the run that are not yet in the window. */
  #unread: number
  #keyStart = 0
  #keyEnd = 0
  /** The first six bytes of the head's key as a number: most comparisons end here. */
  #prefix = 0
  #values = 0

  constructor(source: RunSource, order: number, windowBytes: number) {
    this.#source = source
    this.order = order
    this.#windowBytes = windowBytes
    verify(source)
    if (source.bytes !== undefined) {
      this.#window = Buffer.from(source.bytes.buffer, source.bytes.byteOffset, source.bytes.byteLength)
      this.#end = this.#window.length
      this.#unread = 0
    } else {
      this.#window = Buffer.allocUnsafeSlow(Math.min(windowBytes, source.length))
      this.#end = 0
      this.#unread = source.length
    }
  }

  /** Makes `bytes` bytes (or what is left, when `upTo`) available from the current position. */
  #need(bytes: number, upTo = false): void {
    let missing = bytes - (this.#end - this.#at)
    if (missing <= 0) return
    if (missing > this.#unread) {
      if (!upTo) throw new RunDamagedError(this.#source, `${missing} bytes more are announced than it has`)
      missing = this.#unread
      if (missing === 0) return
    }
    const kept = this.#end - this.#at
    if (kept + missing > this.#window.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(kept + missing, this.#windowBytes))
      this.#window.copy(larger, 0, this.#at, this.#end)
      this.#window = larger
    } else {
      this.#window.copyWithin(0, this.#at, this.#end)
    }
    this.#at = 0
    this.#end = kept
    const wanted = Math.min(this.#unread, this.#window.length - kept)
    const position = (this.#source.offset as number) + this.#source.length - this.#unread
    readFully(this.#source.file as number, this.#window, kept, wanted, position)
    this.#end += wanted
    this.#unread -= wanted
  }

  #varint(): number {
    this.#need(8, true)
    let result = 0
    let scale = 1
    for (let count = 0; count < 8 && this.#at < this.#end; count++) {
      const byte = this.#window[this.#at++] as number
      result += (byte & 0x7f) * scale
      if (byte < 0x80) return result
      scale *= 128
    }
    throw new RunDamagedError(this.#source, 'a length is malformed')
  }

  /** Moves to the next group; false at the end of the run. Values of the last group that were not read are passed over. */
  next(): boolean {
    while (this.#values > 0) this.skipValue()
    if (this.#at === this.#end && this.#unread === 0) return false
    const keyBytes = this.#varint()
    if (keyBytes > maxKeyBytes) throw new RunDamagedError(this.#source, `a key of ${keyBytes} bytes`)
    // The count of values behind the key is read with it, so that reading it cannot move the key.
    this.#need(keyBytes + 8, true)
    if (keyBytes > this.#end - this.#at) throw new RunDamagedError(this.#source, 'it ends within a key')
    this.#keyStart = this.#at
    this.#keyEnd = this.#at += keyBytes
    this.#values = this.#varint()
    const window = this.#window
    let prefix = 0
    for (let index = 0; index < 6; index++) prefix = prefix * 256 + (index < keyBytes ? (window[this.#keyStart + index] as number) : 0)
    this.#prefix = prefix
    return true
  }

  /** Values of the head's group that were not read yet. */
  get valuesLeft(): number {
    return this.#values
  }

  /** The order of the two heads' keys by bytes. */
  compareKey(other: RunReader): number {
    if (this.#prefix !== other.#prefix) return this.#prefix - other.#prefix
    const lengthHere = this.#keyEnd - this.#keyStart
    const lengthThere = other.#keyEnd - other.#keyStart
    const length = Math.min(lengthHere, lengthThere)
    const here = this.#window
    const there = other.#window
    for (let index = 6; index < length; index++) {
      const difference = (here[this.#keyStart + index] as number) - (there[other.#keyStart + index] as number)
      if (difference !== 0) return difference
    }
    return lengthHere - lengthThere
  }

  keyAsText(): string {
    const length = this.#keyEnd - this.#keyStart
    if (length <= 16) {
      // Short ASCII keys, which most are, without a call into the runtime.
      let text = ''
      for (let index = this.#keyStart; index < this.#keyEnd; index++) {
        const byte = this.#window[index] as number
        if (byte > 0x7f) return this.#window.toString('utf8', this.#keyStart, this.#keyEnd)
        text += String.fromCharCode(byte)
      }
      return text
    }
    return this.#window.toString('utf8', this.#keyStart, this.#keyEnd)
  }

  /** A copy of the head's key. */
  keyAsBytes(): Uint8Array {
    return copyBytes(this.#window, this.#keyStart, this.#keyEnd)
  }

  #enterValue(): number {
    const length = this.#varint()
    this.#need(length)
    this.#values--
    const start = this.#at
    this.#at += length
    return start
  }

  readValue(): unknown {
    const start = this.#enterValue()
    return readValue(this.#window, start, this.#at)
  }

  /** The value's bytes as a view that the next read may overwrite. */
  readValueBytes(): Buffer {
    const start = this.#enterValue()
    return this.#window.subarray(start, this.#at)
  }

  skipValue(): void {
    this.#enterValue()
  }
}

function readFully(file: number, into: Buffer, start: number, length: number, position: number): void {
  let done = 0
  while (done < length) {
    const read = readSync(file, into, start + done, length - done, position + done)
    if (read === 0) throw new QuorateError('RUN_DAMAGED', `a temporary file ends ${length - done} bytes early`, true)
    done += read
  }
}

function verify(source: RunSource): void {
  let checksum = 0
  if (source.bytes !== undefined) {
    if (source.bytes.length !== source.length) throw new RunDamagedError(source, `${source.bytes.length} bytes instead of ${source.length}`)
    checksum = crc32(source.bytes)
  } else {
    const piece = Buffer.allocUnsafe(Math.min(verifyBytes, source.length))
    for (let at = 0; at < source.length; ) {
      const wanted = Math.min(piece.length, source.length - at)
      try {
        readFully(source.file as number, piece, 0, wanted, (source.offset as number) + at)
      } catch (cause) {
        throw new RunDamagedError(source, cause instanceof Error ? cause.message : String(cause))
      }
      checksum = crc32(piece.subarray(0, wanted), checksum)
      at += wanted
    }
  }
  if (checksum !== source.checksum) throw new RunDamagedError(source, 'its checksum is not the one reported')
}
