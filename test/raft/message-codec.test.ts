/** Raft messages and entries as bytes: there and back, and nothing else back. */
import { expect } from 'chai'
import fc from 'fast-check'
import { Reader, Writer } from '../../src/base/codec.js'
import { CorruptionError } from '../../src/base/errors.js'
import { decodeConfiguration, decodeEntries, decodeMessage, encodeConfiguration, encodeEntries, encodeMessage } from '../../src/raft/message-codec.js'
import { type Entry, EntryKind, type Message } from '../../src/raft/types.js'

const number = fc.oneof(fc.nat(300), fc.maxSafeNat())
const flag = fc.boolean()
const envelope = { from: fc.constant('a'), to: fc.constant('b'), term: number }
const entries: fc.Arbitrary<Entry[]> = fc
  .tuple(
    fc.integer({ min: 1, max: 2 ** 50 }),
    fc.array(
      fc.record({
        rise: fc.constantFrom(0, 0, 0, 1, 200),
        kind: fc.constantFrom(...Object.values(EntryKind)),
        data: fc.uint8Array({ maxLength: 20 }),
      }),
      {
        maxLength: 20,
      },
    ),
  )
  .map(([firstIndex, list]) => {
    let term = 1
    return list.map(({ rise, kind, data }, position) => {
      term += rise
      return { term, index: firstIndex + position, kind, data }
    })
  })

const message: fc.Arbitrary<Message> = fc.oneof(
  fc.record({
    type: fc.constant('pre-vote-request' as const),
    ...envelope,
    lastIndex: number,
    lastTerm: number,
    sequence: number,
  }),
  fc.record({
    type: fc.constant('vote-request' as const),
    ...envelope,
    lastIndex: number,
    lastTerm: number,
    sequence: number,
    transfer: flag,
  }),
  fc.record({
    type: fc.constant('snapshot-offer' as const),
    ...envelope,
    snapshotIndex: number,
    snapshotTerm: number,
    session: number,
    sequence: number,
  }),
  fc.record({ type: fc.constant('timeout-now' as const), ...envelope }),
  fc.record({ type: fc.constantFrom('pre-vote-reply' as const, 'vote-reply' as const), ...envelope, granted: flag, sequence: number }),
  fc.record({
    type: fc.constant('append-request' as const),
    ...envelope,
    previousIndex: number,
    previousTerm: number,
    commitIndex: number,
    session: number,
    sequence: number,
    entries,
  }),
  fc
    .record({ ...envelope, session: number, sequence: number, accepted: flag, matchIndex: number, conflictTerm: number, conflictIndex: number })
    .map((reply) => ({
      type: 'append-reply' as const,
      ...reply,
      matchIndex: reply.accepted ? reply.matchIndex : 0,
      conflictTerm: reply.accepted ? 0 : reply.conflictTerm,
      conflictIndex: reply.accepted ? 0 : reply.conflictIndex,
    })),
  fc.record({ type: fc.constant('heartbeat' as const), ...envelope, commitIndex: number, round: number }),
  fc.record({ type: fc.constant('heartbeat-reply' as const), ...envelope, round: number }),
)

function encode(value: Message): Uint8Array {
  const writer = new Writer()
  encodeMessage(writer, value)
  return writer.finish()
}

