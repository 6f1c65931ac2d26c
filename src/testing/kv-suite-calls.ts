/** The KV suite's part on arguments, signals, deadlines and several clients. */
import assert from 'node:assert/strict'
import { ConditionFailedError, OutcomeUnknownError, UnavailableError } from '../base/errors.js'
import type { KV } from '../engine/kv.js'
import { History, recordHistory } from './history.js'
import { assertLinearizable } from './history-checker.js'
import { assertEntry, assertInvalid, collect, type Declare, failure, join, type KvManifest, text } from './kv-suite-bench.js'
import { SeededRandom } from './seeded-random.js'

export function declareCalls({ describe, test }: Declare, manifest: KvManifest): void {
  describe('arguments', () => {
    test('an empty key is refused everywhere', async ({ kv }) => {
      await assertInvalid(kv.get(''), 'EMPTY_KEY')
      await assertInvalid(kv.getMany(['a', new Uint8Array(0)]), 'EMPTY_KEY')
      await assertInvalid(kv.put('', 'v'), 'EMPTY_KEY')
      await assertInvalid(kv.delete(''), 'EMPTY_KEY')
    })

    test('keys and values may be as large as the limits, and no larger', async ({ kv, key, maxKeyBytes, maxValueBytes }) => {
      const fits = key(new Uint8Array(maxKeyBytes - key('').length).fill(0x6b))
      const tooLarge = join(fits, new Uint8Array(1))
      await kv.put(fits, 'v')
      assertEntry(await kv.get(fits), 'v', 1)
      await assertInvalid(kv.put(tooLarge, 'v'), 'KEY_TOO_LARGE')
      await assertInvalid(kv.get(tooLarge), 'KEY_TOO_LARGE')
      await assertInvalid(kv.delete(tooLarge), 'KEY_TOO_LARGE')
      const value = new Uint8Array(maxValueBytes).fill(0x76)
      await kv.put(key('k'), value)
      assertEntry(await kv.get(key('k')), value, 1)
      await assertInvalid(kv.put(key('k'), join(value, new Uint8Array(1))), 'VALUE_TOO_LARGE')
      assert.equal((await kv.get(key('k')))?.version, 1)
    })

    test('limits count bytes, not characters', async ({ kv, key, maxKeyBytes }) => {
      const room = Math.floor((maxKeyBytes - key('').length) / 2)
      await kv.put(text(key('é'.repeat(room))), 'v')
      await assertInvalid(kv.put(text(key('é'.repeat(room + 1))), 'v'), 'KEY_TOO_LARGE')
    })

    test('what is neither text nor bytes is refused', async ({ kv, key }) => {
      for (const wrong of [undefined, null, 1, {}, [1, 2]] as never[]) {
        await assertInvalid(kv.get(wrong))
        await assertInvalid(kv.delete(wrong))
        await assertInvalid(kv.put(wrong, 'v'))
        await assertInvalid(kv.put(key('k'), wrong))
      }
      assert.equal(await kv.get(key('k')), undefined)
    })

    test('conditions, limits and deadlines that are no numbers from 0 on are refused', async ({ kv, key }) => {
      for (const wrong of [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
        await assertInvalid(kv.put(key('k'), 'v', { ifVersion: wrong }))
        await assertInvalid(kv.put(key('k'), 'v', { ifRevision: wrong }))
        await assertInvalid(kv.delete(key('k'), { ifVersion: wrong }))
      }
      for (const wrong of [-1, Number.NaN]) {
        await assertInvalid(kv.get(key('k'), { timeoutMs: wrong }))
        await assertInvalid(kv.put(key('k'), 'v', { timeoutMs: wrong }))
        await assertInvalid(collect(kv.scan({ limit: wrong })))
      }
      assert.equal(await kv.get(key('k')), undefined)
    })
  })

  describe('signals and deadlines', () => {
    test('an aborted signal ends a call with its reason, and nothing is done', async ({ kv, key }) => {
      const reason = new Error('no longer wanted')
      const signal = AbortSignal.abort(reason)
      assert.equal(await failure(kv.get(key('k'), { signal })), reason)
      assert.equal(await failure(kv.getMany([key('k')], { signal })), reason)
      assert.equal(await failure(kv.put(key('k'), 'v', { signal })), reason)
      assert.equal(await failure(kv.delete(key('k'), { signal })), reason)
      assert.equal(await failure(collect(kv.scan({ prefix: key(''), signal }))), reason)
      assert.equal(await kv.get(key('k')), undefined)
    })

    test('a signal that is never aborted is left without listeners', async ({ kv, key }) => {
      let listeners = 0
      const { signal } = new AbortController()
      const add = signal.addEventListener.bind(signal)
      const remove = signal.removeEventListener.bind(signal)
      signal.addEventListener = ((...call: Parameters<typeof add>) => {
        listeners++
        add(...call)
      }) as typeof add
      signal.removeEventListener = ((...call: Parameters<typeof remove>) => {
        listeners--
        remove(...call)
      }) as typeof remove
      await kv.put(key('k'), 'v', { signal })
      await kv.get(key('k'), { signal })
      await collect(kv.scan({ prefix: key(''), signal }))
      assert.equal(listeners, 0)
    })

    if (manifest.cut) {
      test('hazard c6: cut off, reads end with TIMEOUT, and writes with a certain or an unknown outcome, never a wrong one', async (bench) => {
        const { kv, key } = bench
        await kv.put(key('k'), 'before')
        bench.cutOff()
        const read = (await failure(kv.get(key('k'), { timeoutMs: 200 }))) as UnavailableError
        assert(read instanceof UnavailableError && read.code === 'TIMEOUT' && read.retryable, `${read}`)
        const write = await failure(kv.put(key('k'), 'doubtful', { timeoutMs: 200 }))
        assert(write instanceof UnavailableError || write instanceof OutcomeUnknownError, `${write}`)
        bench.reconnect()
        const after = await kv.put(key('k'), 'after')
        assert(after.version === 2 || (after.version === 3 && write instanceof OutcomeUnknownError), `version ${after.version}`)
        assertEntry(await kv.get(key('k')), 'after', after.version)
      })

      test('cut off, an abort ends the wait: a read with the reason, a write with it or in doubt', async (bench) => {
        const { kv, key } = bench
        await kv.put(key('k'), 'before')
        bench.cutOff()
        const reason = new Error('no longer wanted')
        const controller = new AbortController()
        const read = failure(kv.get(key('k'), { signal: controller.signal }))
        const write = failure(kv.put(key('k'), 'doubtful', { signal: controller.signal }))
        const other = failure(kv.get(key('k'), { timeoutMs: 200 }))
        await other
        controller.abort(reason)
        assert.equal(await read, reason)
        const error = await write
        assert(error === reason || (error instanceof OutcomeUnknownError && error.cause === reason), `${error}`)
        bench.reconnect()
      })

      test('hazard c1: what waits through a cut is done once it is over, once', async (bench) => {
        const { kv, key } = bench
        bench.cutOff()
        const writes = Array.from({ length: 10 }, (_, number) => kv.put(key(`k${number}`), 'v', { timeoutMs: 60_000 }))
        const other = failure(kv.get(key('k'), { timeoutMs: 300 }))
        await other
        bench.reconnect()
        for (const { version } of await Promise.all(writes)) assert.equal(version, 1)
      })
    }
  })

  if (manifest.manyClients) {
    describe('several clients', () => {
      test('hazard R15: a read sees every write that was acknowledged before, whichever client made it', async (bench) => {
        const other = await bench.another()
        for (let round = 1; round <= 50; round++) {
          const [writer, reader] = round % 2 === 0 ? [bench.kv, other] : [other, bench.kv]
          await writer.put(bench.key('k'), `${round}`)
          assertEntry(await reader.get(bench.key('k')), `${round}`, round)
        }
      })

      test('counting by conditional writes loses no count', async (bench) => {
        const other = await bench.another()
        const count = async (kv: KV) => {
          for (let done = 0; done < 20; ) {
            const seen = await kv.get(bench.key('count'))
            const next = Number(seen === undefined ? '0' : text(seen.value)) + 1
            try {
              await kv.put(bench.key('count'), `${next}`, { ifVersion: seen?.version ?? 0 })
              done++
            } catch (error) {
              assert(error instanceof ConditionFailedError, `${error}`)
            }
          }
        }
        await Promise.all([count(bench.kv), count(other), count(bench.kv)])
        assertEntry(await bench.kv.get(bench.key('count')), '60', 60)
      })

      test('hazard K1: what they see is linearizable', async (bench) => {
        const other = await bench.another()
        const history = new History()
        const seed = 20
        const work = async (name: string, kv: KV) => {
          const random = new SeededRandom(seed, name)
          const client = recordHistory(kv, history, name)
          for (let round = 0; round < 60; round++) {
            const key = bench.key(`k${random.integer(0, 2)}`)
            const seen = await client.get(key)
            const condition = random.pick([{}, { ifVersion: seen?.version ?? 0 }, { ifRevision: seen?.revision ?? 0 }])
            const write = random.chance(0.2) ? client.delete(key, condition) : client.put(key, `${name} ${round}`, condition)
            await write.catch((error: unknown) => assert(error instanceof ConditionFailedError, `${error}`))
            if (random.chance(0.1)) for await (const entry of client.scan({ prefix: bench.key('') })) void entry
          }
        }
        await Promise.all([work('a', bench.kv), work('b', other), work('c', bench.kv), work('d', other)])
        assertLinearizable(history.operations)
      })
    })
  }
}
