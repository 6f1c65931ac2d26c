import { expect } from 'chai'
import { ClosedError, InvalidArgumentError, OutcomeUnknownError, UnavailableError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { createLocks, type LockHandle, LockLostError, LockNotHeldError, LockTimeoutError } from '../../src/lock/index.js'
import { ModelKV } from '../../src/testing/model-kv.js'
import { rejection, World } from './support/world.js'

const ttlMs = 3000

describe('lock', () => {
  describe('acquire and release', () => {
    it('grants a free lock, and leaves nothing in the store when it is given back', async () => {
      const world = new World(1)
      const { locks } = world.client('a')
      const handle = await world.runtime.settle(locks.acquire('l'))
      expect(handle.name).to.equal('l')
      expect(handle.held).to.equal(true)
      expect(handle.token).to.equal(BigInt(world.changes[0]!.revision))
      handle.assertHeld()
      expect(await world.runtime.settle(handle.release())).to.deep.equal({ released: true })
      expect(handle.held).to.equal(false)
      expect(() => handle.assertHeld()).to.throw(LockNotHeldError)
      expect(handle.signal.aborted).to.equal(false)
      expect(world.keys).to.equal(0)
      // Once more is no error and changes nothing.
      expect(await world.runtime.settle(handle.release())).to.deep.equal({ released: true })
    })

    it('keeps a lock far beyond its ttl by renewal, and nobody else gets it', async () => {
      const world = new World(2)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      const timeout = await world.runtime.settle(rejection(b.locks.acquire('l', { timeoutMs: 20 * ttlMs })))
      expect(timeout).to.be.instanceOf(LockTimeoutError).that.includes({ code: 'LOCK_TIMEOUT', retryable: true })
      expect(handle.held).to.equal(true)
      expect(handle.signal.aborted).to.equal(false)
    })

    it('hands over to the waiter, with a greater token, though the record was deleted in between', async () => {
      const world = new World(3)
      const a = world.client('a')
      const b = world.client('b')
      const tokens: bigint[] = []
      for (let round = 0; round < 5; round++) {
        for (const { locks } of [a, b]) {
          const handle = await world.runtime.settle(locks.acquire('l'))
          tokens.push(handle.token)
          await world.runtime.settle(handle.release())
          expect(world.keys).to.equal(0)
        }
      }
      expect(tokens).to.deep.equal([...tokens].sort((left, right) => Number(left - right)))
      expect(new Set(tokens).size).to.equal(10)
    })

    it('different names are different locks, held at the same time in either order', async () => {
      const world = new World(4)
      const { locks } = world.client('a')
      const other = world.client('b').locks
      await world.runtime.settle(async () => {
        const one = await locks.acquire('one')
        const two = await locks.acquire('two')
        expect(await other.tryAcquire('one')).to.equal(null)
        expect(await other.tryAcquire('two')).to.equal(null)
        await one.release()
        const again = await other.tryAcquire('one')
        expect(again).not.to.equal(null)
        expect(two.held).to.equal(true)
      })
    })

    it('tryAcquire does not barge in front of those who wait', async () => {
      const world = new World(5)
      const a = world.client('a')
      const b = world.client('b')
      const c = world.client('c')
      await world.runtime.settle(async () => {
        const first = await a.locks.acquire('l')
        const waiting = b.locks.acquire('l')
        await world.runtime.sleep(200)
        await first.release()
        expect(await c.locks.tryAcquire('l')).to.equal(null)
        const second = await waiting
        expect(second.held).to.equal(true)
      })
    })

    it('tryAcquire takes over from a dead holder once it has itself watched the lease pass', async () => {
      const world = new World(6)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      await world.runtime.settle(a.locks.acquire('l'))
      a.process.pause()
      await world.runtime.advance(10 * ttlMs)
      expect(await world.runtime.settle(b.locks.tryAcquire('l'))).to.equal(null)
      await world.runtime.advance(ttlMs / 2)
      expect(await world.runtime.settle(b.locks.tryAcquire('l'))).to.equal(null)
      await world.runtime.advance(ttlMs)
      const handle = await world.runtime.settle(b.locks.tryAcquire('l'))
      expect(handle?.held).to.equal(true)
    })

    it('is not reentrant: a second acquire by the same holder waits', async () => {
      const world = new World(7)
      const { locks } = world.client('a')
      await world.runtime.settle(locks.acquire('l'))
      expect(await world.runtime.settle(rejection(locks.acquire('l', { timeoutMs: 1000 })))).to.be.instanceOf(LockTimeoutError)
      expect(await world.runtime.settle(locks.tryAcquire('l'))).to.equal(null)
    })

    it('disposes', async () => {
      const world = new World(8)
      const { locks } = world.client('a')
      const handle = await world.runtime.settle(locks.acquire('l'))
      await world.runtime.settle(async () => handle[Symbol.asyncDispose]())
      expect(handle.held).to.equal(false)
      expect(world.keys).to.equal(0)
    })

    it('inspect shows the holder, its token and the queue, and changes nothing', async () => {
      const world = new World(9)
      const a = world.client('a')
      const b = world.client('b')
      const c = world.client('c')
      await world.runtime.settle(async () => {
        expect(await c.locks.inspect('l')).to.deep.equal({ name: 'l', holder: null, waiters: [] })
        const handle = await a.locks.acquire('l', { label: 'nightly report' })
        expect((await c.locks.inspect('l')).holder).to.include({ label: 'nightly report', token: handle.token, renewals: 0, ttlMs })
        const waiting = b.locks.acquire('l')
        await world.runtime.sleep(2 * ttlMs + 200)
        const writes = world.changes.length
        const seen = await c.locks.inspect('l')
        expect(world.changes.length).to.equal(writes)
        expect(seen.holder?.token).to.equal(handle.token)
        expect(seen.holder?.renewals).to.be.at.least(4)
        expect(seen.waiters.map(({ label }) => label)).to.deep.equal(['b'])
        await handle.release()
        await waiting
      })
    })
  })

  describe('the lease', () => {
    it('hazard p10: is lost while the holder does not run, and the signal says so when it does again', async () => {
      const world = new World(10)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      a.process.pause()
      const next = await world.runtime.settle(b.locks.acquire('l'))
      expect(next.token > handle.token).to.equal(true)
      a.process.resume()
      await world.runtime.advance(1)
      expect(handle.held).to.equal(false)
      expect(handle.signal.aborted).to.equal(true)
      expect(handle.signal.reason).to.be.instanceOf(LockLostError).that.includes({ why: 'expired', code: 'LOCK_LOST', retryable: false })
      expect(() => handle.assertHeld()).to.throw(LockLostError)
      expect(next.held).to.equal(true)
    })

    it('is lost while the event loop is really blocked: at once, before any timer could run', async () => {
      const kv = new ModelKV({ runtime: systemRuntime })
      const locks = createLocks(kv, { session: { ttlMs: 100 } })
      const handle = await locks.acquire('l')
      const startMs = systemRuntime.nowMs()
      while (systemRuntime.nowMs() - startMs < 150);
      expect(handle.held).to.equal(false)
      expect(() => handle.assertHeld()).to.throw(LockLostError)
      const { released, lost } = await handle.release()
      expect(released).to.equal(false)
      expect(lost?.why).to.equal('expired')
      await locks.close()
    })

    it('hazard l2: is lost when the store cannot be reached, before anybody else can have the lock', async () => {
      const world = new World(11)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      let lostAtMs = 0
      handle.signal.addEventListener('abort', () => {
        lostAtMs = world.runtime.nowMs()
      })
      a.kv.cut = 'both'
      const next = await world.runtime.settle(b.locks.acquire('l'))
      expect(lostAtMs).to.be.greaterThan(0)
      expect(lostAtMs).to.be.lessThan(world.changes.at(-1)!.atMs)
      expect(handle.signal.reason).to.include({ why: 'unreachable' })
      expect(next.held).to.equal(true)
    })

    it('survives an outage that is shorter than the lease', async () => {
      const world = new World(12)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      await world.runtime.settle(async () => {
        for (let round = 0; round < 10; round++) {
          a.kv.cut = 'both'
          b.kv.cut = 'both'
          await world.runtime.sleep(ttlMs / 2)
          a.kv.cut = 'none'
          b.kv.cut = 'none'
          await world.runtime.sleep(ttlMs / 2)
          expect(handle.held, `round ${round}`).to.equal(true)
          expect(await b.locks.tryAcquire('l')).to.equal(null)
        }
      })
    })

    it('is counted from before the request was sent: a grant whose answer took long is short', async () => {
      const world = new World(13)
      const a = world.client('a', { ttlMs, faults: { minimumDelayMs: 400, maximumDelayMs: 400 } })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      // The write left one way (400 ms) before it took effect, and two ways before its answer was here.
      const grantedAtMs = world.changes[0]!.atMs
      expect(world.runtime.nowMs()).to.equal(grantedAtMs + 400)
      a.kv.cut = 'both'
      await world.runtime.advance(grantedAtMs - 400 + ttlMs * 0.95 - world.runtime.nowMs() - 2)
      expect(handle.held).to.equal(true)
      await world.runtime.advance(3)
      expect(handle.held).to.equal(false)
    })

    it('is extended by a renewal from before that was sent, not from its answer', async () => {
      const world = new World(16)
      const a = world.client('a', { ttlMs, faults: { minimumDelayMs: 400, maximumDelayMs: 400 } })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      while (world.changes.length === 1) await world.runtime.advance(1)
      // Executed now, sent 400 ms ago, answered in another 400.
      const sentAtMs = world.changes.at(-1)!.atMs - 400
      await world.runtime.advance(410)
      a.kv.cut = 'both'
      await world.runtime.advance(sentAtMs + ttlMs * 0.95 - world.runtime.nowMs() - 2)
      expect(handle.held).to.equal(true)
      await world.runtime.advance(3)
      expect(handle.held).to.equal(false)
    })

    it('is not revived by an answer that comes after the loss', async () => {
      const world = new World(17)
      const a = world.client('a', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      // An adapter that knows neither signals nor deadlines.
      const put = a.kv.put.bind(a.kv)
      a.kv.put = (key, value, options) => put(key, value, { ifRevision: options?.ifRevision, timeoutMs: 60_000 })
      a.kv.faults = { ...a.kv.faults, minimumDelayMs: 2500, maximumDelayMs: 2500 }
      await world.runtime.advance(2 * ttlMs)
      expect(handle.signal.aborted).to.equal(true)
      const changes = world.changes.length
      expect(changes, 'the renewal was executed').to.equal(2)
      await world.runtime.advance(3 * ttlMs)
      expect(handle.held).to.equal(false)
      expect(world.changes.length, 'nothing is renewed after the loss').to.equal(changes)
    })

    it('hazard etcd#11456: is not handed out when it was over before the answer came', async () => {
      const world = new World(14)
      const a = world.client('a', { ttlMs: 300, faults: { minimumDelayMs: 1, maximumDelayMs: 1 } })
      // The answer to the acquiring write waits in a paused process for longer than the lease.
      world.onChange = () => {
        world.onChange = () => {}
        a.process.pause()
        world.runtime.schedule(1000, () => a.process.resume())
      }
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      expect(handle.held).to.equal(true)
      expect(world.runtime.nowMs()).to.be.greaterThan(1000)
      // Still the first grant, confirmed by a renewal.
      expect(handle.token).to.equal(BigInt(world.changes[0]!.revision))
      expect(world.record().holder!.beat).to.be.greaterThan(world.changes[0]!.record.holder!.beat)
    })

    it('is lost when somebody takes the record away', async () => {
      const world = new World(15)
      const a = world.client('a', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      world.store.remove(new TextEncoder().encode('quorate/lock/l'))
      await world.runtime.advance(ttlMs)
      expect(handle.signal.reason).to.include({ why: 'revoked' })
    })
  })

  describe('release', () => {
    it('hazard l4: after the loss reports it, and leaves the next holder alone', async () => {
      const world = new World(20)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      a.process.pause()
      const next = await world.runtime.settle(b.locks.acquire('l'))
      a.process.resume()
      const { released, lost } = await world.runtime.settle(handle.release())
      expect(released).to.equal(false)
      expect(lost).to.be.instanceOf(LockLostError).that.includes({ lockName: 'l', token: handle.token })
      await world.runtime.advance(3 * ttlMs)
      expect(next.held).to.equal(true)
      expect(BigInt(world.record().holder!.token)).to.equal(next.token)
    })

    it('hazard l3: whose answer was lost is found out by reading', async () => {
      const world = new World(21)
      const a = world.client('a', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      a.kv.faults = { ...a.kv.faults, replyLost: 1 }
      world.onChange = () => {
        // Executed; from now on answers arrive again, but this one's attempt, and its repeats, are lost until its deadline.
        world.onChange = () => {}
        world.runtime.schedule(ttlMs / 3, () => {
          a.kv.faults = { ...a.kv.faults, replyLost: 0 }
        })
      }
      expect(await world.runtime.settle(handle.release())).to.deep.equal({ released: true })
      expect(world.keys).to.equal(0)
    })

    it('while the store is out of reach ends with the lease, reports the doubt, and tidies up when it can', async () => {
      const world = new World(22)
      const a = world.client('a', { ttlMs })
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      a.kv.cut = 'both'
      const { released, lost } = await world.runtime.settle(handle.release())
      expect(released).to.equal(false)
      expect(lost?.why).to.equal('unreachable')
      expect(world.runtime.nowMs()).to.be.within(ttlMs * 0.9, ttlMs * 1.1)
      a.kv.cut = 'none'
      await world.runtime.advance(ttlMs)
      expect(world.keys).to.equal(0)
    })
  })

  describe('waiters', () => {
    it('hazard l3: an acquire whose answer was lost finds itself by its nonce, and takes the lock once', async () => {
      const world = new World(30)
      const a = world.client('a', { ttlMs })
      world.onChange = () => {
        world.onChange = () => {}
        a.kv.cut = 'replies'
        world.runtime.schedule(ttlMs / 2, () => {
          a.kv.cut = 'none'
        })
      }
      const handle = await world.runtime.settle(a.locks.acquire('l'))
      expect(handle.token).to.equal(BigInt(world.changes[0]!.revision))
      const nonces = new Set(world.changes.map(({ record }) => record.holder?.nonce))
      expect(nonces.size).to.equal(1)
      expect(await world.runtime.settle(handle.release())).to.deep.equal({ released: true })
    })

    it('a lock taken in doubt, lost and taken again is no old acquaintance to a watcher who slept in between', async () => {
      const world = new World(41)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      const c = world.client('c', { ttlMs })
      world.onChange = () => {
        world.onChange = () => {}
        a.kv.cut = 'both'
      }
      const acquiring = a.locks.acquire('l')
      await world.runtime.advance(50)
      expect(world.record().holder?.label).to.equal('a')
      // b sees the first claim, and stands still.
      const watching = b.locks.acquire('l')
      await world.runtime.advance(200)
      b.process.pause()
      const between = await world.runtime.settle(c.locks.acquire('l'))
      await world.runtime.settle(between.release())
      a.kv.cut = 'none'
      const handle = await world.runtime.settle(acquiring)
      expect(handle.token > between.token).to.equal(true)
      b.process.resume()
      await world.runtime.advance(ttlMs)
      expect(handle.held).to.equal(true)
      expect(world.record().holder?.label).to.equal('a')
      await world.runtime.settle(handle.release())
      expect((await world.runtime.settle(watching)).held).to.equal(true)
    })

    it('an aborted acquire whose answer was lost leaves neither holder nor waiter', async () => {
      for (const taken of [false, true]) {
        const world = new World(31)
        const a = world.client('a', { ttlMs })
        const b = world.client('b', { ttlMs })
        const first = taken ? await world.runtime.settle(b.locks.acquire('l')) : null
        const controller = new AbortController()
        const acquiring = rejection(a.locks.acquire('l', { signal: controller.signal }))
        world.onChange = ({ record }) => {
          const label = record.holder?.label === 'a' || record.waiters.some((waiter) => waiter.label === 'a')
          if (!label) return
          world.onChange = () => {}
          controller.abort(new Error('changed my mind'))
        }
        expect(await world.runtime.settle(acquiring)).to.have.property('message', 'changed my mind')
        await world.runtime.settle(a.locks.close())
        expect(world.record().waiters).to.deep.equal([])
        expect(world.record().holder?.label).to.equal(taken ? 'b' : undefined)
        expect(first?.held).to.equal(taken ? true : undefined)
      }
    })

    it('an acquiring write that arrives after its caller gave up finds the door shut', async () => {
      const world = new World(32)
      const a = world.client('a', { ttlMs, faults: { minimumDelayMs: 1, maximumDelayMs: 1 } })
      const b = world.client('b', { ttlMs })
      // The read is quick; the write takes two seconds to arrive.
      const slowPut = a.kv.put.bind(a.kv)
      a.kv.put = (key, value, options) => {
        a.kv.put = slowPut
        a.kv.faults = { ...a.kv.faults, minimumDelayMs: 2000, maximumDelayMs: 2000 }
        const written = slowPut(key, value, options)
        a.kv.faults = { ...a.kv.faults, minimumDelayMs: 1, maximumDelayMs: 1 }
        return written
      }
      expect(await world.runtime.settle(rejection(a.locks.acquire('l', { timeoutMs: 90 })))).to.be.instanceOf(LockTimeoutError)
      await world.runtime.advance(4000)
      expect(world.changes.every(({ record }) => record.holder === null)).to.equal(true)
      const handle = await world.runtime.settle(b.locks.tryAcquire('l'))
      expect(handle?.held).to.equal(true)
    })

    it('an aborted and a timed-out waiter leave the queue, and the next one gets the lock', async () => {
      const world = new World(33)
      const [a, b, c, d] = ['a', 'b', 'c', 'd'].map((name) => world.client(name, { ttlMs }))
      await world.runtime.settle(async () => {
        const first = await a!.locks.acquire('l')
        const controller = new AbortController()
        const aborted = rejection(b!.locks.acquire('l', { signal: controller.signal }))
        await world.runtime.sleep(100)
        const timedOut = rejection(c!.locks.acquire('l', { timeoutMs: 400 }))
        await world.runtime.sleep(100)
        const last = d!.locks.acquire('l')
        await world.runtime.sleep(100)
        expect((await a!.locks.inspect('l')).waiters.map(({ label }) => label)).to.deep.equal(['b', 'c', 'd'])
        controller.abort(new Error('stop'))
        expect(await aborted).to.have.property('message', 'stop')
        expect(await timedOut).to.be.instanceOf(LockTimeoutError)
        await world.runtime.sleep(100)
        expect((await a!.locks.inspect('l')).waiters.map(({ label }) => label)).to.deep.equal(['d'])
        const releasedAtMs = world.runtime.nowMs()
        await first.release()
        expect((await last).held).to.equal(true)
        // Within the longest pause between two polls, not after the grace for the dead.
        expect(world.runtime.nowMs() - releasedAtMs).to.be.lessThan(1000)
      })
    })

    it('a release is taken by the next waiter within a round trip, however long the lock was held, and so is the one after that', async () => {
      const world = new World(340)
      const [a, b, c] = ['a', 'b', 'c'].map((name) => world.client(name, { ttlMs, faults: { minimumDelayMs: 5, maximumDelayMs: 5 } }))
      await world.runtime.settle(async () => {
        const first = await a!.locks.acquire('l')
        const next = b!.locks.acquire('l')
        await world.runtime.sleep(50)
        const last = c!.locks.acquire('l')
        await world.runtime.sleep(40_000)
        const claimedAfterMs = async (label: string, release: Promise<unknown>) => {
          await release
          const releasedAtMs = world.changes.findLast(({ record }) => record.holder === null)!.atMs
          while (world.record().holder?.label !== label) await world.runtime.sleep(0.5)
          return world.changes.at(-1)!.atMs - releasedAtMs
        }
        // The store tells, the waiter asks what, and claims: four messages of 5 ms; a request more when that crosses another one.
        expect(await claimedAfterMs('b', first.release())).to.be.at.most(31)
        const second = await next
        await world.runtime.sleep(20_000)
        expect(await claimedAfterMs('c', second.release())).to.be.at.most(31)
        await (await last).release()
      })
    })

    it('on a store without watches, and on one whose watches fail, waiters poll', async () => {
      const failing = {
        ready: Promise.reject(new Error('no watch today')),
        async *[Symbol.asyncIterator]() {
          yield await Promise.reject(new Error('no watch today'))
        },
        close: async () => {},
      }
      failing.ready.catch(() => {})
      const refusing = () => {
        throw new Error('no watch at all')
      }
      for (const watch of [undefined, () => failing, refusing]) {
        const world = new World(341)
        const [a, b] = ['a', 'b'].map((name) => world.client(name, { ttlMs }))
        Object.assign(b!.kv, { watch })
        await world.runtime.settle(async () => {
          const first = await a!.locks.acquire('l')
          const next = b!.locks.acquire('l')
          await world.runtime.sleep(5000)
          const releasedAtMs = world.runtime.nowMs()
          await first.release()
          expect((await next).held).to.equal(true)
          expect(world.runtime.nowMs() - releasedAtMs).to.be.lessThan(1000)
        })
      }
    })

    it('a signal that is aborted already, or a timeout of 0, takes nothing', async () => {
      const world = new World(34)
      const { locks, kv } = world.client('a')
      const reason = new Error('before')
      expect(await world.runtime.settle(rejection(locks.acquire('l', { signal: AbortSignal.abort(reason) })))).to.equal(reason)
      expect(kv.requestsSent).to.equal(0)
      expect(await world.runtime.settle(rejection(locks.acquire('l', { timeoutMs: 0 })))).to.be.instanceOf(LockTimeoutError)
      await world.runtime.advance(2 * ttlMs)
      expect(world.record().holder).to.equal(null)
    })

    it('a new process does not count the record of its former self as its own', async () => {
      const world = new World(35)
      const before = world.client('same', { ttlMs })
      const old = await world.runtime.settle(before.locks.acquire('l'))
      before.process.pause()
      const after = world.client('same', { ttlMs })
      expect(await world.runtime.settle(after.locks.tryAcquire('l'))).to.equal(null)
      const handle = await world.runtime.settle(after.locks.acquire('l'))
      expect(world.runtime.nowMs()).to.be.greaterThan(ttlMs)
      expect(handle.token > old.token).to.equal(true)
    })

    it('100 waiters: each release wakes the one that came first, and the store is not stampeded', async () => {
      const world = new World(36)
      const holder = world.client('holder', { ttlMs })
      const order: number[] = []
      const handleBefore = await world.runtime.settle(holder.locks.acquire('l'))
      const waiting: Promise<void>[] = []
      await world.runtime.settle(async () => {
        for (let number = 0; number < 100; number++) {
          const { locks } = world.client(`w${number}`, { ttlMs })
          const run = async () => {
            const handle = await locks.acquire('l')
            order.push(number)
            expect(handle.held).to.equal(true)
            await world.runtime.sleep(10)
            await handle.release()
          }
          waiting.push(run())
          // One by one, so that the order of arrival is known.
          while (world.record().waiters.length <= number) await world.runtime.sleep(1)
        }
      })
      const requestsBefore = world.clients.reduce((sum, { kv }) => sum + kv.requestsSent, 0)
      const startMs = world.runtime.nowMs()
      await world.runtime.settle(handleBefore.release())
      await world.runtime.settle(Promise.all(waiting))
      expect(order).to.deep.equal(Array.from({ length: 100 }, (_, number) => number))
      const requests = world.clients.reduce((sum, { kv }) => sum + kv.requestsSent, 0) - requestsBefore
      const elapsedMs = world.runtime.nowMs() - startMs
      // Three writes a hand-over at least; the reads of the others stay within a constant factor.
      expect(requests / 100, 'requests for each grant').to.be.lessThan(25)
      expect(elapsedMs / 100, 'milliseconds for each grant, with 10 of work').to.be.lessThan(35)
      expect(world.keys).to.equal(0)
    })

    it('100 at the same moment all get it, one after the other', async () => {
      const world = new World(37)
      let inside = 0
      let served = 0
      await world.runtime.settle(
        Promise.all(
          Array.from({ length: 100 }, async (_, number) => {
            const { locks } = world.client(`w${number}`, { ttlMs })
            await locks.withLock('l', {}, async () => {
              expect(++inside).to.equal(1)
              await world.runtime.sleep(5)
              inside--
              served++
            })
          }),
        ),
      )
      expect(served).to.equal(100)
      const requests = world.clients.reduce((sum, { kv }) => sum + kv.requestsSent, 0)
      expect(requests / 100).to.be.lessThan(60)
      expect(world.keys).to.equal(0)
    })

    it('more waiters than the queue holds are all served', async () => {
      const world = new World(38)
      let served = 0
      // Held until the queue is full: those behind it must not need a place to be served in the end.
      const first = await world.runtime.settle(world.client('holder', { ttlMs }).locks.acquire('l'))
      const waiting = Array.from({ length: 200 }, async (_, number) => {
        const { locks } = world.client(`w${number}`, { ttlMs })
        await locks.withLock('l', {}, () => {
          served++
        })
      })
      while (world.record().waiters.length < 128) await world.runtime.advance(1)
      await world.runtime.settle(first.release())
      await world.runtime.settle(Promise.all(waiting))
      expect(served).to.equal(200)
      expect(Math.max(...world.changes.map(({ record }) => record.waiters.length))).to.equal(128)
      expect(world.keys).to.equal(0)
    })

    it('dead waiters are passed over, and their places are cleared', async () => {
      const world = new World(39)
      const holder = world.client('holder', { ttlMs })
      const first = await world.runtime.settle(holder.locks.acquire('l'))
      for (let number = 0; number < 20; number++) {
        const dead = world.client(`dead${number}`, { ttlMs })
        void dead.locks.acquire('l')
        while (world.record().waiters.length <= number) await world.runtime.advance(1)
        dead.process.pause()
      }
      const living = world.client('living', { ttlMs }).locks.acquire('l')
      await world.runtime.advance(500)
      await world.runtime.settle(first.release())
      const freeAtMs = world.runtime.nowMs()
      const handle = await world.runtime.settle(living)
      expect(world.runtime.nowMs() - freeAtMs).to.be.lessThan(12_000)
      expect(world.record().waiters).to.deep.equal([])
      await world.runtime.settle(handle.release())
      expect(world.keys).to.equal(0)
    })

    it('a waiter that was passed over while it was stalled queues again', async () => {
      const world = new World(40)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      const c = world.client('c', { ttlMs })
      const first = await world.runtime.settle(a.locks.acquire('l'))
      const second = b.locks.acquire('l')
      await world.runtime.advance(100)
      const third = c.locks.acquire('l')
      await world.runtime.advance(100)
      b.process.pause()
      await world.runtime.settle(first.release())
      const taken = await world.runtime.settle(third)
      b.process.resume()
      await world.runtime.advance(1000)
      await world.runtime.settle(taken.release())
      expect((await world.runtime.settle(second)).token > taken.token).to.equal(true)
    })
  })

  describe('run', () => {
    it('returns the value, with a fence and a signal, and gives the lock back', async () => {
      const world = new World(50)
      const { locks } = world.client('a')
      const value = await world.runtime.settle(
        locks.lock('l').run(({ fence, signal, handle }) => {
          expect(fence).to.equal(handle.token)
          expect(signal).to.equal(handle.signal)
          expect(handle.held).to.equal(true)
          return 42
        }),
      )
      expect(value).to.equal(42)
      expect(world.keys).to.equal(0)
    })

    it('gives the lock back when the callback throws, and hands its error on', async () => {
      const world = new World(51)
      const { locks } = world.client('a')
      const planted = new Error('planted')
      const failed = await world.runtime.settle(
        rejection(
          locks.withLock('l', {}, () => {
            throw planted
          }),
        ),
      )
      expect(failed).to.equal(planted)
      expect(world.keys).to.equal(0)
    })

    it('overrun work sees the signal; the loss is reported although the callback succeeds, unless told otherwise', async () => {
      for (const onLost of ['reject', 'ignore'] as const) {
        const world = new World(52)
        const a = world.client('a', { ttlMs })
        const b = world.client('b', { ttlMs })
        const work = (handle: LockHandle) =>
          new Promise<string>((resolve) => {
            handle.signal.addEventListener('abort', () => resolve('stopped by the signal'))
          })
        const running = a.locks.withLock('l', { onLost }, work)
        await world.runtime.advance(100)
        a.process.pause()
        await world.runtime.settle(b.locks.acquire('l'))
        a.process.resume()
        if (onLost === 'ignore') expect(await world.runtime.settle(running)).to.equal('stopped by the signal')
        else expect(await world.runtime.settle(rejection(running))).to.be.instanceOf(LockLostError)
      }
    })

    it('hazard l1: a stale token is refused by a guarded write', async () => {
      const world = new World(53)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      let greatest = 0n
      const accepted: string[] = []
      const guardedWrite = (fence: bigint, what: string) => {
        if (fence < greatest) throw new Error(`stale token ${fence}, seen ${greatest}`)
        greatest = fence
        accepted.push(what)
      }
      const slow = await world.runtime.settle(a.locks.acquire('l'))
      // a has looked, and is stalled before it writes.
      expect(slow.held).to.equal(true)
      a.process.pause()
      const quick = await world.runtime.settle(b.locks.acquire('l'))
      guardedWrite(quick.token, 'b')
      expect(() => guardedWrite(slow.token, 'a')).to.throw(/stale token/)
      expect(accepted).to.deep.equal(['b'])
    })
  })

  describe('close', () => {
    it('gives back what is held, ends the waits, and refuses from then on', async () => {
      const world = new World(60)
      const a = world.client('a', { ttlMs })
      const b = world.client('b', { ttlMs })
      await world.runtime.settle(async () => {
        const handle = await a.locks.acquire('l')
        const other = await b.locks.acquire('other')
        const waiting = rejection(a.locks.acquire('other'))
        await world.runtime.sleep(200)
        await a.locks.close()
        expect(handle.signal.reason).to.include({ why: 'session-closed' })
        expect(await waiting).to.be.instanceOf(ClosedError)
        expect(world.record('l').holder).to.equal(null)
        expect(world.record('other').waiters).to.deep.equal([])
        expect(other.held).to.equal(true)
        expect(await rejection(a.locks.acquire('l'))).to.be.instanceOf(ClosedError)
        expect(await rejection(a.locks.tryAcquire('l'))).to.be.instanceOf(ClosedError)
        await a.locks[Symbol.asyncDispose]()
      })
    })

    it('does not wait for ever when the store is out of reach', async () => {
      const world = new World(61)
      const { locks, kv } = world.client('a', { ttlMs: 60_000 })
      await world.runtime.settle(locks.acquire('l'))
      kv.cut = 'both'
      const startMs = world.runtime.nowMs()
      await world.runtime.settle(locks.close({ timeoutMs: 500 }))
      expect(world.runtime.nowMs() - startMs).to.equal(500)
    })
  })

  describe('errors', () => {
    it('acquire waits through an outage; its timeout carries the trouble as its cause', async () => {
      const world = new World(70)
      const { locks, kv } = world.client('a', { ttlMs })
      kv.cut = 'both'
      const acquiring = locks.acquire('l')
      await world.runtime.advance(30_000)
      kv.cut = 'none'
      const handle = await world.runtime.settle(acquiring)
      await world.runtime.settle(handle.release())
      kv.cut = 'both'
      const timeout = await world.runtime.settle(rejection(locks.acquire('l', { timeoutMs: 5000 })))
      expect(timeout).to.be.instanceOf(LockTimeoutError)
      expect(timeout.cause).to.be.instanceOf(UnavailableError)
    })

    it('tryAcquire says when the store did not answer, and when it does not know the outcome', async () => {
      const world = new World(71)
      const { locks, kv } = world.client('a', { ttlMs })
      kv.cut = 'both'
      expect(await world.runtime.settle(rejection(locks.tryAcquire('l', { timeoutMs: 500 })))).to.be.instanceOf(UnavailableError)
      kv.cut = 'none'
      world.onChange = () => {
        kv.cut = 'replies'
      }
      expect(await world.runtime.settle(rejection(locks.tryAcquire('l', { timeoutMs: 1500 })))).to.be.instanceOf(OutcomeUnknownError)
      world.onChange = () => {}
      kv.cut = 'none'
      await world.runtime.advance(ttlMs)
      expect(world.record().holder).to.equal(null)
    })

    it('a foreign value under the key is a typed error at once, for each of the calls', async () => {
      const world = new World(72)
      const { locks, kv } = world.client('a')
      for (const value of ['', 'somebody else’s', new Uint8Array([0xc1]), new Uint8Array([0x93, 1, 2, 3])]) {
        const foreign = new ModelKV({ runtime: world.runtime })
        const locksOnForeign = createLocks(foreign, { runtime: world.runtime })
        await world.runtime.settle(foreign.put('quorate/lock/l', value))
        expect(await world.runtime.settle(rejection(locksOnForeign.acquire('l')))).to.have.property('code', 'MALFORMED')
        expect(await world.runtime.settle(rejection(locksOnForeign.tryAcquire('l')))).to.have.property('code', 'MALFORMED')
        expect(await world.runtime.settle(rejection(locksOnForeign.inspect('l')))).to.have.property('code', 'MALFORMED')
        expect((await world.runtime.settle(foreign.get('quorate/lock/l')))?.version).to.equal(1)
      }
      expect(await world.runtime.settle(rejection(locks.acquire('n'.repeat(5000))))).to.have.property('code', 'KEY_TOO_LARGE')
      expect(kv.requestsSent).to.equal(0)
    })

    it('hazard E1.30: leases, labels, names and timeouts out of range are refused at the call', async () => {
      const world = new World(73)
      const { kv, locks } = world.client('a')
      for (const bad of [0, -1, 99, 3_600_001, 315_360_000_000, Number.NaN, Number.POSITIVE_INFINITY]) {
        expect(() => createLocks(kv, { session: { ttlMs: bad } }), `ttlMs ${bad}`).to.throw(InvalidArgumentError)
      }
      expect(() => createLocks(kv, { session: { ttlMs: 1000, renewEveryMs: 600 } })).to.throw(InvalidArgumentError)
      expect(() => createLocks(kv, { session: { renewEveryMs: 0 } })).to.throw(InvalidArgumentError)
      expect(() => createLocks(kv, { label: 'x'.repeat(129) })).to.throw(InvalidArgumentError)
      expect(() => locks.lock('')).to.throw(InvalidArgumentError)
      for (const call of [
        () => locks.acquire(''),
        () => locks.acquire('l', { timeoutMs: -1 }),
        () => locks.acquire('l', { timeoutMs: Number.NaN }),
        () => locks.tryAcquire('l', { label: 'é'.repeat(65) }),
      ]) {
        expect(await world.runtime.settle(rejection(call()))).to.be.instanceOf(InvalidArgumentError)
      }
      expect(kv.requestsSent).to.equal(0)
    })
  })
})
