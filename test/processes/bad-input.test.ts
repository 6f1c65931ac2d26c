/**
 * Bad input against a real node process: each row is refused with a typed event or error, touches no state, and the node goes on serving in the same process.
 * (What the transport alone does with each row: test/transport/tcp-bad-input.test.ts.)
 */
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { expect } from 'chai'
import { Writer } from '../../src/base/codec.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { RequestKind, writeRequestHead } from '../../src/engine/kv-protocol.js'
import { InvalidArgumentError, type Node, QuorateError, UnavailableError } from '../../src/index.js'
import { encodeConfiguration, encodeMessage } from '../../src/raft/message-codec.js'
import type { Entry, Message } from '../../src/raft/types.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { Channel, Messenger } from '../../src/transport/messenger.js'
import { tcp } from '../../src/transport/tcp.js'
import { encodeHello } from '../../src/transport/tcp-hello.js'
import type { NodeProcess } from '../support/node-process.js'
import { newSeed } from '../support/seed.js'
import { ProcessCluster, until } from './support/process-cluster.js'

const group = 1
const largest = 2 ** 53 - 1

describe('bad input to a node process', function () {
  this.timeout(120_000)
  let cluster: ProcessCluster
  let client: Node
  /** The node that is attacked: one that follows. */
  let node: NodeProcess
  let pid: number | undefined
  /** Speaks the protocol as another node of the same cluster would, and says nonsense in it. */
  let broken: Messenger
  let writes = 0

  before(async () => {
    cluster = await ProcessCluster.open({ size: 3, groups: 2, seed: 1, proxied: false })
    client = await cluster.client()
    await cluster.healed()
    const leader = (await cluster.leaders()).get(group)
    node = cluster.nodes.find((each) => each !== leader)!
    pid = node.pid
    const { clusterId } = await node.status()
    broken = new Messenger({ transport: tcp(), runtime: systemRuntime, clusterId: Buffer.from(clusterId, 'hex'), nodeId: 'broken' })
    await broken.open()
  })

  after(async () => {
    await broken?.close()
    await cluster?.close()
  })

  beforeEach(() => {
    node.refusals.length = 0
  })

  /** The cluster takes writes, the node is the same process, without a failure, and takes part: it has what was just written. */
  afterEach(async () => {
    const { version } = await client.kv.put('still', 'serving')
    expect(version).to.equal(++writes)
    expect((await client.kv.get('still'))?.version).to.equal(writes)
    const committed = Math.max(
      ...(await cluster.statuses()).flatMap(({ groups }) => groups.filter((each) => each.group === group).map(({ commitIndex }) => commitIndex)),
    )
    await until('the node has caught up', async () => {
      const status = await node.status()
      expect(status.failure).to.equal(null)
      return status.groups.find((each) => each.group === group)!.appliedIndex >= committed
    })
    expect(node.pid).to.equal(pid)
    expect(node.failures).to.deep.equal([])
  })

  const address = () => node.options.listen
  const isRefused = (kind: string) => until(`it is refused as ${kind}`, () => node.refusals.some((refusal) => refusal.kind === kind))

  function word(value: number): Buffer {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32BE(value)
    return bytes
  }

  const hello = encodeHello({ version: 1, anonymous: true, incarnation: Buffer.alloc(8), address: `anonymous-${'0'.repeat(32)}` })
  const streams: [name: string, kind: string, bytes: Buffer][] = [
    ['hazard E1.1: a length of zero', 'bad-length', Buffer.concat([hello, word(0)])],
    ['hazard E1.2: a length of 0xFFFFFFFF', 'bad-length', Buffer.concat([hello, word(0xffffffff)])],
    ['hazard E1.3: a length with the sign bit', 'bad-length', Buffer.concat([hello, word(0x80000000)])],
    ['hazard E1.8: bytes of chance', 'bad-hello', Buffer.from(new SeededRandom(1, 'bytes').bytes(500))],
    ['hazard E1.8: HTTP', 'bad-hello', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
    ['hazard E1.8: a TLS ClientHello', 'bad-hello', Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])],
    ['hazard E1.8: Redis', 'bad-hello', Buffer.from('*1\r\n$4\r\nPING\r\n')],
    ['hazard E1.9: a frame that is none', 'bad-frame', Buffer.concat([hello, word(100), Buffer.alloc(100, 1)])],
    [
      'hazard E1.10: another version of the protocol',
      'wrong-version',
      encodeHello({ version: 9, anonymous: true, incarnation: Buffer.alloc(8), address: `anonymous-${'0'.repeat(32)}` }),
    ],
  ]
  for (const [name, kind, bytes] of streams)
    it(`${name}: is told and closed`, async () => {
      const [host, port] = address().split(':') as [string, string]
      const socket = connect({ host, port: Number(port) })
      socket.on('error', () => {})
      const closed = new Promise((resolve) => socket.once('close', resolve))
      await once(socket, 'connect')
      socket.write(bytes)
      socket.resume()
      await closed
      await isRefused(kind)
    })

  /** A Raft message as another node's host would write it, with bytes of our own behind it. */
  function raftBody(message: Message, more: Uint8Array = Buffer.alloc(0), life = 0): Uint8Array {
    const writer = new Writer().varint(group).varint(0).varint(life)
    encodeMessage(writer, message)
    return writer.raw(more).finish()
  }

  const vote = (fields: Partial<Message> = {}): Message =>
    ({ type: 'vote-request', from: 'n2', to: 'n1', term: 1, lastIndex: 1, lastTerm: 1, sequence: 1, transfer: false, ...fields }) as Message
  const append = (fields: Partial<Extract<Message, { type: 'append-request' }>>): Message => ({
    ...{
      type: 'append-request',
      from: 'n2',
      to: 'n1',
      term: 1,
      previousIndex: 0,
      previousTerm: 0,
      entries: [],
      commitIndex: 0,
      session: 1,
      sequence: 1,
    },
    ...fields,
  })

  const malformedRaft: [name: string, body: () => Uint8Array][] = [
    ['hazard E1.8: bytes of chance', () => new SeededRandom(2, 'raft').bytes(200)],
    ['hazard E1.7: bytes behind the message', () => raftBody(vote(), Buffer.from([1]))],
    ['hazard E1.10: an unknown type', () => new Writer().varint(group).varint(0).varint(0).u8(200).varint(1).finish()],
    ['hazard E1.10: a message that ends early', () => raftBody(vote()).subarray(0, 6)],
    [
      'hazard E1.11: entries that claim to be 2^31-1',
      () =>
        new Writer()
          .raw(raftBody(append({})).slice(0, -1))
          .varint(2 ** 31 - 1)
          .finish(),
    ],
    [
      'hazard E1.17: an integer over 2^53',
      () => Buffer.concat([new Writer().varint(group).varint(0).varint(0).u8(3).finish(), Buffer.alloc(8, 0xff)]),
    ],
    [
      'hazard E1.18: an unknown kind of entry',
      () => raftBody(append({ entries: [{ term: 1, index: 1, kind: 77 as Entry['kind'], data: Buffer.alloc(0) }] })),
    ],
  ]
  for (const [name, body] of malformedRaft)
    it(`a Raft message, ${name}: is refused as malformed`, async () => {
      broken.send(address(), Channel.raft, body())
      await isRefused('malformed')
    })

  const senseless: [name: string, body: () => Uint8Array][] = [
    ['a term of 2^53-1', () => raftBody(append({ term: largest }))],
    ['a position of 2^53-1', () => raftBody(append({ previousIndex: largest, previousTerm: 1 }))],
    ['entries later than the message', () => raftBody(append({ entries: [{ term: 9, index: 1, kind: 1, data: Buffer.alloc(0) }] }))],
    ['a gap before the entries', () => raftBody(append({ entries: [{ term: 1, index: 7, kind: 1, data: Buffer.alloc(0) }] }))],
    ['a configuration without voters', () => raftBody(append({ entries: [configurationEntry([])] }))],
    [
      'a configuration of 10^5 voters',
      () => raftBody(append({ entries: [configurationEntry(Array.from({ length: 100_000 }, (_, at) => `n${at}`))] })),
    ],
    ['a vote for itself', () => raftBody(vote({ from: 'n1' }))],
    [
      'a snapshot of nothing',
      () => raftBody({ type: 'snapshot-offer', from: 'n2', to: 'n1', term: 1, snapshotIndex: 0, snapshotTerm: 0, session: 1, sequence: 1 }),
    ],
    ['an order to campaign by a stranger', () => raftBody({ type: 'timeout-now', from: 'n2', to: 'n1', term: 1 })],
  ]
  for (const [name, body] of senseless)
    it(`hazard E1.24: ${name} changes nothing`, async () => {
      const before = (await node.status()).groups.find((each) => each.group === group)!
      broken.send(address(), Channel.raft, body())
      // What comes behind it on the same connection says that it was looked at.
      broken.send(address(), Channel.raft, new Writer().varint(group).varint(0).varint(0).u8(201).varint(1).finish())
      await isRefused('malformed')
      const after = (await node.status()).groups.find((each) => each.group === group)!
      expect(after.leader).to.equal(before.leader)
      expect(after.lastIndex).to.equal(before.lastIndex)
    })

  it('hazard n17, n18: a message for another group or another life of the replica is ignored', async () => {
    const before = (await node.status()).groups
    broken.send(address(), Channel.raft, raftBody(vote({ term: 50 }), Buffer.alloc(0), 12345))
    const writer = new Writer().varint(999).varint(0).varint(0)
    encodeMessage(writer, vote({ term: 50 }))
    broken.send(address(), Channel.raft, writer.finish())
    broken.send(address(), Channel.raft, new Writer().varint(group).varint(0).varint(0).u8(201).varint(1).finish())
    await isRefused('malformed')
    expect((await node.status()).groups.map(({ term }) => term)).to.deep.equal(before.map(({ term }) => term))
  })

  it('hazard E1.21: a frame of another cluster is told and refused', async () => {
    const foreign = new Messenger({ transport: tcp(), runtime: systemRuntime, clusterId: Buffer.alloc(8, 7), nodeId: 'foreign' })
    try {
      await foreign.open()
      const refused = await foreign.request(address(), 'describe', Buffer.alloc(0)).catch((error: unknown) => error)
      expect(refused).to.include({ code: 'WRONG_CLUSTER' })
      await isRefused('wrong-cluster')
    } finally {
      await foreign.close()
    }
  })

  it('hazard E1.10: an unknown channel is told, and an unknown method answered by an error', async () => {
    broken.send(address(), 99 as Channel, Buffer.from('?'))
    await isRefused('unknown-channel')
    const answer = await broken.request(address(), 'no-such-method', Buffer.alloc(0)).catch((error: unknown) => error)
    expect(answer).to.be.instanceOf(QuorateError)
  })

  it('hazard E1.23: replies to what nobody asked are ignored', async () => {
    for (let requestId = 0; requestId < 50; requestId++)
      broken.send(address(), Channel.kvReply, new Writer().varint(requestId).u8(0).varint(1).finish())
    broken.send(address(), Channel.kvReply, Buffer.alloc(0))
    await isRefused('malformed')
  })

  describe('requests to the store', () => {
    const request = (kind: number, payload: Uint8Array) => {
      const writer = new Writer()
      writeRequestHead(writer, { requestId: 1, kind: kind as RequestKind, group })
      return writer.raw(payload).finish()
    }
    it('hazard E1.10: of an unknown kind are refused', async () => {
      broken.send(address(), Channel.kvRequest, request(77, Buffer.alloc(0)))
      await isRefused('malformed')
    })

    const payloads: [name: string, kind: number, payload: () => Uint8Array][] = [
      ['hazard E1.8: a write of chance', RequestKind.write, () => new SeededRandom(3, 'write').bytes(300)],
      [
        'hazard E1.11: a write that claims 2^31-1 commands',
        RequestKind.write,
        () =>
          new Writer()
            .raw(Buffer.alloc(8))
            .varint(1)
            .varint(2 ** 31 - 1)
            .finish(),
      ],
      ['hazard E1.11: a read that claims 2^31-1 keys', RequestKind.read, () => new Writer().varint(2 ** 31 - 1).finish()],
      ['hazard E1.17: a read of shard 2^53-1', RequestKind.read, () => new Writer().varint(1).varint(largest).bytes(Buffer.from('k')).finish()],
      ['hazard E1.8: a scan of chance', RequestKind.scan, () => new SeededRandom(4, 'scan').bytes(100)],
    ]
    for (const [name, kind, payload] of payloads)
      it(`${name} is answered as malformed`, async () => {
        const leader = (await cluster.leaders()).get(group)!
        const answered = new Promise<number>((resolve) => broken.onMessage(Channel.kvReply, (_from, body) => resolve(body[1]!)))
        broken.send(leader.options.listen, Channel.kvRequest, request(kind, payload()))
        // ReplyStatus.malformed
        expect(await answered).to.equal(5)
      })
  })

  it('hazard E1.14, E1.16, E1.27: keys and values at the edge of what is allowed go through, others are refused at the call', async () => {
    for (const key of ['__proto__', 'constructor', 'then', '\0', '\ud83d\ude00', 'x'.repeat(4096)]) {
      const { version } = await client.kv.put(key, key)
      expect((await client.kv.get(key))?.version).to.equal(version)
      await client.kv.delete(key)
    }
    const refused: [code: string, run: () => Promise<unknown>][] = [
      ['EMPTY_KEY', () => client.kv.put('', 'x')],
      ['KEY_TOO_LARGE', () => client.kv.put('x'.repeat(4097), 'x')],
      ['VALUE_TOO_LARGE', () => client.kv.put('x', Buffer.alloc(1024 * 1024 + 1))],
      ['INVALID_ARGUMENT', () => client.kv.put('x', 'x', { ifVersion: -1 })],
      ['INVALID_ARGUMENT', () => client.kv.put('x', 'x', { ifVersion: 1.5 })],
      ['INVALID_ARGUMENT', () => client.kv.put('x', 'x', { ifVersion: 2 ** 53 })],
    ]
    for (const [code, run] of refused) {
      const error = await Promise.resolve()
        .then(run)
        .catch((thrown: unknown) => thrown)
      expect(error, code).to.be.instanceOf(InvalidArgumentError)
      expect(error).to.include({ code })
    }
    expect(await client.kv.get('x')).to.equal(undefined)
  })

  it('hazard E1.29: a write whose deadline is over is not proposed', async () => {
    const error = await client.kv.put('late', 'x', { timeoutMs: 0 }).catch((thrown: unknown) => thrown)
    expect(error).to.be.instanceOf(UnavailableError)
    expect(error).to.include({ code: 'TIMEOUT' })
    expect(await client.kv.get('late')).to.equal(undefined)
  })

  // Last: of so much that is refused only a part is told.
  describe('chance', () => {
    it('hazard E1.8, E1.12, E1.13: 2000 frames of chance on every channel and method stop nothing, and take no memory to speak of', async () => {
      const seed = newSeed()
      const random = new SeededRandom(seed, 'fuzz')
      const { clusterId } = await node.status()
      const methods = ['describe', 'introduce', 'mapreduce', 'snapshot', 'prepare-replica', 'found']
      const answers: Promise<unknown>[] = []
      const before = residentBytes(node)
      for (let number = 0; number < 2000; number++) {
        // Often the beginning of something sound, or a header of MessagePack that claims the world.
        const head = random.pick([[], [1, 0, 0], [0xdd, 0x7f, 0xff, 0xff, 0xff], [0x91, 0x91, 0x91, 0x91], [0xdf, 0x7f, 0xff, 0xff, 0xff], [0xc1]])
        const body = Buffer.concat([Buffer.from(head), random.bytes(random.integer(0, 200))])
        if (random.chance(0.3)) answers.push(broken.request(address(), random.pick(methods), body, { timeoutMs: 20_000 }).catch(() => undefined))
        else broken.send(address(), random.integer(16, 20) as Channel, body)
      }
      await Promise.all(answers)
      expect(residentBytes(node) - before, `seed ${seed}`).to.be.below(64 * 1024 * 1024)
      expect((await node.status()).clusterId, `seed ${seed}`).to.equal(clusterId)
    })
  })
})

/** Memory of the process; 0 where the system does not tell. */
function residentBytes({ pid }: NodeProcess): number {
  const file = `/proc/${pid}/statm`
  return existsSync(file) ? Number(readFileSync(file, 'utf8').split(' ')[1]) * 4096 : 0
}

function configurationEntry(voters: readonly string[]): Entry {
  return { term: 1, index: 1, kind: 2, data: encodeConfiguration({ voters, learners: [], votersOutgoing: [] }) }
}
