/**
 * SnapshotSender: serves snapshots of this node's groups to replicas that need them, chunk by chunk as they ask.
 *
 * Invariants:
 * 1. A snapshot is one moment of a group's state, whatever is written meanwhile, and is served whether or not this node still leads the group.
 * 2. Sessions are bounded in number, in idle time and in lifetime: each holds back the removal of old values from the database, and log.
 * 3. A chunk may be asked for again until the next one is: a reply that was lost costs one chunk, not the snapshot.
 * 4. A snapshot takes at most half of the time of a node that has other things to do: after each chunk it rests for as long as that took.
 * 5. One session for a peer and group: who opens another one has given up the one before.
 */
import { OverloadedError, UnavailableError } from '../base/errors.js'
import type { Cancel, Runtime } from '../base/runtime.js'
import type { Configuration } from '../raft/types.js'
import type { MessengerFace, Sender } from '../transport/messenger.js'
import {
  decodeChunkRequest,
  decodeOpen,
  encodeChunk,
  encodeManifest,
  firstTotals,
  SnapshotErrorCode,
  type SnapshotManifest,
  SnapshotMethod,
  type SnapshotRecord,
  type SnapshotTotals,
} from './messages.js'

/** One moment of a group's state. */
export interface SnapshotCapture {
  readonly index: number
  readonly term: number
  readonly configuration: Configuration
  /** Records in key order, those after a key (from the first for null), up to about `maxBytes`; and whether there are none after them. */
  read(after: Uint8Array | null, maxBytes: number): Promise<{ readonly records: readonly SnapshotRecord[]; readonly isLast: boolean }>
  close(): Promise<void>
}

export interface SnapshotSenderOptions {
  readonly messenger: MessengerFace
  readonly runtime: Runtime
  /** Captures a group's state. Throws a retryable error when there is none here. */
  readonly capture: (group: number) => SnapshotCapture
  readonly chunkBytes: number
  /** More are refused as overloaded. Default 8. */
  readonly maxSessions?: number
  /** A session that nobody asks anything is closed. Default 30 000. */
  readonly idleMs?: number
  /** A session ends after this time, whatever is asked. Default one hour. */
  readonly maxSessionMs?: number
  /** How long after its end a snapshot still counts for how much of the log is kept. Default five minutes. */
  readonly graceMs?: number
}

/** A capture that several sessions read. */
interface SharedCapture {
  readonly capture: SnapshotCapture
  users: number
}

interface Position {
  readonly sequence: number
  readonly after: Uint8Array | null
  readonly totals: SnapshotTotals
}

interface Session {
  readonly manifest: SnapshotManifest
  readonly peer: string
  readonly shared: SharedCapture
  readonly startedMs: number
  usedMs: number
  /** The chunk to be asked for next, and the one before it. */
  next: Position
  previous: Position | null
  /** Chunks are made one after the other. */
  busy: Promise<unknown>
}

const noReply = new Uint8Array(0)

export class SnapshotSender {
  readonly #options: Required<SnapshotSenderOptions>
  readonly #sessions = new Map<number, Session>()
  /** What was sent last of a group. */
  readonly #ended = new Map<number, { readonly bytes: number; readonly untilMs: number }>()
  #nextSession: number
  #cancelTimer: Cancel | null = null
  #isClosed = false

