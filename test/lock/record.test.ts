import { Encoder } from '@msgpack/msgpack'
import { expect } from 'chai'
import { CorruptionError, RefusedError } from '../../src/base/errors.js'
import {
  decodeRecord,
  encodeRecord,
  freeRecord,
  type LockRecord,
  maxLabelBytes,
  maxTtlMs,
  maxWaiters,
  minTtlMs,
  withBeat,
  withoutNonce,
} from '../../src/lock/record.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'

const nonce = (number: number) => number.toString(16).padStart(32, '0')
const raw = (number: number) => Uint8Array.from(Buffer.from(nonce(number), 'hex'))
const encoder = new Encoder()

const full: LockRecord = {
  holder: { nonce: nonce(1), token: 2 ** 53 - 1, ttlMs: maxTtlMs, beat: 123_456, label: 'n'.repeat(maxLabelBytes) },
  waiters: Array.from({ length: maxWaiters }, (_, at) => ({ nonce: nonce(at + 2), label: 'w'.repeat(maxLabelBytes) })),
}

describe('lock record', () => {
  it('reads back what it wrote, from free to full', () => {
    const small: LockRecord = { holder: { nonce: nonce(7), token: 0, ttlMs: minTtlMs, beat: 0, label: '' }, waiters: [] }
    const waiting: LockRecord = { holder: null, waiters: [{ nonce: nonce(8), label: 'grün 🦊' }] }
    for (const record of [freeRecord, small, waiting, full]) {
      expect(decodeRecord(encodeRecord(record))).to.deep.equal(record)
      // A store may hand out any kind of bytes.
      expect(decodeRecord(Buffer.from(encodeRecord(record)))).to.deep.equal(record)
    }
    expect(encodeRecord(freeRecord).length).to.be.at.most(20)
    expect(encodeRecord(full).length, 'the largest record').to.be.at.most(20_000)
  })

  it('changes only what it should', () => {
    expect(withBeat(full).holder).to.deep.equal({ ...full.holder, beat: 123_457 })
    expect(withBeat(freeRecord)).to.deep.equal(freeRecord)
    expect(withoutNonce(full, nonce(1))).to.deep.equal({ holder: null, waiters: full.waiters })
    expect(withoutNonce(full, nonce(3)).waiters).to.deep.equal(full.waiters.filter(({ nonce: each }) => each !== nonce(3)))
    expect(withoutNonce(full, nonce(3)).holder).to.deep.equal(full.holder)
  })

  const holder = [raw(1), 5, 15_000, 3, 'label']
  const waiter = [raw(2), 'label']
  const record = (...parts: unknown[]) => encoder.encode(['quorate/lock', 1, ...parts])
  const foreign: Record<string, Uint8Array> = {
    nothing: new Uint8Array(),
    'a text': encoder.encode('quorate/lock'),
    'plain text': new TextEncoder().encode('hello'),
    'a number': encoder.encode(1),
    'a map': encoder.encode({ holder: null }),
    'an empty array': encoder.encode([]),
    'another first word': encoder.encode(['other', 1, null, []]),
    'too few fields': record(null),
    'too many fields': record(null, [], 1),
    'a holder that is a map': record({ nonce: 1 }, []),
    'a holder with too few fields': record(holder.slice(1), []),
    'a holder with too many': record([...holder, 1], []),
    'a short nonce': record([raw(1).subarray(1), ...holder.slice(1)], []),
    'a nonce that is a text': record(['x'.repeat(16), ...holder.slice(1)], []),
    'a token that is negative': record([raw(1), -1, 15_000, 3, ''], []),
    'a token that is a fraction': record([raw(1), 1.5, 15_000, 3, ''], []),
    'a token that is a text': record([raw(1), '1', 15_000, 3, ''], []),
    'a token over 2^53': record([raw(1), 2 ** 60, 15_000, 3, ''], []),
    'a beat that is no number': record([raw(1), 1, 15_000, null, ''], []),
    'a ttl of 0': record([raw(1), 1, 0, 3, ''], []),
    'a ttl of ten years': record([raw(1), 1, 315_360_000_000, 3, ''], []),
    'a label that is a number': record([raw(1), 1, 15_000, 3, 7], []),
    'a label that is too long': record([raw(1), 1, 15_000, 3, 'x'.repeat(maxLabelBytes + 1)], []),
    'waiters that are no array': record(null, null),
    'a waiter that is a nonce': record(null, [raw(2)]),
    'too many waiters': record(
      null,
      Array.from({ length: maxWaiters + 1 }, (_, at) => [raw(at + 2), '']),
    ),
    'a waiter twice': record(null, [waiter, waiter]),
    'the holder among the waiters': record(holder, [[raw(1), '']]),
    'a byte too many': Buffer.concat([encodeRecord(freeRecord), Buffer.from([0])]),
    'a byte too few': encodeRecord(full).subarray(0, -1),
    'a length that is not there': Uint8Array.from([0xdd, 0xff, 0xff, 0xff, 0xff]),
    'deep nesting': new Uint8Array(10_000).fill(0x91),
    'an invalid first byte': Uint8Array.from([0xc1]),
  }
  for (const [what, bytes] of Object.entries(foreign)) {
    it(`refuses ${what}`, () => {
      expect(() => decodeRecord(bytes))
        .to.throw(CorruptionError)
        .with.property('code', 'MALFORMED')
    })
  }

  it('tells a later format from damage', () => {
    expect(() => decodeRecord(encoder.encode(['quorate/lock', 2, 'whatever'])))
      .to.throw(RefusedError)
      .with.property('code', 'WRONG_PROTOCOL')
  })

  it('answers random bytes and damaged records with a typed error or a valid record, never otherwise', () => {
    const random = new SeededRandom(1, 'fuzz')
    const valid = encodeRecord({ holder: full.holder, waiters: full.waiters.slice(0, 3) })
    for (let round = 0; round < 20_000; round++) {
      const bytes = round % 2 === 0 ? random.bytes(random.integer(0, 64)) : valid.slice()
      if (round % 2 === 1)
        for (let flips = random.integer(1, 3); flips > 0; flips--) bytes[random.integer(0, bytes.length - 1)]! ^= 1 << random.integer(0, 7)
      try {
        const record = decodeRecord(bytes)
        expect(decodeRecord(encodeRecord(record))).to.deep.equal(record)
      } catch (error) {
        expect(error, `round ${round}: ${Buffer.from(bytes).toString('hex')}`).to.satisfy(
          (each: unknown) => each instanceof CorruptionError || each instanceof RefusedError,
        )
      }
    }
  })
})
