/**
 * removeTraces: takes a nonce out of a lock's record, whether as holder or as waiter, and makes sure that it does not come back: a write of its own that is still
 * under way, of unknown outcome, is shut out by changing the record that it is conditional on.
 */
import { conflictDelayMs, pause, troubleDelayMs } from './poll.js'
import { type LockRecord, withoutNonce } from './record.js'
import type { LockSession } from './session.js'

/** What may be left of one acquire: its nonce, and its writes of unknown outcome, by what they were conditional on. */
export class Traces {
  readonly nonce: string
  /** Whether any write was sent that was not certainly refused. */
  written = false
  #doubtfulCreate = false
  #doubtfulRevision = 0

  constructor(nonce: string) {
    this.nonce = nonce
  }

  /** A write that was conditional on this revision ended in doubt. */
  doubt(revision: number): void {
    if (revision === 0) this.#doubtfulCreate = true
    // An earlier doubtful revision is past: this write was made upon a read that showed a later one.
    else this.#doubtfulRevision = revision
  }

  /** Whether a write in doubt could still take effect on a record of this revision. */
  mayReturnAt(revision: number): boolean {
    return revision === 0 ? this.#doubtfulCreate : revision === this.#doubtfulRevision
  }

  /** Whether deleting the key would open the door to a write in doubt (cell.ts). */
  get keepsRecord(): boolean {
    return this.#doubtfulCreate
  }

  isIn(record: LockRecord): boolean {
    return record.holder?.nonce === this.nonce || record.waiters.some((waiter) => waiter.nonce === this.nonce)
  }
}

/**
 * Tries for as long as a lease lasts: after that the nonce holds nothing any more, and as a waiter it is passed over. Resolves to whether the record is
 * known to be free of the nonce; never rejects.
 */
export async function removeTraces(session: LockSession, name: string, traces: Traces): Promise<boolean> {
  const { runtime } = session
  const cell = session.cell(name)
  const endMs = runtime.nowMs() + session.ttlMs
  const never = new AbortController().signal
  let failures = 0
  let conflicts = 0
  try {
    for (;;) {
      const remainingMs = endMs - runtime.nowMs()
      if (remainingMs <= 0) return false
      const options = { signal: never, timeoutMs: Math.min(session.requestTimeoutMs, remainingMs) }
      const read = await cell.read(options)
      if (read.type === 'read') {
        const { state } = read
        if (!traces.isIn(state.record) && !traces.mayReturnAt(state.revision)) return true
        const write = await cell.write(state, (record) => withoutNonce(record, traces.nonce), options, traces.keepsRecord)
        if (write.type === 'written') return true
        if (write.type === 'conflict') {
          await pause(runtime, conflictDelayMs(conflicts++, runtime), never)
          continue
        }
      }
      await pause(runtime, troubleDelayMs(failures++, runtime), never)
    }
  } catch {
    // Errors that will not pass (the store is closed, the key holds something else) leave nothing to tidy, or nobody who could.
    return false
  }
}
