/**
 * KvService: answers KV requests for the groups whose replicas live on this node: writes through the log, reads at a confirmed index.
 *
 * Invariants: 1. nothing is proposed that the state machine could refuse as malformed; 2. only shards that the group owns are written or read;
 * 3. what is proposed carries this leader's time, filled in where it lies: the bytes that a request came in are nobody else's;
 * 4. each request gets one reply, once; those under way are bounded in bytes over all groups of the node (the meta group is always heard), and each group bounds its own.
 */
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import { Channel, type MessengerFace, type Sender } from '../transport/messenger.js'
import { checkBatch, type Limits, metaGroup, metaShard, stampEntry } from './command.js'
import {
  Consistency,
  encodeScanPage,
  ReplyStatus,
  RequestKind,
  readReadKeys,
  readRequestHead,
  readScanRequest,
  type ScanEntry,
  ScanForm,
  type ScanPage,
  type ScanRequest,
  writeResults,
} from './kv-protocol.js'
import type { ReadReply, Refusal, ReplicaSource, ServedReplica } from './served-replica.js'
import { shardOfRange } from './sharding.js'
import type { RecordCursor } from './state-store.js'
import type { ValueRecord } from './value-record.js'
import { WatchService } from './watch-service.js'

/** What the service asks the cluster map. */
export interface Ownership {
  readonly shards: number
  groupOf(shard: number): number
  shardsOf(group: number): readonly number[]
}

/** Receives one reply; `body` is what follows the status. */
export type ReplyTo = (status: ReplyStatus, body: Uint8Array) => void

/** What a request that is under way holds beside its bytes, roughly. */
const requestOverheadBytes = 200
const defaultMaxBytesUnderWay = 256 * 1024 * 1024
const maxScans = 64
const defaultMaxPolls = 10_000
const maxPageEntries = 10_000
/** A reply is ended when it holds so much; what is left of a read or write is asked for again. */
const maxReplyBytes = 4 * 1024 * 1024
const nothing = new Uint8Array(0)

export interface KvServiceOptions {
  readonly host: ReplicaSource
  readonly messenger: MessengerFace
  readonly ownership: Ownership
  readonly limits: Limits
  readonly runtime: Runtime
  /** Bytes of the requests that wait for their answer on this node; more are refused as overloaded. Default 256 MiB. */
  readonly maxBytesUnderWay?: number
  /** Watches that wait on this node; more are refused as overloaded. Default 10 000. */
  readonly maxPolls?: number
}

export class KvService {
  readonly #options: KvServiceOptions
  readonly #replyWriter = new Writer(4096)
  readonly #maxBytesUnderWay: number
  readonly #watches: WatchService
  #bytesUnderWay = 0
  #scans = 0

