/**
 * Lab 2, lock: the scenarios, written once over a store that the caller brings. Each client takes the lock `l`, and proves by the key `l0` that nobody else has it: whoever holds the lock finds `l0`
 * empty, writes his name, holds for 10 ms, and empties it again, all upon the version found.
 */
import { expect } from 'chai'
import type { KV } from '../../../src/engine/kv.js'
import { createLocks, type Locks } from '../../../src/lock/index.js'
import { History, recordHistory } from '../../../src/testing/history.js'
import { type Lab, putAt, read, sleep, withClients } from './kv-helpers.js'

export interface LockLab extends Lab {
  /** The lease of the locks. Default 15,000. */
  readonly ttlMs?: number
}

export interface LockCounts {
  grants: number
}

function makeLocks(lab: LockLab, kv: KV): Locks {
  return createLocks(kv, { runtime: lab.runtime, ...(lab.ttlMs === undefined ? {} : { session: { ttlMs: lab.ttlMs } }) })
}

/** Puts upon a version that only the holder of the lock changes: an unknown outcome is settled by reading, a refusal means a second holder. */
async function putAsHolder(kv: KV, value: string, version: number): Promise<void> {
  const outcome = await putAt(kv, 'l0', value, version)
  expect(outcome.type, `somebody else wrote l0 (${JSON.stringify(outcome)})`).not.to.equal('version')
  if (outcome.type === 'maybe') expect([version, version + 1]).to.include((await read(kv, 'l0')).version)
}

/** TestOneClientReliable, TestManyClientsReliable, TestOneClientUnreliable, TestManyClientsUnreliable: one or ten clients for two seconds. */
export async function exclusion(lab: LockLab, clients: number): Promise<LockCounts> {
  const counts: LockCounts = { grants: 0 }
  const tokens: bigint[] = []
  const history = new History({ runtime: lab.runtime })
  await recordHistory(await lab.createClient(), history, 'first').put('l0', '')
  const work = async (kv: KV, client: number, over: () => boolean) => {
    const locks = makeLocks(lab, kv)
    // From 2026 on a client takes and releases a second lock first.
    await (await locks.acquire(`second ${client % 3}`)).release()
    // Twice at least, however slow the machine: what the lab wants is that everybody gets in, and in again.
    for (let own = 0; own < 2 || !over(); own++) {
      const handle = await locks.acquire('l')
      tokens.push(handle.token)
      const found = await read(kv, 'l0')
      expect(found.value, `client ${client} holds the lock, and finds another's name`).to.equal('')
      expect(found.version).to.be.at.least(1)
      await putAsHolder(kv, `${client}`, found.version)
      await sleep(lab.runtime, 10)
      const mine = await read(kv, 'l0')
      if (mine.value === `${client}`) await putAsHolder(kv, '', mine.version)
      expect(handle.held, 'the lease was lost in the middle').to.equal(true)
      expect(await handle.release()).to.deep.equal({ released: true })
      counts.grants++
    }
    await locks.close()
  }
  await withClients(lab, clients, 2000, work, history)
  for (let at = 1; at < tokens.length; at++) expect(tokens[at]! > tokens[at - 1]!, 'a token that does not rise').to.equal(true)
  expect(counts.grants).to.be.at.least(2 * clients)
  return counts
}

/** TestReliableBasic (2026): one acquire and release, and again. */
export async function basic(lab: LockLab): Promise<void> {
  const kv = await lab.createClient()
  const locks = makeLocks(lab, kv)
  const first = await locks.acquire('l')
  expect(await first.release()).to.deep.equal({ released: true })
  const second = await locks.acquire('l')
  expect(second.token > first.token).to.equal(true)
  await second.release()
  expect(await locks.inspect('l')).to.deep.equal({ name: 'l', holder: null, waiters: [] })
  await locks.close()
}

/** TestReliableNested (2026): two locks of random names held at the same time, taken in either order. */
export async function nested(lab: LockLab): Promise<void> {
  const locks = makeLocks(lab, await lab.createClient())
  const letters = () => Array.from({ length: 12 }, () => String.fromCharCode(97 + Math.floor(lab.runtime.random() * 26))).join('')
  const [one, two] = [letters(), letters()]
  for (const [outer, inner] of [
    [one, two],
    [two, one],
  ] as const) {
    const outerHandle = await locks.acquire(outer)
    const innerHandle = await locks.acquire(inner)
    expect(outerHandle.held && innerHandle.held).to.equal(true)
    expect(await locks.tryAcquire(outer)).to.equal(null)
    expect(await locks.tryAcquire(inner)).to.equal(null)
    expect(await innerHandle.release()).to.deep.equal({ released: true })
    expect(outerHandle.held).to.equal(true)
    expect(await outerHandle.release()).to.deep.equal({ released: true })
  }
  await locks.close()
}
