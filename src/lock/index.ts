/** `quorate/lock`: locks with leases and fencing tokens, on the KV interface alone. */
export { LockLostError, type LockLostReason, LockNotHeldError, LockTimeoutError } from './errors.js'
export { createLocks, type LocksOptions } from './locks.js'
export type { AcquireOptions, LockHandle, LockInspection, LockScope, Locks, NamedLock, ReleaseResult, RunOptions } from './types.js'
