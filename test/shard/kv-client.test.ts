/** The client against a cluster that answers as the test likes, in simulated time. */
import { expect } from 'chai'
import {
  ClosedError,
  ConditionFailedError,
  InvalidArgumentError,
  OutcomeUnknownError,
  OverloadedError,
  QuorateError,
  UnavailableError,
} from '../../src/base/errors.js'
import { CommandStatus, shardOf } from '../../src/engine/command.js'
import type { WaitOptions } from '../../src/engine/kv.js'
import { ReplyStatus } from '../../src/engine/kv-protocol.js'
import { ClientFixture, keyIn, type SeenRequest, watch } from './support/client-fixture.js'

const key1 = keyIn(1)
const key2 = keyIn(2)

describe('KvClient', () => {
  it('sends what a turn produced as one request a group and kind, and settles each by its own answer', async () => {
    const fixture = new ClientFixture()
    const puts = [key1, keyIn(1, 1), key2].map((key) => watch(fixture.client.put(key, 'v')))
    const get = watch(fixture.client.get(key1))
    const requests = await fixture.requests()
    expect(requests.map(({ group, kind, batch, keys }) => [group, kind, batch?.commands.length ?? keys.length])).to.deep.equal([
      [1, 2, 1],
      [1, 1, 2],
      [2, 1, 1],
    ])
    fixture.replyWrites(requests[1]!, [
      { status: CommandStatus.ok, version: 3, revision: 9 },
      { status: CommandStatus.conditionFailed, version: 5, revision: 6 },
    ])
    fixture.replyReads(requests[0]!, [{ version: 2, revision: 4, value: Buffer.from('x') }])
    await fixture.runtime.advance(0)
    expect(puts[0]!.value).to.deep.equal({ version: 3, revision: 9 })
    expect(puts[1]!.error).to.be.instanceOf(ConditionFailedError).and.include({ actualVersion: 5, actualRevision: 6 })
    expect(puts[2]!.state).to.equal('pending')
    expect(get.value).to.include({ version: 2, revision: 4 })
    fixture.client.close()
  })

  it('K3, hazard E1.23: a reply to an earlier life of this node at the same address is nobody’s answer', async () => {
    const first = new ClientFixture({ seed: 1 })
    watch(first.client.put(key1, 'old'))
    const old = await first.request()
    const second = new ClientFixture({ seed: 2 })
    const put = watch(second.client.put(key1, 'new'))
    const own = await second.request()
    second.acknowledge({ ...old, node: own.node })
    await second.runtime.advance(0)
    expect(put.state).to.equal('pending')
    second.acknowledge(own)
    await second.runtime.advance(0)
    expect(put.state).to.equal('resolved')
  })

  it('asks again for the rest when a reply holds a part of the keys', async () => {
    const fixture = new ClientFixture()
    const reads = watch(fixture.client.getMany([key1, keyIn(1, 1), keyIn(1, 2)]))
    const value = (text: string) => ({ version: 1, revision: 1, value: Buffer.from(text) })
    fixture.replyReads(await fixture.request(), [value('one')])
    const rest = await fixture.request()
    expect(rest.keys.map(({ key }) => Buffer.from(key).toString())).to.deep.equal([keyIn(1, 1), keyIn(1, 2)])
    fixture.replyReads(rest, [undefined, value('three')])
    await fixture.runtime.advance(0)
    expect(reads.value!.map((found) => found && Buffer.from(found.value).toString())).to.deep.equal(['one', undefined, 'three'])
    fixture.client.close()
  })

  it('K3: a write keeps its request id over refusals, lost leaders and silence, and the low-water mark waits for it', async () => {
    const fixture = new ClientFixture()
    const put = watch(fixture.client.put(key1, 'v'))
    let request = await fixture.request()
    const { sequence } = request.batch!.commands[0]!
    const asked = new Set([request.node])
    for (const status of [ReplyStatus.notLeader, ReplyStatus.lost, ReplyStatus.stopped, ReplyStatus.overloaded, ReplyStatus.wrongGroup]) {
      fixture.refuse(request, status)
      request = await fixture.request()
      asked.add(request.node)
      expect(request.batch!.commands[0]!.sequence).to.equal(sequence)
      expect(request.batch!.lowWater).to.equal(sequence)
    }
    // Silence.
    request = await fixture.request()
    const other = watch(fixture.client.put(keyIn(1, 1), 'w'))
    const next = await fixture.request()
    expect(next.batch!.lowWater).to.equal(sequence)
    expect(next.batch!.commands[0]!.sequence).to.equal(sequence + 1)
    fixture.acknowledge(next)
    fixture.acknowledge(request)
    await fixture.runtime.advance(0)
    expect([put.state, other.state]).to.deep.equal(['resolved', 'resolved'])
    expect(asked.size).to.be.greaterThan(1)
    watch(fixture.client.put(key1, 'x'))
    expect((await fixture.request()).batch!.lowWater).to.equal(sequence + 2)
    fixture.client.close()
  })

  it('K3: what had no effect and has no answer is asked again as a new request; answers to the old one are nobody’s from then on', async () => {
    const fixture = new ClientFixture()
    const again = { status: CommandStatus.again, version: 0, revision: 0 }
    const txn = watch(fixture.client.txn({ if: [{ key: key1, absent: true }], then: [{ put: key1, value: 'v' }], else: [{ get: key1 }] }))
    const first = await fixture.request()
    const [sequence] = first.batch!.commands.map((each) => each.sequence)
    // Silence, and a second attempt, which is answered; then the answer to the first comes.
    const second = await fixture.request()
    expect(second.batch!.commands[0]!.sequence).to.equal(sequence)
    fixture.replyWrites(second, [again])
    await fixture.runtime.advance(0)
    fixture.replyWrites(first, [again])
    const third = await fixture.request()
    expect(third.batch!.commands.map((each) => each.sequence)).to.deep.equal([sequence! + 1])
    expect(third.batch!.commands[0]!.value).to.deep.equal(first.batch!.commands[0]!.value)
    expect(third.batch!.lowWater, 'nobody waits for the old one any more').to.equal(sequence! + 1)
    fixture.replyWrites(first, [{ status: CommandStatus.ok, version: 0, revision: 1, body: Buffer.from([1, 9]) }])
    fixture.replyWrites(second, [again])
    expect(await fixture.requests(), 'it is asked once').to.have.length(0)
    expect(txn.state).to.equal('pending')
    fixture.replyWrites(third, [{ status: CommandStatus.ok, version: 0, revision: 7, body: Buffer.from([1, 2]) }])
    await fixture.runtime.advance(0)
    expect(txn.value).to.deep.equal({ succeeded: true, revision: 7, results: [{ version: 2, revision: 7 }] })
    watch(fixture.client.put(key1, 'x'))
    expect((await fixture.request()).batch!.lowWater).to.equal(sequence! + 2)
    fixture.client.close()
  })

  it('hazard c6: an abort, the deadline and the end find what was asked again, too', async () => {
    const fixture = new ClientFixture()
    const again = { status: CommandStatus.again, version: 0, revision: 0 }
    const begin = async (options: WaitOptions = {}) => {
      const txn = watch(fixture.client.batch([{ put: key1, value: 'v' }], options))
      fixture.replyWrites(await fixture.request(), [again])
      await fixture.runtime.advance(0)
      expect(await fixture.requests()).to.have.length(1)
      return txn
    }
    const controller = new AbortController()
    const aborted = await begin({ signal: controller.signal })
    const late = await begin({ timeoutMs: 300 })
    const closed = await begin()
    controller.abort(new Error('enough'))
    await fixture.runtime.advance(400)
    expect([aborted.state, late.state, closed.state]).to.deep.equal(['rejected', 'rejected', 'pending'])
    expect(aborted.error).to.be.instanceOf(OutcomeUnknownError).and.include({ cause: controller.signal.reason })
    expect(late.error).to.be.instanceOf(OutcomeUnknownError)
    fixture.client.close()
    await fixture.runtime.advance(0)
    expect(closed.error).to.be.instanceOf(OutcomeUnknownError)
  })

  it('repeats the rest, under the same request ids, when a reply holds a part of the answers', async () => {
    const fixture = new ClientFixture()
    const writes = [0, 1, 2].map((number) => watch(fixture.client.increment(keyIn(1, number))))
    const all = await fixture.request()
    const answer = (value: string) => ({ status: CommandStatus.ok, version: 1, revision: 1, body: Buffer.from(value) })
    fixture.replyWrites(all, [answer('1')])
    const rest = await fixture.request()
    expect(rest.batch!.commands.map(({ sequence }) => sequence)).to.deep.equal(all.batch!.commands.slice(1).map(({ sequence }) => sequence))
    fixture.replyWrites(rest, [answer('2'), answer('-3')])
    await fixture.runtime.advance(0)
    expect(writes.map(({ value }) => value?.value)).to.deep.equal([1n, 2n, -3n])
    fixture.client.close()
  })

  it('asks once for each, when a reply holds a part of the answers and one of those is to be asked again', async () => {
    const fixture = new ClientFixture()
    const writes = [0, 1].map((number) => watch(fixture.client.put(keyIn(1, number), 'v')))
    const all = await fixture.request()
    const [first, second] = all.batch!.commands.map(({ sequence }) => sequence)
    fixture.replyWrites(all, [{ status: CommandStatus.again, version: 0, revision: 0 }])
    const rest = await fixture.request()
    expect(rest.batch!.commands.map(({ sequence }) => sequence).sort()).to.deep.equal([second, second! + 1])
    expect(rest.batch!.lowWater).to.equal(first! + 1)
    fixture.acknowledge(rest)
    await fixture.runtime.advance(0)
    expect(writes.map(({ state }) => state)).to.deep.equal(['resolved', 'resolved'])
    fixture.client.close()
  })

  it('tells what a group says of a transaction, a fence and a number, each by its own error', async () => {
    const fixture = new ClientFixture()
    const cases = [
      [CommandStatus.fenced, ConditionFailedError, 'FENCED'],
      [CommandStatus.notANumber, ConditionFailedError, 'NOT_A_NUMBER'],
      [CommandStatus.outOfRange, ConditionFailedError, 'NUMBER_OUT_OF_RANGE'],
      [CommandStatus.conditionFailed, ConditionFailedError, 'CONDITION_FAILED'],
      [CommandStatus.tooLarge, InvalidArgumentError, 'RESULT_TOO_LARGE'],
      [CommandStatus.stale, OutcomeUnknownError, 'OUTCOME_UNKNOWN'],
    ] as const
    for (const [status, errorClass, code] of cases) {
      const write = watch(fixture.client.increment(key1))
      fixture.replyWrites(await fixture.request(), [{ status, version: 4, revision: 5 }])
      await fixture.runtime.advance(0)
      expect(write.error, code).to.be.instanceOf(errorClass).and.include({ code })
      if (write.error instanceof ConditionFailedError) expect(write.error).to.include({ actualVersion: 4, actualRevision: 5 })
    }
    fixture.client.close()
  })

  it('refuses at the call what is over a limit, in several shards or no transaction, and sends nothing', async () => {
    const fixture = new ClientFixture({ limits: { maxKeyBytes: 20, maxValueBytes: 10, maxBatchOperations: 3, maxBatchBytes: 40 } })
    const { client } = fixture
    const operation = { put: '{t}a', value: '1234567890' }
    const foreign = Array.from({ length: 100 }, (_, number) => `k${number}`).find(
      (key) => shardOf(Buffer.from(key), 8) !== shardOf(Buffer.from('t'), 8),
    )!
    const cases: [string, () => Promise<unknown>][] = [
      ['TOO_MANY_OPERATIONS', () => client.batch(Array.from({ length: 4 }, () => ({ delete: '{t}a' })))],
      ['BATCH_TOO_LARGE', () => client.batch([operation, operation, { put: '{t}a', value: '123456789' }])],
      ['VALUE_TOO_LARGE', () => client.batch([{ put: '{t}a', value: '12345678901' }])],
      ['KEY_TOO_LARGE', () => client.txn({ then: [{ get: '{t}'.padEnd(21, 'k') }] })],
      ['EMPTY_KEY', () => client.txn({ if: [{ key: '', absent: true }] })],
      ['CROSS_SHARD', () => client.batch([operation, { delete: foreign }])],
      ['CROSS_SHARD', () => client.txn({ if: [{ key: '{t}a', absent: true }], else: [{ get: foreign }] })],
      ['CROSS_SHARD', () => client.put('{t}a', '', { fence: { key: foreign, revision: 1 } })],
      ['CROSS_SHARD', () => client.batch([operation], { fence: { key: foreign, revision: 1 } })],
      ['INVALID_ARGUMENT', () => client.increment('{t}a', 0.5)],
    ]
    for (const [code, call] of cases) {
      const refused = watch(call())
      await fixture.runtime.advance(0)
      expect(refused.error, code).to.be.instanceOf(InvalidArgumentError).and.include({ code })
    }
    expect(await fixture.requests(1000)).to.have.length(0)
    watch(client.batch([operation, operation, { put: '{t}a', value: '' }]))
    expect(await fixture.requests()).to.have.length(1)
    client.close()
  })

  it('settles once: late and repeated answers, and answers of the wrong size, change nothing', async () => {
    const fixture = new ClientFixture()
    const put = watch(fixture.client.put(key1, 'v'))
    const request = await fixture.request()
    fixture.replyWrites(request, [])
    await fixture.runtime.advance(0)
    expect(put.state).to.equal('pending')
    const again = await fixture.request()
    fixture.acknowledge(request)
    await fixture.runtime.advance(0)
    expect(put.state).to.equal('pending')
    fixture.acknowledge(again)
    fixture.acknowledge(again)
    await fixture.runtime.advance(0)
    expect(put.state).to.equal('resolved')
    fixture.client.close()
  })

  it('K3: what a shard refuses for its birth goes out under a later one, when nothing was forgotten since it was sent first', async () => {
    const fixture = new ClientFixture()
    fixture.timeMs = 5000
    const put = watch(fixture.client.put(key1, 'v'))
    const first = await fixture.request()
    const expired = { status: CommandStatus.expired, version: 4000, revision: first.batch!.birth + 70 }
    // Also when it was sent twice.
    const second = await fixture.request(5000)
    expect([second.batch!.birth, second.batch!.commands[0]!.sequence]).to.deep.equal([first.batch!.birth, first.batch!.commands[0]!.sequence])
    fixture.replyWrites(second, [expired], 6000)
    const third = await fixture.request()
    expect(third.batch!.birth).to.equal(first.batch!.birth + 71)
    fixture.acknowledge(third)
    await fixture.runtime.advance(0)
    expect(put.state).to.equal('resolved')
    watch(fixture.client.put(key2, 'v'))
    expect((await fixture.request()).batch!.birth, 'of all that follows').to.equal(first.batch!.birth + 71)
    fixture.client.close()
  })

  it('K4: what may have been done before it was forgotten is unknown', async () => {
    const fixture = new ClientFixture({ requestTimeoutMs: 1e9 })
    fixture.timeMs = 5000
    const put = watch(fixture.client.put(key1, 'v'))
    const request = await fixture.request()
    fixture.replyWrites(request, [{ status: CommandStatus.expired, version: 5001, revision: request.batch!.birth }], 900_000)
    await fixture.runtime.advance(0)
    expect(put.error).to.be.instanceOf(OutcomeUnknownError)
    fixture.client.close()
  })

  it('K3: a write keeps the birth under which it was sent first; a request holds writes of one birth', async () => {
    const fixture = new ClientFixture()
    const old = watch(fixture.client.put(key1, 'old'))
    const first = await fixture.request()
    const refused = watch(fixture.client.put(key2, 'refused'))
    const other = await fixture.request()
    fixture.replyWrites(other, [{ status: CommandStatus.expired, version: 0, revision: other.batch!.birth }])
    const renewed = await fixture.request()
    expect(renewed.batch!.birth).to.equal(other.batch!.birth + 1)
    fixture.acknowledge(renewed)
    // The old one is repeated while a new one of its group waits.
    fixture.refuse(first, ReplyStatus.overloaded)
    const fresh = watch(fixture.client.put(keyIn(1, 1), 'fresh'))
    const repeated: SeenRequest[] = []
    while (repeated.length < 2) repeated.push(...(await fixture.requests(1)))
    expect(repeated.map(({ batch }) => batch!.birth).sort()).to.deep.equal([first.batch!.birth, first.batch!.birth + 1].sort())
    for (const request of repeated) fixture.acknowledge(request)
    await fixture.runtime.advance(0)
    expect([old.state, refused.state, fresh.state]).to.deep.equal(['resolved', 'resolved', 'resolved'])
    fixture.client.close()
  })

  it('asks a group for its time before the first write, and again after a long silence, else never', async () => {
    const fixture = new ClientFixture({ sessionTtlMs: 40_000 })
    const asked = async (key: string) => {
      const before = fixture.timesAsked
      const put = watch(fixture.client.put(key, 'v'))
      fixture.acknowledge(await fixture.request())
      await fixture.runtime.advance(0)
      expect(put.state).to.equal('resolved')
      return fixture.timesAsked - before
    }
    expect(await asked(key1)).to.equal(1)
    expect(await asked(key1)).to.equal(0)
    expect(await asked(key2)).to.equal(1)
    await fixture.runtime.advance(9000)
    expect(await asked(key1)).to.equal(0)
    await fixture.runtime.advance(11_000)
    expect(await asked(key1)).to.equal(1)
    fixture.client.close()
  })

  it('hazard c6: at the deadline or the signal a write that was sent is unknown, one that was not and a read are not done', async () => {
    const fixture = new ClientFixture()
    const sent = watch(fixture.client.put(key1, 'v', { timeoutMs: 100 }))
    const read = watch(fixture.client.get(key1, { timeoutMs: 100 }))
    expect(await fixture.requests()).to.have.length(2)
    const controller = new AbortController()
    const aborted = watch(fixture.client.put(key2, 'v', { signal: controller.signal }))
    const reason = new Error('enough')
    controller.abort(reason)
    await fixture.runtime.advance(150)
    expect(sent.error).to.be.instanceOf(OutcomeUnknownError)
    expect(read.error).to.be.instanceOf(UnavailableError).and.include({ code: 'TIMEOUT' })
    expect(aborted.error).to.equal(reason)
    expect(await fixture.requests(2000), 'nothing is asked for those who left').to.have.length(0)
    const late = new AbortController()
    const unknown = watch(fixture.client.put(key2, 'v', { signal: late.signal }))
    await fixture.request()
    late.abort(reason)
    await fixture.runtime.advance(0)
    expect(unknown.error).to.be.instanceOf(OutcomeUnknownError).and.include({ cause: reason })
    fixture.client.close()
  })

  it('follows a hint at once, but never goes round in circles without a pause', async () => {
    const fixture = new ClientFixture()
    watch(fixture.client.put(key1, 'v'))
    let request = await fixture.request()
    let asked = 0
    const startMs = fixture.runtime.nowMs()
    // Each node names the next one, which does not lead either.
    while (fixture.runtime.nowMs() - startMs < 500) {
      asked++
      fixture.refuse(request, ReplyStatus.notLeader, { a: 'b', b: 'c', c: 'a' }[request.node]!)
      const [next] = await fixture.requests()
      request = next ?? (await fixture.request())
      if (asked > 1000) break
    }
    expect(asked).to.be.below(100)
    fixture.client.close()
  })

  it('a leader that is found is not left because of answers to earlier requests', async () => {
    const fixture = new ClientFixture()
    const puts: { state: string }[] = []
    const requests = []
    for (let at = 0; at < 5; at++) {
      puts.push(watch(fixture.client.put(key1, `${at}`)))
      requests.push(await fixture.request())
    }
    const leader = requests[0]!.node === 'a' ? 'b' : 'a'
    for (const request of requests) fixture.refuse(request, ReplyStatus.notLeader, leader)
    const repeated = await fixture.requests()
    expect(repeated.map(({ node, batch }) => [node, batch!.commands.length])).to.deep.equal([[leader, 5]])
    fixture.acknowledge(repeated[0]!)
    await fixture.runtime.advance(0)
    expect(new Set(puts.map(({ state }) => state))).to.deep.equal(new Set(['resolved']))
    fixture.client.close()
  })

  it('hazard E1.10: an answer that it does not understand is no reason to ask again in a tight loop', async () => {
    const fixture = new ClientFixture()
    const put = watch(fixture.client.put(key1, 'v'))
    let request = await fixture.request()
    let asked = 0
    const startMs = fixture.runtime.nowMs()
    while (fixture.runtime.nowMs() - startMs < 1500 && asked < 1000) {
      asked++
      try {
        fixture.reply(request, 99)
      } catch {
        // The messenger counts it as malformed.
      }
      const [next] = await fixture.requests()
      request = next ?? (await fixture.request(5000))
    }
    expect(asked).to.be.below(50)
    expect(put.state).to.equal('pending')
    fixture.client.close()
  })

  it('the mark of one group does not wait for the writes of another', async () => {
    const fixture = new ClientFixture()
    watch(fixture.client.put(key1, 'stuck'))
    await fixture.request()
    for (let at = 0; at < 3; at++) {
      watch(fixture.client.put(key2, `${at}`))
      const request = await fixture.request()
      expect(request.batch!.lowWater, `write ${at}`).to.equal(request.batch!.commands[0]!.sequence)
      fixture.acknowledge(request)
    }
    fixture.client.close()
  })

  it('bounds what waits, refuses what cannot be, and leaves nothing waiting when it is closed', async () => {
    const fixture = new ClientFixture({ maxWaitingOperations: 3 })
    const { client } = fixture
    const waiting = [watch(client.put(key1, 'v')), watch(client.get(key1)), watch(client.put(key2, 'v'))]
    const over = watch(client.get(key2))
    await fixture.requests()
    expect(over.error).to.be.instanceOf(OverloadedError)
    for (const options of [{ ifVersion: -1 }, { timeoutMs: -1 }]) {
      const refused = watch(client.put(key1, 'v', options))
      await fixture.runtime.advance(0)
      expect(refused.error).to.be.instanceOf(InvalidArgumentError)
    }
    client.close()
    client.close()
    await fixture.runtime.advance(0)
    expect(waiting[0]!.error).to.be.instanceOf(OutcomeUnknownError)
    expect(waiting[1]!.error).to.be.instanceOf(ClosedError)
    const after = watch(client.get(key1))
    await fixture.runtime.advance(0)
    expect(after.error).to.be.instanceOf(ClosedError)
    expect(await fixture.requests(60_000)).to.have.length(0)
  })

  it('a request that the group calls malformed fails its callers at once', async () => {
    const fixture = new ClientFixture()
    const put = watch(fixture.client.put(key1, 'v'))
    fixture.refuse(await fixture.request(), ReplyStatus.malformed, 'too long')
    await fixture.runtime.advance(0)
    expect(put.error).to.be.instanceOf(QuorateError).and.include({ code: 'REFUSED' })
    fixture.client.close()
  })

  it('asks elsewhere at once when a connection is lost', async () => {
    const fixture = new ClientFixture()
    const put = watch(fixture.client.put(key1, 'v'))
    const request = await fixture.request()
    fixture.client.onPeerLost(request.node)
    const again = await fixture.request(20)
    expect(again.node).not.to.equal(request.node)
    fixture.acknowledge(again)
    await fixture.runtime.advance(0)
    expect(put.state).to.equal('resolved')
    fixture.client.close()
  })

  it('hazard q: large values are sent as fast as they are taken, not all at once', async () => {
    const fixture = new ClientFixture({ maxWaitingBytes: 1024 * 1024 * 1024 })
    const puts = Array.from({ length: 30 }, (_, at) => watch(fixture.client.put(keyIn(1, at % 3), Buffer.alloc(1024 * 1024, at))))
    const order: number[] = []
    const underWay = await fixture.requests()
    while (underWay.length > 0) {
      const bytes = underWay.reduce((sum, { batch }) => sum + batch!.commands.reduce((total, { value }) => total + value!.length, 0), 0)
      expect(bytes).to.be.at.most(8 * 1024 * 1024)
      const request = underWay.shift()!
      order.push(...request.batch!.commands.map(({ sequence }) => sequence))
      fixture.acknowledge(request)
      underWay.push(...(await fixture.requests()))
    }
    await fixture.runtime.advance(0)
    expect(puts.filter(({ state }) => state === 'resolved')).to.have.length(30)
    expect(order).to.deep.equal(Array.from({ length: 30 }, (_, at) => at + 1))
    fixture.client.close()
  })

  it('hazard q: what is slow is not asked again at the same pace for ever: repeats would keep it slow', async () => {
    const fixture = new ClientFixture()
    const put = watch(fixture.client.put(key1, 'v', { timeoutMs: 60_000 }))
    const requests = await fixture.requests(31_000)
    expect(requests.length).to.be.within(3, 6)
    // Any answer is a sign that it is not slow any more.
    fixture.acknowledge((await fixture.request(60_000))!)
    await fixture.runtime.advance(0)
    expect(put.state).to.equal('resolved')
    watch(fixture.client.put(key1, 'w'))
    await fixture.request()
    expect(await fixture.requests(1500)).to.have.length(1)
    fixture.client.close()
  })
})
