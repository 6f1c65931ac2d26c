/**
 * The Transport interface: all that an adapter has to do. Everything else (request and reply, chunking, lanes, checksums,
 * coalescing of a turn's messages) is the Messenger's, above the adapter. How to write one: docs/writing-a-transport.md.
 */

/** Where a peer can be reached; opaque to the library, meaningful to the adapter (`127.0.0.1:7001`). */
export type Address = string

/**
 * Called with each frame that arrives. `from` is the sender's address: a frame sent to it reaches that sender. The frame may be a view of a
 * larger buffer; its bytes are the receiver's own, who may write to them: a frame that arrives twice has bytes of its own each time. When the handler throws, the frame was not one of ours: an adapter that has connections
 * closes the one that it came over, and goes on.
 */
export type FrameHandler = (from: Address, frame: Uint8Array) => void

/** `connected`: frames now reach the peer. `lost`: what was under way may be gone, and the peer's process may be dead. */
export type PeerState = 'connected' | 'lost'
export type PeerStateHandler = (peer: Address, state: PeerState) => void

export interface Transport {
  /** This end's address as peers use it. Known once `open` has resolved. */
  readonly address: Address
  /** The largest frame that `send` carries, in bytes; the library never sends a larger one. */
  readonly maxFrameBytes: number
  /** Starts to receive. Rejects when the address cannot be used. Called once. */
  open(onFrame: FrameHandler): Promise<void>
  /**
   * Hands a frame over for sending and returns at once; never throws. The frame may be lost, delayed, repeated or reordered, but
   * arrives whole and unchanged or not at all. The adapter owns the frame from now on. Every queue is bounded: what is over is dropped.
   */
  send(to: Address, frame: Uint8Array): void
  /** Stops receiving, lets go of every connection, timer and listener. Frames not yet sent may be lost. Idempotent. */
  close(): Promise<void>
  /**
   * Optional: an adapter with connections tells what it notices of a peer, so that a dead one is known long before a timeout. Only ever a hint:
   * a partition shows nothing, and a peer that is `lost` may be back at once. Called at most once, before `open`.
   */
  onPeerState?(handler: PeerStateHandler): void
}
