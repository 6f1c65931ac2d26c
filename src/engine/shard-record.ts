/** ShardRecord: what the state holds of a shard as a whole. */
import type { Reader, Writer } from '../base/codec.js'
import type { StateRecord } from './record-table.js'

/** A shard's revision counter. */
export class ShardRecord implements StateRecord {
  readonly revision: number

  constructor(revision: number) {
    this.revision = revision
  }

  get sizeBytes(): number {
    return 16
  }

  static decode(reader: Reader): ShardRecord {
    return new ShardRecord(reader.varint())
  }

  encode(writer: Writer): void {
    writer.varint(this.revision)
  }
}
