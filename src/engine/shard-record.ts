/** ShardRecord: what the state holds of a shard as a whole. */
import type { Reader, Writer } from '../base/codec.js'
import type { StateRecord } from './record-table.js'

export class ShardRecord implements StateRecord {
  /** Counts the writes in the shard. */
  readonly revision: number
  /** The latest birth of the sessions that the shard has forgotten. */
  readonly horizon: number
  /** One more than the log time of the last request of the sessions that were forgotten because they were silent; 0 for none. */
  readonly forgottenMs: number

  constructor(revision: number, horizon: number, forgottenMs: number) {
    this.revision = revision
    this.horizon = horizon
    this.forgottenMs = forgottenMs
  }

  get sizeBytes(): number {
    return 32
  }

  static decode(reader: Reader): ShardRecord {
    const record = new ShardRecord(reader.varint(), reader.varint(), reader.varint())
    reader.end()
    return record
  }

  encode(writer: Writer): void {
    writer.varint(this.revision).varint(this.horizon).varint(this.forgottenMs)
  }
}
