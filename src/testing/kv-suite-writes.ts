/** The KV suite's part on get, put, delete, conditions and getMany. */
import assert from 'node:assert/strict'
import { assertConditionFailed, assertEntry, type Declare, encoder, hex, text } from './kv-suite-bench.js'

export function declareWrites({ describe, test }: Declare): void {
  describe('get, put, delete', () => {
    test('an absent key reads as undefined', async ({ kv, key }) => {
      assert.equal(await kv.get(key('k')), undefined)
    })

    test('a put can be read, with the version and revision that it returned', async ({ kv, key }) => {
      const written = await kv.put(key('k'), 'v')
      assert.equal(written.version, 1)
      const entry = assertEntry(await kv.get(key('k')), 'v', 1)
      assert.equal(entry.revision, written.revision)
      assert.equal(hex(entry.key), hex(key('k')))
    })

    test('hazard K2: the version counts the writes since the key was created, equal values included', async ({ kv, key }) => {
      for (let version = 1; version <= 5; version++) assert.equal((await kv.put(key('k'), 'same')).version, version)
      assertEntry(await kv.get(key('k')), 'same', 5)
      await kv.delete(key('k'))
      assert.equal(await kv.get(key('k')), undefined)
      assert.equal((await kv.put(key('k'), 'again')).version, 1)
    })

    test('the revision rises with each write of a key, over deletion and creation', async ({ kv, key }) => {
      const revisions: number[] = []
      for (let round = 0; round < 4; round++) {
        revisions.push((await kv.put(key('k'), 'a')).revision, (await kv.put(key('k'), 'b')).revision, (await kv.delete(key('k'))).revision)
      }
      assert(revisions[0]! > 0)
      for (let at = 1; at < revisions.length; at++) assert(revisions[at]! > revisions[at - 1]!, `revisions ${revisions}`)
    })

    test('a delete says whether the key was there; of an absent key it changes nothing', async ({ kv, key }) => {
      await kv.put(key('k'), 'v')
      const first = await kv.delete(key('k'))
      assert.equal(first.deleted, true)
      const second = await kv.delete(key('k'))
      assert.equal(second.deleted, false)
      assert.equal(second.revision, first.revision)
    })

    test('strings are UTF-8, and bytes stay as they are', async ({ kv, key }) => {
      const values = [new Uint8Array(0), new Uint8Array([0]), new Uint8Array([0xff, 0xfe, 0x80, 0]), encoder.encode('grün 🦊')]
      for (const [number, value] of values.entries()) {
        await kv.put(key(`k${number}`), value)
        assertEntry(await kv.get(key(`k${number}`)), value, 1)
      }
      const name = text(key('schlüssel 🦊'))
      await kv.put(name, 'größe')
      assertEntry(await kv.get(encoder.encode(name)), encoder.encode('größe'), 1)
    })

    test('keys differ when their bytes do', async ({ kv, key }) => {
      const names = [
        'e\u0301',
        '\u00e9',
        'a',
        'A',
        'a\0',
        'a ',
        new Uint8Array([0xc3]),
        new Uint8Array([0xc3, 0]),
        new Uint8Array([0xff]),
        new Uint8Array([0xff, 0xff]),
      ]
      for (const [number, each] of names.entries()) await kv.put(key(each), `${number}`)
      for (const [number, each] of names.entries()) assertEntry(await kv.get(key(each)), `${number}`, 1)
    })

    test('shares no memory with its caller', async ({ kv, key }) => {
      const ownKey = key('k')
      const value = new Uint8Array([1, 2, 3])
      const put = kv.put(ownKey, value)
      value.fill(9)
      ownKey.fill(9)
      await put
      const read = assertEntry(await kv.get(key('k')), new Uint8Array([1, 2, 3]), 1)
      read.value.fill(7)
      assertEntry(await kv.get(key('k')), new Uint8Array([1, 2, 3]), 1)
    })

    test('50 puts at once count 50 versions, each with a revision of its own', async ({ kv, key }) => {
      const results = await Promise.all(Array.from({ length: 50 }, (_, number) => kv.put(key('k'), `${number}`)))
      const byVersion = results.sort((left, right) => left.version - right.version)
      assert.deepEqual(
        byVersion.map(({ version }) => version),
        Array.from({ length: 50 }, (_, number) => number + 1),
      )
      for (let at = 1; at < 50; at++) assert(byVersion[at]!.revision > byVersion[at - 1]!.revision)
    })
  })

  describe('conditions', () => {
    test('ifVersion 0 creates, once', async ({ kv, key }) => {
      const { revision } = await kv.put(key('k'), 'first', { ifVersion: 0 })
      await assertConditionFailed(kv.put(key('k'), 'second', { ifVersion: 0 }), 1, revision)
      assertEntry(await kv.get(key('k')), 'first', 1)
    })

    test('ifVersion writes only upon that version; what fails changes nothing, and says what is there', async ({ kv, key }) => {
      await kv.put(key('k'), 'a')
      const { version, revision } = await kv.put(key('k'), 'b', { ifVersion: 1 })
      assert.equal(version, 2)
      for (const ifVersion of [0, 1, 3]) await assertConditionFailed(kv.put(key('k'), 'x', { ifVersion }), 2, revision)
      const entry = assertEntry(await kv.get(key('k')), 'b', 2)
      assert.equal(entry.revision, revision)
      await assertConditionFailed(kv.put(key('absent'), 'x', { ifVersion: 1 }), 0, 0)
      assert.equal(await kv.get(key('absent')), undefined)
    })

    test('ifRevision tells a key from its earlier life, which ifVersion does not', async ({ kv, key }) => {
      const before = await kv.put(key('k'), 'old life', { ifRevision: 0 })
      await kv.delete(key('k'))
      const after = await kv.put(key('k'), 'new life')
      assert.equal(before.version, after.version)
      await assertConditionFailed(kv.put(key('k'), 'x', { ifRevision: before.revision }), 1, after.revision)
      await assertConditionFailed(kv.put(key('k'), 'x', { ifRevision: 0 }), 1, after.revision)
      assert.equal((await kv.put(key('k'), 'y', { ifRevision: after.revision })).version, 2)
    })

    test('both conditions must hold when both are given', async ({ kv, key }) => {
      const { revision } = await kv.put(key('k'), 'a')
      await assertConditionFailed(kv.put(key('k'), 'x', { ifVersion: 2, ifRevision: revision }), 1, revision)
      await assertConditionFailed(kv.put(key('k'), 'x', { ifVersion: 1, ifRevision: revision + 1 }), 1, revision)
      assert.equal((await kv.put(key('k'), 'b', { ifVersion: 1, ifRevision: revision })).version, 2)
    })

    test('a delete takes the same conditions', async ({ kv, key }) => {
      const { revision } = await kv.put(key('k'), 'a')
      await assertConditionFailed(kv.delete(key('k'), { ifVersion: 2 }), 1, revision)
      await assertConditionFailed(kv.delete(key('k'), { ifRevision: revision + 1 }), 1, revision)
      await assertConditionFailed(kv.delete(key('k'), { ifVersion: 0 }), 1, revision)
      assertEntry(await kv.get(key('k')), 'a', 1)
      assert.equal((await kv.delete(key('k'), { ifVersion: 1, ifRevision: revision })).deleted, true)
      await assertConditionFailed(kv.delete(key('k'), { ifVersion: 1 }), 0, 0)
      assert.equal((await kv.delete(key('k'), { ifVersion: 0 })).deleted, false)
    })

    test('of many writes upon one version exactly one succeeds', async ({ kv, key }) => {
      for (let version = 0; version < 5; version++) {
        const results = await Promise.allSettled(Array.from({ length: 20 }, (_, number) => kv.put(key('k'), `${number}`, { ifVersion: version })))
        const winners = results.flatMap((result, number) => (result.status === 'fulfilled' ? [number] : []))
        assert.equal(winners.length, 1)
        assertEntry(await kv.get(key('k')), `${winners[0]}`, version + 1)
      }
    })
  })

  describe('getMany', () => {
    test('gives the keys in the order asked, absent ones and repeats included', async ({ kv, key }) => {
      await kv.put(key('a'), '1')
      await kv.put(key('b'), '2')
      const found = await kv.getMany([key('b'), key('none'), key('a'), key('b')])
      assert.deepEqual(
        found.map((entry) => entry && text(entry.value)),
        ['2', undefined, '1', '2'],
      )
      assert.deepEqual(await kv.getMany([]), [])
    })

    test('reads a thousand keys', async ({ kv, key }) => {
      const keys = Array.from({ length: 1000 }, (_, number) => key(`k${number}`))
      await Promise.all(keys.map((each, number) => kv.put(each, `${number}`)))
      const found = await kv.getMany(keys)
      for (const [number, entry] of found.entries()) assertEntry(entry, `${number}`, 1)
    })
  })
}
