/** Scans over groups that are sorted arrays, against a filter over all keys. */
import { expect } from 'chai'
import fc from 'fast-check'
import { InvalidArgumentError } from '../../src/base/errors.js'
import type { ScanOptions } from '../../src/engine/kv.js'
import { ScanForm, type ScanPage, type ScanRequest } from '../../src/engine/kv-protocol.js'
import { countGroups, rangeOf, scanGroups } from '../../src/shard/scan.js'
import { newSeed } from '../support/seed.js'

/** Few different bytes, so that keys are often prefixes of one another and of the bounds, and ends of the byte range are common. */
const key = fc.array(fc.constantFrom(0x00, 0x01, 0x61, 0x62, 0xfe, 0xff), { maxLength: 4 }).map((bytes) => Buffer.from(bytes))
const storedKey = key.filter(({ length }) => length > 0)
const range: fc.Arbitrary<ScanOptions> = fc.record(
  { prefix: key, gt: key, gte: key, lt: key, lte: key, reverse: fc.boolean(), limit: fc.constantFrom(0, 1, 2, 3.7, 1000, Number.POSITIVE_INFINITY) },
  { requiredKeys: [] },
)

function isIn(found: Buffer, options: ScanOptions): boolean {
  const compare = (bound: unknown) => Buffer.compare(found, bound as Buffer)
  if (options.prefix !== undefined && !found.subarray(0, options.prefix.length).equals(options.prefix as Buffer)) return false
  if (options.gt !== undefined && compare(options.gt) <= 0) return false
  if (options.gte !== undefined && compare(options.gte) < 0) return false
  if (options.lt !== undefined && compare(options.lt) >= 0) return false
  return options.lte === undefined || compare(options.lte) <= 0
}

const hex = (keys: readonly Uint8Array[]) => keys.map((each) => Buffer.from(each).toString('hex'))

function check(property: fc.IRawProperty<unknown> | fc.IAsyncProperty<unknown>, numRuns: number): Promise<void> {
  return Promise.resolve(fc.assert(property as fc.IAsyncProperty<unknown>, { seed: newSeed() | 0, numRuns }))
}

describe('rangeOf', () => {
  it('holds exactly the keys that every bound allows', () =>
    check(
      fc.property(range, fc.array(storedKey, { maxLength: 40 }), (options, keys) => {
        const { gte, lt } = rangeOf(options)
        const inside = keys.filter((each) => Buffer.compare(each, gte) >= 0 && (lt === null || Buffer.compare(each, lt) < 0))
        expect(hex(inside)).to.deep.equal(hex(keys.filter((each) => isIn(each, options))))
      }),
      3000,
    ))

  it('a prefix of bytes ff has no end, and strings are UTF-8', () => {
    expect(rangeOf({ prefix: Buffer.from([0xff, 0xff]) }).lt).to.equal(null)
    expect(hex([rangeOf({ prefix: Buffer.from([0x61, 0xff]) }).lt!])).to.deep.equal(['62'])
    expect(hex([rangeOf({ gte: 'é' }).gte])).to.deep.equal(['c3a9'])
    expect(() => rangeOf({ gt: 7 as unknown as string })).to.throw(InvalidArgumentError)
  })
})

/** A group's answer, as a page of at most so many entries. */
function pageOf(keys: readonly Buffer[], request: ScanRequest, pageEntries: number): Omit<ScanPage, 'appliedIndex'> {
  const found = keys.filter((each) => Buffer.compare(each, request.gte) >= 0 && (request.lt === null || Buffer.compare(each, request.lt) < 0))
  found.sort(Buffer.compare)
  if (request.reverse) found.reverse()
  const taken = found.slice(0, Math.min(request.maxEntries, pageEntries))
  const entries = request.form === ScanForm.count ? [] : taken.map((each) => ({ key: each, value: each, version: 1, revision: 1 }))
  return { entries, count: taken.length, last: taken.at(-1) ?? null, more: taken.length < found.length }
}

describe('scanGroups', () => {
  it('gives every key of the range once and in order, over any groups and sizes of pages', () =>
    check(
      fc.asyncProperty(
        range,
        fc.uniqueArray(storedKey, { maxLength: 40, selector: (each) => each.toString('hex') }),
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 1, max: 5 }),
        async (options, keys, groupCount, pageEntries) => {
          const groups = Array.from({ length: groupCount }, (_, at) => at + 1)
          const ofGroup = (group: number) => keys.filter((each) => each.reduce((sum, byte) => sum + byte, 0) % groupCount === group - 1)
          const seen: Uint8Array[] = []
          for await (const entry of scanGroups(
            options,
            () => groups,
            async (group, request) => pageOf(ofGroup(group), request, pageEntries),
          )) {
            expect(Buffer.from(entry.value).equals(entry.key)).to.equal(true)
            seen.push(entry.key)
          }
          const expected = keys.filter((each) => isIn(each, options)).sort(Buffer.compare)
          if (options.reverse) expected.reverse()
          const within = expected.slice(0, Math.floor(options.limit ?? Number.POSITIVE_INFINITY))
          expect(hex(seen)).to.deep.equal(hex(within))
          const counted = await countGroups(
            options,
            () => groups,
            async (group, request) => pageOf(ofGroup(group), request, pageEntries),
          )
          expect(counted).to.equal(within.length)
        },
      ),
      500,
    ))

  it('asks for no more than it needs, and for nothing once its reader stops', async () => {
    const requests: ScanRequest[] = []
    const keys = Array.from({ length: 500 }, (_, at) => Buffer.from(`key${String(at).padStart(3, '0')}`))
    const fetch = async (_group: number, request: ScanRequest) => {
      requests.push(request)
      return pageOf(keys, request, 1000)
    }
    const take = async (options: ScanOptions, count: number) => {
      requests.length = 0
      let left = count
      for await (const _entry of scanGroups(options, () => [1], fetch)) if (--left === 0) break
      return requests.map(({ maxEntries }) => maxEntries)
    }
    expect(await take({ limit: 3 }, 100)).to.deep.equal([3])
    expect(await take({ limit: 0 }, 100)).to.deep.equal([])
    expect(await take({ gt: 'x', lt: 'b' }, 100)).to.deep.equal([])
    const stopped = await take({}, 100)
    expect(stopped).to.have.length(1)
    expect(stopped[0]).to.be.at.most(128)
  })

  it('refuses a limit that is none, and ends with the error of a page', async () => {
    const first = async (options: ScanOptions, failure: Error | null = null) => {
      const groups = scanGroups(
        options,
        () => [1, 2],
        async () => {
          if (failure !== null) throw failure
          return { entries: [], count: 0, last: null, more: false }
        },
      )
      try {
        await groups.next()
      } catch (error) {
        return error
      }
      return undefined
    }
    for (const limit of [-1, Number.NaN, 'x' as unknown as number]) expect(await first({ limit }), `${limit}`).to.be.instanceOf(InvalidArgumentError)
    const failure = new Error('no page')
    expect(await first({}, failure)).to.equal(failure)
    expect(await first({})).to.equal(undefined)
  })
})
