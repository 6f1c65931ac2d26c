/** What a simulated replica needs from its surroundings, and how its host behaves. */
import type { Consensus, Entry, Message, NodeId, RaftOptions } from '../../raft/types.js'
import type { SeededRandom } from '../seeded-random.js'
import type { EventQueue } from './event-queue.js'
import type { InvariantChecker } from './invariants.js'
import type { SimulatedReplica } from './replica.js'

/** The options of a core that do not depend on the replica. */
export type CoreLimits = Pick<
  RaftOptions,
  'electionTimeoutMs' | 'heartbeatIntervalMs' | 'restAfterHeartbeats' | 'maxInflightBytes' | 'maxAppendBytes' | 'maxTailBytes' | 'maxUncommittedBytes'
>

/** How a host behaves; drawn per run. */
export interface HostModel {
  readonly limits: CoreLimits
  /** Inputs wait this long to be drained together; 0 drains after each. */
  readonly cycleDelayUs: number
  /** Mean time between commit and apply. */
  readonly applyDelayUs: number
  /** Bytes of entries applied in one slice. */
  readonly applySliceBytes: number
  /** What a crash takes from the state machine, which is flushed in the background: nothing, the latest entries, or all. */
  readonly losesState: 'never' | 'some' | 'all'
  /** Whether each work of a write is reported by a `persisted` of its own. */
  readonly reportsEachWork: boolean
  /** The log is compacted when it holds this many applied entries; 0 for never. */
  readonly compactEntries: number
  /** How many applied entries a compaction leaves. */
  readonly compactKeeps: number
  /** Mean time that a snapshot takes from its capture to its install. */
  readonly snapshotUs: number
  /** Probability of a crash right after a step that changed role or term. */
  readonly crashAtChange: number
  /** Probability that a leader which appends a configuration dies before anybody but its disk hears of it. */
  readonly crashAtConfiguration: number
  /** Probability of a crash while a truncation is on its way to the disk. */
  readonly crashAtTruncation: number
}

/** How a proposal ended that was not acknowledged: not taken, replaced by another entry, or nobody knows. */
export type FailedOutcome = 'refused' | 'lost' | 'unknown'
export type ReadOutcome = 'confirmed' | 'refused' | 'unknown'

/** What a replica needs from its surroundings. */
export interface ReplicaEnvironment {
  readonly queue: EventQueue
  readonly checker: InvariantChecker
  /** Another replica, to fetch a snapshot from; undefined for a stranger. */
  replica(id: NodeId): SimulatedReplica | undefined
  anyone(random: SeededRandom): SimulatedReplica
  createCore(options: RaftOptions): Consensus
  /** A random stream of this run. */
  stream(name: string): SeededRandom
  transmit(message: Message): void
  count(fault: string): void
  reach(state: string): void
  /** Records an event in the trace; `detail` is only called when somebody reads it. */
  trace(id: NodeId, event: string, a: number, b: number, detail: () => string): void
  proposalAccepted(replica: SimulatedReplica, commandId: number, index: number, term: number): void
  /** The proposal will not be acknowledged. */
  proposalEnded(replica: SimulatedReplica, commandId: number, outcome: FailedOutcome): void
  acknowledged(replica: SimulatedReplica, commandId: number, index: number): void
  readEnded(replica: SimulatedReplica, readId: number, outcome: ReadOutcome, index: number): void
  applied(replica: SimulatedReplica, entry: Entry): void
}
