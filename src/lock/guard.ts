/**
 * The guard of a lock: a second key beside the lock's record, written by the grant and deleted with the holder, so that «this grant still stands» can be the fence of a write.
 *
 * The record itself cannot be that: its holder and its waiters write it all the time. The guard's key is written by grants alone, in the same transaction as the record, so its revision is the
 * token of the grant that stands, and the key is absent while there is none.
 *
 * A write and its fence must be in one shard, so only locks whose names have a `{tag}` have a guard, and guard what has the same tag.
 */
import { InvalidArgumentError } from '../base/errors.js'
import type { Fence } from '../engine/kv.js'

const guardPrefix = 'quorate/guard/'
/** What keeps keys together: the text between the first brace and the next closing one, when it is not empty. */
const tag = /^[^{]*\{[^}]+\}/

/** The key of the guard that belongs to a lock's record; null when the record's key has no tag. */
export function guardKeyOf(recordKey: string): string | null {
  return tag.test(recordKey) ? `${guardPrefix}${recordKey}` : null
}

/** The condition that the grant with this token still stands. */
export function guardOf(name: string, guardKey: string | null, token: bigint): Fence {
  if (guardKey !== null) return { key: guardKey, revision: Number(token) }
  throw new InvalidArgumentError(`lock "${name}" has no guard: give it a name with a {tag} that the guarded keys have too, like "{order 7}"`)
}
