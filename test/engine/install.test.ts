/** A snapshot installed into a whole engine: state and log, and a crash at every write in between. */
import { join } from 'node:path'
import { expect } from 'chai'
import { Reader } from '../../src/base/codec.js'
import { shardOf } from '../../src/engine/command.js'
import { openLevel } from '../../src/engine/database.js'
import { decodeMessage } from '../../src/raft/message-codec.js'
import { EntryKind } from '../../src/raft/types.js'
import type { SnapshotManifest, SnapshotRecord } from '../../src/snapshot/messages.js'
import { withFolder } from '../support/folders.js'
import { CrashBudget, crashAfter } from './support/crashing-database.js'
import { EngineFixture, putBatch, putEntry, testShards, until } from './support/engine-fixture.js'

const members = ['a', 'b', 'c']
const tuning = { flushAfterMs: 20 }

interface Snapshot {
  readonly manifest: SnapshotManifest
  readonly records: readonly SnapshotRecord[]
}

/** Terms of a log: entries up to `common` are of term 1 everywhere. */
const common = 10
const termAt = (index: number) => (index <= common ? 1 : 2)

/** Gives a node entries, of a leader of the last one's term. */
async function feed(fixture: EngineFixture, first: number, last: number, termOf: (index: number) => number, commitIndex: number): Promise<void> {
  const entries = Array.from({ length: last - first + 1 }, (_, at) =>
    putEntry(first + at, termOf(first + at), `k${(first + at) % 7}`, `${first + at}`),
  )
  fixture.append('a', termOf(last), [first - 1, first === 1 ? 0 : termOf(first - 1)], entries, commitIndex)
  await until(() => fixture.status.durableIndex >= last && fixture.status.appliedIndex >= commitIndex)
}

async function takeSnapshot(folder: string, index: number): Promise<Snapshot> {
  const fixture = new EngineFixture(folder, members)
  await fixture.open(tuning)
  try {
    await feed(fixture, 1, common, termAt, common)
    if (index > common) await feed(fixture, common + 1, index, termAt, index)
    // Closing flushes.
    await fixture.close()
    await fixture.open(tuning)
    const capture = fixture.engine.host.replica(1)!.capture()
    const { records, isLast } = await capture.read(null, 1e9)
    expect(isLast).to.equal(true)
    await capture.close()
    return { manifest: { session: 1, group: 1, index: capture.index, term: capture.term, configuration: capture.configuration }, records }
  } finally {
    await fixture.close()
  }
}

/** Answers a request for a vote. */
function grant(fixture: EngineFixture, frame: Uint8Array): void {
  const reader = new Reader(frame)
  while (reader.remaining > 0) {
    for (let field = 0; field < 3; field++) reader.varint()
    const message = decodeMessage(reader, 'b', 'a')
    const reply = { from: 'a', to: 'b', term: message.term, granted: true }
    if (message.type === 'pre-vote-request') fixture.receive({ ...reply, type: 'pre-vote-reply', sequence: message.sequence })
    else if (message.type === 'vote-request') fixture.receive({ ...reply, type: 'vote-reply', sequence: message.sequence })
  }
}

async function install(fixture: EngineFixture, { manifest, records }: Snapshot): Promise<boolean> {
  const replica = fixture.engine.host.replica(1)!
  await replica.beginInstall()
  for (let at = 0; at < records.length; at += 3) await replica.stage(records.slice(at, at + 3))
  return replica.install(manifest)
}

function valuesOf(fixture: EngineFixture): (string | undefined)[] {
  const { machine } = fixture.engine.host.replica(1)!
  return Array.from({ length: 7 }, (_, at) => {
    const bytes = Buffer.from(`k${at}`)
    const found = machine.read(shardOf(bytes, testShards), bytes)
    return found && `${Buffer.from(found.value)} of version ${found.version}, revision ${found.revision}`
  })
}

/** What `valuesOf` gives when all entries up to an index are applied. */
function expectedValues(index: number): (string | undefined)[] {
  const shard = (at: number) => shardOf(Buffer.from(`k${at}`), testShards)
  return Array.from({ length: 7 }, (_, at) => {
    const writes = Array.from({ length: index }, (_each, before) => before + 1)
    const own = writes.filter((each) => each % 7 === at)
    const last = own[own.length - 1]
    if (last === undefined) return undefined
    const revision = writes.filter((each) => each <= last && shard(each % 7) === shard(at)).length
    return `${last} of version ${own.length}, revision ${revision}`
  })
}

