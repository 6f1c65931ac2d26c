/**
 * The vocabulary between the pure consensus core (RaftCore) and its host: messages, inputs, outputs.
 *
 * Rules of this boundary:
 * 1. The core is synchronous and has no clock, timer, I/O, promise or randomness of its own: time enters as `tick`, chance as `options.random`.
 * 2. Output goes to one of two lists that are apart by type: what may leave at once, and what is only true once the persist
 *    work up to the same drain is durable. Votes, append acknowledgements and the leader's acknowledgement to itself exist only in the second.
 * 3. The host writes persist work in the order of its sequence numbers and reports each by `persisted`.
 * 4. The core never reads a command's data; of entries it reads those that hold a configuration.
 */

/** A member's stable id, as configurations name it. (What it is made of, a node's id and perhaps the life of its replica, is not the core's business.) */
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

/** Who takes part. Without voters: a replica that was made to join a group, and has not been told yet who is in it. */
export interface Configuration {
  readonly voters: readonly NodeId[]
  /** Are sent the log and count in no quorum. While a joint configuration is in force, an outgoing voter may already stand here. */
  readonly learners: readonly NodeId[]
  /** The voters before the change while a joint configuration is in force; empty otherwise. */
  readonly votersOutgoing: readonly NodeId[]
}

/** A configuration and the entry that holds it; the first one of a log may stand for the snapshot's index, or for 0: whom the group began with. */
export interface ConfigurationRecord {
  readonly index: number
  readonly configuration: Configuration
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
  /** The leader itself asked for this campaign (`timeout-now`): that it was heard lately stands not against it. */
  readonly transfer: boolean
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
  /** There is nothing to do, and the next heartbeat comes later than usual (`rest.ts`). Absent: it does not. */
  readonly isResting?: true
}

export interface HeartbeatReply extends Envelope {
  readonly type: 'heartbeat-reply'
  readonly round: number
}

/**
 * From a leader to a follower whose next entry is compacted away: it needs a snapshot. Repeated each heartbeat interval, and answered by an append reply, accepted
 * with `snapshotIndex` as match index, once the receiver holds that index.
 */
export interface SnapshotOffer extends Envelope {
  readonly type: 'snapshot-offer'
  /** Where the sender's log starts: the snapshot to fetch reaches at least this index. */
  readonly snapshotIndex: number
  readonly snapshotTerm: number
  /** As those of append requests, and in one row with them. */
  readonly session: number
  readonly sequence: number
}

/** From a leader that hands over: campaign now (thesis §3.10). Obeyed by a voter that follows this leader in this term. */
export interface TimeoutNow extends Envelope {
  readonly type: 'timeout-now'
}

/** What may leave at once. */
export type MessageNow = PreVoteRequest | PreVoteReply | AppendRequest | Heartbeat | HeartbeatReply | SnapshotOffer | TimeoutNow
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
  /**
   * Asks for an index that a linearizable read must wait for to be applied. Comes back in `reads` or `rejected`. With `lease` it is answered without asking others while
   * this leader's lease holds, which trusts clocks to run alike; step a tick right before it.
   */
  | { readonly type: 'read'; readonly id: number; readonly lease?: boolean }
  /** Asks a leader to make these the members. Comes back in `configured`, when that configuration is committed and no other is in force, or in `rejected`. */
  | { readonly type: 'configure'; readonly id: number; readonly voters: readonly NodeId[]; readonly learners: readonly NodeId[] }
  /** Asks a leader to hand over to a voter; null leaves the choice. Comes back in `transferred`, when that one is known to lead, or in `rejected`. */
  | { readonly type: 'transfer'; readonly id: number; readonly to: NodeId | null }
  /** The persist work of this sequence, and all before it, is durable. */
  | { readonly type: 'persisted'; readonly sequence: number }
  /** The state machine has applied up to this index. */
  | { readonly type: 'applied'; readonly index: number }
  /** Entries that `fetch` asked for, consecutive from its `firstIndex`, as the log store holds them. The core validates them against its own terms. */
  | { readonly type: 'fetched'; readonly peer: NodeId; readonly entries: readonly Entry[] }
  /** The log store no longer holds entries up to this index, which is applied and durable. */
  | { readonly type: 'compacted'; readonly index: number }
  /** The state machine was replaced by a snapshot that reaches this index, beyond what was applied; the configuration is the one in force there. */
  | { readonly type: 'restored'; readonly index: number; readonly term: number; readonly configuration: Configuration }
  /** The transport lost its connection to a peer: only a hint. A follower whose leader it is waits for it no longer than it promised to. */
  | { readonly type: 'unreachable'; readonly peer: NodeId }

