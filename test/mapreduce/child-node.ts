/** A job node as a process of its own, over TCP: started by process-cluster.ts, which talks to it over the IPC channel. */
import { systemRuntime } from '../../src/base/runtime.js'
import { fromItems, JobRunner, toFolder } from '../../src/mapreduce/index.js'
import { ModelKV } from '../../src/testing/model-kv.js'
import { Messenger } from '../../src/transport/messenger.js'
import { tcp } from '../../src/transport/tcp.js'
import { clusterId, fastTiming, jobs } from './cluster.js'
import type { ChildMessage, ParentMessage } from './process-cluster.js'

const [id, temporaryFolder] = process.argv.slice(2) as [string, string]
let peers: readonly { id: string; address: string }[] = []

const messenger = new Messenger({ transport: tcp({ listen: '127.0.0.1:0' }), runtime: systemRuntime, clusterId, nodeId: id })
await messenger.open()
const runner = new JobRunner({
  ...{ messenger, nodeId: id, jobs, temporaryFolder, workers: 1, timing: fastTiming },
  kv: new ModelKV({ runtime: systemRuntime }),
  peers: () => peers,
})

const tell = (message: ChildMessage): void => {
  process.send?.(message)
}

process.on('message', (message: ParentMessage) => {
  if (message.type === 'peers') peers = message.peers
  else
    runner.run({
      job: 'steered',
      input: fromItems(message.items),
      output: toFolder(message.output),
      params: message.params,
      splitBytes: 1,
      reducers: 2,
    })
})
// The parent's end: nobody needs this process any more.
process.on('disconnect', () => process.exit())
tell({ type: 'address', address: messenger.address })
