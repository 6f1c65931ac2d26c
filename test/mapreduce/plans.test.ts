/** How inputs become splits: everything once, whatever its shape, and the same wherever the job runs. */
import { mkdir, mkdtemp, rm, symlink, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect } from 'chai'
import { InvalidArgumentError, type QuorateError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { RecordReader } from '../../src/mapreduce/entries.js'
import { scanRange } from '../../src/mapreduce/fetch.js'
import { fromFiles } from '../../src/mapreduce/index.js'
import { planFiles } from '../../src/mapreduce/plan-files.js'
import { planItems } from '../../src/mapreduce/plan-items.js'
import { afterPrefix, divideRange, planKeys, refuseCyclicKeys } from '../../src/mapreduce/plan-keys.js'
import type { InputPlan, PlanOptions, Split } from '../../src/mapreduce/splits.js'
import { ModelKV } from '../../src/testing/model-kv.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { makeDocuments, toRecords } from './sequential.js'

const { signal } = new AbortController()
const options = (changes: Partial<PlanOptions> = {}): PlanOptions => ({ splitBytes: 1000, maxTasks: 1000, records: 'lines', signal, ...changes })

/** All records of a split, as key, offset and text; read in pieces of `pieceBytes`. */
async function recordsOf(split: Split, records: 'lines' | 'whole', pieceBytes = 777): Promise<string[]> {
  if (split.kind !== 'held') throw new Error('not held')
  const pieces: Uint8Array[] = []
  for (let at = 0; at < split.length; at += pieceBytes) pieces.push(await split.read(at, Math.min(pieceBytes, split.length - at)))
  const all: string[] = []
  await new RecordReader(Buffer.concat(pieces), records).each(({ key, offset, text }) => {
    all.push(`${key}@${offset} ${text}`)
  })
  return all
}

async function allRecords(plan: InputPlan, records: 'lines' | 'whole' = 'lines'): Promise<string[]> {
  return (await Promise.all(plan.splits.map((split) => recordsOf(split, records)))).flat()
}

const codeOf = (task: Promise<unknown>): Promise<string> =>
  task.then(
    () => 'nothing was thrown',
    (error: QuorateError) => error.code,
  )

describe('splits of files', () => {
  let folder: string
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'quorate-plans-'))
  })
  afterEach(() => rm(folder, { recursive: true }))

  it('cover every line of every file once, in order, large files cut and small ones together', async () => {
    const documents = [...makeDocuments(5, 3, 20_000), ...makeDocuments(6, 20, 100).map(({ key, text }) => ({ key: `small-${key}`, text }))]
    for (const { key, text } of documents) await writeFile(join(folder, key), text)
    for (const splitBytes of [1, 50, 1000, 7001, 1_000_000]) {
      const plan = await planFiles([folder], undefined, options({ splitBytes, maxTasks: 100_000 }))
      const named = documents.map(({ key, text }) => ({ key: join(folder, key), text })).sort((a, b) => (a.key < b.key ? -1 : 1))
      expect(await allRecords(plan)).to.deep.equal(toRecords(named, 'lines').map(({ key, offset, text }) => `${key}@${offset} ${text}`))
      if (splitBytes === 1_000_000) expect(plan.splits).to.have.length(1)
      if (splitBytes === 1000) expect(plan.splits.length).to.be.within(50, 100)
    }
  })

  it('never cut a file whose records are whole files, and give empty files too', async () => {
    await writeFile(join(folder, 'large'), 'line\n'.repeat(10_000))
    await writeFile(join(folder, 'empty'), '')
    const plan = await planFiles([folder], undefined, options({ records: 'whole' }))
    expect(await allRecords(plan, 'whole')).to.deep.equal([`${join(folder, 'empty')}@0 `, `${join(folder, 'large')}@0 ${'line\n'.repeat(10_000)}`])
  })

  it('take folders below folders, in byte order of their paths', async () => {
    await mkdir(join(folder, 'b', 'c'), { recursive: true })
    for (const path of ['b/c/1', 'b/2', 'a', 'é']) await writeFile(join(folder, path), path)
    const plan = await planFiles([folder], undefined, options())
    expect((await allRecords(plan)).map((record) => record.split(' ')[1])).to.deep.equal(['a', 'b/2', 'b/c/1', 'é'])
  })

  it('hazard E1.31: links that lead in circles are not followed', async () => {
    await mkdir(join(folder, 'inner'))
    await writeFile(join(folder, 'inner', 'file'), 'text')
    await symlink(folder, join(folder, 'inner', 'up'))
    const plan = await planFiles([folder], undefined, options())
    expect(await allRecords(plan)).to.have.length(1)
  })

  it('hazard E1.31: an input that lies in the output is refused', async () => {
    const output = join(folder, 'out')
    await mkdir(output)
    await writeFile(join(output, 'part-00000'), 'old')
    expect(await codeOf(planFiles([folder], output, options()))).to.equal('CYCLIC_INPUT')
    expect(await codeOf(planFiles([join(output, 'part-00000')], `${folder}/./out/`, options()))).to.equal('CYCLIC_INPUT')
    await symlink(output, join(folder, 'link'))
    expect(await codeOf(planFiles([join(folder, 'link')], output, options()))).to.equal('CYCLIC_INPUT')
    await writeFile(join(folder, 'outer'), 'text')
    expect((await planFiles([join(folder, 'outer')], output, options())).splits).to.have.length(1)
  })

  it('hazard E1.31: more tasks than allowed are refused', async () => {
    await writeFile(join(folder, 'file'), 'line\n'.repeat(100))
    expect(await codeOf(planFiles([folder], undefined, options({ splitBytes: 1, maxTasks: 99 })))).to.equal('TOO_MANY_TASKS')
    expect((await planFiles([folder], undefined, options({ splitBytes: 1, maxTasks: 100 }))).splits).to.have.length(100)
  })

  it('tell of an input that is not there', async () => {
    expect(await codeOf(planFiles([join(folder, 'nothing')], undefined, options()))).to.equal('INPUT_UNREADABLE')
    expect(() => fromFiles([])).to.throw(InvalidArgumentError)
    expect(() => fromFiles('')).to.throw(InvalidArgumentError)
  })

  it('tell of an input that changes while the job is running', async () => {
    const path = join(folder, 'file')
    await writeFile(path, 'one line\n')
    const read = async (): Promise<string> => codeOf(allRecords(plan))
    const plan = await planFiles([folder], undefined, options())
    expect(await read()).to.equal('nothing was thrown')
    await utimes(path, 1, 1)
    expect(await read()).to.equal('INPUT_CHANGED')
    await rm(path)
    expect(await read()).to.equal('INPUT_CHANGED')
  })
})

