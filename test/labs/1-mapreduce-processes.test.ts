/** Lab 1's crashes with the nodes as real processes over TCP: killed, stopped and replaced while a job runs. */
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { fromItems, type JobEvent, type JobHandle, toFolder } from '../../src/mapreduce/index.js'
import type { AnyJob } from '../../src/mapreduce/job.js'
import { readParts } from '../mapreduce/cluster.js'
import { ProcessCluster, type ProcessNode } from '../mapreduce/process-cluster.js'
import { makeDocuments, runSequentially, toRecords } from '../mapreduce/sequential.js'
import { until } from '../mapreduce/until.js'

describe('lab 1: MapReduce on real processes', () => {
  let cluster: ProcessCluster
  let folder: string
  let output: string
  const documents = makeDocuments(31, 8, 5000, { plain: true })
  const items = documents.map(({ key, text: value }) => ({ key, value }))

  beforeEach(async () => {
    cluster = await ProcessCluster.start(3)
    folder = join(cluster.folder, 'steering')
    output = join(cluster.folder, 'out')
    await mkdir(folder)
  })
  afterEach(() => cluster.close())

  const began = async (): Promise<string[]> => (await readdir(folder)).filter((name) => name.startsWith('started-'))
  const begun = (attempt: string): Promise<void> => until(`${attempt} has begun`, async () => (await began()).includes(`started-${attempt}`))
  const open = (gate: string): Promise<void> => writeFile(join(folder, `gate-${gate}`), '')

  function run(gates: readonly string[]): { job: JobHandle; events: JobEvent[] } {
    const job = cluster.runner.run({
      ...{ job: 'steered', input: fromItems(items), output: toFolder(output), params: { folder, gates }, splitBytes: 1, reducers: 4 },
      backoff: { initialMs: 10 },
    })
    const events: JobEvent[] = []
    void (async () => {
      for await (const event of job) events.push(event)
    })()
    return { job, events }
  }

  /** The node that has the first attempt of a task. Its start is told once the node has answered, maybe after the task has begun there. */
  async function nodeOf(events: readonly JobEvent[], taskId: string): Promise<ProcessNode> {
    const find = (): string | undefined => {
      const event = events.find((candidate) => candidate.type === 'task-started' && candidate.taskId === taskId)
      return event?.type === 'task-started' ? event.nodeId : undefined
    }
    await until(`${taskId} is told as started`, () => find() !== undefined)
    return cluster.nodes.get(find() as string) as ProcessNode
  }

  /** The output is the sequential run's, and every process but those of `except` has cleaned up. */
  async function expectRight(): Promise<void> {
    const { default: reference } = (await import('../fixtures/jobs/steered.js')) as { default: AnyJob }
    const expected = await runSequentially(reference, toRecords(documents, 'whole'), 4, { folder: join(cluster.folder, 'calm') })
    expect((await readParts(output)).parts).to.deep.equal(expected)
    expect((await readdir(cluster.folder)).filter((name) => name.includes('out'))).to.deep.equal(['out'])
  }

  async function filesOf({ folder: own }: ProcessNode): Promise<string[]> {
    const entries = await readdir(own, { recursive: true, withFileTypes: true }).catch(() => [])
    return entries.filter((entry) => !entry.isDirectory()).map(({ name }) => name)
  }

  for (const task of ['map-5', 'reduce-2']) {
    it(`1 TestCrashWorker, hazard w1: SIGKILL of the process that runs ${task}`, async () => {
      const { job, events } = run([task])
      await begun(`${task}-1`)
      const victim = await nodeOf(events, task)
      await cluster.kill(victim.id)
      await begun(`${task}-2`)
      await open(task)
      await job.result()
      await expectRight()
      expect(events.filter(({ type }) => type === 'worker-lost')).to.have.length(1)
    })
  }

  it('1 TestCrashWorker: every process is killed in turn and replaced, in maps and in reduces', async () => {
    const gates = ['map-0', 'map-4', 'map-7', 'reduce-0', 'reduce-3']
    const { job } = run(gates)
    let killed = 0
    for (const task of gates) {
      // While the task that waits runs somewhere, a process dies and another comes in its place.
      await until(`${task} has begun`, async () => (await began()).some((name) => name.startsWith(`started-${task}-`)))
      const victim = `child-${killed++ % 3}`
      await cluster.kill(victim)
      await cluster.spawn(victim)
      await open(task)
    }
    const result = await job.result()
    await expectRight()
    expect(result.stats.retried).to.be.at.least(1)
  })

  it('M7, hazards p6 w3: a process that is stopped, replaced in its work, and wakes', async () => {
    const { job, events } = run(['map-2'])
    await begun('map-2-1')
    const zombie = await nodeOf(events, 'map-2')
    zombie.child.kill('SIGSTOP')
    await begun('map-2-2')
    await open('map-2')
    zombie.child.kill('SIGCONT')
    await job.result()
    await expectRight()
    expect(events.filter((event) => event.type === 'task-finished' && event.taskId === 'map-2' && event.attempt === 1)).to.deep.equal([])
    for (const node of cluster.nodes.values()) await until(`${node.id} has cleaned up`, async () => (await filesOf(node)).length === 0)
  })

  it('a coordinator that is killed: the others drop its job, no output appears', async () => {
    cluster.run('child-0', { items: ['a b', 'b c', 'c d', 'd e'], output, params: { folder, gates: ['map-0', 'map-1', 'map-2', 'map-3'] } })
    await until('all nodes work for it', async () => (await began()).length === 3)
    await cluster.kill('child-0')
    const others = [...cluster.nodes.values()].filter(({ id }) => id !== 'child-0')
    for (const node of others) {
      await until(
        `${node.id} has dropped the job`,
        async () => (await readdir(join(node.folder, 'quorate-jobs', `node-${node.id}`, 'tasks')).catch(() => [])).length === 0,
      )
    }
    // Their threads are free for others.
    const { job } = run([])
    await cluster.spawn('child-0')
    await job.result()
    // What the dead one had begun beside the output goes when it is back.
    await until('nothing is left beside the output', async () => (await readdir(cluster.folder)).filter((name) => name.includes('out')).length === 1)
    await expectRight()
  })
})
