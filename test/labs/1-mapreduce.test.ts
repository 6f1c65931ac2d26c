/** Lab 1 of MIT's 6.5840, scenario by scenario, on a cluster of three nodes with real worker threads. What the lab waits a second for is waited for as a condition. */
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { fromFiles, fromItems, toArray, toFolder } from '../../src/mapreduce/index.js'
import type { AnyJob } from '../../src/mapreduce/job.js'
import type { Timing } from '../fixtures/jobs/timing.js'
import { type ClusterOptions, jobs, readParts, sortedLines, TestCluster, watch } from '../mapreduce/cluster.js'
import { type Document, makeDocuments, runSequentially, toRecords } from '../mapreduce/sequential.js'
import { until } from '../mapreduce/until.js'

const reducers = 10

async function loadJob(name: string): Promise<AnyJob> {
  return ((await import((jobs[name] as URL).href)) as { default: AnyJob }).default
}

describe('lab 1: MapReduce', () => {
  let cluster: TestCluster

  afterEach(() => cluster.close())

  async function start(options: ClusterOptions): Promise<string> {
    cluster = await TestCluster.start(options)
    const folder = join(cluster.folder, 'steering')
    await mkdir(folder)
    return folder
  }

  /** Eight files, as the lab has. */
  async function writeDocuments(documents: readonly Document[]): Promise<string[]> {
    await Promise.all(documents.map(({ key, text }) => writeFile(join(cluster.folder, key), text)))
    return documents.map(({ key }) => join(cluster.folder, key))
  }

  it('1 TestWc: three nodes, output = sequential run', async () => {
    await start({ nodes: 3, workers: 1 })
    const documents = makeDocuments(1, 8, 60_000)
    const output = join(cluster.folder, 'out')
    const paths = await writeDocuments(documents)
    const { stats } = await cluster.first.runner
      .run({ job: 'word-count', input: fromFiles(paths), output: toFolder(output), reducers, splitBytes: 70_000 })
      .result()
    const { all, parts } = await readParts(output)
    const expected = await runSequentially(await loadJob('word-count'), toRecords(documents, 'lines'), reducers)
    expect(sortedLines(all)).to.deep.equal(sortedLines(expected.join('')))
    // Stricter than the lab: the very bytes of each part.
    expect(parts).to.deep.equal(expected)
    expect(stats.maps).to.equal(8)
    expect(stats.attempts).to.equal(8 + reducers)
  })

  it('1 TestIndexer: two nodes, documents of each word sorted', async () => {
    await start({ nodes: 2, workers: 1 })
    const documents = makeDocuments(2, 8, 40_000)
    const output = join(cluster.folder, 'out')
    const paths = await writeDocuments(documents)
    await cluster.first.runner
      .run({ job: 'inverted-index', input: fromFiles(paths), output: toFolder(output), reducers, splitBytes: 50_000 })
      .result()
    const named = documents.map(({ text }, number) => ({ key: paths[number] as string, text }))
    const expected = await runSequentially(await loadJob('inverted-index'), toRecords(named, 'whole'), reducers)
    expect((await readParts(output)).parts).to.deep.equal(expected)
  })

  it('1 TestMapParallel: two workers run two maps at the same time', async () => {
    const folder = await start({ nodes: 2, workers: 1 })
    const params: Timing = { folder, phase: 'map', wanted: 2 }
    const job = cluster.first.runner.run({ job: 'timing', input: fromItems(['a', 'b']), output: toArray(), params, splitBytes: 1, reducers: 1 })
    const { output } = await job.result()
    expect(output.pairs.map(([key]) => key)).to.have.members(['parallel-map-0', 'parallel-map-1'])
    for (const [, seen] of output.pairs) expect(seen).to.equal(2)
  })

  it('1 TestReduceParallel: two workers run two reduces at the same time', async () => {
    const folder = await start({ nodes: 2, workers: 1 })
    const params: Timing = { folder, phase: 'reduce', wanted: 2 }
    const input = fromItems(['a b c d e f g h i j'])
    const { output } = await cluster.first.runner.run({ job: 'timing', input, output: toArray(), params, reducers }).result()
    expect(output.pairs).to.have.length(10)
    for (const [, seen] of output.pairs) expect(seen).to.be.at.least(2)
  })

  it('1 TestJobCount: each map runs exactly once while nobody fails, also with nodes that join', async () => {
    const folder = await start({ nodes: 2, workers: 1 })
    const job = cluster.first.runner.run({
      job: 'markers',
      input: fromItems(['1', '2', '3', '4', '5', '6', '7', '8']),
      output: toArray(),
      params: { folder },
      splitBytes: 1,
      reducers: 1,
    })
    const watched = watch(job)
    await until('a map has run', async () => (await readdir(folder)).length > 0)
    await cluster.add()
    await cluster.add()
    const { events, error } = await watched
    expect(error).to.equal(undefined)
    expect((await job.result()).output.pairs).to.deep.equal([['a', 8]])
    expect(await readdir(folder)).to.have.length(8)
    expect(events.filter(({ type }) => type === 'task-started')).to.have.length(9)
    expect(events.filter(({ type }) => type === 'task-failed' || type === 'worker-lost')).to.deep.equal([])
  })

  it('1 TestEarlyExit: nothing is visible before the slowest reduce is done, and nothing changes after', async () => {
    const folder = await start({ nodes: 3, workers: 1 })
    const output = join(cluster.folder, 'out')
    const job = cluster.first.runner.run({
      job: 'steered',
      input: fromItems(['a b c d e f g h i j k l m n o p']),
      output: toFolder(output),
      params: { folder, gates: ['reduce-0'] },
      reducers: 4,
    })
    let ended = false
    const watched = watch(job).finally(() => {
      ended = true
    })
    // All other reduces are done, and one has begun.
    await until('the slow reduce has begun', async () => (await readdir(folder)).includes('started-reduce-0-1'))
    for await (const event of job) if (event.type === 'progress' && event.phase === 'reduce' && event.done === 3) break
    expect(ended).to.equal(false)
    expect(await stat(output).catch(({ code }) => code)).to.equal('ENOENT')
    await writeFile(join(folder, 'gate-reduce-0'), '')
    expect((await watched).error).to.equal(undefined)
    const atOnce = await readParts(output)
    expect(sortedLines(atOnce.all)).to.have.length(16)
    await Promise.all(cluster.nodes.map(({ runner }) => runner.close()))
    expect(await readParts(output)).to.deep.equal(atOnce)
  })

  it('1 TestCrashWorker: worker threads that exit, hang or throw, before maps and before reduces', async () => {
    const folder = await start({ nodes: 3, workers: 1 })
    const documents = makeDocuments(3, 8, 2000, { plain: true })
    const output = join(cluster.folder, 'out')
    const faults = {
      ...{ 'map-0-1': 'exit', 'map-1-1': 'hang', 'map-2-1': 'throw', 'map-3-1': 'exit', 'map-3-2': 'exit', 'map-3-3': 'hang', 'map-4-1': 'reject' },
      ...{ 'reduce-0-1': 'exit', 'reduce-1-1': 'hang', 'reduce-1-2': 'exit', 'reduce-2-1': 'throw' },
    } as const
    const job = cluster.first.runner.run({
      job: 'steered',
      input: fromItems(documents.map(({ key, text: value }) => ({ key, value }))),
      output: toFolder(output),
      params: { folder, faults },
      splitBytes: 1,
      reducers: 4,
      taskTimeoutMs: 3000,
      backoff: { initialMs: 10 },
    })
    const { events, error } = await watch(job)
    expect(error).to.equal(undefined)
    const { default: reference } = (await import('../fixtures/jobs/steered.js')) as { default: AnyJob }
    const calm = { folder: join(cluster.folder, 'calm') }
    const expected = await runSequentially(reference, toRecords(documents, 'whole'), 4, calm)
    expect((await readParts(output)).parts).to.deep.equal(expected)
    const codes = events.flatMap((event) => (event.type === 'task-failed' ? [`${event.taskId}-${event.attempt} ${event.code}`] : [])).sort()
    // On a very busy machine a healthy attempt may run out of time too.
    expect(codes).to.include.members(
      Object.entries(faults).map(
        ([name, fault]) => `${name} ${{ exit: 'WORKER_CRASHED', hang: 'TASK_TIMEOUT', throw: 'USER_ERROR', reject: 'USER_ERROR' }[fault]}`,
      ),
    )
    expect(await cluster.leftovers()).to.deep.equal([])
  })
})
