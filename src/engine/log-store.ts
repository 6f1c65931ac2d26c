/**
 * LogStore: the Raft logs and hard states of all groups of a node, in the node's log database.
 *
 * Invariants:
 * 1. Every write is one batch with `sync: true`: reset, truncation, entries, hard state and compaction of a group are atomic, and durable when `write` resolves.
 * 2. A write of a group is one record: its entries packed, the checksum of the record before it, and its own checksum. The base names the checksum of the
 *    record before the first one that is still needed. So a record that is damaged, or missing before another one, is found on load. (A write that
 *    was cut short at the end of LevelDB's own log never was acknowledged: LevelDB drops it.)
 * 3. Records are keyed by their first index. A record that starts inside an earlier one voids the rest of that earlier one; Raft
 *    truncates only to write other entries at the same place, so a voided tail can never come back.
 * 4. The log starts right after its base. Compaction moves the base on and deletes whole records, a bounded number in a write: those that are left over
 *    before the base are never read, and go with later writes.
 * 5. Writes of the caller never overlap: the host has at most one in flight.
 *
 * Layout (docs/formats.md): log-records.ts.
 */
import { Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { decodeConfiguration } from '../raft/message-codec.js'
import { type ConfigurationRecord, type Entry, EntryKind, type HardState, type PersistWork, type TermRun } from '../raft/types.js'
import type { Database, DatabaseBatch } from './database.js'
import {
  checksumOf,
  decodeBase,
  decodeHardState,
  decodeRecord,
  decodeText,
  encodeBase,
  encodeHardState,
  encodeRecord,
  encodeText,
  groupKey,
  indexOfKey,
  type LogBase,
  type LogRecord,
  recordKey,
  recordsEnd,
  type StoredBase,
} from './log-records.js'
import { LogTable } from './log-table.js'

export type { LogBase } from './log-records.js'

/** Records deleted in one write: their deletion must not hold up what else is in it. */
const deletionsPerWrite = 512

export interface LoadedLog {
  readonly hardState: HardState
  /** Of the entries after the base. */
  readonly terms: readonly TermRun[]
  readonly lastIndex: number
  readonly base: LogBase
  /** The base's, then those that entries after it hold, in ascending order. */
  readonly configurations: readonly ConfigurationRecord[]
}

export interface GroupWork {
  readonly group: number
  /** Null for a compaction alone. */
  readonly work: PersistWork | null
  /** The log starts here from now on, if that is further on than where it starts. Entries up to here must be durable, and applied durably to the state. */
  readonly compactTo?: LogBase | undefined
}

interface GroupLog {
  base: StoredBase
  lastIndex: number
  readonly table: LogTable
  /** Records from this first index up to the base's `recordsFrom` are left over; infinity when there are none. */
  leftoverFrom: number
}

export class LogStore {
  readonly #database: Database
  readonly #groups = new Map<number, GroupLog>()
  readonly #writer = new Writer(64 * 1024)

  constructor(database: Database) {
    this.#database = database
  }

  /** Begins the log of a group that has none. */
  async create(group: number, base: LogBase): Promise<void> {
    if (this.#database.getSync(groupKey('base', group)) !== undefined) throw new Error(`group ${group} has a log already`)
    const batch = this.#database.batch()
    batch.put(groupKey('base', group), encodeBase(this.#writer, { ...base, recordsFrom: base.index + 1, previousChecksum: 0 }))
    // Written with the base, so that it can be missed: a vote that was lost must not be given again.
    batch.put(groupKey('hardState', group), encodeHardState(this.#writer, { term: 0, vote: null }))
    await batch.write({ sync: true })
  }

  /** Why a group's log may not be used any more; undefined when nothing is known against it. */
  damage(group: number): string | undefined {
    const bytes = this.#database.getSync(groupKey('damage', group))
    return bytes === undefined ? undefined : decodeText(bytes, `damage of group ${group}`)
  }

  /** Notes that a group's log must not be used any more: a replica with a part of its memory lost would break its promises. Durable. */
  async markDamaged(group: number, why: string): Promise<void> {
    const batch = this.#database.batch()
    batch.put(groupKey('damage', group), encodeText(this.#writer, why))
    await batch.write({ sync: true })
  }

  /** Deletes all of a group. A crash in between leaves it marked as damaged. */
  async remove(group: number): Promise<void> {
    this.#groups.delete(group)
    await this.markDamaged(group, 'its removal was cut short')
    for (;;) {
      const batch = this.#database.batch()
      let found = 0
      for await (const [key] of this.#iterate({ gte: recordKey(group, 0), lt: recordsEnd(group), keysOnly: true })) {
        batch.del(key)
        if (++found === deletionsPerWrite) break
      }
      if (found === 0) break
      await batch.write({ sync: true })
    }
    const batch = this.#database.batch()
    for (const type of ['hardState', 'base', 'damage'] as const) batch.del(groupKey(type, group))
    await batch.write({ sync: true })
  }

  /** Reads and verifies a group's log; undefined when it has none. Throws CorruptionError when a part of it is damaged or missing. */
  async load(group: number): Promise<LoadedLog | undefined> {
    const baseBytes = this.#database.getSync(groupKey('base', group))
    const hardStateBytes = this.#database.getSync(groupKey('hardState', group))
    if (baseBytes === undefined) {
      if (hardStateBytes !== undefined || (await this.#oldestRecord(group)) !== undefined)
        throw new CorruptionError(`log of group ${group}: its base is missing`)
      return undefined
    }
    const base = decodeBase(group, baseBytes)
    if (hardStateBytes === undefined) throw new CorruptionError(`log of group ${group}: its hard state is missing`)
    const hardState = decodeHardState(group, hardStateBytes)
    const terms: TermRun[] = []
    const configurations: ConfigurationRecord[] = [{ index: base.index, configuration: base.configuration }]
    const table = new LogTable()
    let lastIndex = base.index
    let checksum = base.previousChecksum
    for await (const record of this.#records(group, base.recordsFrom)) {
      const first = record.entries[0]!.index
      // The record in which the log starts, if it starts within one, is there for sure.
      if (table.count === 0 && first > base.recordsFrom && base.recordsFrom <= base.index) break
      if (first > lastIndex + 1) throw new CorruptionError(`log of group ${group}: entries ${lastIndex + 1} to ${first - 1} are missing`)
      if (record.previousChecksum !== checksum) throw new CorruptionError(`log of group ${group}: a record is missing before index ${first}`)
      checksum = record.checksum
      table.add(first, record.bytes, record.checksum)
      while (terms.length > 0 && terms[terms.length - 1]!.firstIndex >= first) terms.pop()
      while (configurations.length > 1 && configurations[configurations.length - 1]!.index >= first) configurations.pop()
      for (const entry of record.entries) {
        if (entry.index <= base.index) continue
        const run = terms[terms.length - 1]
        if (run === undefined || run.term !== entry.term) terms.push({ term: entry.term, firstIndex: entry.index })
        if (entry.kind === EntryKind.configuration) configurations.push({ index: entry.index, configuration: decodeConfiguration(entry.data) })
      }
      lastIndex = Math.max(base.index, record.entries[record.entries.length - 1]!.index)
    }
    if (table.count === 0 && base.recordsFrom <= base.index)
      throw new CorruptionError(`log of group ${group}: its first record, at ${base.recordsFrom}, is missing`)
    const oldest = await this.#oldestRecord(group)
    const leftoverFrom = oldest !== undefined && oldest < base.recordsFrom ? oldest : Number.POSITIVE_INFINITY
    this.#groups.set(group, { base, lastIndex, table, leftoverFrom })
    return { hardState, terms, lastIndex, base: { index: base.index, term: base.term, configuration: base.configuration }, configurations }
  }

  /** Bytes of a group's records. */
  sizeBytes(group: number): number {
    return this.#groups.get(group)!.table.bytes
  }

  /** The records of a group's log, for deciding how far to compact it. To look at, not to change. */
  table(group: number): LogTable {
    return this.#groups.get(group)!.table
  }

  /** Writes the work of several groups, one of each, in one synced batch. A rejection is final: the caller must not write again (the state on disk is unknown). */
  async write(works: readonly GroupWork[]): Promise<void> {
    const batch = this.#database.batch()
    for (const { group, work, compactTo } of works) {
      const log = this.#groups.get(group)!
      if (work !== null) this.#addWork(batch, group, log, work)
      if (compactTo !== undefined && compactTo.index > log.base.index) this.#moveBase(batch, group, log, compactTo)
      if (log.leftoverFrom !== Number.POSITIVE_INFINITY) await this.#deleteLeftover(batch, group, log)
    }
    await batch.write({ sync: true })
  }

  #addWork(batch: DatabaseBatch, group: number, log: GroupLog, { hardState, reset, entries }: PersistWork): void {
    if (hardState !== null) batch.put(groupKey('hardState', group), encodeHardState(this.#writer, hardState))
    if (reset !== null) {
      if (reset.keepsLater) this.#moveBase(batch, group, log, reset)
      else this.#startAnew(batch, group, log, reset)
    }
    if (entries.length === 0) return
    const { table } = log
    const first = entries[0]!.index
    table.truncate(first, (firstIndex) => batch.del(recordKey(group, firstIndex)))
    // Right after a base there may be no record left to chain to.
    const previousChecksum = table.count === 0 ? log.base.previousChecksum : table.lastChecksum
    const record = encodeRecord(this.#writer, previousChecksum, entries)
    batch.put(recordKey(group, first), record)
    table.add(first, record.length, checksumOf(record))
    log.lastIndex = entries[entries.length - 1]!.index
  }

  /** The log goes on, but starts right after an index: records that lie before it wholly are left over. */
  #moveBase(batch: DatabaseBatch, group: number, log: GroupLog, { index, term, configuration }: LogBase): void {
    const oldest = log.table.oldestFirstIndex(index + 1)
    const previousChecksum = log.table.dropBefore(index + 1, log.base.previousChecksum)
    const recordsFrom = log.table.oldestFirstIndex(index + 1)
    if (recordsFrom > oldest) log.leftoverFrom = Math.min(log.leftoverFrom, oldest)
    this.#putBase(batch, group, log, { index, term, configuration, recordsFrom, previousChecksum })
  }

  /** The log is empty and starts right after an index. */
  #startAnew(batch: DatabaseBatch, group: number, log: GroupLog, { index, term, configuration }: LogBase): void {
    // Those that start later would be read as the log's.
    log.table.truncate(index + 1, (firstIndex) => batch.del(recordKey(group, firstIndex)))
    log.leftoverFrom = Math.min(log.leftoverFrom, log.table.oldestFirstIndex(Number.POSITIVE_INFINITY))
    log.table.truncate(0, () => {})
    this.#putBase(batch, group, log, { index, term, configuration, recordsFrom: index + 1, previousChecksum: 0 })
    log.lastIndex = index
  }

  #putBase(batch: DatabaseBatch, group: number, log: GroupLog, base: StoredBase): void {
    log.base = base
    batch.put(groupKey('base', group), encodeBase(this.#writer, base))
  }

  /** Deletes a part of what compactions left before the first record that is needed. */
  async #deleteLeftover(batch: DatabaseBatch, group: number, log: GroupLog): Promise<void> {
    let deleted = 0
    for await (const [key] of this.#iterate({
      gte: recordKey(group, log.leftoverFrom),
      lt: recordKey(group, log.base.recordsFrom),
      keysOnly: true,
    })) {
      if (deleted++ === deletionsPerWrite) {
        log.leftoverFrom = indexOfKey(key)
        return
      }
      batch.del(key)
    }
    log.leftoverFrom = Number.POSITIVE_INFINITY
  }

  /** Entries from `firstIndex` to at most `lastIndex`, up to about `maxBytes` of data but at least one; empty when they are not there, or compacted away. */
  async read(group: number, firstIndex: number, lastIndex: number, maxBytes: number): Promise<Entry[]> {
    const { base } = this.#groups.get(group)!
    if (firstIndex <= base.index) return []
    const found: Entry[] = []
    let bytes = 0
    const start = Math.max(await this.#startOf(group, firstIndex), base.recordsFrom)
    for await (const { entries } of this.#records(group, start)) {
      // This record voids what an earlier one held from here on.
      while (found.length > 0 && found[found.length - 1]!.index >= entries[0]!.index) bytes -= found.pop()!.data.length
      if (bytes >= maxBytes && found.length > 0) break
      for (const entry of entries) {
        if (entry.index < firstIndex) continue
        found.push(entry)
        bytes += entry.data.length
      }
      if (entries[0]!.index > lastIndex) break
    }
    let end = found.length
    while (end > 0 && found[end - 1]!.index > lastIndex) end--
    return found[0]?.index === firstIndex ? found.slice(0, end) : []
  }

  /** First index of the record that holds an index, as the database has it. */
  async #startOf(group: number, index: number): Promise<number> {
    for await (const [key] of this.#iterate({ gte: recordKey(group, 0), lt: recordKey(group, index + 1), reverse: true, keysOnly: true }, 1))
      return indexOfKey(key)
    return index
  }

  async #oldestRecord(group: number): Promise<number | undefined> {
    for await (const [key] of this.#iterate({ gte: recordKey(group, 0), lt: recordsEnd(group), keysOnly: true }, 1)) return indexOfKey(key)
    return undefined
  }

  async *#records(group: number, firstIndex: number): AsyncGenerator<LogRecord> {
    for await (const [key, value] of this.#iterate({ gte: recordKey(group, firstIndex), lt: recordsEnd(group) }))
      yield decodeRecord(group, key, value)
  }

  async *#iterate(range: Parameters<Database['iterate']>[0], pageSize = 64): AsyncGenerator<[Uint8Array, Uint8Array]> {
    const iterator = this.#database.iterate(range)
    try {
      for (;;) {
        const page = await iterator.nextv(pageSize)
        if (page.length === 0) return
        yield* page
      }
    } finally {
      await iterator.close()
    }
  }
}
