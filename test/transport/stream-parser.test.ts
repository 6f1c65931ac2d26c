/** The parser of byte streams: any cutting into chunks gives the same frames; lengths from outside are never trusted. */
import { expect } from 'chai'
import fc from 'fast-check'
import { ControlWord, StreamParser } from '../../src/transport/stream-parser.js'
import { pattern, sameBytes } from './support.js'

const maxFrameBytes = 1000

function collect(limit = maxFrameBytes): { parser: StreamParser; frames: Buffer[]; words: number[] } {
  const frames: Buffer[] = []
  const words: number[] = []
  const parser = new StreamParser(limit, { onFrame: (frame) => frames.push(frame), onControl: (word) => words.push(word) })
  return { parser, frames, words }
}

function encoded(frame: Uint8Array): Buffer {
  const length = Buffer.alloc(4)
  length.writeUInt32BE(frame.length)
  return Buffer.concat([length, frame])
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

/** Pushes a stream in pieces, each in memory of its own, as sockets give it. */
function pushIn(parser: StreamParser, stream: Buffer, sizes: Iterator<number>): void {
  for (let at = 0; at < stream.length; ) {
    const size = Math.max(1, sizes.next().value as number)
    parser.push(Buffer.from(stream.subarray(at, at + size)))
    at += size
  }
}

describe('StreamParser', () => {
  it('hazard E1.6: gives the same frames however the stream is cut', () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.integer({ min: 1, max: maxFrameBytes }), fc.constant('ping' as const)), { maxLength: 30 }),
        fc.infiniteStream(fc.oneof(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 50 }), fc.integer({ min: 1, max: 5000 }))),
        (items, sizes) => {
          const { parser, frames, words } = collect()
          const sent = items.filter((item) => item !== 'ping').map((size, number) => pattern(size, number))
          let number = 0
          const stream = Buffer.concat(items.map((item) => (item === 'ping' ? word(ControlWord.ping) : encoded(sent[number++] as Buffer))))
          pushIn(parser, stream, sizes)
          expect(frames.length).to.equal(sent.length)
          expect(frames.every((frame, at) => sameBytes(frame, sent[at] as Buffer))).to.equal(true)
          expect(words).to.have.length(items.length - sent.length)
          expect(parser.partial).to.equal(false)
        },
      ),
      { numRuns: 1000 },
    )
  })

  it('hazard E1.5: one byte at a time works', () => {
    const { parser, frames } = collect()
    for (const byte of Buffer.concat([encoded(pattern(300)), encoded(pattern(1)), encoded(pattern(1000))])) parser.push(Buffer.from([byte]))
    expect(frames.map((frame) => frame.length)).to.deep.equal([300, 1, 1000])
    expect(sameBytes(frames[2] as Buffer, pattern(1000))).to.equal(true)
  })

  it('hazard E1.1, E1.2, E1.3: zero, over the limit, and the sign bit are refused, and nothing is taken after', () => {
    for (const length of [0, maxFrameBytes + 1, 0x7fffffff, 0x80000000, 0xffffffff, 0xffffff00, 0xffffff03])
      for (const cut of [1, 2, 3, 4, 100]) {
        const { parser, frames } = collect()
        const stream = Buffer.concat([encoded(pattern(10)), word(length), encoded(pattern(20))])
        expect(
          () =>
            pushIn(
              parser,
              stream,
              (function* () {
                for (;;) yield cut
              })(),
            ),
          `length ${length}, cut ${cut}`,
        ).to.throw(RangeError)
        parser.push(encoded(pattern(30)))
        expect(frames.map((frame) => frame.length)).to.deep.equal([10])
      }
  })

  it('takes a frame of exactly the limit', () => {
    const { parser, frames } = collect()
    parser.push(encoded(pattern(maxFrameBytes)))
    expect(frames).to.have.length(1)
  })

  it('gives a frame that lies whole in a chunk as a view of it', () => {
    const { parser, frames } = collect()
    const chunk = Buffer.concat([encoded(pattern(10)), encoded(pattern(20))])
    parser.push(chunk)
    expect(frames.map((frame) => frame.buffer === chunk.buffer)).to.deep.equal([true, true])
  })

  it('hazard E1.2: keeps memory by what has come, not by what a length claims', () => {
    const limit = 512 * 1024 * 1024
    const parsers: StreamParser[] = []
    const before = process.memoryUsage().arrayBuffers
    for (let number = 0; number < 100; number++) {
      const { parser } = collect(limit)
      parser.push(word(limit))
      for (const bytes of [10, 30_000, 70_000]) parser.push(Buffer.alloc(bytes))
      parsers.push(parser)
    }
    expect(process.memoryUsage().arrayBuffers - before).to.be.below(100 * 4 * 100_000)
    expect(parsers.every((parser) => parser.partial)).to.equal(true)
  })

  it('copies a large frame a bounded number of times: the work grows with its length, not with its square', () => {
    const frame = pattern(4 * 1024 * 1024)
    const stream = encoded(frame)
    const real = Buffer.prototype.copy
    let copied = 0
    Buffer.prototype.copy = function (...args: Parameters<typeof real>) {
      const bytes = real.apply(this, args)
      copied += bytes
      return bytes
    }
    try {
      for (const size of [1000, 65_536]) {
        copied = 0
        const { parser, frames } = collect(frame.length)
        pushIn(
          parser,
          stream,
          (function* () {
            for (;;) yield size
          })(),
        )
        expect(frames).to.have.length(1)
        expect(sameBytes(frames[0] as Buffer, frame)).to.equal(true)
        expect(copied).to.be.below(3 * frame.length)
      }
    } finally {
      Buffer.prototype.copy = real
    }
  })

  it('passes on what the frame handler throws, and takes nothing more, not even of the same chunk', () => {
    let seen = 0
    const parser = new StreamParser(maxFrameBytes, {
      onFrame: () => {
        seen++
        throw new Error('not one of ours')
      },
      onControl: () => {},
    })
    expect(() => parser.push(Buffer.concat([encoded(pattern(5)), encoded(pattern(5))]))).to.throw('not one of ours')
    parser.push(encoded(pattern(5)))
    expect(seen).to.equal(1)
  })
})
