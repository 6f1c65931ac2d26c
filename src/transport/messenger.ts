/**
 * The Messenger: everything between a Transport's frames and the layers above: identity, checksums, one frame per peer per turn, chunking of what
 * is larger than a frame, request and reply, and lanes.
 */
import type { Runtime } from '../base/runtime.js'
import type { Address, Transport } from './transport.js'

/** One-way message kinds of the layers above. Values are wire format. */
export const Channel = { raft: 16, kvRequest: 17, kvReply: 18 } as const
export type Channel = (typeof Channel)[keyof typeof Channel]

export interface Sender {
  readonly nodeId: string
  readonly address: Address
}

/** The body is a view of the received frame, alive as long as it is referenced. Throwing CorruptionError counts the message as malformed; it never reaches the process. */
export type MessageHandler = (from: Sender, body: Uint8Array) => void
export type RequestHandler = (from: Sender, payload: Uint8Array, signal: AbortSignal) => Promise<Uint8Array> | Uint8Array

export interface RequestOptions {
  readonly timeoutMs?: number
  readonly signal?: AbortSignal | undefined
  /** `bulk` messages never hold up `control` ones: they go in pieces, behind what is waiting in the control lane. Default control. */
  readonly lane?: 'control' | 'bulk'
}

export interface MessengerOptions {
  readonly transport: Transport
  readonly runtime: Runtime
  /** Eight bytes; frames of another cluster are refused and the sender is told. */
  readonly clusterId: Uint8Array
  readonly nodeId: string
}

/** The face that layers above use. */
export interface MessengerFace {
  readonly address: Address
  /** Queues a one-way message. It leaves with all else for that peer at `flush`, or at the end of the turn. */
  send(to: Address, channel: Channel, body: Uint8Array): void
  onMessage(channel: Channel, handler: MessageHandler): void
  /** Asks a peer and resolves to its reply. Rejects with UnavailableError (`TIMEOUT` or `UNAVAILABLE`), the signal's reason, or the error that the handler threw (code, message and retryable survive). */
  request(to: Address, method: string, payload: Uint8Array, options?: RequestOptions): Promise<Uint8Array>
  handle(method: string, handler: RequestHandler): void
  /** Sends now what the turn has queued. */
  flush(): void
  open(): Promise<void>
  close(): Promise<void>
}