  constructor(options: KvServiceOptions) {
    this.#options = options
    this.#maxBytesUnderWay = options.maxBytesUnderWay ?? defaultMaxBytesUnderWay
    const { ownership, runtime, maxPolls = defaultMaxPolls } = options
    this.#watches = new WatchService({
      runtime,
      shards: () => ownership.shards,
      owns: (group, shard) => ownership.groupOf(shard) === group,
      refuse,
      maxPolls,
    })
    options.messenger.onMessage(Channel.kvRequest, (from, body) => this.#receive(from, body))
  }

  #receive(from: Sender, body: Uint8Array): void {
    const reader = new Reader(body)
    const { requestId, kind, consistency, group } = readRequestHead(reader)
    const answer: ReplyTo = (status, payload) => {
      this.#replyWriter.reset()
      this.#replyWriter.varint(requestId).u8(status).raw(payload)
      this.#options.messenger.send(from.address, Channel.kvReply, this.#replyWriter.view())
    }
    this.handle(kind, group, reader.raw(reader.remaining), answer, consistency)
  }

  /** Serves one request; replies later, or at once. Never throws. */
  handle(kind: RequestKind, group: number, payload: Uint8Array, reply: ReplyTo, consistency: Consistency = Consistency.linearizable): void {
    const replica = this.#options.host.replica(group)
    if (replica === undefined) return reply(ReplyStatus.wrongGroup, nothing)
    if (!replica.stopped && !replica.isLeader && consistency !== Consistency.stale) return refuse(replica, 'not-leader', reply)
    const bytes = payload.length + requestOverheadBytes
    if (this.#bytesUnderWay + bytes > this.#maxBytesUnderWay && this.#bytesUnderWay > 0 && group !== metaGroup)
      return reply(ReplyStatus.overloaded, nothing)
    this.#bytesUnderWay += bytes
    const finish: ReplyTo = (status, body) => {
      this.#bytesUnderWay -= bytes
      reply(status, body)
    }
    try {
      if (kind === RequestKind.write) this.#write(replica, payload, finish)
      else if (kind === RequestKind.read) this.#read(replica, payload, consistency, finish)
      else if (kind === RequestKind.scan) this.#scan(replica, payload, consistency, finish)
      else if (kind === RequestKind.watch) this.#watches.poll(replica, payload, finish)
      else if (replica.stopped) finish(ReplyStatus.stopped, nothing)
      else finish(ReplyStatus.done, new Writer(8).varint(replica.machine.timeMs).view())
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error
      finish(ReplyStatus.malformed, Buffer.from(error.message))
    }
  }

  /** A group's log time, when it is led from here; undefined else. */
  timeMs(group: number): number | undefined {
    const replica = this.#options.host.replica(group)
    return replica === undefined || replica.stopped || !replica.isLeader ? undefined : replica.machine.timeMs
  }

  #owns(replica: ServedReplica, requests: readonly { shard: number }[]): boolean {
    return requests.every(({ shard }) => this.#options.ownership.groupOf(shard) === replica.group)
  }

  #write(replica: ServedReplica, payload: Uint8Array, reply: ReplyTo): void {
    const { ownership, limits } = this.#options
    const batch = checkBatch(payload, ownership.shards, limits)
    if (!this.#owns(replica, batch.commands)) return reply(ReplyStatus.wrongGroup, nothing)
    stampEntry(payload, replica.logTimeMs())
    replica.propose(payload, (results, refusal) => {
      if (results === null) return refuse(replica, refusal!, reply)
      const writer = new Writer(results.length * 12 + 16)
      writeResults(writer, { results, timeMs: replica.machine.timeMs }, maxReplyBytes)
      reply(ReplyStatus.done, writer.view())
    })
  }

  /** Calls back when the replica's state is what a read of this consistency may see. */
  #await(replica: ServedReplica, consistency: Consistency, ready: ReadReply): void {
    if (consistency !== Consistency.stale) replica.awaitReadable(ready, consistency === Consistency.lease)
    else replica.awaitAny(ready)
  }

  #read(replica: ServedReplica, payload: Uint8Array, consistency: Consistency, reply: ReplyTo): void {
    const keys = readReadKeys(new Reader(payload))
    for (const { shard } of keys) {
      if (shard >= this.#options.ownership.shards && shard !== metaShard) throw new CorruptionError(`there is no shard ${shard}`, 'MALFORMED')
    }
    if (!this.#owns(replica, keys)) return reply(ReplyStatus.wrongGroup, nothing)
    this.#await(replica, consistency, (refusal) => {
      if (refusal !== null) return refuse(replica, refusal, reply)
      const found: (ValueRecord | undefined)[] = []
      let bytes = 0
      for (const { shard, key } of keys) {
        if (bytes >= maxReplyBytes) break
        const record = this.#lookUp(replica, shard, key)
        if (record === null) return reply(ReplyStatus.stopped, nothing)
        if (record !== undefined) bytes += record.valueBytes
        found.push(record)
      }
      const writer = new Writer(bytes + found.length * 24 + 8).varint(found.length)
      for (const record of found) writeRecord(writer, record)
      writer.varint(replica.appliedIndex)
      reply(ReplyStatus.done, writer.view())
    })
  }

  /** Reads a key; null when the state turned out to be damaged, which stops the replica. */
  #lookUp(replica: ServedReplica, shard: number, key: Uint8Array): ValueRecord | undefined | null {
    try {
      return replica.machine.read(shard, key)
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error
      replica.damaged(error)
      return null
    }
  }

  /** The group's shards that may have keys of a range: one at most when the range decides the keys' tag. */
  #shardsOf(group: number, { gte, lt }: ScanRequest): readonly number[] {
    const { ownership } = this.#options
    const only = shardOfRange(gte, lt, ownership.shards)
    return only === undefined ? ownership.shardsOf(group) : ownership.groupOf(only) === group ? [only] : []
  }

  #scan(replica: ServedReplica, payload: Uint8Array, consistency: Consistency, reply: ReplyTo): void {
    const request = readScanRequest(new Reader(payload))
    if (this.#scans >= maxScans) return reply(ReplyStatus.overloaded, nothing)
    this.#scans++
    this.#await(replica, consistency, (refusal) => {
      if (refusal !== null) {
        this.#scans--
        return refuse(replica, refusal, reply)
      }
      // All cursors are opened in this turn: the page is one point in time of the group.
      const cursors = this.#shardsOf(replica.group, request).map((shard) => replica.machine.scan(shard, request.gte, request.lt, request.reverse))
      const { appliedIndex } = replica
      mergePage(cursors, request)
        .then(
          (page) => reply(ReplyStatus.done, encodeScanPage({ ...page, appliedIndex })),
          (error: unknown) => {
            if (error instanceof CorruptionError) replica.damaged(error)
            reply(ReplyStatus.stopped, nothing)
          },
        )
        .finally(() => {
          this.#scans--
        })
    })
  }
}

