/** A process of its own that answers `echo` (at once) and `hang` (never): started by tests with fork, killed by them. */
import { systemRuntime } from '../../src/base/runtime.js'
import { Messenger } from '../../src/transport/messenger.js'
import { tcp } from '../../src/transport/tcp.js'
import { clusterId } from './support.js'

const messenger = new Messenger({
  transport: tcp({ listen: process.argv[2] ?? '127.0.0.1:0' }),
  runtime: systemRuntime,
  clusterId,
  nodeId: `process-${process.pid}`,
})
messenger.handle('echo', (_, payload) => payload)
messenger.handle('hang', () => new Promise<Uint8Array>(() => {}))
await messenger.open()
process.send?.(messenger.address)
process.on('disconnect', () => process.exit())
