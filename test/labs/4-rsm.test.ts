/**
 * Lab 4A, the replicated state machine, and its part of 4C, by the names of its tests, on whole nodes in a simulated world.
 *
 * `Submit` is a write of a clerk, whose answer is the state machine's: Inc is a put of the key `counter`, answered by its version, which counts the puts; Null is a delete of a key that is
 * not there, which goes through the log and changes nothing; Dec is a put of the key `dec`, which must never be there. A clerk's write is tried until its deadline, the lab's 10 s, so what the lab calls
 * ErrWrongLeader is here the end of that time. The replicas' own state is looked at, not what a server says of it.
 */
import { expect } from 'chai'
import type { KV } from '../../src/engine/kv.js'
import type { ClusterLab } from './support/cluster-lab.js'
import { scenario } from './support/cluster-scenario.js'

const submitTimeoutMs = 10_000

async function increment(clerk: KV): Promise<number> {
  return (await clerk.put('counter', 'x', { timeoutMs: submitTimeoutMs })).version
}

function submitNull(clerk: KV): Promise<unknown> {
  return clerk.delete('nothing', { timeoutMs: submitTimeoutMs })
}

/** Waits until so many replicas have exactly this counter. */
async function checkCounter(lab: ClusterLab, count: number, replicas: number): Promise<void> {
  const servers = lab.servers.map((_, server) => server)
  await lab.eventually(
    `a counter of ${count} on ${replicas} replicas`,
    30_000,
    () => servers.filter((server) => (lab.stateOf(server, 'counter')?.version ?? 0) === count).length >= replicas,
  )
}

/** How many of these have ended, one way or the other. */
function watch(work: readonly Promise<unknown>[]): { ended: number; succeeded: number } {
  const counts = { ended: 0, succeeded: 0 }
  for (const each of work) {
    each.then(
      () => {
        counts.ended++
        counts.succeeded++
      },
      () => counts.ended++,
    )
  }
  return counts
}

async function replay(lab: ClusterLab): Promise<KV> {
  const clerk = await lab.createClient()
  for (let count = 1; count <= 100; count++) {
    expect(await increment(clerk)).to.equal(count)
    await checkCounter(lab, count, 3)
  }
  lab.crashAll()
  await lab.sleep(1000)
  await lab.restartAll()
  expect(await increment(clerk)).to.equal(101)
  await lab.sleep(1000)
  await checkCounter(lab, 101, 3)
  return clerk
}

/** 100 writes at once, and no servers 20 ms later: every one must end in time. */
async function shutDownWhileSubmitting(lab: ClusterLab, clerk: KV): Promise<void> {
  const counts = watch(Array.from({ length: 100 }, () => submitNull(clerk)))
  await lab.sleep(20)
  lab.crashAll()
  await lab.eventually('all submits end', 11_000, () => counts.ended === 100)
}