/** As `writeReadResult`, without making a copy of the value first. */
function writeRecord(writer: Writer, record: ValueRecord | undefined): void {
  if (record === undefined) {
    writer.varint(0)
    return
  }
  writer.varint(record.version).varint(record.revision).varint(record.valueBytes)
  record.writeValue(writer)
}

function refuse(replica: ServedReplica, refusal: Refusal, reply: ReplyTo): void {
  switch (refusal) {
    case 'not-leader':
      return reply(ReplyStatus.notLeader, Buffer.from(replica.leaderNode))
    case 'overloaded':
      return reply(ReplyStatus.overloaded, nothing)
    case 'lost':
      return reply(ReplyStatus.lost, nothing)
    case 'stopped':
      return reply(ReplyStatus.stopped, nothing)
    default:
      refusal satisfies never
  }
}

/** Merges the shards' cursors into one page in key order. */
async function mergePage(cursors: readonly RecordCursor[], request: ScanRequest): Promise<Omit<ScanPage, 'appliedIndex'>> {
  const maxEntries = Math.min(request.maxEntries, maxPageEntries)
  const maxBytes = Math.min(request.maxBytes, maxReplyBytes)
  const entries: ScanEntry[] = []
  let bytes = 0
  let last: Uint8Array | null = null
  try {
    const heads: { key: string; record: ValueRecord; cursor: RecordCursor }[] = []
    const advance = async (cursor: RecordCursor) => {
      const found = await cursor.next()
      if (found !== undefined) insertHead(heads, { key: found.key.slice(3), record: found.record as ValueRecord, cursor }, request.reverse)
    }
    await Promise.all(cursors.map(advance))
    for (let count = 0; ; count++) {
      const head = heads.at(-1)
      if (head === undefined) return { entries, count, last, more: false }
      if (count > 0 && (count >= maxEntries || bytes >= maxBytes)) return { entries, count, last, more: true }
      heads.pop()
      const { version, revision } = head.record
      last = Buffer.from(head.key, 'latin1')
      if (request.form !== ScanForm.count) {
        const sent = request.form === ScanForm.keys ? nothing : head.record.value
        entries.push({ key: last, version, revision, value: sent })
        bytes += last.length + sent.length
      }
      await advance(head.cursor)
    }
  } finally {
    await Promise.all(cursors.map((cursor) => cursor.close()))
  }
}

/** Keeps the heads sorted so that the next entry of the page is the last. */
function insertHead<T extends { key: string }>(heads: T[], head: T, reverse: boolean): void {
  let low = 0
  let high = heads.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (heads[middle]!.key < head.key === reverse) low = middle + 1
    else high = middle
  }
  heads.splice(low, 0, head)
}
