/** The KV suite's part on transactions, batches and fences: several keys of one shard, whole or not at all. */
import assert from 'node:assert/strict'
import { ConditionFailedError, InvalidArgumentError } from '../base/errors.js'
import type { BatchOperation, Compare, DeleteResult, KeyValue, KV, TxnOperation, WriteResult } from '../engine/kv.js'
import { assertEntry, assertInvalid, bytes, type Declare, failure, hex, type KvManifest, text } from './kv-suite-bench.js'

/** What a key holds, as text; undefined when it is absent. */
async function textOf(kv: KV, key: Uint8Array): Promise<string | undefined> {
  const entry = await kv.get(key)
  return entry && text(entry.value)
}

async function assertFenced(promise: Promise<unknown>, version: number, revision: number): Promise<void> {
  const error = await failure(promise)
  assert(error instanceof ConditionFailedError, `ConditionFailedError expected, got ${error}`)
  assert.deepEqual([error.code, error.actualVersion, error.actualRevision], ['FENCED', version, revision])
}

/** Values that codecs of other stores have tripped over. */
const oddValues: readonly (string | Uint8Array)[] = [
  '',
  '\0',
  new Uint8Array([0xff, 0xff, 0xff]),
  new Uint8Array([0x80, 0]),
  '__proto__',
  '{}',
  '{a',
  'a}',
  '{a}',
]

