/** Three nodes in this process: real LevelDB folders and real sockets on loopback. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ClusterNode } from '../../src/index.js'
import { type BootstrapOptions, type ClientOptions, type MemberOptions, type Node, openNode } from '../../src/index.js'
import { History } from '../../src/testing/history.js'
import type { MemoryNetwork } from '../../src/transport/memory.js'
import { tcp } from '../../src/transport/tcp.js'
import { freePorts } from './folders.js'
import { checkRecorded, recordNode } from './recorded.js'

export class TestCluster {
  readonly folder: string
  readonly bootstrap: BootstrapOptions
  readonly nodes = new Map<string, Node>()
  /** Stands in for TCP where a test wants faults. */
  readonly network: MemoryNetwork | null
  /** What was asked of the nodes and clients; null when that is not written down. */
  history: History | null = null
  #clients = 0

  constructor(folder: string, bootstrap: BootstrapOptions, network: MemoryNetwork | null = null) {
    this.folder = folder
    this.bootstrap = bootstrap
    this.network = network
  }

  /** Makes the folder and the addresses of a cluster, and starts its nodes. `close` takes all down again. */
  static async open(
    size: number,
    options: { network?: MemoryNetwork; bootstrap?: Partial<BootstrapOptions>; node?: Partial<MemberOptions>; record?: boolean } = {},
  ): Promise<TestCluster> {
    const folder = await mkdtemp(join(tmpdir(), 'quorate-test-'))
    const ports = await freePorts(size)
    const nodes = ports.map((port, at) => ({ id: `n${at + 1}`, address: `127.0.0.1:${port}` }))
    const cluster = new TestCluster(folder, { nodes, ...options.bootstrap }, options.network ?? null)
    if (options.record) cluster.history = new History()
    try {
      await Promise.all(nodes.map(({ id }) => cluster.start(id, options.node)))
    } catch (error) {
      await cluster.close()
      throw error
    }
    return cluster
  }

  get members(): readonly ClusterNode[] {
    return this.bootstrap.nodes ?? []
  }

  get addresses(): string[] {
    return this.members.map(({ address }) => address)
  }

  async start(id: string, options: Partial<MemberOptions> = {}): Promise<Node> {
    const { address } = this.members.find((member) => member.id === id)!
    const location = join(this.folder, id)
    const transport = this.network?.transport(address) ?? tcp({ listen: address })
    const node = await openNode({ id, location, bootstrap: this.bootstrap, transport, ...options })
    this.nodes.set(id, node)
    return this.#record(node, id)
  }

  async stop(id: string): Promise<void> {
    const node = this.nodes.get(id)
    this.nodes.delete(id)
    await node?.close()
  }

  async openClient(options: Partial<ClientOptions> = {}): Promise<Node> {
    const name = `client-${++this.#clients}`
    const transport = this.network?.transport(name) ?? tcp()
    return this.#record(await openNode({ role: 'client', transport, seeds: this.addresses, ...options }), name)
  }

  #record(node: Node, client: string): Node {
    return this.history === null ? node : recordNode(node, this.history, client)
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
    await rm(this.folder, { recursive: true, force: true })
  }
}

/** Runs a function with a started cluster of so many nodes, and takes it down afterwards. What it asks of the nodes must be linearizable. */
export async function withCluster(
  size: number,
  run: (cluster: TestCluster) => Promise<void>,
  bootstrap: Partial<BootstrapOptions> = {},
  node: Partial<MemberOptions> = {},
): Promise<void> {
  const cluster = await TestCluster.open(size, { bootstrap, node, record: true })
  try {
    await run(cluster)
    checkRecorded(cluster.history!)
  } finally {
    await cluster.close()
  }
}
