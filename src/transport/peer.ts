/** What the Messenger keeps of one address. Its parts belong to the file that each is of. */
import type { IncomingStreams, OutgoingStreams } from './bulk.js'
import type { FrameBuilder } from './frame.js'
import type { Sender } from './messenger-types.js'
import type { RunningRequest } from './requests.js'
import type { Address } from './transport.js'

export class Peer {
  readonly address: Address
  readonly builder: FrameBuilder
  /** In the outbox's list of peers with something to send. */
  dirty = false
  /** Who spoke last from this address. */
  sender: Sender
  /** The header of the last frame from a full peer: one that begins with it again needs no further look. */
  lastHeader: Uint8Array | null = null
  /** When it was last told that it is refused. */
  lastRefusalMs = Number.NEGATIVE_INFINITY
  /** Refusals reported of it, and since when they are counted. */
  reports = 0
  reportsSinceMs = Number.NEGATIVE_INFINITY
  outgoing: OutgoingStreams | null = null
  incoming: IncomingStreams | null = null
  /** Requests of this peer that are being handled, by their id. */
  readonly running = new Map<number, RunningRequest>()
  /** Requests of this node that wait for this peer. */
  pendingRequests = 0

  constructor(address: Address, builder: FrameBuilder) {
    this.address = address
    this.builder = builder
    this.sender = { nodeId: '', address }
  }

  /** Whether nothing would be lost by forgetting it. */
  get idle(): boolean {
    return (
      !this.dirty &&
      this.pendingRequests === 0 &&
      this.running.size === 0 &&
      (this.outgoing === null || this.outgoing.idle) &&
      (this.incoming === null || this.incoming.idle)
    )
  }
}
