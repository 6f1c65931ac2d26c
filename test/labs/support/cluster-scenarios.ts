/**
 * Lab 4's generic tests: rounds of clerks that work while servers are cut off from one another, crash and restart. In the stricter readings:
 *
 * 1. Writes are exactly once, so the version equals the number of puts that succeeded, whatever the network did; only with deadlines short enough for unknown outcomes may it be up to that many higher.
 * 2. Every operation of every clerk is in the history, which is checked with versions, values, revisions and refusals; a check that comes to no end fails.
 * 3. With `long` the servers are partitioned all the time that the clerks work, and not only at their end.
 */
import { expect } from 'chai'
import type { KV } from '../../../src/engine/kv.js'
import { History, recordHistory } from '../../../src/testing/history.js'
import { assertLinearizable } from '../../../src/testing/history-checker.js'
import type { ClusterLab } from './cluster-lab.js'
import { append, onePut, type PutCounts, read } from './kv-helpers.js'

export interface GenericOptions {
  readonly clerks: number
  /** All servers lose their power between the rounds. */
  readonly crash?: boolean
  /** Servers are partitioned again and again. */
  readonly partitions?: 'late' | 'long'
  /** 100 keys instead of one. */
  readonly randomKeys?: boolean
  /** Deadline of each put, short enough for unknown outcomes. Default: none. */
  readonly timeoutMs?: number
}

const rounds = 3

interface RoundOptions extends GenericOptions {
  readonly durationMs: number
}

/** The rounds that every generic test consists of: clerks work for a time, with what happens meanwhile and after; the history of all is checked. */
async function inRounds(
  lab: ClusterLab,
  { clerks, crash = false, partitions, durationMs }: RoundOptions,
  work: (kv: KV, clerk: number, round: number, over: () => boolean) => Promise<void>,
  afterRound: (kv: KV, round: number) => Promise<void>,
): Promise<void> {
  const history = new History({ runtime: lab.runtime })
  for (let round = 0; round < rounds; round++) {
    const endUs = lab.world.nowUs + durationMs * 1000
    const over = () => lab.world.nowUs >= endUs
    let stopPartitions = partitions === 'long' ? lab.partitionRepeatedly() : null
    const run = async (clerk: number) => work(recordHistory(await lab.createClient(), history, `${round}.${clerk}`), clerk, round, over)
    const working = Promise.all(Array.from({ length: clerks }, (_, clerk) => run(clerk)))
    if (partitions === 'late') {
      await lab.sleep(durationMs)
      stopPartitions = lab.partitionRepeatedly()
    }
    await working
    if (stopPartitions !== null) {
      if (partitions === 'late') await lab.sleep(1000)
      await stopPartitions()
      await lab.sleep(1000)
    }
    await lab.closeClients()
    if (crash) {
      lab.crashAll()
      await lab.sleep(1000)
      await lab.restartAll()
    }
    const reader = recordHistory(await lab.createClient(), history, `${round}.reader`)
    await afterRound(reader, round)
    lab.checkSizes()
    await lab.closeClients()
  }
  assertLinearizable(history.operations)
  await lab.checkSameState(history.operations.map(({ key }) => key))
}

/** The generic test of 2025 and 2026: clerks put upon the versions they know. */
export async function puts(lab: ClusterLab, options: GenericOptions): Promise<void> {
  const { randomKeys = false, timeoutMs, clerks, partitions } = options
  const counts: PutCounts = { ok: 0, maybe: 0 }
  const wait = timeoutMs === undefined ? {} : { timeoutMs }
  const work = async (kv: KV, clerk: number, _round: number, over: () => boolean) => {
    const versions = new Map<string, number>()
    do {
      const key = randomKeys ? `k${lab.random.integer(0, 99)}` : 'k'
      versions.set(key, await onePut(kv, clerk, key, versions.get(key) ?? 0, counts, wait))
    } while (!over())
  }
  await inRounds(lab, { ...options, durationMs: partitions === 'long' ? 5000 : 1000 }, work, async (kv) => {
    let version = 0
    for (let number = 0; number < 100; number++) version += (await read(kv, randomKeys ? `k${number}` : 'k')).version / (randomKeys ? 1 : 100)
    if (timeoutMs === undefined) expect(counts.maybe, 'unknown outcomes').to.equal(0)
    expect(Math.round(version), 'puts that took effect').to.be.within(counts.ok, counts.ok + counts.maybe)
  })
  expect(counts.ok).to.be.at.least(rounds * clerks)
}

/** The log holds the lab's appends as what is appended, and these as the whole value: for the limit on the log to mean the same, each key gets so many and no more. */
const elementsPerKey = 10

