/**
 * Owns what a leader sends and what it makes of the answers: appends, heartbeats, rounds of reads, check-quorum.
 *
 * 1. Appends are built at the drain, from whatever came in before it: any number of proposals share one append per follower. Heartbeats go by the clock and apart from
 * appends, so that bulk data never delays them; both carry the term in which leadership was won (hazard D3.32).
 * 2. A request's entries follow right on its previous index, and their terms are those of this log now: entries fetched from disk are compared before they are sent
 * (hazards D2.16, D2.17).
 * 3. A rejection moves the next index over whole terms: at most one round trip for each term in which the logs differ (hazard D2.19).
 * 4. The commit index travels with the next append or heartbeat; a commit by itself sends nothing, so followers learn of the last commit of a burst
 * within a heartbeat interval. A heartbeat carries no more than what its receiver is known to hold.
 * 5. The leader's own match index rises only by its acknowledgement to itself, which its disk releases (hazard D1.4).
 * 6. A leader that no quorum answered for an election timeout steps down (check-quorum, per follower times; hazard D3.25), and so does one whose disk
 * completed nothing for as long, when others could lead (hazard D3.31). When a heartbeat is late by a whole interval the host stood still, and answers may lie unread:
 * the checks are put off to the next one, never twice in a row (hazard p10).
 */
import type { Commit } from './commit.js'
import { unreachable } from './invariant.js'
import { Lease } from './lease.js'
import { entryBytes } from './log.js'
import { Progress } from './progress.js'
import { hasQuorum, isVoter, membersOf, quorumValue } from './quorum.js'
import type { Reads } from './reads.js'
import { Rest } from './rest.js'
import type { ReplicaState, Transitions } from './state.js'
import type { AppendReply, Entry, HeartbeatReply, NodeId, PeerProgress } from './types.js'

export class Replication {
  readonly #state: ReplicaState
  readonly #commit: Commit
  readonly #reads: Reads
  readonly #transitions: Transitions
  readonly #lease: Lease
  /** Every other member; empty for whoever does not lead. */
  readonly #peers = new Map<NodeId, Progress>()
  #ownMatchIndex = 0
  #nextHeartbeatMs = Number.POSITIVE_INFINITY
  readonly #rest: Rest
  /** The last entry when the last heartbeat was due. */
  #restIndex = 0
  #isCheckPutOff = false
  readonly #matchIndexOf = (voter: NodeId): number => (voter === this.#state.id ? this.#ownMatchIndex : (this.#peers.get(voter)?.matchIndex ?? 0))
  readonly #roundOf = (voter: NodeId): number => (voter === this.#state.id ? this.#reads.round : (this.#peers.get(voter)?.round ?? 0))

  constructor(state: ReplicaState, commit: Commit, reads: Reads, transitions: Transitions) {
    this.#state = state
    this.#commit = commit
    this.#reads = reads
    this.#rest = new Rest(state.options)
    this.#transitions = transitions
    this.#lease = new Lease(state)
  }

  get nextTickMs(): number {
    return this.#nextHeartbeatMs
  }

  /** What is believed of a follower; for tests and status. */
  progressOf(peer: NodeId): Progress | undefined {
    return this.#peers.get(peer)
  }

