/**
 * Owns the arithmetic of majorities, over anything that each voter has a number of: match indexes, rounds, votes (1 or 0).
 *
 * 1. A majority of n voters is floor(n / 2) + 1 of them. 2. While a joint configuration is in force a quorum is a majority of the incoming
 * and a majority of the outgoing voters (Raft paper §6). 3. Learners and strangers never count. 4. A configuration without voters has no quorum.
 * 5. An id listed twice counts once: `normalizeConfiguration` sees to it.
 */
import { invariant } from './invariant.js'
import type { Configuration, NodeId } from './types.js'

/** Reused between calls: the core is synchronous, and this is on the path of every acknowledgement. */
const scratch: number[] = []

/** The largest number that a majority of these voters reaches; 0 without voters. */
export function majorityValue(voters: readonly NodeId[], numberOf: (voter: NodeId) => number): number {
  const count = voters.length
  if (count === 0) return 0
  // Insertion sort, largest first: groups are small, and nothing is allocated.
  for (let at = 0; at < count; at++) {
    const value = numberOf(voters[at]!)
    let place = at
    while (place > 0 && scratch[place - 1]! < value) {
      scratch[place] = scratch[place - 1]!
      place--
    }
    scratch[place] = value
  }
  return scratch[Math.floor(count / 2)]!
}

/** The largest number that a quorum of the configuration reaches. Numbers are 0 or more. */
export function quorumValue(configuration: Configuration, numberOf: (voter: NodeId) => number): number {
  const incoming = majorityValue(configuration.voters, numberOf)
  if (configuration.votersOutgoing.length === 0) return incoming
  return Math.min(incoming, majorityValue(configuration.votersOutgoing, numberOf))
}

/** Whether the voters for which `holds` is true are a quorum. */
export function hasQuorum(configuration: Configuration, holds: (voter: NodeId) => boolean): boolean {
  return quorumValue(configuration, (voter) => (holds(voter) ? 1 : 0)) === 1
}

/** Whether a node votes in this configuration. */
export function isVoter(configuration: Configuration, id: NodeId): boolean {
  return configuration.voters.includes(id) || configuration.votersOutgoing.includes(id)
}

/** Whether a node takes part in this configuration in any way. */
export function isMember(configuration: Configuration, id: NodeId): boolean {
  return isVoter(configuration, id) || configuration.learners.includes(id)
}

/** Whether two configurations name the same members in the same parts, in whatever order. */
export function sameMembers(one: Configuration, other: Configuration): boolean {
  return (['voters', 'learners', 'votersOutgoing'] as const).every(
    (part) => one[part].length === other[part].length && one[part].every((id) => other[part].includes(id)),
  )
}

/** All members, each once: voters, outgoing voters, learners. */
export function membersOf(configuration: Configuration): NodeId[] {
  return [...new Set([...configuration.voters, ...configuration.votersOutgoing, ...configuration.learners])]
}

/** All who vote, each once. */
export function votersOf(configuration: Configuration): NodeId[] {
  return [...new Set([...configuration.voters, ...configuration.votersOutgoing])]
}

/** A copy with each id once; throws when a node is voter and learner at once. */
export function normalizeConfiguration(configuration: Configuration): Configuration {
  const voters = [...new Set(configuration.voters)]
  const learners = [...new Set(configuration.learners)]
  const votersOutgoing = [...new Set(configuration.votersOutgoing)]
  for (const learner of learners) invariant(!voters.includes(learner), `node ${learner} is voter and learner at once`)
  return { voters, learners, votersOutgoing }
}
