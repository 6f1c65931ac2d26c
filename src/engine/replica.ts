/**
 * Replica: this node's member of one group: the consensus core, the state machine that it feeds, and the callers that wait for it.
 *
 * Invariants:
 * 1. Entries are applied in index order, each once, after they committed; callers are answered after the apply.
 * 2. Every proposal and every read gets exactly one answer: its result, or why there is none. A proposal that was taken into the log and then lost sight of (leadership
 *    lost) is answered `lost`: it may still commit, so the client repeats it under the same request ids.
 * 3. A read runs when the state has reached the index that the core confirmed for it.
 * 4. Applying runs in slices of a few milliseconds and pauses while the state store is congested.
 */
import { CorruptionError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { type Consensus, EntryKind, type Input, type InstallRequest, type NodeId, type Output, type RejectReason } from '../raft/types.js'
import { SnapshotErrorCode, type SnapshotManifest, type SnapshotRecord } from '../snapshot/messages.js'
import type { SnapshotCapture } from '../snapshot/sender.js'
import type { CommandResult } from './command.js'
import { type CompactionLimits, decideCompaction } from './compaction.js'
import { nodeOf } from './identity.js'
import type { KvMachine } from './kv-machine.js'
import { LogClock } from './log-clock.js'
import type { LogBase, LogStore } from './log-store.js'
import { encodeOrigin } from './open-log.js'
import type { ReadReply, Refusal, ServedReplica, WriteReply } from './served-replica.js'
import type { StateStore } from './state-store.js'

/** What became of a change of members or a transfer: null when it is done. */
export type ChangeOutcome = RejectReason | 'stopped' | null

const applySliceMs = 4
const applyReadBytes = 1024 * 1024

export interface ReplicaOptions {
  readonly group: number
  /** This replica's name in the group's configuration, and its life. */
  readonly member: NodeId
  readonly life: number
  readonly core: Consensus
  readonly store: StateStore
  readonly machine: KvMachine
  readonly log: LogStore
  readonly compaction: CompactionLimits
  /** Entries after this index are needed by those who receive a snapshot from here. */
  readonly neededAfter: () => number
  /** Bytes of the largest snapshot that is being sent from here, or was a short while ago. */
  readonly snapshotBytes: () => number
  /** The leader has offered a snapshot that this replica needs. */
  readonly onOffer: (replica: Replica, request: InstallRequest) => void
  readonly runtime: Runtime
  /** The core has something to drain: the host must run a cycle. */
  readonly onDirty: (replica: Replica) => void
  /** Applying failed: the group must stop. */
  readonly onFailure: (replica: Replica, error: unknown) => void
}

interface WaitingWrite {
  readonly index: number
  readonly term: number
  readonly reply: WriteReply
}

interface WaitingRead {
  readonly index: number
  readonly reply: ReadReply
}

export class Replica implements ServedReplica {
  readonly group: number
  readonly member: NodeId
  readonly life: number
  readonly core: Consensus
  readonly machine: KvMachine
  readonly #options: ReplicaOptions
  readonly #store: StateStore
  readonly #clock = new LogClock()
  #nextId = 1
  /** Proposals and reads that the core has not answered yet, by id. */
  readonly #proposals = new Map<number, WriteReply>()
  readonly #reads = new Map<number, ReadReply>()
  /** Changes of members and transfers that are under way, by id. */
  readonly #changes = new Map<number, (outcome: ChangeOutcome) => void>()
  /** Proposals in the log, in index order. */
  #waitingWrites: WaitingWrite[] = []
  #waitingWritesAt = 0
  /** Confirmed reads whose index is not yet applied, in index order. */
  #waitingReads: WaitingRead[] = []
  /** Proposals that came while leadership is handed over: answered when it is known who leads, so that their clients need not search. */
  #heldBack: WriteReply[] = []
  #applying = false
  #stopped = false
  /** What an overlong log and the state were when it was last asked whether to compact: while nothing much is new the answer is the same. */
  #compactionAsked: { readonly bytes: number; readonly lastIndex: number; readonly flushedIndex: number } | null = null

  constructor(options: ReplicaOptions) {
    this.group = options.group
    this.member = options.member
    this.life = options.life
    this.core = options.core
    this.machine = options.machine
    this.#store = options.store
    this.#options = options
  }

  get appliedIndex(): number {
    return this.#store.appliedIndex
  }

  get leader(): NodeId | null {
    return this.core.leader
  }

  get isLeader(): boolean {
    return this.core.role === 'leader'
  }

  get leaderNode(): string {
    return this.isLeader ? '' : nodeOf(this.leader ?? '')
  }

  get stopped(): boolean {
    return this.#stopped
  }

  get term(): number {
    return this.core.term
  }

  logTimeMs(): number {
    return this.#clock.look(this.core.term, this.machine.timeMs, this.#options.runtime.nowMs())
  }

  /** Proposes one log entry. */
  propose(data: Uint8Array, reply: WriteReply): void {
    if (this.#stopped) return reply(null, 'stopped')
    const id = this.#nextId++
    this.#proposals.set(id, reply)
    this.#step({ type: 'propose', id, data })
    this.#options.onDirty(this)
  }

  /** Makes these the members of the group. Resolves when that is committed and in force alone, or to the reason why it may not come to that. */
  configure(voters: readonly NodeId[], learners: readonly NodeId[]): Promise<ChangeOutcome> {
    return this.#change((id) => ({ type: 'configure', id, voters, learners }))
  }

  /** Hands leadership to a voter, or to the one that suits best. */
  transfer(to: NodeId | null): Promise<ChangeOutcome> {
    return this.#change((id) => ({ type: 'transfer', id, to }))
  }

  #change(inputOf: (id: number) => Input): Promise<ChangeOutcome> {
    if (this.#stopped) return Promise.resolve('stopped')
    const id = this.#nextId++
    return new Promise((resolve) => {
      this.#changes.set(id, resolve)
      this.#step({ type: 'tick', nowMs: this.#options.runtime.nowMs() })
      this.#step(inputOf(id))
      this.#options.onDirty(this)
    })
  }

  /** Calls back when the state reflects every write acknowledged before this call. With `lease`, trusting clocks to run alike, without asking other replicas when possible. */
  awaitReadable(reply: ReadReply, lease = false): void {
    if (this.#stopped) return reply('stopped')
    const id = this.#nextId++
    this.#reads.set(id, reply)
    // A read's wait is measured from its arrival, not from the last tick, which may lie before a stall of the event loop.
    this.#step({ type: 'tick', nowMs: this.#options.runtime.nowMs() })
    this.#step(lease ? { type: 'read', id, lease } : { type: 'read', id })
    this.#options.onDirty(this)
  }

  awaitAny(reply: ReadReply): void {
    reply(this.#stopped ? 'stopped' : null)
  }

  damaged(error: CorruptionError): void {
    this.#options.onFailure(this, error)
  }

  /** A core that throws has found its own invariants broken: the group stops, and with it every caller is answered. */
  #step(input: Input): void {
    try {
      if (!this.#stopped) this.core.step(input)
    } catch (error) {
      this.#options.onFailure(this, error)
    }
  }

  /** Takes the answers out of what the core put out. The host handles the rest. */
  settle(output: Output): void {
    for (const { id, index, term } of output.accepted) {
      this.#waitingWrites.push({ index, term, reply: take(this.#proposals, id) })
    }
    for (const { id, index } of output.reads) {
      const reply = take(this.#reads, id)
      if (index <= this.appliedIndex) reply(null)
      else this.#waitingReads.push({ index, reply })
    }
    for (const { id } of output.configured) take(this.#changes, id)(null)
    for (const { id } of output.transferred) take(this.#changes, id)(null)
    for (const { id, reason } of output.rejected) {
      if (this.#changes.has(id)) {
        take(this.#changes, id)(reason)
        continue
      }
      const refusal = refusalFor(reason)
      const write = this.#proposals.get(id)
      if (write !== undefined) {
        this.#proposals.delete(id)
        if (reason === 'transferring') this.#heldBack.push(write)
        else write(null, refusal)
      } else {
        take(this.#reads, id)(refusal)
      }
    }
    if (output.install !== null) this.#options.onOffer(this, output.install)
    if (this.#heldBack.length > 0 && this.core.leader !== null && !this.core.isTransferring) this.#releaseHeldBack()
    if (this.core.role === 'leader') return
    if (this.#waitingWritesAt < this.#waitingWrites.length) this.#loseWrites('lost')
    if (this.machine.watches.size > 0) this.machine.watches.end('not-leader')
  }

  /** None of them was proposed. */
  #releaseHeldBack(): void {
    const held = this.#heldBack
    this.#heldBack = []
    const refusal: Refusal = this.#stopped ? 'stopped' : this.core.role === 'leader' ? 'overloaded' : 'not-leader'
    for (const reply of held) reply(null, refusal)
  }

  #loseWrites(refusal: Refusal): void {
    const lost = this.#waitingWrites.slice(this.#waitingWritesAt)
    this.#waitingWrites = []
    this.#waitingWritesAt = 0
    for (const { reply } of lost) reply(null, refusal)
  }

  /** Applies what is committed; returns at once when there is nothing, when it is under way, or when the time is used up; then it goes on in a later turn. */
  apply(untilMs = this.#options.runtime.nowMs() + applySliceMs): void {
    if (this.#applying || this.#stopped) return
    try {
      this.#store.flushIfDue()
      while (this.appliedIndex < this.core.commitIndex) {
        if (this.#options.runtime.nowMs() >= untilMs) return this.#continueAfter(null)
        // The host applies again after its next log write.
        if (this.#store.awaitsLog) return
        if (this.#store.congested) return this.#continueAfter(this.#store.flushed())
        const entries = this.core.entries(this.appliedIndex + 1, this.core.commitIndex, applyReadBytes)
        if (entries.length === 0) return this.#continueAfter(this.#applyFromLog())
        for (const entry of entries) {
          const results = entry.kind === EntryKind.command ? this.machine.apply(entry.data) : []
          this.#finishEntry(entry.index, entry.term, results)
        }
        this.#reportApplied()
      }
    } catch (error) {
      this.#options.onFailure(this, error)
    }
  }

  /** Entries that are no longer, or not yet, in the core's memory: after a restart. */
  async #applyFromLog(): Promise<void> {
    const first = this.appliedIndex + 1
    const entries = await this.#options.log.read(this.group, first, this.core.commitIndex, applyReadBytes)
    // A snapshot may be taking the state's place meanwhile (hazard D6.47); applying goes on after that.
    if (this.#stopped || this.#store.isInstalling || this.appliedIndex >= first) return
    for (const entry of entries) {
      // From here on the core has cut the log, in memory and perhaps not yet on disk: what replaced this entry is in its memory.
      if (entry.index !== this.appliedIndex + 1 || entry.term !== this.core.termAt(entry.index)) break
      const results = entry.kind === EntryKind.command ? this.machine.apply(entry.data) : []
      this.#finishEntry(entry.index, entry.term, results)
    }
    if (this.appliedIndex < first && this.core.entries(first, first, 1).length === 0) {
      throw new CorruptionError(`group ${this.group}: committed entry ${first} is not in the log`)
    }
    this.#reportApplied()
  }

  /** Where the log may start from now on, when it is time to compact it; null else. Cheap to ask. */
  planCompaction(): LogBase | null {
    const { log, compaction: limits } = this.#options
    const table = log.table(this.group)
    const { flushedIndex } = this.#store
    const { lastIndex } = this.core
    const baseIndex = this.core.firstIndex - 1
    const asked = this.#compactionAsked
    this.#compactionAsked = null
    if (this.#stopped || (table.bytes <= limits.maxBytes && lastIndex - baseIndex <= limits.maxEntries)) return null
    const isNews =
      asked === null ||
      flushedIndex !== asked.flushedIndex ||
      Math.abs(table.bytes - asked.bytes) >= limits.maxBytes / 8 ||
      lastIndex - asked.lastIndex >= limits.maxEntries / 8
    this.#compactionAsked = isNews ? { bytes: table.bytes, lastIndex, flushedIndex } : asked
    if (!isNews) return null
    const neededAfter = this.#neededAfter()
    const snapshotBytes = this.#options.snapshotBytes()
    const { compactTo, flush } = decideCompaction({ table, baseIndex, lastIndex, flushedIndex, neededAfter, snapshotBytes, limits })
    if (flush) this.#store.flushSoon()
    if (compactTo === null) return null
    return { index: compactTo, term: this.core.termAt(compactTo)!, configuration: this.core.configurationAt(compactTo)! }
  }

  /** Entries after this index are needed by live followers, and by those who receive a snapshot. One that is still to be sent one needs none of those that are here. */
  #neededAfter(): number {
    let neededAfter = this.#options.neededAfter()
    for (const { matchIndex, state, isActive } of this.core.progress()) {
      if (isActive && state !== 'snapshot') neededAfter = Math.min(neededAfter, matchIndex)
    }
    return neededAfter
  }

  #continueAfter(wait: Promise<void> | null): void {
    this.#applying = true
    const resume = () => {
      this.#applying = false
      this.apply()
    }
    if (wait === null) this.#options.runtime.defer(resume)
    else wait.then(resume, (error: unknown) => this.#options.onFailure(this, error))
  }

  #finishEntry(index: number, term: number, results: readonly CommandResult[]): void {
    this.#store.advance(index)
    const waiting = this.#waitingWrites[this.#waitingWritesAt]
    if (waiting !== undefined && waiting.index === index) {
      this.#waitingWritesAt++
      if (waiting.term === term) waiting.reply(results, null)
      else waiting.reply(null, 'lost')
    }
  }

  #reportApplied(): void {
    if (this.#waitingWritesAt === this.#waitingWrites.length) {
      this.#waitingWrites = []
      this.#waitingWritesAt = 0
    }
    this.machine.watches.wake()
    const applied = this.appliedIndex
    let ready = 0
    while (ready < this.#waitingReads.length && this.#waitingReads[ready]!.index <= applied) ready++
    for (const { reply } of this.#waitingReads.splice(0, ready)) reply(null)
    this.core.step({ type: 'applied', index: applied })
    if (this.core.dirty) this.#options.onDirty(this)
  }

  /** The state as the database holds it, for sending it to a replica that the log no longer serves. */
  capture(): SnapshotCapture {
    const { index, read, close } = this.#store.capture()
    const term = this.core.termAt(index)
    const configuration = this.core.configurationAt(index)
    // One that was made to join, and has not heard yet who is in the group, would have others forget it too.
    const isKnown = configuration !== undefined && configuration.voters.length > 0
    if (index > 0 && term !== undefined && isKnown) return { index, term, configuration, read, close }
    void close()
    throw new UnavailableError(`group ${this.group} has nothing to send yet`, SnapshotErrorCode.none)
  }

  /** Makes room for a snapshot. */
  beginInstall(): Promise<void> {
    return this.#store.beginStaging()
  }

  stage(records: readonly SnapshotRecord[]): Promise<void> {
    return this.#store.stage(records)
  }

  abandonInstall(): void {
    this.#store.discardStaging()
  }

  /** Puts what was staged in the state's place, if it is ahead; the log follows. Resolves to whether it was. */
  install({ index, term, configuration }: SnapshotManifest): Promise<boolean> {
    return this.#store.install(index, encodeOrigin({ index, term, configuration }), () => {
      if (this.#stopped) return
      this.machine.forget()
      this.#loseCovered(index)
      this.#step({ type: 'restored', index, term, configuration })
      if (!this.#stopped) this.#reportApplied()
      this.#options.onDirty(this)
    })
  }

  /** What a snapshot stands for is applied by nobody here: whether a write is in there, its caller finds out by repeating it (hazard D6.51). */
  #loseCovered(index: number): void {
    for (;;) {
      const waiting = this.#waitingWrites[this.#waitingWritesAt]
      if (waiting === undefined || waiting.index > index) return
      this.#waitingWritesAt++
      waiting.reply(null, 'lost')
    }
  }

  /** Answers every caller; nothing is accepted any more. */
  stop(): void {
    if (this.#stopped) return
    this.#stopped = true
    this.#loseWrites('lost')
    this.#releaseHeldBack()
    this.machine.watches.end('stopped')
    for (const reply of this.#proposals.values()) reply(null, 'stopped')
    for (const reply of this.#reads.values()) reply('stopped')
    for (const resolve of this.#changes.values()) resolve('stopped')
    for (const { reply } of this.#waitingReads) reply('stopped')
    this.#proposals.clear()
    this.#reads.clear()
    this.#changes.clear()
    this.#waitingReads = []
  }
}

/** A leader that is busy with itself is asked again a little later. */
function refusalFor(reason: RejectReason): Refusal {
  return reason === 'not-leader' || reason === 'lost' ? reason : 'overloaded'
}

function take<T>(map: Map<number, T>, id: number): T {
  const value = map.get(id)!
  map.delete(id)
  return value
}
