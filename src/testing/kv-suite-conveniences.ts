/** The KV suite's part on getOrPut, increment, update, count and scans of keys alone. */
import assert from 'node:assert/strict'
import { ConditionFailedError } from '../base/errors.js'
import { assertConditionFailed, assertEntry, assertInvalid, collect, type Declare, failure, hex, type KvManifest, text } from './kv-suite-bench.js'

async function assertNumberRefused(promise: Promise<unknown>, code: string, version: number): Promise<void> {
  const error = await failure(promise)
  assert(error instanceof ConditionFailedError, `ConditionFailedError expected, got ${error}`)
  assert.deepEqual([error.code, error.actualVersion], [code, version])
}

export function declareConveniences({ describe, test }: Declare, manifest: KvManifest): void {
  describe('increment', () => {
    test('counts from 0, up and down, in decimal text', async ({ kv, key }) => {
      assert.equal((await kv.increment(key('k'))).value, 1n)
      const { value, version, revision } = await kv.increment(key('k'), 41)
      assert.deepEqual([value, version], [42n, 2])
      assert.equal(assertEntry(await kv.get(key('k')), '42', 2).revision, revision)
      assert.equal((await kv.increment(key('k'), -50)).value, -8n)
      assertEntry(await kv.get(key('k')), '-8', 3)
      assert.equal((await kv.increment(key('k'), 8n)).value, 0n)
      assertEntry(await kv.get(key('k')), '0', 4)
      assert.deepEqual([(await kv.increment(key('k'), 0)).version, (await kv.increment(key('other'), -3)).value], [5, -3n])
    })

    test('works on what a put wrote, to the ends of 64 bits and no further', async ({ kv, key }) => {
      const greatest = 2n ** 63n - 1n
      await kv.put(key('k'), `${greatest - 1n}`)
      assert.equal((await kv.increment(key('k'))).value, greatest)
      await assertNumberRefused(kv.increment(key('k')), 'NUMBER_OUT_OF_RANGE', 2)
      assertEntry(await kv.get(key('k')), `${greatest}`, 2)
      assert.equal((await kv.increment(key('k'), -greatest)).value, 0n)
      assert.equal((await kv.increment(key('k'), -(2n ** 63n))).value, -(2n ** 63n))
      await assertNumberRefused(kv.increment(key('k'), -1), 'NUMBER_OUT_OF_RANGE', 4)
      assert.equal((await kv.increment(key('k'), greatest)).value, -1n)
    })

    test('a value that is no number is left as it is', async ({ kv, key }) => {
      const wrong = [
        '',
        ' 1',
        '1 ',
        '+1',
        '-0',
        '01',
        '1.0',
        '1e3',
        '0x1',
        'NaN',
        '-',
        '١',
        '9223372036854775808',
        '-9223372036854775809',
        '1\0',
        '1'.repeat(400),
      ]
      for (const [number, value] of wrong.entries()) {
        await kv.put(key(`k${number}`), value)
        await assertNumberRefused(kv.increment(key(`k${number}`)), 'NOT_A_NUMBER', 1)
        assertEntry(await kv.get(key(`k${number}`)), value, 1)
      }
    })

    test('takes the conditions of a put', async ({ kv, key }) => {
      const { revision } = await kv.increment(key('k'), 5, { ifVersion: 0 })
      await assertConditionFailed(kv.increment(key('k'), 5, { ifVersion: 0 }), 1, revision)
      await assertConditionFailed(kv.increment(key('k'), 5, { ifRevision: revision + 1 }), 1, revision)
      assert.equal((await kv.increment(key('k'), 5, { ifRevision: revision })).value, 10n)
    })

    test('what is no whole number of 64 bits is refused', async ({ kv, key }) => {
      for (const by of [1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, 2n ** 63n, -(2n ** 63n) - 1n, '1', null] as never[]) {
        await assertInvalid(kv.increment(key('k'), by))
      }
      await assertInvalid(kv.increment('', 1), 'EMPTY_KEY')
      assert.equal(await kv.get(key('k')), undefined)
    })

    test('of many at once each counts once', async (bench) => {
      const other = manifest.manyClients ? await bench.another() : bench.kv
      const each = Array.from({ length: 100 }, (_, number) => (number % 2 === 0 ? bench.kv : other).increment(bench.key('k'), 3))
      const sums = (await Promise.all(each)).map(({ value }) => Number(value)).sort((left, right) => left - right)
      assert.deepEqual(
        sums,
        Array.from({ length: 100 }, (_, number) => 3 * (number + 1)),
      )
      assertEntry(await bench.kv.get(bench.key('k')), '300', 100)
    })
  })

  describe('getOrPut', () => {
    test('creates what is absent, and leaves what is there', async ({ kv, key }) => {
      const created = await kv.getOrPut(key('k'), 'first')
      assert.equal(created.created, true)
      assertEntry(created, 'first', 1)
      assert.equal(hex(created.key), hex(key('k')))
      assert.equal(assertEntry(await kv.get(key('k')), 'first', 1).revision, created.revision)
      const found = await kv.getOrPut(key('k'), 'second')
      assert.equal(found.created, false)
      assert.equal(assertEntry(found, 'first', 1).revision, created.revision)
    })

    test('calls a function for the value only when the key is absent', async ({ kv, key }) => {
      let calls = 0
      const make = () => `made ${++calls}`
      assertEntry(await kv.getOrPut(key('k'), make), 'made 1', 1)
      assertEntry(await kv.getOrPut(key('k'), make), 'made 1', 1)
      assert.equal(calls, 1)
      assertEntry(await kv.getOrPut(key('later'), async () => new Uint8Array(0)), '', 1)
      const failed = new Error('no value')
      const thrown = await failure(
        kv.getOrPut(key('never'), () => {
          throw failed
        }),
      )
      assert.equal(thrown, failed)
      assert.equal(await kv.get(key('never')), undefined)
    })

    test('of many at once one creates, and all see what it wrote', async (bench) => {
      const other = manifest.manyClients ? await bench.another() : bench.kv
      const all = await Promise.all(
        Array.from({ length: 20 }, (_, number) => (number % 2 === 0 ? bench.kv : other).getOrPut(bench.key('k'), `${number}`)),
      )
      const winners = all.filter(({ created }) => created)
      assert.equal(winners.length, 1)
      for (const entry of all) assertEntry(entry, winners[0]!.value, 1)
    })

    test('shares no memory with its caller, and refuses what a put refuses', async ({ kv, key, maxValueBytes }) => {
      const ownKey = key('k')
      const value = new Uint8Array([1, 2, 3])
      const put = kv.getOrPut(ownKey, value)
      ownKey.fill(9)
      value.fill(9)
      assertEntry(await put, new Uint8Array([1, 2, 3]), 1)
      assertEntry(await kv.get(key('k')), new Uint8Array([1, 2, 3]), 1)
      await assertInvalid(kv.getOrPut(key('x'), new Uint8Array(maxValueBytes + 1)), 'VALUE_TOO_LARGE')
      await assertInvalid(kv.getOrPut(key('x'), undefined as never))
      await assertInvalid(kv.getOrPut('', 'x'), 'EMPTY_KEY')
      await assertInvalid(kv.getOrPut(key('x'), 'x', { timeoutMs: -1 }))
    })
  })

  describe('update', () => {
    test('writes what the function makes of what is there; null deletes, undefined leaves', async ({ kv, key }) => {
      const seen: (string | undefined)[] = []
      const change = (result: string | null | undefined) =>
        kv.update(key('k'), (current) => {
          seen.push(current && text(current.value))
          return result
        })
      const created = assertEntry(await change('a'), 'a', 1)
      assert.equal((await kv.get(key('k')))?.revision, created.revision)
      assertEntry(await change('b'), 'b', 2)
      assertEntry(await change(undefined), 'b', 2)
      assertEntry(await change(''), '', 3)
      assert.equal(await change(null), undefined)
      assert.equal(await kv.get(key('k')), undefined)
      assert.equal(await change(null), undefined)
      assert.equal(await change(undefined), undefined)
      assert.deepEqual(seen, [undefined, 'a', 'b', 'b', '', undefined, undefined])
      assertEntry(await kv.update(key('k'), async () => 'again'), 'again', 1)
    })

    test('a function that throws leaves the key as it is', async ({ kv, key }) => {
      await kv.put(key('k'), 'v')
      const failed = new Error('cannot')
      const error = await failure(
        kv.update(key('k'), () => {
          throw failed
        }),
      )
      assert.equal(error, failed)
      await assertInvalid(kv.update(key('k'), () => 7 as never))
      assertEntry(await kv.get(key('k')), 'v', 1)
    })

    test('a key that was written meanwhile is looked at again: deleted and made again too', async ({ kv, key }) => {
      await kv.put(key('k'), 'v')
      let calls = 0
      const result = await kv.update(key('k'), async (current) => {
        calls++
        if (calls === 1) {
          await kv.delete(key('k'))
          await kv.put(key('k'), 'other life')
        }
        if (calls === 2) await kv.delete(key('k'))
        return `${current === undefined ? 'absent' : text(current.value)} ${calls}`
      })
      assert.equal(calls, 3)
      assertEntry(result, 'absent 3', 1)
    })

    test('of many at once none is lost', async (bench) => {
      const other = manifest.manyClients ? await bench.another() : bench.kv
      await Promise.all(
        Array.from({ length: 12 }, (_, number) =>
          (number % 2 === 0 ? bench.kv : other).update(bench.key('k'), (current) => `${current === undefined ? '' : text(current.value)}${number}.`),
        ),
      )
      const entry = await bench.kv.get(bench.key('k'))
      const parts = text(entry!.value).split('.').slice(0, -1)
      assert.deepEqual(
        parts.map(Number).sort((left, right) => left - right),
        Array.from({ length: 12 }, (_, number) => number),
      )
      assert.equal(entry?.version, 12)
    })
  })

  describe('count and keysOnly', () => {
    test('count is what a scan would give', async ({ kv, key, scan }) => {
      assert.equal(await kv.count({ prefix: key('') }), 0)
      const names = Array.from({ length: 300 }, (_, number) => `k${String(number).padStart(3, '0')}`)
      await Promise.all(names.map((each) => kv.put(key(each), each)))
      await kv.delete(key('k007'))
      assert.equal(await kv.count({ prefix: key('') }), 299)
      for (const range of [
        { prefix: key('k00') },
        { prefix: key(''), gte: key('k100'), lt: key('k200') },
        { prefix: key(''), gt: key('k100'), lte: key('k200'), reverse: true },
        { prefix: key(''), limit: 17 },
        { prefix: key(''), limit: 0 },
        { prefix: key(''), limit: 2.5 },
        { prefix: key(''), limit: 1000, reverse: true },
        { gte: key('k5'), lt: key('k1') },
      ]) {
        assert.equal(await kv.count(range), (await scan(range)).length, JSON.stringify(range))
      }
      for (const limit of [-1, Number.NaN]) await assertInvalid(kv.count({ limit }))
      assert(await failure(kv.count({ signal: AbortSignal.abort(new Error('no longer wanted')) })))
    })

    test('keysOnly leaves the values out', async ({ kv, key, maxValueBytes }) => {
      const { revision } = await kv.put(key('a'), new Uint8Array(Math.min(maxValueBytes, 10_000)))
      await kv.put(key('b'), 'x')
      const entries = await collect(kv.scan({ prefix: key(''), keysOnly: true }))
      assert.deepEqual(
        entries.map((entry) => [hex(entry.key), hex(entry.value), entry.version]),
        [
          [hex(key('a')), '', 1],
          [hex(key('b')), '', 1],
        ],
      )
      assert.equal(entries[0]?.revision, revision)
      const reverse = await collect(kv.scan({ prefix: key(''), keysOnly: true, reverse: true, limit: 1 }))
      assert.deepEqual([hex(reverse[0]!.key), reverse[0]!.value.length], [hex(key('b')), 0])
    })
  })
}
