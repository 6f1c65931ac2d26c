/**
 * Dispatcher: sends what operations wait for, what a turn of the event loop produced as one request per group, repeats what got no answer, and settles each operation once.
 *
 * Invariants:
 * 1. A write keeps its request id (session, sequence) over all its retries, so it takes effect at most once.
 * 2. The low-water mark that is sent along is, by group, the lowest sequence whose caller still waits; it never goes back.
 * 3. No caller sees not-leader, wrong-group or a lost connection: these lead to another attempt until the deadline.
 * 4. The session's birth only rises, and a write keeps the one under which it was sent first. What a shard refuses, because it has forgotten sessions of so late a birth, is sent under a later one only
 *    when it is certain that no copy of it was done; the birth that was refused is refused for ever, so no copy of it can be done any more.
 * 5. Operations waiting are bounded in number and bytes; beyond that new ones are refused with OverloadedError. Writes under way to a group are bounded in bytes.
 */
import { asBuffer } from '../base/bytes.js'
import { Reader, Writer } from '../base/codec.js'
import { ClosedError, CorruptionError, InvalidArgumentError, OutcomeUnknownError, OverloadedError, QuorateError } from '../base/errors.js'
import type { Cancel, Runtime } from '../base/runtime.js'
import { type CommandResult, CommandStatus, sessionIdBytes, writeBatchHeader, writeCommand } from '../engine/command.js'
import type { ReadPosition, WaitOptions } from '../engine/kv.js'
import {
  Consistency,
  ReplyStatus,
  RequestKind,
  readReadResult,
  readResults,
  readScanPage,
  writeReadKeys,
  writeRequestHead,
  writeScanRequest,
} from '../engine/kv-protocol.js'
import type { KvService } from '../engine/kv-service.js'
import { HistoryMissingError, readOldest, readWatchPage, writeWatchRequest } from '../engine/watch-protocol.js'
import type { NodeId } from '../raft/types.js'
import { Channel, type MessengerFace } from '../transport/messenger.js'
import type { Router } from './cluster-map.js'
import { GroupRoute } from './group-route.js'
import {
  abortedError,
  chunks,
  expiredError,
  finishWrite,
  type Operation,
  type ReadOperation,
  type ScanOperation,
  sizeOf,
  type Waiting,
  type WatchOperation,
  type WriteOperation,
  watchSignal,
} from './operations.js'

export interface DispatcherOptions {
  readonly runtime: Runtime
  readonly messenger: MessengerFace
  readonly router: Router
  /** The service of this very node, which is asked without a message; null for a client without data. */
  readonly local: { readonly nodeId: NodeId; readonly service: KvService } | null
  /** Default deadline of an operation. */
  readonly requestTimeoutMs: number
  /** A request without an answer for so long is repeated elsewhere. */
  readonly attemptTimeoutMs: number
  readonly maxWaitingOperations: number
  readonly maxWaitingBytes: number
  /** After how much silence the groups forget a session: the groups' tuning. Default 10 minutes. */
  readonly sessionTtlMs?: number | undefined
  /** A node said that it does not have a group that it should have by the map: the map may be old. */
  readonly onWrongGroup?: (() => void) | undefined
  /** Sends nothing before `release`: the node is not in its cluster yet. Default false. */
  readonly isHeld?: boolean | undefined
}

interface Attempt {
  /** Counted from a random number: a reply to an earlier life of this node, at the same address, must not look like an answer to this one. */
  readonly requestId: number
  readonly route: GroupRoute
  readonly kind: RequestKind
  /** It asks for stale state, which says nothing of who leads. */
  readonly isStale: boolean
  readonly operations: readonly Operation[]
  readonly target: NodeId
  /** Bytes of writes, which count towards the window. */
  readonly bytes: number
  readonly timeoutMs: number
  readonly expiresMs: number
}

const consistencies = Object.values(Consistency)
/** Bytes of writes under way to one group; a single larger request still goes alone. */
const maxBytesUnderWay = 4 * 1024 * 1024
/** A silent request is repeated after at most so many times `attemptTimeoutMs`. */
const maxPatience = 8
/** The first birth of a session is the time of day, which may be wrong: there must be room for many later ones. */
const latestFirstBirth = 2 ** 47
const defaultSessionTtlMs = 600_000
/** How often deadlines are looked at: the precision of `timeoutMs`. */
const sweepIntervalMs = 20

