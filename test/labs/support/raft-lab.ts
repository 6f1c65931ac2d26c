/**
 * The Raft lab's test harness on the simulated clock: servers that start, crash and restart, the lab's network, and its checker routines.
 *
 * The lab counts on an election timeout of one second. Ours is a quarter of that, so every wait, delay and limit of the lab is scaled by `labScale`:
 * in relation to the timers nothing is looser than in the lab. The lab's first command has index 1; ours may follow no-op entries, so indexes here count
 * commands only. Besides the lab's own checks, every invariant of the simulator is checked after every step.
 */

import { RaftCore } from '../../../src/raft/core.js'
import type { Entry, Message, NodeId } from '../../../src/raft/types.js'
import { EntryKind } from '../../../src/raft/types.js'
import { SeededRandom } from '../../../src/testing/seeded-random.js'
import { EventQueue } from '../../../src/testing/simulation/event-queue.js'
import { InvariantChecker } from '../../../src/testing/simulation/invariants.js'
import { SimulatedLogDisk } from '../../../src/testing/simulation/log-disk.js'
import { SimulatedReplica } from '../../../src/testing/simulation/replica.js'
import type { HostModel, ReplicaEnvironment } from '../../../src/testing/simulation/replica-environment.js'
import { LabNetwork } from './lab-network.js'

/** The default timers of the product. */
export const electionTimeoutMs = 250
export const heartbeatIntervalMs = 50
/** The lab's election timeout, in its own milliseconds: used for sleeps everywhere. */
export const labElectionTimeoutMs = 1000
/** Simulated milliseconds for one of the lab's. */
export const labScale = electionTimeoutMs / labElectionTimeoutMs

const model: HostModel = {
  limits: {
    electionTimeoutMs,
    heartbeatIntervalMs,
    maxAppendBytes: 262_144,
    maxInflightBytes: 1_048_576,
    maxTailBytes: 1_048_576,
    maxUncommittedBytes: 16_777_216,
  },
  cycleDelayUs: 0,
  applyDelayUs: 0,
  applySliceBytes: 1_048_576,
  // The lab's state machine lives in memory alone.
  losesState: 'all',
  reportsEachWork: false,
  crashAtChange: 0,
  compactEntries: 0,
  compactKeeps: 0,
  snapshotUs: 0,
  crashAtConfiguration: 0,
  crashAtTruncation: 0,
}

/** A process of a test: yields how long it waits, in the lab's milliseconds. */
export type LabProcess<T = void> = Generator<number, T, void>

export interface StartResult {
  /** The position among the commands of the leader's log. */
  readonly index: number
  readonly term: number
}

export interface RaftLabOptions {
  readonly servers: number
  readonly seed: number
  readonly unreliable?: boolean
}

export class RaftLab {
  readonly queue = new EventQueue()
  readonly checker: InvariantChecker
  readonly network: LabNetwork
  readonly servers: readonly SimulatedReplica[]
  readonly random: SeededRandom
  readonly #seed: number
  /** Per server what its state machine has applied, commands only. */
  readonly #applied: string[][]
  readonly #encoder = new TextEncoder()
  readonly #decoder = new TextDecoder()
  #nextId = 1
  #started: { readonly index: number; readonly term: number } | null = null

  constructor(options: RaftLabOptions) {
    this.#seed = options.seed
    this.random = this.#stream('test')
    const ids = Array.from({ length: options.servers }, (_, position) => `s${position}`)
    const observer = {
      stored: (disk: SimulatedLogDisk, work: Parameters<InvariantChecker['stored']>[1]) => this.checker.stored(disk, work),
      count: () => {},
      committedPrefix: () => this.checker.committedPrefix,
    }
    const configuration = { voters: ids, learners: [], votersOutgoing: [] }
    const disks = ids.map(
      (id) => new SimulatedLogDisk(id, this.queue, this.#stream(`disk/${id}`), { writeMeanUs: 200, readMeanUs: 100 }, observer, configuration),
    )
    this.checker = new InvariantChecker(ids, disks)
    this.network = new LabNetwork({
      queue: this.queue,
      random: this.#stream('network'),
      scale: labScale,
      deliver: (message) => this.#server(message.to).receive(message),
      failed: (from, to) => this.#server(from).unreachable(to),
    })
    this.network.unreliable = options.unreliable ?? false
    this.#applied = ids.map(() => [])
    const environment: ReplicaEnvironment = {
      queue: this.queue,
      checker: this.checker,
      replica: (id) => this.servers.find((server) => server.id === id),
      anyone: (random) => random.pick(this.servers),
      createCore: (core) => new RaftCore(core),
      stream: (name) => this.#stream(name),
      transmit: (message: Message) => this.network.transmit(message),
      count: () => {},
      reach: () => {},
      trace: () => {},
      proposalAccepted: (_replica, _id, index, term) => {
        this.#started = { index, term }
      },
      proposalEnded: () => {},
      acknowledged: (replica, commandId, index) => this.checker.acknowledge(replica.id, commandId, index),
      readEnded: () => {},
      applied: (replica, entry) => this.#apply(replica, entry),
    }
    this.servers = disks.map((disk) => new SimulatedReplica(disk.id, disk, environment, model))
    for (const server of this.servers) server.start()
  }

  #stream(name: string): SeededRandom {
    return new SeededRandom(this.#seed, `lab/${name}`)
  }

  #server(id: NodeId): SimulatedReplica {
    return this.servers.find((server) => server.id === id) as SimulatedReplica
  }

