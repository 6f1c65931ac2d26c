/** TimeRecord: the log time at which a group's state stands. */
import type { Reader, Writer } from '../base/codec.js'
import type { StateRecord } from './record-table.js'

export class TimeRecord implements StateRecord {
  readonly timeMs: number

  constructor(timeMs: number) {
    this.timeMs = timeMs
  }

  get sizeBytes(): number {
    return 16
  }

  static decode(reader: Reader): TimeRecord {
    const record = new TimeRecord(reader.varint())
    reader.end()
    return record
  }

  encode(writer: Writer): void {
    writer.varint(this.timeMs)
  }
}
