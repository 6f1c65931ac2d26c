/**
 * The writing half of a host's cycle: persist work that waits, the one write in flight, and the messages that wait for it.
 *
 * Invariants: 1. at most one write is in flight, and works are written in their order; 2. messages are released when every work drained with them
 * or before them is durable, in their order; 3. all that waits dies with the process.
 */
import type { Message, PersistWork } from '../../raft/types.js'
import type { SimulatedLogDisk } from './log-disk.js'

interface Gate {
  readonly sequence: number
  readonly messages: readonly Message[]
}

export class LogWriter {
  readonly #disk: SimulatedLogDisk
  readonly #onWritten: (works: readonly PersistWork[], failed: boolean) => void
  #waiting: PersistWork[] = []
  #inFlight: readonly PersistWork[] = []
  #gates: Gate[] = []
  #lastSequence = 0
  #compactTo = 0
  #compacting = 0
  #alive = true

  /** `onWritten` is told of each write that ended; the owner then calls `written`, at once or later. */
  constructor(disk: SimulatedLogDisk, onWritten: (works: readonly PersistWork[], failed: boolean) => void) {
    this.#disk = disk
    this.#onWritten = onWritten
  }

  /** The last work handed over. */
  get lastSequence(): number {
    return this.#lastSequence
  }

  /** Works that no write has taken yet. */
  get waiting(): number {
    return this.#waiting.length
  }

  push(work: PersistWork): void {
    if (work.sequence <= this.#lastSequence) throw new Error(`persist work ${work.sequence} after ${this.#lastSequence}`)
    this.#lastSequence = work.sequence
    this.#waiting.push(work)
  }

  /** Whether the work of this sequence, and all before it, is durable. */
  isDurable(sequence: number): boolean {
    const first = this.#inFlight[0] ?? this.#waiting[0]
    return first === undefined || sequence < first.sequence
  }

  /** Keeps messages until the work of this sequence is durable. */
  hold(sequence: number, messages: readonly Message[]): void {
    this.#gates.push({ sequence, messages })
  }

  /** The next write is to drop entries up to an index. */
  compact(index: number): void {
    this.#compactTo = Math.max(this.#compactTo, index)
  }

  /** Starts a write when none is in flight and something waits. */
  write(): void {
    if (this.#inFlight.length > 0 || this.#compacting > 0 || (this.#waiting.length === 0 && this.#compactTo === 0)) return
    const works = this.#waiting
    this.#waiting = []
    this.#inFlight = works
    this.#compacting = this.#compactTo
    this.#compactTo = 0
    const done = (failed: boolean): void => {
      if (this.#alive) this.#onWritten(works, failed)
    }
    this.#disk.write(works, done, this.#compacting)
  }

  /** Up to where the write that has just ended compacted the log; 0 for not at all. */
  get compacted(): number {
    return this.#compacting
  }

  /** The write in flight is durable: returns the messages that waited for it. */
  written(): readonly Message[] {
    const sequence = this.#inFlight[this.#inFlight.length - 1]?.sequence ?? 0
    this.#inFlight = []
    this.#compacting = 0
    const released: Message[] = []
    while (this.#gates.length > 0 && (this.#gates[0] as Gate).sequence <= sequence) released.push(...(this.#gates.shift() as Gate).messages)
    return released
  }

  /** The process died. */
  abandon(): void {
    this.#alive = false
  }
}
