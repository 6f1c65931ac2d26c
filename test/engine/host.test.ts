/** The host's cycle over a real core and real databases: what happens while a log write is in flight, and what a replica applies. */
import { expect } from 'chai'
import { Reader } from '../../src/base/codec.js'
import { shardOf } from '../../src/engine/command.js'
import { decodeMessage } from '../../src/raft/message-codec.js'
import type { Message, VoteRequest } from '../../src/raft/types.js'
import { withFolder } from '../support/folders.js'
import { EngineFixture, putBatch, putEntry, testShards, turns, until } from './support/engine-fixture.js'

async function withEngine(run: (fixture: EngineFixture) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const fixture = new EngineFixture(folder)
    await fixture.open()
    try {
      await run(fixture)
    } finally {
      await fixture.close()
    }
  })
}

function storedValue(fixture: EngineFixture, key: string): string | undefined {
  const bytes = Buffer.from(key)
  const found = fixture.engine.host.replica(1)!.machine.read(shardOf(bytes, testShards), bytes)
  return found && Buffer.from(found.value).toString()
}

/** What the engine has sent to a node. */
function sentTo(fixture: EngineFixture, node: string): Message[] {
  const messages: Message[] = []
  for (const { to, body } of fixture.messenger.sent) {
    if (to !== `address of ${node}`) continue
    const reader = new Reader(body)
    while (reader.remaining > 0) {
      for (let head = 0; head < 3; head++) reader.varint()
      messages.push(decodeMessage(reader, 'b', node))
    }
  }
  return messages
}

const run = (first: number, last: number, term: number) =>
  Array.from({ length: last - first + 1 }, (_, at) => putEntry(first + at, term, `k${first + at}`, `term ${term}`))

describe('Host', () => {
  it('hazard D1.6, D2.12: entries that are cut while they wait for the disk leave nothing behind: the log opens again', () =>
    withEngine(async (fixture) => {
      // What waits behind the write in flight, and where the next leader cuts: before all of it, in its midst, and twice.
      const cuts: [waiting: [number, number][], cutFrom: number[]][] = [
        [[[7, 9]], [6]],
        [[[7, 9]], [8]],
        [[[7, 8]], [4]],
        [[[7, 12]], [10, 8]],
        [[[7, 12]], [10, 7]],
        [[[7, 12]], [10, 5]],
        [
          [
            [7, 8],
            [9, 12],
          ],
          [9, 5, 4],
        ],
      ]
      let term = 1
      let expected = new Map<number, number>()
      for (const [waiting, cutFrom] of cuts) {
        // A new leader replaces all but the first entry.
        term++
        fixture.append('a', term, expected.size === 0 ? [0, 0] : [1, expected.get(1)!], expected.size === 0 ? run(1, 3, term) : run(2, 3, term))
        expected = new Map([1, 2, 3].map((index) => [index, index === 1 && expected.size > 0 ? expected.get(1)! : term]))
        await until(() => fixture.status.durableIndex === 3)
        fixture.logGate.close()
        const grow = async (first: number, last: number) => {
          fixture.append('a', term, [first - 1, expected.get(first - 1)!], run(first, last, term))
          for (let index = first; index <= last; index++) expected.set(index, term)
          await turns()
        }
        await grow(4, 6)
        for (const [first, last] of waiting) await grow(first, last)
        for (const from of cutFrom) {
          term++
          for (const index of [...expected.keys()]) if (index >= from) expected.delete(index)
          await grow(from, from + 1)
        }
        fixture.logGate.open()
        await until(() => fixture.status.durableIndex === expected.size)
        await fixture.close()
        await fixture.open()
        expect(fixture.status.lastIndex, `cut from ${cutFrom}`).to.equal(expected.size)
        const { core } = fixture.engine.host.replica(1)!
        for (const [index, entryTerm] of expected) expect(core.termAt(index), `term at ${index} after a cut from ${cutFrom}`).to.equal(entryTerm)
      }
    }))

  it('hazard D2.16: after a restart a replica never applies stale entries of its log that a write under way replaces, and goes on', () =>
    withEngine(async (fixture) => {
      fixture.append('a', 1, [0, 0], run(1, 5, 1))
      await until(() => fixture.status.durableIndex === 5)
      await fixture.close()
      await fixture.open()
      fixture.logGate.close()
      fixture.append('c', 2, [2, 1], run(3, 4, 2), 4)
      await until(() => fixture.logGate.held === 1)
      await until(() => fixture.status.appliedIndex === 4 || fixture.failures.length > 0)
      fixture.logGate.open()
      expect(fixture.failures).to.deep.equal([])
      await until(() => fixture.status.durableIndex === 4)
      expect([1, 2, 3, 4, 5].map((index) => storedValue(fixture, `k${index}`))).to.deep.equal(['term 1', 'term 1', 'term 2', 'term 2', undefined])
    }))

  it('hazard D7.56: a write that comes while leadership is handed over is answered with who leads then, not with an error that has its client search', () =>
    withEngine(async (fixture) => {
      fixture.append('a', 1, [0, 0], run(1, 1, 1), 1)
      await until(() => fixture.status.durableIndex === 1)
      fixture.receive({ type: 'timeout-now', from: 'a', to: 'b', term: 1 })
      await until(() => fixture.status.term === 2 && fixture.status.role === 'candidate')
      await until(() => sentTo(fixture, 'a').some(({ type }) => type === 'vote-request'))
      const request = sentTo(fixture, 'a').find((message): message is VoteRequest => message.type === 'vote-request')!
      fixture.receive({ type: 'vote-reply', from: 'a', to: 'b', term: 2, granted: true, sequence: request.sequence })
      await until(() => fixture.status.role === 'leader')
      const replica = fixture.engine.host.replica(1)!
      fixture.receive({ type: 'heartbeat-reply', from: 'c', to: 'b', term: 2, round: 0 })
      const outcome = replica.transfer('c')
      const answers: unknown[] = []
      replica.propose(putBatch(1, 'held', 'back'), (_results, refusal) => answers.push([refusal, replica.leader]))
      await turns()
      expect(answers).to.deep.equal([])
      fixture.append('c', 3, [1, 1], [], 1)
      await until(() => answers.length > 0)
      expect(answers).to.deep.equal([['not-leader', 'c']])
      // It had not been asked yet to take over: that it leads is its own doing.
      expect(await outcome).to.equal('lost')
    }))

  it('a node that is in no map any more is answered where it was heard', () =>
    withEngine(async (fixture) => {
      fixture.known = ['b', 'c']
      fixture.append('a', 1, [0, 0], run(1, 1, 1), 1)
      await until(() => sentTo(fixture, 'a').some(({ type }) => type === 'append-reply'))
      expect(fixture.engine.host.addressOf('a')).to.equal('address of a')
      expect(fixture.engine.host.addressOf('nobody')).to.equal(undefined)
    }))
})
