/** A KvClient in simulated time whose cluster is the test: it looks at each request and answers as it likes. */
import { Reader, Writer } from '../../../src/base/codec.js'
import { type CommandBatch, type CommandResult, CommandStatus, defaultLimits, readBatch, shardOf } from '../../../src/engine/command.js'
import {
  type ReadKey,
  type ReadResult,
  type ReplyStatus,
  RequestKind,
  readReadKeys,
  readRequestHead,
  readScanRequest,
  type ScanRequest,
  writeReadResult,
  writeResults,
} from '../../../src/engine/kv-protocol.js'
import { makeClusterMap, Router } from '../../../src/shard/cluster-map.js'
import { KvClient, type KvClientOptions } from '../../../src/shard/kv-client.js'
import { SimulatedRuntime } from '../../../src/testing/simulated-runtime.js'
import { HandMessenger } from '../../engine/support/engine-fixture.js'

export const router = new Router(makeClusterMap({ nodes: ['a', 'b', 'c'].map((id) => ({ id, address: `address of ${id}` })), groups: 2, shards: 8 }))

/** A request as it arrived at a node. */
export interface SeenRequest {
  readonly requestId: number
  readonly kind: RequestKind
  readonly group: number
  readonly node: string
  readonly batch: CommandBatch | null
  readonly keys: readonly ReadKey[]
  readonly scan: ScanRequest | null
}

export class ClientFixture {
  readonly runtime: SimulatedRuntime
  readonly messenger = new HandMessenger()
  readonly client: KvClient
  #taken = 0
  /** What groups say when they are asked for their time, which happens at once and is not among the requests that a test sees. */
  timeMs = 0
  timesAsked = 0

  constructor(options: Partial<KvClientOptions> & { seed?: number } = {}) {
    this.runtime = new SimulatedRuntime({ seed: options.seed ?? 1 })
    this.client = new KvClient({
      runtime: this.runtime,
      messenger: this.messenger,
      router,
      limits: defaultLimits,
      local: null,
      requestTimeoutMs: 10_000,
      attemptTimeoutMs: 1000,
      maxWaitingOperations: 1000,
      maxWaitingBytes: 1024 * 1024,
      ...options,
    })
  }

  /** The requests sent since the last call, after all that is due by now has happened. */
  async requests(afterMs = 0): Promise<SeenRequest[]> {
    await this.runtime.advance(0)
    await this.#tellTime()
    await this.runtime.advance(afterMs)
    await this.#tellTime()
    const fresh = this.messenger.sent.slice(this.#taken)
    this.#taken = this.messenger.sent.length
    return fresh.map(({ to, body }) => {
      const reader = new Reader(body)
      const head = readRequestHead(reader)
      const payload = reader.raw(reader.remaining)
      return {
        ...head,
        node: to.replace('address of ', ''),
        batch: head.kind === RequestKind.write ? readBatch(payload) : null,
        keys: head.kind === RequestKind.read ? readReadKeys(new Reader(payload)) : [],
        scan: head.kind === RequestKind.scan ? readScanRequest(new Reader(payload)) : null,
      }
    })
  }

  async #tellTime(): Promise<void> {
    for (;;) {
      const sent = this.messenger.sent.slice(this.#taken)
      const asked = sent.filter(({ body }) => readRequestHead(new Reader(body)).kind === RequestKind.time)
      if (asked.length === 0) return
      this.messenger.sent.splice(this.#taken, sent.length, ...sent.filter((each) => !asked.includes(each)))
      for (const { to, body } of asked) {
        this.timesAsked++
        const { requestId } = readRequestHead(new Reader(body))
        const node = to.replace('address of ', '')
        this.messenger.deliver(18, node, new Writer().varint(requestId).u8(0).varint(this.timeMs).finish())
      }
      await this.runtime.advance(0)
    }
  }

  /** The one request that is sent now, or within a while. */
  async request(withinMs = 2000): Promise<SeenRequest> {
    for (let waitedMs = 0; waitedMs <= withinMs; waitedMs++) {
      const found = await this.requests(waitedMs === 0 ? 0 : 1)
      if (found.length > 1) throw new Error(`${found.length} requests instead of one`)
      if (found.length === 1) return found[0]!
    }
    throw new Error('no request was sent')
  }

  reply({ requestId, node }: SeenRequest, status: number, body: Uint8Array = new Uint8Array(0)): void {
    this.messenger.deliver(18, node, new Writer().varint(requestId).u8(status).raw(body).finish())
  }

  replyWrites(request: SeenRequest, results: readonly CommandResult[], timeMs = 0): void {
    const writer = new Writer()
    writeResults(writer, { results, timeMs })
    this.reply(request, 0, writer.finish())
  }

  /** Answers each write of a request with `ok`, the sequence being its version. */
  acknowledge(request: SeenRequest): void {
    this.replyWrites(
      request,
      request.batch!.commands.map(({ sequence }) => ({ status: CommandStatus.ok, version: sequence, revision: 1 })),
    )
  }

  replyReads(request: SeenRequest, results: readonly (ReadResult | undefined)[]): void {
    const writer = new Writer().varint(results.length)
    for (const result of results) writeReadResult(writer, result)
    this.reply(request, 0, writer.varint(7).finish())
  }

  refuse(request: SeenRequest, status: ReplyStatus, text = ''): void {
    this.reply(request, status, Buffer.from(text))
  }
}

/** What a promise has come to, without waiting for it. */
export function watch<T>(promise: Promise<T>): { state: 'pending' | 'resolved' | 'rejected'; value: T | undefined; error: unknown } {
  const outcome: { state: 'pending' | 'resolved' | 'rejected'; value: T | undefined; error: unknown } = {
    state: 'pending',
    value: undefined,
    error: undefined,
  }
  promise.then(
    (value) => {
      outcome.state = 'resolved'
      outcome.value = value
    },
    (error: unknown) => {
      outcome.state = 'rejected'
      outcome.error = error
    },
  )
  return outcome
}

/** A key that falls into a group, the `number`th of them. */
export function keyIn(group: number, number = 0): string {
  for (let at = 0, found = 0; ; at++) {
    const key = `key${at}`
    if (router.groupOf(shardOfKey(key)) === group && found++ === number) return key
  }
}

function shardOfKey(key: string): number {
  return shardOf(Buffer.from(key), router.shards)
}
