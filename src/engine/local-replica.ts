/**
 * LocalReplica: the one replica of a store without replication. It has no log: its state database is all there is, and a write is answered when the flush that holds it is done.
 *
 * Invariants:
 * 1. It works in turns: apply what came in, flush that in one synced batch (group commit), answer it. Nothing is applied while a flush is under way, so between turns the state
 *    in memory is exactly what the database holds.
 * 2. Reads run between turns only: nobody sees what a crash could take back.
 * 3. Every proposal and every read gets exactly one answer. After a failed flush nothing is done any more: what was in it is answered `lost`, as it may be on the disk.
 */
import type { CorruptionError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { CommandResult } from './command.js'
import type { KvMachine } from './kv-machine.js'
import { LogClock } from './log-clock.js'
import type { ReadReply, ServedReplica, WriteReply } from './served-replica.js'
import type { StateStore } from './state-store.js'

/** What comes in while so long a turn applies goes into the next one: the event loop is the application's. */
const applySliceMs = 8

export interface LocalReplicaOptions {
  readonly group: number
  readonly store: StateStore
  readonly machine: KvMachine
  readonly runtime: Runtime
  /** Applying failed: the store must stop. */
  readonly onFailure: (error: unknown) => void
}

interface Proposal {
  readonly data: Uint8Array
  readonly reply: WriteReply
}

interface Applied {
  results: readonly CommandResult[]
  readonly reply: WriteReply
}

export class LocalReplica implements ServedReplica {
  readonly group: number
  readonly machine: KvMachine
  readonly isLeader = true
  readonly leaderNode = ''
  readonly term = 0
  readonly #clock = new LogClock()
  readonly #options: LocalReplicaOptions
  #proposals: Proposal[] = []
  #proposalsAt = 0
  /** Applied in the turn whose flush is under way. */
  #applied: Applied[] = []
  #reads: ReadReply[] = []
  /** `waiting`: a turn is to begin; what is in memory is durable. */
  #phase: 'idle' | 'waiting' | 'flushing' = 'idle'
  #stopped = false

  constructor(options: LocalReplicaOptions) {
    this.group = options.group
    this.machine = options.machine
    this.#options = options
  }

  get appliedIndex(): number {
    return this.#options.store.appliedIndex
  }

  get stopped(): boolean {
    return this.#stopped
  }

  logTimeMs(): number {
    return this.#clock.look(this.term, this.machine.timeMs, this.#options.runtime.nowMs())
  }

  propose(data: Uint8Array, reply: WriteReply): void {
    if (this.#stopped) return reply(null, 'stopped')
    this.#proposals.push({ data, reply })
    this.#await()
  }

  /** Begins a turn after this one of the event loop: what it still produces is to come along. */
  #await(): void {
    if (this.#phase !== 'idle') return
    this.#phase = 'waiting'
    this.#options.runtime.defer(() => this.#apply())
  }

  #apply(): void {
    if (this.#stopped) return
    const { runtime, store, onFailure } = this.#options
    const untilMs = runtime.nowMs() + applySliceMs
    this.#phase = 'flushing'
    try {
      do {
        const { data, reply } = this.#proposals[this.#proposalsAt++]!
        const applied = { results: [] as readonly CommandResult[], reply }
        this.#applied.push(applied)
        applied.results = this.machine.apply(data)
      } while (this.#proposalsAt < this.#proposals.length && runtime.nowMs() < untilMs)
      store.advance(store.appliedIndex + this.#applied.length)
      store.flushSoon()
    } catch (error) {
      onFailure(error)
    }
    if (this.#proposalsAt < this.#proposals.length) return
    this.#proposals = []
    this.#proposalsAt = 0
  }

  /** The flush under way is done. */
  flushed(): void {
    if (this.#stopped) return
    const applied = this.#applied
    const reads = this.#reads
    this.#applied = []
    this.#reads = []
    this.#phase = 'idle'
    for (const { results, reply } of applied) reply(results, null)
    for (const reply of reads) reply(null)
    this.machine.watches.wake()
    if (this.#proposals.length > 0) this.#await()
  }

  awaitReadable(reply: ReadReply): void {
    if (this.#stopped) reply('stopped')
    else if (this.#phase === 'flushing') this.#reads.push(reply)
    else reply(null)
  }

  /** There is but one state, and the one in memory may yet be lost: a stale read waits as any other. */
  awaitAny(reply: ReadReply): void {
    this.awaitReadable(reply)
  }

  damaged(error: CorruptionError): void {
    this.#options.onFailure(error)
  }

  /** Answers every caller; nothing is accepted any more. */
  stop(): void {
    if (this.#stopped) return
    this.#stopped = true
    this.machine.watches.end('stopped')
    const applied = this.#applied
    const waiting = this.#proposals.slice(this.#proposalsAt)
    const reads = this.#reads
    this.#applied = []
    this.#proposals = []
    this.#reads = []
    for (const { reply } of applied) reply(null, 'lost')
    for (const { reply } of waiting) reply(null, 'stopped')
    for (const reply of reads) reply('stopped')
  }
}
