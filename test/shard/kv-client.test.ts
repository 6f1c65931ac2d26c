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
import { CommandStatus } from '../../src/engine/command.js'
import { ReplyStatus } from '../../src/engine/kv-protocol.js'
import { ClientFixture, keyIn, watch } from './support/client-fixture.js'

const key1 = keyIn(1)
const key2 = keyIn(2)

describe('KvClient', () => {
  it('sends what a turn produced as one request a group and kind, and settles each by its own answer', async () => {
    const fixture = new ClientFixture()
    const puts = [key1, keyIn(1, 1), key2].map((key) => watch(fixture.client.put(key, 'v')))
    const get = watch(fixture.client.get(key1))
    const requests = await fixture.requests()
    expect(requests.map(({ group, kind, batch, keys }) => [group, kind, batch?.commands.length ?? keys.length])).to.deep.equal([
      [1, 1, 2],
      [1, 2, 1],
      [2, 1, 1],
    ])
    fixture.replyWrites(requests[0]!, [
      { status: CommandStatus.ok, version: 3, revision: 9 },
      { status: CommandStatus.conditionFailed, version: 5, revision: 6 },
    ])
    fixture.replyReads(requests[1]!, [{ version: 2, revision: 4, value: Buffer.from('x') }])
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
