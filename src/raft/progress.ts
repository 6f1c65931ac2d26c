/**
 * Owns what the leader believes of one follower, and its flow control.
 *
 * probe:     where the logs agree is unknown. One append per session carries entries; without an answer an empty one a heartbeat asks again, so that
 *            a dead follower costs one small message a heartbeat.
 * replicate: the follower's log agrees up to `matchIndex`; entries are sent ahead of acknowledgements, within a window in bytes.
 * snapshot:  the follower's next entry is compacted away; it is offered a snapshot each heartbeat interval, until it says that it holds the offered index.
 *
 * 1. matchIndex < nextIndex, always (hazard D2.22). The match index only rises: within a term a follower never loses what it accepted.
 * 2. Each step back of `nextIndex` starts a session. Rejections of older sessions are stale and ignored (hazard D2.21); acceptances count in any session.
 * 3. The window is empty outside `replicate`, so nothing can leak from it (hazard D7.53).
 * 4. In `replicate`, whatever is unanswered for a whole heartbeat interval is asked about by one empty append at the end of what was sent: nothing is sent
 * twice to a follower that is only slow, and a loss is found within about two intervals whichever message was lost (hazard D7.55).
 */
import { invariant } from './invariant.js'
import type { NodeId, ProgressState } from './types.js'

/** Entries asked for from the host, since they are no longer in memory. */
export interface FetchUnderWay {
  readonly firstIndex: number
  readonly session: number
  readonly sinceMs: number
}

/** The bytes under way to a follower, in the order sent. */
export class Inflight {
  #lastIndexes: number[] = []
  #sizes: number[] = []
  #head = 0
  #bytes = 0

  get bytes(): number {
    return this.#bytes
  }

  get isEmpty(): boolean {
    return this.#head === this.#sizes.length
  }

  add(lastIndex: number, bytes: number): void {
    this.#lastIndexes.push(lastIndex)
    this.#sizes.push(bytes)
    this.#bytes += bytes
  }

  /** Everything up to an index has arrived. */
  release(matchIndex: number): void {
    while (this.#head < this.#sizes.length && this.#lastIndexes[this.#head]! <= matchIndex) {
      this.#bytes -= this.#sizes[this.#head]!
      this.#head++
    }
    if (this.isEmpty) this.clear()
    else if (this.#head >= 64 && this.#head * 2 >= this.#sizes.length) {
      this.#lastIndexes = this.#lastIndexes.slice(this.#head)
      this.#sizes = this.#sizes.slice(this.#head)
      this.#head = 0
    }
  }

  clear(): void {
    this.#lastIndexes.length = 0
    this.#sizes.length = 0
    this.#head = 0
    this.#bytes = 0
  }
}

export class Progress {
  readonly id: NodeId
  readonly inflight = new Inflight()
  state: ProgressState = 'probe'
  session = 1
  /** The latest time that anything of this term was heard from the follower. */
  lastHeardMs: number
  /** The latest round of reads that the follower answered. */
  round = 0
  /** probe, snapshot: a request is unanswered, and the next one waits for the heartbeat. */
  probeSent = false
  /** probe: this session's request with entries was sent; further ones are empty. */
  probedWithEntries = false
  /** replicate: something is unanswered for too long. */
  checkDue = false
  fetch: FetchUnderWay | null = null
  /** The last fetch brought nothing; the next waits for the heartbeat. */
  fetchPaused = false
  #matchIndex = 0
  #nextIndex: number
  #sentSequence = 0
  #answeredSequence = 0
  #sequenceAtHeartbeat = 0

  constructor(id: NodeId, nextIndex: number, nowMs: number) {
    this.id = id
    this.#nextIndex = nextIndex
    this.lastHeardMs = nowMs
  }

  get matchIndex(): number {
    return this.#matchIndex
  }

  /** The first entry to send next. */
  get nextIndex(): number {
    return this.#nextIndex
  }

  get sentSequence(): number {
    return this.#sentSequence
  }

  /** Counts one more request and returns its sequence. */
  nextSequence(): number {
    return ++this.#sentSequence
  }

  /** Entries up to an index were sent ahead. */
  sentUpTo(lastIndex: number, bytes: number): void {
    invariant(this.state === 'replicate' && lastIndex >= this.#nextIndex, 'only a follower that is known to agree is sent entries ahead')
    this.#nextIndex = lastIndex + 1
    this.inflight.add(lastIndex, bytes)
  }

  answered(sequence: number): void {
    if (sequence > this.#answeredSequence) this.#answeredSequence = sequence
  }

  /** The follower's log agrees with the leader's up to an index. Returns whether that is news. */
  accept(matchIndex: number): boolean {
    const isNews = matchIndex > this.#matchIndex
    if (isNews) this.#matchIndex = matchIndex
    if (this.state === 'replicate') this.inflight.release(matchIndex)
    else if (matchIndex >= this.#nextIndex - 1) this.state = 'replicate'
    if (this.#nextIndex <= this.#matchIndex) this.#nextIndex = this.#matchIndex + 1
    return isNews
  }

  /** The follower's log does not agree right before `nextIndex`, or something in between was lost: try from an earlier index. */
  stepBack(nextIndex: number): void {
    // An offer is not refused.
    if (this.state === 'snapshot') return
    const next = Math.max(this.#matchIndex + 1, Math.min(nextIndex, this.#nextIndex - 1))
    // A rejection right after the match index cannot be true in this term; whatever it means, it does not set the pace.
    const contradicts = this.state === 'probe' && next === this.#nextIndex
    this.#nextIndex = next
    this.state = 'probe'
    this.session++
    this.inflight.clear()
    this.checkDue = false
    this.fetch = null
    this.probeSent = contradicts
    this.probedWithEntries = contradicts
  }

  /** What the follower needs next is compacted away: it is to get a snapshot that reaches at least this index. */
  needsSnapshot(snapshotIndex: number): void {
    this.#nextIndex = snapshotIndex + 1
    this.state = 'snapshot'
    this.session++
    this.inflight.clear()
    this.checkDue = false
    this.fetch = null
    this.probeSent = false
    this.probedWithEntries = false
  }

  /** A heartbeat interval has passed. */
  heartbeatPassed(nowMs: number, fetchTimeoutMs: number): void {
    this.probeSent = false
    this.fetchPaused = false
    if (this.fetch !== null && nowMs - this.fetch.sinceMs >= fetchTimeoutMs) this.fetch = null
    if (!this.inflight.isEmpty && this.#answeredSequence < this.#sequenceAtHeartbeat) this.checkDue = true
    this.#sequenceAtHeartbeat = this.#sentSequence
  }

  /** The transport doubts that what is under way arrives: the next heartbeat asks, however recently it was sent. */
  suspectLoss(): void {
    this.#sequenceAtHeartbeat = this.#sentSequence
  }
}
