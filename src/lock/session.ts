/** What the parts of one `Locks` object share: the store, the clock, the lease, and the book of what is still going on, so that `close` can end it. */
import type { Runtime } from '../base/runtime.js'
import type { KV } from '../engine/kv.js'
import { LockCell } from './cell.js'
import type { HeldLock } from './handle.js'
import { Observations } from './observation.js'

export interface LockSession {
  readonly runtime: Runtime
  readonly ttlMs: number
  readonly renewEveryMs: number
  /** One request to the store may take so long before the record is read again. */
  readonly requestTimeoutMs: number
  readonly label: string
  readonly observations: Observations
  /** Held locks, released ones not. */
  readonly handles: Set<HeldLock>
  cell(name: string): LockCell
  /** Keeps work that goes on behind its caller's back (tidying up) in the book until it ends. The work never rejects. */
  background(work: Promise<void>): void
}

export interface LockSessionOptions {
  readonly kv: KV
  readonly prefix: string
  readonly runtime: Runtime
  readonly ttlMs: number
  readonly renewEveryMs: number
  readonly label: string
  readonly works: Set<Promise<void>>
}

export function createSession(options: LockSessionOptions): LockSession {
  const { kv, prefix, runtime, ttlMs, renewEveryMs, label, works } = options
  return {
    runtime,
    ttlMs,
    renewEveryMs,
    requestTimeoutMs: renewEveryMs,
    label,
    observations: new Observations(),
    handles: new Set(),
    cell: (name) => new LockCell(kv, prefix + name),
    background: (work) => {
      works.add(work)
      void work.finally(() => works.delete(work))
    },
  }
}