describe('a snapshot installed into a replica', () => {
  const logs: [name: string, fill: (fixture: EngineFixture) => Promise<void>, lastIndex: number, lastInstalled: number][] = [
    ['a shorter log', (fixture) => feed(fixture, 1, common, termAt, common), common, 60],
    ['a longer log of another leader', (fixture) => feed(fixture, 1, 70, () => 1, common), 70, 60],
    [
      'a longer log that agrees with it',
      async (fixture) => {
        await feed(fixture, 1, common, termAt, common)
        await feed(fixture, common + 1, 66, termAt, common)
      },
      66,
      66,
    ],
  ]
  for (const [name, fill, lastIndex, lastInstalled] of logs) {
    it(`hazard m8, D6.47, D6.52, D1.7, p1: over ${name}: a crash at any write of it leaves the old state and log, or the new ones, and the group goes on`, () =>
      withFolder(async (folder) => {
        const snapshot = await takeSnapshot(join(folder, 'source'), 60)
        let installs = 0
        for (let limit = 0, isDone = false; !isDone; limit++) {
          expect(limit).to.be.lessThan(30)
          const fixture = new EngineFixture(join(folder, `${limit}`), members)
          await fixture.open(tuning)
          await fill(fixture)
          await fixture.close()
          const budget = new CrashBudget(limit)
          fixture.openDatabase = async (location, options) => crashAfter(await openLevel(location, options), budget)
          // The records of its replicas are there already.
          await fixture.open(tuning, []).catch(() => {})
          try {
            expect(await install(fixture, snapshot)).to.equal(true)
            // The log is reset, and the old state emptied.
            const { writes } = budget
            await until(() => budget.crashed || budget.writes >= writes + 2)
          } catch (error) {
            if (!budget.crashed) throw error
          }
          isDone = !budget.crashed
          await fixture.close().catch(() => {})
          fixture.failures.length = 0
          fixture.openDatabase = openLevel
          await fixture.open(tuning, [])
          const { core } = fixture.engine.host.replica(1)!
          const { appliedIndex, term } = fixture.status
          const isInstalled = appliedIndex >= 60
          if (isInstalled) installs++
          expect([appliedIndex, core.lastIndex], `crash at write ${limit}`).to.deep.equal(isInstalled ? [60, lastInstalled] : [common, lastIndex])
          expect(core.commitIndex).to.equal(appliedIndex)
          expect(core.configuration.voters).to.deep.equal(members)
          if (isInstalled) expect([core.termAt(60), term >= 2]).to.deep.equal([2, true])
          expect(valuesOf(fixture)).to.deep.equal(expectedValues(appliedIndex))
          // The next leader's entries follow on what is there.
          const next = Math.max(60, appliedIndex) + 1
          if (!isInstalled) await feed(fixture, common + 1, 60, termAt, 60)
          await feed(fixture, next, next + 3, termAt, next + 3)
          expect(valuesOf(fixture)).to.deep.equal(expectedValues(next + 3))
          expect(fixture.failures).to.deep.equal([])
          await fixture.close()
        }
        expect(installs).to.be.at.least(2)
      }))
  }

  it('hazard m9, D6.47: an older one that arrives after a newer one changes nothing; a newer one after that is taken', () =>
    withFolder(async (folder) => {
      const [older, newer, newest] = [
        await takeSnapshot(join(folder, '40'), 40),
        await takeSnapshot(join(folder, '60'), 60),
        await takeSnapshot(join(folder, '80'), 80),
      ]
      const fixture = new EngineFixture(join(folder, 'b'), members)
      await fixture.open(tuning)
      try {
        expect(await install(fixture, newer)).to.equal(true)
        expect(await install(fixture, older)).to.equal(false)
        const { core } = fixture.engine.host.replica(1)!
        expect([fixture.status.appliedIndex, core.firstIndex, core.lastIndex]).to.deep.equal([60, 61, 60])
        expect(valuesOf(fixture)).to.deep.equal(expectedValues(60))
        await feed(fixture, 61, 65, termAt, 63)
        expect(await install(fixture, newest)).to.equal(true)
        expect([fixture.status.appliedIndex, core.firstIndex, core.lastIndex]).to.deep.equal([80, 81, 80])
        await feed(fixture, 81, 85, termAt, 85)
        expect(valuesOf(fixture)).to.deep.equal(expectedValues(85))
        await fixture.close()
        await fixture.open(tuning)
        expect(fixture.status.appliedIndex).to.equal(85)
        expect(fixture.failures).to.deep.equal([])
      } finally {
        await fixture.close()
      }
    }))

  it('K3, hazard c1: what was completed before it is not done again after it', () =>
    withFolder(async (folder) => {
      const snapshot = await takeSnapshot(join(folder, 'source'), 60)
      const fixture = new EngineFixture(join(folder, 'b'), members)
      await fixture.open(tuning)
      try {
        await install(fixture, snapshot)
        // The request of entry 60 again.
        fixture.append('a', 2, [60, 2], [{ index: 61, term: 2, kind: EntryKind.command, data: putBatch(60, 'k4', '60') }], 61)
        await until(() => fixture.status.appliedIndex === 61)
        expect(valuesOf(fixture)).to.deep.equal(expectedValues(60))
      } finally {
        await fixture.close()
      }
    }))

  it('hazard D6.51: who waits for an index that it covers gets an answer, once, and the group goes on', () =>
    withFolder(async (folder) => {
      const snapshot = await takeSnapshot(join(folder, 'source'), 60)
      const fixture = new EngineFixture(join(folder, 'b'), members)
      await fixture.open({ ...tuning, electionTimeoutMs: 200, heartbeatIntervalMs: 50 })
      try {
        const { core } = fixture.engine.host.replica(1)!
        const replica = fixture.engine.host.replica(1)!
        while (core.role !== 'leader') {
          for (const { body } of fixture.messenger.sent.splice(0)) grant(fixture, body)
          await new Promise((resolve) => setTimeout(resolve, 1))
        }
        const answers: unknown[] = []
        for (let sequence = 1; sequence <= 3; sequence++)
          replica.propose(putBatch(sequence, 'mine', 'value'), (_results, refusal) => answers.push(refusal))
        await until(() => core.lastIndex === 4)
        const term = core.term + 1
        fixture.receive({ type: 'heartbeat', from: 'c', to: 'b', term, commitIndex: 0, round: 1 })
        await install(fixture, { ...snapshot, manifest: { ...snapshot.manifest, term } })
        await until(() => answers.length === 3)
        expect(answers).to.deep.equal(['lost', 'lost', 'lost'])
        fixture.append('c', term, [60, term], [putEntry(61, term, 'k5', '61')], 61)
        await until(() => fixture.status.appliedIndex === 61)
        expect(valuesOf(fixture)).to.deep.equal(expectedValues(61))
        expect([answers.length, fixture.failures]).to.deep.equal([3, []])
      } finally {
        await fixture.close()
      }
    }))
})
