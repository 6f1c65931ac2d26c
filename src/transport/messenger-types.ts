/**
 * The vocabulary of the Messenger: what the layers above see of it (MessengerFace), its options, and what it reports. No code but the channel numbers.
 */
import type { Runtime } from '../base/runtime.js'
import type { Address, PeerStateHandler, Transport } from './transport.js'

/** One-way message kinds of the layers above. Values are wire format. */
export const Channel = { raft: 16, kvRequest: 17, kvReply: 18 } as const
export type Channel = (typeof Channel)[keyof typeof Channel]

export interface Sender {
  readonly nodeId: string
  readonly address: Address
}

/** The body is a view of the received frame, alive as long as it is referenced. Throwing CorruptionError counts the message as malformed; it never reaches the process. */
export type MessageHandler = (from: Sender, body: Uint8Array) => void
/**
 * Answers a request. A request may arrive more than once (the network repeats, the caller tries again): handlers must be idempotent. The signal
 * fires when the requester gave up or was lost; a handler that declares fewer than three parameters gets one that never fires, which saves making one.
 */
export type RequestHandler = (from: Sender, payload: Uint8Array, signal: AbortSignal) => Promise<Uint8Array> | Uint8Array

export interface RequestOptions {
  /** Default: the messenger's `requestTimeoutMs`. Kept to within 1/16. Infinity waits for the signal alone. */
  readonly timeoutMs?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** `bulk` messages never hold up `control` ones: they go in pieces, behind what is waiting in the control lane. Default control. */
  readonly lane?: 'control' | 'bulk' | undefined
}

/** What was refused, or by whom this node was refused. */
export interface Refusal {
  readonly kind: 'wrong-cluster' | 'wrong-node' | 'wrong-protocol' | 'bad-checksum' | 'malformed' | 'unknown-channel' | 'not-open' | 'refused-by-peer'
  readonly from: Address
  readonly detail: string
}

export interface MessengerOptions {
  readonly transport: Transport
  readonly runtime: Runtime
  /** Eight bytes; frames of another cluster are refused and the sender is told. All zero: not known yet, only open methods of others can be asked. */
  readonly clusterId: Uint8Array
  readonly nodeId: string
  /** Methods that a node may ask for without knowing the cluster id. Default none. */
  readonly openMethods?: readonly string[] | undefined
  /** Told of refusals: of each, up to 100 per second and peer. (All are counted.) */
  readonly onRefused?: ((refusal: Refusal) => void) | undefined
  /** Told when a handler throws what is not a QuorateError: a bug. Default: a process warning. */
  readonly onHandlerError?: ((error: unknown, where: string) => void) | undefined
  /** Default 10 000. */
  readonly requestTimeoutMs?: number | undefined
  /** Requests of this node that wait for a reply; more are rejected as overloaded. Default 65 536. */
  readonly maxPendingRequests?: number | undefined
  /** Requests of others that are being handled; more are answered `OVERLOADED`. Default 4096. */
  readonly maxConcurrentRequests?: number | undefined
  /** Those of one peer. Default a quarter of `maxConcurrentRequests`, at least 1. */
  readonly maxConcurrentRequestsPerPeer?: number | undefined
  /** Largest message, in bytes. Default 64 MiB. */
  readonly maxMessageBytes?: number | undefined
  /** Bytes waiting in the bulk lane for one peer. Default twice `maxMessageBytes`. */
  readonly maxBulkQueueBytes?: number | undefined
  /** Bytes of incomplete messages kept of one peer; of all together twice as many. Default twice `maxMessageBytes`. */
  readonly maxReassemblyBytes?: number | undefined
  /** An incomplete message is dropped when nothing of it came for so long. Default 15 000. */
  readonly reassemblyTimeoutMs?: number | undefined
}

/** The face that layers above use. */
export interface MessengerFace {
  readonly address: Address
  /** Queues a one-way message. It leaves with all else for that peer at `flush`, or at the end of the turn. The body is copied: it may be reused. */
  send(to: Address, channel: Channel, body: Uint8Array): void
  onMessage(channel: Channel, handler: MessageHandler): void
  /** Asks a peer and resolves to its reply. Rejects with UnavailableError (`TIMEOUT` or `UNAVAILABLE`), the signal's reason, or the error that the handler threw (code, message and retryable survive). */
  request(to: Address, method: string, payload: Uint8Array, options?: RequestOptions): Promise<Uint8Array>
  handle(method: string, handler: RequestHandler): void
  /** Sends now what the turn has queued. */
  flush(): void
  open(): Promise<void>
  close(): Promise<void>
  /** Told what the transport notices of peers; a hint only, and nothing at all from transports without connections. */
  onPeerState?(handler: PeerStateHandler): void
}

/** What a Messenger holds at the moment: all of it is 0, but the peers, when nothing is under way. */
export interface MessengerStatus {
  readonly peers: number
  /** Requests of this node that wait for a reply. */
  readonly pendingRequests: number
  /** Requests of others that are being handled. */
  readonly runningRequests: number
  /** Bytes in the bulk lane that are not acknowledged. */
  readonly bulkBytes: number
  /** Bytes of messages that have come in part. */
  readonly reassemblyBytes: number
}
