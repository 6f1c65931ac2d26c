/**
 * Sessions: what makes requests exactly once, and how a shard forgets a client that is gone.
 *
 * A shard keeps a record of each session that wrote in it. A session needs no keep-alive: a record that was not touched for a long time is forgotten, and with it the answers that a late copy of a
 * request would need. So the shard keeps a horizon instead of what it forgot: the latest birth of the sessions forgotten, one number for all of them. A request of no later birth, of a session that
 * has no record, may be such a late copy, and is refused.
 *
 * Invariants:
 * 1. A request (session, sequence) takes effect at most once, and its repeats get the first answer, or `stale`, or `expired`.
 * 2. A record is made only for a birth after the horizon, and a request that is answered in a record is of a birth after the record's floor: the horizon when it was made.
 * 3. When a record is forgotten the horizon is raised to the latest birth that was answered in it. So of what was answered in a record that is gone, nothing can be answered again.
 * 4. A record is forgotten for its silence only at a log time that is a whole time to live after its last request.
 */
import { type BatchHead, type Command, type CommandResult, CommandStatus } from './command.js'
import { isOver } from './expiry-entry.js'
import { RecordType, shardPrefix } from './records.js'
import { SessionRecord } from './session-record.js'
import type { ShardState } from './shard-states.js'
import type { StateStore } from './state-store.js'

/** Does what a command asks for. */
export type Execute = (command: Command, shard: ShardState, session: SessionRecord) => CommandResult

export const askAgain: CommandResult = { status: CommandStatus.again, version: 0, revision: 0 }

export class Sessions {
  readonly #store: StateStore
  readonly #execute: Execute

  constructor(store: StateStore, execute: Execute) {
    this.#store = store
    this.#execute = execute
  }

  /** Answers a command of a batch: as it was answered before, or by what executing it gives now. `session` is its id as text. */
  answer(shard: ShardState, head: BatchHead, session: string, command: Command, timeMs: number): CommandResult {
    const key = shardPrefix(shard.shard, RecordType.session) + session
    let record = this.#store.get(key) as SessionRecord | undefined
    if (head.birth <= (record === undefined ? shard.horizon : record.floor)) {
      return { status: CommandStatus.expired, version: shard.forgottenMs, revision: shard.horizon }
    }
    const first = record?.find(command.sequence)
    if (first !== undefined) return first
    // A record that was changed since the last flush began is changed in place; one that is being flushed, or the database's, is copied first.
    const owned = record !== undefined && this.#store.owns(key)
    if (record === undefined) record = new SessionRecord(shard.horizon, head.lowWater)
    else if (owned) record.trim(head.lowWater)
    else record = record.raise(head.lowWater)
    const { revision } = shard
    const result = this.#execute(command, shard, record)
    if (result.body === undefined) {
      record.complete(command.sequence, result, head.birth, timeMs)
      if (!owned) this.#store.set(key, record)
      return result
    }
    // What had no effect may as well be done at another time: its answer, of any size, is not kept. That it is over is: a late copy of the request must not have an effect.
    record.complete(command.sequence, shard.revision === revision ? askAgain : result, head.birth, timeMs)
    this.#store.set(key, record)
    return result
  }

  /** The session was silent for so long since `touchedMs`, as a leader has seen; nothing is done when that is not so any more. */
  expire(shard: ShardState, session: string, touchedMs: number, ttlMs: number, timeMs: number): void {
    const key = shardPrefix(shard.shard, RecordType.session) + session
    const record = this.#store.get(key) as SessionRecord | undefined
    if (record === undefined || record.touchedMs !== touchedMs || !isOver(touchedMs, ttlMs, timeMs)) return
    shard.forgottenMs = Math.max(shard.forgottenMs, touchedMs + 1)
    this.#forget(shard, key, record)
  }

  #forget(shard: ShardState, key: string, { birth }: SessionRecord): void {
    shard.horizon = Math.max(shard.horizon, birth)
    shard.dirty = true
    this.#store.set(key, null)
  }
}
