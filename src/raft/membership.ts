/**
 * Owns how a leader changes who takes part: one change at a time, voters through a joint configuration (Raft paper §6, thesis §4.3), learners alone by one entry.
 *
 * 1. A change begins only when the configuration in force is committed and no joint one, and after an entry of the leader's own term is committed (hazard D5.39: Ongaro's note of 2015 on
 * single-server changes). So at most one uncommitted configuration is in any leader's log beyond its own.
 * 2. Whoever leads leaves a joint configuration, once it is committed and so is an entry of the leader's own term: who began the change, or its successor (hazard D5.41). It is left
 * once: by then the configuration in force is no joint one.
 * 3. A configuration is in force on append, here and everywhere (`configurations.ts`); members that it does not name are sent nothing any more.
 * 4. A leader that the configuration in force does not name as a voter counts in no quorum (hazard D5.44). Once that configuration is committed it hands over, and steps
 * down whether that succeeds or not.
 * 5. Every request ends: `configured` when its configuration is committed and no other in force, or rejected: at once, or `lost` when leadership ends.
 */
import { encodeConfiguration } from './message-codec.js'
import { isVoter, sameMembers } from './quorum.js'
import type { ReplicaState } from './state.js'
import { type Configuration, EntryKind, type NodeId } from './types.js'

/** What a change of members asks of the leader. */
export interface MembershipLeader {
  appendOwn(kind: EntryKind, data: Uint8Array): void
  /** Whether an entry of the leader's own term is committed. */
  readonly ownTermCommitted: boolean
  /** Whether the leader is handing over. */
  readonly isTransferring: boolean
  /** This replica is no voter any more, and that is committed. */
  leaveOffice(): void
}

export class Membership {
  readonly #state: ReplicaState
  readonly #leader: MembershipLeader
  /** The request under way, whose configuration is in the log. */
  #requestId: number | null = null
  #isLeavingOffice = false

  constructor(state: ReplicaState, leader: MembershipLeader) {
    this.#state = state
    this.#leader = leader
  }

  /** Begins a change towards these members. */
  configure(id: number, voters: readonly NodeId[], learners: readonly NodeId[]): void {
    const { role, outbox, configurations } = this.#state
    const target: Configuration = { voters, learners, votersOutgoing: [] }
    const current = configurations.current
    if (role !== 'leader') outbox.rejected(id, 'not-leader')
    else if (!isPossible(target)) outbox.rejected(id, 'invalid')
    else if (this.#leader.isTransferring) outbox.rejected(id, 'transferring')
    else if (!this.#isSettled) outbox.rejected(id, 'busy')
    else if (sameMembers(current, target)) outbox.configured(id)
    else {
      this.#requestId = id
      const isSameVoters = sameMembers({ ...current, learners: [] }, { ...target, learners: [] })
      this.#append(isSameVoters ? target : { ...target, votersOutgoing: current.voters })
    }
  }

  get #isSettled(): boolean {
    const { configurations, commitIndex } = this.#state
    return configurations.currentIndex <= commitIndex && configurations.current.votersOutgoing.length === 0 && this.#leader.ownTermCommitted
  }

  #append(configuration: Configuration): void {
    this.#leader.appendOwn(EntryKind.configuration, encodeConfiguration(configuration))
  }

  /** The commit index rose on a leader. */
  committed(): void {
    const { configurations, commitIndex, id, outbox } = this.#state
    if (configurations.currentIndex > commitIndex || !this.#leader.ownTermCommitted) return
    const { current } = configurations
    if (current.votersOutgoing.length > 0) {
      this.#append({ ...current, votersOutgoing: [] })
      return
    }
    if (this.#requestId !== null) outbox.configured(this.#requestId)
    this.#requestId = null
    if (isVoter(current, id) || this.#isLeavingOffice) return
    this.#isLeavingOffice = true
    this.#leader.leaveOffice()
  }

  /** Leadership ended. */
  stopLeading(): void {
    if (this.#requestId !== null) this.#state.outbox.rejected(this.#requestId, 'lost')
    this.#requestId = null
    this.#isLeavingOffice = false
  }
}

/** Whether a group can go on with these members: it has voters, and nobody stands twice. */
function isPossible({ voters, learners }: Configuration): boolean {
  const all = [...voters, ...learners]
  return voters.length > 0 && new Set(all).size === all.length && !all.includes('')
}
