/**
 * What one seed runs: sizes, timers, disk, network, load, and which faults (swarm testing: each class is off with a probability of one half, so that
 * rare combinations get their turn and common faults do not hide others).
 *
 * Invariant: a plan is a function of its seed alone.
 */
import { SeededRandom } from '../seeded-random.js'
import type { DiskModel } from './log-disk.js'
import type { NetworkModel } from './network.js'
import type { HostModel } from './replica-environment.js'

/** Every kind of fault that the injector starts by itself; the network's and the disk's own rates are in their models. */
export const faultKinds = [
  'crash',
  'crash-leader',
  'crash-many',
  'crash-all',
  'crash-in-recovery',
  'pause',
  'pause-leader',
  'split',
  'isolate',
  'isolate-leader',
  'one-way',
  'leader-deaf',
  'leader-mute',
  'bridge',
  'ring',
  'flapping',
  'hold',
  'filter',
  'slow-disk',
  'hung-disk',
  'failing-disk',
  'slow-clock',
  'leader-left-behind',
  'late-answers',
  'restart-voters',
  'unasked-snapshot',
  'hint',
] as const
export type FaultKind = (typeof faultKinds)[number]

export interface SimulationPlan {
  readonly seed: number
  /** Who founds the group. */
  readonly replicas: number
  /** Replicas that are in no configuration until the operator asks for it. */
  readonly spares: number
  /** How long faults go on. */
  readonly faultyUs: number
  readonly host: HostModel
  readonly disk: DiskModel
  readonly network: NetworkModel
  /** Clocks run at rates of 1 ± this while faults go on: far more than real clocks, since no safety may rest on them. */
  readonly clockDrift: number
  /** Mean time between two faults of the injector; infinite for none. */
  readonly faultEveryUs: number
  readonly faults: readonly FaultKind[]
  /** Mean time that a fault lasts. */
  readonly faultLastsUs: number
  readonly clients: number
  /** Mean time between two operations of one client. */
  readonly operationEveryUs: number
  readonly readShare: number
  /** Which share of the reads may be answered by lease. Only where clocks keep the bounds that a lease trusts. */
  readonly leaseShare: number
  /** Mean time between two changes of members that are asked for; 0 for never. */
  readonly membershipEveryUs: number
  readonly transferEveryUs: number
  /** How often a client turns to any replica that believes to lead, and not to whom others take for the leader. */
  readonly toClaimants: number
  readonly maxCommandBytes: number
  /** Operations that a client sends at once. */
  readonly burst: number
}

/** The network once faults have stopped. */
export function calmNetwork(electionTimeoutMs: number): NetworkModel {
  return {
    delayMinUs: 100,
    delayMeanUs: electionTimeoutMs * 10,
    inOrder: false,
    lossRate: 0,
    repeatRate: 0,
    replayRate: 0,
    replayMaxUs: 0,
    stragglerRate: 0,
    stragglerMaxUs: 0,
    lateRepliesOnly: false,
    faultyLinks: 0,
    cutsInFlight: true,
  }
}

/** Draws the plan of a seed. */
export function drawPlan(seed: number): SimulationPlan {
  const random = new SeededRandom(seed, 'plan')
  const steady = drawSteady(seed, random)
  const plan = random.chance(0.4) ? drawStorm(steady, random) : steady
  return withTrustedClocks(plan, random)
}

/** A storm with nothing else in it: for bugs that need many coincidences among leaders alone. */
export function drawBareStorm(seed: number): SimulationPlan {
  const random = new SeededRandom(seed, 'plan')
  return drawStorm(drawSteady(seed, random), random, true)
}

/** A plan full of changes of members, and of snapshots that arrive at any moment, after leaders and members have changed: for bugs that need the two to meet. */
export function drawLateSnapshots(seed: number): SimulationPlan {
  const plan = drawPlan(seed)
  const electionTimeoutUs = plan.host.limits.electionTimeoutMs * 1000
  return {
    ...plan,
    host: { ...plan.host, snapshotUs: electionTimeoutUs * 3 },
    faultEveryUs: Math.min(plan.faultEveryUs, electionTimeoutUs),
    faults: [...plan.faults, ...new Array<FaultKind>(6).fill('unasked-snapshot'), 'leader-mute', 'isolate-leader', 'split'],
    membershipEveryUs: electionTimeoutUs * 3,
  }
}

/** The largest drift at which a lease is safe: (1 - drift) / (1 + drift) stays above its share of the election timeout. */
const leaseDrift = 0.1

