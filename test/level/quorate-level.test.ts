/** What quorate/level promises beyond what abstract-level's suite looks at: where the keys are, what is atomic, errors, and that it goes on after them. */
import { expect } from 'chai'
import { systemRuntime } from '../../src/base/runtime.js'
import { ClosedError, ConditionFailedError, InvalidArgumentError, OutcomeUnknownError, openLocal, UnavailableError } from '../../src/index.js'
import { LevelError, QuorateLevel } from '../../src/level/index.js'
import { ModelKV } from '../../src/testing/model-kv.js'
import { ModelStore } from '../../src/testing/model-store.js'
import { withFolder } from '../support/folders.js'

function model(): ModelKV {
  return new ModelKV({ runtime: systemRuntime, store: new ModelStore(), requestTimeoutMs: 1000 })
}

async function failure(promise: Promise<unknown>): Promise<LevelError> {
  const error = await promise.then(
    () => expect.fail('should have failed'),
    (reason: unknown) => reason,
  )
  expect(error).to.be.instanceOf(Error)
  return error as LevelError
}

async function keysOf(kv: ModelKV): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of kv.scan()) keys.push(Buffer.from(key).toString())
  return keys
}

describe('a database of quorate/level', () => {
  it('keeps all of its keys, those of sublevels too, under its prefix, and touches nothing else', async () => {
    const kv = model()
    for (const key of ['{a', '{a}', '{b}1', 'z']) await kv.put(key, 'not ours')
    const db = new QuorateLevel(kv, { prefix: '{a}:' })
    await db.put('1', 'one')
    await db.sublevel('sub').put('2', 'two')
    expect(await keysOf(kv)).to.deep.equal(['z', '{a', '{a}', '{a}:!sub!2', '{a}:1', '{b}1'])
    expect(await db.keys().all()).to.deep.equal(['!sub!2', '1'])
    await db.clear()
    expect(await keysOf(kv)).to.deep.equal(['z', '{a', '{a}', '{b}1'])
    const other = new QuorateLevel(kv, { prefix: '{b}' })
    expect(await other.iterator({ reverse: true }).all()).to.deep.equal([['1', 'not ours']])
    await other.close()
    await db.close()
    expect(Buffer.from((await kv.get('z'))!.value).toString(), 'the store stays open').to.equal('not ours')
  })

  it('refuses a prefix that does not fit its layout', () => {
    const kv = model()
    for (const options of [
      { prefix: '' },
      { prefix: 'orders/' },
      { prefix: 'orders{}' },
      { prefix: '{orders' },
      { prefix: '', spread: true },
      { prefix: '{orders}', spread: true },
      { crossShardBatch: 'maybe' },
      { waitFor: 'godot' },
    ]) {
      const make = () => new QuorateLevel(kv, { ...(options as object), waitFor: 'nothing', ...(options as { waitFor?: 'nothing' }) })
      expect(make, JSON.stringify(options)).to.throw(InvalidArgumentError)
    }
    for (const options of [{}, { prefix: 'x{orders}y' }, { spread: true }, { prefix: 'orders/', spread: true }]) new QuorateLevel(kv, options)
  })

  it('writes a batch in one shard as one: all of it has one revision, sublevels and chained batches too', async () => {
    const kv = model()
    const db = new QuorateLevel(kv, { prefix: '{a}' })
    const index = db.sublevel('index')
    await db.batch([
      { type: 'put', key: '1', value: 'one' },
      { type: 'put', sublevel: index, key: 'one', value: '1' },
    ])
    const revisions = async () => (await kv.getMany(['{a}1', '{a}!index!one'])).map((entry) => entry?.revision)
    expect(await revisions()).to.deep.equal([1, 1])
    await db.batch().put('1', 'uno').del('one', { sublevel: index }).put('1', 'eins').write()
    expect(await revisions()).to.deep.equal([2, undefined])
    expect(await db.get('1')).to.equal('eins')
    await db.close()
  })

  const far = Array.from({ length: 50 }, (_, at) => ({ type: 'put', key: `key ${at}`, value: 'value' }) as const)

  it('refuses a batch over several shards, with nothing written, and splits it when told to', async () => {
    const kv = model()
    const db = new QuorateLevel(kv, { prefix: 'a/', spread: true })
    const error = await failure(db.batch([...far]))
    expect(error).to.be.instanceOf(LevelError)
    expect(error).to.include({ code: 'LEVEL_NOT_SUPPORTED', transient: false })
    expect(error.cause).to.include({ code: 'CROSS_SHARD' })
    expect(await db.keys().all()).to.deep.equal([])
    await db.batch([
      { type: 'put', key: '{t}1', value: 'value' },
      { type: 'put', key: '{t}2', value: 'value' },
    ])
    expect((await kv.getMany(['a/{t}1', 'a/{t}2'])).map((entry) => entry?.revision)).to.deep.equal([1, 1])
    const split = new QuorateLevel(kv, { prefix: 'a/', spread: true, crossShardBatch: 'split' })
    await split.batch([
      ...far,
      { type: 'del', key: 'key 7' },
      { type: 'put', key: '{t}1', value: 'new' },
      { type: 'del', key: '{t}2' },
      { type: 'put', key: '{t}3', value: 'new' },
    ])
    expect(await split.keys().all()).to.have.length(far.length - 1 + 2)
    expect(await split.getMany(['key 7', 'key 8', '{t}1', '{t}2'])).to.deep.equal([undefined, 'value', 'new', undefined])
    const [first, third] = await kv.getMany(['a/{t}1', 'a/{t}3'])
    expect(first!.revision).to.equal(third!.revision)
    await Promise.all([db.close(), split.close()])
  })

  it('passes the store’s own options on, and has defaults for them', async () => {
    const kv = model()
    const asked: unknown[] = []
    const { get } = kv
    kv.get = (key, options) => {
      asked.push(options?.consistency)
      return get.call(kv, key, options)
    }
    const db = new QuorateLevel<string, string>(kv, { prefix: '{a}', consistency: 'lease', timeoutMs: 500, waitFor: 'nothing' })
    await db.put('key', 'value')
    await db.get('key')
    await db.get('key', { consistency: 'stale' })
    await db.sublevel('sub').get('key', { consistency: 'stale' } as object)
    expect(asked).to.deep.equal(['lease', 'stale', 'stale'])
    const refused = await failure(db.put('key', 'other', { ifVersion: 7 }))
    expect(refused).to.include({ code: 'LEVEL_REMOTE_ERROR', transient: false })
    expect(refused.cause).to.be.instanceOf(ConditionFailedError)
    await db.put('key', 'other', { ifVersion: 1 })
    expect(await db.get('key')).to.equal('other')
    await db.close()
  })

  it('gives errors the codes of abstract-level, with the store’s own as the cause', async () => {
    const kv = new ModelKV({ runtime: systemRuntime, store: new ModelStore(), maxKeyBytes: 20, maxValueBytes: 20 })
    const db = new QuorateLevel<string, string>(kv, { prefix: '{a}' })
    await db.open()
    expect(await failure(db.put('k'.repeat(30), ''))).to.include({ code: 'LEVEL_INVALID_KEY', transient: false })
    expect(await failure(db.put('k', 'v'.repeat(30)))).to.include({ code: 'LEVEL_INVALID_VALUE', transient: false })
    const reason = new Error('no longer wanted')
    const aborted = await failure(db.get('k', { signal: AbortSignal.abort(reason) }))
    expect(aborted).to.include({ code: 'LEVEL_ABORTED', name: 'AbortError', cause: reason })
    kv.cut = 'both'
    const late = await failure(db.get('k', { timeoutMs: 20 }))
    expect(late).to.include({ code: 'LEVEL_CONNECTION_LOST', transient: true })
    expect(late.cause).to.be.instanceOf(UnavailableError)
    const doubtful = await failure(db.put('k', 'v', { timeoutMs: 20 }))
    expect(doubtful).to.include({ code: 'LEVEL_REMOTE_ERROR', transient: false })
    expect(doubtful.cause).to.be.instanceOf(OutcomeUnknownError)
    const controller = new AbortController()
    const iterator = db.iterator({ signal: controller.signal })
    const next = failure(iterator.next())
    controller.abort()
    expect(await next).to.include({ code: 'LEVEL_ABORTED' })
    kv.cut = 'none'
    await db.close()
  })

  it('does not open while the store cannot serve, says why, and opens later', async () => {
    const kv = model()
    kv.cut = 'both'
    const db = new QuorateLevel<string, string>(kv, { timeoutMs: 20 })
    const deferred = failure(db.get('key'))
    const error = await failure(db.open())
    expect(error).to.include({ code: 'LEVEL_DATABASE_NOT_OPEN' })
    expect(error.cause).to.be.instanceOf(UnavailableError)
    expect(await deferred).to.include({ code: 'LEVEL_DATABASE_NOT_OPEN' })
    const carefree = new QuorateLevel(kv, { waitFor: 'nothing' })
    await carefree.open()
    await carefree.close()
    kv.cut = 'none'
    await db.open()
    await db.put('key', 'value')
    await db.close()
    await db.open()
    expect(await db.get('key')).to.equal('value')
    await db.close()
  })

  for (const reverse of [false, true]) {
    it(`an iterator goes on behind what it gave after an error, without gap or repeat${reverse ? ', backwards' : ''}`, async () => {
      const kv = model()
      const db = new QuorateLevel<string, string>(kv, { prefix: '{a}' })
      const keys = Array.from({ length: 3000 }, (_, at) => String(at).padStart(4, '0'))
      for (let at = 0; at < keys.length; at += 1000) await db.batch(keys.slice(at, at + 1000).map((key) => ({ type: 'put', key, value: key })))
      const iterator = db.iterator({ reverse, gte: '0002', lt: '2990', timeoutMs: 200 })
      const found: string[] = []
      let failures = 0
      for (;;) {
        if (found.length === 700 && failures === 0) kv.cut = 'both'
        try {
          const entries = await iterator.nextv(100)
          if (entries.length === 0) break
          found.push(...entries.map(([key]) => key))
        } catch (error) {
          expect(error).to.include({ code: 'LEVEL_CONNECTION_LOST', transient: true })
          failures++
          kv.cut = 'none'
        }
      }
      expect(failures).to.equal(1)
      const expected = keys.slice(2, 2990)
      expect(found).to.deep.equal(reverse ? expected.reverse() : expected)
      await db.close()
    })
  }

  it('seeks within its range only, and counts towards its limit what it gave before', async () => {
    const db = new QuorateLevel<string, string>(model(), { prefix: '{a}' })
    await db.batch(['a', 'b', 'c', 'd', 'e'].map((key) => ({ type: 'put', key, value: key })))
    const iterator = db.keys({ gt: 'a', lte: 'd', limit: 3 })
    expect(await iterator.next()).to.equal('b')
    for (const outside of ['a', 'e']) {
      iterator.seek(outside)
      expect(await iterator.next()).to.equal(undefined)
    }
    iterator.seek('d')
    expect(await iterator.next()).to.equal('d')
    iterator.seek('b')
    expect(await iterator.all()).to.deep.equal(['b'])
    const backwards = db.keys({ reverse: true })
    backwards.seek('cc')
    expect(await backwards.nextv(2)).to.deep.equal(['c', 'b'])
    await backwards.close()
    await db.close()
  })

  it('closes when what is under way is done, and a closed store is told as such', async () => {
    const kv = model()
    const db = new QuorateLevel<string, string>(kv, { timeoutMs: 5000 })
    await db.open()
    kv.cut = 'both'
    let isClosed = false
    const write = db.put('key', 'value')
    const closed = db.close().then(() => {
      isClosed = true
    })
    await new Promise((resolve) => setImmediate(resolve))
    expect(isClosed).to.equal(false)
    kv.cut = 'none'
    await Promise.all([write, closed])
  })

  it('is told of wrong options, and that the store below was closed', () =>
    withFolder(async (location) => {
      const store = await openLocal({ location })
      const db = new QuorateLevel<string, string>(store.kv)
      await db.put('key', 'value')
      const wrong = await failure(db.get('key', { consistency: 'eventual' as 'stale' }))
      expect(wrong).to.be.instanceOf(TypeError)
      expect(wrong.cause).to.be.instanceOf(InvalidArgumentError)
      await store.close()
      const error = await failure(db.get('key'))
      expect(error).to.include({ code: 'LEVEL_DATABASE_NOT_OPEN', transient: false })
      expect(error.cause).to.be.instanceOf(ClosedError)
      await db.close()
    }))

  it('says of itself what is true', () => {
    const { supports } = new QuorateLevel(model())
    expect(supports).to.include({
      implicitSnapshots: false,
      snapshots: false,
      explicitSnapshots: false,
      permanence: true,
      has: true,
      seek: true,
      deferredOpen: true,
    })
    expect(supports).to.include({ getSync: false, createIfMissing: false, errorIfExists: false })
    expect(supports.signals).to.deep.equal({ iterators: true })
  })
})
