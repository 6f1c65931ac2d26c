/**
 * SnapshotReceiver: fetches snapshots that replicas of this node need, and has them installed.
 *
 * Invariants:
 * 1. One transfer for a group at a time. It goes on pulling from the node that holds the snapshot, whoever leads meanwhile; a lost connection or reply costs one chunk.
 * 2. When that node, or its snapshot, is gone, the transfer ends, and the next offer (the present leader's, which repeats it) begins a new one.
 * 3. Rate and memory are bounded: at most two chunks of a transfer are here at a time, so many transfers run at once, and all share one rate.
 * 4. What is installed is complete and verified: every chunk by its checksum, and the whole by the totals of the last one.
 * 5. After `cancel` resolves, nothing of the group is staged or installed any more.
 */
import PQueue from 'p-queue'
import { ClosedError, CorruptionError, QuorateError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { NodeId } from '../raft/types.js'
import type { MessengerFace } from '../transport/messenger.js'
import type { Address } from '../transport/transport.js'
import {
  decodeChunk,
  decodeManifest,
  encodeChunkRequest,
  encodeOpen,
  firstTotals,
  type SnapshotChunk,
  SnapshotErrorCode,
  type SnapshotManifest,
  SnapshotMethod,
  type SnapshotRecord,
  type SnapshotTotals,
} from './messages.js'
import { Pacer, pause } from './pacer.js'

/** Where a group's snapshot goes. */
export interface SnapshotTarget {
  /** What the state reaches already: a snapshot that does not go beyond it is of no use. */
  readonly appliedIndex: number
  /** Makes room for a snapshot. */
  begin(): Promise<void>
  /** Keeps a part of it, out of sight. */
  stage(records: readonly SnapshotRecord[]): Promise<void>
  /** Makes what was staged the state; false when the state has overtaken it. Throws CorruptionError when that is no snapshot of that index. */
  install(manifest: SnapshotManifest): Promise<boolean>
  /** Removes what was staged. */
  discard(): void
}

export interface SnapshotReceiverOptions {
  readonly messenger: MessengerFace
  readonly runtime: Runtime
  readonly addressOf: (node: NodeId) => Address | undefined
  /** Of all transfers of this node together. */
  readonly maxBytesPerSecond: number
  /** Default 2. */
  readonly maxTransfers?: number
  /** What does not come in this time is asked for again, then after twice this time, and so on; an answer to the earlier request still counts. Default 500. */
  readonly repeatMs?: number
  /** A transfer to which nothing has come for so long is given up. Default 10 000. */
  readonly giveUpMs?: number
  /** After a failure a group waits so long before it tries again. Default 500. */
  readonly retryMs?: number
  /** A transfer failed; it is tried again by itself. For those who watch. */
  readonly onRetry?: (group: number, error: unknown) => void
  /** Storing failed: the group's disk is sick. */
  readonly onFailure: (group: number, error: unknown) => void
}

export interface TransferStatus {
  readonly from: NodeId
  readonly records: number
  readonly bytes: number
}

interface Transfer {
  readonly group: number
  readonly target: SnapshotTarget
  readonly from: NodeId
  readonly minIndex: number
  readonly controller: AbortController
  totals: SnapshotTotals | null
  hasStoringFailed: boolean
  done: Promise<void>
}

const maxRepeatMs = 2000
/** Refusals that asking again would not change. */
const definiteCodes = new Set<string>([SnapshotErrorCode.gone, SnapshotErrorCode.none])

export class SnapshotReceiver {
  readonly #options: Required<Omit<SnapshotReceiverOptions, 'onRetry'>> & Pick<SnapshotReceiverOptions, 'onRetry'>
  readonly #transfers = new Map<number, Transfer>()
  readonly #notBeforeMs = new Map<number, number>()
  readonly #queue: PQueue
  readonly #pacer: Pacer
  #isClosed = false

  constructor(options: SnapshotReceiverOptions) {
    this.#options = { maxTransfers: 2, repeatMs: 500, giveUpMs: 10_000, retryMs: 500, ...options }
    this.#queue = new PQueue({ concurrency: this.#options.maxTransfers })
    this.#pacer = new Pacer(options.runtime, options.maxBytesPerSecond)
  }

  /** A group's transfer that is under way or waits for its turn. */
  status(group: number): TransferStatus | undefined {
    const transfer = this.#transfers.get(group)
    return transfer && { from: transfer.from, records: transfer.totals?.records ?? 0, bytes: transfer.totals?.bytes ?? 0 }
  }

  /** A member offers a snapshot that reaches at least an index. Fetches it, unless one is being fetched; to be repeated while it is needed. */
  offer(group: number, from: NodeId, minIndex: number, target: SnapshotTarget): void {
    const { runtime } = this.#options
    if (this.#isClosed || this.#transfers.has(group) || runtime.nowMs() < (this.#notBeforeMs.get(group) ?? 0)) return
    const controller = new AbortController()
    const transfer: Transfer = { group, target, from, minIndex, controller, totals: null, hasStoringFailed: false, done: Promise.resolve() }
    this.#transfers.set(group, transfer)
    transfer.done = this.#queue.add(() => this.#run(transfer))
  }

  /** Ends the transfer of a group. */
  async cancel(group: number): Promise<void> {
    const transfer = this.#transfers.get(group)
    transfer?.controller.abort(new ClosedError('the replica takes no snapshot any more'))
    await transfer?.done
  }

  /** Ends all transfers. */
  async close(): Promise<void> {
    this.#isClosed = true
    await Promise.all([...this.#transfers.keys()].map((group) => this.cancel(group)))
  }

  async #run(transfer: Transfer): Promise<void> {
    const { group, controller, target } = transfer
    const { runtime, retryMs, onRetry, onFailure } = this.#options
    let session: number | null = null
    try {
      controller.signal.throwIfAborted()
      const manifest = await this.#open(transfer)
      session = manifest.session
      await this.#pull(transfer, manifest)
      controller.signal.throwIfAborted()
      await this.#store(transfer, () => target.install(manifest))
      this.#notBeforeMs.delete(group)
    } catch (error) {
      this.#notBeforeMs.set(group, runtime.nowMs() + retryMs)
      if (transfer.hasStoringFailed) {
        onFailure(group, error)
      } else {
        target.discard()
        if (!controller.signal.aborted) onRetry?.(group, error)
      }
    } finally {
      this.#transfers.delete(group)
      if (session !== null) this.#closeSession(transfer, session)
    }
  }

  /** What fails here is the disk's fault, and final; unless the target says that what came was no snapshot. */
  async #store(transfer: Transfer, run: () => Promise<unknown>): Promise<void> {
    try {
      await run()
    } catch (error) {
      transfer.hasStoringFailed = !transfer.controller.signal.aborted && !(error instanceof CorruptionError)
      throw error
    }
  }

  async #open(transfer: Transfer): Promise<SnapshotManifest> {
    const { group, from, minIndex } = transfer
    const manifest = await this.#ask(transfer, SnapshotMethod.open, encodeOpen(group, minIndex), decodeManifest)
    if (manifest.group !== group || manifest.index < minIndex) throw new UnavailableError(`node ${from} offers another snapshot than was asked for`)
    return manifest
  }

  /** Fetches chunk after chunk: the next one comes while the one before it is being stored. */
  async #pull(transfer: Transfer, manifest: SnapshotManifest): Promise<void> {
    const { target, controller } = transfer
    await this.#store(transfer, () => target.begin())
    transfer.totals = firstTotals(manifest)
    let next = this.#chunk(transfer, manifest, 0, transfer.totals)
    for (;;) {
      const chunk = await next
      transfer.totals = chunk.totals
      // It got what it needs in another way.
      if (target.appliedIndex >= manifest.index) throw new UnavailableError('the state has overtaken the snapshot')
      if (!chunk.isLast) {
        next = this.#chunk(transfer, manifest, chunk.sequence + 1, chunk.totals)
        // Looked at in the next turn, unless storing fails first.
        next.catch(() => {})
      }
      const startMs = this.#options.runtime.nowMs()
      await this.#store(transfer, () => target.stage(chunk.records))
      // As the sender does: what callers wait for goes before.
      await pause(this.#options.runtime, this.#options.runtime.nowMs() - startMs, controller.signal)
      controller.signal.throwIfAborted()
      if (chunk.isLast) return
    }
  }

  async #chunk(transfer: Transfer, { session }: SnapshotManifest, sequence: number, before: SnapshotTotals): Promise<SnapshotChunk> {
    let size = 0
    const chunk = await this.#ask(transfer, SnapshotMethod.chunk, encodeChunkRequest(session, sequence), (bytes) => {
      size = bytes.length
      return decodeChunk(bytes, session, sequence, before)
    })
    await this.#pacer.passed(size, transfer.controller.signal)
    return chunk
  }

  /** Asks the sender until a whole answer comes, it refuses for good, or too much time has passed. */
  #ask<T>({ from, controller }: Transfer, method: string, payload: Uint8Array, decode: (bytes: Uint8Array) => T): Promise<T> {
    const { runtime, messenger, addressOf, repeatMs, giveUpMs } = this.#options
    const { signal } = controller
    return new Promise((resolve, reject) => {
      const startMs = runtime.nowMs()
      const requests = new AbortController()
      let cancelTimer = () => {}
      let isSettled = false
      let lastError: unknown
      const settle = (finish: () => void) => {
        if (isSettled) return
        isSettled = true
        cancelTimer()
        signal.removeEventListener('abort', onAbort)
        requests.abort()
        finish()
      }
      const onAbort = () => settle(() => reject(signal.reason))
      const onError = (error: unknown) => {
        lastError = error
        const isWorthRepeating =
          error instanceof CorruptionError || (error instanceof QuorateError && error.retryable && !definiteCodes.has(error.code))
        if (!isWorthRepeating) settle(() => reject(error))
      }
      const onReply = (bytes: Uint8Array) => {
        if (isSettled) return
        try {
          const answer = decode(bytes)
          settle(() => resolve(answer))
        } catch (error) {
          onError(error)
        }
      }
      const ask = (waitMs: number) => {
        if (runtime.nowMs() - startMs >= giveUpMs) {
          settle(() => reject(new UnavailableError(`node ${from} sends no snapshot any more`, 'UNAVAILABLE', { cause: lastError })))
          return
        }
        const address = addressOf(from)
        // It may be known again later.
        if (address !== undefined)
          messenger.request(address, method, payload, { timeoutMs: giveUpMs, signal: requests.signal }).then(onReply, onError)
        cancelTimer = runtime.schedule(waitMs, () => ask(Math.min(2 * waitMs, maxRepeatMs)))
      }
      if (signal.aborted) return onAbort()
      signal.addEventListener('abort', onAbort, { once: true })
      ask(repeatMs)
    })
  }

  #closeSession({ from }: Transfer, session: number): void {
    const address = this.#options.addressOf(from)
    if (address === undefined || this.#isClosed) return
    // The sender forgets it by itself in the end.
    this.#options.messenger.request(address, SnapshotMethod.close, encodeChunkRequest(session, 0), { timeoutMs: 1000 }).catch(() => {})
  }
}
