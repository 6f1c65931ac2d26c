/** A first look at Messenger over memory and TCP: the same checks on both. */
import { expect } from 'chai'
import { OverloadedError, type QuorateError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import { MemoryNetwork } from '../../src/transport/memory.js'
import { Channel, Messenger } from '../../src/transport/messenger.js'
import { tcp } from '../../src/transport/tcp.js'
import type { Transport } from '../../src/transport/transport.js'

const clusterId = Buffer.from('cluster1')

function pairs(): { name: string; make: () => Transport[] }[] {
  return [
    {
      name: 'memory',
      make: () => {
        const network = new MemoryNetwork({ seed: 1 })
        return ['a', 'b', 'c'].map((address) => network.transport(address))
      },
    },
    { name: 'tcp', make: () => [tcp({ listen: '127.0.0.1:0' }), tcp({ listen: '127.0.0.1:0' }), tcp()] },
  ]
}

for (const { name, make } of pairs()) {
  describe(`Messenger over ${name}`, () => {
    let nodes: Messenger[] = []
    beforeEach(async () => {
      nodes = make().map((transport, number) => new Messenger({ transport, runtime: systemRuntime, clusterId, nodeId: `node-${number}` }))
      for (const node of nodes) await node.open()
    })
    afterEach(async () => {
      await Promise.all(nodes.map((node) => node.close()))
    })

    it('delivers one-way messages, several of a turn in one frame', async () => {
      const [one, other] = nodes as [Messenger, Messenger]
      const got: string[] = []
      const all = new Promise<void>((resolve) => {
        other.onMessage(Channel.raft, (from, body) => {
          got.push(`${from.nodeId} ${Buffer.from(body)}`)
          if (got.length === 100) resolve()
        })
      })
      for (let number = 0; number < 100; number++) one.send(other.address, Channel.raft, Buffer.from(`message ${number}`))
      await all
      expect(got[99]).to.equal('node-0 message 99')
      expect(one.counters.framesSent).to.equal(1)
    })

    it('answers requests of every size, both ways and to itself', async () => {
      const [one, other, third] = nodes as [Messenger, Messenger, Messenger]
      for (const node of nodes) node.handle('echo', async (_, payload) => payload)
      for (const size of [0, 1, 100, 70_000, 1_100_000, 5_000_000]) {
        const payload = Buffer.alloc(size, size % 251)
        for (const [from, to] of [
          [one, other],
          [other, one],
          [one, one],
          [third, one],
        ] as const) {
          const reply = await from.request(to.address, 'echo', payload)
          expect(Buffer.compare(Buffer.from(reply), payload)).to.equal(0)
        }
      }
    })

    it('carries errors over', async () => {
      const [one, other] = nodes as [Messenger, Messenger]
      other.handle('fail', () => {
        throw new OverloadedError('too much')
      })
      const error = await one.request(other.address, 'fail', Buffer.alloc(0)).then(
        () => null,
        (thrown: QuorateError) => thrown,
      )
      expect(error).to.be.instanceOf(OverloadedError)
      expect(error?.retryable).to.equal(true)
    })
  })
}
