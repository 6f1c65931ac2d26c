/**
 * LogStore: the Raft logs and hard states of all groups of a node, in the node's log database.
 *
 * Invariants:
 * 1. Every write is one batch with `sync: true`: truncation, entries and hard state of a group are atomic, and durable when `write` resolves.
 * 2. A write of a group is one record: its entries packed, the checksum of the record before it, and its own checksum. So a record that is
 *    damaged, or missing between two others, is found on load.
 * 3. Records are keyed by their first index. A record that starts inside an earlier one voids the rest of that earlier one; Raft
 *    truncates only to write other entries at the same place, so a voided tail can never come back.
 * 4. Writes of the caller never overlap: the host has at most one in flight.
 *
 * Layout (docs/formats.md): 0x01 group -> hard state; 0x02 group firstIndex -> record.
 */
import { crc32 } from 'node:zlib'
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { decodeEntries, encodeEntries } from '../raft/message-codec.js'
import type { Entry, HardState, PersistWork, TermRun } from '../raft/types.js'
import type { Database, DatabaseBatch } from './database.js'

const hardStatePrefix = 0x01
const recordPrefix = 0x02
const recordVersion = 1

export interface LoadedLog {
  readonly hardState: HardState
  readonly terms: readonly TermRun[]
  readonly lastIndex: number
}

interface Tail {
  /** First index of the newest record; 0 when there is none. */
  firstIndex: number
  /** Its checksum; 0 when there is none. */
  checksum: number
}

export interface GroupWork {
  readonly group: number
  readonly work: PersistWork
}

export class LogStore {
  readonly #database: Database
  readonly #tails = new Map<number, Tail>()
  readonly #writer = new Writer(64 * 1024)

  constructor(database: Database) {
    this.#database = database
  }

