/** The KV suite's part on scans. */
import assert from 'node:assert/strict'
import { assertEntry, type Bench, collect, type Declare, hex, text } from './kv-suite-bench.js'

export function declareScans({ describe, test }: Declare): void {
  describe('scan', () => {
    const letters = async ({ kv, key }: Bench) => {
      for (const letter of ['d', 'b', 'a', 'e', 'c']) await kv.put(key(letter), letter.toUpperCase())
    }

    test('gives all entries in key order, with value, version and revision', async (bench) => {
      await letters(bench)
      const { revision } = await bench.kv.put(bench.key('c'), 'C2')
      assert.deepEqual(await bench.scan(), ['a', 'b', 'c', 'd', 'e'])
      const [entry] = await collect(bench.kv.scan({ gte: bench.key('c'), lte: bench.key('c') }))
      assert.equal(assertEntry(entry, 'C2', 2).revision, revision)
    })

    test('takes every kind of bound, on keys and between them', async (bench) => {
      await letters(bench)
      const { scan, key } = bench
      assert.deepEqual(await scan({ gt: key('b') }), ['c', 'd', 'e'])
      assert.deepEqual(await scan({ gte: key('b') }), ['b', 'c', 'd', 'e'])
      assert.deepEqual(await scan({ lt: key('d') }), ['a', 'b', 'c'])
      assert.deepEqual(await scan({ lte: key('d') }), ['a', 'b', 'c', 'd'])
      assert.deepEqual(await scan({ gt: key('a'), lt: key('e') }), ['b', 'c', 'd'])
      assert.deepEqual(await scan({ gte: key('bb'), lte: key('dd') }), ['c', 'd'])
      assert.deepEqual(await scan({ gt: key('b'), gte: key('a') }), ['c', 'd', 'e'])
      assert.deepEqual(await scan({ lt: key('d'), lte: key('e') }), ['a', 'b', 'c'])
      assert.deepEqual(await scan({ gt: key('c'), lt: key('c') }), [])
      assert.deepEqual(await scan({ gte: key('d'), lt: key('b') }), [])
      assert.deepEqual(await scan({ prefix: key('c'), gte: key('a') }), ['c'])
      assert.deepEqual(await scan({ prefix: key('c'), gt: key('c') }), [])
    })

    test('goes backwards, and stops at the limit', async (bench) => {
      await letters(bench)
      const { scan, key } = bench
      assert.deepEqual(await scan({ reverse: true }), ['e', 'd', 'c', 'b', 'a'])
      assert.deepEqual(await scan({ reverse: true, gte: key('b'), lt: key('e') }), ['d', 'c', 'b'])
      assert.deepEqual(await scan({ limit: 2 }), ['a', 'b'])
      assert.deepEqual(await scan({ limit: 2, reverse: true }), ['e', 'd'])
      assert.deepEqual(await scan({ limit: 0 }), [])
      assert.deepEqual(await scan({ limit: 100 }), ['a', 'b', 'c', 'd', 'e'])
      assert.deepEqual(await scan({ limit: 1, gt: key('c') }), ['d'])
    })

    test('the order is that of the bytes: not of UTF-16 units, nor of any language', async ({ kv, key, scan }) => {
      const names = ['', '\0', 'B', 'a', 'aa', 'b', 'ä', '\uff5e', '🦊'].map((each) => `x${each}`)
      for (const each of [...names].reverse()) await kv.put(key(each), '')
      assert.deepEqual(await scan(), names)
      const raw = [[0x00], [0x7f], [0x80], [0xff], [0xff, 0x00], [0xff, 0xff]].map((each) => new Uint8Array([0x79, ...each]))
      for (const each of [...raw].reverse()) await kv.put(key(each), '')
      const found = await collect(kv.scan({ prefix: key('y') }))
      assert.deepEqual(
        found.map((entry) => hex(entry.key)),
        raw.map((each) => hex(key(each))),
      )
    })

    test('a prefix that ends in 0xff has an end', async ({ kv, key }) => {
      const names = [[0xfe], [0xff], [0xff, 0], [0xff, 0xff], [0xff, 0xff, 1]].map((each) => new Uint8Array(each))
      for (const each of names) await kv.put(key(each), '')
      const found = await collect(kv.scan({ prefix: key(new Uint8Array([0xff, 0xff])) }))
      assert.deepEqual(
        found.map((entry) => hex(entry.key)),
        names.slice(3).map((each) => hex(key(each))),
      )
      assert.equal((await collect(kv.scan({ prefix: new Uint8Array([0xff, 0xff, 0xff, 0xff]) }))).length, 0)
    })

    test('goes on over many pages, forwards and backwards, each key once', async ({ kv, key, scan }) => {
      const names = Array.from({ length: 2500 }, (_, number) => `k${String(number).padStart(5, '0')}`)
      await Promise.all(names.map((each) => kv.put(key(each), each)))
      assert.deepEqual(await scan(), names)
      assert.deepEqual(await scan({ reverse: true }), [...names].reverse())
      assert.deepEqual(await scan({ gte: key('k01000'), limit: 1200 }), names.slice(1000, 2200))
    })

    test('leaves out what was deleted', async (bench) => {
      await letters(bench)
      await bench.kv.delete(bench.key('b'))
      await bench.kv.delete(bench.key('d'))
      assert.deepEqual(await bench.scan(), ['a', 'c', 'e'])
    })

    test('may be left early', async (bench) => {
      await letters(bench)
      const seen: string[] = []
      for await (const entry of bench.kv.scan({ prefix: bench.key('') })) {
        seen.push(text(entry.value))
        if (seen.length === 2) break
      }
      assert.deepEqual(seen, ['A', 'B'])
      assert.deepEqual(await bench.scan(), ['a', 'b', 'c', 'd', 'e'])
    })

    test('sees what was written before it began, and, of keys ahead, what is written while it is consumed or not', async (bench) => {
      await letters(bench)
      const seen: string[] = []
      for await (const entry of bench.kv.scan({ prefix: bench.key('') })) {
        seen.push(text(entry.key.subarray(bench.key('').length)))
        if (seen.length === 1) await bench.kv.put(bench.key('z'), 'late')
      }
      assert.deepEqual(
        seen.filter((each) => each !== 'z'),
        ['a', 'b', 'c', 'd', 'e'],
      )
      assert.deepEqual(await bench.scan({ gt: bench.key('e') }), ['z'])
    })
  })
}
