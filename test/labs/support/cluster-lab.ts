/**
 * ClusterLab: lab 4's servers and clerks: whole nodes and real clients, each a `openNode` of its own, in a simulated world, with production's timers.
 *
 * In the lab's words: a clerk is a node of role `client`; `maxraftstate` is the size over which a log is compacted (−1: never); the snapshot is what the state database would send of the group.
 * Partitions are between servers, as in the lab: a clerk reaches all servers, or those that it was made for.
 */
import { expect } from 'chai'
import { shardOf } from '../../../src/engine/command.js'
import type { KV } from '../../../src/engine/kv.js'
import { Replica } from '../../../src/engine/replica.js'
import { SimulatedNode } from '../../../src/testing/node-simulation/simulated-node.js'
import { SimulatedProcess } from '../../../src/testing/node-simulation/world.js'
import type { Lab } from './kv-helpers.js'
import { NodeLab, type NodeLabOptions, shards } from './node-lab.js'

export interface ClusterLabOptions extends NodeLabOptions {
  /** Bytes over which a log is compacted; null: never. */
  readonly maxRaftState: number | null
}

/** Clerks try for ever, as good as. */
const foreverMs = 3_600_000

/** Ten times as often as in production: scenarios are short. */
const flushAfterMs = 500

const clientDisk = { syncMeanUs: 0, writeMeanUs: 0, readMeanUs: 0, rotateBytes: 1, compactMeanUs: 1 }

export class ClusterLab extends NodeLab implements Lab {
  readonly network: Lab['network']
  /** The tester's own clock and chance. */
  readonly runtime: SimulatedProcess
  readonly maxRaftState: number | null
  /** Snapshots installed. */
  installs = 0
  readonly #clients: SimulatedNode[] = []
  #clerks = 0
  #partition: (() => void)[] = []
  #clerkCuts: (() => void)[] = []

  constructor(options: ClusterLabOptions) {
    const { unreliable, maxRaftState } = options
    super({
      ...options,
      links: unreliable
        ? { delayMinUs: 100, delayMeanUs: 13_000, inOrder: false, lossRate: 0.1 }
        : // Slower than a machine room: the lab's own clerks do about a hundred operations a second.
          { delayMinUs: 500, delayMeanUs: 1500 },
      nodeOptions: {
        requestTimeoutMs: foreverMs,
        openTimeoutMs: foreverMs,
        attemptTimeoutMs: unreliable ? 100 : 1000,
        // The lab's service keeps no history for watches, which would be most of a snapshot of one key.
        tuning: { flushAfterMs, snapshotChunkBytes: 1024, historyBytes: 0, ...(maxRaftState === null ? {} : { compactLogBytes: maxRaftState }) },
      },
    })
    this.network = unreliable ? 'unreliable' : 'reliable'
    this.maxRaftState = maxRaftState
    this.runtime = new SimulatedProcess(this.world, 'tester', 1, 1)
    const onInstalled = () => this.installs++
    this.seams.replace(Replica, 'install', (install) => {
      return async function (manifest) {
        const isDone = await install.call(this, manifest)
        if (isDone) onInstalled()
        return isDone
      }
    })
  }