export class Dispatcher {
  readonly #options: DispatcherOptions
  readonly #session: Uint8Array
  #birth: number
  readonly #routes = new Map<number, GroupRoute>()
  readonly #attempts = new Map<number, Attempt>()
  readonly #waiting = new Set<Operation>()
  /** Of each group, the sequences of the writes that wait, in ascending order. */
  readonly #writes = new Map<number, Set<number>>()
  readonly #writer = new Writer(64 * 1024)
  /** A group's time that is older than this is asked for before something is sent first: it decides what is certain when a shard has forgotten this session. */
  readonly #timeIsFreshMs: number
  #waitingBytes = 0
  #nextSequence = 1
  #nextRequestId: number
  #flushScheduled = false
  #cancelSweep: Cancel | null = null
  #closed = false
  #closeReason: { readonly cause?: unknown } = {}
  #isHeld: boolean

  constructor(options: DispatcherOptions) {
    const { runtime, messenger } = options
    this.#options = options
    this.#isHeld = options.isHeld ?? false
    this.#timeIsFreshMs = (options.sessionTtlMs ?? defaultSessionTtlMs) / 4
    this.#session = runtime.randomBytes(sessionIdBytes)
    this.#birth = Math.max(1, Math.min(Math.floor(runtime.wallClockMs()), latestFirstBirth))
    this.#nextRequestId = Buffer.from(runtime.randomBytes(6)).readUIntBE(0, 6)
    messenger.onMessage(Channel.kvReply, (_from, body) => {
      const reader = new Reader(body)
      this.#receive(reader.varint(), reader.u8() as ReplyStatus, reader)
    })
  }

  #route(group: number): GroupRoute {
    const existing = this.#routes.get(group)
    if (existing !== undefined) return existing
    const { runtime, router } = this.#options
    const members = () => router.membersOf(group)
    const nodes = () => router.map.nodes.map(({ id }) => id)
    const isKnown = (node: NodeId) => router.addressOf(node) !== undefined
    const route = new GroupRoute({ group, members, nodes, isKnown, runtime, onReady: () => this.#scheduleFlush() })
    this.#routes.set(group, route)
    return route
  }

  #writesOf(group: number): Set<number> {
    let writes = this.#writes.get(group)
    if (writes === undefined) {
      writes = new Set()
      this.#writes.set(group, writes)
    }
    return writes
  }

