/**
 * The records of a group's state: their keys, and which class a stored one is.
 *
 * Keys in the state store: shard (2 bytes), type (1 byte), rest. Shard ffff holds what is the group's own.
 */
import { Reader } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { HistoryBlock } from './history-block.js'
import type { StateRecord } from './record-table.js'
import { SessionRecord } from './session-record.js'
import { ShardRecord } from './shard-record.js'
import { TimeRecord } from './time-record.js'
import { ValueRecord } from './value-record.js'

/** `time` lies in shard ffff, beside the applied index. */
export const RecordType = { shard: 0, value: 1, session: 2, history: 3, time: 0x74 } as const

/** Where the log time stands at which the state is. */
export const timeKey = '\xff\xff\x74'

const shardPrefixes: string[] = []
/** What the keys of a shard's records of one type begin with. */
export function shardPrefix(shard: number, type: number): string {
  shardPrefixes[shard] ??= String.fromCharCode(shard >> 8, shard & 0xff)
  return shardPrefixes[shard] + String.fromCharCode(type)
}

/** Decodes any record of the state store by its key's type. */
export function decodeRecord(key: string, bytes: Uint8Array): StateRecord {
  const reader = new Reader(bytes)
  switch (key.charCodeAt(2)) {
    case RecordType.shard:
      return ShardRecord.decode(reader)
    case RecordType.value:
      return ValueRecord.decode(reader)
    case RecordType.session:
      return SessionRecord.decode(reader)
    case RecordType.history:
      return HistoryBlock.decode(reader)
    case RecordType.time:
      return TimeRecord.decode(reader)
    default:
      throw new CorruptionError(`unknown record type ${key.charCodeAt(2)}`)
  }
}
