/**
 * Acquisition: one acquire, from the first read to the grant or to giving up.
 *
 * Invariants: 1. every write is conditional on the revision of the read that led to it; 2. after a write of unknown outcome the record is read again and asked for this
 * acquire's own nonce, and nothing is written before (L6); 3. a grant learnt by such a read is confirmed by a renewal before it is handed out, because only a write
 * that was answered tells since when the lease runs; 4. whoever gives up leaves neither a holder nor a waiter behind (tidy.ts).
 */
import type { QuorateError } from '../base/errors.js'
import { type CellState, type CellWrite, type LockCell, tokenOf } from './cell.js'
import { HeldLock } from './handle.js'
import { marginMs } from './observation.js'
import { conflictDelayMs, Pace, pause, pollDelayMs, troubleDelayMs, watchedPollDelayMs } from './poll.js'
import { type LockRecord, maxWaiters, nonceBytes, nonceFromBytes } from './record.js'
import type { LockSession } from './session.js'
import { removeTraces, Traces } from './tidy.js'
import type { Wakeup } from './wakeup.js'

/** The head of the queue watches the record, and whoever comes after it: a release is news for them alone. All others poll, so that a change does not wake them all. */
const lastWatchedPlace = 1

export interface AcquisitionOptions {
  readonly name: string
  readonly label: string
  /** Ends the acquisition; its reason is what the caller gets. */
  readonly stop: AbortSignal
  /** False: give up instead of waiting. */
  readonly wait: boolean
}

/** What to do next, as a read and one's own observation have it. */
type Step =
  | { readonly type: 'granted' }
  | { readonly type: 'claim' }
  | { readonly type: 'queue' }
  | { readonly type: 'wait'; readonly untilMs: number; readonly place: number }
  | { readonly type: 'taken' }

export class Acquisition {
  readonly #session: LockSession
  readonly #options: AcquisitionOptions
  readonly #cell: LockCell
  readonly #traces: Traces
  readonly #pace = new Pace()
  readonly #wakeup: Wakeup
  /** The greatest beat written under the nonce. */
  #beat = -1
  #conflicts = 0
  #failures = 0
  #lastTrouble: QuorateError | undefined

  constructor(session: LockSession, options: AcquisitionOptions) {
    this.#session = session
    this.#options = options
    this.#cell = session.cell(options.name)
    this.#wakeup = this.#cell.wakeup()
    this.#traces = new Traces(nonceFromBytes(session.runtime.randomBytes(nonceBytes)))
  }

  /** The last trouble with the store, for the cause of a timeout. */
  get lastTrouble(): QuorateError | undefined {
    return this.#lastTrouble
  }

  /** Resolves to the lock, or to null when it is taken and this acquisition does not wait. Rejects with the reason of `stop`, or an error of the store that will not pass. */
  async run(): Promise<HeldLock | null> {
    let held: HeldLock | null = null
    try {
      held = await this.#run()
      return held
    } finally {
      this.#wakeup.close()
      if (held === null && this.#traces.written) {
        const { name } = this.#options
        this.#session.background(removeTraces(this.#session, name, this.#traces).then(() => {}))
      }
    }
  }

