/** Values of pairs as bytes. */
import { decode, encode } from '@msgpack/msgpack'
import { expect } from 'chai'
import fc from 'fast-check'
import { InvalidArgumentError } from '../../src/base/errors.js'
import { ByteBuilder } from '../../src/mapreduce/byte-builder.js'
import { bytesToValue, valueToBytes, writeValue } from '../../src/mapreduce/value-codec.js'

/** The bytes behind the length. */
function written(value: unknown): Buffer {
  const builder = new ByteBuilder(1)
  writeValue(builder, value)
  const bytes = Buffer.from(builder.take())
  let at = 0
  let length = 0
  for (let scale = 1; ; scale *= 128) {
    const byte = bytes[at++] as number
    length += (byte & 0x7f) * scale
    if (byte < 0x80) break
  }
  expect(bytes.length - at).to.equal(length)
  return bytes.subarray(at)
}

const edges = [
  0,
  1,
  127,
  128,
  255,
  256,
  65_535,
  65_536,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  Number.MAX_SAFE_INTEGER,
  -1,
  -32,
  -33,
  -129,
  -(2 ** 31),
  0.5,
  -0.1,
]

describe('values of pairs', () => {
  for (const value of [
    ...edges,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    1e300,
    '',
    'a',
    'é'.repeat(15),
    'é'.repeat(16),
    'x'.repeat(31),
    'x'.repeat(32),
    'x'.repeat(300),
    null,
    true,
  ]) {
    it(`writes ${JSON.stringify(value)} as the library does, and reads it back`, () => {
      expect(written(value)).to.deep.equal(Buffer.from(encode(value)))
      expect(bytesToValue(written(value))).to.deep.equal(value)
    })
  }

  it('reads back whatever MessagePack carries (random)', () => {
    const value = fc.jsonValue({ maxDepth: 4 }).filter((made) => !JSON.stringify(made).includes('"__proto__":'))
    fc.assert(
      fc.property(value, (original) => {
        const copy = decode(encode(original))
        expect(bytesToValue(written(original))).to.deep.equal(copy)
        expect(bytesToValue(valueToBytes(original))).to.deep.equal(copy)
      }),
      { numRuns: 500 },
    )
  })

  it('keeps bytes as bytes, and takes undefined as null', () => {
    expect(bytesToValue(written(new Uint8Array([1, 2, 3])))).to.deep.equal(new Uint8Array([1, 2, 3]))
    expect(bytesToValue(written(undefined))).to.equal(null)
  })

  const cycle: unknown[] = []
  cycle.push(cycle)
  for (const [what, value] of [
    ['a function', () => 1],
    ['a cycle', cycle],
    ['a symbol', Symbol('s')],
    ['a bigint', 10n],
    ['an object whose key is __proto__ (hazard E1.14)', [JSON.parse('{"__proto__":false}')]],
  ] as const) {
    it(`hazard w6: refuses ${what} with a clear error`, () => {
      expect(() => written(value))
        .to.throw(InvalidArgumentError)
        .with.property('code', 'INVALID_VALUE')
    })
  }
})