/** The generic test of 2021 to 2024: clerks append to keys of their own, or read them; with random keys they put and read some of everybody's too. */
export async function appends(lab: ClusterLab, options: GenericOptions): Promise<void> {
  const { randomKeys = false, timeoutMs, clerks } = options
  const wait = timeoutMs === undefined ? {} : { timeoutMs }
  const expected = new Map<string, string>()
  let elements = 0
  const work = async (kv: KV, clerk: number, round: number, over: () => boolean) => {
    let own = ''
    let left = 0
    const anyKey = () => `k${lab.random.integer(0, clerks)}`
    for (let number = 0; !over(); number++) {
      if (left === 0) {
        own = `own-${round}-${clerk}-${number}`
        expected.set(own, '')
        left = elementsPerKey
      }
      if (randomKeys && lab.random.chance(0.05)) await kv.put(anyKey(), `x ${clerk} ${number} y`)
      else if (lab.random.chance(0.5)) {
        const element = `x ${clerk} ${number} y`
        expect(await append(kv, own, element, wait), 'the value before the append').to.equal(expected.get(own))
        expected.set(own, expected.get(own) + element)
        elements++
        left--
      } else if (randomKeys) await kv.get(anyKey())
      else expect((await read(kv, own)).value).to.equal(expected.get(own))
    }
  }
  await inRounds(lab, { ...options, durationMs: 5000 }, work, async (kv) => {
    for (const [key, value] of expected) expect((await read(kv, key)).value).to.equal(value)
  })
  expect(elements).to.be.greaterThan(clerks)
}

/** Speed: a thousand operations of one clerk, one after the other, each within a third of a heartbeat of the lab's, on average: whoever waits for a tick to send or to commit is not in time. */
export async function speed(lab: ClusterLab, operation: (kv: KV, number: number) => Promise<void>): Promise<void> {
  const kv = await lab.createClient()
  await kv.get('k')
  const startUs = lab.world.nowUs
  for (let number = 0; number < 1000; number++) await operation(kv, number)
  expect((lab.world.nowUs - startUs) / 1000, 'milliseconds').to.be.at.most(33_300)
  expect((await kv.get('k'))?.version).to.equal(1000)
}

/** OnePartition: progress in the majority, none in the minority, and what the minority was asked is done once after all. */
export async function onePartition(lab: ClusterLab): Promise<void> {
  const history = new History({ runtime: lab.runtime })
  const clerk = async (name: string, to?: readonly number[]) => recordHistory(await lab.createClient(to), history, name)
  const first = await clerk('first')
  await first.put('1', '13')
  const leader = await lab.leader()
  const others = lab.servers.map((_, server) => server).filter((server) => server !== leader)
  const minority = [leader, others[0]!]
  const majority = others.slice(1)
  const [inMajority, putter, getter] = [await clerk('majority', majority), await clerk('putter', minority), await clerk('getter', minority)]
  lab.partition(majority, minority)
  await inMajority.put('1', '14')
  expect(await read(inMajority, '1')).to.deep.equal({ value: '14', version: 2 })

  const ended = { put: false, get: false }
  const putting = putter.put('1', '15').finally(() => {
    ended.put = true
  })
  const getting = getter.get('1').finally(() => {
    ended.get = true
  })
  await lab.sleep(1000)
  expect(ended, 'in the minority').to.deep.equal({ put: false, get: false })
  expect(await read(inMajority, '1')).to.deep.equal({ value: '14', version: 2 })
  await inMajority.put('1', '16')
  expect(await read(inMajority, '1')).to.deep.equal({ value: '16', version: 3 })

  lab.connectAll()
  lab.connectClerks()
  await lab.eventually('put and get of the minority', 3000, () => ended.put && ended.get)
  // What the get saw is the history checker's business: 16, or 15 already.
  const { version } = await putting
  expect(version).to.equal(4)
  expect((await getting)?.version).to.be.oneOf([3, 4])
  expect(await read(first, '1')).to.deep.equal({ value: '15', version: 4 })
  assertLinearizable(history.operations)
  await lab.checkSameState(history.operations.map(({ key }) => key))
}

/** SnapshotRPC: a server that was away gets a snapshot, and serves what it got. */
export async function snapshotTransfer(lab: ClusterLab): Promise<void> {
  const kv = await lab.createClient()
  await kv.put('a', 'A')
  lab.partition([0, 1], [2])
  const inMajority = await lab.createClient([0, 1])
  for (let number = 0; number < 50; number++) await inMajority.put(`${number}`, `${number}`)
  await lab.sleep(1000)
  await inMajority.put('b', 'B')
  expect(lab.largestRaftState, 'bytes of the largest log').to.be.at.most(8 * lab.maxRaftState!)

  expect(lab.installs).to.equal(0)
  lab.partition([0, 2], [1])
  const withLate = await lab.createClient([0, 2])
  await withLate.put('c', 'C')
  await withLate.put('d', 'D')
  for (const [key, value] of Object.entries({ a: 'A', b: 'B', 1: '1', 49: '49' }))
    expect(await read(withLate, key)).to.deep.equal({ value, version: 1 })
  expect(lab.installs, 'snapshots installed').to.be.at.least(1)

  lab.connectAll()
  await kv.put('e', 'E')
  for (const [key, value] of Object.entries({ c: 'C', e: 'E', 1: '1' })) expect(await read(kv, key)).to.deep.equal({ value, version: 1 })
  lab.checkSizes()
  await lab.checkSameState(['a', 'b', 'c', 'd', 'e', ...Array.from({ length: 50 }, (_, number) => `${number}`)])
}

/** SnapshotSize: what is overwritten takes no room, in the log nor in a snapshot. */
export async function snapshotSize(lab: ClusterLab): Promise<void> {
  const kv = await lab.createClient()
  for (let number = 0; number < 200; number++) {
    for (const value of ['0', '1']) {
      await kv.put('x', value)
      expect((await read(kv, 'x')).value).to.equal(value)
    }
  }
  lab.checkSizes()
  for (const server of lab.servers.keys()) expect(await lab.snapshotBytes(server), `bytes of a snapshot of server ${server}`).to.be.within(1, 500)
}
