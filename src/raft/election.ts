/**
 * Owns how a leader comes to be: the election timer, campaigns, and what this replica answers to those of others.
 *
 * 1. A campaign begins with a pre-vote, which changes no term and no vote anywhere (thesis §9.6); only a quorum of pre-votes raises the term.
 * 2. The timer starts again, with a time drawn anew from [T, 2T), on hearing the term's leader, on granting a vote, on starting a campaign and on
 * losing leadership, and later after a heartbeat of a leader at rest (`rest.ts`); never on granting a pre-vote, refusing a vote or repeating one (hazard D3.24).
 * 3. Whoever leads, or heard a leader less than T ago, in this term or an earlier one, ignores (pre-)votes, their terms included, unless they come from that leader itself, which is
 * then no leader any more, or that leader asked for the campaign. So does whoever started less than T ago and may have heard one before: the lease of a leader (`lease.ts`) rests on this
 * promise. Whoever starts to campaign stops to believe in a leader (hazard D3.23).
 * 4. A vote is cast once a term, only for a log at least as up to date as this one (§5.4.1), and spoken of only once it is durable; so is the
 * candidate's vote for itself, which is a message to itself, and which it needs before any other can know of its term (hazards D1.2, D1.4).
 * 5. A reply counts only in the campaign whose sequence it echoes. Learners, strangers, those whose removal is committed, and leaders never campaign (hazards D3.26, D3.28); all of them vote
 * when asked, since a replica may be a voter in a configuration that it does not know yet (hazard D3.27).
 * 6. A replica whose disk hangs does not campaign: it could not keep what it promises.
 * 7. A tick that comes late by a heartbeat interval means that the host stood still, and that what a living leader sent may lie unread: the deadline moves on by
 * one interval, once (hazard p10).
 * 8. Two things shorten the wait, and only that: no promise is broken by them, and each ends in a pre-vote. When the connection to the leader broke, its process is probably gone: then there is
 * nothing to wait for but the end of what was promised to it (T after it was last heard), unless it is heard again; the others take turns, an interval apart, in an order that changes with the term. And of two candidates in one term, neither of which may get anywhere, the one with the
 * better log, or else the greater id, does not sit that term out. Both waits end at a time that is drawn too.
 */
import { hasQuorum, votersOf } from './quorum.js'
import { restPromiseMs, restTimeoutFactor } from './rest.js'
import type { ReplicaState, Transitions } from './state.js'
import type { NodeId, PreVoteReply, PreVoteRequest, VoteReply, VoteRequest } from './types.js'

export class Election {
  readonly #state: ReplicaState
  readonly #transitions: Transitions
  #deadlineMs: number
  #isDeadlineMoved = false
  /** When those who have not granted are asked again. */
  #askAgainAtMs = Number.POSITIVE_INFINITY
  /** When a leader was last heard, and which: votes against it wait. */
  #heardMs: number
  #heardFrom: NodeId | null = null
  /** For how long they wait. */
  #promiseMs: number
  /** The leader asked for this campaign. */
  #isForTransfer = false
  readonly #granted = new Set<NodeId>()
  /** The wait was shortened because the connection to the leader broke. */
  #isHurried = false
  #sequence: number

  constructor(state: ReplicaState, transitions: Transitions) {
    this.#state = state
    this.#transitions = transitions
    // Not 0: after a restart, replies to a campaign before it are unlikely to fit.
    this.#sequence = Math.floor(state.options.random() * 2 ** 31)
    this.#promiseMs = state.options.electionTimeoutMs
    // Before a restart it may have heard one; not in term 0, and not when nobody else counts.
    this.#heardMs = state.term > 0 && !state.isAlone ? state.nowMs : Number.NEGATIVE_INFINITY
    // Whoever is alone has nobody to wait for.
    this.#deadlineMs = state.isAlone ? state.nowMs : this.#drawDeadline()
  }

  /** When this replica, not leading, has something to do. */
  get nextTickMs(): number {
    return this.#state.role === 'follower' ? this.#deadlineMs : Math.min(this.#deadlineMs, this.#askAgainAtMs)
  }

