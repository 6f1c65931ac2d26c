/** Which shard a key is in, and which shards the keys of a range can be in: what is left out of a scan must not be in it. */
import { expect } from 'chai'
import { commonBeginning, shardOf, shardOfRange, shardOfTag, tagOf } from '../../src/engine/sharding.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { newSeed } from '../support/seed.js'

const text = (bytes: Uint8Array | undefined) => bytes && Buffer.from(bytes).toString('latin1')

describe('sharding', () => {
  it('takes the first tag that is not empty and closed', () => {
    for (const [key, tag] of [
      ['{a}b', 'a'],
      ['x{a}{b}', 'a'],
      ['{a', undefined],
      ['a}', undefined],
      ['{}{a}', undefined],
      ['{{a}', '{a'],
      ['', undefined],
    ] as const) {
      expect(text(tagOf(Buffer.from(key))), key).to.equal(tag)
    }
    expect(shardOf(Buffer.from('{a}b'), 64)).to.equal(shardOf(Buffer.from('z{a}'), 64))
    expect(shardOfTag(Buffer.from('{a'), 64)).to.equal(undefined)
  })

  it('knows what the keys of a range begin with', () => {
    for (const [gte, lt, beginning] of [
      ['{a}', '{a~', '{a}'],
      ['{a}k\0', '{a~', '{a}'],
      ['{a}b', '{a}d', '{a}'],
      ['{a}b', '{a}c', '{a}b'],
      ['{a}b', '{a}c\0', '{a}'],
      ['{a}', '{a}\0', '{a}'],
      ['{a}', '{b', '{a'],
      ['', '{a}', ''],
      ['{a}', null, ''],
    ] as const) {
      expect(text(commonBeginning(Buffer.from(gte), lt === null ? null : Buffer.from(lt))), `${gte} to ${lt}`).to.equal(beginning)
    }
  })

  it('never leaves out the shard of a key of the range', () => {
    const seed = newSeed()
    const random = new SeededRandom(seed, 'sharding')
    const some = () => Array.from({ length: random.integer(0, 5) }, () => random.pick([0, 0x7a, 0x7b, 0x7c, 0x7d, 0x7e, 0xff]))
    const draw = () => Buffer.from(random.chance(0.8) ? [...Buffer.from('{z'), ...some()] : some())
    let narrowed = 0
    for (let at = 0; at < 100_000; at++) {
      const [gte, key, lt] = [draw(), draw(), draw()].sort(Buffer.compare) as [Buffer, Buffer, Buffer]
      if (Buffer.compare(key, lt) === 0) continue
      const shard = shardOfRange(gte, lt, 64)
      if (shard === undefined) continue
      narrowed++
      expect(shardOf(key, 64), `seed ${seed}: ${key.toString('hex')} in ${gte.toString('hex')} to ${lt.toString('hex')}`).to.equal(shard)
    }
    expect(narrowed).to.be.greaterThan(40)
  })
})
