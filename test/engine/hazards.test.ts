/** Bugs of other implementations that live between core, host and state machine, each as its scenario on the real engine (hazards/known-bugs.md). */
import { expect } from 'chai'
import { Writer } from '../../src/base/codec.js'
import { CorruptionError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { defaultLimits, shardOf } from '../../src/engine/command.js'
import { defaultTuning } from '../../src/engine/engine.js'
import { ReplyStatus, RequestKind, writeReadKeys } from '../../src/engine/kv-protocol.js'
import { KvService } from '../../src/engine/kv-service.js'
import { encodeMessage } from '../../src/raft/message-codec.js'
import { EntryKind } from '../../src/raft/types.js'
import { Channel } from '../../src/transport/messenger.js'
import { withFolder } from '../support/folders.js'
import { EngineFixture, putBatch, putEntry, testShards, turns, until } from './support/engine-fixture.js'

const ownership = { shards: testShards, groupOf: () => 1, shardsOf: () => [] }

async function withEngine(members: readonly string[], run: (fixture: EngineFixture) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const fixture = new EngineFixture(folder, members)
    await fixture.open(members.length === 1 ? { electionTimeoutMs: 400, heartbeatIntervalMs: 10 } : {})
    try {
      await run(fixture)
    } finally {
      await fixture.close()
    }
  })
}

const storedValue = (fixture: EngineFixture, key: string) => {
  const bytes = Buffer.from(key)
  const record = fixture.engine.host.replica(1)!.machine.read(shardOf(bytes, testShards), bytes)
  return record && Buffer.from(record.value).toString()
}

const serviceOf = ({ engine, messenger }: EngineFixture) =>
  new KvService({ host: engine.host, messenger, ownership, limits: defaultLimits, runtime: systemRuntime })

/** Answers with the status of a request. */
const ask = (service: KvService, kind: RequestKind, payload: Uint8Array) =>
  new Promise<ReplyStatus>((resolve) => service.handle(kind, 1, payload, (status) => resolve(status)))

function readOf(key: string): Uint8Array {
  const writer = new Writer()
  writeReadKeys(writer, [{ shard: shardOf(Buffer.from(key), testShards), key: Buffer.from(key) }])
  return writer.finish()
}

