import { expect } from 'chai'
import { CorruptionError } from '../../src/base/errors.js'
import {
  decodeChunk,
  decodeChunkRequest,
  decodeManifest,
  decodeOpen,
  encodeChunk,
  encodeChunkRequest,
  encodeManifest,
  encodeOpen,
  firstTotals,
  type SnapshotManifest,
  type SnapshotRecord,
} from '../../src/snapshot/messages.js'

const manifest: SnapshotManifest = {
  session: 0xfedcba98,
  group: 7,
  index: 2 ** 40,
  term: 9,
  configuration: { voters: ['a', 'b#5'], learners: ['c'], votersOutgoing: ['a'] },
}

const records: SnapshotRecord[] = [
  [Buffer.from('key'), Buffer.from('value')],
  [Buffer.from([0, 0xff]), Buffer.alloc(0)],
  [Buffer.alloc(0), Buffer.alloc(300, 7)],
]

function plain(found: readonly SnapshotRecord[]): string[] {
  return found.map(([key, value]) => `${Buffer.from(key).toString('hex')}=${Buffer.from(value).toString('hex')}`)
}

describe('snapshot messages', () => {
  it('come back as they were', () => {
    expect(decodeManifest(encodeManifest(manifest))).to.deep.equal(manifest)
    expect(decodeOpen(encodeOpen(3, 2 ** 33))).to.deep.equal({ group: 3, minIndex: 2 ** 33 })
    expect(decodeChunkRequest(encodeChunkRequest(0xffffffff, 12))).to.deep.equal({ session: 0xffffffff, sequence: 12 })
    const before = firstTotals(manifest)
    const { bytes, totals } = encodeChunk(manifest.session, 0, records, before, false)
    const chunk = decodeChunk(bytes, manifest.session, 0, before)
    expect(plain(chunk.records)).to.deep.equal(plain(records))
    expect([chunk.isLast, chunk.totals]).to.deep.equal([false, totals])
    expect([totals.records, totals.bytes]).to.deep.equal([3, 310])
    const last = encodeChunk(manifest.session, 1, [], totals, true)
    expect(decodeChunk(last.bytes, manifest.session, 1, totals)).to.deep.equal({ sequence: 1, records: [], totals: last.totals, isLast: true })
  })

  it('hazard d5, n5: a chunk with any byte damaged, or cut anywhere, is refused', () => {
    const before = firstTotals(manifest)
    const { bytes } = encodeChunk(manifest.session, 0, records, before, true)
    const refused = (damaged: Uint8Array) => expect(() => decodeChunk(damaged, manifest.session, 0, before)).to.throw(CorruptionError)
    for (let at = 0; at < bytes.length; at++) {
      const damaged = Buffer.from(bytes)
      damaged[at]! ^= 0x08
      refused(damaged)
      refused(bytes.subarray(0, at))
    }
  })

  it('hazard D6.50: a chunk of another session, of another place, or after other chunks is refused', () => {
    const before = firstTotals(manifest)
    const { bytes, totals } = encodeChunk(manifest.session, 1, records, before, false)
    expect(() => decodeChunk(bytes, manifest.session + 1, 1, before)).to.throw(CorruptionError)
    expect(() => decodeChunk(bytes, manifest.session, 2, before)).to.throw(CorruptionError)
    expect(() => decodeChunk(bytes, manifest.session, 1, totals)).to.throw(CorruptionError)
    expect(() => decodeChunk(bytes, manifest.session, 1, firstTotals({ ...manifest, index: 1 }))).to.throw(CorruptionError)
  })

  it('hazard E1: random bytes are refused', () => {
    for (let length = 0; length < 60; length++) {
      const bytes = Buffer.from(Array.from({ length }, (_, at) => (at * 37 + length * 11) & 0xff))
      for (const decode of [decodeManifest, decodeOpen, (input: Uint8Array) => decodeChunk(input, 1, 0, firstTotals(manifest))]) {
        expect(() => decode(bytes)).to.throw(CorruptionError)
      }
    }
  })
})
