/** The KV suite's part on watches: ordered, unique, complete, resumable, with bookmarks, and compacted. */
import assert from 'node:assert/strict'
import { CompactedError, ConditionFailedError, InvalidArgumentError } from '../base/errors.js'
import type { Watch, WatchDelete, WatchEvent, WatchPut } from '../engine/kv.js'
import { type Bench, bytes, type Declare, failure, hex, type KvManifest, text } from './kv-suite-bench.js'
import { SeededRandom } from './seeded-random.js'

/** The next `count` writes, bookmarks left out. Leaves the watch open. */
export async function take(watch: Watch, count: number): Promise<(WatchPut | WatchDelete)[]> {
  const iterator = watch[Symbol.asyncIterator]()
  const events: (WatchPut | WatchDelete)[] = []
  while (events.length < count) {
    const { value, done } = await iterator.next()
    if (done === true) assert.fail(`the watch ended after ${events.length} of ${count} events`)
    if (value.type !== 'bookmark') events.push(value)
  }
  return events
}

/** An event as a text: `a=1` or `-a`. */
function brief({ key }: Bench, event: WatchEvent): string {
  if (event.type === 'bookmark') return 'bookmark'
  const name = text(event.key.subarray(key('').length))
  return event.type === 'put' ? `${name}=${text(event.value)}` : `-${name}`
}

async function takeBrief(bench: Bench, watch: Watch, count: number): Promise<string[]> {
  return (await take(watch, count)).map((event) => brief(bench, event))
}

/** Waits for a bookmark that says more than the watch's cursor says now. */
async function takeBookmark(watch: Watch): Promise<string> {
  for await (const event of { [Symbol.asyncIterator]: () => ({ next: watch[Symbol.asyncIterator]().next }) }) {
    if (event.type === 'bookmark') return event.cursor
    assert.fail(`a ${event.type} where a bookmark is expected`)
  }
  return assert.fail('the watch ended')
}

