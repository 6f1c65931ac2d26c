/** The client's side of a watch, over groups that the test answers by hand: what is held, who comes first, and where it stands; and its cursors. */
import { expect } from 'chai'
import fc from 'fast-check'
import { CompactedError, InvalidArgumentError, OverloadedError, UnavailableError } from '../../src/base/errors.js'
import type { WatchEvent, WatchOptions } from '../../src/engine/kv.js'
import { HistoryMissingError, type WatchPage, type WatchRequest, type WatchSection } from '../../src/engine/watch-protocol.js'
import { rangeOf } from '../../src/shard/scan.js'
import { WatchStream } from '../../src/shard/watch.js'
import { decodeCursor, encodeCursor } from '../../src/shard/watch-cursor.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'

const clusterId = '0123456789abcdef'
const shards = 4

interface Poll {
  readonly group: number
  readonly request: WatchRequest
  readonly signal: AbortSignal
  answer(page: WatchPage): void
  fail(error: unknown): void
}

/** Shards 0 and 2 are group 1's, 1 and 3 are group 2's. */
class Groups {
  readonly runtime = new SimulatedRuntime({ seed: 1 })
  readonly polls: Poll[] = []

  watch(options: WatchOptions = {}): WatchStream {
    return new WatchStream(options, rangeOf(options), {
      runtime: this.runtime,
      clusterId: () => clusterId,
      shards,
      groupOf: (shard) => 1 + (shard % 2),
      poll: (group, request, signal) =>
        new Promise((answer, fail) => {
          this.polls.push({ group, request, signal, answer, fail })
        }),
    })
  }

  /** The poll that a group has to answer now; there is at most one. */
  async next(group: number): Promise<Poll> {
    await settled()
    const found = this.polls.filter((poll) => poll.group === group)
    expect(found, `polls of group ${group}`).to.have.length(1)
    this.polls.splice(this.polls.indexOf(found[0]!), 1)
    return found[0]!
  }

  async asked(group: number): Promise<number> {
    await settled()
    return this.polls.filter((poll) => poll.group === group).length
  }

  /** Answers both groups' first polls: everything is at revision 0. */
  async begin(): Promise<void> {
    for (const group of [1, 2]) {
      const poll = await this.next(group)
      expect(poll.request.positions.every(({ after }) => after === null)).to.equal(true)
      poll.answer({ sections: poll.request.positions.map(({ shard }) => ({ shard, position: 0, events: [] })) })
    }
  }
}

const settled = () => new Promise((resolve) => setImmediate(resolve))

/** Puts of one key each, in transactions of the given sizes, from a revision on. */
function section(shard: number, first: number, sizes: readonly number[] = [1]): WatchSection {
  const events = sizes.flatMap((size, at) =>
    Array.from({ length: size }, (_, each) => ({
      revision: first + at,
      key: `s${shard}.${first + at}.${each}`,
      value: Buffer.from('v'),
      valueBytes: 1,
      version: 1,
    })),
  )
  return { shard, position: first + sizes.length - 1, events }
}

const nameOf = (event: WatchEvent) => (event.type === 'bookmark' ? 'bookmark' : `${Buffer.from(event.key)}`)

async function take(watch: WatchStream, count: number): Promise<string[]> {
  const iterator = watch[Symbol.asyncIterator]()
  const names: string[] = []
  while (names.length < count) {
    const { value } = await iterator.next()
    names.push(nameOf(value as WatchEvent))
  }
  return names
}