  constructor(options: SnapshotSenderOptions) {
    this.#options = { maxSessions: 8, idleMs: 30_000, maxSessionMs: 3_600_000, graceMs: 300_000, ...options }
    // An earlier life of this node may have sent snapshots too.
    const random = options.runtime.randomBytes(4)
    this.#nextSession = new DataView(random.buffer, random.byteOffset).getUint32(0)
    const { messenger } = options
    messenger.handle(SnapshotMethod.open, (from, payload) => this.#open(from, payload))
    messenger.handle(SnapshotMethod.chunk, (_from, payload) => this.#chunk(payload))
    messenger.handle(SnapshotMethod.close, (_from, payload) => {
      this.#end(decodeChunkRequest(payload).session)
      return noReply
    })
  }

  /** Sessions that are open. */
  get sessions(): number {
    return this.#sessions.size
  }

  /** Receivers of a group's snapshots will need the log after this index; infinity when there are none. */
  neededAfter(group: number): number {
    let index = Number.POSITIVE_INFINITY
    for (const { manifest } of this.#sessions.values()) if (manifest.group === group) index = Math.min(index, manifest.index)
    return index
  }

  /** Bytes of the largest snapshot of a group that is being sent, or was within the grace time: its receiver is still catching up with the log. */
  sentBytes(group: number): number {
    const ended = this.#ended.get(group)
    let bytes = ended !== undefined && this.#options.runtime.nowMs() < ended.untilMs ? ended.bytes : 0
    for (const { manifest, next } of this.#sessions.values()) if (manifest.group === group) bytes = Math.max(bytes, next.totals.bytes)
    return bytes
  }

  #open(from: Sender, payload: Uint8Array): Uint8Array {
    const { group, minIndex } = decodeOpen(payload)
    if (this.#isClosed) throw new UnavailableError('this node is closing')
    for (const [id, { peer, manifest }] of this.#sessions) if (peer === from.nodeId && manifest.group === group) this.#end(id)
    if (this.#sessions.size >= this.#options.maxSessions) throw new OverloadedError(`${this.#sessions.size} snapshots are being sent already`)
    const shared = this.#share(group, minIndex)
    const { index, term, configuration } = shared.capture
    const session = this.#nextSession
    this.#nextSession = (session + 1) % 0x1_0000_0000
    const manifest: SnapshotManifest = { session, group, index, term, configuration }
    const nowMs = this.#options.runtime.nowMs()
    const next: Position = { sequence: 0, after: null, totals: firstTotals(manifest) }
    this.#sessions.set(session, {
      manifest,
      peer: from.nodeId,
      shared,
      startedMs: nowMs,
      usedMs: nowMs,
      next,
      previous: null,
      busy: Promise.resolve(),
    })
    this.#cancelTimer ??= this.#options.runtime.schedule(this.#options.idleMs, () => this.#expire())
    return encodeManifest(manifest)
  }

  /** A capture that reaches an index: one that is being sent already, or a new one. */
  #share(group: number, minIndex: number): SharedCapture {
    for (const { manifest, shared } of this.#sessions.values()) {
      if (manifest.group !== group || manifest.index < minIndex) continue
      shared.users++
      return shared
    }
    const capture = this.#options.capture(group)
    if (capture.index >= minIndex) return { capture, users: 1 }
    void capture.close()
    throw new UnavailableError(`the state of group ${group} reaches ${capture.index} here, ${minIndex} is wanted`, SnapshotErrorCode.none)
  }

  async #chunk(payload: Uint8Array): Promise<Uint8Array> {
    const { session: id, sequence } = decodeChunkRequest(payload)
    const session = this.#sessions.get(id)
    if (session === undefined) throw gone(id)
    const { runtime } = this.#options
    const startMs = runtime.nowMs()
    session.usedMs = startMs
    const chunk = session.busy.then(() => this.#make(id, session, sequence))
    session.busy = chunk.catch(() => {})
    const bytes = await chunk
    // As long again: on a busy node a snapshot gives way to what callers wait for.
    await new Promise<void>((resolve) => runtime.schedule(runtime.nowMs() - startMs, resolve))
    return bytes
  }

  async #make(id: number, session: Session, sequence: number): Promise<Uint8Array> {
    const position = sequence === session.next.sequence ? session.next : session.previous
    if (position?.sequence !== sequence || !this.#sessions.has(id)) throw gone(id)
    const { records, isLast } = await session.shared.capture.read(position.after, this.#options.chunkBytes)
    const { bytes, totals } = encodeChunk(id, sequence, records, position.totals, isLast)
    session.previous = position
    session.next = { sequence: sequence + 1, after: records[records.length - 1]?.[0] ?? position.after, totals }
    return bytes
  }

  #end(id: number): void {
    const session = this.#sessions.get(id)
    if (session === undefined) return
    const { shared, busy, manifest } = session
    const { runtime, graceMs } = this.#options
    this.#ended.set(manifest.group, { bytes: this.sentBytes(manifest.group), untilMs: runtime.nowMs() + graceMs })
    this.#sessions.delete(id)
    shared.users--
    if (shared.users === 0) void busy.then(() => shared.capture.close())
  }

  #expire(): void {
    this.#cancelTimer = null
    const { runtime, idleMs, maxSessionMs } = this.#options
    const nowMs = runtime.nowMs()
    for (const [id, { startedMs, usedMs }] of this.#sessions) {
      if (nowMs - usedMs >= idleMs || nowMs - startedMs >= maxSessionMs) this.#end(id)
    }
    if (this.#sessions.size > 0) this.#cancelTimer = runtime.schedule(idleMs / 2, () => this.#expire())
  }

  /** Ends the sessions of a group. */
  drop(group: number): void {
    for (const [id, { manifest }] of this.#sessions) if (manifest.group === group) this.#end(id)
    this.#ended.delete(group)
  }

  /** Ends all sessions, and resolves when none reads any more. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.#cancelTimer?.()
    const busy = [...this.#sessions.values()].map((session) => session.busy)
    for (const id of this.#sessions.keys()) this.#end(id)
    await Promise.all(busy)
  }
}

function gone(session: number): UnavailableError {
  return new UnavailableError(`snapshot ${session} is not here, or no longer, or further on`, SnapshotErrorCode.gone)
}
