/**
 * Cuts a byte stream into frames, each behind its length (u32, big-endian).
 *
 * Invariants: 1. a frame that lies whole in one chunk is delivered as a view of it, without a copy; 2. one that spans chunks is copied into a buffer that
 * grows with what has arrived, never by what a length claims, so that its bytes are copied at most twice whatever the chunks; 3. a length of zero or over
 * the limit is an error before anything is kept; 4. after an error nothing more is taken.
 */

export const lengthBytes = 4

/** Words in the place of a length that are no lengths. */
export const ControlWord = { ping: 0xffffff01, pong: 0xffffff02 } as const

/** What is kept first of a frame that spans chunks. */
const firstKeptBytes = 64 * 1024

export interface StreamParserHandlers {
  /** May throw: the parser then passes the error on, and takes nothing more. */
  readonly onFrame: (frame: Buffer) => void
  readonly onControl: (word: number) => void
}

export class StreamParser {
  readonly #maxFrameBytes: number
  readonly #handlers: StreamParserHandlers
  #kept: Buffer | null = null
  #keptBytes = 0
  /** Bytes that `#kept` must reach before anything can be done: a length, or a length and its frame. */
  #wantedBytes = 0
  #stopped = false

  constructor(maxFrameBytes: number, handlers: StreamParserHandlers) {
    this.#maxFrameBytes = maxFrameBytes
    this.#handlers = handlers
  }

  /** Whether a frame has begun to arrive and is not complete. */
  get partial(): boolean {
    return this.#kept !== null
  }

  /** Takes nothing more: what is left of the chunk being pushed is dropped, too. */
  stop(): void {
    this.#stopped = true
    this.#kept = null
  }

  /** Takes the next bytes of the stream. Throws a RangeError for a length that is not allowed, and whatever `onFrame` throws. */
  push(chunk: Buffer): void {
    let at = 0
    while (this.#kept !== null && !this.#stopped) {
      at = this.#fill(chunk, at)
      if (this.#keptBytes < this.#wantedBytes) return
      this.#complete()
    }
    this.#parse(chunk, at)
  }

  /** The part of the chunk that completes what is kept. Returns where the chunk goes on. */
  #fill(chunk: Buffer, from: number): number {
    const kept = this.#kept as Buffer
    const take = Math.min(this.#wantedBytes - this.#keptBytes, chunk.length - from)
    const needed = this.#keptBytes + take
    let target = kept
    if (needed > kept.length) {
      target = Buffer.allocUnsafeSlow(Math.min(this.#wantedBytes, Math.max(firstKeptBytes, 2 * needed)))
      kept.copy(target, 0, 0, this.#keptBytes)
      this.#kept = target
    }
    chunk.copy(target, this.#keptBytes, from, from + take)
    this.#keptBytes = needed
    return from + take
  }

  /** Enough is kept: either the length is known now, or the frame is whole. */
  #complete(): void {
    const kept = this.#kept as Buffer
    if (this.#wantedBytes === lengthBytes) {
      const length = kept.readUInt32BE(0)
      if (this.#isControl(length)) {
        this.#kept = null
        this.#handlers.onControl(length)
        return
      }
      this.#wantedBytes = lengthBytes + length
      return
    }
    const frame = kept.subarray(lengthBytes, this.#wantedBytes)
    this.#kept = null
    this.#deliver(frame)
  }

  #parse(chunk: Buffer, from: number): void {
    let at = from
    const end = chunk.length
    while (at < end && !this.#stopped) {
      if (end - at < lengthBytes) {
        this.#keep(chunk, at, lengthBytes)
        return
      }
      const length = chunk.readUInt32BE(at)
      if (this.#isControl(length)) {
        at += lengthBytes
        this.#handlers.onControl(length)
        continue
      }
      const frameEnd = at + lengthBytes + length
      if (frameEnd > end) {
        this.#keep(chunk, at, lengthBytes + length)
        return
      }
      this.#deliver(chunk.subarray(at + lengthBytes, frameEnd))
      at = frameEnd
    }
  }

  #keep(chunk: Buffer, from: number, wantedBytes: number): void {
    const bytes = chunk.length - from
    const kept = Buffer.allocUnsafeSlow(Math.min(wantedBytes, Math.max(firstKeptBytes, 2 * bytes)))
    chunk.copy(kept, 0, from)
    this.#kept = kept
    this.#keptBytes = bytes
    this.#wantedBytes = wantedBytes
  }

  #deliver(frame: Buffer): void {
    try {
      this.#handlers.onFrame(frame)
    } catch (error) {
      this.stop()
      throw error
    }
  }

  #isControl(word: number): boolean {
    if (word > 0 && word <= this.#maxFrameBytes) return false
    if (word === ControlWord.ping || word === ControlWord.pong) return true
    this.stop()
    throw new RangeError(`frame of ${word} bytes, allowed are 1 to ${this.#maxFrameBytes}`)
  }
}