/** Decoded data are views of the whole frame; compared by content. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return `bytes ${Buffer.from(value).toString('hex')}`
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, plain(part)]))
}

describe('raft message codec', () => {
  it('brings every message back as it was, one after the other', () => {
    fc.assert(
      fc.property(fc.array(message, { minLength: 1, maxLength: 4 }), (messages) => {
        const writer = new Writer()
        for (const each of messages) encodeMessage(writer, each)
        const reader = new Reader(writer.finish())
        for (const each of messages) expect(plain(decodeMessage(reader, 'a', 'b'))).to.deep.equal(plain(each))
        reader.end()
      }),
      { numRuns: 1000 },
    )
  })

  it('hazard E1.8: takes random bytes for a message or refuses them as malformed, and a message has one form', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), fc.integer({ min: 0, max: 11 }), (bytes, type) => {
        const buffer = new Uint8Array([type, ...bytes])
        const reader = new Reader(buffer)
        try {
          const decoded = decodeMessage(reader, 'a', 'b')
          expect(Buffer.from(encode(decoded))).to.deep.equal(Buffer.from(buffer.subarray(0, reader.position)))
        } catch (error) {
          expect(error).to.be.instanceOf(CorruptionError)
          expect((error as CorruptionError).code).to.equal('MALFORMED')
        }
      }),
      { numRuns: 20_000 },
    )
  })

  it('refuses every cut of a message, and every flipped bit ends in a message or a refusal', () => {
    fc.assert(
      fc.property(message, fc.nat(), fc.nat(7), (value, position, bit) => {
        const bytes = encode(value)
        for (let length = 0; length < bytes.length; length++) {
          expect(() => decodeMessage(new Reader(bytes, 0, length), 'a', 'b')).to.throw(CorruptionError)
        }
        bytes[position % bytes.length]! ^= 1 << bit
        try {
          decodeMessage(new Reader(bytes), 'a', 'b')
        } catch (error) {
          expect(error).to.be.instanceOf(CorruptionError)
        }
      }),
      { numRuns: 300 },
    )
  })

  it('brings entries back, with no data copied', () => {
    fc.assert(
      fc.property(entries, (list) => {
        const writer = new Writer()
        encodeEntries(writer, list)
        const bytes = writer.finish()
        const reader = new Reader(bytes)
        const decoded = decodeEntries(reader)
        reader.end()
        expect(plain(decoded)).to.deep.equal(plain(list))
        for (const { data } of decoded) expect(data.buffer).to.equal(bytes.buffer)
      }),
    )
  })

  it('writes the terms of many entries once', () => {
    const list: Entry[] = Array.from({ length: 1000 }, (_, position) => ({
      term: 7,
      index: position + 1,
      kind: EntryKind.command,
      data: new Uint8Array(10),
    }))
    const writer = new Writer()
    encodeEntries(writer, list)
    expect(writer.length).to.be.at.most(1000 * 11 + 10)
  })

  const ids = fc.uniqueArray(fc.constantFrom('a', 'b', 'c', 'd', 'node#17', 'ü'), { maxLength: 6 })
  const configuration = fc
    .record({ voters: ids, learners: ids, votersOutgoing: ids })
    .map((lists) => ({ ...lists, learners: lists.learners.filter((id) => !lists.voters.includes(id)) }))

  it('brings configurations back, without voters too', () => {
    fc.assert(fc.property(configuration, (value) => void expect(decodeConfiguration(encodeConfiguration(value))).to.deep.equal(value)))
  })

  it('takes random and cut bytes for a configuration or refuses them, and a configuration has one form', () => {
    fc.assert(
      fc.property(configuration, fc.uint8Array({ maxLength: 20 }), fc.nat(), (value, noise, position) => {
        const bytes = Buffer.from(encodeConfiguration(value))
        for (let length = 0; length < bytes.length; length++) expect(() => decodeConfiguration(bytes.subarray(0, length))).to.throw(CorruptionError)
        for (const wrong of [noise, Buffer.concat([bytes, noise]), bytes.map((byte, at) => (at === position % bytes.length ? byte ^ 5 : byte))]) {
          try {
            expect(Buffer.from(encodeConfiguration(decodeConfiguration(wrong)))).to.deep.equal(Buffer.from(wrong))
          } catch (error) {
            expect(error).to.be.instanceOf(CorruptionError)
          }
        }
      }),
    )
  })

  const malformedConfigurations: [string, number[]][] = [
    ['another version', [2, 0, 0, 0]],
    ['a member that stands twice', [1, 2, 1, 97, 1, 97, 0, 0]],
    ['a member that is voter and learner', [1, 1, 1, 97, 1, 1, 97, 0]],
    ['a member without id', [1, 1, 0, 0, 0]],
    ['bytes behind it', [1, 0, 0, 0, 0]],
    ['more members than bytes', [1, 0x80, 0x80, 4, 1, 97, 0, 0]],
  ]
  for (const [what, bytes] of malformedConfigurations) {
    it(`hazard E1.10: refuses a configuration with ${what}`, () => {
      expect(() => decodeConfiguration(new Uint8Array(bytes)))
        .to.throw(CorruptionError)
        .with.property('code', 'MALFORMED')
    })
  }

  const malformed: [string, number[]][] = [
    ['an unknown type', [99, 1]],
    ['type 0', [0, 1]],
    ['a flag that is neither', [2, 1, 2, 0]],
    ['an unknown kind', [5, 1, 0, 0, 0, 1, 1, 1, 1, 1, 9, 1, 0]],
    ['entries from index 0', [5, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0]],
    ['an empty run', [5, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]],
    ['a run beyond the count', [5, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 0]],
    ['a first run of term 0', [5, 1, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0]],
    ['two runs that are one', [5, 1, 0, 0, 0, 1, 1, 2, 1, 1, 1, 1, 0, 1, 1, 0, 0]],
    ['a count beyond the bytes', [5, 1, 0, 0, 0, 1, 1, 0x80, 0x80, 0x80, 1, 1, 1, 1, 0]],
    ['data beyond the bytes', [5, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 5, 0]],
  ]
  for (const [what, bytes] of malformed) {
    it(`hazard E1.10 E1.11: refuses ${what}`, () => {
      expect(() => decodeMessage(new Reader(new Uint8Array(bytes)), 'a', 'b'))
        .to.throw(CorruptionError)
        .with.property('code', 'MALFORMED')
    })
  }
})
