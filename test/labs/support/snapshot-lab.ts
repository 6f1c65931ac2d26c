/**
 * SnapshotLab: the servers of lab 3D: whole nodes, with their host, stores and snapshots, in a simulated world; and the lab's checker routines.
 *
 * The lab's service snapshots every ten entries; here the log is compacted by size, set so small that this happens about as often. The lab's «Raft state» is the group's part
 * of the log database.
 */
import { expect } from 'chai'
import { shardOf } from '../../../src/engine/command.js'
import { Host } from '../../../src/engine/host.js'
import { KvMachine } from '../../../src/engine/kv-machine.js'
import { Replica } from '../../../src/engine/replica.js'
import { JobRunner } from '../../../src/mapreduce/index.js'
import { SimulatedNetwork } from '../../../src/testing/node-simulation/network.js'
import { Seams } from '../../../src/testing/node-simulation/seams.js'
import { type NodeEnvironment, SimulatedNode } from '../../../src/testing/node-simulation/simulated-node.js'
import { lowerBoundOf } from '../../../src/testing/node-simulation/sorted-records.js'
import { World } from '../../../src/testing/node-simulation/world.js'
import type { SeededRandom } from '../../../src/testing/seeded-random.js'
import { putBatch } from '../../engine/support/engine-fixture.js'

/** The group that the lab watches. */
const group = 1
/** The key of every command: the last one applied is the state, as good as the whole list. */
const key = 'command'
const shardOfKey = shardOf(Buffer.from(key), 16)

export interface SnapshotLabOptions {
  readonly seed: number
  readonly servers: number
  readonly unreliable: boolean
}

interface Server {
  readonly node: SimulatedNode
  replica: Replica | null
  undoCuts: (() => void)[]
}

export class SnapshotLab {
  readonly world: World
  readonly random: SeededRandom
  readonly servers: Server[]
  /** Snapshots installed. */
  installs = 0
  readonly #network: SimulatedNetwork
  readonly #seams = new Seams()
  /** What each index was applied as, by whoever was first. */
  readonly #applied = new Map<number, string>()
  #problem: Error | null = null
  #nextCommand = 1

