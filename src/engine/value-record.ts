/**
 * ValueRecord: what the state holds under a key.
 *
 * A small value is kept as text of one unit a byte: that is one object that the garbage collector moves and forgets cheaply, where a view of bytes is three, and holds the whole frame that it came in.
 */
import { fromLatin1, toLatin1 } from '../base/bytes.js'
import type { Reader, Writer } from '../base/codec.js'
import type { StateRecord } from './record-table.js'

const maxTextBytes = 2048

/** A key's value with its version and revision. */
export class ValueRecord implements StateRecord {
  readonly version: number
  readonly revision: number
  readonly #value: string | Uint8Array

  constructor(version: number, revision: number, value: Uint8Array) {
    this.version = version
    this.revision = revision
    this.#value = value.length <= maxTextBytes ? toLatin1(value) : ownBytes(value)
  }

  /** The value, for whoever reads it now and then; `writeValue` costs less. */
  get value(): Uint8Array {
    return typeof this.#value === 'string' ? fromLatin1(this.#value) : this.#value
  }

  get valueBytes(): number {
    return this.#value.length
  }

  writeValue(writer: Writer): void {
    if (typeof this.#value === 'string') writer.latin1(this.#value)
    else writer.raw(this.#value)
  }

  get sizeBytes(): number {
    return this.#value.length + 64
  }

  static decode(reader: Reader): ValueRecord {
    return new ValueRecord(reader.varint(), reader.varint(), reader.raw(reader.remaining))
  }

  encode(writer: Writer): void {
    writer.varint(this.version).varint(this.revision)
    this.writeValue(writer)
  }
}

/** Bytes that hold little memory beside their own. */
function ownBytes(value: Uint8Array): Uint8Array {
  return value.buffer.byteLength <= 2 * value.length ? value : Uint8Array.prototype.slice.call(value)
}