describe('WatchStream', () => {
  it('holds two pages with events of a group, asks for the next one when one is used up, and from where the last one ended', async () => {
    const groups = new Groups()
    const watch = groups.watch()
    await groups.begin()
    await watch.ready
    ;(await groups.next(1)).answer({ sections: [section(0, 1, [1, 1])] })
    const second = await groups.next(1)
    expect(second.request.positions).to.deep.equal([
      { shard: 2, after: 0 },
      { shard: 0, after: 2 },
    ])
    second.answer({ sections: [section(2, 1)] })
    expect(await groups.asked(1), 'a third page').to.equal(0)
    expect(await take(watch, 1)).to.deep.equal(['s0.1.0'])
    expect(await groups.asked(1)).to.equal(0)
    expect(await take(watch, 1)).to.deep.equal(['s0.2.0'])
    expect(await groups.asked(1)).to.equal(1)
    await watch.close()
  })

  it('pages without events melt into one: a consumer that takes its time falls behind only by what it has not seen', async () => {
    const groups = new Groups()
    const watch = groups.watch({ bookmarks: true })
    await groups.begin()
    for (let round = 1; round <= 20; round++) {
      ;(await groups.next(1)).answer({
        sections: [
          { shard: 0, position: round, events: [] },
          { shard: 2, position: Math.floor(round / 2), events: [] },
        ],
      })
    }
    ;(await groups.next(1)).answer({ sections: [section(0, 21)] })
    // One bookmark of each group at most, whatever was fetched meanwhile.
    const seen = await take(watch, 1)
    while (seen.at(-1) === 'bookmark') seen.push(...(await take(watch, 1)))
    expect(seen.at(-1)).to.equal('s0.21.0')
    expect(seen.length).to.be.within(2, 3)
    expect([...decodeCursor(watch.cursor, clusterId, shards)]).to.deep.equal([
      [0, 21],
      [1, 0],
      [2, 10],
      [3, 0],
    ])
    await watch.close()
  })

  it('the groups take turns, a transaction each, and a transaction is never torn apart', async () => {
    const groups = new Groups()
    const watch = groups.watch()
    await groups.begin()
    ;(await groups.next(1)).answer({ sections: [section(0, 1, [2, 1, 3])] })
    ;(await groups.next(2)).answer({ sections: [section(1, 1, [1, 2]), section(3, 1)] })
    await settled()
    const cursors: string[] = []
    const names: string[] = []
    for await (const event of watch) {
      names.push(nameOf(event))
      if (event.type !== 'bookmark' && event.isLast) cursors.push(watch.cursor)
      if (names.length === 10) break
    }
    expect(names).to.deep.equal([...['s0.1.0', 's0.1.1'], 's1.1.0', 's0.2.0', ...['s1.2.0', 's1.2.1'], ...['s0.3.0', 's0.3.1', 's0.3.2'], 's3.1.0'])
    expect(cursors.map((cursor) => [...decodeCursor(cursor, clusterId, shards).values()].join(' '))).to.deep.equal([
      ...['1 0 0 0', '1 1 0 0', '2 1 0 0', '2 2 0 0', '3 2 0 0', '3 2 0 1'],
    ])
  })

  it('a gap is told after the events before it, with a cursor from which all is there; the other groups’ place is kept', async () => {
    const groups = new Groups()
    const watch = groups.watch()
    await groups.begin()
    ;(await groups.next(1)).answer({ sections: [section(0, 1)] })
    ;(await groups.next(1)).fail(new HistoryMissingError([{ shard: 2, after: 40 }]))
    const late = await groups.next(2)
    expect(await take(watch, 1)).to.deep.equal(['s0.1.0'])
    const error = await take(watch, 1).then(
      () => undefined,
      (thrown: unknown) => thrown,
    )
    expect(error).to.be.instanceOf(CompactedError)
    expect([...decodeCursor((error as CompactedError).oldest, clusterId, shards).values()]).to.deep.equal([1, 0, 40, 0])
    expect(late.signal.aborted, 'the other group is let go of').to.equal(true)
    expect((await watch[Symbol.asyncIterator]().next()).done).to.equal(true)
  })

  it('refusals that pass are waited out; others end it', async () => {
    const groups = new Groups()
    const watch = groups.watch()
    ;(await groups.next(1)).fail(new OverloadedError('later'))
    expect(await groups.asked(1)).to.equal(0)
    await groups.runtime.advance(1000)
    expect(await groups.asked(1)).to.equal(1)
    const broken = new Error('broken')
    const next = watch[Symbol.asyncIterator]()
      .next()
      .catch((error: unknown) => error)
    ;(await groups.next(1)).fail(broken)
    expect(await next).to.equal(broken)
    expect(await watch.ready.catch((error: unknown) => error)).to.equal(broken)
    expect(() => watch.cursor).to.throw(UnavailableError)
  })

  it('asks those for less that wait with many groups, and waits longer the longer all goes well', async () => {
    const groups = new Groups()
    const watch = groups.watch({ prefix: '{one}' })
    const waits: number[] = []
    // One tag is one shard, and one group.
    await settled()
    expect(groups.polls).to.have.length(1)
    const { group } = groups.polls[0]!
    for (let round = 0; round < 6; round++) {
      const poll = await groups.next(group)
      waits.push(poll.request.waitMs)
      poll.answer({ sections: poll.request.positions.map(({ shard, after }) => ({ shard, position: (after ?? 0) + 1, events: [] })) })
    }
    expect(waits).to.deep.equal([250, 500, 1000, 2000, 2000, 2000])
    // An answer that is long overdue: the first one was lost.
    const poll = await groups.next(group)
    await groups.runtime.advance(5000)
    poll.answer({ sections: [] })
    expect((await groups.next(group)).request.waitMs).to.equal(500)
    await watch.close()
  })
})

describe('watch cursors', () => {
  it('are read as they were written, and nothing else is taken for one', () => {
    const positions = fc.uniqueArray(fc.tuple(fc.nat(4000), fc.maxSafeNat()), { selector: ([shard]) => shard, maxLength: 50 })
    fc.assert(
      fc.property(positions, fc.nat(), (entries, at) => {
        const cursor = encodeCursor(clusterId, 4001, new Map(entries))
        expect([...decodeCursor(cursor, clusterId, 4001)]).to.deep.equal(entries.sort(([left], [right]) => left - right))
        const place = at % cursor.length
        const other = cursor[place] === 'x' ? 'y' : 'x'
        expect(() => decodeCursor(cursor.slice(0, place) + other + cursor.slice(place + 1), clusterId, 4001)).to.throw(InvalidArgumentError)
        expect(() => decodeCursor(cursor, 'fedcba9876543210', 4001)).to.throw(InvalidArgumentError, 'cluster')
        expect(() => decodeCursor(cursor, clusterId, 4000)).to.throw(InvalidArgumentError, 'shards')
      }),
    )
  })

  it('without all shards of the range are refused', () => {
    const groups = new Groups()
    const cursor = encodeCursor(clusterId, shards, new Map([[1, 5]]))
    expect(() => groups.watch({ cursor })).to.throw(InvalidArgumentError, 'range')
  })
})