describe('splits of lists', () => {
  it('hold every item once, and can be read again', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'quorate-plans-'))
    async function* items(): AsyncGenerator<string | { key: string; value: string }> {
      for (let number = 0; number < 500; number++) yield number % 2 === 0 ? `item ${number}` : { key: `key-${number}`, value: `item ${number}` }
    }
    const plan = await planItems(items(), folder, options({ splitBytes: 300, records: 'whole' }))
    expect(plan.splits.length).to.be.within(20, 60)
    const expected = Array.from({ length: 500 }, (_, number) => `${number % 2 === 0 ? number : `key-${number}`}@0 item ${number}`)
    expect(await allRecords(plan, 'whole')).to.deep.equal(expected)
    expect(await allRecords(plan, 'whole')).to.deep.equal(expected)
    await plan.close()
    await rm(folder, { recursive: true })
  })
})

describe('splits of keys', () => {
  async function makeKv(keys: Iterable<string>): Promise<ModelKV> {
    const kv = new ModelKV({ runtime: systemRuntime })
    for (const key of keys) await kv.put(Buffer.from(key, 'latin1'), `value of ${key}`)
    return kv
  }

  /** Runs through all ranges as tasks do, and gives the keys in order. */
  async function keysOf(kv: ModelKV, plan: InputPlan): Promise<{ keys: string[]; tasks: number }> {
    const waiting = [...plan.splits]
    const keys: string[] = []
    let tasks = 0
    for (let split = waiting.shift(); split !== undefined; split = waiting.shift()) {
      if (split.kind !== 'range') throw new Error('not a range')
      tasks++
      const { bytes, next } = await scanRange(kv, { ...split.range, maxBytes: split.maxBytes }, signal)
      if (next !== undefined) waiting.unshift(...(await plan.divide({ from: next, to: split.range.to })))
      await new RecordReader(bytes, 'whole').each(({ keyBytes, text }) => {
        const key = Buffer.from(keyBytes).toString('latin1')
        expect(text).to.equal(Buffer.from(`value of ${key}`).toString('utf8'))
        keys.push(key)
      })
    }
    return { keys, tasks }
  }

  const shapes: [string, (random: SeededRandom) => string[]][] = [
    ['none', () => []],
    ['one', () => ['doc/a']],
    [
      'paths',
      (random) =>
        Array.from(
          { length: 700 },
          () => `doc/node_modules/${'abcdefgh'[Math.floor(random.next() * 8)]}${Math.floor(random.next() * 50)}/lib/${Math.floor(random.next() * 9)}`,
        ),
    ],
    ['prefixes of each other', () => Array.from({ length: 60 }, (_, length) => `doc/${'a'.repeat(length)}`)],
    ['one long common prefix', () => Array.from({ length: 300 }, (_, number) => `doc/${'x'.repeat(200)}${String(number).padStart(5, '0')}`)],
    [
      'random bytes',
      (random) =>
        Array.from(
          { length: 500 },
          () => `doc/${String.fromCharCode(...Array.from({ length: 1 + Math.floor(random.next() * 4) }, () => Math.floor(random.next() * 256)))}`,
        ),
    ],
    ['bytes of 255', () => ['doc/\xff', 'doc/\xff\xff', 'doc/\xff\xff\xff', 'doc/\xfe\xff', 'doc/']],
  ]
  for (const [what, make] of shapes) {
    it(`cover every key with the prefix once, in order, and no other: ${what}`, async () => {
      for (let seed = 1; seed <= 5; seed++) {
        const keys = [...new Set(make(new SeededRandom(seed, what)))]
        const kv = await makeKv([...keys, 'doc', 'dob/z', 'doc0', 'dod', 'a', '\xff\xff'])
        for (const splitBytes of [1, 500, 1_000_000]) {
          const found = await keysOf(kv, await planKeys(kv, 'doc/', { ...options({ splitBytes }), runtime: systemRuntime }))
          expect(found.keys, `seed ${seed}`).to.deep.equal([...keys].sort())
          if (what === 'paths' && splitBytes === 1_000_000) expect(found.tasks).to.be.within(8, 60)
        }
      }
    })
  }

  it('can be the whole store', async () => {
    const kv = await makeKv(['a', 'b\xff', '\xff\xff', '\x00'])
    const found = await keysOf(kv, await planKeys(kv, '', { ...options(), runtime: systemRuntime }))
    expect(found.keys).to.deep.equal(['\x00', 'a', 'b\xff', '\xff\xff'])
  })

  it('are disjoint, in order, and cover the range exactly', async () => {
    const kv = await makeKv(Array.from({ length: 1000 }, (_, number) => `k${number * 7919}`))
    const range = { from: Buffer.from('k2'), to: Buffer.from('k7') }
    const ranges = await divideRange(kv, range, 20, signal)
    expect(ranges.length).to.be.within(15, 25)
    expect(ranges[0]?.from).to.deep.equal(range.from)
    expect(ranges.at(-1)?.to).to.deep.equal(range.to)
    for (const [number, { to }] of ranges.slice(0, -1).entries()) expect(ranges[number + 1]?.from).to.deep.equal(to)
  })

  it('know the key behind a prefix, and leave the prefix as it is', () => {
    const prefix = Buffer.from('docs/')
    expect(afterPrefix(prefix)).to.deep.equal(Uint8Array.from(Buffer.from('docs0')))
    expect(prefix.toString()).to.equal('docs/')
    expect(afterPrefix(Buffer.from([1, 0xff, 0xff]))).to.deep.equal(Uint8Array.of(2))
    expect(afterPrefix(Buffer.from([0xff]))).to.equal(undefined)
    expect(afterPrefix(Buffer.alloc(0))).to.equal(undefined)
  })

  it('hazard E1.31: prefixes of input and output that overlap are refused', () => {
    for (const [input, output] of [
      ['doc/', 'doc/'],
      ['doc/', 'doc/out/'],
      ['doc/in/', 'doc/'],
      ['', 'out/'],
    ] as const) {
      expect(() => refuseCyclicKeys(input, output)).to.throw(InvalidArgumentError)
    }
    refuseCyclicKeys('doc/', 'out/')
  })
})
