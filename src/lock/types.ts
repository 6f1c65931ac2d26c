/** The public face of the lock layer. */
import type { Fence } from '../engine/kv.js'
import type { LockLostError } from './errors.js'

export interface AcquireOptions {
  /** Ends the wait; `acquire` rejects with its reason and no longer waits for the lock. */
  readonly signal?: AbortSignal | undefined
  /** Ends the wait with LockTimeoutError. Default: no limit (`tryAcquire`: 10 000, for the store to answer). */
  readonly timeoutMs?: number | undefined
  /** Shown to others by `inspect`. At most 128 bytes. Default: the label of the `Locks` object. */
  readonly label?: string | undefined
}

export interface RunOptions extends AcquireOptions {
  /** What to do when the lock was lost although the callback succeeded: reject with LockLostError (the default), or return the callback's value all the same. */
  readonly onLost?: 'reject' | 'ignore' | undefined
}

/** How a release ended. Not released means that the lock had been lost before, or that nobody knows: either way the work may have overlapped with another holder's. */
export type ReleaseResult = { readonly released: true; readonly lost?: undefined } | { readonly released: false; readonly lost: LockLostError }

/**
 * A lock that was granted. A lock is a lease: whoever stalls for longer than the lease loses it, and learns of it only afterwards. Pass the `token` on to whatever
 * must not happen twice, and let that refuse a token smaller than the greatest that it has seen.
 */
export interface LockHandle extends AsyncDisposable {
  readonly name: string
  /** The fencing token: rises with every grant of this name and is never reused. It is the KV revision of the write that took the lock. */
  readonly token: bigint
  /** Aborts with a LockLostError when the lock is lost. */
  readonly signal: AbortSignal
  /** Whether the lease is good now, by the monotonic clock, counted from before the last renewal was sent. Once false it stays so. */
  readonly held: boolean
  /** Throws LockLostError when the lock was lost, LockNotHeldError when it was released. */
  assertHeld(): void
  /**
   * The condition that this very grant still stands, for the writes of what the lock protects: the store refuses them (ConditionFailedError `FENCED`) once the lock was given back, lost to another
   * or taken over, however late they arrive. For keys in the shard of the lock: the lock's name must have a `{tag}`, and the keys the same one, or this throws InvalidArgumentError.
   *
   * @example
   * await locks.lock('{order 7}').run(({ handle }) => kv.put('{order 7}/state', 'paid', { fence: handle.guard() }))
   */
  guard(): Fence
  /**
   * Gives the lock back. Never rejects, and may be called again: the result is the same. When the store does not answer it tries until the lease is over.
   *
   * @example
   * const result = await handle.release()
   * if (!result.released) console.error('overlapped with another holder?', result.lost.why)
   */
  release(): Promise<ReleaseResult>
}

/** What the callback of `run` gets. */
export interface LockScope {
  /** The fencing token, `handle.token`. */
  readonly fence: bigint
  /** Aborts when the lock is lost: give it to everything that the callback waits for. */
  readonly signal: AbortSignal
  readonly handle: LockHandle
}

/** One lock by its name. */
export interface NamedLock {
  readonly name: string
  acquire(options?: AcquireOptions): Promise<LockHandle>
  tryAcquire(options?: AcquireOptions): Promise<LockHandle | null>
  /**
   * Takes the lock, runs the callback, gives the lock back, and returns the callback's value.
   *
   * @example
   * await locks.lock('report').run(async ({ fence, signal }) => {
   *   await uploadReport({ fence, signal })
   * })
   */
  run<T>(callback: (scope: LockScope) => Promise<T> | T, options?: RunOptions): Promise<T>
}

export interface LockInspection {
  readonly name: string
  readonly holder: {
    /** The acquire's nonce, hexadecimal. */
    readonly id: string
    readonly label: string
    readonly token: bigint
    readonly ttlMs: number
    /** How often it was renewed (or, taken in doubt, tried for). */
    readonly renewals: number
  } | null
  /** In the order in which they will be served; the dead among them are passed over when their turn comes. */
  readonly waiters: readonly { readonly id: string; readonly label: string }[]
}

/**
 * Locks on a KV store. All errors carry a stable `code`: `LOCK_LOST`, `LOCK_TIMEOUT`, `LOCK_NOT_HELD`, `CLOSED`; `MALFORMED` when the key under which the lock
 * would stand holds something else; and what the store answers when it will not get better by waiting.
 */
export interface Locks extends AsyncDisposable {
  /** Waits for the lock, in order of arrival where all waiters are alive. Not reentrant: who holds it and asks again waits for himself. */
  acquire(name: string, options?: AcquireOptions): Promise<LockHandle>
  /**
   * Takes the lock when it is free and nobody waits for it, otherwise resolves to null. Of a holder that died it knows only what this `Locks` object has watched
   * itself: it succeeds when called again after the holder's lease.
   */
  tryAcquire(name: string, options?: AcquireOptions): Promise<LockHandle | null>
  /** Takes the lock, runs the callback with its handle, and always gives the lock back. Rejects with LockLostError when it was lost, also when the callback succeeded (unless `onLost: 'ignore'`). */
  withLock<T>(name: string, options: RunOptions, callback: (handle: LockHandle) => Promise<T> | T): Promise<T>
  /** The lock of this name, as an object. */
  lock(name: string): NamedLock
  /** Who holds it and who waits, as the record has it now. */
  inspect(name: string, options?: Pick<AcquireOptions, 'signal' | 'timeoutMs'>): Promise<LockInspection>
  /** Gives back what is held (handles see LockLostError, `session-closed`) and stops waiting (ClosedError). Waits at most `timeoutMs` (default 2000) for the store. */
  close(options?: { readonly timeoutMs?: number }): Promise<void>
}
