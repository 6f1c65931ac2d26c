/**
 * KvMachine: the state machine of one group: applies batches of commands to the group's state, and reads it.
 *
 * Invariants:
 * 1. Deterministic: the result depends on the log alone; no clock, chance or iteration order comes in.
 * 2. A request (session, sequence) takes effect at most once: its completion record is written in its shard, in the same flush as the effect,
 *    and a repeat gets the first answer. Records below the session's low-water mark are dropped.
 * 3. A shard's revision rises by one with each command that changes it, however much that writes, and never goes back, deletes included.
 * 4. A key's version is 1 when it is created and rises by one with each write.
 * 5. A command has its whole effect or none. What the bodies of results hold is bounded, for a batch and for a session: beyond that a command is done by nobody and asked again.
 */
import { toLatin1 } from '../base/bytes.js'
import { type Command, type CommandBatch, type CommandResult, CommandStatus, CommandType, readBatch } from './command.js'
import { History } from './history.js'
import { decodeInteger, formatInteger, isInteger, parseInteger } from './integer.js'
import { RecordType, shardPrefix } from './records.js'
import { SessionRecord } from './session-record.js'
import { ShardRecord } from './shard-record.js'
import type { RecordCursor, StateStore } from './state-store.js'
import { maxResultBytes, readTransaction, runTransaction } from './transaction.js'
import { ValueRecord } from './value-record.js'
import { WatchPolls } from './watch-polls.js'

/** What a group keeps of the history of its shards. */
export const defaultHistoryBytes = 8 * 1024 * 1024

export interface KvMachineOptions {
  /** Bytes of the latest writes that are kept for watchers to catch up with. Default 8 MiB. */
  readonly historyBytes?: number
  /** Parts of the history smaller than this are joined with what comes next. Default 16 KiB; less where flushes are many. */
  readonly historyJoinBytes?: number
}

/** Bytes of bodies in the results of one batch, and of those that a session's record keeps; a single one may always be as large as it may. */
const maxBodyBytes = 2 * maxResultBytes
const nothing = { version: 0, revision: 0 }
const askAgain: CommandResult = { status: CommandStatus.again, version: 0, revision: 0 }

interface ShardState {
  revision: number
  /** Changed since the last freeze. */
  dirty: boolean
}

export class KvMachine {
  readonly #store: StateStore
  readonly #shards = new Map<number, ShardState>()
  /** Of the batch that is being applied: bytes of the results' bodies. */
  #bodyBytes = 0
  /** The latest writes, in their order. */
  readonly history: History
  /** Those who wait for the next ones. */
  readonly watches: WatchPolls
  /** The command that is being applied has changed something. */
  #changed = false

  constructor(store: StateStore, { historyBytes = defaultHistoryBytes, historyJoinBytes = 16 * 1024 }: KvMachineOptions = {}) {
    this.#store = store
    const revisionOf = (shard: number) => this.revisionOf(shard)
    this.history = new History({ store, revisionOf, maxBytes: historyBytes, joinBytes: historyJoinBytes })
    this.watches = new WatchPolls({ history: this.history, revisionOf })
  }

  /** Applies one log entry's data and returns a result for each of its commands, in order. Throws CorruptionError when it is malformed: the group must stop. */
  apply(data: Uint8Array): CommandResult[] {
    const batch = readBatch(data)
    const session = toLatin1(batch.session)
    this.#bodyBytes = 0
    return batch.commands.map((command) => this.#applyOnce(batch, session, command))
  }

  #applyOnce(batch: CommandBatch, session: string, command: Command): CommandResult {
    const sessionKey = shardPrefix(command.shard, RecordType.session) + session
    let record = this.#store.get(sessionKey) as SessionRecord | undefined
    const first = record?.find(command.sequence)
    if (first !== undefined) return first
    // A record that was changed since the last flush began is changed in place; one that is being flushed, or the database's, is copied first.
    const owned = record !== undefined && this.#store.owns(sessionKey)
    if (record === undefined) record = new SessionRecord(batch.lowWater, new Map())
    else if (owned) record.trim(batch.lowWater)
    else record = record.raise(batch.lowWater)
    this.#changed = false
    const result = this.#execute(command, record)
    const { body } = result
    if (body === undefined) {
      record.complete(command.sequence, result)
      if (!owned) this.#store.set(sessionKey, record)
      return result
    }
    this.#bodyBytes += body.length
    // What had no effect may as well be done at another time: its answer, of any size, is not kept. That it is over is: a late copy of the request must not have an effect.
    record.complete(command.sequence, this.#changed ? result : askAgain)
    this.#store.set(sessionKey, record)
    return result
  }

  #execute(command: Command, session: SessionRecord): CommandResult {
    const shard = this.#shard(command.shard)
    const { type, fence } = command
    if (fence !== undefined) {
      const { version, revision } = this.read(command.shard, fence.key) ?? nothing
      if (revision !== fence.revision) return { status: CommandStatus.fenced, version, revision }
    }
    if (type === CommandType.transaction) return this.#transact(shard, command, session)
    const key = shardPrefix(command.shard, RecordType.value) + toLatin1(command.key)
    const before = this.#store.get(key) as ValueRecord | undefined
    const version = before?.version ?? 0
    const revision = before?.revision ?? 0
    if ((command.ifVersion !== undefined && command.ifVersion !== version) || (command.ifRevision !== undefined && command.ifRevision !== revision)) {
      return { status: CommandStatus.conditionFailed, version, revision }
    }
    switch (type) {
      case CommandType.put: {
        const raised = this.#raise(shard)
        this.#write(command.shard, key, new ValueRecord(version + 1, raised, command.value!), raised)
        return { status: CommandStatus.ok, version: version + 1, revision: raised }
      }
      case CommandType.delete:
        if (before === undefined) return { status: CommandStatus.absent, version: 0, revision: shard.revision }
        return this.#delete(shard, command.shard, key)
      case CommandType.increment: {
        const present = before === undefined ? 0n : parseInteger(before.value)
        if (present === null) return { status: CommandStatus.notANumber, version, revision }
        const sum = present + decodeInteger(command.value!)
        if (!isInteger(sum)) return { status: CommandStatus.outOfRange, version, revision }
        const body = formatInteger(sum)
        const raised = this.#raise(shard)
        this.#write(command.shard, key, new ValueRecord(version + 1, raised, body), raised)
        return { status: CommandStatus.ok, version: version + 1, revision: raised, body }
      }
      default:
        return type satisfies never
    }
  }

