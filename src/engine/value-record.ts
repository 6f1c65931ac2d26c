/** ValueRecord: what the state holds under a key. */
import { type Reader, Writer } from '../base/codec.js'
import type { StateRecord } from './record-table.js'

/** A key's value with its version and revision. */
export class ValueRecord implements StateRecord {
  readonly version: number
  readonly revision: number
  #value: Uint8Array

  constructor(version: number, revision: number, value: Uint8Array) {
    this.version = version
    this.revision = revision
    this.#value = value
  }

  get value(): Uint8Array {
    return this.#value
  }

  get sizeBytes(): number {
    return this.#value.length + 64
  }

  rest(encoded: Uint8Array): void {
    this.#value = encoded.subarray(encoded.length - this.#value.length)
  }

  static decode(reader: Reader): ValueRecord {
    return new ValueRecord(reader.varint(), reader.varint(), reader.raw(reader.remaining))
  }

  encode(): Uint8Array {
    return new Writer(this.value.length + 16).varint(this.version).varint(this.revision).raw(this.value).finish()
  }
}