  /** Adds an operation and resolves to its result. Throws what is wrong with the options, ClosedError, OverloadedError, or the reason of a signal already aborted. */
  wait<Result>(options: WaitOptions, make: (sequence: number, waiting: Waiting<Result>) => Operation): Promise<Result> {
    const { timeoutMs = this.#options.requestTimeoutMs, signal } = options
    if (!(timeoutMs >= 0)) throw new InvalidArgumentError(`Expected \`timeoutMs\` to be a number of at least 0, got ${timeoutMs}`)
    if (this.#closed) throw new ClosedError('the node is closed', this.#closeReason)
    signal?.throwIfAborted()
    if (this.#waiting.size >= this.#options.maxWaitingOperations || this.#waitingBytes >= this.#options.maxWaitingBytes) {
      throw new OverloadedError(`${this.#waiting.size} operations with ${this.#waitingBytes} bytes wait already`)
    }
    const deadlineMs = this.#options.runtime.nowMs() + timeoutMs
    return new Promise((resolve, reject) => {
      const operation = make(this.#nextSequence, { deadlineMs, resolve, reject, settled: false, uncertain: false, detach: null, successor: null })
      operation.detach = watchSignal(options, (aborted) => {
        const waiting = lastOf(operation)
        this.#fail(waiting, abortedError(waiting, aborted))
      })
      if (operation.kind === 'write') {
        this.#nextSequence++
        this.#writesOf(operation.group).add(operation.sequence)
      }
      this.#waiting.add(operation)
      this.#waitingBytes += sizeOf(operation)
      this.#route(operation.group).add(operation)
      this.#scheduleFlush()
    })
  }

  #settle(operation: Operation): boolean {
    if (operation.settled) return false
    operation.settled = true
    operation.detach?.()
    this.#waiting.delete(operation)
    this.#waitingBytes -= sizeOf(operation)
    if (operation.kind === 'write') this.#writesOf(operation.group).delete(operation.sequence)
    return true
  }

  /** Asks again, under a new sequence, what certainly had no effect under the old one. Whatever else is answered under that one is for an operation that is settled. */
  #renew(operation: WriteOperation, route: GroupRoute): void {
    if (operation.settled) return
    const successor: WriteOperation = { ...operation, sequence: this.#nextSequence++, uncertain: false, birth: 0 }
    operation.settled = true
    operation.successor = successor
    this.#waiting.delete(operation)
    this.#waiting.add(successor)
    const writes = this.#writesOf(operation.group)
    writes.delete(operation.sequence)
    writes.add(successor.sequence)
    route.add(successor)
    this.#scheduleFlush()
  }

  #fail(operation: Operation, error: unknown): void {
    if (this.#settle(operation)) operation.reject(error)
  }

  #scheduleFlush(): void {
    if (this.#flushScheduled || this.#closed) return
    this.#flushScheduled = true
    this.#options.runtime.defer(() => {
      this.#flushScheduled = false
      if (this.#closed) return
      if (!this.#isHeld) for (const route of this.#routes.values()) if (route.ready) this.#flushRoute(route)
      this.#options.messenger.flush()
      this.#scheduleSweep()
    })
  }

  /** Begins to send. */
  release(): void {
    this.#isHeld = false
    this.#scheduleFlush()
  }

  #flushRoute(route: GroupRoute): void {
    const { writes, reads, scans } = route.take()
    const nowMs = this.#options.runtime.nowMs()
    // What is too late already is not sent any more: a write that never was has certainly not been done.
    for (const operations of [writes, reads, scans])
      for (const operation of operations) if (operation.deadlineMs <= nowMs) this.#fail(operation, expiredError(operation))
    if (nowMs - route.seenAtMs > this.#timeIsFreshMs && writes.some(({ birth }) => birth === 0) && !this.#learnTime(route)) {
      for (const write of writes.splice(0)) if (!write.settled) route.add(write)
    }
    for (const write of writes) {
      if (write.birth > 0) continue
      write.birth = this.#birth
      write.seenMs = route.seenMs
    }
    let full = false
    for (const { operations, bytes } of chunks(writes)) {
      full ||= route.bytesUnderWay > 0 && route.bytesUnderWay + bytes > maxBytesUnderWay
      if (full) for (const operation of operations) route.add(operation)
      else this.#attempt(route, RequestKind.write, operations, bytes)
    }
    for (const consistency of consistencies) {
      const alike = reads.filter((read) => read.consistency === consistency)
      for (const { operations } of chunks(alike)) this.#attempt(route, RequestKind.read, operations, 0, consistency)
    }
    for (const scan of scans) if (!scan.settled) this.#attempt(route, RequestKind[scan.kind], [scan], 0, scan.consistency)
  }

  #attempt(
    route: GroupRoute,
    kind: RequestKind,
    operations: readonly Operation[],
    bytes: number,
    consistency: Consistency = Consistency.linearizable,
  ): void {
    const { runtime, messenger, router, local, attemptTimeoutMs } = this.#options
    const requestId = this.#nextRequestId++
    const isStale = consistency === Consistency.stale
    const target = isStale ? route.anyMember(local?.nodeId) : route.target()
    const [first] = operations
    const waitMs = first?.kind === 'watch' ? first.request.waitMs : 0
    const timeoutMs = attemptTimeoutMs * route.patience + waitMs
    this.#attempts.set(requestId, { requestId, route, kind, isStale, operations, target, bytes, timeoutMs, expiresMs: runtime.nowMs() + timeoutMs })
    route.bytesUnderWay += bytes
    const writer = this.#writer
    writer.reset()
    if (target === local?.nodeId) {
      this.#encode(kind, operations)
      // The service keeps the bytes beyond this call, so they must be its own.
      const payload = Buffer.from(writer.view())
      local.service.handle(kind, route.group, payload, (status, body) => this.#receive(requestId, status, new Reader(body)), consistency)
      return
    }
    writeRequestHead(writer, { requestId, kind, consistency, group: route.group })
    this.#encode(kind, operations)
    const address = router.addressOf(target)
    if (address !== undefined) messenger.send(address, Channel.kvRequest, writer.view())
  }

  /** Asks the group's leader for its time: at once when that is on this very node. True when it is known now. */
  #learnTime(route: GroupRoute): boolean {
    const { runtime, messenger, router, local, attemptTimeoutMs } = this.#options
    const nowMs = runtime.nowMs()
    const timeMs = local?.service.timeMs(route.group)
    if (timeMs !== undefined) {
      route.learnTime(timeMs, nowMs)
      return true
    }
    if (route.asksTime) return false
    route.asksTime = true
    const requestId = this.#nextRequestId++
    const target = route.target()
    const timeoutMs = attemptTimeoutMs * route.patience
    const rest = { operations: [], bytes: 0, timeoutMs, expiresMs: nowMs + timeoutMs }
    this.#attempts.set(requestId, { requestId, route, kind: RequestKind.time, isStale: false, target, ...rest })
    this.#writer.reset()
    writeRequestHead(this.#writer, { requestId, kind: RequestKind.time, group: route.group })
    const address = router.addressOf(target)
    if (address !== undefined) messenger.send(address, Channel.kvRequest, this.#writer.view())
    return false
  }

  #encode(kind: RequestKind, operations: readonly Operation[]): void {
    if (kind === RequestKind.read) {
      writeReadKeys(this.#writer, operations as readonly ReadOperation[])
    } else if (kind === RequestKind.scan) {
      writeScanRequest(this.#writer, (operations[0] as ScanOperation).request)
    } else if (kind === RequestKind.watch) {
      writeWatchRequest(this.#writer, (operations[0] as WatchOperation).request)
    } else {
      const lowWater = this.#writesOf(operations[0]!.group).values().next().value ?? this.#nextSequence
      writeBatchHeader(this.#writer, { session: this.#session, birth: (operations[0] as WriteOperation).birth, lowWater }, operations.length)
      for (const operation of operations as readonly WriteOperation[]) {
        operation.uncertain = true
        writeCommand(this.#writer, operation, lowWater)
      }
    }
  }

  #receive(requestId: number, status: ReplyStatus, reader: Reader): void {
    const attempt = this.#attempts.get(requestId)
    if (attempt === undefined) return
    // It stays under way until its time is up: asked at once again, the node would answer the same.
    if (status > ReplyStatus.compacted) throw new CorruptionError(`unknown reply status ${status}`, 'MALFORMED')
    if (status === ReplyStatus.done) return this.#finish(attempt, reader)
    this.#end(attempt)
    const { route, target, operations } = attempt
    if (attempt.isStale && status !== ReplyStatus.malformed) {
      route.avoid(target)
      return this.#retry(attempt)
    }
    switch (status) {
      case ReplyStatus.notLeader:
        route.redirect(target, readRest(reader))
        break
      case ReplyStatus.lost:
      case ReplyStatus.stopped:
        route.abandon(target)
        break
      case ReplyStatus.wrongGroup:
        route.exclude(target)
        this.#options.onWrongGroup?.()
        break
      case ReplyStatus.overloaded:
        route.backOff()
        break
      case ReplyStatus.malformed: {
        const error = new QuorateError('REFUSED', `the group refused the request: ${readRest(reader)}`, false)
        for (const operation of operations) this.#fail(operation, error)
        return
      }
      case ReplyStatus.compacted: {
        const error = new HistoryMissingError(readOldest(reader))
        for (const operation of operations) this.#fail(operation, error)
        return
      }
      default:
        status satisfies never
    }
    this.#retry(attempt)
  }

  #retry({ route, operations }: Attempt): void {
    for (const operation of operations) if (!operation.settled) route.add(operation)
    this.#scheduleFlush()
  }

  #finish(attempt: Attempt, reader: Reader): void {
    const { operations, route, kind, target } = attempt
    if (kind === RequestKind.write) {
      const { results, timeMs } = readResults(reader)
      if (results.length === 0 || results.length > operations.length) return
      route.learnTime(timeMs, this.#options.runtime.nowMs())
      for (let at = 0; at < results.length; at++) {
        const operation = operations[at] as WriteOperation
        const result = results[at]!
        if (result.status === CommandStatus.again || (result.status === CommandStatus.expired && this.#isCertain(operation, result))) {
          this.#renew(operation, route)
        } else if (this.#settle(operation)) finishWrite(operation, result)
      }
      // Large answers: the rest did not fit into the reply, and is kept.
      if (results.length < operations.length) this.#retry(attempt)
    } else if (kind === RequestKind.read) {
      const count = reader.varint()
      if (count === 0 || count > operations.length) return
      const results = Array.from({ length: count }, () => readReadResult(reader))
      const position = { group: route.group, index: reader.varint() }
      for (let at = 0; at < count; at++) {
        const operation = operations[at] as ReadOperation
        if (!this.#settle(operation)) continue
        tellPosition(operation, position)
        operation.resolve(results[at])
      }
      // Large values: the rest did not fit into the reply.
      if (count < operations.length) this.#retry(attempt)
    } else if (kind === RequestKind.watch) {
      const operation = operations[0] as WatchOperation
      const page = readWatchPage(reader)
      if (this.#settle(operation)) operation.resolve(page)
    } else if (kind === RequestKind.time) {
      route.learnTime(reader.varint(), this.#options.runtime.nowMs())
    } else {
      const operation = operations[0] as ScanOperation
      const page = readScanPage(reader)
      if (this.#settle(operation)) {
        tellPosition(operation, { group: route.group, index: page.appliedIndex })
        operation.resolve(page)
      }
    }
    this.#end(attempt)
    if (!attempt.isStale) route.confirm(target)
  }

  /**
   * A shard refused a write because of its birth. Whether it is certain that it was not done: what it forgot was all done before a time that had passed when the write was sent first. What is
   * sent from now on is of a later birth.
   */
  #isCertain({ seenMs }: WriteOperation, { version: forgottenMs, revision: horizon }: CommandResult): boolean {
    this.#birth = Math.max(this.#birth, horizon + 1)
    return seenMs >= forgottenMs
  }

  /** The attempt is over, one way or another. */
  #end({ requestId, route, bytes, kind }: Attempt): void {
    this.#attempts.delete(requestId)
    if (kind === RequestKind.time) route.asksTime = false
    route.bytesUnderWay -= bytes
    if (route.waits) this.#scheduleFlush()
  }

  /** The connection to a node was lost: what was asked of it is asked elsewhere at once. */
  onPeerLost(node: NodeId): void {
    for (const route of this.#routes.values()) route.markLost(node)
    this.#abandon((attempt) => attempt.target === node)
  }

  onPeerConnected(node: NodeId): void {
    for (const route of this.#routes.values()) route.markConnected(node)
  }

  #abandon(which: (attempt: Attempt) => boolean): void {
    for (const attempt of [...this.#attempts.values()]) {
      if (!which(attempt)) continue
      this.#end(attempt)
      if (attempt.isStale) attempt.route.avoid(attempt.target)
      else attempt.route.abandon(attempt.target)
      this.#retry(attempt)
    }
  }

  #scheduleSweep(): void {
    if (this.#cancelSweep !== null || this.#waiting.size === 0) return
    this.#cancelSweep = this.#options.runtime.schedule(sweepIntervalMs, () => {
      this.#cancelSweep = null
      this.#sweep()
      this.#scheduleSweep()
    })
  }

  #sweep(): void {
    const nowMs = this.#options.runtime.nowMs()
    for (const operation of this.#waiting) if (operation.deadlineMs <= nowMs) this.#fail(operation, expiredError(operation))
    this.#abandon((attempt) => {
      if (attempt.expiresMs > nowMs) return false
      // Those that were sent before the last one expired say no more than that one.
      const { route, timeoutMs } = attempt
      if (timeoutMs === this.#options.attemptTimeoutMs * route.patience) route.patience = Math.min(route.patience * 2, maxPatience)
      return true
    })
  }

  /** Rejects what still waits and what comes: ClosedError, or OutcomeUnknownError for writes under way; with the cause, if it is named. Idempotent. */
  close(cause?: unknown): void {
    if (this.#closed) return
    this.#closed = true
    if (cause !== undefined) this.#closeReason = { cause }
    this.#cancelSweep?.()
    for (const route of this.#routes.values()) route.close()
    for (const operation of [...this.#waiting]) {
      const unknown = operation.kind === 'write' && operation.uncertain
      this.#fail(
        operation,
        unknown
          ? new OutcomeUnknownError('the node was closed while the write was under way', this.#closeReason)
          : new ClosedError('the node is closed', this.#closeReason),
      )
    }
    this.#attempts.clear()
  }
}

/** The one that waits for the answer now. */
function lastOf(operation: Operation): Operation {
  let last = operation
  while (last.successor !== null) last = last.successor
  return last
}

function readRest(reader: Reader): string {
  return asBuffer(reader.raw(reader.remaining)).toString('utf8')
}

/** A caller's function: what it throws is the caller's to see, and must not keep others from their answers. */
function tellPosition({ onPosition }: ReadOperation | ScanOperation, position: ReadPosition): void {
  if (onPosition === undefined) return
  try {
    onPosition(position)
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
  }
}
