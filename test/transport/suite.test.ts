/** The adapters of this package against the suite that third-party adapters run. */
import { transportSuite } from '../../src/testing/transport-suite.js'
import { MemoryNetwork } from '../../src/transport/memory.js'
import { tcp } from '../../src/transport/tcp.js'

const maxQueueBytes = 8 * 1024 * 1024

transportSuite({
  describe,
  it,
  name: 'memory',
  manifest: { dialOnly: false, peerStates: true, lossless: true },
  create: () => {
    const network = new MemoryNetwork({ seed: 1, maxQueueBytes })
    let number = 0
    return { listener: (address) => network.transport(address ?? `end-${number++}`), maxQueueBytes, nowhere: 'nobody' }
  },
})

transportSuite({
  describe,
  it,
  name: 'tcp',
  manifest: { dialOnly: true, peerStates: true, lossless: true },
  create: () => ({
    listener: (address) => tcp({ listen: address ?? '127.0.0.1:0', maxQueueBytes }),
    dialOnly: () => tcp({ maxQueueBytes }),
    maxQueueBytes,
    nowhere: '127.0.0.1:1',
  }),
})