  #transact(shard: ShardState, { shard: number, value }: Command, session: SessionRecord): CommandResult {
    const prefix = shardPrefix(number, RecordType.value)
    const read = (key: string) => this.#store.get(prefix + key) as ValueRecord | undefined
    const outcome = runTransaction(readTransaction(value!), { revision: shard.revision, read })
    if (outcome === null) return { status: CommandStatus.tooLarge, version: 0, revision: 0 }
    const { writes, body } = outcome
    const bytes = body?.length ?? 0
    if (this.#bodyBytes > 0 && this.#bodyBytes + bytes > maxBodyBytes) return askAgain
    if (writes.size === 0) return { status: CommandStatus.ok, version: 0, revision: shard.revision, body }
    if (session.bodyBytes > 0 && session.bodyBytes + bytes > maxBodyBytes) return askAgain
    const revision = this.#raise(shard)
    for (const [key, stored] of writes) {
      this.#write(number, prefix + key, stored && new ValueRecord(stored.version, revision, stored.value), revision)
    }
    return { status: CommandStatus.ok, version: 0, revision, body }
  }

  #delete(state: ShardState, shard: number, key: string): CommandResult {
    const revision = this.#raise(state)
    this.#write(shard, key, null, revision)
    return { status: CommandStatus.ok, version: 0, revision }
  }

  /** Every effective write of a user's key goes through here: it is an event of the shard's history too. */
  #write(shard: number, key: string, record: ValueRecord | null, revision: number): void {
    this.#store.set(key, record)
    this.history.record(shard, key, record, revision)
  }

  #raise(shard: ShardState): number {
    shard.dirty = true
    this.#changed = true
    return ++shard.revision
  }

  #shard(shard: number): ShardState {
    let state = this.#shards.get(shard)
    if (state === undefined) {
      const record = this.#store.get(shardPrefix(shard, RecordType.shard)) as ShardRecord | undefined
      state = { revision: record?.revision ?? 0, dirty: false }
      this.#shards.set(shard, state)
    }
    return state
  }

  /** The store holds another state now: a snapshot was installed. */
  forget(): void {
    this.#shards.clear()
    this.history.forget()
    this.watches.end('stopped')
  }

  /** How many effective transactions a shard has seen. */
  revisionOf(shard: number): number {
    return this.#shard(shard).revision
  }

  /** Puts the changed revision counters and the new events into the store: called right before a flush. */
  saveShards(): void {
    this.history.save()
    for (const [shard, state] of this.#shards) {
      if (!state.dirty) continue
      state.dirty = false
      this.#store.set(shardPrefix(shard, RecordType.shard), new ShardRecord(state.revision))
    }
  }

  read(shard: number, key: Uint8Array): ValueRecord | undefined {
    return this.#store.get(shardPrefix(shard, RecordType.value) + toLatin1(key)) as ValueRecord | undefined
  }

  /** A cursor over a shard's keys in [gte, lt); an absent `lt` means to the end. As of this moment. */
  scan(shard: number, gte: Uint8Array, lt: Uint8Array | null, reverse: boolean): RecordCursor {
    const from = shardPrefix(shard, RecordType.value) + toLatin1(gte)
    const to = lt === null ? shardPrefix(shard, RecordType.value + 1) : shardPrefix(shard, RecordType.value) + toLatin1(lt)
    return this.#store.iterate(from, to, reverse)
  }
}
