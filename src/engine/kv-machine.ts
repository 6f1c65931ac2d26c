/**
 * KvMachine: the state machine of one group: applies batches of commands to the group's state, and reads it.
 *
 * Invariants:
 * 1. Deterministic: the result depends on the log alone; no clock, chance or iteration order comes in.
 * 2. A request (session, sequence) takes effect at most once: its completion record is written in its shard, in the same flush as the effect,
 *    and a repeat gets the first answer. Records below the session's low-water mark are dropped.
 * 3. A shard's revision rises by one with each effective write in it and never goes back, deletes included.
 * 4. A key's version is 1 when it is created and rises by one with each write.
 */
import { toLatin1 } from '../base/bytes.js'
import { type Command, type CommandBatch, type CommandResult, CommandStatus, readBatch } from './command.js'
import { RecordType, shardPrefix } from './records.js'
import { SessionRecord } from './session-record.js'
import { ShardRecord } from './shard-record.js'
import type { RecordCursor, StateStore } from './state-store.js'
import { ValueRecord } from './value-record.js'

interface ShardState {
  revision: number
  /** Changed since the last freeze. */
  dirty: boolean
}

export class KvMachine {
  readonly #store: StateStore
  readonly #shards = new Map<number, ShardState>()

  constructor(store: StateStore) {
    this.#store = store
  }

  /** Applies one log entry's data and returns a result for each of its commands, in order. Throws CorruptionError when it is malformed: the group must stop. */
  apply(data: Uint8Array): CommandResult[] {
    const batch = readBatch(data)
    const session = toLatin1(batch.session)
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
    const result = this.#execute(command)
    record.complete(command.sequence, result)
    if (!owned) this.#store.set(sessionKey, record)
    return result
  }

  #execute(command: Command): CommandResult {
    const shard = this.#shard(command.shard)
    const key = shardPrefix(command.shard, RecordType.value) + toLatin1(command.key)
    const before = this.#store.get(key) as ValueRecord | undefined
    const version = before?.version ?? 0
    const revision = before?.revision ?? 0
    if ((command.ifVersion !== undefined && command.ifVersion !== version) || (command.ifRevision !== undefined && command.ifRevision !== revision)) {
      return { status: CommandStatus.conditionFailed, version, revision }
    }
    if (command.value === null) {
      if (before === undefined) return { status: CommandStatus.absent, version: 0, revision: shard.revision }
      this.#store.set(key, null)
      return { status: CommandStatus.ok, version: 0, revision: this.#raise(shard) }
    }
    const raised = this.#raise(shard)
    this.#store.set(key, new ValueRecord(version + 1, raised, command.value))
    return { status: CommandStatus.ok, version: version + 1, revision: raised }
  }

  #raise(shard: ShardState): number {
    shard.dirty = true
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
  }

  /** Puts the changed revision counters into the store: called right before a flush. */
  saveShards(): void {
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
