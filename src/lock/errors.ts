/** The errors of the lock layer: one class per decision of the caller, like `src/base/errors.ts`. */
import { QuorateError, type QuorateErrorOptions } from '../base/errors.js'

/**
 * Why a lock was lost:
 * `expired`: the lease ran out because this process was stalled (a blocked event loop, a suspended machine) and did not renew in time;
 * `unreachable`: the lease ran out because the store did not answer in time;
 * `revoked`: somebody else changed or removed the lock record while the lease was still good;
 * `session-closed`: the `Locks` object was closed.
 */
export type LockLostReason = 'expired' | 'unreachable' | 'revoked' | 'session-closed'

/** The lock was held and no longer is: stop the work that it protects. Code `LOCK_LOST`. Also the reason of the handle's `signal`. */
export class LockLostError extends QuorateError {
  readonly lockName: string
  readonly token: bigint
  readonly why: LockLostReason

  constructor(lockName: string, token: bigint, why: LockLostReason, options?: QuorateErrorOptions) {
    super('LOCK_LOST', `lock "${lockName}" (token ${token}) was lost: ${why}`, false, options)
    this.lockName = lockName
    this.token = token
    this.why = why
  }
}

/** The lock was not granted within `timeoutMs`; the caller no longer waits for it. Code `LOCK_TIMEOUT`. `cause` is the last trouble with the store, if any. */
export class LockTimeoutError extends QuorateError {
  readonly lockName: string

  constructor(lockName: string, timeoutMs: number, options?: QuorateErrorOptions) {
    super('LOCK_TIMEOUT', `lock "${lockName}" was not granted within ${timeoutMs} ms`, true, options)
    this.lockName = lockName
  }
}

/** The handle was released: it protects nothing any more. Code `LOCK_NOT_HELD`. */
export class LockNotHeldError extends QuorateError {
  readonly lockName: string

  constructor(lockName: string, options?: QuorateErrorOptions) {
    super('LOCK_NOT_HELD', `lock "${lockName}" was released by this handle`, false, options)
    this.lockName = lockName
  }
}
