/** Jobs while nodes, threads, networks and user code fail. */
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { ClosedError, InvalidArgumentError } from '../../src/base/errors.js'
import {
  fromItems,
  fromKv,
  JobCancelledError,
  type JobEvent,
  JobFailedError,
  type JobHandle,
  openOutput,
  TaskError,
  toArray,
  toFolder,
  toKv,
} from '../../src/mapreduce/index.js'
import { Method, reportReply, reportRequest } from '../../src/mapreduce/protocol.js'
import { networkPresets } from '../../src/transport/memory.js'
import { type ClusterOptions, jobs, readParts, TestCluster, type TestNode, watch } from './cluster.js'
import { makeDocuments, runSequentially, toRecords } from './sequential.js'
import { until } from './until.js'

const items = ['a b c', 'b c d', 'c d e', 'd e f']
const counts = [
  ['a', 1],
  ['b', 2],
  ['c', 3],
  ['d', 3],
  ['e', 2],
  ['f', 1],
]
const steered = { job: 'steered', splitBytes: 1, reducers: 2, backoff: { initialMs: 1 } }

describe('jobs under faults', () => {
  let cluster: TestCluster
  let folder: string

  afterEach(async () => {
    cluster.network.heal()
    const left = await cluster.leftovers()
    await cluster.close()
    expect(left).to.deep.equal([])
  })

  async function start(options: ClusterOptions = {}): Promise<void> {
    cluster = await TestCluster.start({ nodes: 3, workers: 1, ...options })
    folder = join(cluster.folder, 'steering')
    await mkdir(folder)
  }

  const node = (number: number): TestNode => cluster.nodes[number] as TestNode
  const open = (gate: string): Promise<void> => writeFile(join(folder, `gate-${gate}`), '')
  const begun = (task: string): Promise<void> => until(`${task} has begun`, async () => (await readdir(folder)).includes(`started-${task}`))
  const thrown = (task: Promise<unknown>): Promise<unknown> =>
    task.then(
      () => undefined,
      (error: unknown) => error,
    )
  /** Collects the events of a job while it runs. */
  function record(job: JobHandle): JobEvent[] {
    const events: JobEvent[] = []
    void (async () => {
      for await (const event of job) events.push(event)
    })()
    return events
  }
  /** The node that has the first attempt of a task. Its start is told once the node has answered, maybe after the task has begun there. */
  async function nodeOf(events: readonly JobEvent[], taskId: string, attempt = 1): Promise<TestNode> {
    const find = (): string | undefined => {
      const event = events.find((candidate) => candidate.type === 'task-started' && candidate.taskId === taskId && candidate.attempt === attempt)
      return event?.type === 'task-started' ? event.nodeId : undefined
    }
    await until(`${taskId} is told as started`, () => find() !== undefined)
    return cluster.nodes.find(({ id }) => id === find()) as TestNode
  }
  const runOn = (gates: readonly string[], changes: object = {}): JobHandle<ReturnType<typeof toArray>> =>
    // The coordinator runs no tasks, so that any node that does may die.
    node(0).runner.run({ ...steered, input: fromItems(items), output: toArray(), params: { folder, gates }, ...changes })
  const withoutWorkers = { options: (number: number) => (number === 0 ? { workers: 0 } : {}) }

  for (const task of ['map-1', 'reduce-1']) {
    it(`hazard w1: a node that dies in ${task}: its tasks run again elsewhere, the output is the same`, async () => {
      await start({ nodes: 4, ...withoutWorkers })
      const job = runOn([task])
      const events = record(job)
      await begun(`${task}-1`)
      const victim = await nodeOf(events, task)
      await cluster.silence(victim)
      await begun(`${task}-2`)
      await open(task)
      const { output, stats } = await job.result()
      expect([...output.pairs].sort()).to.deep.equal(counts)
      expect(events.filter(({ type }) => type === 'worker-lost')).to.have.length(1)
      expect(events.find(({ type }) => type === 'worker-lost')).to.deep.include({ nodeId: victim.id })
      expect(await nodeOf(events, task, 2)).to.not.equal(victim)
      // What was lost ran again, and nothing else did.
      const lost = events.flatMap((event) => (event.type === 'worker-lost' ? event.tasks : []))
      expect(lost).to.include(task)
      expect(stats.attempts).to.equal(items.length + 2 + lost.length)
      cluster.network.heal()
      await until('the node that was lost has cleaned up', async () => (await cluster.leftovers()).length === 0)
    })
  }

  for (const task of ['map-1', 'reduce-1']) {
    it(`M7, hazards w1 w2 w3: a zombie ends ${task} and reports it after it was given to another`, async () => {
      await start({ nodes: 3, ...withoutWorkers })
      const job = runOn([task])
      const events = record(job)
      await begun(`${task}-1`)
      const zombie = await nodeOf(events, task)
      // It hears of all, but nobody hears of it: it makes its output and cannot report it.
      cluster.network.cut(zombie.id, node(0).id, { oneWay: true })
      await begun(`${task}-2`)
      await open(task)
      if (task === 'map-1')
        await until('the other has done the map', () =>
          events.some((event) => event.type === 'task-finished' && event.taskId === task && event.attempt === 2),
        )
      else await job.result()
      cluster.network.heal()
      const { output } = await job.result()
      expect([...output.pairs].sort()).to.deep.equal(counts)
      // One finish of each task that ran once: the zombie's report did not count.
      expect(
        events
          .filter((event) => event.type === 'task-finished' && event.taskId === task)
          .map((event) => event.type === 'task-finished' && event.attempt),
      ).to.deep.equal([2])
      await until('the zombie has cleaned up', async () => (await cluster.leftovers()).length === 0)
    })
  }

  it('M7, hazard w3: answers reports of attempts that count no more, of other nodes and sessions, as stale, and repeated ones as accepted', async () => {
    await start({ nodes: 3, ...withoutWorkers })
    const job = runOn(['map-1', 'map-3'])
    const events = record(job)
    await begun('map-1-1')
    await until('another map is done', () => events.some(({ type }) => type === 'task-finished'))
    const holder = await nodeOf(events, 'map-1')
    const done = events.find(({ type }) => type === 'task-finished')
    const report = async (from: TestNode, changes: object): Promise<string> => {
      const outcome = { kind: 'mapped', segments: [], inputBytes: 1, records: 1, pairs: 0, spilledBytes: 0, next: undefined, counters: [] } as const
      const payload = reportRequest.encode({ jobId: job.jobId, session: 1, kind: 'map', taskId: 1, attempt: 1, outcome, ...changes })
      return reportReply.decode(await from.messenger.request(node(0).messenger.address, Method.report, payload)).answer
    }
    const other = cluster.nodes.find((candidate) => candidate !== holder && candidate !== node(0)) as TestNode
    expect(await report(holder, { attempt: 2 })).to.equal('stale')
    expect(await report(holder, { session: 2 })).to.equal('stale')
    expect(await report(other, {})).to.equal('stale')
    expect(await report(holder, { taskId: 99 })).to.equal('stale')
    expect(await report(holder, { kind: 'reduce' })).to.equal('stale')
    expect(await report(holder, { jobId: 'f'.repeat(32) })).to.equal('unknown')
    if (done?.type !== 'task-finished') throw new Error('not done')
    const again = cluster.nodes.find(({ id }) => id === done.nodeId) as TestNode
    expect(await report(again, { taskId: Number(done.taskId.slice(4)) })).to.equal('accepted')
    // A report that does not fit the job is refused, and harms nobody.
    const misfit = report(holder, {
      outcome: {
        kind: 'mapped',
        segments: [{ lengths: [1], checksums: [1] }],
        inputBytes: 1,
        records: 1,
        pairs: 0,
        spilledBytes: 0,
        next: undefined,
        counters: [],
      },
    })
    expect(await thrown(misfit)).to.be.instanceOf(InvalidArgumentError)
    await open('map-1')
    await open('map-3')
    expect([...(await job.result()).output.pairs].sort()).to.deep.equal(counts)
  })

  it('a node that restarts in the middle, at another address, is used again', async () => {
    await start({ nodes: 2, ...withoutWorkers })
    const job = runOn(['map-0'])
    const events = record(job)
    await begun('map-0-1')
    const [, old] = cluster.nodes as [TestNode, TestNode]
    await old.runner.close()
    await old.messenger.close()
    cluster.nodes.pop()
    await cluster.add('node-1')
    await open('map-0')
    const { output } = await job.result()
    expect([...output.pairs].sort()).to.deep.equal(counts)
    expect(events.filter(({ type }) => type === 'worker-lost').length).to.be.at.least(1)
  })

  for (const damage of ['removed', 'changed', 'cut short'] as const) {
    it(`hazard w5: finished map outputs that were ${damage} on disk: these maps run again`, async () => {
      // Nothing is kept in memory.
      await start({ nodes: 3, options: (number) => ({ ...withoutWorkers.options(number), outputMemoryBytes: 0 }) })
      const job = runOn(['map-3'])
      const events = record(job)
      await until('all other maps are done', () => events.filter(({ type }) => type === 'task-finished').length === 3)
      let damaged = 0
      for (const path of await cluster.leftovers()) {
        if (!/kept-|map-/.test(path)) continue
        damaged++
        const bytes = await readFile(path)
        if (damage === 'removed') await rm(path)
        else await writeFile(path, damage === 'changed' ? bytes.map((byte) => byte ^ 1) : bytes.subarray(0, bytes.length - 1))
      }
      expect(damaged).to.equal(3)
      await open('map-3')
      const { output, stats, counters } = await job.result()
      expect([...output.pairs].sort()).to.deep.equal(counts)
      expect(stats.retried).to.be.at.least(1)
      // What ran again is counted once.
      expect(counters).to.deep.equal({ records: items.length })
      expect(stats.inputRecords).to.equal(items.length)
      const finished = events.flatMap((event) =>
        event.type === 'task-finished' && event.taskId !== 'map-3' && event.taskId.startsWith('map') ? [event.taskId] : [],
      )
      expect(finished.sort()).to.deep.equal(['map-0', 'map-0', 'map-1', 'map-1', 'map-2', 'map-2'])
    })
  }

  it('M1-M3 over a network that loses, delays, repeats and reorders', async () => {
    await start({ nodes: 3, workers: 1 })
    const documents = makeDocuments(11, 12, 3000)
    const reference = (await import((jobs['concatenate'] as URL).href)).default
    const expected = await runSequentially(reference, toRecords(documents, 'lines'), 3)
    cluster.network.setFaults({ ...networkPresets.unreliable, repeatProbability: 0.2, reorderProbability: 0.2, reorderMinMs: 1, reorderMaxMs: 60 })
    const out = join(cluster.folder, 'out')
    const input = fromItems(documents.map(({ key, text: value }) => ({ key, value })))
    const { counters } = await node(0)
      .runner.run({ job: 'concatenate', input, output: toFolder(out), splitBytes: 1, reducers: 3, maxAttempts: 20 })
      .result()
    cluster.network.setFaults({})
    expect((await readParts(out)).parts).to.deep.equal(expected)
    // Counters are exact, whatever ran twice.
    expect(counters).to.deep.equal({ lines: toRecords(documents, 'lines').length, words: expected.join('').split('\n').length - 1 })
    await until('all nodes have cleaned up', async () => (await cluster.leftovers()).length === 0)
  })

  it('a coordinator that dies: the nodes drop its job, and what it wrote to the store goes', async () => {
    await start({ nodes: 3, ...withoutWorkers })
    const job = node(0).runner.run({ ...steered, input: fromItems(items), output: toKv({ prefix: 'out/' }), params: { folder, gates: ['reduce-1'] } })
    await begun('reduce-1-1')
    const keys = async (): Promise<string[]> => {
      const all: string[] = []
      for await (const { key } of node(1).kv.scan({ prefix: 'out/' })) all.push(Buffer.from(key).toString())
      return all
    }
    await until('data is written', async () => (await keys()).length > 1)
    const working = (): number => [node(1), node(2)].filter(({ folder: own }) => own !== '').length
    expect(working()).to.equal(2)
    await cluster.silence(node(0))
    node(0).kv.cut = 'both'
    await until('the store is clean', async () => (await keys()).join() === 'out/manifest')
    await until('the nodes are clean', async () => (await cluster.leftovers()).every((path) => path.startsWith(node(0).folder)))
    // Should it only have been slow: it cannot commit any more.
    cluster.network.heal()
    node(0).kv.cut = 'none'
    await open('reduce-1')
    expect(await thrown(job.result())).to.be.instanceOf(Error)
    expect(await keys()).to.deep.equal(['out/manifest'])
    expect(await thrown(openOutput(node(1).kv, 'out/'))).to.have.property('code', 'NO_OUTPUT')
  })

  it('M5: no node at all is a clear error', async () => {
    await start({ nodes: 1, ...withoutWorkers })
    const job = runOn([])
    const error = await thrown(job.result())
    expect(error).to.be.instanceOf(InvalidArgumentError).with.property('code', 'UNKNOWN_JOB')
    await cluster.add()
    await cluster.silence(node(1))
    expect(await thrown(runOn([]).result()))
      .to.be.instanceOf(JobFailedError)
      .with.property('code', 'NO_WORKERS')
  })

  it('hazard E1.31: nodes without the job are not used; nobody with it is a typed error', async () => {
    const { 'word-count': wordCount } = jobs
    await start({ nodes: 3, options: (number) => (number === 1 ? {} : { jobs: { 'word-count': wordCount as URL } }) })
    const job = runOn([])
    const events = record(job)
    await job.result()
    expect(new Set(events.flatMap((event) => (event.type === 'task-started' ? [event.nodeId] : [])))).to.deep.equal(new Set(['node-1']))
    expect(
      await thrown(
        node(0)
          .runner.run({ job: 'nobody-has-this', input: fromItems(['a']), output: toArray() })
          .result(),
      ),
    )
      .to.be.instanceOf(InvalidArgumentError)
      .with.property('code', 'UNKNOWN_JOB')
    for (const name of ['__proto__', 'toString', '../word-count', 'file:///evil.js', '', 7]) {
      const error = await (async () =>
        node(0)
          .runner.run({ job: name as string, input: fromItems(['a']), output: toArray() })
          .result())().catch((found: unknown) => found)
      expect(error, String(name)).to.be.instanceOf(InvalidArgumentError).with.property('code', 'UNKNOWN_JOB')
    }
  })

  for (const name of ['not-a-job', 'broken']) {
    it(`hazard w6: a module that is ${name} is a typed error with its cause`, async () => {
      await start({ nodes: 2 })
      const error = await thrown(
        node(0)
          .runner.run({ job: name, input: fromItems(['a']), output: toArray() })
          .result(),
      )
      expect(error).to.be.instanceOf(InvalidArgumentError).with.property('code', 'INVALID_JOB')
      expect((error as Error).message).to.match(name === 'broken' ? /this module always fails/ : /defineJob/)
    })
  }

  it('hazard w6: code that always throws: the first cause, where, and every attempt', async () => {
    await start({ nodes: 3 })
    const gates = ['map-0', 'map-1', 'map-2-1']
    const watched = watch(runOn([], { params: { folder, gates, faults: { 'map-2': 'throw' } } }))
    // Each on a node of its own, so that all are known.
    for (const gate of ['map-0-1', 'map-1-1', 'map-2-1']) await begun(gate)
    for (const gate of gates) await open(gate)
    const { events, error } = await watched
    expect(error).to.be.instanceOf(JobFailedError)
    const { code, taskId, attempts, cause } = error as JobFailedError
    expect([code, taskId]).to.deep.equal(['TASK_FAILED', 'map-2'])
    expect(attempts.map(({ attempt, code: own, message, at }) => [attempt, own, message, at])).to.deep.equal(
      [1, 2, 3, 4].map((attempt) => [attempt, 'USER_ERROR', 'RangeError: no luck with map-2', '2 at byte 0']),
    )
    // Another node was tried: one that was free then, so on a busy machine not always each of them.
    expect(new Set(attempts.map(({ nodeId }) => nodeId)).size).to.be.at.least(2)
    expect(cause).to.be.instanceOf(TaskError)
    expect((cause as TaskError).stack).to.include('steered')
    const retries = events.flatMap((event) => (event.type === 'task-failed' ? [event.willRetryInMs !== undefined] : []))
    expect(retries).to.deep.equal([true, true, true, false])
    expect(events.at(-1)).to.include({ type: 'job-finished', outcome: 'failed' })
  })

  it('hazard w6: code that always hangs: its threads are stopped, the nodes go on', async () => {
    await start({ nodes: 2 })
    const job = runOn([], { params: { folder, faults: { 'map-0': 'hang' } }, taskTimeoutMs: 300, maxAttempts: 2 })
    const error = await thrown(job.result())
    expect((error as JobFailedError).attempts.map(({ code }) => code)).to.deep.equal(['TASK_TIMEOUT', 'TASK_TIMEOUT'])
    const { output } = await runOn([], { params: { folder: `${folder}-2` } }).result()
    expect([...output.pairs].sort()).to.deep.equal(counts)
  })

  const rules: [string, string, RegExp][] = [
    ['key is a number', 'INVALID_KEY', /must be text/],
    ['key is too long', 'KEY_TOO_LARGE', /65536/],
    ['value is a function', 'INVALID_VALUE', /MessagePack/],
    ['value is cyclic', 'INVALID_VALUE', /MessagePack/],
    ['counter without a name', 'INVALID_ARGUMENT', /name/],
    ['counter that is no number', 'INVALID_ARGUMENT', /finite/],
    ['partition out of range', 'INVALID_PARTITION', /from 0 to 1/],
    ['partition is no number', 'INVALID_PARTITION', /NaN/],
    ['reduce emits a number as key', 'INVALID_KEY', /must be text/],
    ['reduce gives a function', 'INVALID_VALUE', /MessagePack/],
    ['memory', 'WORKER_CRASHED', /memory|heap/i],
  ]
  it('hazard w6: code that breaks a rule gets an error that says which', async () => {
    await start({ nodes: 1, options: () => ({ threadHeapBytes: 32 * 1024 * 1024 }) })
    for (const [how, code, message] of rules) {
      const job = node(0).runner.run({ job: 'faulty', input: fromItems(['a']), output: toArray(), params: { how }, reducers: 2, maxAttempts: 1 })
      const error = (await thrown(job.result())) as JobFailedError
      expect(error, how).to.be.instanceOf(JobFailedError)
      expect(error.attempts[0]?.code, how).to.equal(code)
      expect(error.attempts[0]?.message, how).to.match(message)
    }
  })

  describe('cancelled', () => {
    for (const phase of ['map-1', 'reduce-1']) {
      it(`in ${phase}: everything stops and is removed, everywhere`, async () => {
        await start({ nodes: 3, options: () => ({ outputMemoryBytes: 0 }) })
        const out = join(cluster.folder, 'out')
        const job = node(0).runner.run({ ...steered, input: fromItems(items), output: toFolder(out), params: { folder, gates: [phase] } })
        const watched = watch(job)
        await begun(`${phase}-1`)
        await job.cancel('enough')
        const { events, error } = await watched
        expect(error).to.be.instanceOf(JobCancelledError).with.property('cause', 'enough')
        expect(events.at(-1)).to.include({ type: 'job-finished', outcome: 'cancelled' })
        expect((await readdir(cluster.folder)).filter((name) => name.includes('out'))).to.deep.equal([])
        expect(await cluster.leftovers()).to.deep.equal([])
        // The threads are free again.
        const { output } = await runOn([], { params: { folder: `${folder}-2` } }).result()
        expect([...output.pairs].sort()).to.deep.equal(counts)
      })
    }

    it('by its signal, before it starts and while it runs, by dispose, by a time limit, by close', async () => {
      await start({ nodes: 2 })
      const early = AbortSignal.abort('early')
      expect(await thrown(runOn([], { signal: early }).result()))
        .to.be.instanceOf(JobCancelledError)
        .with.property('cause', 'early')

      const controller = new AbortController()
      const signalled = runOn(['map-0'], { signal: controller.signal })
      await begun('map-0-1')
      controller.abort('late')
      expect(await thrown(signalled.result()))
        .to.be.instanceOf(JobCancelledError)
        .with.property('cause', 'late')

      const disposed = runOn(['map-0'])
      await disposed[Symbol.asyncDispose]()
      expect(await thrown(disposed.result())).to.be.instanceOf(JobCancelledError)

      const late = await thrown(runOn(['map-0'], { timeoutMs: 200 }).result())
      expect(late).to.be.instanceOf(JobFailedError).with.property('code', 'JOB_TIMEOUT')

      const closed = runOn(['map-0'])
      const error = thrown(closed.result())
      await node(0).runner.close()
      expect(await error)
        .to.be.instanceOf(JobCancelledError)
        .with.property('cause')
        .that.is.instanceOf(ClosedError)
      expect(() => runOn([])).to.throw(ClosedError)
    })

    it('does nothing once the output is committed', async () => {
      await start({ nodes: 1 })
      const job = runOn([])
      const { output } = await job.result()
      await job.cancel()
      expect((await job.result()).output).to.equal(output)
    })
  })

  it('hazard w7: input from a store that loses and delays', async () => {
    await start({ nodes: 2 })
    for (const [number, text] of items.entries()) await node(0).kv.put(`doc/${number}`, text)
    for (const { kv } of cluster.nodes) kv.faults = { ...kv.faults, maximumDelayMs: 5, requestLost: 0.1, replyLost: 0.1 }
    const { output } = await runOn([], { input: fromKv({ prefix: 'doc/' }) }).result()
    expect([...output.pairs].sort()).to.deep.equal(counts)
  })
})
