/** The messages of jobs: what is refused on arrival. */
import { decode, encode } from '@msgpack/msgpack'
import { expect } from 'chai'
import fc from 'fast-check'
import { CorruptionError } from '../../src/base/errors.js'
import { scanMessagePack } from '../../src/mapreduce/msgpack-scan.js'
import * as protocol from '../../src/mapreduce/protocol.js'
import type { Message } from '../../src/mapreduce/schema.js'

const jobId = '0123456789abcdef0123456789abcdef'
const counters = [{ name: 'c', sum: 1.5 }]
const attempt = { kind: 'map', taskId: 3, attempt: 2 } as const
const runs = [{ node: 0, map: 0, attempt: 1, segment: 0, length: 10, checksum: 7 }]
const base = { jobId, session: 1, taskId: 3, attempt: 2, job: 'word-count', params: new Uint8Array([0xc0]), timeoutMs: 1000, outputPrefix: undefined }

/** An example of every message, every variant included. */
const examples: [string, Message<never>, unknown][] = (
  [
    ['describe request', protocol.describeRequest, { job: 'word-count' }],
    ['describe reply', protocol.describeReply, { incarnation: 'abc', workers: 2, job: { input: 'lines', keys: 'text' } }],
    ['describe reply without', protocol.describeReply, { incarnation: 'abc', workers: 2, job: undefined }],
    [
      'map of a split',
      protocol.taskRequest,
      { ...base, work: { kind: 'map', partitions: 2, records: 'lines', input: { kind: 'split', length: 10 } } },
    ],
    [
      'map of a range',
      protocol.taskRequest,
      {
        ...base,
        outputPrefix: new Uint8Array([1]),
        work: { kind: 'map', partitions: 2, records: 'whole', input: { kind: 'range', from: new Uint8Array([1, 2]), to: undefined, maxBytes: 5 } },
      },
    ],
    ['reduce', protocol.taskRequest, { ...base, work: { kind: 'reduce', part: 1, output: 'pairs', nodes: ['node-1'], runs } }],
    ['task reply', protocol.taskReply, { incarnation: 'abc' }],
    ['beat request', protocol.beatRequest, { jobId, session: 1 }],
    ['beat reply', protocol.beatReply, { incarnation: 'abc', attempts: [attempt] }],
    [
      'report of a map',
      protocol.reportRequest,
      {
        ...{ jobId, session: 1, ...attempt },
        outcome: {
          ...{ kind: 'mapped', segments: [{ lengths: [1, 2], checksums: [3, 4] }], inputBytes: 1, records: 2, pairs: 3, spilledBytes: 4 },
          ...{ next: new Uint8Array([9]), counters },
        },
      },
    ],
    [
      'report of a reduce',
      protocol.reportRequest,
      {
        jobId,
        session: 1,
        ...attempt,
        outcome: { kind: 'reduced', length: 1, checksum: 2, groups: 3, pairs: 4, inputBytes: 5, spilledBytes: 6, counters },
      },
    ],
    [
      'report of a failure',
      protocol.reportRequest,
      {
        jobId,
        session: 1,
        ...attempt,
        outcome: { kind: 'failed', code: 'A', message: 'b', stack: undefined, at: 'c', lostMap: { map: 1, attempt: 1, gone: true } },
      },
    ],
    ['report reply', protocol.reportReply, { answer: 'stale' }],
    ['input request', protocol.inputRequest, { jobId, taskId: 1, offset: 0, length: 10 }],
    ['read request', protocol.readRequest, { jobId, items: [{ ...attempt, segment: 0, part: 1, offset: 0, length: 10 }] }],
    ['end request', protocol.endRequest, { jobId }],
  ] as const
).map(([name, message, value]) => [name, message as unknown as Message<never>, value])

describe('messages of jobs', () => {
  for (const [name, message, value] of examples) {
    it(`carries a ${name}`, () => {
      expect(message.decode(message.encode(value as never))).to.deep.equal(value)
    })

    it(`hazard E1.4 E1.7: refuses a ${name} cut anywhere, or with anything behind it`, () => {
      const bytes = message.encode(value as never)
      for (let length = 0; length < bytes.length; length++) expect(() => message.decode(bytes.subarray(0, length))).to.throw(CorruptionError)
      expect(() => message.decode(Buffer.concat([bytes, Buffer.of(0xc0)]))).to.throw(CorruptionError)
    })

    it(`hazard E1.10 E1.17: refuses a ${name} with a field missing, added, or of another type`, () => {
      const wire = message.encode(value as never)
      const refused = (changed: unknown): void => {
        expect(() => message.decode(encode(changed)), JSON.stringify(changed)).to.throw(CorruptionError)
      }
      const walk = (node: unknown, rebuild: (changed: unknown) => unknown): void => {
        for (const strange of [{}, -1, 1.5, Number.NaN, 2 ** 53, true, 'text that is longer than what is allowed for any short one '.repeat(2000)]) {
          if (isSameKind(node, strange)) continue
          refused(rebuild(strange))
        }
        if (!Array.isArray(node)) return
        if (!isList(node)) {
          refused(rebuild([...node, null]))
          refused(rebuild(node.slice(0, -1)))
        }
        node.forEach((child, index) => {
          walk(child, (changed) => rebuild(node.map((own, at) => (at === index ? changed : own))))
        })
      }
      walk(decode(wire), (changed) => changed)
    })
  }

  it('hazard E1.8: takes no random bytes for a message and never throws anything else (random)', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.constantFrom(...examples), (bytes, [, message]) => {
        try {
          message.decode(bytes)
        } catch (error) {
          expect(error).to.be.instanceOf(CorruptionError)
        }
      }),
      { numRuns: 3000 },
    )
  })

  it('survives any single byte changed (random)', () => {
    fc.assert(
      fc.property(fc.constantFrom(...examples), fc.nat(), fc.integer({ min: 1, max: 255 }), ([, message, value], at, flip) => {
        const bytes = message.encode(value as never)
        bytes[at % bytes.length] = (bytes[at % bytes.length] as number) ^ flip
        try {
          message.decode(bytes)
        } catch (error) {
          expect(error).to.be.instanceOf(CorruptionError)
        }
      }),
      { numRuns: 3000 },
    )
  })

  for (const id of ['', '..', '../../etc/passwd', jobId.toUpperCase(), `${jobId}0`, `${jobId}\n`]) {
    it(`hazard E1.31: refuses ${JSON.stringify(id)} as the id of a job: it names a folder`, () => {
      expect(() => protocol.endRequest.decode(protocol.endRequest.encode({ jobId: id }))).to.throw(CorruptionError)
    })
  }

  for (const name of ['', '../evil', 'file:///evil.js', 'a b', 'a'.repeat(101), '-x', '__proto__/x']) {
    it(`hazard E1.31: refuses ${JSON.stringify(name.slice(0, 20))} as the name of a job`, () => {
      expect(() => protocol.describeRequest.decode(protocol.describeRequest.encode({ job: name }))).to.throw(CorruptionError)
    })
  }
})

