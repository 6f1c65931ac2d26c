/** SessionRecord: what makes a client's writes exactly once: its completion records in one shard. What the numbers are for: sessions.ts. */
import type { Reader, Writer } from '../base/codec.js'
import { type CommandResult, CommandStatus, readResult, writeResult } from './command.js'
import type { StateRecord } from './record-table.js'

/** What a session's requests in one shard were answered, from its low-water mark on. */
export class SessionRecord implements StateRecord {
  /** The shard's horizon when the record was made: a request of no later birth was never answered here. */
  readonly floor: number
  /** The latest birth of the requests that were answered here. */
  birth: number
  /** Log time of the last request that was answered here. */
  touchedMs: number
  #lowWater: number
  readonly #completions: Map<number, CommandResult>
  #bodyBytes = 0

  constructor(floor: number, lowWater: number, completions: Map<number, CommandResult> = new Map()) {
    this.floor = floor
    this.birth = floor
    this.touchedMs = 0
    this.#lowWater = lowWater
    this.#completions = completions
    for (const { body } of completions.values()) if (body !== undefined) this.#bodyBytes += body.length
  }

  get sizeBytes(): number {
    return 88 + this.#completions.size * 64 + this.#bodyBytes
  }

  /** Bytes of the bodies of the answers that are kept. */
  get bodyBytes(): number {
    return this.#bodyBytes
  }

  /** The first answer to a request, or undefined when it was not yet made. */
  find(sequence: number): CommandResult | undefined {
    if (sequence < this.#lowWater) return { status: CommandStatus.stale, version: 0, revision: 0 }
    return this.#completions.get(sequence)
  }

  /** A record that may be changed: this one's content above the new low-water mark. */
  raise(lowWater: number): SessionRecord {
    const kept = new Map<number, CommandResult>()
    for (const [sequence, result] of this.#completions) if (sequence >= lowWater) kept.set(sequence, result)
    const raised = new SessionRecord(this.floor, Math.max(lowWater, this.#lowWater), kept)
    raised.birth = this.birth
    raised.touchedMs = this.touchedMs
    return raised
  }

  /** Drops what is below the mark, in place. */
  trim(lowWater: number): void {
    if (lowWater <= this.#lowWater) return
    this.#lowWater = lowWater
    for (const [sequence, { body }] of this.#completions) {
      if (sequence >= lowWater) continue
      this.#completions.delete(sequence)
      if (body !== undefined) this.#bodyBytes -= body.length
    }
  }

  /** Keeps the answer to a request of this birth, given at this log time. */
  complete(sequence: number, result: CommandResult, birth: number, timeMs: number): void {
    if (birth > this.birth) this.birth = birth
    this.touchedMs = timeMs
    this.#completions.set(sequence, result)
    if (result.body !== undefined) this.#bodyBytes += result.body.length
  }

  static decode(reader: Reader): SessionRecord {
    const floor = reader.varint()
    const birth = floor + reader.varint()
    const touchedMs = reader.varint()
    const lowWater = reader.varint()
    const completions = new Map<number, CommandResult>()
    for (let left = reader.count(4); left > 0; left--) completions.set(lowWater + reader.varint(), readResult(reader))
    reader.end()
    const record = new SessionRecord(floor, lowWater, completions)
    record.birth = birth
    record.touchedMs = touchedMs
    return record
  }

  encode(writer: Writer): void {
    writer
      .varint(this.floor)
      .varint(this.birth - this.floor)
      .varint(this.touchedMs)
      .varint(this.#lowWater)
      .varint(this.#completions.size)
    for (const [sequence, result] of this.#completions) {
      writer.varint(sequence - this.#lowWater)
      writeResult(writer, result)
    }
  }
}
