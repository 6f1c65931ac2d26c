/**
 * HeldLock: a lock while it is held: renewal, loss, release.
 *
 * Invariants: 1. only an answered write extends the lease, and it does so from the moment before it was sent; 2. the holder counts the lease as over a margin before anybody else does;
 * 3. once lost or released, a handle stays so: a late answer does not revive it; 4. the record is changed only while it names this handle's nonce and token (L3).
 *
 * Renewal runs on this event loop on purpose: a process whose loop is stuck loses its lock instead of holding it for ever.
 */
import { ClosedError } from '../base/errors.js'
import type { Cancel } from '../base/runtime.js'
import type { Fence } from '../engine/kv.js'
import { type CellState, type LockCell, tokenOf } from './cell.js'
import { LockLostError, type LockLostReason, LockNotHeldError } from './errors.js'
import { guardOf } from './guard.js'
import { marginMs } from './observation.js'
import { conflictDelayMs, pause, troubleDelayMs } from './poll.js'
import { withBeat, withoutNonce } from './record.js'
import type { LockSession } from './session.js'
import { removeTraces, type Traces } from './tidy.js'
import type { LockHandle, ReleaseResult } from './types.js'

export interface Grant {
  readonly name: string
  readonly token: number
  /** The record as the granting write left it. */
  readonly state: CellState
  /** The time before the granting write was sent. */
  readonly sentAtMs: number
  readonly traces: Traces
}

export class HeldLock implements LockHandle {
  readonly name: string
  readonly token: bigint
  readonly #session: LockSession
  readonly #cell: LockCell
  readonly #traces: Traces
  readonly #lost = new AbortController()
  /** Ends a renewal that is under way, when the lock is lost or released. */
  readonly #renewals = new AbortController()
  #state: CellState
  /** When the lease ends as the holder counts it. */
  #leaseEndMs: number
  /** Whether the last attempt to renew got no useful answer. */
  #unanswered = false
  #cancelRenewal: Cancel = () => {}
  #cancelExpiry: Cancel = () => {}
  #released: Promise<ReleaseResult> | null = null

  constructor(session: LockSession, grant: Grant) {
    this.name = grant.name
    this.token = BigInt(grant.token)
    this.#session = session
    this.#cell = session.cell(grant.name)
    this.#traces = grant.traces
    this.#state = grant.state
    this.#leaseEndMs = 0
    session.handles.add(this)
    this.#extend(grant.sentAtMs)
  }

  get signal(): AbortSignal {
    return this.#lost.signal
  }

  get held(): boolean {
    this.#checkLease()
    return this.#released === null && !this.#lost.signal.aborted
  }

