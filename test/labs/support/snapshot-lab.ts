/**
 * SnapshotLab: the servers of lab 3D, and the lab's checker routines.
 *
 * The lab's service snapshots every ten entries; here the log is compacted by size, set so small that this happens about as often.
 */
import { expect } from 'chai'
import { shardOf } from '../../../src/engine/command.js'
import { KvMachine } from '../../../src/engine/kv-machine.js'
import { Replica } from '../../../src/engine/replica.js'
import { putBatch } from '../../engine/support/engine-fixture.js'
import { NodeLab, type NodeLabOptions, shards } from './node-lab.js'

/** The key of every command: the last one applied is the state, as good as the whole list. */
const key = 'command'
const shardOfKey = shardOf(Buffer.from(key), shards)

export type SnapshotLabOptions = NodeLabOptions

export class SnapshotLab extends NodeLab {
  /** Snapshots installed. */
  installs = 0
  /** What each index was applied as, by whoever was first. */
  readonly #applied = new Map<number, string>()
  #problem: Error | null = null
  #nextCommand = 1

  constructor(options: SnapshotLabOptions) {
    const { unreliable } = options
    super({
      ...options,
      links: unreliable
        ? // The lab's «long reordering».
          { delayMeanUs: 13_000, inOrder: false, lossRate: 0.1, heldRate: 0.05, heldMaxUs: 2_000_000 }
        : {},
      nodeOptions: {
        // The lab's servers keep no writes for watches, and its snapshots hold none.
        tuning: {
          electionTimeoutMs: 400,
          heartbeatIntervalMs: 100,
          compactLogBytes: 500,
          compactLogEntries: 4,
          snapshotChunkBytes: 256,
          historyBytes: 0,
        },
      },
    })
    this.#observe()
  }

  #observe(): void {
    const onApplied = (machine: KvMachine, data: Uint8Array) => {
      const replica = this.serverNow()?.replica
      if (replica?.machine !== machine) return
      const index = replica.appliedIndex + 1
      const command = Buffer.from(data).toString('latin1')
      const before = this.#applied.get(index)
      if (before === undefined) this.#applied.set(index, command)
      else if (before !== command) this.#problem ??= new Error(`two commands were applied at index ${index}`)
    }
    this.seams.replace(KvMachine, 'apply', (apply) => {
      return function (...data) {
        onApplied(this, data[0])
        return apply.call(this, ...data)
      }
    })
    const onInstalled = () => this.installs++
    this.seams.replace(Replica, 'install', (install) => {
      return async function (manifest) {
        const isDone = await install.call(this, manifest)
        if (isDone) onInstalled()
        return isDone
      }
    })
  }

  sleep(durationMs: number): Promise<boolean> {
    return this.world.runFor(durationMs * 1000)
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
