/**
 * Host: drives all replicas of a node in one cycle: drain the cores, send what may leave, write what must be durable, release what waited for it, apply.
 *
 * Invariants:
 * 1. At most one log write is in flight for the whole node, and it holds the work of every group that had some: one fsync serves all, and completions cannot reorder.
 * 2. A message of `sendAfterPersist` leaves when all persist work drained with it or before it, for its group, is durable.
 * 3. A failed write is final: every replica stops, nothing more is acknowledged, nothing is retried.
 * 4. One message per peer and cycle holds what all groups have for it, heartbeats included; the messenger is flushed once, at the cycle's end. Leaders of a
 *    node send their heartbeats at the same moments, so that many idle groups cost few frames. No cycle costs anything for groups that had no part in it.
 * 5. A message names the life of its sender and that of its receiver, and reaches only the replica of that life (hazards p5, n17, D5.45).
 */
import { Reader, Writer } from '../base/codec.js'
import { storageFailure } from '../base/errors.js'
import type { Cancel, Runtime } from '../base/runtime.js'
import { decodeMessage, encodeMessage } from '../raft/message-codec.js'
import { mergeWork } from '../raft/persistence.js'
import type { Message, MessageAfterPersist, NodeId, PersistWork, Role } from '../raft/types.js'
import { Channel, type MessengerFace, type Sender } from '../transport/messenger.js'
import type { Address } from '../transport/transport.js'
import { lifeOf, memberId, nodeOf } from './identity.js'
import { Liveness } from './liveness.js'
import type { GroupWork, LogBase, LogStore } from './log-store.js'
import type { Replica } from './replica.js'

export interface HostOptions {
  readonly runtime: Runtime
  readonly messenger: MessengerFace
  readonly log: LogStore
  readonly addressOf: (nodeId: NodeId) => Address | undefined
  readonly electionTimeoutMs: number
  readonly heartbeatIntervalMs: number
  /** Storage failed, and the node serves nothing any more; or one replica did, and only its group is not served here. */
  readonly onFailure: (error: unknown, replica: Replica | null) => void
  /** Role, term or leader of a replica changed. */
  readonly onStatus: (replica: Replica) => void
}

const maxDeparted = 64

/** What a replica's host keeps about it. */
interface Member {
  readonly replica: Replica
  /** Messages that wait for the next write, and for the one in flight. */
  waiting: MessageAfterPersist[]
  released: MessageAfterPersist[]
  /** Sequence of the work that waits for the next write, and of the one in flight; 0 for none. */
  waitingSequence: number
  writingSequence: number
  dirty: boolean
  lastRole: Role
  lastTerm: number
  lastLeader: NodeId | null
}

/** Raft messages for one peer are handed to the messenger when they are so many bytes, or at the cycle's end. */
const maxBundleBytes = 256 * 1024
const nothing = new Uint8Array(0)
/** All groups together apply for so long in a cycle. */
const applySliceMs = 4

export class Host {
  readonly #options: HostOptions
  readonly #members = new Map<number, Member>()
  /** What this cycle has for each peer. */
  readonly #bundles = new Map<Address, Writer>()
  /** Where nodes were heard that are not in the cluster's map any more. */
  readonly #departed = new Map<NodeId, Address>()
  readonly #names = new MemberNames()
  readonly #liveness: Liveness
  #dirty: Member[] = []
  /** What is to be written next, by group. */
  #works = new Map<number, PersistWork>()
  /** Where the logs of groups are to start, with the next write. */
  #compactions = new Map<Replica, LogBase>()
  #writing: Promise<void> | null = null
  #cycleScheduled = false
  #cancelTick: Cancel | null = null
  #tickAtMs = Number.POSITIVE_INFINITY
  #stopped = false
  #failed = false
  /** Log writes done, for those who count fsyncs. */
  logWrites = 0

