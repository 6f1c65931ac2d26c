import { expect } from 'chai'
import fc from 'fast-check'
import { Reader, Writer } from '../../src/base/codec.js'
import { CorruptionError } from '../../src/base/errors.js'
import { newSeed } from '../support/seed.js'

type Field = { type: 'u8' | 'u16' | 'u32' | 'varint'; value: number } | { type: 'raw' | 'bytes'; value: Uint8Array } | { type: 'text'; value: string }

const varint = fc.oneof(
  fc.nat({ max: 300 }),
  fc.maxSafeNat(),
  fc.integer({ min: 0, max: 7 }).chain((bytes) => fc.constantFrom(-1, 0, 1).map((step) => Math.max(0, 2 ** (7 * bytes) + step))),
  fc.constantFrom(0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, Number.MAX_SAFE_INTEGER),
)

const field: fc.Arbitrary<Field> = fc.oneof(
  fc.nat({ max: 0xff }).map((value): Field => ({ type: 'u8', value })),
  fc.nat({ max: 0xffff }).map((value): Field => ({ type: 'u16', value })),
  fc.nat({ max: 0xffffffff }).map((value): Field => ({ type: 'u32', value })),
  varint.map((value): Field => ({ type: 'varint', value })),
  fc.uint8Array({ maxLength: 300 }).map((value): Field => ({ type: 'raw', value })),
  fc.uint8Array({ maxLength: 300 }).map((value): Field => ({ type: 'bytes', value })),
  fc.string({ unit: 'grapheme', maxLength: 60 }).map((value): Field => ({ type: 'text', value })),
)

function write(writer: Writer, { type, value }: Field): void {
  ;(writer[type] as (value: unknown) => Writer)(value)
}

function read(reader: Reader, { type, value }: Field): unknown {
  return type === 'raw' ? reader.raw(value.length) : reader[type]()
}

const plain = (value: unknown): unknown => (value instanceof Uint8Array ? Buffer.from(value).toString('hex') : value)

function check(property: fc.IRawProperty<unknown>, numRuns: number): void {
  fc.assert(property, { seed: newSeed() | 0, numRuns })
}

describe('Writer and Reader', () => {
  it('what is written is read again, in any order of fields and from any starting size', () => {
    check(
      fc.property(fc.array(field, { maxLength: 30 }), fc.nat({ max: 40 }), (fields, initialBytes) => {
        const writer = new Writer(initialBytes)
        for (const each of fields) write(writer, each)
        const reader = new Reader(writer.view())
        for (const each of fields) expect(plain(read(reader, each))).to.equal(plain(each.value))
        reader.end()
        expect(reader.position).to.equal(writer.length)
      }),
      500,
    )
  })

  it('hazard E1.4, E1.11: every cut is found, and every trailing byte', () => {
    check(
      fc.property(fc.array(field, { minLength: 1, maxLength: 6 }), (fields) => {
        const writer = new Writer()
        for (const each of fields) write(writer, each)
        const bytes = writer.finish()
        for (let length = 0; length < bytes.length; length++) {
          const reader = new Reader(bytes, 0, length)
          expect(() => {
            for (const each of fields) read(reader, each)
          }).to.throw(CorruptionError)
          expect(reader.position).to.be.at.most(length)
        }
        const longer = new Reader(Buffer.concat([bytes, Buffer.from([0])]))
        for (const each of fields) read(longer, each)
        expect(() => longer.end()).to.throw(CorruptionError)
      }),
      60,
    )
  })

  it('hazard E1.8, E1.17: random bytes give a value in range or CorruptionError, and what is read has one form only', () => {
    check(
      fc.property(
        fc.uint8Array({ maxLength: 40 }),
        fc.array(fc.constantFrom('u8', 'u16', 'u32', 'varint', 'bytes', 'text', 'count'), { maxLength: 8 }),
        (bytes, types) => {
          const reader = new Reader(bytes)
          const again = new Writer(0)
          try {
            for (const type of types as ('u8' | 'u16' | 'u32' | 'varint' | 'bytes' | 'text' | 'count')[]) {
              const value = reader[type]()
              if (typeof value === 'number') expect(Number.isSafeInteger(value) && value >= 0, `${value}`).to.equal(true)
              if (type === 'count') again.varint(value as number)
              // A byte order mark is taken for what it is not: text, and dropped.
              else if (type === 'text') again.bytes(Buffer.from(value as string))
              else write(again, { type, value } as Field)
            }
          } catch (error) {
            expect(error).to.be.instanceOf(CorruptionError).and.include({ code: 'MALFORMED' })
            return
          }
          expect(Buffer.from(again.view()).toString('hex')).to.equal(Buffer.from(bytes.subarray(0, reader.position)).toString('hex'))
        },
      ),
      3000,
    )
  })

  it('refuses integers over the limit, in more bytes than needed, and text that is not UTF-8', () => {
    const hex = (text: string) => new Reader(Buffer.from(text, 'hex'))
    expect(hex('ffffffffffffff0f').varint()).to.equal(Number.MAX_SAFE_INTEGER)
    for (const wrong of ['ffffffffffffff10', 'ffffffffffffff7f', 'ffffffffffffffff01', '8000', 'ff8000', '']) {
      expect(() => hex(wrong).varint(), wrong).to.throw(CorruptionError)
    }
    for (const wrong of ['01ff', '02c080', '03eda080', '01c3']) expect(() => hex(wrong).text(), wrong).to.throw(CorruptionError)
    expect(() => hex('0a010203').count(1)).to.throw(CorruptionError)
    expect(() => hex('03010203').count(2)).to.throw(CorruptionError)
    expect(hex('03010203').count(1)).to.equal(3)
  })

  it('text keeps a byte order mark: it is a character like others', () => {
    const text = '\ufeffabc\u0000\u{1f600}'
    expect(new Reader(new Writer().text(text).view()).text()).to.equal(text)
  })

  it('what was handed over is not written to again', () => {
    const writer = new Writer(4)
    const first = writer.text('first').finish()
    writer.text('other')
    expect(new Reader(first).text()).to.equal('first')
    writer.reset()
    expect(writer.length).to.equal(0)
    const patched = writer.u32(0).u8(7).patchU32(0, 0xdeadbeef).finish()
    expect(Buffer.from(patched).toString('hex')).to.equal('deadbeef07')
  })

  it('reads a range of a larger buffer and nothing beside it', () => {
    const buffer = Buffer.from('aabb02ccddee', 'hex')
    const reader = new Reader(buffer, 2, 5)
    expect(Buffer.from(reader.bytes()).toString('hex')).to.equal('ccdd')
    expect(reader.remaining).to.equal(0)
    expect(() => reader.u8()).to.throw(CorruptionError)
  })
})
