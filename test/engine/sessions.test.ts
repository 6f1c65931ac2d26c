/** Sessions that end: what a shard forgets, what it refuses from then on, and what that costs. */
import { expect } from 'chai'
import { CommandStatus, shardOf, stampEntry } from '../../src/engine/command.js'
import { ExpiryKind, encodeExpiryEntry, readExpiryEntry } from '../../src/engine/expiry-entry.js'
import { RecordType } from '../../src/engine/records.js'
import { testShards } from './support/engine-fixture.js'
import { type TimeFixture, withTime } from './support/time-fixture.js'

const { ok, expired, stale } = CommandStatus
const minuteMs = 60_000
const statuses = (results: readonly { status: number }[]) => results.map(({ status }) => status)

/** Keys of session records begin so, after group and area: shard, type 2. */
const sessionsIn = (records: readonly [Uint8Array, Uint8Array][]) => records.filter(([key]) => key[5] === 2 && key[3] !== 0xff)

/** Lets a session expire as a leader that saw this would. */
function expire(fixture: TimeFixture, session: number, key: string, sinceMs: number, ttlMs: number, stampMs: number): void {
  const entry = encodeExpiryEntry([
    { kind: ExpiryKind.session, shard: shardOf(Buffer.from(key), testShards), sinceMs, ttlMs, id: Buffer.alloc(8, session) },
  ])
  stampEntry(entry, stampMs)
  fixture.applyEntry(entry)
}