describe('lab 4A: replicated state machine', () => {
  scenario('4A Basic4A: ten increments one by one', { servers: 3 }, async (lab) => {
    const clerk = await lab.createClient()
    for (let count = 1; count <= 10; count++) {
      expect(await increment(clerk)).to.equal(count)
      await checkCounter(lab, count, 3)
    }
  })

  scenario('4A Concurrent4A: fifty increments at once, each with an answer of its own', { servers: 3 }, async (lab) => {
    const clerks = await Promise.all(Array.from({ length: 50 }, () => lab.createClient()))
    const answers = await Promise.all(clerks.map(increment))
    expect(answers.sort((one, other) => one - other)).to.deep.equal(Array.from({ length: 50 }, (_, at) => at + 1))
    await checkCounter(lab, 50, 3)
  })

  scenario('4A LeaderFailure4A: the others go on without the leader', { servers: 3 }, async (lab) => {
    const clerk = await lab.createClient()
    await increment(clerk)
    await checkCounter(lab, 1, 3)
    const leader = await lab.leader()
    lab.disconnect(leader)
    expect(await increment(clerk)).to.equal(2)
    await checkCounter(lab, 2, 2)
    expect(lab.stateOf(leader, 'counter')?.version).to.equal(1)
    lab.connect(leader)
    await checkCounter(lab, 2, 3)
  })

  scenario('4A LeaderPartition4A: what a leader alone was given never happens once its deadline is over', { servers: 3 }, async (lab) => {
    const clerk = await lab.createClient()
    expect(await increment(clerk)).to.equal(1)
    await checkCounter(lab, 1, 3)
    const leader = await lab.leader()
    const others = lab.servers.map((_, server) => server).filter((server) => server !== leader)
    const minority = await lab.createClient([leader])
    const majority = await lab.createClient(others)
    lab.partition([leader], others)
    // The clerk does not get to the others; its time is over a while after the partition has healed.
    const over = new AbortController()
    const { signal } = over
    const counts = watch(Array.from({ length: 100 }, (_, number) => minority.put('dec', `${number}`, { timeoutMs: submitTimeoutMs, signal })))
    await lab.sleep(10)
    expect(await increment(majority)).to.equal(2)
    lab.runtime.schedule(1900, () => over.abort())
    await lab.sleep(1000)
    expect(counts, 'before the partition heals').to.deep.equal({ ended: 0, succeeded: 0 })
    lab.connectAll()
    await lab.eventually('all Decs end', 1000, () => counts.ended === 100)
    expect(counts.succeeded).to.equal(0)
    await checkCounter(lab, 2, 3)
    expect(await increment(clerk)).to.equal(3)
    await checkCounter(lab, 3, 3)
    for (let server = 0; server < 3; server++) expect(lab.stateOf(server, 'dec'), `Dec on server ${server}`).to.equal(undefined)
  })

  scenario(
    '4A LeaderPartition4A: stricter: of a clerk that gets to the others afterwards, each is done exactly once',
    { servers: 3 },
    async (lab) => {
      const clerk = await lab.createClient()
      expect(await increment(clerk)).to.equal(1)
      const leader = await lab.leader()
      lab.partition(
        [leader],
        lab.servers.map((_, server) => server).filter((server) => server !== leader),
      )
      // Sent to the leader that is alone now: it puts them into its log, and that part of its log is replaced later.
      const answers = await Promise.all(Array.from({ length: 100 }, () => increment(clerk)))
      expect(answers.sort((one, other) => one - other)).to.deep.equal(Array.from({ length: 100 }, (_, at) => at + 2))
      lab.connectAll()
      await checkCounter(lab, 101, 3)
    },
  )

  scenario('4A RestartReplay4A: all restart, and the state is there again', { servers: 3 }, async (lab) => {
    await replay(lab)
  })

  scenario('4A Shutdown4A: whoever waits for servers that are gone is told in time', { servers: 3 }, async (lab) => {
    const clerk = await lab.createClient()
    await increment(clerk)
    await shutDownWhileSubmitting(lab, clerk)
  })

  scenario('4A RestartSubmit4A: after a restart, and again with submits under way', { servers: 3 }, async (lab) => {
    const clerk = await replay(lab)
    await shutDownWhileSubmitting(lab, clerk)
    await lab.restartAll()
    expect(await increment(clerk)).to.equal(102)
    await checkCounter(lab, 102, 3)
  })
})

describe('lab 4C: replicated state machine with snapshots', () => {
  scenario('4C Snapshot4C: the log stays small, and the counter outlives a restart', { servers: 3, maxRaftState: 1000 }, async (lab) => {
    const clerk = await lab.createClient()
    for (let count = 1; count <= 100; count++) expect(await increment(clerk)).to.equal(count)
    await checkCounter(lab, 100, 3)
    expect(lab.largestRaftState, 'bytes of the largest log').to.be.at.most(2000)
    for (let server = 0; server < 3; server++) expect(lab.servers[server]!.replica!.core.firstIndex).to.be.greaterThan(1)
    lab.crashAll()
    await lab.restartAll()
    expect(await increment(clerk)).to.equal(101)
    await checkCounter(lab, 101, 3)
  })
})