  /** A time drawn from one election timeout, after so many of them. */
  #drawDeadline(timeouts = 1): number {
    const { electionTimeoutMs, random } = this.#state.options
    return this.#state.nowMs + electionTimeoutMs * (timeouts + random())
  }

  /** Starts the timer again. */
  restartTimer(timeouts = 1): void {
    this.#deadlineMs = this.#drawDeadline(timeouts)
    this.#isDeadlineMoved = false
    this.#isHurried = false
  }

  /** The connection to a peer broke (invariant 8). */
  onUnreachable(peer: NodeId): void {
    const { role, leader, options } = this.#state
    if (leader === peer) this.#promiseMs = options.electionTimeoutMs
    // Told again and again, it must not draw until the time is short.
    if (role !== 'follower' || leader !== peer || this.#isHurried || !this.#state.isVoter) return
    this.#isHurried = true
    const { heartbeatIntervalMs, electionTimeoutMs, random } = options
    const waitMs = electionTimeoutMs + (this.#turnAfter(peer) + random() / 2) * heartbeatIntervalMs
    // Also when that is later than the time drawn before: whose turn it is must not be a matter of chance.
    this.#deadlineMs = this.#heardMs + Math.min(waitMs, 2 * electionTimeoutMs)
  }

  /** How many voters go before this one when the leader is gone: all know it at the same time, and would otherwise campaign against each other. */
  #turnAfter(leader: NodeId): number {
    const { configuration, id, term } = this.#state
    const others = votersOf(configuration)
      .filter((voter) => voter !== leader)
      .sort()
    return (others.indexOf(id) + term) % others.length
  }

  /** The leader of the present term sent something. */
  leaderHeard(isResting = false): void {
    this.#heardMs = this.#state.nowMs
    this.#heardFrom = this.#state.leader
    this.#promiseMs = isResting ? restPromiseMs(this.#state.options) : this.#state.options.electionTimeoutMs
    this.restartTimer(isResting ? restTimeoutFactor : 1)
  }

  /** Time passed on a replica that does not lead. */
  tick(): void {
    const state = this.#state
    const { heartbeatIntervalMs } = state.options
    if (state.nowMs >= this.#deadlineMs + heartbeatIntervalMs && !this.#isDeadlineMoved) {
      this.#deadlineMs = state.nowMs + heartbeatIntervalMs
      this.#isDeadlineMoved = true
    } else if (state.nowMs >= this.#deadlineMs) this.#timeout()
    else if (state.role !== 'follower' && state.nowMs >= this.#askAgainAtMs) this.#ask()
  }

  #timeout(): void {
    const state = this.#state
    this.restartTimer()
    state.leader = null
    if (!state.mayLead || state.isDiskStalled) {
      state.role = 'follower'
      return
    }
    this.#begin('pre-candidate')
    this.#granted.add(state.id)
    if (this.#won()) this.#campaign(false)
    else this.#ask()
  }

  /** The leader hands over to this replica: campaigns at once, without a pre-vote (thesis §3.10). */
  campaignForTransfer(): void {
    this.#state.leader = null
    this.#campaign(true)
  }

  #begin(role: 'pre-candidate' | 'candidate'): void {
    this.#state.role = role
    this.#sequence++
    this.#granted.clear()
  }

  #campaign(isForTransfer: boolean): void {
    const state = this.#state
    state.enterTerm(state.term + 1, state.id)
    this.#isForTransfer = isForTransfer
    this.#begin('candidate')
    this.restartTimer()
    state.outbox.afterPersist({ type: 'vote-reply', from: state.id, to: state.id, term: state.term, granted: true, sequence: this.#sequence })
    this.#ask()
  }

  /** Asks every other voter that has not granted yet. Repeated each heartbeat interval: one lost message does not cost an election timeout. */
  #ask(): void {
    const { id, term, log, outbox, role, configuration, nowMs, options } = this.#state
    this.#askAgainAtMs = nowMs + options.heartbeatIntervalMs
    for (const to of votersOf(configuration)) {
      if (to === id || this.#granted.has(to)) continue
      const question = { from: id, to, lastIndex: log.lastIndex, lastTerm: log.lastTerm, sequence: this.#sequence }
      if (role === 'candidate') this.#state.sendOnceDurable({ type: 'vote-request', term, ...question, transfer: this.#isForTransfer })
      else outbox.now({ type: 'pre-vote-request', term: term + 1, ...question })
    }
  }

  #won(): boolean {
    return hasQuorum(this.#state.configuration, (voter) => this.#granted.has(voter))
  }

  /** Whether a live leader stands against this candidate (invariant 3). */
  isLeaderAlive(candidate: NodeId): boolean {
    const { role, nowMs } = this.#state
    if (role === 'leader') return true
    return this.#heardFrom !== candidate && nowMs - this.#heardMs < this.#promiseMs
  }

  #isUpToDate(lastTerm: number, lastIndex: number): boolean {
    const { log } = this.#state
    return lastTerm > log.lastTerm || (lastTerm === log.lastTerm && lastIndex >= log.lastIndex)
  }

  onPreVoteRequest(message: PreVoteRequest): void {
    const state = this.#state
    if (this.isLeaderAlive(message.from)) return
    const granted = message.term > state.term && this.#isUpToDate(message.lastTerm, message.lastIndex)
    // A refusal carries this replica's own term, so that a candidate that is behind catches up (hazard D3.23, openraft#1796).
    const term = granted ? message.term : state.term
    state.sendWithTerm({ type: 'pre-vote-reply', from: state.id, to: message.from, term, granted, sequence: message.sequence })
  }

  onPreVoteReply(message: PreVoteReply): void {
    const state = this.#state
    if (state.role !== 'pre-candidate' || message.sequence !== this.#sequence || !message.granted || message.term !== state.term + 1) return
    this.#granted.add(message.from)
    if (this.#won()) this.#campaign(false)
  }

  /** A vote asked for in the present term: later ones were entered before, earlier ones refused. */
  onVoteRequest(message: VoteRequest): void {
    const state = this.#state
    // The term may have been entered by another message than this one: what was promised to the leader of an earlier term is not over by that.
    const isBound = !message.transfer && this.isLeaderAlive(message.from)
    const isFree = state.vote === message.from || (state.vote === null && state.leader === null && !isBound)
    const granted = isFree && this.#isUpToDate(message.lastTerm, message.lastIndex)
    // Asked again, it says the same again, and that is all: the candidate may have won or lost since.
    if (granted && state.vote === null) {
      state.castVote(message.from)
      // A campaign of this replica's own, not past its pre-vote, would now only stand against the candidate it chose.
      this.#transitions.becomeFollower(state.term, null)
      this.restartTimer()
    }
    if (state.role === 'candidate' && this.#outranks(message)) {
      const { heartbeatIntervalMs, random } = state.options
      // Others have this long to decide for one of the two.
      this.#deadlineMs = Math.min(this.#deadlineMs, state.nowMs + heartbeatIntervalMs * (1 + random()))
    }
    this.#replyToVote(message, granted)
  }

  /** Of two candidates in one term, whether this one is to try again first (invariant 8). */
  #outranks({ from, lastTerm, lastIndex }: VoteRequest): boolean {
    const { log, id } = this.#state
    if (!this.#isUpToDate(lastTerm, lastIndex)) return true
    return lastTerm === log.lastTerm && lastIndex === log.lastIndex && id > from
  }

  refuseVote(message: VoteRequest): void {
    this.#replyToVote(message, false)
  }

  #replyToVote(message: VoteRequest, granted: boolean): void {
    const { id, term } = this.#state
    this.#state.sendOnceDurable({ type: 'vote-reply', from: id, to: message.from, term, granted, sequence: message.sequence })
  }

  /** A reply of the present term. */
  onVoteReply(message: VoteReply): void {
    if (this.#state.role !== 'candidate' || message.sequence !== this.#sequence || !message.granted) return
    this.#granted.add(message.from)
    if (this.#won()) this.#transitions.becomeLeader()
  }
}
