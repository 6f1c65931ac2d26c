/** The engine as a whole: the same output from threads, inline and a few lines of sequential code, however the work is cut. */
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { InvalidArgumentError } from '../../src/base/errors.js'
import {
  defineJob,
  fromFiles,
  fromItems,
  fromKv,
  type JobEvent,
  type JobOptions,
  openOutput,
  toArray,
  toFolder,
  toKv,
} from '../../src/mapreduce/index.js'
import type { AnyJob } from '../../src/mapreduce/job.js'
import { jobs, readParts, TestCluster, watch } from './cluster.js'
import { type Document, makeDocuments, runSequentially, toRecords } from './sequential.js'

describe('the engine', () => {
  let cluster: TestCluster

  afterEach(async () => {
    const left = await cluster.leftovers()
    await cluster.close()
    expect(left).to.deep.equal([])
  })

  const reference = async (name: string): Promise<AnyJob> => ((await import((jobs[name] as URL).href)) as { default: AnyJob }).default

  async function writeAll(documents: readonly Document[]): Promise<Document[]> {
    const folder = join(cluster.folder, 'input')
    await mkdir(folder)
    for (const { key, text } of documents) await writeFile(join(folder, key), text)
    return documents.map(({ key, text }) => ({ key: join(folder, key), text }))
  }

  describe('gives the bytes of a sequential run (M2)', () => {
    for (const name of ['word-count', 'concatenate', 'inverted-index', 'byte-keys']) {
      for (const memory of ['much memory', 'hardly any memory']) {
        it(`${name}, with ${memory}, from files, in threads and inline`, async () => {
          const bounds = memory === 'much memory' ? {} : { taskMemoryBytes: 3000, outputMemoryBytes: 2000 }
          cluster = await TestCluster.start({ nodes: 3, workers: 1, options: () => bounds })
          const documents = await writeAll(makeDocuments(21, 6, 9000))
          const job = await reference(name)
          const cut = job.input === 'files' ? 'whole' : 'lines'
          const expected = await runSequentially(job, toRecords(documents, cut), 5)
          for (const engine of ['threads', 'inline'] as const) {
            for (const splitBytes of [2500, 30_000]) {
              const out = join(cluster.folder, `out-${engine}-${splitBytes}`)
              const input = fromFiles(join(cluster.folder, 'input'))
              const { stats } = await cluster.first.runner.run({ job: name, input, output: toFolder(out), reducers: 5, splitBytes, engine }).result()
              expect((await readParts(out)).parts, `${engine} ${splitBytes}`).to.deep.equal(expected)
              if (memory !== 'much memory') expect(stats.spilledBytes).to.be.greaterThan(0)
            }
          }
        })
      }
    }

    it('from a store and from a list', async () => {
      cluster = await TestCluster.start({ nodes: 3, workers: 1 })
      const documents = makeDocuments(22, 200, 300)
      for (const { key, text } of documents) await cluster.first.kv.put(`doc/${key}`, text)
      await cluster.first.kv.put('doc', 'not this')
      await cluster.first.kv.put('dod', 'nor this')
      const named = documents.map(({ key, text }) => ({ key: `doc/${key}`, text }))
      for (const [name, cut] of [
        ['inverted-index', 'whole'],
        ['concatenate', 'lines'],
      ] as const) {
        const expected = await runSequentially(await reference(name), toRecords(named, cut), 3)
        for (const input of [fromKv({ prefix: 'doc/' }), fromItems(named.map(({ key, text: value }) => ({ key, value })))]) {
          for (const engine of ['threads', 'inline'] as const) {
            const out = join(cluster.folder, `out-${name}-${input.kind}-${engine}`)
            await cluster.first.runner.run({ job: name, input, output: toFolder(out), reducers: 3, splitBytes: 1000, engine }).result()
            expect((await readParts(out)).parts, `${name} ${input.kind} ${engine}`).to.deep.equal(expected)
          }
        }
      }
    })

    it('from nothing', async () => {
      cluster = await TestCluster.start({ nodes: 1 })
      for (const input of [fromItems([]), fromKv({ prefix: 'none/' })]) {
        for (const engine of ['threads', 'inline'] as const) {
          const { output, stats } = await cluster.first.runner.run({ job: 'word-count', input, output: toArray(), reducers: 2, engine }).result()
          expect(output.pairs).to.deep.equal([])
          expect(stats).to.include({ maps: 0, attempts: 2, inputBytes: 0 })
        }
      }
      await cluster.first.runner.run({ job: 'word-count', input: fromItems([]), output: toKv({ prefix: 'out/' }) }).result()
      expect((await openOutput(cluster.first.kv, 'out/')).pairs).to.equal(0)
    })
  })

  it('shuffles and groups more than a task may hold in memory, in order', async () => {
    cluster = await TestCluster.start({ nodes: 3, workers: 1, options: () => ({ taskMemoryBytes: 300_000, outputMemoryBytes: 500_000 }) })
    const params = { copies: 700, bytes: 1000 }
    const input = fromItems(Array.from({ length: 20 }, (_, number) => String(number)))
    const { output, stats } = await cluster.first.runner.run({ job: 'wide', input, output: toArray(), params, reducers: 2, splitBytes: 1 }).result()
    expect(output.pairs).to.have.length(7)
    for (const [, result] of output.pairs) expect(result).to.deep.equal({ count: 2000, bytes: 2_000_000, inOrder: true })
    expect(stats.shuffledBytes).to.be.greaterThan(14_000_000)
    expect(stats.spilledBytes).to.be.greaterThan(10_000_000)
  })

  it('carries records, values and outputs larger than a request', async () => {
    cluster = await TestCluster.start({ nodes: 2, workers: 1 })
    const input = fromItems(['1', '2', `3${' '.repeat(5_000_000)}`])
    const { output } = await cluster.first.runner
      .run({ job: 'wide', input, output: toArray(), params: { copies: 1, bytes: 4_000_000 }, splitBytes: 1 })
      .result()
    expect(output.pairs).to.deep.equal([['key-0', { count: 3, bytes: 13_000_003, inOrder: true }]])
    const out = join(cluster.folder, 'out')
    const text = 'w\n'.repeat(400_000)
    await cluster.first.runner.run({ job: 'concatenate', input: fromItems([text]), output: toFolder(out), reducers: 2 }).result()
    const expected = Array.from({ length: 400_000 }, (_, line) => `0:${line * 2}`).join(',')
    expect((await readParts(out)).all === `w\t${expected}\n`).to.equal(true)
  })

  it('tells its progress in order, and every event once', async () => {
    cluster = await TestCluster.start({ nodes: 2, workers: 1 })
    const job = cluster.first.runner.run({ job: 'word-count', input: fromItems(['a', 'b', 'c']), output: toArray(), reducers: 2, splitBytes: 1 })
    const { events } = await watch(job)
    const types = events.map(({ type }) => type)
    expect(types[0]).to.equal('job-started')
    expect(types.at(-1)).to.equal('job-finished')
    expect(events[0]).to.deep.equal({ type: 'job-started', jobId: job.jobId, maps: 3, reducers: 2 })
    const of = (type: JobEvent['type']): JobEvent[] => events.filter((event) => event.type === type)
    expect(of('task-started')).to.have.length(5)
    expect(of('task-finished')).to.have.length(5)
    const progress = of('progress').map((event) => event.type === 'progress' && `${event.phase} ${event.done}/${event.total}`)
    expect(progress.at(-1)).to.equal('reduce 2/2')
    // Who comes late gets what is still to come: nothing.
    expect((await watch(job)).events).to.deep.equal([])
  })

  it('several jobs at a time share the nodes', async () => {
    cluster = await TestCluster.start({ nodes: 2, workers: 1 })
    const results = await Promise.all(
      Array.from({ length: 6 }, (_, number) =>
        (cluster.nodes[number % 2] as (typeof cluster.nodes)[0]).runner
          .run({ job: 'word-count', input: fromItems(['a b', 'b c', `d${'e'.repeat(number)}`]), output: toArray(), reducers: 2, splitBytes: 1 })
          .result(),
      ),
    )
    for (const [number, { output }] of results.entries())
      expect(new Map(output.pairs as [string, number][]).get(`d${'e'.repeat(number)}`)).to.equal(1)
  })

  it('takes parameters as plain data', async () => {
    cluster = await TestCluster.start({ nodes: 1 })
    const input = fromItems([
      { key: 'a/b/c', value: 'word' },
      { key: 'a/b/d', value: 'word' },
    ])
    const { output } = await cluster.first.runner.run({ job: 'inverted-index', input, output: toArray(), params: { group: 2 } }).result()
    expect(output.pairs).to.deep.equal([['word', ['a/b']]])
  })

  it('hazard E1.27: refuses options that make no sense, before anything is sent', async () => {
    cluster = await TestCluster.start({ nodes: 0 })
    await cluster.add()
    const good: JobOptions = { job: 'word-count', input: fromItems(['a']), output: toArray() }
    const cycle: unknown[] = []
    cycle.push(cycle)
    const bad: Partial<Record<keyof JobOptions, unknown>>[] = [
      ...[0, -1, 1.5, Number.NaN, 10_001, '3'].map((reducers) => ({ reducers })),
      ...[0, -1, 0.5, 2 ** 31].map((splitBytes) => ({ splitBytes })),
      ...[0, -1, Number.POSITIVE_INFINITY].map((taskTimeoutMs) => ({ taskTimeoutMs })),
      ...[0, 1001].map((maxAttempts) => ({ maxAttempts })),
      ...[{ factor: 0.5 }, { initialMs: -1 }, { maxMs: Number.NaN }].map((backoff) => ({ backoff })),
      ...[{ params: () => 1 }, { params: cycle }, { params: 'x'.repeat(2 ** 20) }],
      ...[{ input: {} }, { input: undefined }, { output: { kind: 'printer' } }, { engine: 'steam' }, { job: 'with space' }, { job: undefined }],
    ]
    for (const changes of bad) {
      expect(() => cluster.first.runner.run({ ...good, ...changes } as JobOptions), JSON.stringify(Object.keys(changes))).to.throw(
        InvalidArgumentError,
      )
    }
    expect(() => cluster.first.runner.run({ ...good, input: fromKv({ prefix: 'a/' }), output: toKv({ prefix: 'a/b' }) })).to.throw(
      InvalidArgumentError,
      /overlap/,
    )
    expect(() => toKv({ prefix: '' })).to.throw(InvalidArgumentError)
    expect(() => toFolder('')).to.throw(InvalidArgumentError)
    expect(() => toArray({ maxBytes: -1 })).to.throw(InvalidArgumentError)
  })

  it('leaves no folder when it closes', async () => {
    cluster = await TestCluster.start({ nodes: 1 })
    await cluster.first.runner.run({ job: 'word-count', input: fromItems(['a']), output: toArray() }).result()
    await cluster.first.runner.close()
    await cluster.first.runner.close()
    expect(await readdir(cluster.first.folder)).to.not.include('quorate-jobs')
  })

  it('removes at its start what an earlier life has left, and nothing else', async () => {
    cluster = await TestCluster.start({ nodes: 1 })
    const folder = join(cluster.folder, 'temporary-1')
    await mkdir(join(folder, 'quorate-jobs', 'node-node-1', 'tasks'), { recursive: true })
    await writeFile(join(folder, 'quorate-jobs', 'node-node-1', 'tasks', 'left'), '')
    await mkdir(join(folder, 'quorate-jobs', 'node-other'))
    await writeFile(join(folder, 'mine'), '')
    const second = await cluster.add()
    await second.runner.run({ job: 'word-count', input: fromItems(['a']), output: toArray() }).result()
    await second.runner.close()
    expect((await readdir(folder)).sort()).to.deep.equal(['mine', 'quorate-jobs'])
    expect(await readdir(join(folder, 'quorate-jobs'))).to.deep.equal(['node-other'])
    const { rm } = await import('node:fs/promises')
    await rm(folder, { recursive: true })
  })
})

describe('defineJob', () => {
  const map = (): void => {}
  const reduce = (): void => {}

  it('refuses what is not a job', () => {
    const bad: unknown[] = [
      ...[
        null,
        undefined,
        'job',
        {},
        { name: 'a', map },
        { name: 'a', reduce },
        { map, reduce },
        { name: '', map, reduce },
        { name: 'a/b', map, reduce },
      ],
      ...[
        { name: 'a', map, reduce, combine: 1 },
        { name: 'a', map, reduce, input: 'words' },
        { name: 'a', map, reduce, keys: 'numbers' },
      ],
    ]
    for (const definition of bad) {
      expect(() => defineJob(definition as never))
        .to.throw(InvalidArgumentError)
        .with.property('code', 'INVALID_JOB')
    }
  })

  it('cannot be changed afterwards', () => {
    const job = defineJob({ name: 'a', map, reduce })
    expect(() => {
      ;(job as { name: string }).name = 'b'
    }).to.throw(TypeError)
  })
})
