/** Merging runs, from memory and from files, few and many, whole and damaged. */
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect } from 'chai'
import { MapBuffer, type Segment } from '../../src/mapreduce/map-buffer.js'
import { closeFiles, GroupValues, MergedGroups, reduceFanIn } from '../../src/mapreduce/merge.js'
import { RunDamagedError, type RunSource } from '../../src/mapreduce/run-reader.js'
import { groupsOf, makeJob, runsOf } from './runs.js'

describe('merging runs', () => {
  let folder: string
  let files: number[]

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'quorate-merge-'))
    files = []
  })
  afterEach(() => {
    closeFiles(files)
    rmSync(folder, { recursive: true })
  })

  /** One run for each list of pairs. */
  function makeRuns(lists: readonly (readonly (readonly [string, unknown])[])[]): RunSource[] {
    const segments: Segment[] = []
    for (const pairs of lists) {
      const buffer = new MapBuffer({ job: makeJob(), partitions: 1, memoryBytes: 1 << 30, onSegment: (segment) => segments.push(segment) })
      for (const [key, value] of pairs) buffer.emit(key, value)
      buffer.end()
    }
    return runsOf(segments, 0)
  }

  /** The same runs in one file, behind some bytes of something else. */
  function toFile(runs: readonly RunSource[]): RunSource[] {
    const path = join(folder, `runs-${files.length}`)
    const gap = Buffer.alloc(100, 0xff)
    writeFileSync(path, Buffer.concat([gap, ...runs.map(({ bytes }) => bytes as Uint8Array)]))
    const file = openSync(path, 'r+')
    files.push(file)
    let offset = gap.length
    return runs.map(({ map, length, checksum }) => {
      offset += length
      return { map: map as number, length, checksum, file, offset: offset - length }
    })
  }

  const manyLists: (readonly (readonly [string, string])[])[] = Array.from({ length: 300 }, (_, run) =>
    Array.from({ length: 20 }, (_, number) => [`key-${(run * 7 + number * 3) % 101}`, `${run}.${number}`] as const),
  )
  const expectedOf = (lists: typeof manyLists): [string, unknown[]][] => {
    const groups = new Map<string, unknown[]>()
    for (const [key, value] of lists.flat()) groups.set(key, [...(groups.get(key) ?? []), value])
    return [...groups].sort(([left], [right]) => (left < right ? -1 : 1))
  }

  it('gives each key once, with its values in the order of the runs', () => {
    expect(groupsOf(makeRuns(manyLists))).to.deep.equal(expectedOf(manyLists))
  })

  it('reads runs from files, through windows smaller than a value', () => {
    const lists = [...manyLists.slice(0, 5), [['key-1', 'x'.repeat(700_000)] as const], [['k'.repeat(60_000), 'y'] as const]]
    expect(groupsOf(toFile(makeRuns(lists)))).to.deep.equal(expectedOf(lists))
  })

  it('gives byte values that stay as they are while the window moves on', () => {
    const values = Array.from({ length: 200 }, (_, number) => new Uint8Array(5000).fill(number))
    const [[, found]] = groupsOf(toFile(makeRuns([values.map((value) => ['key', [value]] as const)]))) as [[string, unknown[]]]
    expect(found.map((value) => Buffer.from((value as Uint8Array[])[0] as Uint8Array))).to.deep.equal(values.map((value) => Buffer.from(value)))
  })

  it('merges more runs than may be open at once in rounds, and keeps the order', () => {
    let made = 0
    const merged = reduceFanIn(toFile(makeRuns(manyLists)), () => join(folder, `merge-${made++}`), files, 4)
    expect(merged.length).to.be.at.most(4)
    expect(groupsOf(merged)).to.deep.equal(expectedOf(manyLists))
    expect(readdirSync(folder).length).to.be.greaterThan(75)
  })

  it('passes over values that nobody read', () => {
    const merged = new MergedGroups(makeRuns(manyLists))
    const seen: string[] = []
    while (merged.next()) {
      seen.push(merged.keyAsText())
      const values = new GroupValues(merged.readers)
      values.next()
      values.end()
      expect([...values]).to.deep.equal([])
    }
    expect(seen).to.deep.equal(expectedOf(manyLists).map(([key]) => key))
  })

  it('has no groups when there are no runs, or only empty ones', () => {
    expect(groupsOf([])).to.deep.equal([])
    expect(groupsOf([{ map: 0, bytes: new Uint8Array(0), length: 0, checksum: 0 }])).to.deep.equal([])
  })

  for (const place of ['memory', 'a file']) {
    it(`hazard w5: tells which map's run is damaged, in ${place}, before any of it is used`, () => {
      const whole = makeRuns(manyLists.slice(0, 3))
      for (let at = 0; at < (whole[1] as RunSource).length; at += 37) {
        const copies = whole.map((run) => ({ ...run, bytes: Uint8Array.from(run.bytes as Uint8Array) }))
        const bytes = (copies[1] as { bytes: Uint8Array }).bytes
        bytes[at] = (bytes[at] as number) ^ 0x10
        expect(() => groupsOf(place === 'memory' ? copies : toFile(copies)))
          .to.throw(RunDamagedError)
          .with.property('map', 1)
      }
    })
  }

  it('hazard w5: tells of a file that is shorter than it was', () => {
    const runs = toFile(makeRuns(manyLists.slice(0, 3)))
    const last = runs[2] as RunSource
    expect(() => groupsOf([...runs.slice(0, 2), { ...last, offset: (last.offset as number) + 10 }]))
      .to.throw(RunDamagedError)
      .with.property('map', 2)
    closeSync(files.pop() as number)
  })

  it('hazard E1.34: refuses a run that lies about its lengths though its checksum is right', async () => {
    const { crc32 } = await import('node:zlib')
    for (const bytes of [
      [5, 97],
      [1, 97, 0x81],
      [1, 97, 2, 1, 1],
      [1, 97, 1, 9, 1],
      [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
      [0xff, 0xff, 0xff, 0x7f],
    ]) {
      const run = Uint8Array.from(bytes)
      expect(() => groupsOf([{ map: 4, bytes: run, length: run.length, checksum: crc32(run) }])).to.throw(RunDamagedError)
    }
  })
})
