/**
 * ServedReplica: what KvService needs of the replica behind a group: somewhere to propose, and state to read. A Raft group's member is one (replica.ts); the local engine, which
 * has neither log nor peers, is the other (local-replica.ts). No code but types.
 */
import type { CorruptionError } from '../base/errors.js'
import type { CommandResult } from './command.js'
import type { KvMachine } from './kv-machine.js'

/** Why a proposal or read got no result. `lost`: it may still take effect; all others: it certainly does not. */
export type Refusal = 'not-leader' | 'overloaded' | 'lost' | 'stopped'
export type WriteReply = (results: readonly CommandResult[] | null, refusal: Refusal | null) => void
export type ReadReply = (refusal: Refusal | null) => void

export interface ServedReplica {
  readonly group: number
  readonly machine: KvMachine
  /** How far the state was applied that a read sees now. */
  readonly appliedIndex: number
  /** It serves nothing any more. */
  readonly stopped: boolean
  readonly isLeader: boolean
  /** The node to ask instead of this one; empty when it is not known or is this very one. */
  readonly leaderNode: string
  /** Its term as a leader, or that of whom it follows. */
  readonly term: number
  /** The log time that an entry proposed now is to be stamped with. For a leader only. */
  logTimeMs(): number
  /** Proposes an entry, stamped already. The reply comes once, when they are applied and durable. */
  propose(data: Uint8Array, reply: WriteReply): void
  /** Calls back once, when the state reflects every write acknowledged before this call; `lease`: trusting clocks to run alike. */
  awaitReadable(reply: ReadReply, lease?: boolean): void
  /** Calls back once, when there is a state that a stale read may see. */
  awaitAny(reply: ReadReply): void
  /** Reading the state has found it damaged: the replica must stop. */
  damaged(error: CorruptionError): void
}

/** Finds the replicas of a node. */
export interface ReplicaSource {
  replica(group: number): ServedReplica | undefined
}