/** Leases are only asked for where clocks are sound; in some runs they are made so. */
function withTrustedClocks(plan: SimulationPlan, random: SeededRandom): SimulationPlan {
  if (plan.leaseShare === 0) return plan
  const faults = plan.faults.filter((kind) => kind !== 'slow-clock' && kind !== 'leader-left-behind')
  const electionTimeoutUs = plan.host.limits.electionTimeoutMs * 1000
  const clockDrift = Math.min(plan.clockDrift, leaseDrift)
  if (random.chance(0.4)) {
    return {
      ...plan,
      replicas: 3,
      spares: 0,
      membershipEveryUs: 0,
      transferEveryUs: random.pick([0, electionTimeoutUs * 4]),
      clockDrift,
      faultEveryUs: electionTimeoutUs * 4,
      faults: ['restart-voters', 'late-answers'],
      // A nearly idle group: one whose log falls behind is not elected, however careless the votes.
      readShare: 0.99,
      leaseShare: 1,
      toClaimants: 0.9,
      operationEveryUs: electionTimeoutUs / 12,
      clients: 3,
      burst: 1,
    }
  }
  return {
    ...plan,
    clockDrift,
    // These two are made for leases: without them the clocks of check-quorum alone would mostly do.
    faults: [...faults, ...(['late-answers', 'restart-voters', 'isolate-leader'] as const).filter(() => random.chance(0.6))],
    readShare: random.pick([0.3, 0.7]),
    toClaimants: random.pick([0.5, 0.9]),
    operationEveryUs: electionTimeoutUs / random.pick([5, 10]),
    burst: 1,
  }
}

/** Anything goes, each kind of fault by itself rare enough that the cluster makes progress. */
function drawSteady(seed: number, random: SeededRandom): SimulationPlan {
  const sometimes = (probability: number, draw: () => number): number => (random.chance(probability) ? draw() : 0)
  const electionTimeoutMs = random.pick([100, 150, 250, 250, 500, 1000])
  const electionTimeoutUs = electionTimeoutMs * 1000
  const maxCommandBytes = random.pick([8, 8, 32, 100, 1000])
  const tiny = random.chance(0.4)
  const changes = random.chance(0.5)
  const maxAppendBytes = tiny ? random.pick([1, 16, 64, 300]) : random.pick([4096, 65536, 1048576])
  return {
    seed,
    replicas: random.pick([1, 3, 3, 3, 4, 5, 5, 5, 6, 7]),
    spares: changes ? random.pick([0, 1, 2, 3]) : 0,
    faultyUs: electionTimeoutUs * random.integer(20, 60),
    host: {
      limits: {
        electionTimeoutMs,
        heartbeatIntervalMs: Math.floor(electionTimeoutMs / random.pick([3, 5, 5, 10])),
        ...(random.chance(0.5) ? { restAfterHeartbeats: random.pick([1, 3, 10]) } : {}),
        maxAppendBytes,
        maxInflightBytes: maxAppendBytes * random.pick([1, 2, 8]),
        maxTailBytes: random.pick([1, 64, 1000, 1048576]),
        maxUncommittedBytes: random.chance(0.3) ? random.pick([1, 100, 1000]) : 16777216,
      },
      cycleDelayUs: sometimes(0.5, () => random.pick([50, 500, 5000])),
      applyDelayUs: random.pick([0, 50, 1000, electionTimeoutUs]),
      applySliceBytes: random.pick([1, 1000, 1048576]),
      losesState: random.pick(['never', 'some', 'all']),
      reportsEachWork: random.chance(0.5),
      compactEntries: sometimes(0.5, () => random.pick([1, 1, 5, 20, 100])),
      compactKeeps: random.pick([0, 0, 3, 20]),
      snapshotUs: electionTimeoutUs * random.pick([0, 0.1, 1, 3]),
      crashAtChange: sometimes(0.3, () => random.pick([0.02, 0.1, 0.3])),
      crashAtConfiguration: sometimes(0.4, () => random.pick([0.2, 0.5])),
      crashAtTruncation: sometimes(0.3, () => random.pick([0.1, 0.5])),
    },
    disk: {
      writeMeanUs: random.pick([0, 50, 500, 5000, electionTimeoutUs / 10]),
      readMeanUs: random.pick([0, 50, 1000, electionTimeoutUs / 10]),
    },
    network: {
      delayMinUs: random.pick([0, 50, 500]),
      delayMeanUs: random.pick([0, 100, 1000, 5000, electionTimeoutUs / 20]),
      inOrder: random.chance(0.4),
      lossRate: sometimes(0.5, () => random.pick([0.01, 0.05, 0.1, 0.3])),
      repeatRate: sometimes(0.5, () => random.pick([0.02, 0.1, 0.3])),
      replayRate: sometimes(0.5, () => random.pick([0.01, 0.05, 0.2])),
      replayMaxUs: electionTimeoutUs * random.pick([2, 10, 30]),
      stragglerRate: sometimes(0.5, () => random.pick([0.01, 0.1, 0.3])),
      stragglerMaxUs: electionTimeoutUs * random.pick([1, 3, 10]),
      lateRepliesOnly: random.chance(0.3),
      faultyLinks: random.pick([0.5, 1]),
      cutsInFlight: random.chance(0.5),
    },
    clockDrift: sometimes(0.5, () => random.pick([0.001, 0.02, 0.1, 0.5])),
    faultEveryUs: random.chance(0.1) ? Number.POSITIVE_INFINITY : electionTimeoutUs * random.pick([1, 2, 5, 10]),
    faults: faultKinds.filter(() => random.chance(0.4)),
    faultLastsUs: electionTimeoutUs * random.pick([0.5, 1, 2, 5]),
    clients: random.integer(1, 4),
    operationEveryUs: electionTimeoutUs / random.pick([1, 2, 5, 15]),
    readShare: random.pick([0, 0.2, 0.5]),
    leaseShare: random.chance(0.35) ? random.pick([0.5, 1, 1]) : 0,
    membershipEveryUs: changes ? electionTimeoutUs * random.pick([1, 3, 10]) : 0,
    transferEveryUs: random.chance(0.4) ? electionTimeoutUs * random.pick([1, 3, 10]) : 0,
    toClaimants: random.pick([0, 0.5]),
    maxCommandBytes,
    burst: random.pick([1, 1, 5, 20]),
  }
}

