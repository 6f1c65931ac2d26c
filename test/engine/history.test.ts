/** The history of a group's shards: complete and in order over flushes, restarts and crashes, bounded, and read in whole transactions; and the polls that wait for it. */
import { expect } from 'chai'
import { CorruptionError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { CommandType } from '../../src/engine/command.js'
import { HistoryBlock, type HistoryEvent } from '../../src/engine/history-block.js'
import { RecordType, shardPrefix } from '../../src/engine/records.js'
import { encodeTransaction, StepKind } from '../../src/engine/transaction.js'
import type { PollReply } from '../../src/engine/watch-polls.js'
import type { WatchPage, WatchRequest } from '../../src/engine/watch-protocol.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'
import { newSeed } from '../support/seed.js'
import { encodeCommands, type MachineFixture, machineShards, shardOfKey, withMachine } from './support/machine-fixture.js'

let sequence = 0

function put(fixture: MachineFixture, key: string, value: string): void {
  sequence++
  fixture.apply(
    encodeCommands(1, sequence, [{ type: CommandType.put, sequence, shard: shardOfKey(key), key: Buffer.from(key), value: Buffer.from(value) }]),
  )
}

function remove(fixture: MachineFixture, key: string): void {
  sequence++
  fixture.apply(encodeCommands(1, sequence, [{ type: CommandType.delete, sequence, shard: shardOfKey(key), key: Buffer.from(key) }]))
}

function batch(fixture: MachineFixture, tag: string, names: readonly string[], value: string): void {
  sequence++
  const steps = names.map((name) => ({ kind: StepKind.put, key: Buffer.from(`{${tag}}${name}`), value: Buffer.from(value) }))
  const transaction = encodeTransaction({ wantsResults: false, compares: [], branches: [steps, []] })
  fixture.apply(encodeCommands(1, sequence, [{ type: CommandType.transaction, sequence, shard: shardOfKey(`{${tag}}`), value: transaction }]))
}

const brief = ({ revision, key, value, version }: HistoryEvent) =>
  value === null ? `${revision} -${key}` : `${revision} ${key}=${Buffer.from(value)} v${version}`

function read({ machine }: MachineFixture, shard: number, after: number): string[] {
  const events: string[] = []
  machine.history.read(shard, after, (event) => events.push(brief(event)) > 0)
  return events
}

async function flush(fixture: MachineFixture): Promise<void> {
  fixture.store.flushSoon()
  await fixture.store.flushed()
}

describe('History', () => {
  it('holds every write in order, over flushes and restarts at any moment, and is the same however it was cut', async () => {
    const seed = newSeed()
    const random = new SeededRandom(seed, 'history')
    try {
      await withMachine(async (fixture) => {
        const truth = new Map<number, string[]>()
        const versions = new Map<string, number>()
        const note = (shard: number, revision: number, key: string, value: string | null) => {
          const version = value === null ? 0 : (versions.get(key) ?? 0) + 1
          versions.set(key, version)
          const events = truth.get(shard) ?? []
          truth.set(shard, events)
          events.push(value === null ? `${revision} -${key}` : `${revision} ${key}=${value} v${version}`)
        }
        for (let step = 0; step < 600; step++) {
          const key = `k${random.integer(0, 20)}`
          const value = `${step}`.repeat(random.integer(0, 40))
          const shard = shardOfKey(key)
          const before = fixture.machine.revisionOf(shard)
          if (random.chance(0.1)) {
            const tag = `t${random.integer(0, 3)}`
            const names = ['a', 'b', 'c'].slice(0, random.integer(1, 3))
            batch(fixture, tag, names, value)
            const tagged = shardOfKey(`{${tag}}`)
            for (const name of names) note(tagged, fixture.machine.revisionOf(tagged), `{${tag}}${name}`, value)
          } else if (random.chance(0.2)) {
            remove(fixture, key)
            if (fixture.machine.revisionOf(shard) > before) note(shard, before + 1, key, null)
          } else {
            put(fixture, key, value)
            note(shard, before + 1, key, value)
          }
          if (random.chance(0.05)) await flush(fixture)
          if (random.chance(0.02)) await fixture.restart()
          if (!random.chance(0.05)) continue
          await fixture.machine.history.load()
          for (const [at, events] of truth) {
            expect(fixture.machine.history.oldest(at)).to.equal(1)
            const after = random.integer(0, fixture.machine.revisionOf(at))
            expect(read(fixture, at, after)).to.deep.equal(events.filter((event) => Number.parseInt(event, 10) > after))
          }
        }
      })
    } catch (error) {
      throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
    }
  })

  it('is bounded: the shard that has most gives first, and what is left has no gap, before and after a restart', () =>
    withMachine(
      async (fixture) => {
        const quiet = shardOfKey('quiet')
        const busy = shardOfKey('busy')
        expect(quiet).not.to.equal(busy)
        await fixture.machine.history.load()
        for (let round = 0; round < 40; round++) {
          if (round % 10 === 0) put(fixture, 'quiet', `${round}`)
          for (let each = 0; each < 20; each++) put(fixture, 'busy', `${round} ${'x'.repeat(100)}`)
          await flush(fixture)
          const { history } = fixture.machine
          const oldest = history.oldest(busy)
          const revisions = read(fixture, busy, oldest - 1).map((event) => Number.parseInt(event, 10))
          expect(revisions).to.deep.equal(Array.from({ length: fixture.machine.revisionOf(busy) - oldest + 1 }, (_, at) => oldest + at))
          expect(history.oldest(quiet)).to.equal(1)
          if (round % 7 === 6) {
            await fixture.restart()
            await fixture.machine.history.load()
            expect(fixture.machine.history.oldest(busy)).to.equal(oldest)
          }
        }
        expect(fixture.machine.history.oldest(busy)).to.be.greaterThan(600)
        expect(read(fixture, quiet, 0)).to.have.length(4)
      },
      { historyBytes: 10_000, historyJoinBytes: 1000 },
    ))

  it('keeps few records of a shard that is written a little at each flush', () =>
    withMachine(async (fixture) => {
      for (let round = 0; round < 100; round++) {
        put(fixture, 'k', `${round}`)
        await flush(fixture)
      }
      const { history } = fixture.machine
      await history.load()
      expect(history.shard(shardOfKey('k')).stored).to.have.length(1)
      expect(read(fixture, shardOfKey('k'), 0)).to.have.length(100)
    }))

  it('what a version without history has written in between is a gap that no reader crosses', () =>
    withMachine(async (fixture) => {
      const shard = shardOfKey('k')
      put(fixture, 'k', 'with')
      await flush(fixture)
      fixture.machine.history.record = () => {}
      put(fixture, 'k', 'without')
      await fixture.restart()
      await fixture.machine.history.load()
      expect(fixture.machine.history.oldest(shard)).to.equal(3)
      put(fixture, 'k', 'again')
      expect(read(fixture, shard, 2)).to.deep.equal(['3 k=again v3'])
      await fixture.restart()
      await fixture.machine.history.load()
      expect(fixture.machine.history.oldest(shard)).to.equal(3)
    }))
})

describe('WatchPolls', () => {
  const everything = (positions: WatchRequest['positions'], over: Partial<WatchRequest> = {}): WatchRequest => ({
    gte: Buffer.alloc(0),
    lt: null,
    positions,
    maxBytes: 100_000,
    waitMs: 1000,
    ...over,
  })
  const keyOnly = (key: string) => ({ gte: Buffer.from(key), lt: Buffer.from(`${key}\0`) })

  class Asked {
    page: WatchPage | null = null
    refusal: string | null = null
    answers = 0
    readonly reply: PollReply = (page, refusal) => {
      this.page = page
      this.refusal = refusal
      this.answers++
    }

    get events(): string[] {
      return this.page?.sections.flatMap(({ events }) => events.map(brief)) ?? []
    }
  }

  const ask = (fixture: MachineFixture, request: WatchRequest, runtime = systemRuntime) => {
    const asked = new Asked()
    fixture.machine.watches.serve(request, runtime, asked.reply)
    return asked
  }

  it('answers at once with what there is, else in the turn that applies it, and only those whose range it is', () =>
    withMachine((fixture) => {
      const shard = shardOfKey('{s}')
      const { watches } = fixture.machine
      put(fixture, '{s}a', '1')
      expect(ask(fixture, everything([{ shard, after: 0 }])).events).to.deep.equal(['1 {s}a=1 v1'])
      const mine = ask(fixture, everything([{ shard, after: 1 }], keyOnly('{s}b')))
      const another = ask(fixture, everything([{ shard, after: 1 }], keyOnly('{s}c')))
      const all = ask(fixture, everything([{ shard, after: 1 }]))
      put(fixture, '{s}b', '2')
      expect(mine.answers + all.answers).to.equal(0)
      watches.wake()
      expect(mine.events).to.deep.equal(['2 {s}b=2 v1'])
      expect(all.events).to.deep.equal(['2 {s}b=2 v1'])
      expect(another.answers).to.equal(0)
      expect(watches.size).to.equal(1)
      watches.end('not-leader')
      expect([another.refusal, another.answers, mine.answers, all.answers, watches.size]).to.deep.equal(['not-leader', 1, 1, 1, 0])
    }))

  it('a write costs nothing where nobody waits, and looks at nobody who waits for another key', () =>
    withMachine((fixture) => {
      const shard = shardOfKey('{s}')
      const { history, watches } = fixture.machine
      put(fixture, '{s}a', '1')
      expect(history.hasWoken).to.equal(false)
      for (let each = 0; each < 100; each++) ask(fixture, everything([{ shard, after: 1 }], keyOnly(`{s}k${each}`)))
      put(fixture, 'elsewhere', '1')
      expect(history.hasWoken).to.equal(false)
      put(fixture, '{s}k7', '1')
      expect(history.hasWoken).to.equal(true)
      watches.wake()
      expect(watches.size).to.equal(99)
      watches.end('stopped')
      put(fixture, '{s}k8', '1')
      expect(history.hasWoken).to.equal(false)
    }))

  it('a wait that is over says how far it is, and the next poll goes on from there', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    await withMachine(async (fixture) => {
      const shard = shardOfKey('{s}')
      const asked = ask(fixture, everything([{ shard, after: 0 }], { ...keyOnly('{s}k'), waitMs: 100 }), runtime)
      for (let each = 0; each < 5; each++) {
        put(fixture, '{s}other', `${each}`)
        fixture.machine.watches.wake()
      }
      await runtime.advance(99)
      expect(asked.answers).to.equal(0)
      await runtime.advance(1)
      expect(asked.page?.sections).to.deep.equal([{ shard, events: [], position: 5 }])
      expect(fixture.machine.watches.size).to.equal(0)
    })
  })

  it('a page ends at the border of a transaction, and the next one begins there', () =>
    withMachine((fixture) => {
      const shard = shardOfKey('{s}')
      for (let round = 0; round < 20; round++) batch(fixture, 's', ['a', 'b', 'c'], 'x'.repeat(round * 10))
      const seen: string[] = []
      let after = 0
      let pages = 0
      while (after < 20) {
        const { page } = ask(fixture, everything([{ shard, after }], { maxBytes: 200 }))
        const [section] = page!.sections
        const revisions = section!.events.map(({ revision }) => revision)
        expect(revisions.length % 3, 'a transaction was torn apart').to.equal(0)
        expect(section!.position).to.equal(revisions.at(-1))
        seen.push(...section!.events.map(brief))
        after = section!.position
        pages++
      }
      expect(pages).to.be.greaterThan(5)
      expect(seen).to.deep.equal(read(fixture, shard, 0))
    }))

  it('much that is of no interest is passed in parts, and a busy shard does not hide the others', () =>
    withMachine((fixture) => {
      const busy = shardOfKey('busy')
      const quiet = shardOfKey('quiet')
      for (let each = 0; each < 300; each++) put(fixture, 'busy', 'x'.repeat(10_000))
      put(fixture, 'quiet', 'here')
      const first = ask(
        fixture,
        everything(
          [
            { shard: busy, after: 0 },
            { shard: quiet, after: 0 },
          ],
          keyOnly('quiet'),
        ),
      )
      expect(first.events).to.deep.equal([])
      const { position } = first.page!.sections[0]!
      expect(position).to.be.within(50, 200)
      // The order of the positions is the order in which they are looked at.
      const second = ask(
        fixture,
        everything(
          [
            { shard: quiet, after: 0 },
            { shard: busy, after: position },
          ],
          keyOnly('quiet'),
        ),
      )
      expect(second.events).to.deep.equal(['1 quiet=here v1'])
    }))

  it('«now» is answered at once, with the position of every shard', () =>
    withMachine((fixture) => {
      put(fixture, 'k', 'v')
      const positions = Array.from({ length: machineShards }, (_, shard) => ({ shard, after: null }))
      expect(fixture.machine.watches.needsConfirmation(everything(positions))).to.equal(true)
      const { page } = ask(fixture, everything(positions))
      expect(page!.sections.map(({ shard, position, events }) => [shard, position, events.length])).to.deep.equal(
        positions.map(({ shard }) => [shard, shard === shardOfKey('k') ? 1 : 0, 0]),
      )
    }))

  it('positions that the history does not reach are told, with the oldest that it does', () =>
    withMachine(
      async (fixture) => {
        const shard = shardOfKey('k')
        const { history, watches } = fixture.machine
        await history.load()
        for (let each = 0; each < 100; each++) {
          put(fixture, 'k', 'x'.repeat(100))
          await flush(fixture)
        }
        const oldest = history.oldest(shard)
        expect(oldest).to.be.greaterThan(50)
        expect(watches.missing(everything([{ shard, after: oldest - 1 }]))).to.deep.equal([])
        expect(watches.missing(everything([{ shard, after: oldest - 2 }]))).to.deep.equal([{ shard, after: oldest - 1 }])
        expect(watches.missing(everything([{ shard, after: 100 }]))).to.deep.equal([])
        expect(watches.missing(everything([{ shard, after: 101 }]))).to.deep.equal([{ shard, after: oldest - 1 }])
        expect(watches.needsConfirmation(everything([{ shard, after: 101 }]))).to.equal(true)
        expect(watches.needsConfirmation(everything([{ shard, after: 100 }]))).to.equal(false)
        await fixture.restart()
        // What is stored must be looked for first.
        expect(fixture.machine.watches.needsLoad(everything([{ shard, after: oldest - 1 }]))).to.equal(true)
        expect(fixture.machine.watches.needsLoad(everything([{ shard, after: 100 }]))).to.equal(false)
      },
      { historyBytes: 4000, historyJoinBytes: 500 },
    ))

  it('a flush that lets go of what is not told yet is a gap for those who wait: they are sent back to ask from where they are', () =>
    withMachine(
      async (fixture) => {
        const [shard, other] = [shardOfKey('k'), shardOfKey('{s}')]
        const { watches, history } = fixture.machine
        put(fixture, 'k', '1')
        await flush(fixture)
        await history.load()
        const waiting = [everything([{ shard, after: 1 }]), everything([{ shard, after: 1 }], keyOnly('k'))].map((request) => ask(fixture, request))
        const both = ask(
          fixture,
          everything([
            { shard: other, after: 0 },
            { shard, after: 1 },
          ]),
        )
        put(fixture, 'k', '2')
        put(fixture, '{s}a', '1')
        await flush(fixture)
        put(fixture, 'k', '3')
        watches.wake()
        for (const asked of waiting) {
          expect(asked.answers).to.equal(1)
          expect(asked.page?.sections).to.deep.equal([{ shard, events: [], position: 1 }])
        }
        // It hears of neither, and misses neither.
        expect(both.page?.sections.map(({ position }) => position)).to.deep.equal([0, 1])
        expect(watches.missing(everything([{ shard, after: 1 }]))).to.deep.equal([{ shard, after: 2 }])
      },
      { historyBytes: 0 },
    ))

  it('a block that is missing is told, not passed over', () =>
    withMachine(async (fixture) => {
      const shard = shardOfKey('k')
      put(fixture, 'k', 'v')
      await flush(fixture)
      const key = `${shardPrefix(shard, RecordType.history)}${'\0'.repeat(7)}\x01`
      expect(fixture.store.get(key)).to.be.instanceOf(HistoryBlock)
      fixture.store.set(key, null)
      expect(() => read(fixture, shard, 0)).to.throw(CorruptionError)
    }))
})