describe('the scan before decoding', () => {
  const limits = { maxDepth: 8, maxElements: 1000, allowMaps: true }

  it('accepts every kind of plain value', () => {
    for (const value of [
      null,
      true,
      0,
      -1,
      200,
      70_000,
      2 ** 40,
      -200,
      -70_000,
      -(2 ** 40),
      1.5,
      'a',
      'b'.repeat(40),
      'c'.repeat(300),
      'd'.repeat(70_000),
      [],
      {},
      { a: [1, { b: 2 }] },
      new Uint8Array(300),
    ]) {
      scanMessagePack(encode(value), limits)
    }
    scanMessagePack(encode(1.5, { forceFloat32: true }), limits)
    scanMessagePack(encode(Array.from({ length: 20 }, () => 1)), limits)
    scanMessagePack(encode(Object.fromEntries(Array.from({ length: 20 }, (_, number) => [`key${number}`, 1]))), limits)
  })

  const hostile: [string, number[]][] = [
    ['E1.11 a list of 2^31-1', [0xdd, 0x7f, 0xff, 0xff, 0xff]],
    ['E1.11 a map of 2^31-1', [0xdf, 0x7f, 0xff, 0xff, 0xff]],
    ['E1.11 a text of 2^31-1', [0xdb, 0x7f, 0xff, 0xff, 0xff]],
    ['E1.11 bytes of 2^31-1', [0xc6, 0x7f, 0xff, 0xff, 0xff]],
    ['E1.12 a million of nested lists', Array.from({ length: 1_000_000 }, () => 0x91)],
    ['E1.13 lists that each claim 16 k elements', Array.from({ length: 2000 }, () => [0xdc, 0x40, 0x00]).flat()],
    ['E1.18 an extension', [0xd4, 0x01, 0x00]],
    ['E1.18 a timestamp', [0xd6, 0xff, 0, 0, 0, 0]],
    ['E1.19 the reserved byte', [0xc1]],
    ['E1.7 two values', [0xc0, 0xc0]],
    ['nothing', []],
  ]
  for (const [what, bytes] of hostile) {
    it(`hazard ${what}: is refused`, () => {
      expect(() => scanMessagePack(Uint8Array.from(bytes), limits)).to.throw(CorruptionError)
    })
  }

  it('holds its limits exactly', () => {
    const nested = (depth: number): unknown => (depth === 0 ? 1 : [nested(depth - 1)])
    scanMessagePack(encode(nested(8)), limits)
    expect(() => scanMessagePack(encode(nested(9)), limits)).to.throw(CorruptionError, /deeper/)
    scanMessagePack(encode(Array.from({ length: 999 }, () => 1)), limits)
    expect(() => scanMessagePack(encode(Array.from({ length: 1000 }, () => 1)), limits)).to.throw(CorruptionError, /elements/)
    expect(() => scanMessagePack(encode({ a: 1 }), { ...limits, allowMaps: false })).to.throw(CorruptionError, /map/)
  })

  it('agrees with the encoder on every value (random)', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 6 }), (value) => {
        scanMessagePack(encode(value), { maxDepth: 16, maxElements: 100_000, allowMaps: true })
      }),
    )
  })
})

/** Lists of any length, as opposed to the fields of a message: of those in the examples, all hold lists, numbers only, or texts. */
function isList(node: unknown[]): boolean {
  return node.length === 1 || node.every((child) => Array.isArray(child)) || (node.length === 2 && node.every((child) => typeof child === 'number'))
}

/** Another value of a kind that is allowed there, too. */
function isSameKind(node: unknown, strange: unknown): boolean {
  if (typeof node === 'number' && typeof strange === 'number') return Number.isFinite(strange) && !Number.isInteger(node)
  if (typeof node === 'boolean') return typeof strange === 'boolean'
  if (node === null) return true
  return false
}