/**
 * Leaders fall again and again while messages of their terms are still under way: short logs that differ, replies that come back terms later. The bugs
 * that need several coincidences live here.
 */
function drawStorm(plan: SimulationPlan, random: SeededRandom, isAlone = random.chance(0.5)): SimulationPlan {
  const electionTimeoutUs = plan.host.limits.electionTimeoutMs * 1000
  const againstLeaders: readonly FaultKind[] = [
    'crash-leader',
    'pause-leader',
    'isolate-leader',
    'leader-deaf',
    'leader-mute',
    'split',
    'crash',
    'hung-disk',
    'slow-disk',
    'crash-all',
    'leader-left-behind',
    'leader-left-behind',
    'leader-left-behind',
  ]
  const faults = againstLeaders.filter(() => random.chance(0.5))
  // Half the storms have nothing else in them: what needs most coincidences drowns in everything that may happen besides.
  const alone = { spares: 0, membershipEveryUs: 0, transferEveryUs: 0, leaseShare: 0 }
  return {
    ...plan,
    ...(isAlone ? alone : {}),
    replicas: random.pick([3, 3, 5]),
    faultyUs: electionTimeoutUs * random.integer(40, 100),
    host: {
      ...plan.host,
      ...(isAlone ? { compactEntries: 0 } : {}),
      limits: { ...plan.host.limits, maxUncommittedBytes: 16777216 },
      applyDelayUs: random.pick([0, 50]),
      losesState: random.pick(['never', 'never', 'some', 'all']),
      crashAtChange: random.pick([0, 0.05]),
      crashAtTruncation: random.pick([0, 0.3, 0.6]),
    },
    disk: {
      writeMeanUs: random.pick([50, electionTimeoutUs / 50, electionTimeoutUs / 10, electionTimeoutUs / 4]),
      readMeanUs: random.pick([50, 50, electionTimeoutUs / 50, electionTimeoutUs / 4]),
    },
    network: {
      ...plan.network,
      delayMeanUs: electionTimeoutUs / random.pick([10, 50, 200]),
      inOrder: false,
      lossRate: random.pick([0, 0.05, 0.2]),
      replayRate: random.pick([0.05, 0.2, 0.4]),
      replayMaxUs: electionTimeoutUs * random.pick([3, 6, 12]),
      stragglerRate: random.pick([0.02, 0.1, 0.3]),
      stragglerMaxUs: electionTimeoutUs * random.pick([2, 4, 8]),
      lateRepliesOnly: random.chance(0.7),
    },
    // Clocks this far apart let a leader live on while others have long elected the next.
    clockDrift: random.pick([0, 0.2, 0.6]),
    faultEveryUs: electionTimeoutUs * random.pick([2, 4, 8]),
    faults: faults.length > 0 ? faults : ['isolate-leader'],
    faultLastsUs: electionTimeoutUs * random.pick([1, 2, 4]),
    operationEveryUs: electionTimeoutUs / random.pick([1, 5, 15]),
    readShare: random.pick([0.1, 0.5, 0.8]),
    toClaimants: 0.7,
    burst: random.pick([1, 1, 4]),
  }
}