  /** Deletes all of a group. */
  async remove(group: number): Promise<void> {
    this.#tails.delete(group)
    const batch = this.#database.batch()
    for await (const [key] of this.#iterate(recordKey(group, 0), recordKey(group + 1, 0))) batch.del(key)
    batch.del(hardStateKey(group))
    await batch.write({ sync: true })
  }

  /** Reads and verifies a group's log. Throws CorruptionError when a record is damaged or missing. */
  async load(group: number): Promise<LoadedLog> {
    const terms: TermRun[] = []
    let lastIndex = 0
    const tail: Tail = { firstIndex: 0, checksum: 0 }
    for await (const { entries, checksum, previousChecksum } of this.#records(group, 0)) {
      const first = entries[0]!
      if (previousChecksum !== tail.checksum) throw new CorruptionError(`log of group ${group}: a record is missing before index ${first.index}`)
      if (first.index > lastIndex + 1) throw new CorruptionError(`log of group ${group}: entries ${lastIndex + 1} to ${first.index - 1} are missing`)
      while (terms.length > 0 && terms[terms.length - 1]!.firstIndex >= first.index) terms.pop()
      for (const entry of entries) {
        const run = terms[terms.length - 1]
        if (run === undefined || run.term !== entry.term) terms.push({ term: entry.term, firstIndex: entry.index })
      }
      lastIndex = entries[entries.length - 1]!.index
      tail.firstIndex = first.index
      tail.checksum = checksum
    }
    this.#tails.set(group, tail)
    return { hardState: this.#loadHardState(group), terms, lastIndex }
  }

  #loadHardState(group: number): HardState {
    const bytes = this.#database.getSync(hardStateKey(group))
    if (bytes === undefined) return { term: 0, vote: null }
    const reader = new Reader(bytes, 0, checkedEnd(bytes, `hard state of group ${group}`))
    const term = reader.varint()
    const vote = reader.text()
    reader.end()
    return { term, vote: vote === '' ? null : vote }
  }

  /** Writes the work of several groups, one of each, in one synced batch. A rejection is final: the caller must not write again (the state on disk is unknown). */
  async write(works: readonly GroupWork[]): Promise<void> {
    const batch = this.#database.batch()
    for (const { group, work } of works) {
      if (work.hardState !== null) batch.put(hardStateKey(group), this.#encodeHardState(work.hardState))
      if (work.entries.length > 0) await this.#addRecord(batch, group, work)
    }
    await batch.write({ sync: true })
  }

  #encodeHardState({ term, vote }: HardState): Uint8Array {
    this.#writer.reset()
    this.#writer.varint(term).text(vote ?? '')
    return this.#seal()
  }

  async #addRecord(batch: DatabaseBatch, group: number, work: PersistWork): Promise<void> {
    const tail = this.#tails.get(group)!
    const firstIndex = work.entries[0]!.index
    // Only a conflict reaches back over whole records, so only a conflict pays for the look-up.
    if (firstIndex <= tail.firstIndex) await this.#dropRecords(batch, group, firstIndex, tail)
    this.#writer.reset()
    this.#writer.u8(recordVersion).u32(tail.checksum)
    encodeEntries(this.#writer, work.entries)
    const record = this.#seal()
    batch.put(recordKey(group, firstIndex), record)
    tail.firstIndex = firstIndex
    tail.checksum = checksumOf(record)
  }

  /** Deletes the records that start at `fromIndex` or later, and makes `tail` the record before them. */
  async #dropRecords(batch: DatabaseBatch, group: number, fromIndex: number, tail: Tail): Promise<void> {
    for await (const [key] of this.#iterate(recordKey(group, fromIndex), recordKey(group + 1, 0))) batch.del(key)
    tail.firstIndex = 0
    tail.checksum = 0
    for await (const [key, record] of this.#iterate(recordKey(group, 0), recordKey(group, fromIndex), true)) {
      tail.firstIndex = indexOfKey(key)
      tail.checksum = checksumOf(record)
      break
    }
  }

  /** Appends the checksum to what the writer holds and copies it out. */
  #seal(): Uint8Array {
    this.#writer.u32(crc32(this.#writer.view()))
    return Buffer.from(this.#writer.view())
  }

  /** Entries from `firstIndex` to at most `lastIndex`, up to about `maxBytes` of data but at least one; empty when they are not there. */
  async read(group: number, firstIndex: number, lastIndex: number, maxBytes: number): Promise<Entry[]> {
    let start = firstIndex
    for await (const [key] of this.#iterate(recordKey(group, 0), recordKey(group, firstIndex + 1), true)) {
      start = indexOfKey(key)
      break
    }
    const found: Entry[] = []
    let bytes = 0
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
    return found.slice(0, end)
  }

  async *#records(group: number, firstIndex: number): AsyncGenerator<{ entries: Entry[]; checksum: number; previousChecksum: number }> {
    for await (const [key, record] of this.#iterate(recordKey(group, firstIndex), recordKey(group + 1, 0))) {
      const place = `log record of group ${group} at index ${indexOfKey(key)}`
      const reader = new Reader(record, 0, checkedEnd(record, place))
      const version = reader.u8()
      if (version !== recordVersion) throw new CorruptionError(`${place}: unknown version ${version}`)
      const previousChecksum = reader.u32()
      const entries = decodeEntries(reader)
      reader.end()
      if (entries.length === 0 || entries[0]!.index !== indexOfKey(key)) throw new CorruptionError(`${place} holds other entries`)
      yield { entries, checksum: checksumOf(record), previousChecksum }
    }
  }

  async *#iterate(gte: Uint8Array, lt: Uint8Array, reverse = false): AsyncGenerator<[Uint8Array, Uint8Array]> {
    const iterator = this.#database.iterate({ gte, lt, reverse })
    try {
      for (;;) {
        const page = await iterator.nextv(reverse ? 1 : 64)
        if (page.length === 0) return
        yield* page
      }
    } finally {
      await iterator.close()
    }
  }
}

function hardStateKey(group: number): Uint8Array {
  return Buffer.from([hardStatePrefix, group >> 8, group & 0xff])
}

function recordKey(group: number, firstIndex: number): Uint8Array {
  const key = Buffer.alloc(11)
  key[0] = recordPrefix
  key.writeUInt16BE(group, 1)
  key.writeUIntBE(Math.floor(firstIndex / 0x100000000), 3, 4)
  key.writeUInt32BE(firstIndex % 0x100000000, 7)
  return key
}

function indexOfKey(key: Uint8Array): number {
  const reader = new Reader(key, 3)
  return reader.u32() * 0x100000000 + reader.u32()
}

function checksumOf(record: Uint8Array): number {
  return new Reader(record, record.length - 4).u32()
}

/** Verifies the checksum in the last four bytes and returns where the content ends. */
function checkedEnd(bytes: Uint8Array, place: string): number {
  const end = bytes.length - 4
  if (end < 0 || crc32(bytes.subarray(0, end)) !== checksumOf(bytes)) throw new CorruptionError(`${place}: wrong checksum`)
  return end
}
