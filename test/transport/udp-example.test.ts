/** The example of docs/writing-a-transport.md: it is what the page shows, it conforms, and the Messenger makes a whole network of it. */
import { readFileSync } from 'node:fs'
import { expect } from 'chai'
import { systemRuntime } from '../../src/base/runtime.js'
import { transportSuite } from '../../src/testing/transport-suite.js'
import { Messenger } from '../../src/transport/messenger.js'
import { clusterId, pattern, sameBytes } from './support.js'
import { UdpTransport } from './udp-example.js'

transportSuite({
  describe,
  it,
  name: 'the UDP example',
  manifest: { dialOnly: false, peerStates: false, lossless: false },
  create: () => ({
    listener: (address) => new UdpTransport(address ?? '127.0.0.1:0'),
    maxQueueBytes: 1024 * 1024,
    nowhere: '127.0.0.1:1',
  }),
})

describe('the UDP example', () => {
  it('is what docs/writing-a-transport.md shows', () => {
    const source = readFileSync(new URL('../../../test/transport/udp-example.ts', import.meta.url), 'utf8')
    const page = readFileSync(new URL('../../../docs/writing-a-transport.md', import.meta.url), 'utf8')
    const example = /\/\/ begin of the example\n([\s\S]*)\/\/ end of the example/.exec(source)?.[1]
    expect(example).to.be.a('string')
    expect(page).to.include(example as string)
  })

  it('carries messages of any size once a Messenger is above it', async () => {
    const nodes = [0, 1].map(
      (number) => new Messenger({ transport: new UdpTransport('127.0.0.1:0'), runtime: systemRuntime, clusterId, nodeId: `node-${number}` }),
    )
    const [one, other] = nodes as [Messenger, Messenger]
    try {
      for (const node of nodes) await node.open()
      other.handle('echo', (_, payload) => payload)
      for (const size of [0, 100, 30_000, 100_000, 5_000_000]) {
        const payload = pattern(size, size)
        expect(sameBytes(await one.request(other.address, 'echo', payload, { timeoutMs: 50_000 }), payload)).to.equal(true)
      }
    } finally {
      await Promise.all(nodes.map((node) => node.close()))
    }
  })
})
