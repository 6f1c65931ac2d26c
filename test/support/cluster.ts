/** Three nodes in this process: real LevelDB folders and real sockets on loopback. */
import { join } from 'node:path'
import type { ClusterNode } from '../../src/index.js'
import { type BootstrapOptions, type MemberOptions, type Node, openNode } from '../../src/index.js'
import { tcp } from '../../src/transport/tcp.js'
import { freePorts, withFolder } from './folders.js'

export class TestCluster {
  readonly folder: string
  readonly bootstrap: BootstrapOptions
  readonly nodes = new Map<string, Node>()

  constructor(folder: string, bootstrap: BootstrapOptions) {
    this.folder = folder
    this.bootstrap = bootstrap
  }

  get members(): readonly ClusterNode[] {
    return this.bootstrap.nodes
  }

  get addresses(): string[] {
    return this.members.map(({ address }) => address)
  }

  async start(id: string, options: Partial<MemberOptions> = {}): Promise<Node> {
    const { address } = this.members.find((member) => member.id === id)!
    const location = join(this.folder, id)
    const node = await openNode({ id, location, bootstrap: this.bootstrap, transport: tcp({ listen: address }), ...options })
    this.nodes.set(id, node)
    return node
  }

  async stop(id: string): Promise<void> {
    const node = this.nodes.get(id)
    this.nodes.delete(id)
    await node?.close()
  }

  openClient(): Promise<Node> {
    return openNode({ role: 'client', transport: tcp(), seeds: this.addresses })
  }

  /** The node that leads a group, as the nodes themselves say; undefined while there is none. */
  leaderOf(group: number): string | undefined {
    for (const [id, node] of this.nodes) {
      if (node.status().groups.some((status) => status.group === group && status.role === 'leader')) return id
    }
    return undefined
  }

  async close(): Promise<void> {
    await Promise.all([...this.nodes.keys()].map((id) => this.stop(id)))
  }
}

/** Runs a function with a started cluster of so many nodes, and takes it down afterwards. */
export async function withCluster(
  size: number,
  run: (cluster: TestCluster) => Promise<void>,
  bootstrap: Partial<BootstrapOptions> = {},
  options: Partial<MemberOptions> = {},
): Promise<void> {
  await withFolder(async (folder) => {
    const ports = await freePorts(size)
    const nodes = ports.map((port, at) => ({ id: `n${at + 1}`, address: `127.0.0.1:${port}` }))
    const cluster = new TestCluster(folder, { nodes, ...bootstrap })
    try {
      await Promise.all(nodes.map(({ id }) => cluster.start(id, options)))
      await run(cluster)
    } finally {
      await cluster.close()
    }
  })
}