describe('hazards between core, host and state machine', () => {
  it('hazard D1.8: one fsync serves all that waited for it, and what changes nothing on disk costs none', () =>
    withEngine(['b'], async (fixture) => {
      await until(() => fixture.status.role === 'leader' && fixture.status.commitIndex > 0)
      const service = serviceOf(fixture)
      const before = fixture.engine.host.logWrites
      await Promise.all(Array.from({ length: 50 }, (_, at) => ask(service, RequestKind.write, putBatch(at + 1, `k${at}`, 'v'))))
      expect(fixture.engine.host.logWrites - before).to.be.within(1, 3)
      const written = fixture.engine.host.logWrites
      for (let at = 0; at < 20; at++) expect(await ask(service, RequestKind.read, readOf('k1'))).to.equal(ReplyStatus.done)
      expect(fixture.engine.host.logWrites).to.equal(written)
    }))

  it('hazard D3.30: a state machine that stands still holds up neither heartbeats nor appends', () =>
    withEngine(['a', 'b', 'c'], async (fixture) => {
      fixture.stateGate.close()
      // More than the overlay may hold while a flush hangs: applying stops.
      const big = 'x'.repeat(1_000_000)
      let index = 0
      while (fixture.status.appliedIndex === index && index < 60) {
        index++
        fixture.append('a', 1, [index - 1, index === 1 ? 0 : 1], [putEntry(index, 1, `k${index}`, big)], index)
        const wanted = index
        await until(() => fixture.status.durableIndex === wanted)
        await turns()
      }
      expect(index, 'applying goes on without bound').to.be.lessThan(60)
      expect(index * 1_000_000).to.be.greaterThan(defaultTuning.flushBytes)
      fixture.messenger.sent.length = 0
      fixture.receive({ type: 'heartbeat', from: 'a', to: 'b', term: 1, commitIndex: index, round: 7 })
      fixture.append('a', 1, [index, 1], [putEntry(index + 1, 1, 'last', 'v')], index)
      await until(() => fixture.status.durableIndex === index + 1)
      await until(() => fixture.messenger.sent.length >= 2)
      fixture.stateGate.open()
      fixture.receive({ type: 'heartbeat', from: 'a', to: 'b', term: 1, commitIndex: index + 1, round: 8 })
      await until(() => fixture.status.appliedIndex === index + 1)
      expect(storedValue(fixture, 'last')).to.equal('v')
    }))

  it('hazard D4.38: a restarted replica serves no read before it has applied what a leader confirms', () =>
    withEngine(['b'], async (fixture) => {
      await until(() => fixture.status.role === 'leader' && fixture.status.commitIndex > 0)
      expect(await ask(serviceOf(fixture), RequestKind.write, putBatch(1, 'k', 'new'))).to.equal(ReplyStatus.done)
      await fixture.close()
      await fixture.open({ electionTimeoutMs: 400, heartbeatIntervalMs: 10 })
      const service = serviceOf(fixture)
      let status: ReplyStatus = ReplyStatus.notLeader
      let value: string | undefined
      while (status === ReplyStatus.notLeader || status === ReplyStatus.overloaded) {
        status = await ask(service, RequestKind.read, readOf('k'))
        value = storedValue(fixture, 'k')
        await turns(1)
      }
      expect([status, value]).to.deep.equal([ReplyStatus.done, 'new'])
    }))

  it('hazard D6.51: a write whose place a snapshot covers is answered, and holds up none that follows it', () =>
    withEngine(['b'], async (fixture) => {
      await until(() => fixture.status.role === 'leader' && fixture.status.commitIndex > 0)
      const replica = fixture.engine.host.replica(1)!
      const index = replica.core.lastIndex + 1
      await replica.beginInstall()
      const applied = Buffer.alloc(8)
      applied.writeUInt32BE(index, 4)
      await replica.stage([[Buffer.from('\xff\xffa', 'latin1'), applied]])
      // The switch hangs while the write is committed: applying waits for it.
      fixture.stateGate.close()
      const { term, configuration } = replica.core
      const installed = replica.install({ session: 1, group: 1, index, term, configuration })
      const covered = new Promise<string | null>((resolve) => replica.propose(putBatch(1, 'k', 'v'), (_, refusal) => resolve(refusal)))
      await until(() => replica.core.commitIndex === index)
      fixture.stateGate.open()
      expect(await installed).to.equal(true)
      expect(await covered).to.equal('lost')
      expect(await ask(serviceOf(fixture), RequestKind.write, putBatch(2, 'k', 'later'))).to.equal(ReplyStatus.done)
      expect(storedValue(fixture, 'k')).to.equal('later')
    }))

  it('hazard D7.58: an entry that cannot be applied stops its group loudly, answers who waits, and leaves the other groups alone', () =>
    withFolder(async (folder) => {
      const fixture = new EngineFixture(folder)
      await fixture.open({}, [
        { id: 1, members: ['a', 'b', 'c'] },
        { id: 2, members: ['a', 'b', 'c'] },
      ])
      try {
        const waiting = new Promise<string | null>((resolve) => fixture.engine.host.replica(1)!.awaitReadable(resolve))
        fixture.append('a', 1, [0, 0], [{ index: 1, term: 1, kind: EntryKind.command, data: Buffer.from([99, 1, 2, 3]) }], 1)
        await until(() => fixture.failures.length > 0)
        expect(fixture.failures[0]).to.be.instanceOf(CorruptionError)
        expect(fixture.engine.host.replica(1)?.stopped ?? true).to.equal(true)
        expect(await waiting).to.be.oneOf(['stopped', 'not-leader'])
        const other = fixture.engine.host.replica(2)!
        expect(other.stopped).to.equal(false)
        const message = {
          ...({ type: 'append-request', from: 'a', to: 'b', term: 1, previousIndex: 0, previousTerm: 0 } as const),
          ...{ entries: [putEntry(1, 1, 'k', 'v')], commitIndex: 1, session: 1, sequence: 1 },
        }
        const writer = new Writer().varint(2).varint(0).varint(0)
        encodeMessage(writer, message)
        fixture.messenger.deliver(Channel.raft, 'a', writer.finish())
        await until(() => other.appliedIndex === 1)
      } finally {
        await fixture.close()
      }
    }))

  it('hazard D8.62: messages for a group that is not here, no longer here, or here in another life, are dropped', () =>
    withEngine(['a', 'b', 'c'], async (fixture) => {
      const message = { type: 'heartbeat', from: 'a', to: 'b', term: 9, commitIndex: 0, round: 1 } as const
      for (const [group, senderLife, receiverLife] of [
        [7, 0, 0],
        [1, 0, 77],
      ] as const) {
        const writer = new Writer().varint(group).varint(senderLife).varint(receiverLife)
        encodeMessage(writer, message)
        fixture.messenger.deliver(Channel.raft, 'a', writer.finish())
      }
      await turns()
      expect(fixture.status.term).to.equal(0)
      expect(fixture.messenger.sent).to.deep.equal([])
      fixture.receive(message)
      await until(() => fixture.status.term === 9)
    }))

  it('hazard D8.61: removing one group from the shared stores takes nothing of another', () =>
    withFolder(async (folder) => {
      const fixture = new EngineFixture(folder)
      const groups = [1, 2, 3].map((id) => ({ id, members: ['a', 'b', 'c'] }))
      await fixture.open({}, groups)
      for (const group of [1, 2, 3]) {
        const writer = new Writer().varint(group).varint(0).varint(0)
        encodeMessage(writer, {
          ...({ type: 'append-request', from: 'a', to: 'b', term: 1, previousIndex: 0, previousTerm: 0 } as const),
          ...{ entries: [putEntry(1, 1, 'k', `of ${group}`), putEntry(2, 1, 'l', 'v')], commitIndex: 2, session: 1, sequence: 1 },
        })
        fixture.messenger.deliver(Channel.raft, 'a', writer.finish())
      }
      await until(() => fixture.engine.status().every(({ appliedIndex, durableIndex }) => appliedIndex === 2 && durableIndex === 2))
      await fixture.engine.lives.destroy(2, 0)
      await fixture.close()
      await fixture.open({}, [groups[0]!, groups[2]!])
      try {
        for (const group of [1, 3]) {
          const replica = fixture.engine.host.replica(group)!
          expect(replica.core.lastIndex).to.equal(2)
          expect(Buffer.from(replica.machine.read(shardOf(Buffer.from('k'), testShards), Buffer.from('k'))!.value).toString()).to.equal(`of ${group}`)
        }
        expect(fixture.engine.host.replica(2)).to.equal(undefined)
      } finally {
        await fixture.close()
      }
    }))

  it('hazard D8.62: a replica that is prepared while the one before it is being destroyed keeps its log', () =>
    withFolder(async (folder) => {
      const fixture = new EngineFixture(folder)
      const groups = [1, 2].map((id) => ({ id, members: ['a', 'b', 'c'] }))
      await fixture.open({}, groups)
      // The next one is asked for in the very moment in which the old one is doomed and not yet gone.
      const { lives } = fixture.engine
      const [, life] = await Promise.all([lives.destroy(2, 0), lives.prepare(2)])
      expect(life).to.not.equal(0)
      try {
        // In turn with all that is still to be done for the group.
        expect(await lives.prepare(2)).to.equal(life)
        const replica = fixture.engine.host.replica(2)
        expect([replica?.life, replica?.stopped]).to.deep.equal([life, false])
      } finally {
        await fixture.close()
      }
    }))
})
