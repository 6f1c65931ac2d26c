/**
 * Lab 2, key/value server: the scenarios, written once over a store that the caller brings, so that they run on the model in simulated time and on a real cluster.
 * Sources: MIT 6.5840, 2025 and 2026 (`kvsrv1`), 2024 (`kvsrv`).
 */
import { expect } from 'chai'
import { ConditionFailedError } from '../../../src/base/errors.js'
import type { KV } from '../../../src/engine/kv.js'
import { History } from '../../../src/testing/history.js'
import { SeededRandom } from '../../../src/testing/seeded-random.js'
import { append, checkGet, checkPutCounts, type Lab, onePut, type PutCounts, putAt, read, withClients } from './kv-helpers.js'

/** Memory tests ask for the bytes that the store's process uses, after a garbage collection. */
export interface MemoryLab extends Lab {
  usedBytes(): number | Promise<number>
  /** The lab's 100,000 (2026: 20,000) where the store can make so many. */
  readonly clients: number
}

/** TestReliablePut: what put and get answer, step by step. */
export async function reliablePut(lab: Lab): Promise<void> {
  const kv = await lab.createClient()
  expect(await putAt(kv, 'k', 'six', 0)).to.deep.equal({ type: 'ok', version: 1 })
  await checkGet(kv, 'k', 'six', 1)
  expect(await putAt(kv, 'k', 'again', 0)).to.deep.equal({ type: 'version', actualVersion: 1 })
  await checkGet(kv, 'k', 'six', 1)
  expect(await putAt(kv, 'y', 'five', 1)).to.deep.equal({ type: 'version', actualVersion: 0 })
  expect(await kv.get('y')).to.equal(undefined)
}

/** Puts of each client at least, however slow the machine: a number of puts in a time says something of the machine alone. */
const leastPuts = 5

/** TestPutConcurrentReliable: ten clients put upon the versions they know; the version counts the puts that succeeded. */
export async function putConcurrent(lab: Lab, options: { readonly timeoutMs?: number } = {}): Promise<PutCounts> {
  const counts: PutCounts = { ok: 0, maybe: 0 }
  await withClients(lab, 10, 1000, async (kv, client, over) => {
    let version = 0
    for (let done = 0; done < leastPuts || !over(); done++) version = await onePut(kv, client, 'k', version, counts, options)
  })
  const { version } = await read(await lab.createClient(), 'k')
  checkPutCounts(lab.network, version, counts)
  expect(counts.ok + counts.maybe).to.be.at.least(10 * leastPuts)
  expect(counts.ok).to.be.greaterThan(10)
  return counts
}

/** TestMemPutManyClientsReliable: clients that wrote once cost the store next to nothing. Resolves to the bytes for each client. */
export async function memoryPutManyClients(lab: MemoryLab, maxBytesPerClient: number): Promise<number> {
  const value = 'x'.repeat(1000)
  const clients = lab.clients
  let refused = 0
  for (let client = 0; client < clients; client++) {
    const outcome = await putAt(await lab.createClient(), 'k', value, 1)
    if (outcome.type === 'version' && outcome.actualVersion === 0) refused++
  }
  expect(refused, 'puts at version 1 of an absent key that were refused').to.equal(clients)
  const before = await lab.usedBytes()
  for (let client = 0; client < clients; client++) {
    const outcome = await putAt(await lab.createClient(), 'k', value, client)
    if (outcome.type !== 'ok') expect.fail(`client ${client}: ${JSON.stringify(outcome)}`)
  }
  return checkGrowth(lab, before, clients, maxBytesPerClient)
}

async function checkGrowth(lab: MemoryLab, before: number, clients: number, maxBytesPerClient: number): Promise<number> {
  const perClient = ((await lab.usedBytes()) - before) / clients
  expect(perClient, 'bytes for each client').to.be.at.most(maxBytesPerClient)
  return perClient
}

/**
 * TestUnreliableNet: one client, 100 rounds upon rising versions. The lab's clerk answers ErrMaybe after any resend; here outcomes are unknown only at a deadline, so the scenario runs
 * with a short one and goes on until that has happened. A put that is repeated after an unknown outcome must either succeed (the first was not done) or be refused because it was.
 */
export async function unreliableNet(lab: Lab, timeoutMs: number): Promise<{ unknown: number; done: number }> {
  let unknown = 0
  let done = 0
  await withClients(lab, 1, 0, async (kv) => {
    for (let round = 0; round < 100 || (unknown === 0 && round < 10_000); round++) {
      const own = JSON.stringify({ round })
      let inDoubt = false
      for (;;) {
        const outcome = await putAt(kv, 'k', own, round, { timeoutMs })
        if (outcome.type === 'unsent') continue
        if (outcome.type === 'maybe') {
          unknown++
          inDoubt = true
          continue
        }
        if (outcome.type === 'version') {
          expect(inDoubt, 'refused without a put in doubt').to.equal(true)
          expect(outcome.actualVersion).to.equal(round + 1)
          done++
        }
        break
      }
      await checkGet(kv, 'k', own, round + 1)
    }
  })
  expect(unknown, 'no outcome was unknown').to.be.greaterThan(0)
  return { unknown, done }
}

/** The same with no deadline in reach: exactly once, so that nothing is ever in doubt, whatever the network does. */
export async function unreliableNetExactlyOnce(lab: Lab): Promise<void> {
  await withClients(lab, 1, 0, async (kv) => {
    for (let round = 0; round < 100; round++) {
      expect(await putAt(kv, 'k', `${round}`, round, { timeoutMs: 600_000 })).to.deep.equal({ type: 'ok', version: round + 1 })
      await checkGet(kv, 'k', `${round}`, round + 1)
    }
  })
}