  override close(): void {
    for (const { process } of this.#clients) process?.kill()
    super.close()
  }

  /** Runs the scenario to its end, once every server is in the cluster: founders begin together or not at all. */
  run(scenario: (lab: ClusterLab) => Promise<void>): Promise<void> {
    const begin = async () => {
      await this.eventually('the servers become a cluster', 30_000, () =>
        this.servers.every(({ node }) => node.state === 'up' && node.node?.status().state === 'member'),
      )
      await scenario(this)
    }
    return this.world.settle(begin(), foreverMs * 1000, 'the scenario')
  }

  override sleep(durationMs: number): Promise<void> {
    return new Promise((resolve) => {
      this.runtime.schedule(durationMs, resolve)
    })
  }

  /** Waits until the condition holds; fails when that takes longer. */
  async eventually(what: string, durationMs: number, condition: () => boolean): Promise<void> {
    expect(await this.until(condition, durationMs), `${what} within ${durationMs} ms`).to.equal(true)
  }

  /** A clerk of its own; with a list of servers, one that reaches only those. */
  async createClient(to?: readonly number[]): Promise<KV> {
    // Never a number twice: it fixes what the clerk draws, its session too.
    const number = ++this.#clerks
    const client = new SimulatedNode(this.environment, this.servers.length + number, `c${number}`, 'client', clientDisk, 1)
    this.#clients.push(client)
    this.servers.forEach(({ node }, server) => {
      if (to === undefined || to.includes(server)) return
      this.#clerkCuts.push(this.links.cut(client.address, node.address), this.links.cut(node.address, client.address))
    })
    client.start()
    await this.eventually('a clerk finds a server', 10_000, () => client.state === 'up')
    return inProcess(client)
  }

  /** The clerks made so far end, and with them their sessions. */
  async closeClients(): Promise<void> {
    const clients = this.#clients.splice(0)
    for (const client of clients) client.close()
    await this.eventually('clerks end', 10_000, () => clients.every(({ state }) => state === 'down'))
  }

  /** Cuts the servers into sides that do not reach one another; every earlier cut is undone. */
  partition(...sides: readonly (readonly number[])[]): void {
    this.connectAll()
    for (const [at, side] of sides.entries()) {
      for (const other of sides.filter((_, otherAt) => otherAt !== at).flat()) {
        for (const server of side) this.#partition.push(this.links.cut(this.servers[server]!.node.address, this.servers[other]!.node.address))
      }
    }
  }

  /** Every clerk reaches every server from now on. */
  connectClerks(): void {
    for (const undo of this.#clerkCuts.splice(0)) undo()
  }

  connectAll(): void {
    for (const undo of this.#partition) undo()
    this.#partition = []
    for (let server = 0; server < this.servers.length; server++) this.connect(server)
  }

  /** The lab's partitioner: each server on one of two sides by the toss of a coin, for a second or so, again and again. Returns how to end it; all are connected then. */
  partitionRepeatedly(): () => Promise<void> {
    let wanted = true
    const work = async () => {
      while (wanted) {
        const sides: [number[], number[]] = [[], []]
        for (let server = 0; server < this.servers.length; server++) sides[this.random.integer(0, 1) as 0 | 1].push(server)
        this.partition(...sides)
        const untilUs = this.world.nowUs + this.random.integer(1_000_000, 1_199_999)
        await this.until(() => !wanted || this.world.nowUs >= untilUs, 10_000)
      }
      this.connectAll()
    }
    const ended = work()
    return async () => {
      wanted = false
      await ended
    }
  }

  crashAll(): void {
    for (let server = 0; server < this.servers.length; server++) this.crash(server)
  }

  async restartAll(): Promise<void> {
    await Promise.all(this.servers.map((_, server) => this.restart(server)))
  }

  /** The server that leads, in the latest term that anybody knows of; waits for one. */
  async leader(among = this.servers.map((_, server) => server)): Promise<number> {
    let best: number | null = null
    await this.eventually('a leader', 10_000, () => {
      let term = 0
      for (const server of among) {
        const core = this.up(server) ? this.servers[server]!.replica?.core : undefined
        if (core?.role !== 'leader' || core.term <= term) continue
        term = core.term
        best = server
      }
      return best !== null
    })
    return best!
  }

  /** What a server's own replica holds under a key. */
  stateOf(server: number, key: string): { readonly value: string; readonly version: number } | undefined {
    const record = this.servers[server]!.replica?.machine.read(shardOf(Buffer.from(key), shards), Buffer.from(key))
    return record && { value: Buffer.from(record.value).toString(), version: record.version }
  }

  /** Every server applies the same log to the same state: once all have applied as much, each holds what the others hold. */
  async checkSameState(keys: Iterable<string>): Promise<void> {
    const applied = () => new Set(this.servers.map(({ replica }) => replica?.appliedIndex))
    await this.eventually('all servers apply as much', 30_000, () => applied().size === 1)
    for (const key of new Set(keys)) {
      const states = this.servers.map((_, server) => this.stateOf(server, key))
      for (const state of states) expect(state, `key ${key}`).to.deep.equal(states[0])
    }
  }

  /** The largest log of any server. */
  get largestRaftState(): number {
    return Math.max(...this.servers.map((_, server) => this.raftStateBytes(server)))
  }

  /** The lab's rule: with a limit, no log is larger than eight times that; without one nothing was ever cut off, and no snapshot sent. */
  checkSizes(): void {
    if (this.maxRaftState !== null) {
      expect(this.largestRaftState, 'bytes of the largest log').to.be.at.most(8 * this.maxRaftState)
      return
    }
    expect(this.installs, 'snapshots installed').to.equal(0)
    for (const { replica } of this.servers) if (replica !== null) expect(replica.core.firstIndex, 'first entry of a log').to.equal(1)
  }

  /** Bytes of all records that a snapshot of this server's replica would hold now, once its state is flushed. */
  async snapshotBytes(server: number): Promise<number> {
    const { node, replica } = this.servers[server]!
    const read = async () => {
      const capture = replica!.capture()
      let bytes = 0
      let after: Uint8Array | null = null
      for (;;) {
        const { records, isLast } = await capture.read(after, 65_536)
        for (const [key, value] of records) bytes += key.length + value.length
        after = records.at(-1)?.[0] ?? after
        if (!isLast) continue
        await capture.close()
        return bytes
      }
    }
    await this.sleep(2 * flushAfterMs)
    return new Promise((resolve, reject) => {
      node.process!.complete(0, () => {
        read().then(resolve, reject)
      })
    })
  }
}

/** A node's KV, each call made by the node's own process. */
function inProcess({ process, node }: SimulatedNode): KV {
  const { kv } = node!
  const call = <Result>(work: () => Promise<Result>): Promise<Result> =>
    new Promise((resolve, reject) => {
      process!.complete(0, () => {
        work().then(resolve, reject)
      })
    })
  return new Proxy(kv, {
    get(target, name: keyof KV) {
      const method = target[name] as ((...parameters: unknown[]) => unknown) | undefined
      // No promise: whoever awaits it asks for `then`.
      if (method === undefined) return undefined
      return (...parameters: unknown[]) => call(async () => method.apply(target, parameters))
    },
  })
}
