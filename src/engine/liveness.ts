/**
 * Liveness: whether the nodes that this one shares resting groups with are alive. One sign every two heartbeat intervals and node pair stands for all groups that rest (raft/rest.ts).
 *
 * Invariants:
 * 1. Only nodes with resting groups are watched, both ways, and for as long as resting heartbeats pass: those of busy groups need no signs.
 * 2. Silence is told once, until the node is heard again, and never because this node itself stood still: what was sent to it meanwhile lies unread (hazard p10).
 * 3. It is a hint: it makes followers ask for pre-votes, and nobody lose anything.
 */
import type { Cancel, Runtime } from '../base/runtime.js'
import type { NodeId } from '../raft/types.js'

export interface LivenessOptions {
  readonly runtime: Runtime
  readonly intervalMs: number
  /** A node that was not heard for so long is silent. */
  readonly silenceMs: number
  readonly beat: (node: NodeId) => void
  readonly onSilent: (node: NodeId) => void
}

interface Peer {
  heardMs: number
  /** When a resting heartbeat last passed, either way. */
  restedMs: number
  isSilent: boolean
}

/** Silence of resting heartbeats, in intervals, after which a node is watched no more: resting leaders send one every tenth. */
const watchIntervals = 100

export class Liveness {
  readonly #options: LivenessOptions
  readonly #peers = new Map<NodeId, Peer>()
  #cancel: Cancel | null = null
  #dueMs = 0
  #stopped = false

  constructor(options: LivenessOptions) {
    this.#options = options
  }

  /** Something came from a node. */
  heard(node: NodeId, nowMs: number): void {
    const peer = this.#peers.get(node)
    if (peer === undefined) return
    peer.heardMs = nowMs
    peer.isSilent = false
  }

  /** A resting heartbeat passed between this node and that one. */
  rests(node: NodeId): void {
    if (this.#stopped) return
    const nowMs = this.#options.runtime.nowMs()
    const peer = this.#peers.get(node)
    if (peer === undefined) this.#peers.set(node, { heardMs: nowMs, restedMs: nowMs, isSilent: false })
    else peer.restedMs = nowMs
    if (this.#cancel === null) this.#schedule()
  }

  #schedule(): void {
    const { runtime, intervalMs } = this.#options
    this.#dueMs = runtime.nowMs() + intervalMs
    // Deferred once more: after a stalled loop, timers fire before the sockets are read.
    this.#cancel = runtime.schedule(intervalMs, () => runtime.defer(() => this.#look()))
  }

  #look(): void {
    this.#cancel = null
    if (this.#stopped) return
    const { runtime, intervalMs, silenceMs, beat, onSilent } = this.#options
    const nowMs = runtime.nowMs()
    const stoodStill = nowMs - this.#dueMs >= intervalMs
    for (const [node, peer] of this.#peers) {
      if (nowMs - peer.restedMs > watchIntervals * intervalMs) {
        this.#peers.delete(node)
        continue
      }
      beat(node)
      if (stoodStill) peer.heardMs = Math.max(peer.heardMs, nowMs - silenceMs + 2 * intervalMs)
      else if (!peer.isSilent && nowMs - peer.heardMs >= silenceMs) {
        peer.isSilent = true
        onSilent(node)
      }
    }
    if (this.#peers.size > 0) this.#schedule()
  }

  stop(): void {
    this.#stopped = true
    this.#cancel?.()
  }
}
