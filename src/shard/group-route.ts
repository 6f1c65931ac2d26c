/**
 * GroupRoute: where a client sends what it asks of one group, and what waits to be sent.
 *
 * Invariants: 1. at most one guess at a time: the leader that last answered, or the members in turn, those just lost left out; 2. after a refusal without a hint nothing
 * is sent for a while that doubles up to a bound: a group without a leader is not flooded; 3. the map says where a group's members should be, not where they are: when all of
 * them say that they do not have the group, every node of the map is asked in turn, and whoever is named as the leader is asked wherever it is.
 */
import type { Cancel, Runtime } from '../base/runtime.js'
import type { NodeId } from '../raft/types.js'
import type { Operation, ReadOperation, ScanOperation, WatchOperation, WriteOperation } from './operations.js'

const firstPauseMs = 5
/** Short: it is added to every failover, half of it on average. */
const longestPauseMs = 30
/** Hints followed one after the other without a pause. */
const maxHops = 2
/** Followers name a dead leader until they elect another. A node that is back must be found soon all the same, so being lost wears off. */
const lostForMs = 150
/** For so long a node that does not have the group is not asked again: it may be getting it. */
const withoutForMs = 500

export interface GroupRouteOptions {
  readonly group: number
  readonly members: () => readonly NodeId[]
  /** Every node that there is. */
  readonly nodes: () => readonly NodeId[]
  /** Whether it is known where a node is: the leader may be one that the map has no more. */
  readonly isKnown: (node: NodeId) => boolean
  readonly runtime: Runtime
  /** A pause is over: what waits can be sent. */
  readonly onReady: () => void
}

export class GroupRoute {
  readonly group: number
  /** Bytes of writes that were sent and not answered yet. */
  bytesUnderWay = 0
  /** The group's log time, as far as it has told, and when it was told last. */
  seenMs = 0
  seenAtMs = Number.NEGATIVE_INFINITY
  /** It is being asked for its time. */
  asksTime = false
  /** How many times longer than usual a request may be silent before it is repeated. */
  patience = 1
  readonly #options: GroupRouteOptions
  /** Nodes whose connection was lost a moment ago, and until when that keeps us from asking them. */
  readonly #lostUntilMs = new Map<NodeId, number>()
  /** Nodes that do not have the group, and until when they are believed. */
  readonly #withoutUntilMs = new Map<NodeId, number>()
  #leader: NodeId | null = null
  #turn: number
  #pauseMs = firstPauseMs
  /** Hints followed since a request was last answered. */
  #hops = 0
  #cancelPause: Cancel | null = null
  #writes: WriteOperation[] = []
  #reads: ReadOperation[] = []
  #scans: (ScanOperation | WatchOperation)[] = []

  constructor(options: GroupRouteOptions) {
    this.group = options.group
    this.#options = options
    this.#turn = Math.floor(options.runtime.random() * 16)
  }

  /** The group has told its time. */
  learnTime(timeMs: number, nowMs: number): void {
    this.seenMs = Math.max(this.seenMs, timeMs)
    this.seenAtMs = nowMs
  }

  add(operation: Operation): void {
    if (operation.kind === 'write') this.#writes.push(operation)
    else if (operation.kind === 'read') this.#reads.push(operation)
    else this.#scans.push(operation)
  }

  /** False while the route pauses after a refusal. */
  get ready(): boolean {
    return this.#cancelPause === null
  }

  /** Whether operations wait to be sent. */
  get waits(): boolean {
    return this.#writes.length > 0 || this.#reads.length > 0 || this.#scans.length > 0
  }

