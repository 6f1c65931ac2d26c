/**
 * NodeLab: servers of the labs that need more than a Raft core: whole nodes, with their host, stores and snapshots, in a simulated world.
 *
 * The lab's «Raft state» is the group's part of the log database: its entries, hard state and start. A crash is a loss of power: what was not synced may be gone, which is more than the
 * lab's persister forgets.
 */
import { Host } from '../../../src/engine/host.js'
import type { Replica } from '../../../src/engine/replica.js'
import { JobRunner } from '../../../src/mapreduce/index.js'
import { type NetworkModel, SimulatedNetwork } from '../../../src/testing/node-simulation/network.js'
import { Seams } from '../../../src/testing/node-simulation/seams.js'
import { type NodeEnvironment, SimulatedNode } from '../../../src/testing/node-simulation/simulated-node.js'
import { lowerBoundOf } from '../../../src/testing/node-simulation/sorted-records.js'
import { World } from '../../../src/testing/node-simulation/world.js'
import type { SeededRandom } from '../../../src/testing/seeded-random.js'

/** The group that a lab watches. */
export const group = 1
export const shards = 16

export interface NodeLabOptions {
  readonly seed: number
  readonly servers: number
  readonly unreliable: boolean
}

export interface NodeLabSettings extends NodeLabOptions {
  readonly links: Partial<NetworkModel>
  /** Of `openNode`, for servers and clients. */
  readonly nodeOptions: Readonly<Record<string, unknown>>
}

export interface LabServer {
  readonly node: SimulatedNode
  /** Its replica of the group; null while it is down. */
  replica: Replica | null
  undoCuts: (() => void)[]
}

const quietNetwork: NetworkModel = {
  delayMinUs: 100,
  delayMeanUs: 200,
  inOrder: true,
  lossRate: 0,
  repeatRate: 0,
  heldRate: 0,
  heldMaxUs: 0,
  flipRate: 0,
  crossesLives: false,
  peerStates: false,
  maxLinkBytes: 64 * 1024 * 1024,
}

const disk = { syncMeanUs: 200, writeMeanUs: 20, readMeanUs: 50, rotateBytes: 100_000, compactMeanUs: 100_000 }

export abstract class NodeLab {
  readonly world: World
  readonly random: SeededRandom
  readonly servers: LabServer[]
  protected readonly links: SimulatedNetwork
  protected readonly seams = new Seams()
  protected readonly environment: NodeEnvironment

  constructor({ seed, servers, links, nodeOptions }: NodeLabSettings) {
    this.world = new World(seed)
    this.random = this.world.stream('lab')
    this.links = new SimulatedNetwork(this.world, { ...quietNetwork, ...links }, () => {})
    const names = Array.from({ length: servers }, (_, at) => `n${at + 1}`)
    const bootstrap = { nodes: names.map((id) => ({ id, address: `sim-${id}` })), groups: 1, replicas: servers, shards }
    this.environment = {
      world: this.world,
      network: this.links,
      options: ({ role }) => ({ ...nodeOptions, ...(role === 'member' ? { bootstrap } : { seeds: bootstrap.nodes.map(({ address }) => address) }) }),
      count: () => {},
      trace: () => {},
      violation: (invariant, message) => this.world.fail(new Error(`${invariant}: ${message}`)),
      isDamaged: () => false,
      onStored: () => {},
    }
    this.servers = names.map((name, at) => ({
      node: new SimulatedNode(this.environment, at, name, 'founder', disk, 1),
      replica: null,
      undoCuts: [],
    }))
    const onReplica = (replica: Replica) => this.onReplica(replica)
    this.seams.replace(Host, 'add', (add) => {
      return function (replica) {
        onReplica(replica)
        return add.call(this, replica)
      }
    })
    // Jobs have no part in a lab, and their runner removes a folder of the real file system when it closes.
    this.seams.replace(JobRunner, 'close', () => async () => {})
    for (const { node } of this.servers) node.start()
  }

  /** Lets simulated time pass. */
  abstract sleep(durationMs: number): Promise<unknown>

  /** Waits for a condition, looked at every few milliseconds; tells whether it came true within the time. */
  async until(condition: () => boolean, durationMs: number): Promise<boolean> {
    const endUs = this.world.nowUs + durationMs * 1000
    while (!condition()) {
      if (this.world.nowUs >= endUs) return false
      await this.sleep(5)
    }
    return true
  }

  protected onReplica(replica: Replica): void {
    const server = this.serverNow()
    if (server !== undefined && replica.group === group) server.replica = replica
  }

  /** The server whose code runs now. */
  protected serverNow(): LabServer | undefined {
    return this.servers.find(({ node }) => node.process !== null && node.process === this.world.current)
  }

  close(): void {
    for (const { node } of this.servers) node.process?.kill()
    this.seams.remove()
  }

  up(server: number): boolean {
    return this.servers[server]!.node.process !== null
  }

  connected(server: number): boolean {
    return this.up(server) && this.servers[server]!.undoCuts.length === 0
  }

  disconnect(server: number): void {
    const { node, undoCuts } = this.servers[server]!
    for (const { node: other } of this.servers) {
      if (other === node) continue
      undoCuts.push(this.links.cut(node.address, other.address), this.links.cut(other.address, node.address))
    }
  }

  connect(server: number): void {
    for (const undo of this.servers[server]!.undoCuts.splice(0)) undo()
  }

  /** As by power loss. */
  crash(server: number): void {
    this.servers[server]!.node.crash(true)
    this.servers[server]!.replica = null
  }

  async restart(server: number): Promise<void> {
    const { node } = this.servers[server]!
    node.start()
    if (!(await this.until(() => node.state === 'up', 10_000))) throw new Error(`${node.name} does not open`)
  }

  /** Bytes of the group's part of a server's log database. */
  raftStateBytes(server: number): number {
    const { node } = this.servers[server]!
    const { keys, values } = node.disk.file(node.logLocation).view
    const prefixes = ['\x01', '\x02', '\x03'].map((type) => `${type}\x00${String.fromCharCode(group)}`)
    let bytes = 0
    for (const prefix of prefixes) {
      for (let at = lowerBoundOf(keys, prefix); at < keys.length && keys[at]!.startsWith(prefix); at++) bytes += keys[at]!.length + values[at]!.length
    }
    return bytes
  }
}
