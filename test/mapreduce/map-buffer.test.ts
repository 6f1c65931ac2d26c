/** The map buffer: what comes out of emits, as sorted runs. */
import { crc32 } from 'node:zlib'
import { expect } from 'chai'
import fc from 'fast-check'
import { fnv1a } from '../../src/base/bytes.js'
import { InvalidArgumentError } from '../../src/base/errors.js'
import type { AnyJob, JobKey } from '../../src/mapreduce/job.js'
import { MapBuffer, type Segment } from '../../src/mapreduce/map-buffer.js'
import { groupsOf, makeJob, runsOf } from './runs.js'

function fill(job: AnyJob, pairs: Iterable<readonly [JobKey, unknown]>, options: { partitions?: number; memoryBytes?: number } = {}): Segment[] {
  const segments: Segment[] = []
  const buffer = new MapBuffer({ job, partitions: 1, memoryBytes: 1 << 20, ...options, onSegment: (segment) => segments.push(segment) })
  for (const [key, value] of pairs) buffer.emit(key, value)
  buffer.end()
  return segments
}

describe('MapBuffer', () => {
  it('orders keys by their UTF-8 bytes, not by UTF-16 units', () => {
    // By UTF-16 units U+1F600 (surrogates) comes before U+FFEE, by bytes after.
    const keys = ['z', 'a', '\uffee', '😀', '\ue000', '𐐀', 'é', '', 'aa']
    const expected = [...keys].sort((left, right) => Buffer.compare(Buffer.from(left), Buffer.from(right)))
    expect(expected).to.not.deep.equal([...keys].sort())
    for (const combine of [undefined, (left: unknown) => left]) {
      const job = makeJob(combine === undefined ? {} : { combine })
      const segments = fill(
        job,
        keys.map((key) => [key, 1]),
      )
      expect(groupsOf(runsOf(segments, 0)).map(([key]) => key)).to.deep.equal(expected)
    }
  })

  it('hazard E1.16: joins keys with lone surrogates under what they are written as', () => {
    const pairs: [string, string][] = [
      ['\ud800', 'first'],
      ['\ufffd', 'second'],
      ['\udc00', 'third'],
      ['x', 'other'],
    ]
    const listed = groupsOf(runsOf(fill(makeJob(), pairs), 0))
    expect(listed.map(([key]) => key)).to.deep.equal(['x', '\ufffd'])
    expect(listed[1]?.[1]).to.have.members(['first', 'second', 'third'])
    const combined = groupsOf(runsOf(fill(makeJob({ combine: (left, right) => `${left}+${right}` }), pairs), 0))
    expect(combined[1]?.[1]).to.deep.equal(['first+second+third'])
  })

  it('hazard E1.14: takes names of object properties as the keys that they are', () => {
    const names = ['__proto__', 'constructor', 'prototype', 'toString', 'then', 'hasOwnProperty']
    const segments = fill(
      makeJob({ combine: (left, right) => (left as number) + (right as number) }),
      [...names, ...names].map((name) => [name, 1]),
    )
    expect(groupsOf(runsOf(segments, 0))).to.have.deep.members(names.map((name) => [name, [2]]))
  })

  it('keeps the values of a key in the order of the emits, over segments too', () => {
    const pairs = Array.from({ length: 5000 }, (_, number) => [`key-${number % 13}`, number] as const)
    const segments = fill(makeJob(), pairs, { memoryBytes: 4096 })
    expect(segments.length).to.be.greaterThan(5)
    for (const [key, values] of groupsOf(runsOf(segments, 0))) {
      expect(values).to.deep.equal(pairs.filter(([name]) => name === key).map(([, value]) => value))
    }
  })

  it('makes a segment before it takes more memory than allowed', () => {
    const value = 'v'.repeat(1000)
    const pairs = Array.from({ length: 1000 }, (_, number) => [`key-${number}`, value] as const)
    for (const combine of [undefined, (left: unknown) => left]) {
      const segments = fill(makeJob(combine === undefined ? {} : { combine }), pairs, { memoryBytes: 100_000 })
      expect(segments.length).to.be.within(9, 12)
      for (const { bytes } of segments) expect(bytes.length).to.be.lessThan(110_000)
    }
  })

  it('puts every key into the part of its FNV-1a, or the one that partition chooses', () => {
    const keys = Array.from({ length: 100 }, (_, number) => `key-${number}`)
    const pairs = keys.map((key) => [key, key] as const)
    const hashed = fill(makeJob(), pairs, { partitions: 7 })
    const chosen = fill(makeJob({ partition: (key) => key.length % 7 }), pairs, { partitions: 7 })
    for (let part = 0; part < 7; part++) {
      expect(groupsOf(runsOf(hashed, part)).map(([key]) => key)).to.deep.equal(keys.filter((key) => fnv1a(Buffer.from(key)) % 7 === part).sort())
      expect(groupsOf(runsOf(chosen, part)).map(([key]) => key)).to.deep.equal(keys.filter((key) => key.length % 7 === part).sort())
    }
  })

  for (const part of [-1, 7, 1.5, Number.NaN, '1', undefined]) {
    it(`hazard w6: refuses ${String(part)} as a part of 7`, () => {
      const job = makeJob({ partition: () => part as number })
      expect(() => fill(job, [['a', 1]], { partitions: 7 }))
        .to.throw(InvalidArgumentError)
        .with.property('code', 'INVALID_PARTITION')
    })
  }

  it('refuses keys of the wrong kind and keys that are too long', () => {
    expect(() => fill(makeJob(), [[7 as never, 1]])).to.throw(InvalidArgumentError, /must be text/)
    expect(() => fill(makeJob({ keys: 'bytes' as never }), [['a', 1]])).to.throw(InvalidArgumentError, /must be bytes/)
    expect(() => fill(makeJob(), [['é'.repeat(32_769), 1]])).to.throw(InvalidArgumentError, /65536 bytes/)
    expect(groupsOf(runsOf(fill(makeJob(), [['é'.repeat(32_768), 1]]), 0))[0]?.[0]).to.have.length(32_768)
  })

  it('refuses emits after the end', () => {
    const buffer = new MapBuffer({ job: makeJob(), partitions: 1, memoryBytes: 1000, onSegment: () => {} })
    buffer.end()
    expect(() => buffer.emit('a', 1)).to.throw(InvalidArgumentError)
  })

  it('reports lengths and checksums of its runs', () => {
    const [segment] = fill(makeJob(), [['a', 1]], { partitions: 3 }) as [Segment]
    expect(segment.index.lengths.reduce((sum, length) => sum + length, 0)).to.equal(segment.bytes.length)
    for (const { bytes, checksum } of runsOf([segment], 0)) expect(checksum).to.equal(crc32(bytes as Uint8Array))
  })

  it('groups any emits as a Map would (random)', () => {
    const key = fc.oneof(
      fc.string({ maxLength: 5 }),
      fc.string({ unit: 'grapheme', maxLength: 3 }),
      fc.constantFrom('a', 'b', 'ab', '\u0000', 'a\u0000'),
    )
    const pair = fc.tuple(key, fc.integer({ min: -5, max: 300 }))
    fc.assert(
      fc.property(
        fc.array(pair, { maxLength: 200 }),
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 100, max: 5000 }),
        fc.boolean(),
        (pairs, partitions, memoryBytes, sum) => {
          const expected = new Map<string, number[]>()
          for (const [name, value] of pairs) expected.set(name, [...(expected.get(name) ?? []), value])
          const job = makeJob(sum ? { combine: (left, right) => (left as number) + (right as number) } : {})
          const segments = fill(job, pairs, { partitions, memoryBytes })
          const found = Array.from({ length: partitions }, (_, part) => groupsOf(runsOf(segments, part)))
          for (const groups of found) {
            const names = groups.map(([name]) => Buffer.from(name as string))
            expect(names).to.deep.equal([...names].sort(Buffer.compare))
          }
          const total = (values: unknown[]): number => (values as number[]).reduce((left, right) => left + right, 0)
          const all = found.flat().map(([name, values]) => [name, sum ? total(values) : values])
          expect(new Map(all as [string, number[]][])).to.deep.equal(
            new Map([...expected].map(([name, values]) => [name, sum ? total(values) : values]) as [string, number[]][]),
          )
        },
      ),
      { numRuns: 300 },
    )
  })

  it('groups byte keys by their bytes, in their order (random)', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 4 }), { maxLength: 100 }), (keys) => {
        const job = makeJob({ keys: 'bytes' as never, combine: (left, right) => (left as number) + (right as number) })
        const groups = groupsOf(
          runsOf(
            fill(
              job,
              keys.map((key) => [key, 1]),
            ),
            0,
          ),
          'bytes',
        )
        const names = [...new Set(keys.map((key) => Buffer.from(key).toString('latin1')))].sort()
        expect(groups.map(([key]) => Buffer.from(key as Uint8Array).toString('latin1'))).to.deep.equal(names)
      }),
      { numRuns: 300 },
    )
  })
})