  take(): { writes: WriteOperation[]; reads: ReadOperation[]; scans: (ScanOperation | WatchOperation)[] } {
    const taken = { writes: this.#writes, reads: this.#reads, scans: this.#scans }
    this.#writes = []
    this.#reads = []
    this.#scans = []
    return taken
  }

  /** The node to ask. */
  target(): NodeId {
    if (this.#leader !== null) return this.#leader
    const members = this.#options.members()
    const nowMs = this.#options.runtime.nowMs()
    const isWithout = (node: NodeId) => (this.#withoutUntilMs.get(node) ?? 0) > nowMs
    const candidates = this.#withoutUntilMs.size > 0 && members.every(isWithout) ? this.#options.nodes() : members
    for (const fits of [(node: NodeId) => !this.#isLost(node) && !isWithout(node), (node: NodeId) => !this.#isLost(node)]) {
      for (let step = 0; step < candidates.length; step++) {
        const candidate = candidates[(this.#turn + step) % candidates.length]!
        if (fits(candidate)) return candidate
      }
    }
    return candidates[this.#turn % candidates.length]!
  }

  /** A member to ask for its state, whoever leads: this node itself if it can be, else another one each time. */
  anyMember(own: NodeId | undefined): NodeId {
    const members = this.#options.members()
    const nowMs = this.#options.runtime.nowMs()
    const fits = (node: NodeId) => !this.#isLost(node) && (this.#withoutUntilMs.get(node) ?? 0) <= nowMs
    if (own !== undefined && members.includes(own) && fits(own)) return own
    const first = this.#turn++
    for (let step = 0; step < members.length; step++) {
      const candidate = members[(first + step) % members.length]!
      if (fits(candidate)) return candidate
    }
    return members[first % members.length]!
  }

  /** `from` gave no state: others are asked for a while. */
  avoid(from: NodeId): void {
    this.#withoutUntilMs.set(from, this.#options.runtime.nowMs() + withoutForMs)
    this.backOff()
  }

  /** A request was answered: this is the leader. */
  confirm(target: NodeId): void {
    this.#leader = target
    this.#pauseMs = firstPauseMs
    this.#hops = 0
    this.patience = 1
    this.#withoutUntilMs.clear()
  }

  /** `from` is not the leader; it may know who is. */
  redirect(from: NodeId, hint: NodeId): void {
    if (this.#hasLeft(from)) return
    if (hint === '' || hint === from || this.#isLost(hint) || !this.#options.isKnown(hint)) return this.abandon(from)
    this.#leader = hint
    // Nodes that name one another must not send us round in circles.
    if (++this.#hops > maxHops) this.backOff()
  }

  /** `from` did not serve and named nobody else: the next one is asked after a pause. */
  abandon(from: NodeId): void {
    if (this.#hasLeft(from)) return
    this.#leader = null
    if (this.#cancelPause !== null) return
    this.#turn++
    this.backOff()
  }

  /** `from` does not have the group. */
  exclude(from: NodeId): void {
    this.#withoutUntilMs.set(from, this.#options.runtime.nowMs() + withoutForMs)
    this.abandon(from)
  }

  /** Another node is asked already: what comes late from this one says nothing about that. */
  #hasLeft(from: NodeId): boolean {
    return this.#leader !== null && this.#leader !== from
  }

  backOff(): void {
    if (this.#cancelPause !== null) return
    const { runtime, onReady } = this.#options
    const pauseMs = this.#pauseMs * (0.5 + runtime.random())
    this.#pauseMs = Math.min(this.#pauseMs * 2, longestPauseMs)
    this.#cancelPause = runtime.schedule(pauseMs, () => {
      this.#cancelPause = null
      onReady()
    })
  }

  markLost(node: NodeId): void {
    this.#lostUntilMs.set(node, this.#options.runtime.nowMs() + lostForMs)
    if (this.#leader === node) this.#leader = null
  }

  markConnected(node: NodeId): void {
    this.#lostUntilMs.delete(node)
  }

  #isLost(node: NodeId): boolean {
    return (this.#lostUntilMs.get(node) ?? 0) > this.#options.runtime.nowMs()
  }

  close(): void {
    this.#cancelPause?.()
  }
}
