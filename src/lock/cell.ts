/**
 * LockCell: the one key of a lock on the store, read whole and written only on the condition that it is unchanged (`ifRevision`).
 *
 * A record that says nothing (no holder, no waiter) is deleted, so that locks with names made up by the thousand leave nothing behind. What deletion means for safety:
 * - Tokens are revisions, and a shard's revision does not go back by a delete: no token is ever given twice (KV interface, 3).
 * - A write conditional on a revision above 0 can never take effect once the key has changed, deleted and made again included: revisions are not reused. No ABA.
 * - A write conditional on revision 0 («absent») can: the key may be absent again later. Only one write is of that kind, the acquisition of a lock that nobody has. If its
 *   outcome is unknown and its author gives up, it may still arrive and hold a lock for nobody, until its lease is over. `removeTraces` shuts that door: it puts a free record
 *   under the key, and leaves it there for the next user to delete. So what may stay behind for good is one small record for each acquisition that ended in such doubt, and
 *   for each holder or waiter that died, until somebody uses the same name again.
 *
 * A lock with a `{tag}` in its name has a guard beside the record (guard.ts): the writes that grant the lock and end a grant are transactions over both.
 */
import { ConditionFailedError, OutcomeUnknownError, OverloadedError, type QuorateError, UnavailableError } from '../base/errors.js'
import type { KV } from '../engine/kv.js'
import { guardKeyOf } from './guard.js'
import { decodeRecord, encodeRecord, freeRecord, type LockRecord } from './record.js'
import { Wakeup } from './wakeup.js'

/** What a read has shown. Revision 0: the key is absent, which reads as a free record. */
export interface CellState {
  readonly record: LockRecord
  readonly revision: number
}

/** How a conditional write ended: done, certainly not done because the record has changed, or in doubt. */
export type CellWrite =
  | { readonly type: 'written'; readonly state: CellState }
  | { readonly type: 'conflict' }
  /** Certainly not done, because the store did not take it. */
  | { readonly type: 'trouble'; readonly error: QuorateError }
  /** It may have been done, or may yet be: read the record to find out (invariant L6). */
  | { readonly type: 'doubt'; readonly error: QuorateError }

export type CellRead = { readonly type: 'read'; readonly state: CellState } | { readonly type: 'trouble'; readonly error: QuorateError }

export interface CellOptions {
  readonly signal: AbortSignal
  readonly timeoutMs: number
}

export class LockCell {
  readonly #kv: KV
  readonly #key: string
  /** Null: this lock has no guard (guard.ts). */
  readonly guardKey: string | null

  constructor(kv: KV, key: string) {
    this.#kv = kv
    this.#key = key
    this.guardKey = guardKeyOf(key)
  }

  /** What tells a waiter of changes of the record. */
  wakeup(): Wakeup {
    return new Wakeup(this.#kv, this.#key)
  }

  /** Trouble of the store that may pass is a result; an abort and errors that will not pass are thrown. */
  async read(options: CellOptions): Promise<CellRead> {
    try {
      const entry = await this.#kv.get(this.#key, options)
      const state = entry === undefined ? { record: freeRecord, revision: 0 } : { record: decodeRecord(entry.value), revision: entry.revision }
      return { type: 'read', state }
    } catch (error) {
      if (isTrouble(error)) return { type: 'trouble', error }
      throw error
    }
  }

  /** Changes what `before` has shown. A record that becomes free is deleted, unless `keep` wants it to stay. */
  async write(before: CellState, change: (record: LockRecord) => LockRecord, options: CellOptions, keep = false): Promise<CellWrite> {
    const conditions = { ifRevision: before.revision, ...options }
    const record = change(settled(before))
    const value = record.holder === null && record.waiters.length === 0 && !keep ? null : encodeRecord(record)
    const written = (revision: number): CellWrite => ({
      type: 'written',
      state: value === null ? { record: freeRecord, revision: 0 } : { record, revision },
    })
    // Only the acquiring write has no token yet (record.ts, 3).
    const isGrant = record.holder?.token === 0
    const isEnd = record.holder === null && before.record.holder !== null
    try {
      if (this.guardKey !== null && (isGrant || isEnd)) {
        const { succeeded, revision } = await this.#kv.txn(
          {
            if: [{ key: this.#key, revision: before.revision }],
            then: [
              value === null ? { delete: this.#key } : { put: this.#key, value },
              isGrant ? { put: this.guardKey, value: '' } : { delete: this.guardKey },
            ],
          },
          options,
        )
        return succeeded ? written(revision) : { type: 'conflict' }
      }
      if (value !== null) return written((await this.#kv.put(this.#key, value, conditions)).revision)
      await this.#kv.delete(this.#key, conditions)
      return written(0)
    } catch (error) {
      if (error instanceof ConditionFailedError) return { type: 'conflict' }
      if (error instanceof OutcomeUnknownError) return { type: 'doubt', error }
      if (isTrouble(error)) return { type: 'trouble', error }
      throw error
    }
  }
}

function isTrouble(error: unknown): error is QuorateError {
  return error instanceof UnavailableError || error instanceof OverloadedError
}

/** The record as its next writer must carry it on: with the holder's token, which the acquiring write could not know (record.ts, 3). */
function settled(state: CellState): LockRecord {
  const { holder, waiters } = state.record
  if (holder === null || holder.token !== 0) return state.record
  return { holder: { ...holder, token: state.revision }, waiters }
}

/** The token under which the present holder holds the lock. */
export function tokenOf(state: CellState): number {
  const { holder } = state.record
  return holder === null || holder.token !== 0 ? (holder?.token ?? 0) : state.revision
}
