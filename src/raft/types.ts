/**
 * The vocabulary between the pure consensus core (RaftCore) and its host: messages, inputs, outputs.
 *
 * Rules of this boundary:
 * 1. The core is synchronous and has no clock, timer, I/O, promise or randomness of its own: time enters as `tick`, chance as `options.random`.
 * 2. Output goes to one of two lists that are apart by type: what may leave at once, and what is only true once the persist
 *    work up to the same drain is durable. Votes, append acknowledgements and the leader's acknowledgement to itself exist only in the second.
 * 3. The host writes persist work in the order of its sequence numbers and reports each by `persisted`.
 * 4. The core never reads an entry's data.
 */

/** A node's stable id. */
export type NodeId = string

export const EntryKind = { noop: 0, command: 1, configuration: 2 } as const
export type EntryKind = (typeof EntryKind)[keyof typeof EntryKind]

export interface Entry {
  readonly term: number
  readonly index: number
  readonly kind: EntryKind
  readonly data: Uint8Array
}

export interface HardState {
  readonly term: number
  /** Whom this replica voted for in `term`; null for nobody. */
  readonly vote: NodeId | null
}

/** Who takes part. (Joint configurations come with membership changes: `votersOutgoing` is their place.) */
export interface Configuration {
  readonly voters: readonly NodeId[]
  readonly learners: readonly NodeId[]
  /** The outgoing voters while a joint configuration is in force; empty otherwise. */
  readonly votersOutgoing: readonly NodeId[]
}

/** A run of consecutive entries of one term, from `firstIndex` up to the next run's first index. */
export interface TermRun {
  readonly term: number
  readonly firstIndex: number
}

export type Role = 'follower' | 'pre-candidate' | 'candidate' | 'leader'

interface Envelope {
  readonly from: NodeId
  readonly to: NodeId
  /** The sender's term; for pre-votes the term that it would campaign in. */
  readonly term: number
}

export interface PreVoteRequest extends Envelope {
  readonly type: 'pre-vote-request'
  readonly lastIndex: number
  readonly lastTerm: number
  /** Echoed by the reply, so that a reply to an earlier campaign never counts in a later one. */
  readonly sequence: number
}

/** `term` is the one asked for when it is granted, and the sender's own when not. */
export interface PreVoteReply extends Envelope {
  readonly type: 'pre-vote-reply'
  readonly granted: boolean
  readonly sequence: number
}

export interface VoteRequest extends Envelope {
  readonly type: 'vote-request'
  readonly lastIndex: number
  readonly lastTerm: number
  readonly sequence: number
}

export interface VoteReply extends Envelope {
  readonly type: 'vote-reply'
  readonly granted: boolean
  readonly sequence: number
}

export interface AppendRequest extends Envelope {
  readonly type: 'append-request'
  readonly previousIndex: number
  readonly previousTerm: number
  readonly entries: readonly Entry[]
  readonly commitIndex: number
  /**
   * Raised by the leader whenever it resets how it sends to this follower. A rejection counts only in the current session; an acceptance
   * in every session of this leadership, since what a follower accepted in a term stays accepted while the term lasts.
   */
  readonly session: number
  /** Rises with each request to this follower; echoed by the reply. */
  readonly sequence: number
}

export interface AppendReply extends Envelope {
  readonly type: 'append-reply'
  readonly session: number
  readonly sequence: number
  /** Accepted: the last index known to match the leader's log. Rejected: 0. */
  readonly matchIndex: number
  readonly accepted: boolean
  /** Rejected: the term of the conflicting entry (0: the log is too short) and the first index of that term, or the last index + 1. */
  readonly conflictTerm: number
  readonly conflictIndex: number
}

/** Keeps followers from campaigning, carries the commit index, and asks «am I still leader?» for a round of reads. */
export interface Heartbeat extends Envelope {
  readonly type: 'heartbeat'
  /** At most what this follower is known to hold. */
  readonly commitIndex: number
  /** The leader's own count of rounds, never a caller's id (hazard D4.34). */
  readonly round: number
}

export interface HeartbeatReply extends Envelope {
  readonly type: 'heartbeat-reply'
  readonly round: number
}

/** What may leave at once. */
export type MessageNow = PreVoteRequest | PreVoteReply | AppendRequest | Heartbeat | HeartbeatReply
/**
 * What is only true once this drain's persist work, and all before it, is durable: when this drain has none, it still waits for the earlier ones that are
 * under way. The host delivers those addressed to its own node back to the core, in order and without loss.
 */
export type MessageAfterPersist = VoteRequest | VoteReply | PreVoteReply | AppendReply | HeartbeatReply
export type Message = MessageNow | MessageAfterPersist