/** The log starts anew right after an index. */
export interface LogReset {
  readonly index: number
  readonly term: number
  /** The one in force at `index`. */
  readonly configuration: Configuration
  /** Whether entries beyond `index` that the store holds stay: it holds an entry of `term` there. Else all that it holds is void. */
  readonly keepsLater: boolean
}

/** What must be written, in one atomic write: reset, then truncate, then append, with the hard state. */
export interface PersistWork {
  readonly sequence: number
  /** Present when it changed. */
  readonly hardState: HardState | null
  /** The log now starts after `reset.index`; `truncateFrom` and `entries` come after that. Null when it goes on where it was. */
  readonly reset: LogReset | null
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

/**
 * Why there will be no answer. `overloaded`: too much waits, or it waited too long; `busy`: another change of members, or transfer, is under way, or the term's first entry is not
 * committed yet; `invalid`: no configuration or no voter to hand over to; `lost`: leadership was lost, it may still come true;
 * `timeout`: the other one did not take over; `transferring`: this leader is handing over.
 */
export type RejectReason = 'not-leader' | 'overloaded' | 'busy' | 'invalid' | 'lost' | 'timeout' | 'transferring'

/** How a leader sends to a follower: asking where the logs agree, ahead of acknowledgements, or waiting for it to hold a snapshot. */
export type ProgressState = 'probe' | 'replicate' | 'snapshot'

/** What a leader believes of another member. */
export interface PeerProgress {
  readonly peer: NodeId
  /** The follower's log agrees up to here. */
  readonly matchIndex: number
  readonly nextIndex: number
  readonly state: ProgressState
  /** Whether it was heard within an election timeout. */
  readonly isActive: boolean
}

/** A snapshot that this replica needs, and who offered it. Repeated while it is needed; what reaches at least `index` will do, from any member. */
export interface InstallRequest {
  readonly from: NodeId
  readonly index: number
  readonly term: number
}

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
  configured: { readonly id: number }[]
  transferred: { readonly id: number }[]
  install: InstallRequest | null
}

export interface RaftOptions {
  readonly id: NodeId
  /** The one in force at `snapshotIndex`, then those that entries after it hold, in ascending order. */
  readonly configurations: readonly ConfigurationRecord[]
  /** What the log store holds; `{ term: 0, vote: null }`, no runs and index 0 for a new replica. */
  readonly hardState: HardState
  readonly terms: readonly TermRun[]
  readonly lastIndex: number
  /** The log starts right after this index: entries up to it are compacted away, or were never here. 0 for a whole log. */
  readonly snapshotIndex: number
  readonly snapshotTerm: number
  /** Known to be committed, because it is applied in the state store. */
  readonly commitIndex: number
  readonly nowMs: number
  /** A follower campaigns when it heard no leader for a time drawn from [electionTimeoutMs, 2 * electionTimeoutMs). */
  readonly electionTimeoutMs: number
  readonly heartbeatIntervalMs: number
  /** A leader that had nothing to do for so many heartbeats rests (`rest.ts`): only for hosts that notice the death of a node. Absent: never. */
  readonly restAfterHeartbeats?: number
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
  /** Whether this leader is handing over, and takes no proposals meanwhile. */
  readonly isTransferring: boolean
  readonly commitIndex: number
  readonly lastIndex: number
  /** The first index that the log still holds; the last index + 1 when it is empty. */
  readonly firstIndex: number
  /** The configuration in force: the last one in the log, committed or not. */
  readonly configuration: Configuration
  /** The configuration in force at an index from `firstIndex` - 1 to the last; undefined for others. */
  configurationAt(index: number): Configuration | undefined
  /** What a leader believes of each other member; empty on others. */
  progress(): readonly PeerProgress[]
  status(): RaftStatus
  /** The term of the entry at an index, the one before the first included; undefined when compacted away or beyond the last. Always synchronous. */
  termAt(index: number): number | undefined
  /** Entries [firstIndex, lastIndex] held in memory, up to `maxBytes` (at least one). Empty when `firstIndex` is no longer in memory. */
  entries(firstIndex: number, lastIndex: number, maxBytes: number): readonly Entry[]
  /** When the next tick is useful, in the monotonic milliseconds of `tick`: the host need not wake earlier. */
  readonly nextTickMs: number
}
