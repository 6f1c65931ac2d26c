/**
 * KvMachine: the state machine of one group: applies batches of commands to the group's state, and reads it.
 *
 * Invariants:
 * 1. Deterministic: the result depends on the log alone; no clock, chance or iteration order comes in.
 * 2. A request (session, sequence) takes effect at most once (sessions.ts): its completion record is written in its shard, in the same flush as the effect.
 * 3. A shard's revision rises by one with each command that changes it, however much that writes, and never goes back, deletes included.
 * 4. A key's version is 1 when it is created and rises by one with each write.
 * 5. A command has its whole effect or none. What the bodies of results hold is bounded, for a batch and for a session: beyond that a command is done by nobody and asked again.
 * 6. Log time is the highest stamp of the entries applied; it never goes back.
 */
import { toLatin1 } from '../base/bytes.js'
import { type Command, type CommandResult, CommandStatus, CommandType, readBatch } from './command.js'
import { isExpiryEntry, readExpiryEntry } from './expiry-entry.js'
import { History } from './history.js'
import { decodeInteger, formatInteger, isInteger, parseInteger } from './integer.js'
import { RecordType, shardPrefix, timeKey } from './records.js'
import type { SessionRecord } from './session-record.js'
import { askAgain, Sessions } from './sessions.js'
import { raiseRevision, type ShardState, ShardStates } from './shard-states.js'
import type { RecordCursor, StateStore } from './state-store.js'
import { TimeRecord } from './time-record.js'
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

export class KvMachine {
  readonly #store: StateStore
  readonly #shards: ShardStates
  readonly #sessions: Sessions
  /** Of the batch that is being applied: bytes of the results' bodies. */
  #bodyBytes = 0
  /** Negative while only the store knows. */
  #timeMs = -1
  #savedTimeMs = -1
  /** The latest writes, in their order. */
  readonly history: History
  /** Those who wait for the next ones. */
  readonly watches: WatchPolls

  constructor(store: StateStore, { historyBytes = defaultHistoryBytes, historyJoinBytes = 16 * 1024 }: KvMachineOptions = {}) {
    this.#store = store
    this.#shards = new ShardStates(store)
    this.#sessions = new Sessions(store, (command, shard, session) => {
      const result = this.#execute(command, shard, session)
      if (result.body !== undefined) this.#bodyBytes += result.body.length
      return result
    })
    const revisionOf = (shard: number) => this.revisionOf(shard)
    this.history = new History({ store, revisionOf, maxBytes: historyBytes, joinBytes: historyJoinBytes })
    this.watches = new WatchPolls({ history: this.history, revisionOf })
  }

  /** Log time: the highest stamp of the entries that were applied. */
  get timeMs(): number {
    if (this.#timeMs < 0) this.#timeMs = this.#savedTimeMs = (this.#store.get(timeKey) as TimeRecord | undefined)?.timeMs ?? 0
    return this.#timeMs
  }

  #advance(stampMs: number): number {
    if (stampMs > this.timeMs) this.#timeMs = stampMs
    return this.#timeMs
  }

  /** Applies one log entry's data and returns a result for each of its commands, in order. Throws CorruptionError when it is malformed: the group must stop. */
  apply(data: Uint8Array): CommandResult[] {
    if (isExpiryEntry(data)) return this.#expire(data)
    const batch = readBatch(data)
    const timeMs = this.#advance(batch.stampMs)
    const session = toLatin1(batch.session)
    this.#bodyBytes = 0
    return batch.commands.map((command) => this.#sessions.answer(this.#shards.get(command.shard), batch, session, command, timeMs))
  }

  #expire(data: Uint8Array): CommandResult[] {
    const { stampMs, items } = readExpiryEntry(data)
    const timeMs = this.#advance(stampMs)
    for (const { shard, sinceMs, ttlMs, id } of items) {
      this.#sessions.expire(this.#shards.get(shard), toLatin1(id), sinceMs, ttlMs, timeMs)
    }
    return []
  }

  #execute(command: Command, shard: ShardState, session: SessionRecord): CommandResult {
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
        const raised = raiseRevision(shard)
        this.#write(command.shard, key, new ValueRecord(version + 1, raised, command.value!), raised)
        return { status: CommandStatus.ok, version: version + 1, revision: raised }
      }
      case CommandType.delete:
        if (before === undefined) return { status: CommandStatus.absent, version: 0, revision: shard.revision }
        return this.#delete(shard, key)
      case CommandType.increment: {
        const present = before === undefined ? 0n : parseInteger(before.value)
        if (present === null) return { status: CommandStatus.notANumber, version, revision }
        const sum = present + decodeInteger(command.value!)
        if (!isInteger(sum)) return { status: CommandStatus.outOfRange, version, revision }
        const body = formatInteger(sum)
        const raised = raiseRevision(shard)
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
    const revision = raiseRevision(shard)
    for (const [key, stored] of writes) {
      this.#write(number, prefix + key, stored && new ValueRecord(stored.version, revision, stored.value), revision)
    }
    return { status: CommandStatus.ok, version: 0, revision, body }
  }

  #delete(shard: ShardState, key: string): CommandResult {
    const revision = raiseRevision(shard)
    this.#write(shard.shard, key, null, revision)
    return { status: CommandStatus.ok, version: 0, revision }
  }

  /** Every effective write of a user's key goes through here: it is an event of the shard's history too. */
  #write(shard: number, key: string, record: ValueRecord | null, revision: number): void {
    this.#store.set(key, record)
    this.history.record(shard, key, record, revision)
  }

  /** The store holds another state now: a snapshot was installed. */
  forget(): void {
    this.#shards.forget()
    this.#timeMs = this.#savedTimeMs = -1
    this.history.forget()
    this.watches.end('stopped')
  }

  /** How many effective transactions a shard has seen. */
  revisionOf(shard: number): number {
    return this.#shards.get(shard).revision
  }

  /** Puts what changes with every write into the store: called right before a flush. */
  saveShards(): void {
    this.history.save()
    this.#shards.save()
    if (this.#savedTimeMs === this.#timeMs) return
    this.#savedTimeMs = this.#timeMs
    this.#store.set(timeKey, new TimeRecord(this.#timeMs))
  }

  read(shard: number, key: Uint8Array): ValueRecord | undefined {
    return this.#store.get(shardPrefix(shard, RecordType.value) + toLatin1(key)) as ValueRecord | undefined
  }

  /** A cursor over the sessions that a shard remembers, as of this moment; records that are in memory show later changes. */
  sessions(shard: number): RecordCursor {
    return this.#store.iterate(shardPrefix(shard, RecordType.session), shardPrefix(shard, RecordType.session + 1), false)
  }

  /** A cursor over a shard's keys in [gte, lt); an absent `lt` means to the end. As of this moment. */
  scan(shard: number, gte: Uint8Array, lt: Uint8Array | null, reverse: boolean): RecordCursor {
    const from = shardPrefix(shard, RecordType.value) + toLatin1(gte)
    const to = lt === null ? shardPrefix(shard, RecordType.value + 1) : shardPrefix(shard, RecordType.value) + toLatin1(lt)
    return this.#store.iterate(from, to, reverse)
  }
}
