/**
 * ShardStates: what a group's shards are as a whole, in memory while it changes with every write, and in the state store at every flush.
 *
 * Invariants: 1. a shard's revision never goes back; 2. nor does its horizon.
 */
import { RecordType, shardPrefix } from './records.js'
import { ShardRecord } from './shard-record.js'
import type { StateStore } from './state-store.js'

export interface ShardState {
  readonly shard: number
  revision: number
  horizon: number
  forgottenMs: number
  /** Changed since the last freeze. */
  dirty: boolean
}

export class ShardStates {
  readonly #store: StateStore
  readonly #shards = new Map<number, ShardState>()

  constructor(store: StateStore) {
    this.#store = store
  }

  get(shard: number): ShardState {
    let state = this.#shards.get(shard)
    if (state === undefined) {
      const record = this.#store.get(shardPrefix(shard, RecordType.shard)) as ShardRecord | undefined
      state = { shard, revision: record?.revision ?? 0, horizon: record?.horizon ?? 0, forgottenMs: record?.forgottenMs ?? 0, dirty: false }
      this.#shards.set(shard, state)
    }
    return state
  }

  /** The store holds another state now. */
  forget(): void {
    this.#shards.clear()
  }

  /** Puts what changed into the store. */
  save(): void {
    for (const [shard, state] of this.#shards) {
      if (!state.dirty) continue
      state.dirty = false
      this.#store.set(shardPrefix(shard, RecordType.shard), new ShardRecord(state.revision, state.horizon, state.forgottenMs))
    }
  }
}

/** Counts one more write in the shard, and returns its revision. */
export function raiseRevision(state: ShardState): number {
  state.dirty = true
  return ++state.revision
}
