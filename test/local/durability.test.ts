/** What a store without replication promises of its disk: group commit, nothing shown that a crash could take back, a failed write is final, and what a crash or a careless hand leaves. */
import { cp, mkdir, open, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { type Database, type DatabaseBatch, openLevel } from '../../src/engine/database.js'
import {
  ClosedError,
  CorruptionError,
  InvalidArgumentError,
  type LocalStore,
  OutcomeUnknownError,
  openLocal,
  openNode,
  QuorateError,
  RefusedError,
} from '../../src/index.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { MemoryNetwork } from '../../src/transport/memory.js'
import { CrashBudget, crashAfter } from '../engine/support/crashing-database.js'
import { DiskGate, turns } from '../engine/support/engine-fixture.js'
import { withFolder } from '../support/folders.js'
import { newSeed } from '../support/seed.js'

/** Counts the writes of a database, holds them back, or makes them fail. */
class Disk {
  readonly gate = new DiskGate()
  writes = 0

  readonly open = async (location: string, options: Parameters<typeof openLevel>[1]): Promise<Database> => {
    const database = await openLevel(location, options)
    const gated = (batch: DatabaseBatch): DatabaseBatch => ({
      put: (key, value) => batch.put(key, value),
      del: (key) => batch.del(key),
      write: async ({ sync }) => {
        expect(sync, 'every write is synced').to.equal(true)
        this.writes++
        await this.gate.pass()
        await batch.write({ sync })
      },
    })
    return { ...database, batch: () => gated(database.batch()) }
  }
}

async function withDisk(run: (store: LocalStore, disk: Disk, location: string) => Promise<void>): Promise<void> {
  await withFolder(async (location) => {
    const disk = new Disk()
    const store = await openLocal({ location, openDatabase: disk.open })
    try {
      await run(store, disk, location)
    } finally {
      disk.gate.open()
      await store.close()
    }
  })
}

const settled = async (promise: Promise<unknown>): Promise<boolean> => {
  let isSettled = false
  const note = () => {
    isSettled = true
  }
  promise.then(note, note)
  await turns(20)
  return isSettled
}

const text = (entry: { value: Uint8Array } | undefined) => entry && Buffer.from(entry.value).toString()

describe('a local store and its disk', () => {
  it('writes of the same moment share one fsync, and those that come meanwhile the next', () =>
    withDisk(async ({ kv }, disk) => {
      disk.writes = 0
      await Promise.all(Array.from({ length: 100 }, (_, at) => kv.put(`key-${at}`, 'value')))
      expect(disk.writes).to.equal(1)
      disk.gate.close()
      const first = kv.put('first', '1')
      await turns(5)
      const rest = Array.from({ length: 50 }, (_, at) => kv.put(`rest-${at}`, 'value'))
      await turns(5)
      expect(disk.writes).to.equal(2)
      disk.gate.open()
      await Promise.all([first, ...rest])
      expect(disk.writes).to.equal(3)
    }))

  for (const consistency of ['linearizable', 'lease', 'stale'] as const) {
    it(`a ${consistency} read shows nothing that is not on the disk yet: it waits for it`, () =>
      withDisk(async ({ kv }, disk) => {
        await kv.put('key', 'old')
        disk.gate.close()
        const write = kv.put('key', 'new')
        const before = kv.get('key', { consistency })
        await turns(5)
        expect(disk.gate.held).to.equal(1)
        const during = kv.get('key', { consistency })
        const scanned = (async () => {
          for await (const entry of kv.scan({ consistency })) return entry
          return undefined
        })()
        for (const waiting of [write, during, scanned]) expect(await settled(waiting)).to.equal(false)
        disk.gate.open()
        await write
        expect(text(await before)).to.be.oneOf(['old', 'new'])
        expect(text(await during)).to.equal('new')
        expect(text(await scanned)).to.equal('new')
      }))
  }

  it('a watch shows nothing that is not on the disk yet, nor does one that begins meanwhile', () =>
    withDisk(async ({ kv }, disk) => {
      await kv.put('key', 'first')
      const watches = [kv.watch({ key: 'key' })]
      await watches[0]!.ready
      disk.gate.close()
      const write = kv.put('key', 'second')
      await turns(5)
      watches.push(kv.watch({ key: 'key', cursor: watches[0]!.cursor }))
      const events = watches.map(async (watch) => {
        for await (const event of watch) if (event.type === 'put') return text(event)
        return undefined
      })
      for (const event of events) expect(await settled(event)).to.equal(false)
      disk.gate.open()
      await write
      expect(await Promise.all(events)).to.deep.equal(['second', 'second'])
      for (const watch of watches) watch.close()
    }))

  it('a watch goes on where it was after the store was opened again', () =>
    withFolder(async (location) => {
      const first = await openLocal({ location })
      const watch = first.kv.watch({ prefix: 'a' })
      await watch.ready
      await first.kv.put('a1', 'one')
      for await (const event of watch) if (event.type === 'put') break
      const { cursor } = watch
      await first.kv.put('a2', 'two')
      await first.kv.delete('a1')
      await first.close()
      const second = await openLocal({ location })
      const seen: string[] = []
      for await (const event of second.kv.watch({ prefix: 'a', cursor })) {
        if (event.type === 'bookmark') continue
        if (seen.push(`${event.type} ${Buffer.from(event.key)}`) === 2) break
      }
      expect(seen.sort()).to.deep.equal(['delete a1', 'put a2'])
      await second.close()
      const other = await openLocal({ location: join(location, 'other') })
      expect(() => other.kv.watch({ prefix: 'a', cursor }), 'a cursor of another folder').to.throw(InvalidArgumentError)
      await other.close()
    }))

  it('a failed sync is final: what was under way is in doubt, what comes later is refused, each with the reason; a store opened anew serves', () =>
    withFolder(async (location) => {
      const disk = new Disk()
      const store = await openLocal({ location, openDatabase: disk.open })
      const { kv } = store
      const failures: unknown[] = []
      store.on('failure', (error) => failures.push(error))
      await kv.put('kept', 'value')
      disk.gate.close()
      const under = kv.put('doubtful', 'value').catch((error: unknown) => error)
      await turns(5)
      const read = kv.get('kept').catch((error: unknown) => error)
      const queued = kv.put('queued', 'value').catch((error: unknown) => error)
      await turns(5)
      disk.gate.failure = new Error('no space left on device')
      disk.gate.open()
      expect(await under).to.be.instanceOf(OutcomeUnknownError)
      expect(await queued).to.be.instanceOf(OutcomeUnknownError)
      expect(await read).to.be.instanceOf(ClosedError)
      const later = [kv.put('later', 'value'), kv.get('kept'), kv.getMany(['kept']), kv.delete('kept')].map((call) =>
        call.catch((error: unknown) => error),
      )
      disk.gate.failure = null
      for (const error of [await under, await queued, await read, ...(await Promise.all(later))] as Error[]) {
        expect((error.cause as QuorateError).code).to.equal('STORAGE_FAILED')
      }
      expect(store.failure).to.equal(failures[0])
      expect(failures).to.have.length(1)
      await store.close()
      const again = await openLocal({ location })
      expect(text(await again.kv.get('kept'))).to.equal('value')
      expect(await again.kv.get('queued')).to.equal(undefined)
      await again.kv.put('later', 'value')
      await again.close()
    }))

  it('after a crash at any write, all that was acknowledged is there, and of the rest a part from its beginning', () =>
    withFolder(async (folder) => {
      for (let writesLeft = 0; writesLeft < 12; writesLeft++) {
        const location = join(folder, `${writesLeft}`)
        const budget = new CrashBudget(writesLeft)
        const acknowledged: number[] = []
        const openDatabase: typeof openLevel = async (path, options) => crashAfter(await openLevel(path, options), budget)
        const store = await openLocal({ location, openDatabase }).catch((error: QuorateError) => error)
        if (store instanceof QuorateError) {
          expect(store.code).to.equal('STORAGE_FAILED')
        } else {
          for (let write = 0; write < 20; write++) {
            await store.kv.put(`{t}${write}`, 'value').then(
              () => acknowledged.push(write),
              () => {},
            )
          }
          await store.close()
        }
        const again = await openLocal({ location })
        const found = (await again.kv.getMany(Array.from({ length: 20 }, (_, at) => `{t}${at}`))).filter((entry) => entry !== undefined)
        expect(found.length).to.be.within(acknowledged.length, acknowledged.length + 1)
        expect(found.every(({ revision }, at) => revision === at + 1)).to.equal(true)
        expect((await again.kv.put('{t}next', 'value')).revision).to.equal(found.length + 1)
        await again.close()
      }
    }))

  for (const how of ['get', 'scan'] as const) {
    it(`damage that a ${how} meets ends the store, and callers are told why`, () =>
      withFolder(async (location) => {
        let isDamaged = false
        const openDatabase: typeof openLevel = async (path, options) => {
          const database = await openLevel(path, options)
          const check = () => {
            if (isDamaged) throw new CorruptionError('a block of a table')
          }
          return {
            ...database,
            getSync: (key) => {
              check()
              return database.getSync(key)
            },
            iterate: (range) => {
              const iterator = database.iterate(range)
              return {
                nextv: async (count) => {
                  check()
                  return iterator.nextv(count)
                },
                close: () => iterator.close(),
              }
            },
          }
        }
        const store = await openLocal({ location, openDatabase })
        await store.kv.put('key', 'value')
        isDamaged = true
        const read = how === 'get' ? store.kv.get('another') : store.kv.count()
        const error = await read.catch((reason: unknown) => reason)
        expect(error).to.be.instanceOf(ClosedError)
        expect((error as Error).cause).to.be.instanceOf(CorruptionError)
        expect(store.failure).to.equal((error as Error).cause)
        await store.close()
      }))
  }

  it('what is there after opening it again: values, versions, revisions, and deletes', () =>
    withFolder(async (location) => {
      const first = await openLocal({ location, shards: 1 })
      await first.kv.put('a', '1')
      await first.kv.put('a', '2')
      await first.kv.put('b', '1')
      await first.kv.delete('b')
      await first.close()
      const second = await openLocal({ location })
      expect(await second.kv.get('a')).to.include({ version: 2, revision: 2 })
      expect(await second.kv.get('b')).to.equal(undefined)
      expect(await second.kv.put('b', '2')).to.deep.equal({ version: 1, revision: 5 })
      await second.close()
    }))
})

const codeOf = (promise: Promise<LocalStore | { close(): Promise<void> }>): Promise<string> =>
  promise.then(
    async (store) => {
      await store.close()
      return 'opened'
    },
    (error: unknown) => {
      expect(error).to.be.instanceOf(QuorateError)
      return (error as QuorateError).code
    },
  )

describe('the folder of a local store', () => {
  it('is refused while it is in use, by this process too, and serves on', () =>
    withDisk(async ({ kv }, _disk, location) => {
      expect(await codeOf(openLocal({ location }))).to.equal('FOLDER_IN_USE')
      await kv.put('key', 'value')
    }))

  it('is not a cluster node’s, nor the other way round, and trying changes nothing', () =>
    withFolder(async (folder) => {
      const network = new MemoryNetwork({ seed: 1 })
      const ours = join(folder, 'ours')
      const theirs = join(folder, 'theirs')
      const open = (location: string) => openNode({ location, bootstrap: true, transport: network.transport('a') })
      const store = await openLocal({ location: ours })
      await store.kv.put('key', 'value')
      await store.close()
      const node = await open(theirs)
      await node.kv.put('key', 'value')
      await node.close()
      expect(await codeOf(openLocal({ location: theirs }))).to.equal('WRONG_FOLDER')
      expect(await codeOf(open(ours))).to.equal('WRONG_FOLDER')
      await mkdir(join(folder, 'moved'))
      await cp(join(theirs, 'state'), join(folder, 'moved', 'local'), { recursive: true })
      expect(await codeOf(openLocal({ location: join(folder, 'moved') }))).to.equal('WRONG_FOLDER')
      expect(await readdir(ours)).to.deep.equal(['local'])
      const again = await openLocal({ location: ours })
      expect(text(await again.kv.get('key'))).to.equal('value')
      await again.close()
    }))

  it('keeps its number of shards: another one is refused', () =>
    withFolder(async (location) => {
      await (await openLocal({ location, shards: 8 })).close()
      expect(await codeOf(openLocal({ location, shards: 16 }))).to.equal('WRONG_FOLDER')
      expect(await codeOf(openLocal({ location, shards: 8 }))).to.equal('opened')
      expect(await codeOf(openLocal({ location, shards: 0 }))).to.equal('INVALID_ARGUMENT')
      expect(await codeOf(openLocal({ location: '' }))).to.equal('INVALID_ARGUMENT')
    }))

  /** Writes keys in order, each in a flush of its own. */
  async function fill(location: string, from: number, to: number): Promise<void> {
    const store = await openLocal({ location, shards: 1 })
    for (let at = from; at < to; at++) await store.kv.put(`key-${String(at).padStart(4, '0')}`, `${at} `.repeat(100))
    await store.close()
  }

  async function logOf(location: string): Promise<string> {
    const names = await readdir(join(location, 'local'))
    return join(
      location,
      'local',
      names
        .filter((name) => name.endsWith('.log'))
        .sort()
        .at(-1)!,
    )
  }

  async function flip(file: string, position: number, random: SeededRandom): Promise<void> {
    const handle = await open(file, 'r+')
    const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, position)
    buffer[0]! ^= 1 << random.integer(0, 7)
    await handle.write(buffer, 0, 1, position)
    await handle.close()
  }

  it('a flush that is missing in the middle is found, though LevelDB passes over it without a word', () =>
    withFolder(async (location) => {
      await fill(location, 0, 300)
      const file = await logOf(location)
      const { size } = await stat(file)
      expect(size, 'more than one block of the log file').to.be.greaterThan(3 * 32_768)
      await flip(file, 40_000, new SeededRandom(1, 'damage'))
      // What LevelDB makes of it: the end is there, a part before it is not.
      const copy = join(location, 'copy')
      await cp(join(location, 'local'), copy, { recursive: true })
      const database = await openLevel(copy, { cacheBytes: 1 << 20, writeBufferBytes: 1 << 24 })
      await database.close()
      const error = await openLocal({ location }).catch((refusal: unknown) => refusal)
      expect(error).to.be.instanceOf(CorruptionError)
      expect((error as Error).message).to.match(/missing/)
    }))

  it('hazard E1.34: changed by hand anywhere, it is refused by a code, or all of it up to some write is there (but for tables)', async function () {
    this.timeout(60_000)
    await withFolder(async (folder) => {
      const whole = join(folder, 'whole')
      await fill(whole, 0, 200)
      await fill(whole, 200, 400)
      const seed = newSeed()
      const random = new SeededRandom(seed, 'damage')
      const outcomes: Record<string, number> = {}
      for (let attempt = 0; attempt < 30; attempt++) {
        const location = join(folder, `${attempt}`)
        await cp(whole, location, { recursive: true })
        // LevelDB does not check the tables that it reads: a wrong bit there may pass, or end the process (docs/operations.md).
        const names = (await readdir(join(location, 'local'))).filter((name) => name !== 'LOCK' && name !== 'LOG' && !name.endsWith('.ldb')).sort()
        const file = join(location, 'local', random.pick(names))
        const { size } = await stat(file)
        if (size === 0) continue
        const position = random.integer(0, size - 1)
        await flip(file, position, random)
        const opened = await openLocal({ location }).catch((error: unknown) => error)
        let outcome: string
        if (opened instanceof Error) {
          expect(opened, `seed ${seed}: bit at ${position} of ${file}`).to.be.instanceOf(QuorateError)
          outcome = (opened as QuorateError).code
        } else {
          const store = opened as LocalStore
          const revisions: number[] = []
          outcome = 'opened'
          try {
            for await (const { revision } of store.kv.scan()) revisions.push(revision)
          } catch (error) {
            // Damage that was met only now: the store stops, and says why.
            expect(error).to.be.instanceOf(ClosedError)
            outcome = ((error as Error).cause as QuorateError).code
            expect((store.failure as QuorateError).code).to.equal(outcome)
          }
          await store.close().catch(() => {})
          const isWhole = revisions.every((revision, at) => revision === at + 1)
          expect(isWhole, `seed ${seed}: bit at ${position} of ${file}: ${revisions}`).to.equal(true)
        }
        expect(outcome, `seed ${seed}: bit at ${position} of ${file}`).to.be.oneOf(['opened', 'CORRUPTION', 'OPEN_FAILED', 'MALFORMED'])
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
      }
      expect(outcomes['CORRUPTION'], `seed ${seed}: ${JSON.stringify(outcomes)}`).to.be.greaterThan(0)
    })
  })

  it('refuses a folder in use as a class that says: fix the deployment', () =>
    withDisk(async (_store, _disk, location) => {
      const error = await openLocal({ location }).catch((refusal: unknown) => refusal)
      expect(error).to.be.instanceOf(RefusedError)
    }))
})