  constructor({ seed, servers, unreliable }: SnapshotLabOptions) {
    this.world = new World(seed)
    this.random = this.world.stream('lab')
    const loss = unreliable ? 0.1 : 0
    this.#network = new SimulatedNetwork(
      this.world,
      {
        delayMinUs: 100,
        delayMeanUs: unreliable ? 13_000 : 200,
        inOrder: !unreliable,
        lossRate: loss,
        repeatRate: 0,
        // The lab's «long reordering».
        heldRate: unreliable ? 0.05 : 0,
        heldMaxUs: 2_000_000,
        flipRate: 0,
        crossesLives: false,
        peerStates: false,
        maxLinkBytes: 64 * 1024 * 1024,
      },
      () => {},
    )
    const names = Array.from({ length: servers }, (_, at) => `n${at + 1}`)
    const bootstrap = { nodes: names.map((id) => ({ id, address: `sim-${id}` })), groups: 1, shards: 16 }
    const tuning = {
      electionTimeoutMs: 400,
      heartbeatIntervalMs: 100,
      compactLogBytes: 500,
      compactLogEntries: 4,
      snapshotChunkBytes: 256,
    }
    const environment: NodeEnvironment = {
      world: this.world,
      network: this.#network,
      options: () => ({ bootstrap, tuning }),
      count: () => {},
      trace: () => {},
      violation: (invariant, message) => this.world.fail(new Error(`${invariant}: ${message}`)),
      isDamaged: () => false,
      onStored: () => {},
    }
    const disk = { syncMeanUs: 200, writeMeanUs: 20, readMeanUs: 50, rotateBytes: 100_000, compactMeanUs: 100_000 }
    this.servers = names.map((name, at) => ({ node: new SimulatedNode(environment, at, name, 'founder', disk, 1), replica: null, undoCuts: [] }))
    this.#observe()
    for (const { node } of this.servers) node.start()
  }

  #observe(): void {
    const replicas = new WeakMap<KvMachine, Replica>()
    const serverNow = () => this.servers.find(({ node }) => node.process !== null && node.process === this.world.current)
    const onReplica = (replica: Replica) => {
      replicas.set(replica.machine, replica)
      const server = serverNow()
      if (server !== undefined && replica.group === group) server.replica = replica
    }
    this.#seams.replace(Host, 'add', (add) => {
      return function (replica) {
        onReplica(replica)
        return add.call(this, replica)
      }
    })
    const onApplied = (machine: KvMachine, data: Uint8Array) => {
      const replica = replicas.get(machine)
      if (replica?.group !== group || serverNow()?.replica !== replica) return
      const index = replica.appliedIndex + 1
      const command = Buffer.from(data).toString('latin1')
      const before = this.#applied.get(index)
      if (before === undefined) this.#applied.set(index, command)
      else if (before !== command) this.#problem ??= new Error(`two commands were applied at index ${index}`)
    }
    this.#seams.replace(KvMachine, 'apply', (apply) => {
      return function (data) {
        onApplied(this, data)
        return apply.call(this, data)
      }
    })
    const onInstalled = () => this.installs++
    this.#seams.replace(Replica, 'install', (install) => {
      return async function (manifest) {
        const isDone = await install.call(this, manifest)
        if (isDone) onInstalled()
        return isDone
      }
    })
    this.#seams.replace(JobRunner, 'close', () => async () => {})
  }

  close(): void {
    for (const { node } of this.servers) node.process?.kill()
    this.#seams.remove()
  }

  sleep(durationMs: number): Promise<boolean> {
    return this.world.runFor(durationMs * 1000)
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
      undoCuts.push(this.#network.cut(node.address, other.address), this.#network.cut(other.address, node.address))
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
    if (!(await this.world.runUntil(() => node.state === 'up', 10_000_000))) throw new Error(`${node.name} does not open`)
  }

  async checkOneLeader(): Promise<number> {
    for (let attempt = 0; attempt < 10; attempt++) {
      await this.sleep(450 + this.random.integer(0, 99))
      const leaders = new Map<number, number[]>()
      for (let server = 0; server < this.servers.length; server++) {
        const core = this.connected(server) ? this.servers[server]!.replica?.core : undefined
        if (core?.role === 'leader') leaders.set(core.term, [...(leaders.get(core.term) ?? []), server])
      }
      for (const [term, those] of leaders) if (those.length > 1) throw new Error(`term ${term} has ${those.length} leaders`)
      if (leaders.size > 0) return leaders.get(Math.max(...leaders.keys()))![0]!
    }
    throw new Error('expected one leader, got none')
  }

  /** Hands a command to a server; the index that it gave it, or null when it does not lead. */
  start(server: number): number | null {
    const { node, replica } = this.servers[server]!
    if (node.process === null || replica === null || replica.stopped || replica.core.role !== 'leader') return null
    const before = replica.core.lastIndex
    this.world.current = node.process
    replica.propose(putBatch(this.#nextCommand++, key, `command ${this.#nextCommand}`), () => {})
    this.world.current = null
    return replica.core.lastIndex > before ? replica.core.lastIndex : null
  }

  /** How many servers have applied an index, or a snapshot that covers it. */
  countApplied(index: number): number {
    if (this.#problem !== null) throw this.#problem
    return this.servers.filter(({ replica }) => (replica?.appliedIndex ?? 0) >= index).length
  }

  /** The lab's `one`: has one command committed and applied by so many servers, within 10 s; returns its index. */
  async one(expected: number, retry = true): Promise<number> {
    const endUs = this.world.nowUs + 10_000_000
    while (this.world.nowUs < endUs) {
      let index: number | null = null
      for (let server = 0; server < this.servers.length && index === null; server++) if (this.connected(server)) index = this.start(server)
      if (index === null) {
        await this.sleep(50)
        continue
      }
      const wanted = index
      for (let waitedMs = 0; waitedMs < 2000; waitedMs += 20) {
        if (this.countApplied(wanted) >= expected && this.#applied.has(wanted)) return wanted
        await this.sleep(20)
      }
      if (!retry) throw new Error(`index ${wanted} was not applied by ${expected}`)
    }
    throw new Error(`no agreement of ${expected} servers within 10 s`)
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

  checkSizes(): void {
    for (let server = 0; server < this.servers.length; server++)
      expect(this.raftStateBytes(server), `Raft state of server ${server}`).to.be.lessThan(2000)
  }

  /** Every live server holds the same state: what came by snapshots is what the log would have given. */
  checkSameState(): void {
    const states = this.servers.map(({ replica }) => {
      const { machine } = replica!
      const found = machine.read(shardOfKey, Buffer.from(key))!
      return `${found.version} ${found.revision} ${Buffer.from(found.value)}`
    })
    expect(new Set(states).size, states.join('; ')).to.equal(1)
  }
}
