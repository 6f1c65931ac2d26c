/**
 * Known bugs inside the core, of what came with snapshots, membership, transfer and leases: each replaces a line of the compiled core (`patched-core.ts`).
 *
 * Numbers in the descriptions are rows of the hazards catalogue.
 */
import type { Consensus, RaftOptions } from '../../raft/types.js'
import type { Mutation } from './mutations.js'
import { loadPatchedCore, type Patch } from './patched-core.js'
import { drawLateSnapshots } from './plan.js'
import { soundParts } from './simulation.js'

function patched(name: string, description: string, ...patches: Patch[]): Mutation {
  let createCore: ((options: RaftOptions) => Consensus) | undefined
  return {
    name,
    description,
    parts: () => {
      createCore ??= loadPatchedCore(patches)
      return { ...soundParts, createCore }
    },
  }
}

/** All of them. */
export const coreMutations: readonly Mutation[] = [
  patched('learner-counted', 'Learners count as voters (D4.35, D5.43)', {
    file: 'quorum',
    find: 'majorityValue(configuration.voters, numberOf)',
    replace: 'majorityValue([...configuration.voters, ...configuration.learners], numberOf)',
  }),
  patched('outgoing-voters-ignored', 'While a joint configuration is in force only the incoming majority counts (D2.15)', {
    file: 'quorum',
    find: 'if (configuration.votersOutgoing.length === 0)',
    replace: 'if (true)',
  }),
  patched('stale-joint-configuration', 'The configuration that a restart or a snapshot brings is taken without those that follow it (D5.41)', {
    file: 'configurations',
    find: 'this.#records = records.map(',
    replace: 'this.#records = records.slice(0, 1).map(',
  }),
  patched('configuration-at-commit', 'A configuration is in force only when it is committed (D5.40)', {
    file: 'state',
    find: 'return this.configurations.current;',
    replace: 'return this.configurations.at(this.commitIndex);',
  }),
  patched('configuration-not-rolled-back', 'A configuration stays in force when its entry is truncated (D5.42)', {
    file: 'state',
    find: 'this.configurations.truncated(fromIndex);',
    replace: '',
  }),
  patched('configuration-survives-snapshot', 'The configuration known before stays in force when a snapshot replaces the log (D5.42)', {
    file: 'core',
    find: 'configurations.restored(index, configuration, isKept);',
    replace: '',
  }),
  patched('second-change-before-first', 'A second change of members begins before the first is committed (D5.39)', {
    file: 'membership',
    find: 'configurations.currentIndex <= commitIndex && configurations.current.votersOutgoing.length === 0 && this.#leader.ownTermCommitted',
    replace: 'configurations.current.votersOutgoing.length === 0 && this.#leader.ownTermCommitted',
  }),
  patched('change-before-own-commit', 'A change of members begins before the leader has committed in its term (D5.39)', {
    file: 'membership',
    find: 'configurations.current.votersOutgoing.length === 0 && this.#leader.ownTermCommitted',
    replace: 'configurations.current.votersOutgoing.length === 0',
  }),
  patched('no-joint-configuration', 'The voters are replaced in one step (D5.39)', {
    file: 'membership',
    find: 'isSameVoters ? target :',
    replace: 'true ? target :',
  }),
  patched('joint-left-by-nobody-else', 'Only the leader who entered a joint configuration leaves it (D5.41)', {
    file: 'membership',
    find: 'if (current.votersOutgoing.length > 0) {',
    replace: 'if (current.votersOutgoing.length > 0) { if (this.#requestId === null) return;',
  }),
  patched('joint-left-before-commit', 'The joint configuration is left before it is committed (D5.39)', {
    file: 'membership',
    find: 'if (configurations.currentIndex > commitIndex || !this.#leader.ownTermCommitted)',
    replace: 'if (!this.#leader.ownTermCommitted)',
  }),
  patched('removed-leader-counts-itself', 'A leader that is no voter counts itself (D5.44)', {
    file: 'commit',
    find: 'quorumValue(state.configuration, matchIndexOf)',
    replace: 'quorumValue({ ...state.configuration, voters: [...new Set([...state.configuration.voters, state.id])] }, matchIndexOf)',
  }),
  patched('non-voter-campaigns', 'Whoever is no voter, or no more, campaigns (D3.26)', {
    file: 'election',
    find: 'if (!state.mayLead || state.isDiskStalled)',
    replace: 'if (state.isDiskStalled)',
  }),
  patched('removed-by-own-entry-gives-up', 'A leader whose removal is in its own log alone never campaigns again (D5.40)', {
    file: 'election',
    find: 'if (!state.mayLead || state.isDiskStalled)',
    replace: 'if (!state.isVoter || state.isDiskStalled)',
  }),
  patched('timeout-now-obeyed-by-removed', 'A replica that was removed obeys a late timeout-now (D3.26)', {
    file: 'transfer',
    find: 'leader !== message.from || !isOwnVoter ||',
    replace: 'leader !== message.from ||',
  }),
  {
    ...patched('campaigns-on-after-removal', 'A campaign goes on although a snapshot says that the candidate was removed (D3.26)', {
      file: 'core',
      find: `role !== 'follower' && !mayLead`,
      replace: 'false',
    }),
    plan: drawLateSnapshots,
  },
  patched('snapshot-keeps-conflicting-log', 'What follows a snapshot stays in the log though it follows on another entry (D6.47)', {
    file: 'log',
    find: 'if (this.termAt(index) === term) {',
    replace: 'if (this.termAt(index) !== undefined) {',
  }),
  patched('snapshot-drops-log', 'A snapshot drops the entries that follow on it (D6.47)', {
    file: 'log',
    find: 'if (this.termAt(index) === term) {',
    replace: 'if (false) {',
  }),
  patched('missing-term-matches', 'The term of an entry that was compacted away matches anything (D2.18)', {
    file: 'following',
    find: 'const agrees = previousIndex < log.snapshotIndex || ownTerm === message.previousTerm;',
    replace: 'const agrees = previousIndex < log.snapshotIndex || ownTerm === undefined || ownTerm === message.previousTerm;',
  }),
  patched('snapshot-acknowledged-at-once', 'A follower acknowledges a snapshot when it is offered (D6.50)', {
    file: 'following',
    find: 'if (isHeld)',
    replace: 'if (true)',
  }),
  patched('snapshot-never-offered-again', 'A follower that needs a snapshot is offered it once (D6.49)', {
    file: 'replication',
    find: `case 'snapshot':
                return !progress.probeSent;`,
    replace: `case 'snapshot':
                return false;`,
  }),
  patched('lease-from-acknowledgement', 'The lease is measured from when a round was answered (D4.36)', {
    file: 'replication',
    find: 'return this.#lease.holds(this.#roundOf);',
    replace: `const { configuration, id, nowMs, options } = this.#state;
        return hasQuorum(configuration, (voter) => voter === id || nowMs - (this.#peers.get(voter)?.lastHeardMs ?? -Infinity) < 0.75 * options.electionTimeoutMs);`,
  }),
  patched('lease-too-long', 'The lease lasts longer than followers promise (D4.36)', {
    file: 'lease',
    find: 'const leaseShare = 0.75;',
    replace: 'const leaseShare = 2;',
  }),
  patched('lease-kept-in-transfer', 'The lease holds although another was told to campaign (D4.36)', {
    file: 'core',
    find: '!this.#transfer.isLeaseVoid &&',
    replace: '',
  }),
  patched('lease-before-own-commit', 'The lease answers reads before an entry of the term is committed (D4.33)', {
    file: 'core',
    find: `role === 'leader' && this.#commit.ownTermCommitted &&`,
    replace: `role === 'leader' &&`,
  }),
  patched('vote-right-after-restart', 'A restart forgets that a leader was heard, whose lease still holds (D4.36)', {
    file: 'election',
    find: 'state.term > 0 && !state.isAlone ? state.nowMs : Number.NEGATIVE_INFINITY',
    replace: 'Number.NEGATIVE_INFINITY',
  }),
  patched('transfer-never-answered', 'A transfer that fails is given up without telling who asked for it (D7.56)', {
    file: 'transfer',
    find: `this.#end('timeout');`,
    replace: 'this.#handover = null;',
  }),
]