  /** What is believed of every other member; empty for whoever does not lead. */
  progress(): PeerProgress[] {
    const activeAfterMs = this.#state.nowMs - this.#rest.patienceMs(this.#state.nowMs)
    return [...this.#peers.values()].map(({ id, matchIndex, nextIndex, state, lastHeardMs }) => ({
      peer: id,
      matchIndex,
      nextIndex,
      state,
      isActive: lastHeardMs > activeAfterMs,
    }))
  }

  /** Leadership was won; the term's no-op is the last entry. */
  start(): void {
    this.#ownMatchIndex = 0
    this.#nextHeartbeatMs = this.#heartbeatAfter(0)
    this.#rest.end(this.#state.nowMs)
    this.#isCheckPutOff = false
    this.#lease.start(this.#reads.round + 1)
    this.configurationChanged()
  }

  /** Another configuration is in force: those who left are forgotten, those who came are asked where their logs agree. */
  configurationChanged(): void {
    const { id, nowMs, configuration, log } = this.#state
    const members = new Set(membersOf(configuration))
    for (const peer of this.#peers.keys()) {
      if (!members.has(peer)) this.#peers.delete(peer)
    }
    for (const member of members) {
      if (member !== id && !this.#peers.has(member)) this.#peers.set(member, new Progress(member, log.lastIndex, nowMs))
    }
  }

  /** Whether a read may be answered without asking anybody. */
  get holdsLease(): boolean {
    return this.#lease.holds(this.#roundOf)
  }

  stop(): void {
    this.#peers.clear()
    this.#nextHeartbeatMs = Number.POSITIVE_INFINITY
  }

  /** The next multiple of the interval, at least `leastMs` away: all leaders of a node send at the same moments, in the same frames. */
  #heartbeatAfter(leastMs: number): number {
    const { heartbeatIntervalMs } = this.#state.options
    return (Math.floor((this.#state.nowMs + leastMs) / heartbeatIntervalMs) + 1) * heartbeatIntervalMs
  }

  /** Time passed on a leader. */
  tick(): void {
    const { nowMs, options } = this.#state
    if (nowMs < this.#nextHeartbeatMs) return
    const isLate = nowMs >= this.#nextHeartbeatMs + options.heartbeatIntervalMs
    this.#rest.heartbeatPassed(this.#isQuiet(), nowMs)
    // Answers to a late heartbeat get a whole interval before the next check.
    this.#nextHeartbeatMs = this.#heartbeatAfter(isLate ? options.heartbeatIntervalMs : this.#rest.delayMs)
    this.#isCheckPutOff = isLate && !this.#isCheckPutOff
    if (!this.#isCheckPutOff) {
      if (!this.#canLead()) {
        this.#transitions.becomeFollower(this.#state.term, null)
        return
      }
      this.#reads.heartbeatPassed()
    }
    this.#lease.roundSent(this.#reads.nextRound())
    for (const progress of this.#peers.values()) {
      this.#sendHeartbeat(progress)
      progress.heartbeatPassed(nowMs, options.electionTimeoutMs)
    }
  }

  /** Whether nothing happened since the last heartbeat, and nobody lacks anything. */
  #isQuiet(): boolean {
    const { log, commitIndex, nowMs, options } = this.#state
    const isUnchanged = log.lastIndex === this.#restIndex
    this.#restIndex = log.lastIndex
    if (!isUnchanged || commitIndex < log.lastIndex || this.#reads.waiting > 0) return false
    for (const { state, matchIndex, lastHeardMs } of this.#peers.values()) {
      const holdsAll = state === 'replicate' && matchIndex === log.lastIndex
      if (!holdsAll && lastHeardMs > nowMs - 2 * options.electionTimeoutMs) return false
    }
    return true
  }

  /** There is something to do: whoever rested speaks as often as ever again. */
  endRest(): void {
    if (this.#rest.end(this.#state.nowMs)) this.#nextHeartbeatMs = this.#heartbeatAfter(0)
  }

  #canLead(): boolean {
    const { id, nowMs, configuration, isAlone, isDiskStalled } = this.#state
    if (isAlone) return true
    if (isDiskStalled) return false
    const heardAfterMs = nowMs - this.#rest.patienceMs(nowMs)
    return hasQuorum(configuration, (voter) => voter === id || (this.#peers.get(voter)?.lastHeardMs ?? Number.NEGATIVE_INFINITY) > heardAfterMs)
  }

  #sendHeartbeat(progress: Progress): void {
    const { id, term, commitIndex, outbox } = this.#state
    const known = Math.min(progress.matchIndex, commitIndex)
    const resting = this.#rest.isResting ? { isResting: true as const } : {}
    outbox.now({ type: 'heartbeat', from: id, to: progress.id, term, commitIndex: known, round: this.#reads.round, ...resting })
  }

  /** Begins a round for the reads that came in, and confirms it at once where this replica's own word is a quorum. */
  beginReads(): void {
    if (!this.#reads.begin()) return
    this.endRest()
    this.#lease.roundSent(this.#reads.round)
    const { configuration } = this.#state
    for (const progress of this.#peers.values()) {
      if (isVoter(configuration, progress.id)) this.#sendHeartbeat(progress)
    }
    this.#reads.confirm(quorumValue(configuration, this.#roundOf))
  }

  /** Whether a drain would send appends or fetch entries. */
  get hasSomethingToSend(): boolean {
    for (const progress of this.#peers.values()) {
      if (this.#wantsToSend(progress)) return true
    }
    return false
  }

  #wantsToSend(progress: Progress): boolean {
    if (progress.nextIndex <= this.#state.log.snapshotIndex) return true
    switch (progress.state) {
      case 'snapshot':
        return !progress.probeSent
      case 'probe':
        return !progress.probeSent
      case 'replicate':
        return progress.checkDue || this.#canSendAhead(progress)
      default:
        return unreachable(progress.state)
    }
  }

  #canSendAhead(progress: Progress): boolean {
    if (progress.nextIndex > this.#state.log.lastIndex || progress.inflight.bytes >= this.#state.options.maxInflightBytes) return false
    if (progress.nextIndex >= this.#state.log.tailFirstIndex) return true
    return progress.fetch === null && !progress.fetchPaused
  }

  /** Sends each follower what its window takes. */
  sendAppends(): void {
    for (const progress of this.#peers.values()) {
      if (this.#wantsToSend(progress)) this.#sendTo(progress)
    }
  }

  #sendTo(progress: Progress): void {
    const { log, options } = this.#state
    if (progress.nextIndex <= log.snapshotIndex) progress.needsSnapshot(log.snapshotIndex)
    switch (progress.state) {
      case 'snapshot':
        this.#offerSnapshot(progress)
        return
      case 'probe': {
        const entries = progress.probedWithEntries ? [] : log.entries(progress.nextIndex, log.lastIndex, options.maxAppendBytes)
        this.#sendAppend(progress, entries)
        progress.probeSent = true
        progress.probedWithEntries = true
        return
      }
      case 'replicate':
        if (progress.checkDue) {
          progress.checkDue = false
          this.#sendAppend(progress, [])
        }
        while (this.#canSendAhead(progress)) {
          const entries = log.entries(progress.nextIndex, log.lastIndex, options.maxAppendBytes)
          if (entries.length === 0) {
            this.#fetch(progress)
            return
          }
          this.#sendAhead(progress, entries)
        }
        return
      default:
        unreachable(progress.state)
    }
  }

  #sendAhead(progress: Progress, entries: readonly Entry[]): void {
    this.#sendAppend(progress, entries)
    let bytes = 0
    for (const entry of entries) bytes += entryBytes(entry)
    progress.sentUpTo(progress.nextIndex + entries.length - 1, bytes)
  }

  /** Sends entries from the follower's next index on, or none. */
  #sendAppend(progress: Progress, entries: readonly Entry[]): void {
    const { id, term, commitIndex, log, outbox } = this.#state
    const previousIndex = progress.nextIndex - 1
    outbox.now({
      type: 'append-request',
      from: id,
      to: progress.id,
      term,
      previousIndex,
      previousTerm: log.termAt(previousIndex)!,
      entries,
      commitIndex,
      session: progress.session,
      sequence: progress.nextSequence(),
    })
  }

  #offerSnapshot(progress: Progress): void {
    const { id, term, log, outbox } = this.#state
    const snapshotTerm = log.termAt(log.snapshotIndex)!
    const { session } = progress
    const sequence = progress.nextSequence()
    outbox.now({ type: 'snapshot-offer', from: id, to: progress.id, term, snapshotIndex: log.snapshotIndex, snapshotTerm, session, sequence })
    progress.probeSent = true
  }

  #fetch(progress: Progress): void {
    const { log, outbox, options, nowMs } = this.#state
    const firstIndex = progress.nextIndex
    progress.fetch = { firstIndex, session: progress.session, sinceMs: nowMs }
    outbox.fetchEntries({
      peer: progress.id,
      firstIndex,
      lastIndex: Math.min(log.tailFirstIndex - 1, log.lastIndex),
      maxBytes: options.maxAppendBytes,
    })
  }

  /** Entries that were asked for came from the log store, or, when there are none, could not be read. What is no longer wanted is dropped. */
  onFetched(peer: NodeId, entries: readonly Entry[]): void {
    const progress = this.#peers.get(peer)
    if (progress === undefined || progress.fetch === null) return
    const { firstIndex, session } = progress.fetch
    const isAnswer = entries.length === 0 || entries[0]!.index === firstIndex
    // The answer to a fetch of an earlier leadership or session: the one that is outstanding still comes.
    if (!isAnswer) return
    progress.fetch = null
    if (entries.length === 0 || !this.#isOfThisLog(entries)) {
      progress.fetchPaused = true
      return
    }
    const isWanted = progress.state === 'replicate' && progress.session === session && progress.nextIndex === firstIndex
    if (isWanted) this.#sendAhead(progress, entries)
  }

  #isOfThisLog(entries: readonly Entry[]): boolean {
    let index = entries[0]!.index
    // Compacted away while they were read: what comes before them is not known any more.
    if (index <= this.#state.log.snapshotIndex) return false
    for (const entry of entries) {
      if (entry.index !== index || entry.term !== this.#state.log.termAt(index)) return false
      index++
    }
    return true
  }

  /** Only a hint: it sends nothing, so no loop with a failing transport can arise. */
  onUnreachable(peer: NodeId): void {
    this.#peers.get(peer)?.suspectLoss()
  }

  /** A reply of the present term, from a member or from this replica itself. Returns false when it answers nothing that was asked. */
  onAppendReply(message: AppendReply): boolean {
    const { id, log } = this.#state
    if (message.accepted && message.matchIndex > log.lastIndex) return false
    if (message.from === id) {
      if (message.accepted && message.matchIndex > this.#ownMatchIndex) {
        this.#ownMatchIndex = message.matchIndex
        this.#commit.advance(this.#matchIndexOf)
      }
      return message.accepted
    }
    const progress = this.#peers.get(message.from)
    if (progress === undefined || message.session > progress.session || message.sequence > progress.sentSequence) return false
    progress.lastHeardMs = this.#state.nowMs
    progress.answered(message.sequence)
    if (message.accepted) {
      if (progress.accept(message.matchIndex)) this.#commit.advance(this.#matchIndexOf)
    } else if (message.session === progress.session) {
      progress.stepBack(this.#nextIndexAfter(message, progress.nextIndex - 1))
    }
    return true
  }

  /**
   * Where to try next after a rejection: right after the last index at which the logs can agree, by the follower's hint (§5.3, end).
   * All entries of a term come from one leader, so two logs that both hold a term hold the same entries of it up to where the shorter run ends.
   */
  #nextIndexAfter(message: AppendReply, previousIndex: number): number {
    if (message.conflictTerm === 0) return message.conflictIndex
    const { log } = this.#state
    // The follower's terms up to its conflict are at most the conflict's: beyond this index this log has only later ones.
    const index = log.lastIndexWithTermAtMost(message.conflictTerm, previousIndex)
    if (log.termAt(index) === message.conflictTerm) return index + 1
    return Math.min(index, message.conflictIndex - 1) + 1
  }

  /** A reply of the present term. Returns false when it answers nothing that was asked. */
  onHeartbeatReply(message: HeartbeatReply): boolean {
    const progress = this.#peers.get(message.from)
    if (progress === undefined || message.round > this.#reads.round) return false
    progress.lastHeardMs = this.#state.nowMs
    if (message.round > progress.round) {
      progress.round = message.round
      this.#reads.confirm(quorumValue(this.#state.configuration, this.#roundOf))
    }
    return true
  }
}