  assertHeld(): void {
    this.#checkLease()
    if (this.#lost.signal.aborted) throw this.#lost.signal.reason
    if (this.#released !== null) throw new LockNotHeldError(this.name)
  }

  guard(): Fence {
    return guardOf(this.name, this.#cell.guardKey, this.token)
  }

  release(): Promise<ReleaseResult> {
    this.#checkLease()
    this.#released ??= this.#release()
    return this.#released
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release()
  }

  /** Counts the lock as lost from now on. */
  lose(why: LockLostReason, cause?: unknown): LockLostError {
    if (this.#lost.signal.aborted) return this.#lost.signal.reason as LockLostError
    const error = new LockLostError(this.name, this.token, why, { cause })
    this.#stop()
    this.#lost.abort(error)
    return error
  }

  #stop(): void {
    this.#session.handles.delete(this)
    this.#cancelRenewal()
    this.#cancelExpiry()
    this.#renewals.abort(new ClosedError(`lock "${this.name}" is no longer renewed`))
  }

  #checkLease(): void {
    if (this.#released !== null || this.#lost.signal.aborted) return
    const lateMs = this.#session.runtime.nowMs() - this.#leaseEndMs
    if (lateMs < 0) return
    // Found out late: it was this process that stood still, whatever the store did meanwhile.
    const stalled = lateMs > marginMs(this.#session.ttlMs)
    this.lose(this.#unanswered && !stalled ? 'unreachable' : 'expired')
  }

  /** The lease runs from this time on. */
  #extend(sentAtMs: number): void {
    const { runtime, ttlMs, renewEveryMs } = this.#session
    const nowMs = runtime.nowMs()
    this.#leaseEndMs = sentAtMs + ttlMs - marginMs(ttlMs)
    this.#unanswered = false
    this.#cancelExpiry()
    this.#cancelExpiry = runtime.schedule(this.#leaseEndMs - nowMs, () => this.#onExpiry())
    this.#cancelRenewal = runtime.schedule(sentAtMs + renewEveryMs - nowMs, () => void this.#renew())
  }

  #onExpiry(): void {
    this.#checkLease()
    if (this.#released !== null || this.#lost.signal.aborted) return
    // Timers may fire a fraction early.
    this.#cancelExpiry = this.#session.runtime.schedule(1, () => this.#onExpiry())
  }

  /** Renews until one write is answered, or the lock is lost or released. Never rejects. */
  async #renew(): Promise<void> {
    const { runtime, requestTimeoutMs } = this.#session
    const signal = this.#renewals.signal
    let failures = 0
    let conflicts = 0
    let mustRead = false
    try {
      for (;;) {
        this.#checkLease()
        if (signal.aborted) return
        const timeoutMs = Math.min(requestTimeoutMs, this.#leaseEndMs - runtime.nowMs())
        if (mustRead) {
          this.#unanswered = true
          const read = await this.#cell.read({ signal, timeoutMs })
          if (read.type === 'trouble') {
            await pause(runtime, troubleDelayMs(failures++, runtime), signal)
            continue
          }
          if (!this.#stillMine(read.state)) return
          if (signal.aborted) return
        }
        const sentAtMs = runtime.nowMs()
        this.#unanswered = true
        const write = await this.#cell.write(this.#state, withBeat, { signal, timeoutMs: Math.min(requestTimeoutMs, this.#leaseEndMs - sentAtMs) })
        // Lost meanwhile, and known to be: an answer that comes now changes nothing.
        if (signal.aborted) return
        mustRead = true
        if (write.type === 'written') {
          this.#state = write.state
          this.#extend(sentAtMs)
          return
        }
        this.#unanswered = write.type !== 'conflict'
        // Waiters write seldom and the lease is short: the holder does not back off far.
        if (write.type === 'conflict') await pause(runtime, conflictDelayMs(Math.min(conflicts++, 3), runtime), signal)
        else await pause(runtime, troubleDelayMs(failures++, runtime), signal)
      }
    } catch (error) {
      // An error that will not pass: the store is closed, or the key holds something that is no lock record.
      if (!signal.aborted) this.lose('revoked', error)
    }
  }

  /** Takes in a record that was read; when it names somebody else, the lock is lost. */
  #stillMine(state: CellState): boolean {
    this.#checkLease()
    if (this.#isMine(state)) {
      this.#state = state
      return true
    }
    this.lose('revoked')
    return false
  }

  #isMine(state: CellState): boolean {
    return state.record.holder?.nonce === this.#traces.nonce && BigInt(tokenOf(state)) === this.token
  }

  async #release(): Promise<ReleaseResult> {
    if (this.#lost.signal.aborted) {
      // The work under the lock is over: free what may still stand there under this nonce.
      this.#session.background(removeTraces(this.#session, this.name, this.#traces).then(() => {}))
      return { released: false, lost: this.#lost.signal.reason as LockLostError }
    }
    this.#stop()
    const { runtime, requestTimeoutMs } = this.#session
    const never = new AbortController().signal
    const lost = (why: LockLostReason, cause?: unknown): ReleaseResult => {
      const error = new LockLostError(this.name, this.token, why, { cause })
      this.#lost.abort(error)
      return { released: false, lost: error }
    }
    let failures = 0
    let conflicts = 0
    let inDoubt = false
    let mustRead = false
    try {
      for (;;) {
        const remainingMs = this.#leaseEndMs - runtime.nowMs()
        if (remainingMs <= 0) {
          this.#session.background(removeTraces(this.#session, this.name, this.#traces).then(() => {}))
          return lost(failures > 0 ? 'unreachable' : 'expired')
        }
        const options = { signal: never, timeoutMs: Math.min(requestTimeoutMs, remainingMs) }
        if (mustRead) {
          const read = await this.#cell.read(options)
          if (read.type === 'trouble') {
            await pause(runtime, Math.min(troubleDelayMs(failures++, runtime), remainingMs), never)
            continue
          }
          if (!this.#isMine(read.state)) {
            // While the lease is good nobody takes the lock over: an earlier release, whose answer was lost, was executed.
            if (runtime.nowMs() >= this.#leaseEndMs) return lost('expired')
            return inDoubt ? { released: true } : lost('revoked')
          }
          this.#state = read.state
        }
        const write = await this.#cell.write(this.#state, (record) => withoutNonce(record, this.#traces.nonce), options, this.#traces.keepsRecord)
        mustRead = true
        if (write.type === 'written') return { released: true }
        if (write.type === 'conflict') await pause(runtime, conflictDelayMs(conflicts++, runtime), never)
        else {
          inDoubt ||= write.type === 'doubt'
          await pause(runtime, Math.min(troubleDelayMs(failures++, runtime), remainingMs), never)
        }
      }
    } catch (error) {
      return lost('revoked', error)
    }
  }
}
