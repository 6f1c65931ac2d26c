/** createLocks: the entry to the lock layer. It checks arguments, keeps the book of what is going on, and leaves the work to Acquisition and HeldLock. */
import { ClosedError, InvalidArgumentError, UnavailableError } from '../base/errors.js'
import { type Runtime, systemRuntime } from '../base/runtime.js'
import type { KV } from '../engine/kv.js'
import { Acquisition } from './acquisition.js'
import { tokenOf } from './cell.js'
import { LockTimeoutError } from './errors.js'
import type { HeldLock } from './handle.js'
import { pause } from './poll.js'
import { maxLabelBytes, maxTtlMs, minTtlMs } from './record.js'
import { createSession, type LockSession } from './session.js'
import type { AcquireOptions, LockHandle, LockInspection, Locks, NamedLock, RunOptions } from './types.js'

export interface LocksOptions {
  /** Put before a lock's name to make its key. Default `quorate/lock/`. */
  readonly prefix?: string
  readonly session?: {
    /**
     * The lease. A holder that dies or stalls blocks the others for so long; a holder whose event loop is blocked for so long loses the lock: keep it well above the
     * longest synchronous block. From 100 to 3 600 000, default 15 000.
     */
    readonly ttlMs?: number
    /** How often a held lock is renewed. At most half of `ttlMs`; default a third. */
    readonly renewEveryMs?: number
  }
  /** Shown to others by `inspect`. Default: the process id. */
  readonly label?: string
  /** The clock and timers. Default: the real ones. */
  readonly runtime?: Runtime
}

const defaultTtlMs = 15_000
const defaultTryTimeoutMs = 10_000
const defaultCloseTimeoutMs = 2_000

/**
 * Locks on any KV store.
 *
 * @example
 * const locks = createLocks(node.kv)
 * const handle = await locks.acquire('report', { timeoutMs: 5000 })
 * try {
 *   await writeReport({ fence: handle.token, signal: handle.signal })
 * } finally {
 *   await handle.release()
 * }
 * // TypeScript from 5.2 and a runtime with explicit resource management: await using handle = await locks.acquire('report')
 */
export function createLocks(kv: KV, options: LocksOptions = {}): Locks {
  return new KVLocks(kv, options)
}

class KVLocks implements Locks {
  readonly #session: LockSession
  readonly #closed = new AbortController()
  /** What ends the acquisitions that are under way. */
  readonly #stops = new Set<AbortController>()
  readonly #works = new Set<Promise<void>>()

  constructor(kv: KV, options: LocksOptions) {
    const { prefix = 'quorate/lock/', session = {}, label = `pid ${process.pid}`, runtime = systemRuntime } = options
    const { ttlMs = defaultTtlMs } = session
    if (!(ttlMs >= minTtlMs && ttlMs <= maxTtlMs)) throw new InvalidArgumentError(`ttlMs must be from ${minTtlMs} to ${maxTtlMs}, not ${ttlMs}`)
    const { renewEveryMs = ttlMs / 3 } = session
    if (!(renewEveryMs > 0 && renewEveryMs <= ttlMs / 2))
      throw new InvalidArgumentError(`renewEveryMs must be above 0 and at most half of ttlMs, not ${renewEveryMs}`)
    checkLabel(label)
    // The record holds whole milliseconds.
    this.#session = createSession({ kv, prefix, runtime, ttlMs: Math.floor(ttlMs), renewEveryMs, label, works: this.#works })
  }

  async acquire(name: string, options: AcquireOptions = {}): Promise<LockHandle> {
    const { timeoutMs } = options
    const timeout = (cause: unknown) => new LockTimeoutError(name, timeoutMs ?? 0, cause === undefined ? undefined : { cause })
    // Never null: an acquisition that waits ends with the lock or an error.
    return (await this.#acquire(name, options, true, timeoutMs, timeout)) as HeldLock
  }

  tryAcquire(name: string, options: AcquireOptions = {}): Promise<LockHandle | null> {
    const { timeoutMs = defaultTryTimeoutMs } = options
    return this.#acquire(
      name,
      options,
      false,
      timeoutMs,
      (trouble) => trouble ?? new UnavailableError(`no answer about lock "${name}" within ${timeoutMs} ms`, 'TIMEOUT'),
    )
  }

