/**
 * Entries: the form in which input reaches a map task, whatever it came from. A split is a sequence of entries, an entry is a piece of
 * a file, a key of a store with its value, or an item of a list:
 *
 *     entry := keyLength varint, key bytes, offset varint, contentLength varint, content bytes
 *
 * and RecordReader cuts entries into the records that `map` is called with: each entry whole, or each line of it.
 *
 * Invariants: 1. lines end with \n or \r\n, which are not part of the record, and the last may lack it; a final line end makes no empty line;
 * 2. a malformed split throws CorruptionError and never reads past its end.
 */
import { Buffer, isAscii } from 'node:buffer'
import { Reader } from '../base/codec.js'
import { ByteBuilder } from './byte-builder.js'
import type { InputRecord } from './job.js'

/** What comes before an entry's content. */
export function entryHeader(key: Uint8Array, offset: number, contentBytes: number): Uint8Array {
  const builder = new ByteBuilder(key.length + 32)
  builder.varint(key.length)
  builder.raw(key)
  builder.varint(offset)
  builder.varint(contentBytes)
  return builder.take()
}

/** Decoded on demand: what a job does not look at costs nothing. */
class SplitRecord implements InputRecord {
  readonly keyBytes: Uint8Array
  readonly offset: number
  readonly #length: number
  readonly #split: Buffer
  readonly #start: number
  #key: string | undefined
  #text: string | undefined

  constructor(split: Buffer, start: number, length: number, offset: number, keyBytes: Uint8Array, key?: string, text?: string) {
    this.#split = split
    this.#start = start
    this.#length = length
    this.offset = offset
    this.keyBytes = keyBytes
    this.#key = key
    this.#text = text
  }

  get key(): string {
    this.#key ??= Buffer.from(this.keyBytes).toString('utf8')
    return this.#key
  }

  get text(): string {
    this.#text ??= decodeText(this.#split, this.#start, this.#start + this.#length)
    return this.#text
  }

  get bytes(): Uint8Array {
    return this.#split.subarray(this.#start, this.#start + this.#length)
  }
}

/** Long ASCII is read as such: one byte a character, and twice as fast. */
function decodeText(bytes: Buffer, start: number, end: number): string {
  return end - start > 256 && isAscii(bytes.subarray(start, end)) ? bytes.toString('latin1', start, end) : bytes.toString('utf8', start, end)
}

/** Text is decoded in pieces of about this size, to cut lines of it cheaply. */
const pieceBytes = 256 * 1024
const lineEnd = 10

export class RecordReader {
  readonly #split: Buffer
  readonly #entries: Reader
  readonly #lines: boolean
  /** Records read so far. */
  records = 0

  constructor(split: Uint8Array, records: 'lines' | 'whole') {
    this.#split = Buffer.from(split.buffer, split.byteOffset, split.byteLength)
    this.#entries = new Reader(this.#split)
    this.#lines = records === 'lines'
  }

  /** Calls `map` for each record in turn; waits for those that answer with a promise. */
  async each(map: (record: InputRecord) => unknown): Promise<void> {
    while (this.#entries.remaining > 0) {
      const keyBytes = this.#entries.bytes()
      const offset = this.#entries.varint()
      const length = this.#entries.varint()
      const start = this.#entries.position
      this.#entries.raw(length)
      if (this.#lines) {
        await this.#eachLine(map, keyBytes, offset, start, start + length)
      } else {
        this.records++
        const pending = map(new SplitRecord(this.#split, start, length, offset, keyBytes))
        if (pending !== undefined) await pending
      }
    }
  }

  async #eachLine(map: (record: InputRecord) => unknown, keyBytes: Uint8Array, offset: number, start: number, end: number): Promise<void> {
    const split = this.#split
    const key = split.toString('utf8', keyBytes.byteOffset - split.byteOffset, keyBytes.byteOffset - split.byteOffset + keyBytes.length)
    const toOffset = offset - start
    for (let at = start; at < end; ) {
      let pieceEnd = Math.min(at + pieceBytes, end)
      if (pieceEnd < end) {
        const lastOfPiece = split.subarray(at, end).indexOf(lineEnd, pieceEnd - at - 1)
        pieceEnd = lastOfPiece < 0 ? end : at + lastOfPiece + 1
      }
      if (isAscii(split.subarray(at, pieceEnd))) {
        // One decode for many lines; characters are bytes here, so offsets follow.
        const lines = split.toString('latin1', at, pieceEnd).split('\n')
        if (lines[lines.length - 1] === '') lines.pop()
        let lineStart = at
        for (const line of lines) {
          const text = line.charCodeAt(line.length - 1) === 13 ? line.slice(0, -1) : line
          this.records++
          const pending = map(new SplitRecord(split, lineStart, text.length, lineStart + toOffset, keyBytes, key, text))
          if (pending !== undefined) await pending
          lineStart += line.length + 1
        }
      } else {
        for (let lineStart = at; lineStart < pieceEnd; ) {
          let stop = split.indexOf(lineEnd, lineStart)
          if (stop < 0 || stop > pieceEnd) stop = pieceEnd
          const contentEnd = stop > lineStart && stop < pieceEnd + 1 && split[stop - 1] === 13 ? stop - 1 : stop
          this.records++
          const pending = map(new SplitRecord(split, lineStart, contentEnd - lineStart, lineStart + toOffset, keyBytes, key))
          if (pending !== undefined) await pending
          lineStart = stop + 1
        }
      }
      at = pieceEnd
    }
  }
}