  constructor(options: HostOptions) {
    this.#options = options
    this.#liveness = new Liveness({
      runtime: options.runtime,
      intervalMs: 2 * options.heartbeatIntervalMs,
      silenceMs: options.electionTimeoutMs,
      beat: (node) => this.#beat(node),
      onSilent: (node) => this.peerLost(node),
    })
    options.messenger.onMessage(Channel.raft, (from, body) => this.#receive(from, body))
  }

  add(replica: Replica): void {
    this.#members.set(replica.group, {
      ...{ replica, waiting: [], released: [], waitingSequence: 0, writingSequence: 0, dirty: false },
      ...{ lastRole: 'follower', lastTerm: -1, lastLeader: null },
    })
    this.wake(replica)
  }

  /** Takes a replica out for good. When this resolves nothing of it is being written any more, and another one of its group may be added. */
  async remove(replica: Replica): Promise<void> {
    replica.stop()
    if (this.#members.get(replica.group)?.replica !== replica) return
    this.#members.delete(replica.group)
    this.#works.delete(replica.group)
    this.#compactions.delete(replica)
    await this.#writing
  }

  replica(group: number): Replica | undefined {
    return this.#members.get(group)?.replica
  }

  get replicas(): Replica[] {
    return Array.from(this.#members.values(), ({ replica }) => replica)
  }

  /** The replica's core has work: run a cycle after this turn. */
  wake(replica: Replica): void {
    const member = this.#members.get(replica.group)
    if (member === undefined || this.#stopped) return
    if (!member.dirty) {
      member.dirty = true
      this.#dirty.push(member)
    }
    if (this.#cycleScheduled) return
    this.#cycleScheduled = true
    this.#options.runtime.defer(() => {
      this.#cycleScheduled = false
      this.#cycle()
    })
  }

  #receive({ nodeId: from, address }: Sender, body: Uint8Array): void {
    if (this.#stopped) return
    const nowMs = this.#options.runtime.nowMs()
    this.#liveness.heard(from, nowMs)
    if (this.#options.addressOf(from) === undefined) this.#rememberDeparted(from, address)
    const reader = new Reader(body)
    while (reader.remaining > 0) {
      const member = this.#members.get(reader.varint())
      const sender = this.#names.of(from, reader.varint())
      const receiverLife = reader.varint()
      const message = decodeMessage(reader, sender, member?.replica.member ?? '')
      // Meant for an earlier replica of this node: this one has never said what the sender believes of it.
      if (member !== undefined && !member.replica.stopped && member.replica.life === receiverLife) this.#deliver(member, message, nowMs)
    }
  }

  /** A node that left the cluster's map takes part in its groups until their configurations leave it out, and may be needed until then. */
  #rememberDeparted(node: NodeId, address: Address): void {
    if (this.#departed.size >= maxDeparted && !this.#departed.has(node)) this.#departed.clear()
    this.#departed.set(node, address)
  }

  /** Where a node is: by the cluster's map, or where it was heard when that has left it out. */
  addressOf(node: NodeId): Address | undefined {
    return this.#options.addressOf(node) ?? this.#departed.get(node)
  }

  #deliver({ replica }: Member, message: Message, nowMs: number): void {
    if (message.type === 'heartbeat' && message.isResting) this.#liveness.rests(nodeOf(message.from))
    this.#guard(replica, () => {
      replica.core.step({ type: 'tick', nowMs })
      replica.core.step({ type: 'message', message })
    })
    this.wake(replica)
  }

  /** A node was lost, or is silent: a hint to every group that is led from there, or from here. */
  peerLost(node: NodeId): void {
    if (this.#stopped) return
    const nowMs = this.#options.runtime.nowMs()
    let nextMs = Number.POSITIVE_INFINITY
    for (const { replica } of this.#members.values()) {
      const { core } = replica
      if (replica.stopped || core.leader === null || (core.role !== 'leader' && nodeOf(core.leader) !== node)) continue
      const { voters, learners, votersOutgoing } = core.configuration
      const peers = core.role === 'leader' ? [...voters, ...learners, ...votersOutgoing].filter((peer) => nodeOf(peer) === node) : [core.leader]
      this.#guard(replica, () => {
        core.step({ type: 'tick', nowMs })
        for (const peer of peers) core.step({ type: 'unreachable', peer })
      })
      if (core.dirty) this.wake(replica)
      nextMs = Math.min(nextMs, core.nextTickMs)
    }
    this.#tickAt(nextMs)
  }

  /** A core that throws has found its own invariants broken: its group stops, the others go on. */
  #guard(replica: Replica, run: () => void): void {
    try {
      run()
    } catch (error) {
      this.fail(replica, error)
    }
  }

  /** Stops one group for good. */
  fail(replica: Replica, error: unknown): void {
    if (replica.stopped) return
    replica.stop()
    this.#options.onFailure(error, replica)
  }

  #cycle(): void {
    if (this.#stopped) return
    const dirty = this.#dirty
    this.#dirty = []
    for (const member of dirty) {
      member.dirty = false
      if (!member.replica.stopped) this.#guard(member.replica, () => this.#drain(member))
    }
    if (this.#writing === null) this.#startWrite()
    const applyUntilMs = this.#options.runtime.nowMs() + applySliceMs
    for (const { replica } of dirty) replica.apply(applyUntilMs)
    this.#sendBundles()
    this.#options.messenger.flush()
    let nextMs = Number.POSITIVE_INFINITY
    for (const { replica } of dirty) if (!replica.stopped) nextMs = Math.min(nextMs, replica.core.nextTickMs)
    this.#tickAt(nextMs)
  }

  #drain(member: Member): void {
    const { replica } = member
    const output = replica.core.drain()
    for (const message of output.sendNow) this.#send(replica, message)
    if (output.persist !== null) {
      this.#addWork(replica.group, output.persist)
      // Acknowledgements of entries that are cut before they were written: they would claim what the disk never held.
      if (output.persist.truncateFrom !== null) member.waiting = member.waiting.filter(({ term }) => term === replica.core.term)
      member.waitingSequence = output.persist.sequence
    }
    if (output.sendAfterPersist.length > 0) {
      if (member.waitingSequence !== 0) member.waiting.push(...output.sendAfterPersist)
      else if (member.writingSequence !== 0) member.released.push(...output.sendAfterPersist)
      else this.#release(replica, output.sendAfterPersist)
    }
    for (const { peer, firstIndex, lastIndex, maxBytes } of output.fetch) void this.#fetch(replica, peer, firstIndex, lastIndex, maxBytes)
    replica.settle(output)
    const { role, term, leader } = replica.core
    if (role === member.lastRole && term === member.lastTerm && leader === member.lastLeader) return
    member.lastRole = role
    member.lastTerm = term
    member.lastLeader = leader
    this.#options.onStatus(replica)
  }

  /** What a group produced over several cycles while a write was in flight becomes one record: what was cut meanwhile is never written. */
  #addWork(group: number, work: PersistWork): void {
    const before = this.#works.get(group)
    this.#works.set(group, before === undefined ? work : mergeWork(before, work))
  }

  /** Compacts a replica's log with the next write, if it is time. */
  considerCompaction(replica: Replica): void {
    if (this.#stopped || this.#members.get(replica.group)?.replica !== replica) return
    this.#guard(replica, () => {
      const base = replica.planCompaction()
      if (base === null) return
      this.#compactions.set(replica, base)
      this.wake(replica)
    })
  }

  #startWrite(): void {
    if (this.#works.size === 0 && this.#compactions.size === 0) return
    const works: GroupWork[] = Array.from(this.#works, ([group, work]) => ({ group, work }))
    this.#works = new Map()
    const compactions = this.#compactions
    if (compactions.size > 0) {
      this.#compactions = new Map()
      for (const [{ group }, compactTo] of compactions) {
        const at = works.findIndex((other) => other.group === group)
        if (at < 0) works.push({ group, work: null, compactTo })
        else works[at] = { ...works[at]!, compactTo }
      }
    }
    const members = new Set(works.map(({ group }) => this.#members.get(group)!))
    for (const member of members) {
      member.writingSequence = member.waitingSequence
      member.waitingSequence = 0
      member.released.push(...member.waiting)
      member.waiting = []
    }
    this.logWrites++
    this.#writing = this.#options.log.write(works).then(
      () => {
        this.#writing = null
        for (const [replica, { index }] of compactions) this.#finishCompaction(replica, index)
        for (const member of members) this.#finishWrite(member)
        this.#cycle()
      },
      (error: unknown) => {
        this.#writing = null
        this.#failed = true
        this.#stopped = true
        this.#cancelTick?.()
        for (const replica of this.replicas) replica.stop()
        this.#options.onFailure(storageFailure('the log', error), null)
      },
    )
  }

  #finishCompaction(replica: Replica, index: number): void {
    if (replica.stopped) return
    this.#guard(replica, () => replica.core.step({ type: 'compacted', index }))
    this.wake(replica)
  }

  #finishWrite(member: Member): void {
    if (member.writingSequence === 0) return
    const { replica } = member
    const sequence = member.writingSequence
    const released = member.released
    member.writingSequence = 0
    member.released = []
    this.#guard(replica, () => {
      replica.core.step({ type: 'persisted', sequence })
      if (!replica.stopped) this.#release(replica, released)
    })
    this.considerCompaction(replica)
    this.wake(replica)
  }

  #release(replica: Replica, messages: readonly MessageAfterPersist[]): void {
    for (const message of messages) {
      if (message.to === replica.member) {
        replica.core.step({ type: 'message', message })
        this.wake(replica)
      } else {
        this.#send(replica, message)
      }
    }
  }

  #send(replica: Replica, message: Message): void {
    const address = this.addressOf(nodeOf(message.to))
    if (address === undefined) return
    let bundle = this.#bundles.get(address)
    if (bundle === undefined) {
      bundle = new Writer(4096)
      this.#bundles.set(address, bundle)
    }
    if (message.type === 'heartbeat' && message.isResting) this.#liveness.rests(nodeOf(message.to))
    bundle.varint(replica.group).varint(replica.life).varint(lifeOf(message.to))
    encodeMessage(bundle, message)
    if (bundle.length >= maxBundleBytes) this.#sendBundle(address, bundle)
  }

  #sendBundles(): void {
    for (const [address, bundle] of this.#bundles) if (bundle.length > 0) this.#sendBundle(address, bundle)
    // Addresses change; what is no longer used must not stay.
    if (this.#bundles.size > 1024) this.#bundles.clear()
  }

  /** A sign of life for a node that hears little of us otherwise: an empty bundle. */
  #beat(node: NodeId): void {
    const address = this.addressOf(node)
    if (address !== undefined) this.#options.messenger.send(address, Channel.raft, nothing)
    this.#options.messenger.flush()
  }

  #sendBundle(address: Address, bundle: Writer): void {
    this.#options.messenger.send(address, Channel.raft, bundle.view())
    bundle.reset()
  }

  async #fetch(replica: Replica, peer: NodeId, firstIndex: number, lastIndex: number, maxBytes: number): Promise<void> {
    try {
      const entries = await this.#options.log.read(replica.group, firstIndex, lastIndex, maxBytes)
      if (this.#stopped || replica.stopped) return
      replica.core.step({ type: 'fetched', peer, entries })
      this.wake(replica)
    } catch (error) {
      if (!this.#stopped) this.fail(replica, error)
    }
  }

  /** Makes sure that a tick comes at this time, or earlier. */
  #tickAt(timeMs: number): void {
    if (this.#stopped || timeMs >= this.#tickAtMs) return
    this.#cancelTick?.()
    this.#tickAtMs = timeMs
    // Deferred once more: after a stalled loop, timers fire before the sockets are read, and the messages that wait there may be a living leader's.
    const onTimer = () => this.#options.runtime.defer(() => this.#tick())
    this.#cancelTick = this.#options.runtime.schedule(Math.max(0, timeMs - this.#options.runtime.nowMs()), onTimer)
  }

  /** Ticks what is due. Only here all groups are looked at: timers were left where they stood when a group's time moved on. */
  #tick(): void {
    this.#cancelTick = null
    this.#tickAtMs = Number.POSITIVE_INFINITY
    if (this.#stopped) return
    const nowMs = this.#options.runtime.nowMs()
    let nextMs = Number.POSITIVE_INFINITY
    for (const { replica } of this.#members.values()) {
      if (replica.stopped) continue
      if (replica.core.nextTickMs <= nowMs) {
        this.#guard(replica, () => replica.core.step({ type: 'tick', nowMs }))
        this.wake(replica)
      } else {
        nextMs = Math.min(nextMs, replica.core.nextTickMs)
      }
    }
    this.#tickAt(nextMs)
  }

  /** Stops all replicas, and writes what they have already put out: their state may be ahead of their log no more. */
  async stop(): Promise<void> {
    this.#stopped = true
    this.#cancelTick?.()
    this.#liveness.stop()
    for (const replica of this.replicas) replica.stop()
    await this.#writing
    if (this.#works.size === 0 || this.#failed) return
    const works = Array.from(this.#works, ([group, work]) => ({ group, work }))
    this.#works = new Map()
    await this.#options.log.write(works)
    for (const { group, work } of works) this.#members.get(group)!.replica.core.step({ type: 'persisted', sequence: work.sequence })
  }
}

/** The names of members, made once: they are compared and looked up with each message. */
class MemberNames {
  readonly #names = new Map<NodeId, Map<number, NodeId>>()
  #count = 0

  of(nodeId: NodeId, life: number): NodeId {
    if (life === 0) return nodeId
    let lives = this.#names.get(nodeId)
    if (lives === undefined) {
      lives = new Map()
      this.#names.set(nodeId, lives)
    }
    let name = lives.get(life)
    if (name === undefined) {
      // Lives come from outside.
      if (++this.#count > 10_000) {
        this.#names.clear()
        this.#count = 0
      }
      name = memberId(nodeId, life)
      lives.set(life, name)
    }
    return name
  }
}