  async withLock<T>(name: string, options: RunOptions, callback: (handle: LockHandle) => Promise<T> | T): Promise<T> {
    const handle = await this.acquire(name, options)
    let value: T
    try {
      value = await callback(handle)
    } catch (error) {
      await handle.release()
      throw error
    }
    const { lost } = await handle.release()
    if (lost !== undefined && options.onLost !== 'ignore') throw lost
    return value
  }

  lock(name: string): NamedLock {
    checkName(name)
    return {
      name,
      acquire: (options) => this.acquire(name, options),
      tryAcquire: (options) => this.tryAcquire(name, options),
      run: (callback, options = {}) => this.withLock(name, options, (handle) => callback({ fence: handle.token, signal: handle.signal, handle })),
    }
  }

  async inspect(name: string, options: Pick<AcquireOptions, 'signal' | 'timeoutMs'> = {}): Promise<LockInspection> {
    checkName(name)
    this.#closed.signal.throwIfAborted()
    const { signal = this.#closed.signal, timeoutMs = defaultTryTimeoutMs } = options
    const read = await this.#session.cell(name).read({ signal, timeoutMs })
    if (read.type === 'trouble') throw read.error
    const { holder, waiters } = read.state.record
    return {
      name,
      holder: holder && {
        id: holder.nonce,
        label: holder.label,
        token: BigInt(tokenOf(read.state)),
        ttlMs: holder.ttlMs,
        renewals: holder.beat,
      },
      waiters: waiters.map(({ nonce, label }) => ({ id: nonce, label })),
    }
  }

  async close(options: { readonly timeoutMs?: number } = {}): Promise<void> {
    const { timeoutMs = defaultCloseTimeoutMs } = options
    if (!this.#closed.signal.aborted) {
      const error = new ClosedError('the locks were closed')
      this.#closed.abort(error)
      for (const stop of [...this.#stops]) stop.abort(error)
      for (const handle of [...this.#session.handles]) {
        handle.lose('session-closed')
        void handle.release()
      }
    }
    const finished = new AbortController()
    const limit = pause(this.#session.runtime, timeoutMs, finished.signal)
    await Promise.race([limit, this.#idle()])
    finished.abort()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #idle(): Promise<void> {
    while (this.#works.size > 0) await Promise.all(this.#works)
  }

  async #acquire(
    name: string,
    options: AcquireOptions,
    wait: boolean,
    timeoutMs: number | undefined,
    timeoutReason: (trouble: unknown) => unknown,
  ): Promise<HeldLock | null> {
    checkName(name)
    const { signal, label = this.#session.label } = options
    checkLabel(label)
    if (timeoutMs !== undefined && !(timeoutMs >= 0)) throw new InvalidArgumentError(`timeoutMs must be a number from 0 on, not ${timeoutMs}`)
    this.#closed.signal.throwIfAborted()
    signal?.throwIfAborted()

    const stop = new AbortController()
    const onAbort = () => stop.abort(signal?.reason)
    const acquisition = new Acquisition(this.#session, { name, label, stop: stop.signal, wait })
    const cancelTimeout =
      timeoutMs === undefined || timeoutMs === Number.POSITIVE_INFINITY
        ? () => {}
        : this.#session.runtime.schedule(timeoutMs, () => stop.abort(timeoutReason(acquisition.lastTrouble)))
    signal?.addEventListener('abort', onAbort, { once: true })
    this.#stops.add(stop)
    try {
      const running = acquisition.run()
      // Closing waits for it: what it has written must be tidied first.
      this.#session.background(running.then(ignore, ignore))
      return await running
    } finally {
      cancelTimeout()
      signal?.removeEventListener('abort', onAbort)
      this.#stops.delete(stop)
    }
  }
}

function ignore(): void {}

function checkName(name: string): void {
  if (typeof name !== 'string' || name.length === 0) throw new InvalidArgumentError('the name of a lock is a text that is not empty')
}

function checkLabel(label: string): void {
  if (typeof label !== 'string' || Buffer.byteLength(label) > maxLabelBytes)
    throw new InvalidArgumentError(`a label is a text of at most ${maxLabelBytes} bytes`)
}
