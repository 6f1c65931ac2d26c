/** The guard of a lock: writes of a holder whose grant is over are refused by the store, however late they come. */
import { expect } from 'chai'
import { InvalidArgumentError } from '../../src/base/errors.js'
import { unreliableFaults } from '../../src/testing/model-kv.js'
import { newSeed } from '../support/seed.js'
import { rejection, World } from './support/world.js'

const name = '{order 7}'

describe('the guard of a lock', () => {
  it('lets the holder write, over renewals and while others wait, and nobody whose grant is over', async () => {
    const world = new World(1)
    const [a, b] = [world.client('a'), world.client('b')]
    const first = await world.runtime.settle(a.locks.acquire(name))
    await world.runtime.settle(a.kv.put('{order 7}/state', 'a', { fence: first.guard() }))
    const waiting = b.locks.acquire(name)
    await world.runtime.advance(20_000)
    expect(world.record(name).holder!.beat).to.be.greaterThan(3)
    expect(world.record(name).waiters).to.have.length(1)
    await world.runtime.settle(a.kv.txn({ then: [{ put: '{order 7}/state', value: 'a again' }] }, { fence: first.guard() }))
    expect(first.guard()).to.deep.equal({ key: 'quorate/guard/quorate/lock/{order 7}', revision: Number(first.token) })
    await world.runtime.settle(first.release())
    const stale = () => world.runtime.settle(rejection(a.kv.put('{order 7}/state', 'stale', { fence: first.guard() })))
    expect(await stale()).to.include({ code: 'FENCED' })
    const second = await world.runtime.settle(waiting)
    expect(await stale()).to.include({ code: 'FENCED', actualRevision: Number(second.token) })
    await world.runtime.settle(b.kv.put('{order 7}/state', 'b', { fence: second.guard() }))
    await world.runtime.settle(second.release())
    expect(await stale()).to.include({ code: 'FENCED', actualRevision: 0 })
    expect(world.keys, 'the state alone is left').to.equal(1)
  })

  it('refuses a holder that was paused and awakes after the lock went to another', async () => {
    const world = new World(2)
    const [a, b] = [world.client('a'), world.client('b')]
    const first = await world.runtime.settle(a.locks.acquire(name))
    const { fence } = { fence: first.guard() }
    a.process.pause()
    const second = await world.runtime.settle(b.locks.acquire(name))
    await world.runtime.settle(b.kv.put('{order 7}/state', 'b', { fence: second.guard() }))
    a.process.resume()
    expect(await world.runtime.settle(rejection(a.kv.put('{order 7}/state', 'a', { fence })))).to.include({ code: 'FENCED' })
    expect(first.held).to.equal(false)
    expect(second.held).to.equal(true)
  })

  it('on a network that loses messages: the revision of the guard is the token, and each write under it is of one reign', async () => {
    const seed = newSeed()
    const world = new World(seed)
    const clients = ['a', 'b', 'c'].map((each) => world.client(each, { faults: unreliableFaults }))
    const reigns: bigint[] = []
    const work = async ({ locks, kv }: (typeof clients)[number]) => {
      for (let round = 0; round < 5; round++) {
        await locks.withLock(name, {}, async (handle) => {
          reigns.push(handle.token)
          const fence = handle.guard()
          await kv.put('{order 7}/reign', `${handle.token}`, { fence })
          await kv.increment('{order 7}/writes', 1, { fence })
          const entry = await kv.get('{order 7}/reign')
          expect(Buffer.from(entry!.value).toString(), `seed ${seed}`).to.equal(`${handle.token}`)
          await kv.increment('{order 7}/writes', 1, { fence })
        })
      }
    }
    await world.runtime.settle(Promise.all(clients.map(work)))
    expect(reigns).to.have.length(15)
    expect(reigns).to.deep.equal([...reigns].sort((one, other) => Number(one - other)))
    const writes = await world.runtime.settle(clients[0]!.kv.get('{order 7}/writes'))
    expect(Buffer.from(writes!.value).toString()).to.equal('30')
  })

  it('is for names with a tag, and says so', async () => {
    const world = new World(3)
    const { locks } = world.client('a')
    for (const untagged of ['l', 'a{b', 'a}b', '{}', 'a{}b']) {
      const handle = await world.runtime.settle(locks.acquire(untagged))
      expect(() => handle.guard(), untagged).to.throw(InvalidArgumentError, 'tag')
      await world.runtime.settle(handle.release())
    }
    for (const tagged of ['{a}', 'x{a}y', '{a}{', '{{a}']) {
      const handle = await world.runtime.settle(locks.acquire(tagged))
      expect(handle.guard().revision).to.equal(Number(handle.token))
      await world.runtime.settle(handle.release())
    }
    expect(world.keys).to.equal(0)
  })
})
