/**
 * Placement: what a group's members should be next, from what they are, what the map wants, and which of them are ready. A pure function: every leader that looks at the same facts
 * comes to the same answer, so a change that one leader left half done is gone on with by the next.
 *
 * Invariants:
 * 1. Nobody becomes a voter but a learner that has caught up (hazard D5.43).
 * 2. As long as a wanted node is not ready, a voter that is not wanted, or an earlier life of a wanted node, stays in its place: a group does not get fewer voters on the way.
 * 3. No change leaves fewer living voters than a majority of the new ones: it could not be committed, or the group could not go on after it.
 * 4. Of one node at most one life is a voter afterwards, and what is not wanted and not needed goes in the same change that brings its successor.
 */
import { nodeOf } from '../engine/identity.js'
import type { Configuration, NodeId } from '../raft/types.js'

export interface GroupFacts {
  /** In force and not a joint one. */
  readonly configuration: Configuration
  /** The nodes that should hold the group. */
  readonly wanted: readonly NodeId[]
  /** The members that live on wanted nodes, as the nodes have said; none for a node that has not been asked. */
  readonly lives: ReadonlyMap<NodeId, NodeId>
  /** Whether a learner has all that a voter needs. */
  readonly isCaughtUp: (member: NodeId) => boolean
  /** Whether a member was heard lately. The leader itself is. */
  readonly isActive: (member: NodeId) => boolean
}

export interface Membership {
  readonly voters: readonly NodeId[]
  readonly learners: readonly NodeId[]
}

/** The members that the group should have next; null when they are what they should be, or nothing can be done now. */
export function nextMembers(facts: GroupFacts): Membership | null {
  const { configuration, wanted, isCaughtUp, isActive } = facts
  const { voters, learners } = configuration
  const memberOn = (node: NodeId) => {
    const said = facts.lives.get(node)
    if (said !== undefined) return said
    return voters.find((member) => nodeOf(member) === node) ?? learners.find((member) => nodeOf(member) === node)
  }
  const places = wanted.map(memberOn).filter((member) => member !== undefined)
  const ready = places.filter((member) => voters.includes(member) || (learners.includes(member) && isActive(member) && isCaughtUp(member)))
  const missing = wanted.length - ready.length
  const isTaken = (node: NodeId) => ready.some((member) => nodeOf(member) === node)
  const spare = voters.filter((voter) => !isTaken(nodeOf(voter))).sort((left, right) => Number(isActive(right)) - Number(isActive(left)))
  let nextVoters = [...ready, ...spare.slice(0, missing)].sort()
  const living = nextVoters.filter(isActive).length
  if (living * 2 <= nextVoters.length) nextVoters = [...voters].sort()
  const nextLearners = places.filter((member) => !nextVoters.includes(member)).sort()
  const isSame = isSameSet(nextVoters, voters) && isSameSet(nextLearners, learners)
  return isSame ? null : { voters: nextVoters, learners: nextLearners }
}

function isSameSet(left: readonly NodeId[], right: readonly NodeId[]): boolean {
  return left.length === right.length && left.every((member) => right.includes(member))
}

/** Whether a group is as it should be: nothing to look at more closely. */
export function isAsWanted({ voters, learners, votersOutgoing }: Configuration, wanted: readonly NodeId[]): boolean {
  if (votersOutgoing.length > 0 || learners.length > 0 || voters.length !== wanted.length) return false
  return wanted.every((node) => voters.some((voter) => nodeOf(voter) === node))
}

/** How far a learner is: it has caught up when it got all that the leader had within one election timeout (Raft thesis §4.2.1), however long the rounds before took. */
export class CatchUp {
  #targetIndex: number
  #startedMs: number
  #isDone = false

  constructor(lastIndex: number, nowMs: number) {
    this.#targetIndex = lastIndex
    this.#startedMs = nowMs
  }

  get isDone(): boolean {
    return this.#isDone
  }

  /** The learner's log agrees up to `matchIndex`; the leader's ends at `lastIndex`. */
  reached(matchIndex: number, lastIndex: number, nowMs: number, roundMs: number): void {
    if (this.#isDone || matchIndex < this.#targetIndex) return
    this.#isDone = nowMs - this.#startedMs <= roundMs || matchIndex === lastIndex
    this.#targetIndex = lastIndex
    this.#startedMs = nowMs
  }

  /** It was not heard for a while: what it had then says nothing. */
  lost(lastIndex: number, nowMs: number): void {
    this.#isDone = false
    this.#targetIndex = lastIndex
    this.#startedMs = nowMs
  }
}