export function declareTransactions({ describe, test }: Declare, manifest: KvManifest): void {
  describe('txn', () => {
    test('does `then` when all conditions hold, with one revision for all that it writes', async ({ kv, near }) => {
      const { revision: before } = await kv.put(near('a'), '1')
      await kv.put(near('gone'), 'x')
      const { succeeded, revision, results } = await kv.txn({
        if: [
          { key: near('a'), value: '1' },
          { key: near('b'), absent: true },
        ],
        then: [
          { put: near('a'), value: '2' },
          { put: near('b'), value: '3' },
          { delete: near('gone') },
          { delete: near('none') },
          { get: near('a') },
        ],
        else: [{ put: near('a'), value: 'wrong' }],
      })
      assert.equal(succeeded, true)
      assert(revision > before)
      assert.deepEqual(results.slice(0, 4), [
        { version: 2, revision },
        { version: 1, revision },
        { deleted: true, revision },
        { deleted: false, revision },
      ])
      assert.equal(assertEntry(results[4] as KeyValue, '2', 2).revision, revision)
      for (const [name, value, version] of [
        ['a', '2', 2],
        ['b', '3', 1],
      ] as const) {
        assert.equal(assertEntry(await kv.get(near(name)), value, version).revision, revision)
      }
      assert.equal(await kv.get(near('gone')), undefined)
    })

    test('does `else` when one condition does not hold, and nothing of `then`', async ({ kv, near }) => {
      await kv.put(near('a'), '1')
      const { succeeded, results } = await kv.txn({
        if: [
          { key: near('a'), value: '1' },
          { key: near('b'), absent: false },
        ],
        then: [{ put: near('a'), value: 'wrong' }, { delete: near('a') }],
        else: [{ get: near('a') }, { put: near('c'), value: 'else' }, { get: near('b') }],
      })
      assert.equal(succeeded, false)
      assertEntry(results[0] as KeyValue, '1', 1)
      assert.equal((results[1] as WriteResult).version, 1)
      assert.equal(results[2], undefined)
      assert.equal(results.length, 3)
      assertEntry(await kv.get(near('a')), '1', 1)
      assertEntry(await kv.get(near('c')), 'else', 1)
    })

    test('conditions that fail without an `else` change nothing and are no error; neither is a transaction that only reads', async ({ kv, near }) => {
      const { revision } = await kv.put(near('a'), '1')
      const failed = await kv.txn({ if: [{ key: near('a'), absent: true }], then: [{ put: near('a'), value: 'wrong' }] })
      assert.deepEqual(failed, { succeeded: false, revision, results: [] })
      const read = await kv.txn({ then: [{ get: near('a') }, { get: near('none') }] })
      assert.deepEqual([read.succeeded, read.revision, read.results.length], [true, revision, 2])
      assert.equal(hex((read.results[0] as KeyValue).key), hex(near('a')))
      assert.deepEqual(await kv.txn({ then: [{ delete: near('none') }] }), { succeeded: true, revision, results: [{ deleted: false, revision }] })
      assert.equal((await kv.put(near('b'), '')).revision > revision, true)
      assertEntry(await kv.get(near('a')), '1', 1)
    })

    test('every kind of condition, holding and not', async ({ kv, near }) => {
      await kv.put(near('k'), 'old')
      const { version, revision } = await kv.put(near('k'), 'now')
      const k = near('k')
      const none = near('none')
      const empty = near('empty')
      await kv.put(empty, '')
      const holding: Compare[] = [
        { key: k, version },
        { key: k, revision },
        { key: k, value: 'now' },
        { key: k, absent: false },
        { key: k, version, revision, value: 'now', absent: false },
        { key: none, version: 0 },
        { key: none, revision: 0 },
        { key: none, absent: true },
        { key: empty, value: '' },
      ]
      const failing: Compare[] = [
        { key: k, version: version + 1 },
        { key: k, version: version - 1 },
        { key: k, version: 0 },
        { key: k, revision: revision + 1 },
        { key: k, revision: revision - 1 },
        { key: k, value: 'old' },
        { key: k, value: 'now\0' },
        { key: k, value: 'no' },
        { key: k, value: '' },
        { key: k, absent: true },
        { key: k, version, revision, value: 'other' },
        { key: k, version: version + 1, value: 'now' },
        { key: none, version: 1 },
        { key: none, absent: false },
        { key: none, value: '' },
        { key: empty, value: '\0' },
      ]
      for (const [expected, compares] of [
        [true, holding],
        [false, failing],
      ] as const) {
        for (const compare of compares) {
          const { succeeded } = await kv.txn({ if: [compare], else: [{ get: near('k') }] })
          assert.equal(succeeded, expected, JSON.stringify({ ...compare, key: text(compare.key as Uint8Array) }))
        }
      }
      assert.equal((await kv.txn({ if: holding })).succeeded, true)
      for (const compare of failing) assert.equal((await kv.txn({ if: [...holding, compare] })).succeeded, false)
    })

    test('operations are done in order, and each sees what those before it did', async ({ kv, near }) => {
      await kv.put(near('a'), 'old')
      const { results, revision } = await kv.txn({
        then: [
          { get: near('a') },
          { put: near('a'), value: 'one' },
          { put: near('a'), value: 'two' },
          { get: near('a') },
          { delete: near('a') },
          { get: near('a') },
          { delete: near('a') },
          { put: near('a'), value: 'new life' },
          { get: near('a') },
        ],
      })
      assertEntry(results[0] as KeyValue, 'old', 1)
      assert.deepEqual([(results[1] as WriteResult).version, (results[2] as WriteResult).version], [2, 3])
      assertEntry(results[3] as KeyValue, 'two', 3)
      assert.equal((results[4] as DeleteResult).deleted, true)
      assert.equal(results[5], undefined)
      assert.equal((results[6] as DeleteResult).deleted, false)
      assert.equal((results[7] as WriteResult).version, 1)
      assertEntry(results[8] as KeyValue, 'new life', 1)
      assert.equal(assertEntry(await kv.get(near('a')), 'new life', 1).revision, revision)
    })

    test('keys and values are bytes, whatever they look like', async ({ kv, near }) => {
      for (const [number, odd] of oddValues.entries()) {
        const key = near(new Uint8Array([number, ...bytes(odd)]))
        const { results } = await kv.txn({ if: [{ key, absent: true }], then: [{ put: key, value: odd }, { get: key }] })
        assertEntry(results[1] as KeyValue, odd, 1)
        assert.equal((await kv.txn({ if: [{ key, value: odd }], then: [{ delete: key }] })).succeeded, true)
        assert.equal(await kv.get(key), undefined)
      }
    })

    test('shares no memory with its caller', async ({ kv, near }) => {
      const key = near('k')
      const other = near('other')
      const value = bytes('value')
      const compared = bytes('before')
      await kv.put(near('k'), 'before')
      const txn = kv.txn({ if: [{ key, value: compared }], then: [{ put: key, value }, { get: other }] })
      for (const each of [key, other, value, compared]) each.fill(0x39)
      assert.equal((await txn).succeeded, true)
      const entry = assertEntry((await kv.txn({ then: [{ get: near('k') }] })).results[0] as KeyValue, 'value', 2)
      entry.value.fill(0x39)
      assertEntry(await kv.get(near('k')), 'value', 2)
    })

    test('what is no transaction is refused, and nothing is done', async ({ kv, near, key }) => {
      const wrong = [
        {},
        { then: [] },
        { if: [{ key: near('a') }] },
        { if: [{ key: near('a'), version: -1 }] },
        { if: [{ key: near('a'), revision: 1.5 }] },
        { if: [{ key: near('a'), absent: 'yes' }] },
        { if: [{ key: near('a'), value: 7 }] },
        { if: [null] },
        { if: { key: near('a'), absent: true } },
        { then: [{}] },
        { then: [undefined] },
        { then: 'x' },
        { then: [{ put: near('a') }] },
        { then: [{ put: near('a'), value: null }] },
        { then: [{ put: near('a'), get: near('a'), value: '' }] },
        { then: [{ get: near('a'), value: '' }] },
        { then: [{ get: 7 }] },
      ]
      for (const request of wrong as never[]) await assertInvalid(kv.txn(request))
      await assertInvalid(kv.txn({ then: [{ put: near('b'), value: '' }, { get: '' }] }), 'EMPTY_KEY')
      await assertInvalid(kv.txn({ else: [{ put: key('b'), value: '' }] }, { timeoutMs: Number.NaN }))
      assert.equal(await kv.get(near('b')), undefined)
    })

    test('an aborted signal ends it with its reason, and nothing is done', async ({ kv, near }) => {
      const reason = new Error('no longer wanted')
      const signal = AbortSignal.abort(reason)
      assert.equal(await failure(kv.txn({ then: [{ put: near('k'), value: '' }] }, { signal })), reason)
      assert.equal(await failure(kv.batch([{ put: near('k'), value: '' }], { signal })), reason)
      assert.equal(await kv.get(near('k')), undefined)
    })

    test('a transfer keeps the sum, however many run at once, and no reader sees half of one', async (bench) => {
      const { kv, near } = bench
      const other = manifest.manyClients ? await bench.another() : kv
      const names = ['a', 'b', 'c']
      for (const name of names) await kv.put(near(name), '100')
      const sum = async (client: KV) => {
        const { results } = await client.txn({ then: names.map((name) => ({ get: near(name) })) })
        return results.reduce((total, entry) => total + Number(text((entry as KeyValue).value)), 0)
      }
      const transfer = async (client: KV, from: string, to: string) => {
        for (let done = 0, attempts = 0; done < 8; attempts++) {
          assert(attempts < 1000, 'transactions do not get through')
          const [source, target] = await client.getMany([near(from), near(to)])
          const { succeeded } = await client.txn({
            if: [
              { key: near(from), revision: source!.revision },
              { key: near(to), version: target!.version },
            ],
            then: [
              { put: near(from), value: `${Number(text(source!.value)) - 1}` },
              { put: near(to), value: `${Number(text(target!.value)) + 1}` },
            ],
          })
          if (succeeded) done++
          assert.equal(await sum(client), 300)
        }
      }
      await Promise.all([transfer(kv, 'a', 'b'), transfer(other, 'b', 'c'), transfer(other, 'c', 'a'), transfer(kv, 'b', 'a')])
      assert.equal(await sum(other), 300)
      assert.deepEqual([await textOf(kv, near('a')), await textOf(kv, near('b')), await textOf(kv, near('c'))], ['108', '92', '100'])
    })
  })

  describe('batch', () => {
    test('writes all with one revision, in order', async ({ kv, near }) => {
      await kv.put(near('gone'), 'x')
      const { revision } = await kv.batch([
        { put: near('a'), value: '1' },
        { put: near('b'), value: '2' },
        { delete: near('gone') },
        { put: near('a'), value: '3' },
        { delete: near('none') },
      ])
      assert.equal(assertEntry(await kv.get(near('a')), '3', 2).revision, revision)
      assert.equal(assertEntry(await kv.get(near('b')), '2', 1).revision, revision)
      assert.equal(await kv.get(near('gone')), undefined)
      const after = await kv.batch([{ delete: near('none') }])
      assert.equal(after.revision, revision)
      assert.equal((await kv.put(near('c'), '')).revision > revision, true)
    })

    test('one wrong operation refuses the whole', async ({ kv, near, maxValueBytes }) => {
      const good: BatchOperation = { put: near('a'), value: '1' }
      await assertInvalid(kv.batch([good, { put: near('b'), value: new Uint8Array(maxValueBytes + 1) }]), 'VALUE_TOO_LARGE')
      await assertInvalid(kv.batch([good, { put: '', value: '' }]), 'EMPTY_KEY')
      await assertInvalid(kv.batch([good, { get: near('b') } as never]))
      await assertInvalid(kv.batch([good, null as never]))
      await assertInvalid(kv.batch([]))
      await assertInvalid(kv.batch(undefined as never))
      assert.equal(await kv.get(near('a')), undefined)
    })

    test('of batches at once each is whole', async ({ kv, near }) => {
      const names = ['a', 'b', 'c', 'd']
      const writers = Array.from({ length: 20 }, (_, number) => kv.batch(names.map((name) => ({ put: near(name), value: `${number}` }))))
      const { results } = await kv.txn({ then: names.map((name) => ({ get: near(name) })) })
      assert.equal(new Set(results.map((entry) => entry && text((entry as KeyValue).value))).size, 1)
      await Promise.all(writers)
      const entries = await kv.getMany(names.map((name) => near(name)))
      assert.equal(new Set(entries.map((entry) => `${text(entry!.value)} ${entry!.version} ${entry!.revision}`)).size, 1)
      assert.equal(entries[0]!.version, 20)
    })
  })

  describe('limits of transactions', () => {
    test('as many conditions and operations as the limit, and no more', async ({ kv, near, maxBatchOperations }) => {
      if (maxBatchOperations === undefined) return
      const puts = (count: number): BatchOperation[] => Array.from({ length: count }, (_, at) => ({ put: near(`k${at}`), value: '' }))
      await kv.batch(puts(maxBatchOperations))
      assertEntry(await kv.get(near(`k${maxBatchOperations - 1}`)), '', 1)
      await assertInvalid(kv.batch(puts(maxBatchOperations + 1)), 'TOO_MANY_OPERATIONS')
      const part = Math.floor(maxBatchOperations / 3)
      const rest = maxBatchOperations - 2 * part
      const gets = (count: number): TxnOperation[] => Array.from({ length: count }, (_, at) => ({ get: near(`k${at}`) }))
      const compares = Array.from({ length: part }, (_, at) => ({ key: near(`k${at}`), version: 1 }))
      const { succeeded, results } = await kv.txn({ if: compares, then: gets(part), else: gets(rest) })
      assert.deepEqual([succeeded, results.length], [true, part])
      await assertInvalid(kv.txn({ if: compares, then: gets(part), else: gets(rest + 1) }), 'TOO_MANY_OPERATIONS')
    })

    test('as many bytes of keys and values as the limit, and no more', async ({ kv, near, maxValueBytes, maxBatchBytes }) => {
      if (maxBatchBytes === undefined) return
      const keyBytes = near('k0000').length
      const each = Math.min(maxValueBytes, maxBatchBytes - keyBytes)
      const full = Math.floor(maxBatchBytes / (each + keyBytes))
      const operations: BatchOperation[] = Array.from({ length: full }, (_, at) => ({
        put: near(`k${String(at).padStart(4, '0')}`),
        value: new Uint8Array(each).fill(at),
      }))
      const left = maxBatchBytes - full * (each + keyBytes) - near('last').length
      if (left >= 0) operations.push({ put: near('last'), value: new Uint8Array(left) })
      const { revision } = await kv.batch(operations)
      assert.equal((await kv.get(near('k0000')))?.revision, revision)
      await assertInvalid(kv.batch([...operations, { put: near('x'), value: '' }]), 'BATCH_TOO_LARGE')
      await assertInvalid(kv.txn({ if: [{ key: near('x'), absent: true }], else: operations }), 'BATCH_TOO_LARGE')
      assert.equal((await kv.get(near('k0000')))?.version, 1)
    })

    test('gets that find more than an answer may hold are refused, and what else the transaction wanted is not done', async (bench) => {
      const { kv, near, maxValueBytes, maxBatchOperations, maxResultBytes } = bench
      if (maxResultBytes === undefined || maxBatchOperations === undefined) return
      const value = new Uint8Array(Math.min(maxValueBytes, Math.floor(maxResultBytes / 3)))
      await kv.put(near('large'), value)
      const gets = (count: number): TxnOperation[] => Array.from({ length: count }, () => ({ get: near('large') }))
      const most = Math.floor(maxResultBytes / (value.length + 32))
      if (most + 2 > maxBatchOperations) return
      const { results } = await kv.txn({ then: gets(most) })
      assert.equal(results.length, most)
      const error = await failure(kv.txn({ then: [{ put: near('small'), value: '' }, ...gets(most + 1)] }))
      assert(error instanceof InvalidArgumentError && error.code === 'RESULT_TOO_LARGE', `${error}`)
      assert.equal(await kv.get(near('small')), undefined)
      // What the other branch would find counts for nothing.
      const other = await kv.txn({ if: [{ key: near('small'), absent: true }], then: [{ put: near('small'), value: '' }], else: gets(most + 1) })
      assert.equal(other.succeeded, true)
    })

    if (manifest.crossShard !== true) {
      test('keys of several shards are refused at the call', async ({ kv, key, near }) => {
        const keys = Array.from({ length: 40 }, (_, number) => key(`k${number}`))
        await assertInvalid(kv.batch(keys.map((each) => ({ put: each, value: '' }))), 'CROSS_SHARD')
        await assertInvalid(kv.txn({ if: keys.map((each) => ({ key: each, absent: true })) }), 'CROSS_SHARD')
        const results = await Promise.all(keys.map((each) => kv.txn({ then: [{ get: near('a') }], else: [{ get: each }] }).catch((error) => error)))
        assert(results.some((error) => error instanceof InvalidArgumentError && error.code === 'CROSS_SHARD'))
        const fenced = await Promise.all(keys.map((each) => kv.put(each, '', { fence: { key: near('a'), revision: 0 } }).catch((error) => error)))
        assert(fenced.some((error) => error instanceof InvalidArgumentError && error.code === 'CROSS_SHARD'))
      })
    }
  })

  describe('fences', () => {
    test('a write is done only while the last write of the key of its fence has the revision named', async ({ kv, near }) => {
      const { revision: first } = await kv.put(near('owner'), 'me')
      const mine = { fence: { key: near('owner'), revision: first } }
      await kv.put(near('k'), '1', mine)
      await kv.txn({ then: [{ put: near('k'), value: '2' }] }, mine)
      await kv.batch([{ put: near('k'), value: '3' }], mine)
      await kv.increment(near('k'), 1, mine)
      assert.equal((await kv.delete(near('none'), mine)).deleted, false)
      assertEntry(await kv.get(near('k')), '4', 4)
      const { revision: second } = await kv.put(near('owner'), 'somebody else')
      const stale: (() => Promise<unknown>)[] = [
        () => kv.put(near('k'), 'stale', mine),
        () => kv.delete(near('k'), mine),
        () => kv.txn({ then: [{ put: near('k'), value: 'stale' }] }, mine),
        () => kv.batch([{ delete: near('k') }], mine),
        () => kv.increment(near('k'), 1, mine),
        () => kv.update(near('k'), () => 'stale', mine),
        () => kv.getOrPut(near('new'), 'stale', mine),
      ]
      for (const write of stale) await assertFenced(write(), 2, second)
      await kv.delete(near('owner'))
      for (const write of stale) await assertFenced(write(), 0, 0)
      assertEntry(await kv.get(near('k')), '4', 4)
      assert.equal(await kv.get(near('new')), undefined)
      await kv.put(near('k'), 'free', { fence: { key: near('owner'), revision: 0 } })
    })

    test('a fence goes before conditions, and may be on the key itself', async ({ kv, near }) => {
      const { revision } = await kv.put(near('k'), '1')
      await assertFenced(kv.put(near('k'), 'x', { fence: { key: near('k'), revision: revision + 1 }, ifVersion: 7 }), 1, revision)
      const fence = { key: near('k'), revision }
      const error = await failure(kv.put(near('k'), 'x', { fence, ifVersion: 7 }))
      assert(error instanceof ConditionFailedError && error.code === 'CONDITION_FAILED', `${error}`)
      assert.equal((await kv.put(near('k'), '2', { fence, ifVersion: 1 })).version, 2)
    })

    test('a fence that is none is refused', async ({ kv, near }) => {
      for (const fence of [{}, { key: near('a') }, { revision: 1 }, { key: near('a'), revision: -1 }, { key: 7, revision: 1 }] as never[]) {
        await assertInvalid(kv.put(near('k'), '', { fence }))
        await assertInvalid(kv.batch([{ put: near('k'), value: '' }], { fence }))
      }
      assert.equal(await kv.get(near('k')), undefined)
    })
  })
}