export function declareWatches({ describe, test }: Declare, manifest: KvManifest): void {
  const opened = async (bench: Bench, options: Parameters<Bench['kv']['watch']>[0] = { prefix: bench.key('') }): Promise<Watch> => {
    const watch = bench.kv.watch(options)
    await watch.ready
    return watch
  }

  describe('watch', () => {
    test('tells what is written to a key, with value, version and revision, and what is deleted', async (bench) => {
      const { kv, key } = bench
      await kv.put(key('k'), 'before')
      const watch = await opened(bench, { key: key('k') })
      const first = await kv.put(key('k'), 'one')
      const second = await kv.put(key('k'), '')
      const gone = await kv.delete(key('k'))
      const again = await kv.put(key('k'), 'two')
      const events = await take(watch, 4)
      assert.deepEqual(
        events.map((event) => brief(bench, event)),
        ['k=one', 'k=', '-k', 'k=two'],
      )
      assert.deepEqual(
        events.map(({ revision }) => revision),
        [first, second, gone, again].map(({ revision }) => revision),
      )
      assert.deepEqual(
        events.map((event) => (event.type === 'put' ? event.version : 0)),
        [2, 3, 0, 1],
      )
      assert(events.every(({ isLast, key: watched }) => isLast && hex(watched) === hex(key('k'))))
      await watch.close()
    })

    test('a watch of a key sees no other key, not even one that begins like it', async (bench) => {
      const { kv, key } = bench
      const watch = await opened(bench, { key: key('{s}k') })
      for (const other of ['{s}', '{s}j', '{s}k\0', '{s}kk', '{s}l']) await kv.put(key(other), other)
      await kv.put(key('{s}k'), 'mine')
      assert.deepEqual(await takeBrief(bench, watch, 1), ['{s}k=mine'])
      await watch.close()
    })

    test('tells every write of a range exactly once, over all shards, those of a key in order', async (bench) => {
      const { kv, key } = bench
      const watch = await opened(bench)
      const names = Array.from({ length: 60 }, (_, number) => `k${number}`)
      await Promise.all(
        names.map(async (name) => {
          for (const round of [1, 2, 3]) await kv.put(key(name), `${round}`)
          await kv.delete(key(name))
        }),
      )
      const events = await take(watch, names.length * 4)
      const byKey = new Map<string, string[]>()
      for (const event of events) {
        const name = text(event.key.subarray(key('').length))
        byKey.set(name, [...(byKey.get(name) ?? []), event.type === 'put' ? text(event.value) : 'deleted'])
      }
      for (const name of names) assert.deepEqual(byKey.get(name), ['1', '2', '3', 'deleted'], name)
      await watch.close()
    })

    test('takes every kind of bound', async (bench) => {
      const { kv, key } = bench
      const ranges = [
        [{ gte: key('b'), lt: key('d') }, ['b', 'c', 'cc']],
        [{ gt: key('b'), lte: key('d') }, ['c', 'cc', 'd']],
        [{ prefix: key('c') }, ['c', 'cc']],
        [{ prefix: key(''), gt: key('c') }, ['cc', 'd', 'e']],
      ] as const
      const watches = await Promise.all(ranges.map(([range]) => opened(bench, range)))
      for (const name of ['a', 'b', 'c', 'cc', 'd', 'e']) await kv.put(key(name), name)
      for (const [at, [, names]] of ranges.entries()) {
        const seen = await takeBrief(bench, watches[at]!, names.length)
        assert.deepEqual(
          seen.sort(),
          names.map((name) => `${name}=${name}`),
        )
        await watches[at]!.close()
      }
    })

    test('keys and values are bytes: text of any kind, zero bytes, and what is no text', async ({ kv, key }) => {
      const names = ['ä', '🦊', 'a\0b', new Uint8Array([0]), new Uint8Array([0xff, 0xfe]), new Uint8Array([0xc3, 0x28])]
      const watch = kv.watch({ prefix: key('') })
      await watch.ready
      for (const name of names) await kv.put(key(name), name)
      const events = await take(watch, names.length)
      const seen = events.map((event) => `${hex(event.key)} ${event.type === 'put' ? hex(event.value) : ''}`)
      assert.deepEqual(seen.sort(), names.map((name) => `${hex(key(name))} ${hex(bytes(name))}`).sort())
      await watch.close()
    })

    test('what changes nothing is no event: a delete of an absent key, a write whose condition fails', async (bench) => {
      const { kv, key } = bench
      await kv.put(key('{s}k'), 'v')
      const watch = await opened(bench)
      await kv.delete(key('{s}absent'))
      const failed = [
        kv.put(key('{s}k'), 'w', { ifVersion: 7 }),
        kv.delete(key('{s}k'), { ifVersion: 7 }),
        kv.put(key('{s}k'), 'w', { ifRevision: 0 }),
      ]
      for (const error of await Promise.all(failed.map(failure))) assert(error instanceof ConditionFailedError)
      await kv.put(key('{s}k'), 'last')
      assert.deepEqual(await takeBrief(bench, watch, 1), ['{s}k=last'])
      await watch.close()
    })

    test('goes on from the cursor after any event, without gap or repeat', async (bench) => {
      const { kv, key } = bench
      const first = await opened(bench)
      const start = first.cursor
      const names = ['{s}a', '{s}b', '{s}a', '{s}c', '{s}b']
      for (const [at, name] of names.entries()) await kv.put(key(name), `${at}`)
      const wanted = names.map((name, at) => `${name}=${at}`)
      const cursors = [start]
      for (const each of wanted) {
        assert.deepEqual(await takeBrief(bench, first, 1), [each])
        cursors.push(first.cursor)
      }
      await first.close()
      for (const [at, cursor] of cursors.entries()) {
        const resumed = bench.kv.watch({ prefix: key(''), cursor })
        await resumed.ready
        assert.equal(resumed.cursor, cursor)
        await kv.put(key('{s}z'), `resumed ${at}`)
        const before = Array.from({ length: at }, (_, each) => `{s}z=resumed ${each}`)
        const rest = [...wanted.slice(at), ...before, `{s}z=resumed ${at}`]
        assert.deepEqual(await takeBrief(bench, resumed, rest.length), rest)
        await resumed.close()
      }
    })

    test('a cursor serves any range within its own', async (bench) => {
      const { kv, key } = bench
      const all = await opened(bench)
      const { cursor } = all
      await all.close()
      for (const name of ['a', 'b', 'c']) await kv.put(key(name), name)
      const one = kv.watch({ key: key('b'), cursor })
      assert.deepEqual(await takeBrief(bench, one, 1), ['b=b'])
      const narrow = one.cursor
      await one.close()
      const rest = kv.watch({ key: key('b'), cursor: narrow })
      await kv.put(key('b'), 'again')
      assert.deepEqual(await takeBrief(bench, rest, 1), ['b=again'])
      await rest.close()
    })

    test('bookmarks say how far it is, though nothing in the range was written', async (bench) => {
      const { kv, key } = bench
      const watch = kv.watch({ key: key('{s}k'), bookmarks: true })
      await watch.ready
      const start = watch.cursor
      for (let round = 0; round < 3; round++) await kv.put(key('{s}other'), `${round}`)
      let cursor = start
      // The first ones may be of before those writes.
      while (cursor === start) cursor = await takeBookmark(watch)
      assert.equal(watch.cursor, cursor)
      await watch.close()
      const resumed = kv.watch({ prefix: key('{s}'), cursor })
      await kv.put(key('{s}k'), 'now')
      const seen: string[] = []
      while (!seen.includes('{s}k=now')) seen.push(...(await takeBrief(bench, resumed, 1)))
      assert(seen.length < 4, 'the bookmark has left writes behind it')
      await resumed.close()
    })

    test('a copy made by a scan and a watch that began before it misses nothing', async (bench) => {
      const { kv, key } = bench
      const random = new SeededRandom(7, 'copy')
      const copy = new Map<string, { value: string; revision: number }>()
      const writing = (async () => {
        for (let round = 0; round < 150; round++) {
          const name = key(`k${random.integer(0, 9)}`)
          if (random.chance(0.2)) await kv.delete(name)
          else await kv.put(name, `${round}`)
        }
        await kv.put(key('end'), 'end')
      })()
      const watch = await opened(bench)
      for await (const { key: name, value, revision } of kv.scan({ prefix: key('') })) copy.set(hex(name), { value: text(value), revision })
      await writing
      // The last write of each shard is told at the latest when a later one of the same shard is: so one more of each key.
      const names = [...Array.from({ length: 10 }, (_, number) => `k${number}`), 'end']
      for (const name of names) await kv.put(key(name), 'final')
      for (let left = names.length; left > 0; ) {
        const [event] = (await take(watch, 1)) as [WatchPut | WatchDelete]
        if (event.type === 'put' && text(event.value) === 'final') left--
        if (event.revision <= (copy.get(hex(event.key))?.revision ?? 0)) continue
        if (event.type === 'put') copy.set(hex(event.key), { value: text(event.value), revision: event.revision })
        else copy.delete(hex(event.key))
      }
      await watch.close()
      const present = new Map<string, { value: string; revision: number }>()
      for await (const { key: name, value, revision } of kv.scan({ prefix: key('') })) present.set(hex(name), { value: text(value), revision })
      assert.deepEqual(new Map([...copy].sort()), new Map([...present].sort()))
    })

    test('a consumer may be slow: large values come in pages, nothing is left out', async (bench) => {
      const { kv, key, maxValueBytes } = bench
      const watch = await opened(bench)
      const size = Math.min(maxValueBytes, manifest.boundedHistory === true ? 2000 : 100_000)
      const count = 60
      await Promise.all(Array.from({ length: count }, (_, number) => kv.put(key(`k${number}`), new Uint8Array(size).fill(number))))
      const seen = new Set<number>()
      for (const event of await take(watch, count)) {
        assert(event.type === 'put' && event.value.length === size && event.value.every((byte) => byte === event.value[0]))
        seen.add(event.value[0]!)
      }
      assert.equal(seen.size, count)
      await watch.close()
    })

    test('watches do not disturb each other, and many may watch one key', async (bench) => {
      const { kv, key } = bench
      const watches = await Promise.all(Array.from({ length: 20 }, (_, number) => opened(bench, { key: key(number % 2 === 0 ? 'even' : 'odd') })))
      await kv.put(key('even'), '0')
      await kv.put(key('odd'), '1')
      for (const [at, watch] of watches.entries()) assert.deepEqual(await takeBrief(bench, watch, 1), [at % 2 === 0 ? 'even=0' : 'odd=1'])
      await watches[0]!.close()
      await kv.put(key('even'), '2')
      assert.deepEqual(await takeBrief(bench, watches[2]!, 1), ['even=2'])
      for (const watch of watches) await watch.close()
    })

    test('ends by `close`, by leaving the loop, and by its signal with its reason', async (bench) => {
      const { kv, key } = bench
      const closed = await opened(bench)
      const waiting = closed[Symbol.asyncIterator]().next()
      await closed.close()
      assert.equal((await waiting).done, true)
      assert.equal((await closed[Symbol.asyncIterator]().next()).done, true)
      await closed.close()

      const left = await opened(bench)
      await kv.put(key('k'), 'v')
      for await (const event of left) {
        assert.equal(brief(bench, event), 'k=v')
        break
      }
      assert.equal((await left[Symbol.asyncIterator]().next()).done, true)

      const reason = new Error('no longer wanted')
      const controller = new AbortController()
      const aborted = await opened(bench, { prefix: key(''), signal: controller.signal })
      const next = failure(aborted[Symbol.asyncIterator]().next())
      controller.abort(reason)
      assert.equal(await next, reason)
      const late = kv.watch({ prefix: key(''), signal: controller.signal })
      assert.equal(await failure(late.ready), reason)
      assert.equal(await failure(late[Symbol.asyncIterator]().next()), reason)
    })

    test('what makes no sense is refused at the call', async (bench) => {
      const { kv, key, maxKeyBytes } = bench
      const watch = await opened(bench)
      const { cursor } = watch
      await watch.close()
      const damaged = `${cursor.slice(0, 9)}${cursor[9] === 'A' ? 'B' : 'A'}${cursor.slice(10)}`
      const refusals = [
        [{ key: '' }, 'EMPTY_KEY'],
        [{ key: new Uint8Array(maxKeyBytes + 1) }, 'KEY_TOO_LARGE'],
        [{ key: 1 }, 'INVALID_ARGUMENT'],
        [{ prefix: 1 }, 'INVALID_ARGUMENT'],
        [{ key: 'k', prefix: 'k' }, 'INVALID_ARGUMENT'],
        [{ cursor: 1 }, 'INVALID_ARGUMENT'],
        [{ cursor: '' }, 'BAD_CURSOR'],
        [{ cursor: 'anything' }, 'BAD_CURSOR'],
        [{ cursor: damaged }, 'BAD_CURSOR'],
        [{ cursor: cursor.slice(0, -1) }, 'BAD_CURSOR'],
        [{ cursor: `${cursor}A` }, 'BAD_CURSOR'],
        [{ cursor: `${cursor} ` }, 'BAD_CURSOR'],
      ] as [never, string][]
      for (const [options, code] of refusals) {
        assert.throws(
          () => kv.watch(options),
          (error) => error instanceof InvalidArgumentError && error.code === code,
          JSON.stringify(options),
        )
      }
      const good = kv.watch({ key: key('k'), cursor })
      await good.close()
    })

    test('the events of a transaction come together, and no cursor is between them', async (bench) => {
      const { kv, key } = bench
      const watch = await opened(bench)
      await kv.put(key('{s}c'), '0')
      const { revision } = await kv.batch([{ put: key('{s}a'), value: '1' }, { put: key('{s}b'), value: '2' }, { delete: key('{s}c') }])
      assert.deepEqual(await takeBrief(bench, watch, 1), ['{s}c=0'])
      const before = watch.cursor
      const [first] = await take(watch, 1)
      assert.equal(first?.isLast, false)
      assert.equal(watch.cursor, before)
      const rest = await take(watch, 2)
      assert.deepEqual(
        [first!, ...rest].map((event) => [brief(bench, event), event.revision, event.isLast]),
        [
          ['{s}a=1', revision, false],
          ['{s}b=2', revision, false],
          ['-{s}c', revision, true],
        ],
      )
      assert.notEqual(watch.cursor, before)
      await watch.close()
      const again = kv.watch({ prefix: key(''), cursor: before })
      assert.deepEqual(await takeBrief(bench, again, 3), ['{s}a=1', '{s}b=2', '-{s}c'])
      await again.close()
    })

    test('each key that a transaction changes gives one event, whatever happened to it in between', async (bench) => {
      const { kv, key } = bench
      await kv.put(key('{s}gone'), 'v')
      const watch = await opened(bench)
      await kv.batch([
        { put: key('{s}a'), value: '1' },
        { put: key('{s}a'), value: '2' },
        { put: key('{s}b'), value: '1' },
        { delete: key('{s}b') },
        { delete: key('{s}gone') },
        { put: key('{s}gone'), value: 'back' },
      ])
      await kv.txn({ if: [{ key: key('{s}a'), value: 'x' }], then: [{ delete: key('{s}a') }], else: [{ get: key('{s}a') }] })
      await kv.increment(key('{s}n'), 5)
      const events = await take(watch, 3)
      assert.deepEqual(
        events
          .slice(0, 2)
          .map((event) => brief(bench, event))
          .sort(),
        ['{s}a=2', '{s}gone=back'],
      )
      assert.deepEqual(
        events.slice(0, 2).map(({ revision }) => revision),
        [events[0]?.revision, events[0]?.revision],
      )
      assert.equal(brief(bench, events[2]!), '{s}n=5')
      await watch.close()
    })

    if (manifest.boundedHistory) {
      test('a cursor from before the history is told so, with the oldest cursor that there is', async (bench) => {
        const { kv, key, maxValueBytes } = bench
        const watch = await opened(bench, { key: key('{s}k') })
        const { cursor } = watch
        await watch.close()
        const value = new Uint8Array(Math.min(maxValueBytes, 16_384))
        let error: unknown
        for (let round = 0; error === undefined; round++) {
          assert(round < 300, 'the history has no bound')
          for (let each = 0; each < 20; each++) await kv.put(key('{s}other'), value)
          const old = kv.watch({ key: key('{s}k'), cursor, bookmarks: true })
          // A bookmark says that all is there still.
          error = await old[Symbol.asyncIterator]()
            .next()
            .then(
              () => undefined,
              (thrown: unknown) => thrown,
            )
          await old.close()
        }
        assert(error instanceof CompactedError, `CompactedError expected, got ${error}`)
        assert.equal(error.code, 'COMPACTED')
        assert.equal(error.retryable, false)
        const { oldest } = error
        const resumed = kv.watch({ key: key('{s}k'), cursor: oldest, bookmarks: true })
        await takeBookmark(resumed)
        await kv.put(key('{s}k'), 'after')
        assert.deepEqual(await takeBrief(bench, resumed, 1), ['{s}k=after'])
        await resumed.close()
      })
    }

    if (manifest.manyClients && manifest.cut) {
      test('what is written while it is cut off is told afterwards', async (bench) => {
        const { kv, key } = bench
        const other = await bench.another()
        const watch = await opened(bench)
        await kv.put(key('{s}k'), 'before')
        assert.deepEqual(await takeBrief(bench, watch, 1), ['{s}k=before'])
        bench.cutOff()
        for (const name of ['{s}a', '{s}b', '{s}a']) await other.put(key(name), 'meanwhile')
        bench.reconnect()
        await other.put(key('{s}k'), 'after')
        assert.deepEqual(await takeBrief(bench, watch, 4), ['{s}a=meanwhile', '{s}b=meanwhile', '{s}a=meanwhile', '{s}k=after'])
        await watch.close()
      })
    }
  })
}
