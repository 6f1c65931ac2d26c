/**
 * A process that makes load: either a client of one of the systems, or a quorate node that can also make load from inside.
 * Commands: `preload`, `fill` (so many bytes), `measure` (a cell), `memory`, and for a quorate node `status`.
 */

import { childArgument, serve } from '../scripts/child.js'
import type { EngineTuning } from '../src/engine/engine.js'
import { type Node, openNode } from '../src/node.js'
import { tcp } from '../src/transport/tcp.js'
import { EtcdConnection } from './etcd-client.js'
import { type CellOptions, fill, measure, type Operations, preload } from './load.js'
import { RedisConnection } from './redis-client.js'

export type LoadProcessArgument =
  | { readonly system: 'etcd'; readonly address: string }
  | { readonly system: 'redis'; readonly address: string }
  | { readonly system: 'quorate-client'; readonly seeds: readonly string[] }
  | {
      readonly system: 'quorate-node'
      readonly id: string
      readonly location: string
      readonly nodes: readonly { readonly id: string; readonly address: string }[]
      readonly groups: number
      readonly tuning?: Partial<EngineTuning>
    }

/** What `status` tells of a quorate node. */
export interface LoadProcessStatus {
  readonly groups: number
  readonly groupsLed: number
  readonly logWrites: number
  /** Of the first group. */
  readonly appliedIndex: number
  /** Bytes of a snapshot that have come; null while none is fetched. */
  readonly receivedBytes: number | null
  /** CPU time of the process since its start. */
  readonly cpuMs: number
}

const argument = childArgument<LoadProcessArgument>()

function openQuorate(options: Exclude<LoadProcessArgument, { address: string }>): Promise<Node> {
  if (options.system === 'quorate-client') return openNode({ role: 'client', transport: tcp(), seeds: options.seeds })
  const { id, location, nodes, groups, tuning = {} } = options
  const listen = nodes.find((node) => node.id === id)!.address
  return openNode({ id, location, tuning, transport: tcp({ listen }), bootstrap: { nodes, groups, shards: Math.max(64, groups) } })
}

function offer(operations: Operations, close: () => Promise<void>, more: Record<string, () => unknown> = {}): void {
  serve(
    {
      preload: (keys?: number) => preload(operations, keys),
      fill: (bytes: number) => fill(operations, bytes),
      measure: (cell: CellOptions) => measure(operations, cell),
      memory: () => process.memoryUsage(),
      ...more,
    },
    close,
  )
}

if (argument.system === 'etcd') {
  const connection = await EtcdConnection.open(argument.address)
  offer(connection, async () => connection.close())
} else if (argument.system === 'redis') {
  const connection = await RedisConnection.open(argument.address)
  // After a restart it refuses everything while it reads its log.
  await connection.get(Buffer.from('ready'))
  offer(connection, async () => connection.close())
} else {
  const node = await openQuorate(argument)
  const { kv } = node
  const operations: Operations = { put: (key, value) => kv.put(key, value), get: async (key) => (await kv.get(key))?.value }
  offer(operations, () => node.close(), {
    status: (): LoadProcessStatus => {
      const { user, system } = process.cpuUsage()
      const { groups: all, logWrites } = node.status()
      // The meta group carries no load.
      const groups = all.filter(({ group }) => group > 0)
      const { appliedIndex, receiving } = groups[0] ?? { appliedIndex: 0, receiving: null }
      const groupsLed = groups.filter(({ role }) => role === 'leader').length
      return { groups: groups.length, groupsLed, logWrites, appliedIndex, receivedBytes: receiving?.bytes ?? null, cpuMs: (user + system) / 1000 }
    },
  })
}