describe('sessions', () => {
  it('2 TestMemPutManyClientsReliable: 100,000 clients that each wrote once leave at most 200 bytes each, and nothing after their sessions', function () {
    this.timeout(240_000)
    return withTime(async (fixture) => {
      const clients = 100_000
      const before = (await fixture.records()).length
      for (let at = 0; at < clients; at++) {
        const session = Buffer.alloc(8)
        session.writeUInt32BE(at)
        const results = fixture.apply(session, { birth: 1_700_000_000_000 + at }, { key: `k${at % 100}`, value: 'x', sequence: 1 })
        expect(results[0]!.status).to.equal(ok)
        if (at % 1000 === 0) {
          fixture.clock.turn(10)
          await new Promise((resolve) => setImmediate(resolve))
        }
      }
      const full = await fixture.records()
      const sessions = sessionsIn(full)
      expect(sessions).to.have.length(clients)
      expect(sessions.reduce((sum, [key, value]) => sum + key.length + value.length, 0)).to.be.at.most(200 * clients)
      await fixture.turn(12 * minuteMs)
      let entries = 0
      let gone = 0
      await fixture.turnUntil(() => {
        for (; entries < fixture.proposed.length; entries++) gone += readExpiryEntry(fixture.proposed[entries]!).items.length
        return gone === clients
      })
      // All but the history, which is bounded by itself.
      const left = (await fixture.records()).filter(([key]) => key[5] !== RecordType.history || key[3] === 0xff)
      expect(sessionsIn(left)).to.deep.equal([])
      // The keys that were written, one record for each of the shards they are in, the time and the applied index.
      expect(left.length - before).to.be.at.most(100 + testShards + 2)
      for (const entry of fixture.proposed) expect(entry.length, 'what one entry holds').to.be.at.most(16_384)
    })
  })

  it('K3, hazard c2: what comes late from a session that was forgotten is refused, also under a record made since, and over a restart', () =>
    withTime(async (fixture) => {
      expect(statuses(fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 5 }))).to.deep.equal([ok])
      const touchedMs = fixture.machine.timeMs
      await fixture.turnUntil(() => fixture.proposed.length === 1)
      const [late] = fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 5 })
      expect(late).to.deep.equal({ status: expired, version: touchedMs + 1, revision: 10 })
      // A client that was told takes a later birth; its earlier requests come too late even so.
      expect(statuses(fixture.apply(1, { birth: 11, lowWater: 5 }, { key: 'a', value: 'y', sequence: 6 }))).to.deep.equal([ok])
      expect(statuses(fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 5 }))).to.deep.equal([expired])
      await fixture.restart()
      expect(statuses(fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 5 }))).to.deep.equal([expired])
      expect(statuses(fixture.apply(2, { birth: 9 }, { key: 'a', value: 'z', sequence: 1 }))).to.deep.equal([expired])
      expect(statuses(fixture.apply(1, { birth: 11, lowWater: 5 }, { key: 'a', value: 'y', sequence: 6 }))).to.deep.equal([ok])
      expect(fixture.read('a')).to.equal('y')
    }))

  it('K3: the horizon covers every birth that was answered in a record, not only the one that it was made for', () =>
    withTime(async (fixture) => {
      fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 1 })
      // Another shard has made the client take a later birth meanwhile.
      fixture.apply(1, { birth: 30, lowWater: 2 }, { key: 'a', value: 'y', sequence: 2 })
      await fixture.turnUntil(() => fixture.proposed.length === 1)
      expect(statuses(fixture.apply(1, { birth: 30 }, { key: 'a', value: 'y', sequence: 2 }))).to.deep.equal([expired])
      expect(statuses(fixture.apply(1, { birth: 31, lowWater: 3 }, { key: 'a', value: 'z', sequence: 3 }))).to.deep.equal([ok])
    }))

  it('a session that is there is not held back by the horizon that others have raised', () =>
    withTime(async (fixture) => {
      fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 1 })
      fixture.apply(2, { birth: 50 }, { key: 'a', value: 'y', sequence: 1 })
      const touchedMs = fixture.machine.timeMs
      for (let at = 2; at < 24; at++) {
        await fixture.turn(minuteMs / 2)
        expect(statuses(fixture.apply(1, { birth: 10, lowWater: at }, { key: 'a', value: `${at}`, sequence: at }))).to.deep.equal([ok])
      }
      await fixture.turnUntil(() => fixture.proposed.length === 1)
      expect(statuses(fixture.apply(2, { birth: 50 }, { key: 'a', value: 'y', sequence: 1 }))).to.deep.equal([expired])
      expect(statuses(fixture.apply(1, { birth: 10, lowWater: 23 }, { key: 'a', value: '23', sequence: 23 }))).to.deep.equal([ok])
      expect(statuses(fixture.apply(1, { birth: 10, lowWater: 22 }, { key: 'a', value: '22', sequence: 22 }))).to.deep.equal([stale])
      expect(touchedMs).to.be.below(fixture.machine.timeMs - 10 * minuteMs)
    }))

  it('hazard L4: a write that is ahead in the log wins over the expiry that a leader has proposed; and none before its time', () =>
    withTime(async (fixture) => {
      fixture.apply(1, { birth: 10, stampMs: 1000 }, { key: 'a', value: 'x', sequence: 1 })
      expire(fixture, 1, 'a', 1000, 5000, 6000)
      expect(
        statuses(fixture.apply(1, { birth: 10, stampMs: 6000 }, { key: 'a', value: 'y', sequence: 2 })),
        'not a whole time to live',
      ).to.deep.equal([ok])
      expire(fixture, 1, 'a', 1000, 5000, 6001)
      expect(statuses(fixture.apply(1, { birth: 10, stampMs: 6001 }, { key: 'a', value: 'y', sequence: 2 })), 'touched meanwhile').to.deep.equal([ok])
      expire(fixture, 1, 'a', 6000, 5000, 11_001)
      expect(statuses(fixture.apply(1, { birth: 10, stampMs: 11_001 }, { key: 'a', value: 'y', sequence: 2 }))).to.deep.equal([expired])
    }))

  it('costs nothing while nothing happens: no entry, and no search once there is nobody left', () =>
    withTime(async (fixture) => {
      fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 1 })
      let searches = 0
      const sessions = fixture.machine.sessions.bind(fixture.machine)
      fixture.machine.sessions = (shard) => {
        searches++
        return sessions(shard)
      }
      await fixture.turnUntil(() => fixture.proposed.length === 1)
      expect(searches).to.be.at.most(12 * testShards)
      // The search that finds nobody may still come; after that there is none.
      do {
        searches = 0
        await fixture.turn(40 * minuteMs)
      } while (searches > 0)
      expect(fixture.proposed).to.have.length(1)
    }))

  it('hazard p10: a stalled loop does not let sessions grow old', () =>
    withTime(async (fixture) => {
      fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 1 })
      for (let at = 0; at < 20; at++) {
        fixture.clock.stall(10 * minuteMs)
        await fixture.turn(1000)
      }
      expect(fixture.proposed).to.have.length(0)
      expect(statuses(fixture.apply(1, { birth: 10 }, { key: 'a', value: 'x', sequence: 1 }))).to.deep.equal([ok])
    }))
})