export type Input =
  /** Time passed: monotonic milliseconds, never going back. Also stamps all inputs that follow. */
  | { readonly type: 'tick'; readonly nowMs: number }
  | { readonly type: 'message'; readonly message: Message }
  /** Asks to append one command. `id` is the host's own and comes back in `accepted` or `rejected`. */
  | { readonly type: 'propose'; readonly id: number; readonly data: Uint8Array }
  /** Asks for an index that a linearizable read must wait for to be applied. Comes back in `reads` or `rejected`. */
  | { readonly type: 'read'; readonly id: number }
  /** The persist work of this sequence, and all before it, is durable. */
  | { readonly type: 'persisted'; readonly sequence: number }
  /** The state machine has applied up to this index. */
  | { readonly type: 'applied'; readonly index: number }
  /** Entries that `fetch` asked for, consecutive from its `firstIndex`, as the log store holds them. The core validates them against its own terms. */
  | { readonly type: 'fetched'; readonly peer: NodeId; readonly entries: readonly Entry[] }
  /** The transport lost or regained its connection to a peer: only a hint. */
  | { readonly type: 'unreachable'; readonly peer: NodeId }

/** What must be written, in one atomic write: truncate, then append, with the hard state. */
export interface PersistWork {
  readonly sequence: number
  /** Present when it changed. */
  readonly hardState: HardState | null
  /** Entries from this index on are void and replaced by `entries`, whose first index it is; null when nothing is cut. */
  readonly truncateFrom: number | null
  /** Consecutive; may be empty when only the hard state changed. */
  readonly entries: readonly Entry[]
}

export interface FetchRequest {
  readonly peer: NodeId
  readonly firstIndex: number
  readonly lastIndex: number
  readonly maxBytes: number
}

export type RejectReason = 'not-leader' | 'overloaded'

export interface Output {
  sendNow: MessageNow[]
  sendAfterPersist: MessageAfterPersist[]
  persist: PersistWork | null
  /** Proposals taken into the log of this leader at an index of a term; committed when that index commits with that term. */
  accepted: { readonly id: number; readonly index: number; readonly term: number }[]
  rejected: { readonly id: number; readonly reason: RejectReason }[]
  /** Reads whose leadership is confirmed: serve when `index` is applied. */
  reads: { readonly id: number; readonly index: number }[]
  fetch: FetchRequest[]
}

export interface RaftOptions {
  readonly id: NodeId
  readonly configuration: Configuration
  /** What the log store holds; `{ term: 0, vote: null }`, no runs and index 0 for a new replica. */
  readonly hardState: HardState
  readonly terms: readonly TermRun[]
  readonly lastIndex: number
  /** The last index covered by a snapshot; entries up to it may be gone. 0 for none. */
  readonly snapshotIndex: number
  readonly snapshotTerm: number
  /** Known to be committed, because it is applied in the state store. */
  readonly commitIndex: number
  readonly nowMs: number
  /** A follower campaigns when it heard no leader for a time drawn from [electionTimeoutMs, 2 * electionTimeoutMs). */
  readonly electionTimeoutMs: number
  readonly heartbeatIntervalMs: number
  /** Bytes of entries under way to one follower. */
  readonly maxInflightBytes: number
  /** Bytes of entries in one append message; a single larger entry still goes alone. */
  readonly maxAppendBytes: number
  /** Bytes of entries kept in memory. Entries not yet durable or not yet committed are kept beyond it, and unapplied ones up to four times as many. */
  readonly maxTailBytes: number
  /** Bytes of entries that may be in the log uncommitted before proposals are rejected as overloaded. */
  readonly maxUncommittedBytes: number
  /** Uniform in [0, 1). */
  readonly random: () => number
}

/** What the host may ask at any time. */
export interface RaftStatus {
  readonly id: NodeId
  readonly role: Role
  readonly term: number
  readonly leader: NodeId | null
  readonly commitIndex: number
  readonly appliedIndex: number
  readonly lastIndex: number
  /** Entries up to here are in this replica's log on disk. The commit index may be ahead of it. */
  readonly durableIndex: number
  /** Messages ignored because they broke a rule of their form, since this core was made. */
  readonly malformedMessages: number
}

/**
 * The core as its host sees it (`RaftCore` implements it).
 *
 * The host calls `step` with inputs and then `drain` once for all that they produced. Committed entries are pulled: the host applies from its
 * applied index up to `status().commitIndex`, taking entries from `entries()` or, where that returns fewer than asked, from its log store.
 */
export interface Consensus {
  step(input: Input): void
  drain(): Output
  /** True when `drain` would return anything but empty lists. */
  readonly dirty: boolean
  readonly role: Role
  readonly term: number
  readonly leader: NodeId | null
  readonly commitIndex: number
  readonly lastIndex: number
  status(): RaftStatus
  /** The term of the entry at an index; undefined when compacted away or beyond the last. Always synchronous. */
  termAt(index: number): number | undefined
  /** Entries [firstIndex, lastIndex] held in memory, up to `maxBytes` (at least one). Empty when `firstIndex` is no longer in memory. */
  entries(firstIndex: number, lastIndex: number, maxBytes: number): readonly Entry[]
  /** When the next tick is useful, in the monotonic milliseconds of `tick`: the host need not wake earlier. */
  readonly nextTickMs: number
}
