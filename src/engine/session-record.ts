/** SessionRecord: what makes a client's writes exactly once: its completion records in one shard. */
import type { Reader, Writer } from '../base/codec.js'
import { type CommandResult, CommandStatus, readResult, writeResult } from './command.js'
import type { StateRecord } from './record-table.js'

/** What a session's requests in one shard were answered, from its low-water mark on. */
export class SessionRecord implements StateRecord {
  #lowWater: number
  readonly #completions: Map<number, CommandResult>
  #bodyBytes = 0

  constructor(lowWater: number, completions: Map<number, CommandResult>) {
    this.#lowWater = lowWater
    this.#completions = completions
    for (const { body } of completions.values()) if (body !== undefined) this.#bodyBytes += body.length
  }

  get sizeBytes(): number {
    return 64 + this.#completions.size * 64 + this.#bodyBytes
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
    return new SessionRecord(Math.max(lowWater, this.#lowWater), kept)
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

  complete(sequence: number, result: CommandResult): void {
    this.#completions.set(sequence, result)
    if (result.body !== undefined) this.#bodyBytes += result.body.length
  }

  static decode(reader: Reader): SessionRecord {
    const lowWater = reader.varint()
    const completions = new Map<number, CommandResult>()
    for (let left = reader.count(4); left > 0; left--) completions.set(lowWater + reader.varint(), readResult(reader))
    reader.end()
    return new SessionRecord(lowWater, completions)
  }

  encode(writer: Writer): void {
    writer.varint(this.#lowWater).varint(this.#completions.size)
    for (const [sequence, result] of this.#completions) {
      writer.varint(sequence - this.#lowWater)
      writeResult(writer, result)
    }
  }
}