  #at(server: number): SimulatedReplica {
    return this.servers[server] as SimulatedReplica
  }

  /** Ends the test with the seed in the message. */
  fail(message: string): never {
    throw new Error(`${message} (seed ${this.#seed}, at ${(this.queue.nowUs / 1000).toFixed(1)} simulated ms)`)
  }

  check(condition: boolean, message: string): void {
    if (!condition) this.fail(message)
  }

  #apply(replica: SimulatedReplica, entry: Entry): void {
    const position = this.servers.indexOf(replica)
    if (replica.appliedIndex === 1) this.#applied[position] = []
    if (entry.kind !== EntryKind.command) return
    const applied = this.#applied[position] as string[]
    const command = this.#decoder.decode(entry.data)
    applied.push(command)
    for (const [other, commands] of this.#applied.entries()) {
      const theirs = commands[applied.length - 1]
      if (theirs !== undefined && theirs !== command)
        this.fail(`servers ${position} and ${other} applied ${command} and ${theirs} as command ${applied.length}`)
    }
  }

  // --- time and processes -------------------------------------------------------------------------------------------------------------------

  /** Lets the lab's milliseconds pass. */
  sleep(labMs: number): void {
    this.queue.runFor(labMs * labScale * 1000)
  }

  /** Starts a process; the function that comes back tells whether it has ended, and with what. */
  spawn<T>(process: LabProcess<T>): () => { readonly value: T } | null {
    let ended: { readonly value: T } | null = null
    const go = (): void => {
      const step = process.next()
      if (step.done === true) ended = { value: step.value }
      else this.queue.schedule(step.value * labScale * 1000, go)
    }
    go()
    return () => ended
  }

  /** Runs processes to their ends, side by side. */
  runAll<T>(processes: readonly LabProcess<T>[]): T[] {
    const outcomes = processes.map((process) => this.spawn(process))
    // The processes limit themselves; this limit only ends a harness that is wrong.
    if (!this.queue.runUntil(() => outcomes.every((outcome) => outcome() !== null), 3_600_000_000)) this.fail('a process of the test does not end')
    return outcomes.map((outcome) => (outcome() as { readonly value: T }).value)
  }

  run<T>(process: LabProcess<T>): T {
    return this.runAll([process])[0] as T
  }

  // --- servers ------------------------------------------------------------------------------------------------------------------------------

  connect(server: number): void {
    this.network.connect(this.#at(server).id)
  }

  disconnect(server: number): void {
    this.network.disconnect(this.#at(server).id)
  }

  connected(server: number): boolean {
    return this.network.connected(this.#at(server).id)
  }

  /** Shuts a server down: disconnected and dead, with what its disk holds. */
  crash(server: number): void {
    this.disconnect(server)
    this.#at(server).crash()
    this.#applied[server] = []
  }

  /** Starts a server again and connects it (the rule of 2024 and 2026: it alone). */
  restart(server: number): void {
    if (this.#at(server).up) this.crash(server)
    this.#at(server).start()
    this.connect(server)
  }

  up(server: number): boolean {
    return this.#at(server).up
  }

  /** The lab's GetState. */
  state(server: number): { readonly term: number; readonly leads: boolean } {
    const { core } = this.#at(server)
    return core === null ? { term: 0, leads: false } : { term: core.term, leads: core.role === 'leader' }
  }

  /** The lab's Start: null when the server does not lead. */
  start(server: number, command: string): StartResult | null {
    const replica = this.#at(server)
    if (!replica.up) return null
    this.#started = null
    replica.propose(this.#nextId++, this.#encoder.encode(command))
    const started = this.#started as { readonly index: number; readonly term: number } | null
    return started === null ? null : { index: this.#commandsUpTo(replica, started.index), term: started.term }
  }

  #commandsUpTo(replica: SimulatedReplica, lastIndex: number): number {
    const { core, disk } = replica
    if (core === null) return 0
    let commands = 0
    let index = 1
    for (const entry of disk.read(1, lastIndex, Number.MAX_SAFE_INTEGER)) {
      if (core.termAt(entry.index) !== entry.term) break
      if (entry.kind === EntryKind.command) commands++
      index++
    }
    for (const entry of core.entries(index, lastIndex, Number.MAX_SAFE_INTEGER)) if (entry.kind === EntryKind.command) commands++
    return commands
  }

  /** How many calls a server has received. */
  calls(server: number): number {
    return this.network.received(this.#at(server).id)
  }

  allCalls(): number {
    return this.servers.reduce((sum, { id }) => sum + this.network.received(id), 0)
  }

  // --- the lab's checker routines -------------------------------------------------------------------------------------------------------------

  #connectedServers(): number[] {
    return this.servers.map((_, position) => position).filter((position) => this.connected(position) && this.up(position))
  }

  /** The one leader among the connected servers. */
  checkOneLeader(): number {
    for (let attempt = 0; attempt < 10; attempt++) {
      this.sleep(this.random.integer(450, 549))
      const leaders = new Map<number, number>()
      for (const server of this.#connectedServers()) {
        const { term, leads } = this.state(server)
        if (!leads) continue
        this.check(!leaders.has(term), `term ${term} has more than one leader`)
        leaders.set(term, server)
      }
      if (leaders.size > 0) return leaders.get(Math.max(...leaders.keys())) as number
    }
    return this.fail('expected one leader, got none')
  }

  checkNoLeader(): void {
    for (const server of this.#connectedServers())
      this.check(!this.state(server).leads, `expected no leader among connected servers, but server ${server} claims to be`)
  }

  /** The term that all connected servers agree on. */
  checkTerms(): number {
    const terms = new Set(this.#connectedServers().map((server) => this.state(server).term))
    this.check(terms.size === 1, `servers disagree on the term: ${[...terms]}`)
    return [...terms][0] as number
  }

  /** How many servers have applied the command of this index, and which it is. */
  committed(index: number): { readonly servers: number; readonly command: string | undefined } {
    let servers = 0
    let command: string | undefined
    for (const applied of this.#applied) {
      const theirs = applied[index - 1]
      if (theirs === undefined) continue
      this.check(command === undefined || command === theirs, `command ${index} differs: ${command} and ${theirs}`)
      command = theirs
      servers++
    }
    return { servers, command }
  }

  *oneProcess(command: string, expectedServers: number, retry: boolean): LabProcess<number> {
    const startedUs = this.queue.nowUs
    const limitUs = 10_000 * labScale * 1000
    let first = 0
    while (this.queue.nowUs - startedUs < limitUs) {
      let started: StartResult | null = null
      for (let count = 0; count < this.servers.length && started === null; count++) {
        first = (first + 1) % this.servers.length
        if (this.connected(first)) started = this.start(first, command)
      }
      if (started === null) {
        yield 50
        continue
      }
      const acceptedUs = this.queue.nowUs
      while (this.queue.nowUs - acceptedUs < 2000 * labScale * 1000) {
        const { servers, command: found } = this.committed(started.index)
        if (servers >= expectedServers && found === command) return started.index
        yield 20
      }
      if (!retry) this.fail(`one(${command}) was not applied by ${expectedServers} servers`)
    }
    return this.fail(`one(${command}) did not reach agreement`)
  }

  /** Submits a command until enough servers have applied it; returns its index. */
  one(command: string, expectedServers: number, retry: boolean): number {
    return this.run(this.oneProcess(command, expectedServers, retry))
  }

  /** Waits until enough servers have applied a command; undefined when a server's term passed `term` first. */
  wait(index: number, servers: number, term: number): string | undefined {
    let pauseMs = 10
    for (let attempt = 0; attempt < 30; attempt++) {
      if (this.committed(index).servers >= servers) break
      this.sleep(pauseMs)
      if (pauseMs < 1000) pauseMs *= 2
      if (term >= 0) for (let server = 0; server < this.servers.length; server++) if (this.state(server).term > term) return undefined
    }
    const found = this.committed(index)
    this.check(found.servers >= servers, `only ${found.servers} servers applied command ${index}, wanted ${servers}`)
    return found.command
  }
}