/**
 * The 2024 generic test: rounds of clients that append to a key of their own (half of the operations), put now and then (with `randomKeys`) and get. Every element
 * must be there once, in order.
 */
export async function genericLoad(
  lab: Lab,
  clients: number,
  options: { readonly rounds?: number; readonly randomKeys?: boolean; readonly seed?: number } = {},
): Promise<void> {
  const { rounds = 3, randomKeys = false, seed = 1 } = options
  const history = new History({ runtime: lab.runtime })
  const work = async (round: number, kv: KV, client: number, over: () => boolean) => {
    const random = new SeededRandom(seed, `${round} ${client}`)
    const own = `own-${round}-${client}`
    const anyKey = () => `random-${random.integer(0, clients)}`
    let expected = ''
    for (let number = 0; !over(); number++) {
      if (randomKeys && random.chance(0.05)) await kv.put(anyKey(), `${client} ${number}`)
      else if (random.chance(0.5)) {
        const element = `x ${client} ${number} y`
        expect(await append(kv, own, element), 'the value before the append').to.equal(expected)
        expected += element
      } else if (randomKeys) await kv.get(anyKey())
      else expect((await read(kv, own)).value).to.equal(expected)
    }
    expect((await read(kv, own)).value).to.equal(expected)
  }
  for (let round = 0; round < rounds; round++) {
    await withClients(lab, clients, 1000, (kv, client, over) => work(round, kv, client, over), history)
  }
}

/** TestUnreliableOneKey2: five clients append ten elements each to one key; each is there once, and those of a client in its order. */
export async function appendOneKey(lab: Lab, options: { readonly timeoutMs?: number } = {}): Promise<void> {
  const clients = 5
  const appends = 10
  await withClients(lab, clients, 0, async (kv, client) => {
    for (let number = 0; number < appends; number++) await append(kv, 'k', `x ${client} ${number} y`, options)
  })
  const { value, version } = await read(await lab.createClient(), 'k')
  const elements = value.match(/x \d+ \d+ y/g) ?? []
  expect(elements.join('')).to.equal(value)
  expect(elements).to.have.length(clients * appends)
  expect(version).to.equal(clients * appends)
  for (let client = 0; client < clients; client++) {
    const own = elements.filter((element) => element.startsWith(`x ${client} `))
    expect(own).to.deep.equal(Array.from({ length: appends }, (_, number) => `x ${client} ${number} y`))
  }
}

/** TestMemGet2, TestMemPut2, TestMemAppend2: large values that were replaced are let go of. `largeBytes` is 10 MiB in the lab. */
export async function memoryLargeValues(lab: MemoryLab, largeBytes: number): Promise<void> {
  const large = (letter: string) => new Uint8Array(largeBytes).fill(letter.charCodeAt(0))
  const [one, two] = [await lab.createClient(), await lab.createClient()]
  const before = await lab.usedBytes()
  const grown = async () => (await lab.usedBytes()) - before

  await one.put('k', large('a'))
  const seen = await Promise.all([one, two].map(async (kv) => (await kv.get('k'))?.value.length))
  expect(seen).to.deep.equal([largeBytes, largeBytes])
  await one.put('k', '0')
  expect(await grown(), 'after a large value was read by two and replaced').to.be.lessThan(largeBytes)

  await one.put('k', large('b'))
  await two.put('k', '')
  expect(await grown(), 'after a large value was replaced by another client').to.be.lessThan(largeBytes)

  const half = large('c').subarray(0, largeBytes / 2)
  await one.put('k', half)
  const found = (await two.get('k'))?.value ?? new Uint8Array()
  await two.put('k', Buffer.concat([found, half]))
  expect((await one.get('k'))?.value.length).to.equal(largeBytes)
  expect(await grown(), 'after two appends').to.be.at.most(3 * largeBytes)
}

/** TestMemPutMany and TestMemGetMany of 2024: clients that put, or get, once. */
export async function memoryManyClients(
  lab: MemoryLab,
  work: (kv: KV, client: number) => Promise<unknown>,
  maxBytesPerClient: number,
): Promise<number> {
  // Memory that the first client makes the store use is no cost of each client.
  await work(await lab.createClient(), 0)
  const before = await lab.usedBytes()
  for (let client = 1; client <= lab.clients; client++) await work(await lab.createClient(), client)
  return checkGrowth(lab, before, lab.clients, maxBytesPerClient)
}

/** What 4.1 of the lab says of get and put, for every pair of an existing or missing key and a version. */
export async function semantics(lab: Lab): Promise<void> {
  const kv = await lab.createClient()
  for (let version = 0; version < 5; version++) {
    for (let asked = 0; asked < 7; asked++) {
      const key = `s ${version} ${asked}`
      for (let count = 0; count < version; count++) await kv.put(key, `${count}`)
      const outcome = await putAt(kv, key, 'new', asked)
      if (asked === version) {
        expect(outcome).to.deep.equal({ type: 'ok', version: version + 1 })
        await checkGet(kv, key, 'new', version + 1)
      } else {
        expect(outcome).to.deep.equal({ type: 'version', actualVersion: version })
        await checkGet(kv, key, version === 0 ? '' : `${version - 1}`, version)
      }
    }
  }
  const refused = await kv.put('s 1 0', 'x', { ifVersion: 9 }).catch((error: unknown) => error)
  expect(refused).to.be.instanceOf(ConditionFailedError).with.property('retryable', false)
}