  async #run(): Promise<HeldLock | null> {
    const { runtime, requestTimeoutMs, observations } = this.#session
    const { name, stop } = this.#options
    /** The record as a watch has just told it. */
    let told: CellState | null = null
    for (;;) {
      stop.throwIfAborted()
      const read = told === null ? await this.#cell.read({ signal: stop, timeoutMs: requestTimeoutMs }) : { type: 'read' as const, state: told }
      told = null
      if (read.type === 'trouble') {
        await this.#afterTrouble(read.error)
        continue
      }
      const { state } = read
      const nowMs = runtime.nowMs()
      observations.of(name).observe(state.record, nowMs)
      const step = this.#decide(state.record, nowMs)
      switch (step.type) {
        case 'taken':
          return null
        case 'wait':
          this.#conflicts = 0
          this.#failures = 0
          if (step.place <= lastWatchedPlace) this.#wakeup.open()
          // At least a millisecond: what is left may be less than the clock can tell.
          told = await this.#wakeup.wait(runtime, Math.max(step.untilMs - nowMs, 1), stop, state, (later) => this.#concerns(state, later))
          break
        case 'queue':
          await this.#write(state, (record) => this.#queued(record))
          break
        case 'claim':
        case 'granted': {
          const held = await this.#take(state, step.type === 'granted')
          if (held !== null) return held
          break
        }
        default:
          step satisfies never
      }
    }
  }

  #decide(record: LockRecord, nowMs: number): Step {
    const { nonce } = this.#traces
    if (record.holder?.nonce === nonce) return { type: 'granted' }
    const observation = this.#session.observations.of(this.#options.name)
    const place = record.waiters.findIndex((waiter) => waiter.nonce === nonce)
    const position = place === -1 ? record.waiters.length : place
    this.#pace.observe(position, nowMs)
    const claimableAtMs = observation.claimableAtMs(position)
    if (nowMs >= claimableAtMs) return { type: 'claim' }
    if (!this.#options.wait) return { type: 'taken' }
    if (place === -1 && record.waiters.length < maxWaiters) return { type: 'queue' }
    const heldForMs = record.holder === null ? 0 : nowMs - observation.holderSinceMs
    const { runtime } = this.#session
    const delayMs = this.#wakeup.isLive ? watchedPollDelayMs(position, runtime) : pollDelayMs(heldForMs, position, this.#pace, runtime)
    return { type: 'wait', untilMs: Math.min(nowMs + delayMs, claimableAtMs), place: position }
  }

  /** Whether a record that a watch tells is a reason to stop waiting: it is this one's turn. */
  #concerns(seen: CellState, { record, revision }: CellState): boolean {
    const { nonce } = this.#traces
    const { runtime, observations } = this.#session
    // A renewal is seen the sooner.
    if (revision > seen.revision) observations.of(this.#options.name).observe(record, runtime.nowMs())
    const place = record.waiters.findIndex((waiter) => waiter.nonce === nonce)
    return record.holder === null && place <= 0
  }

  #queued(record: LockRecord): LockRecord {
    return { holder: record.holder, waiters: [...record.waiters, { nonce: this.#traces.nonce, label: this.#options.label }] }
  }

  /** The record with this nonce as its holder. Those who stood before it in the queue let their turns pass: they come off it, and queue again if they live. */
  #claimed(record: LockRecord): LockRecord {
    const { nonce } = this.#traces
    const place = record.waiters.findIndex((waiter) => waiter.nonce === nonce)
    const { ttlMs } = this.#session
    return {
      holder: { nonce, token: 0, ttlMs, beat: ++this.#beat, label: this.#options.label },
      waiters: place === -1 ? [] : record.waiters.slice(place + 1),
    }
  }

  #confirmed(record: LockRecord): LockRecord {
    this.#beat = Math.max(this.#beat, record.holder?.beat ?? 0) + 1
    return { holder: record.holder && { ...record.holder, beat: this.#beat }, waiters: record.waiters }
  }

  /** Writes this nonce in as the holder, or renews what a doubtful write has already achieved. Null: look again. */
  async #take(state: CellState, granted: boolean): Promise<HeldLock | null> {
    const { runtime, ttlMs } = this.#session
    const { name, stop } = this.#options
    const sentAtMs = runtime.nowMs()
    const write = await this.#write(state, (record) => (granted ? this.#confirmed(record) : this.#claimed(record)))
    if (write.type !== 'written') return null
    // Granted, but the answer was so long in coming that the lease is over (hazard etcd#11456): the next read finds the own nonce, and renews.
    if (runtime.nowMs() >= sentAtMs + ttlMs - marginMs(ttlMs)) return null
    stop.throwIfAborted()
    const token = granted ? tokenOf(state) : write.state.revision
    return new HeldLock(this.#session, { name, token, state: write.state, sentAtMs, traces: this.#traces })
  }

  async #write(state: CellState, change: (record: LockRecord) => LockRecord): Promise<CellWrite> {
    const { runtime, requestTimeoutMs } = this.#session
    const { stop } = this.#options
    const write = await this.#cell.write(state, change, { signal: stop, timeoutMs: requestTimeoutMs }).catch((error: unknown) => {
      this.#inDoubt(state)
      throw error
    })
    switch (write.type) {
      case 'written':
        this.#traces.written = true
        this.#conflicts = 0
        this.#failures = 0
        break
      case 'conflict':
        await pause(runtime, conflictDelayMs(this.#conflicts++, runtime), stop)
        break
      case 'doubt':
        this.#inDoubt(state)
        await this.#afterTrouble(write.error)
        break
      case 'trouble':
        await this.#afterTrouble(write.error)
        break
      default:
        write satisfies never
    }
    return write
  }

  #inDoubt(state: CellState): void {
    this.#traces.written = true
    this.#traces.doubt(state.revision)
  }

  async #afterTrouble(error: QuorateError): Promise<void> {
    const { runtime } = this.#session
    this.#lastTrouble = error
    await pause(runtime, troubleDelayMs(this.#failures++, runtime), this.#options.stop)
  }
}
