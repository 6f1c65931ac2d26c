/**
 * What one seed runs, written out: sizes and timers, disk, network, every fault and every operation of a client with its time. A plan is plain JSON, so it can be saved,
 * cut down and run again.
 *
 * Swarm testing: each kind of fault is off with a probability of about one half, so that rare combinations get their turn and common faults do not hide others.
 *
 * Invariant: a plan is a function of its seed alone, and a run is a function of its plan alone.
 */
import type { ReadConsistency } from '../../engine/kv.js'
import { SeededRandom } from '../seeded-random.js'
import type { DiskModel } from './disk.js'
import type { NetworkModel } from './network.js'

export const nodeFaultKinds = [
  'kill',
  'power-loss',
  'power-loss-all',
  'crash-at-operation',
  'crash-in-recovery',
  'close',
  'transfer',
  'wipe',
  'damage-log',
  'join',
  'remove',
  'replace',
  'pause',
  'slow-node',
  'slow-disk',
  'hung-disk',
  'failing-disk',
  'full-disk',
  'partition',
  'isolate',
  'one-way',
  'bridge',
  'clog',
] as const
export type NodeFaultKind = (typeof nodeFaultKinds)[number]

export interface PlannedFault {
  readonly atUs: number
  readonly kind: NodeFaultKind
  /** A node by its number, members first, then spare ones; -1: whoever leads the group `group` then. */
  readonly node: number
  readonly group: number
  /** How long it lasts: until the restart, the heal, the wake-up. */
  readonly durationUs: number
  /** How much: operations until the crash, microseconds a task, times slower, or a seed of the sides of a partition. */
  readonly amount: number
}

/** An operation of a transaction, on a key by its number. */
export interface PlannedStep {
  readonly kind: 'put' | 'delete' | 'get'
  readonly key: number
}

/** Keys of one shard begin at `keysPerTag` and its multiples: those with one tag. */
export const keysPerTag = 1000
/** Keys that are counted up, mostly. */
export const countersFrom = 1_000_000
const tags = 3
const keysOfTag = 4
const counters = 2

/** The numbers of all keys of a plan with so many plain ones. */
export function keyNumbers(plain: number): number[] {
  const numbers = Array.from({ length: plain }, (_, number) => number)
  for (let tag = 1; tag <= tags; tag++) for (let member = 0; member < keysOfTag; member++) numbers.push(tag * keysPerTag + member)
  for (let counter = 0; counter < counters; counter++) numbers.push(countersFrom + counter)
  return numbers
}

export type PlannedCondition = 'none' | 'last-seen' | 'absent'

export interface PlannedOperation {
  readonly atUs: number
  readonly client: number
  readonly op: 'get' | 'getMany' | 'put' | 'delete' | 'scan' | 'count' | 'txn' | 'batch' | 'increment' | 'getOrPut' | 'update'
  /** Keys by number; of a scan or count the first, and how many entries at most; of a transaction the one that is compared. */
  readonly keys: readonly number[]
  /** Of a transaction and a batch. */
  readonly steps: readonly PlannedStep[]
  /** Of a transaction: when its condition does not hold. */
  readonly otherwise: readonly PlannedStep[]
  /** Of a put. */
  readonly valueBytes: number
  readonly condition: PlannedCondition
  /** Of a read. */
  readonly consistency: ReadConsistency
  readonly timeoutMs: number
  /** Aborted after so long; null: never. */
  readonly abortAfterMs: number | null
}

/** A watch that goes on until the end, over all lives of its node. */
export interface PlannedWatch {
  readonly atUs: number
  readonly client: number
  readonly of: 'all' | 'tag' | 'key'
  /** The key, or one of the tag. */
  readonly key: number
  readonly bookmarks: boolean
  /** It takes so long for each event. */
  readonly pauseMs: number
}

export interface PlannedTuning {
  readonly electionTimeoutMs: number
  readonly heartbeatIntervalMs: number
  readonly maxInflightBytes: number
  readonly maxAppendBytes: number
  readonly maxTailBytes: number
  readonly maxUncommittedBytes: number
  readonly flushBytes: number
  readonly flushAfterMs: number
  readonly recordCacheBytes: number
  readonly compactLogBytes: number
  readonly compactLogEntries: number
  readonly snapshotChunkBytes: number
  readonly snapshotBytesPerSecond: number
  readonly sessionTtlMs: number
  readonly historyBytes: number
}

export interface NodePlan {
  readonly seed: number
  readonly nodes: number
  readonly groups: number
  readonly replicas: number
  readonly shards: number
  /** Nodes that are not there at first, and may join. */
  readonly spareNodes: number
  /** Nodes of role `client`. */
  readonly clientNodes: number
  /** Sessions: the node of each, members first, then client nodes. */
  readonly clients: readonly number[]
  readonly keys: number
  /** How long faults go on. */
  readonly faultyUs: number
  readonly tuning: PlannedTuning
  readonly attemptTimeoutMs: number
  readonly disk: DiskModel
  readonly network: NetworkModel
  readonly clockDrift: number
  readonly faults: readonly PlannedFault[]
  readonly operations: readonly PlannedOperation[]
  readonly watches: readonly PlannedWatch[]
}

/** The network once faults have stopped. */
export function calmNetwork(model: NetworkModel): NetworkModel {
  return { ...model, delayMinUs: 100, delayMeanUs: 400, lossRate: 0, repeatRate: 0, heldRate: 0, flipRate: 0, maxLinkBytes: 67108864 }
}

/** Draws the plan of a seed. */
export function drawNodePlan(seed: number): NodePlan {
  const random = new SeededRandom(seed, 'node plan')
  const sometimes = (probability: number, draw: () => number): number => (random.chance(probability) ? draw() : 0)
  const electionTimeoutMs = random.pick([50, 100, 150, 250, 250])
  const electionTimeoutUs = electionTimeoutMs * 1000
  const nodes = random.pick([1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7])
  const groups = random.pick([1, 1, 2, 2, 3, 4])
  const replicas = Math.min(nodes, random.pick([1, 3, 3, 3, 5, 5]))
  const clientNodes = random.pick([0, 0, 1, 2])
  const spareNodes = membershipChanges ? random.pick([0, 0, 1, 2]) : 0
  const maxAppendBytes = random.pick([1, 200, 4096, 65536, 524288])
  const faultyUs = electionTimeoutUs * random.integer(30, 80)
  const clients = Array.from({ length: random.integer(1, 5) }, () => random.integer(0, nodes + spareNodes + clientNodes - 1))
  // Followers that miss much while the rest writes on: snapshots all the time.
  const snapshots = replicas > 1 && random.chance(0.25)
  const clockDrift = sometimes(0.4, () => random.pick([0.001, 0.02, 0.05, 0.1]))
  const shape = {
    snapshots,
    clockDrift,
    seed,
    nodes,
    spareNodes,
    groups,
    replicas,
    clients,
    faultyUs,
    keys: snapshots ? 40 : random.pick([1, 3, 6, 12, 40]),
    electionTimeoutUs,
  }
  const attemptTimeoutMs = electionTimeoutMs * random.pick([1, 2, 4])
  const times = new SeededRandom(seed, 'node times to live')
  return {
    seed,
    nodes,
    groups,
    replicas,
    shards: random.pick([4, 8, 16, 64]),
    spareNodes,
    clientNodes,
    clients,
    keys: shape.keys,
    faultyUs,
    tuning: {
      electionTimeoutMs,
      heartbeatIntervalMs: Math.floor(electionTimeoutMs / random.pick([3, 5, 5, 10])),
      maxAppendBytes,
      maxInflightBytes: maxAppendBytes * random.pick([1, 2, 16]),
      maxTailBytes: random.pick([1, 100, 1000, 65536, 16777216]),
      maxUncommittedBytes: random.chance(0.2) ? random.pick([100, 1000, 10000]) : 67108864,
      flushBytes: snapshots ? random.pick([1, 300]) : random.pick([1, 300, 2000, 20000, 4194304]),
      flushAfterMs: electionTimeoutMs * random.pick([0.1, 0.5, 2, 10]),
      recordCacheBytes: random.pick([0, 1000, 1000000]),
      compactLogBytes: random.chance(0.5) || snapshots ? random.pick([100, 1000, 10000]) : 67108864,
      compactLogEntries: snapshots ? random.pick([1, 5]) : random.chance(0.5) ? random.pick([1, 5, 20, 60]) : 1000000,
      snapshotChunkBytes: snapshots ? random.pick([1, 100]) : random.pick([1, 100, 2000, 262144]),
      snapshotBytesPerSecond: random.pick([200000, 2000000, 67108864]),
      // Longer than any request is repeated.
      sessionTtlMs: attemptTimeoutMs * times.pick([10, 10, 20, 1000]),
      historyBytes: new SeededRandom(seed, 'node history').pick([0, 1000, 67108864, 67108864]),
    },
    attemptTimeoutMs,
    disk: {
      syncMeanUs: random.pick([20, 200, 1000, 5000, electionTimeoutUs / 10]),
      writeMeanUs: random.pick([5, 50, 1000]),
      readMeanUs: random.pick([1, 50, 500]),
      rotateBytes: random.pick([200, 1000, 10000, 1000000]),
      compactMeanUs: electionTimeoutUs * random.pick([0.1, 1, 10]),
    },
    network: {
      delayMinUs: random.pick([10, 50, 500]),
      delayMeanUs: random.pick([20, 200, 1000, electionTimeoutUs / 20]),
      inOrder: random.chance(0.5),
      lossRate: sometimes(0.5, () => random.pick([0.01, 0.05, 0.2])),
      repeatRate: sometimes(0.5, () => random.pick([0.02, 0.1, 0.3])),
      heldRate: sometimes(0.4, () => random.pick([0.01, 0.1, 0.3])),
      heldMaxUs: electionTimeoutUs * random.pick([1, 4, 10]),
      flipRate: sometimes(0.2, () => random.pick([0.001, 0.01])),
      crossesLives: random.chance(0.4),
      peerStates: random.chance(0.5),
      maxLinkBytes: random.chance(0.2) ? random.pick([2000, 20000]) : 67108864,
    },
    clockDrift,
    faults: drawFaults(shape),
    operations: drawOperations(shape),
    watches: drawWatches(shape),
  }
}

interface PlanShape {
  readonly snapshots: boolean
  readonly clockDrift: number
  readonly seed: number
  readonly nodes: number
  readonly spareNodes: number
  readonly groups: number
  readonly clients: readonly number[]
  readonly faultyUs: number
  readonly keys: number
  readonly electionTimeoutUs: number
}

/** Nodes join, lose their folders and leave only where the cluster layer brings its groups back to what is wanted. */
const membershipChanges = true
const membershipFaults: readonly NodeFaultKind[] = ['wipe', 'damage-log', 'join', 'remove', 'replace']

function drawFaults({ snapshots, seed, nodes, spareNodes, groups, faultyUs, electionTimeoutUs }: PlanShape): PlannedFault[] {
  const random = new SeededRandom(seed, 'node faults')
  const faults: PlannedFault[] = []
  for (const kind of nodeFaultKinds) {
    const stream = new SeededRandom(seed, `node faults ${kind}`)
    const isWanted = random.chance(snapshots ? 0.2 : 0.4)
    if ((kind === 'join' && spareNodes === 0) || (!membershipChanges && membershipFaults.includes(kind))) continue
    if (!isWanted && !(snapshots && kind === 'isolate')) continue
    const everyUs = electionTimeoutUs * stream.pick([4, 8, 16, 32])
    const lastsUs = electionTimeoutUs * stream.pick(snapshots ? [1, 3] : [0.3, 1, 3, 6])
    const atLeader = stream.pick([0, 0.3, 0.8])
    for (let atUs = stream.exponential(everyUs); atUs < faultyUs; atUs += 1 + stream.exponential(everyUs)) {
      faults.push({
        atUs,
        kind,
        node: stream.chance(atLeader) ? -1 : stream.integer(0, nodes + spareNodes - 1),
        group: stream.integer(1, groups),
        durationUs: 1 + stream.exponential(lastsUs),
        amount: drawAmount(kind, stream, electionTimeoutUs),
      })
    }
  }
  return faults.sort((one, other) => one.atUs - other.atUs)
}

function drawAmount(kind: NodeFaultKind, random: SeededRandom, electionTimeoutUs: number): number {
  switch (kind) {
    case 'crash-at-operation':
    case 'crash-in-recovery':
      return random.integer(1, random.pick([5, 20, 60]))
    case 'slow-node':
      return Math.floor(electionTimeoutUs / random.pick([500, 100, 20]))
    case 'slow-disk':
      return random.pick([5, 50, 500])
    default:
      return random.integer(0, 0x7fffffff)
  }
}

/** Each key once: what is written twice in one transaction has a state that nobody ever sees, which the suite tests. */
function drawSteps(random: SeededRandom, tag: number, reads: boolean): PlannedStep[] {
  const kinds = reads ? (['put', 'put', 'get', 'delete'] as const) : (['put', 'put', 'delete'] as const)
  const members = Array.from({ length: keysOfTag }, (_, member) => member).filter(() => random.chance(0.6))
  return (members.length === 0 ? [0] : members).map((member) => ({ kind: random.pick(kinds), key: tag + member }))
}

/** In half of the runs. */
function drawWatches({ seed, clients, keys, faultyUs, electionTimeoutUs }: PlanShape): PlannedWatch[] {
  const random = new SeededRandom(seed, 'node watches')
  return Array.from({ length: random.pick([0, 0, 1, 3]) }, () => {
    const of = random.pick(['all', 'all', 'tag', 'key'] as const)
    return {
      atUs: random.integer(0, faultyUs / 2),
      client: random.integer(0, clients.length - 1),
      of,
      key: of === 'tag' ? random.integer(1, tags) * keysPerTag : random.integer(0, keys - 1),
      bookmarks: random.chance(0.5),
      pauseMs: random.chance(0.3) ? electionTimeoutUs / 1000 / random.pick([100, 10]) : 0,
    }
  })
}

/** Leases rest on clocks whose rates are less than a seventh apart; no other promise rests on clocks. */
const leaseDrift = 0.05

/** Of all clients: what a history can be checked for in a short time. */
const maxOperations = 800

function drawOperations({ snapshots, clockDrift, seed, clients, faultyUs, keys, electionTimeoutUs }: PlanShape): PlannedOperation[] {
  const shared = new SeededRandom(seed, 'node operations')
  const readShare = snapshots ? 0.1 : shared.pick([0.1, 0.4, 0.8])
  const everyUs = electionTimeoutUs / (snapshots ? 6 : shared.pick([0.5, 2, 6]))
  const maxValueBytes = shared.pick([1, 50, 1000, 20000])
  const burst = shared.pick([1, 1, 3, 10])
  const most = Math.floor(maxOperations / clients.length)
  const conditional = shared.pick([0, 0.3, 0.7])
  const leaseShare = shared.pick([0, 0.5, 1])
  const staleShare = shared.pick([0, 0, 0.3])
  // Transactions, batches and what is made of conditional writes; off in a third of the runs, as everything is now and then.
  const richShare = shared.pick([0, 0.2, 0.6])
  const consistency = (random: SeededRandom): ReadConsistency => {
    if (random.chance(staleShare)) return 'stale'
    return random.chance(leaseShare) && clockDrift <= leaseDrift ? 'lease' : 'linearizable'
  }
  const operations: PlannedOperation[] = []
  clients.forEach((_, client) => {
    const random = new SeededRandom(seed, `node operations ${client}`)
    let count = 0
    for (let atUs = random.exponential(everyUs); atUs < faultyUs && count < most; atUs += 1 + random.exponential(everyUs)) {
      for (const end = count + random.integer(1, burst); count < end; count++) {
        const isRead = random.chance(readShare)
        const isRich = random.chance(richShare)
        const op = isRead
          ? random.pick(['get', 'get', 'get', 'getMany', 'scan', isRich ? 'count' : 'scan'] as const)
          : isRich
            ? random.pick(['txn', 'txn', 'batch', 'increment', 'getOrPut', 'update'] as const)
            : random.pick(['put', 'put', 'put', 'delete'] as const)
        const tag = random.integer(1, tags) * keysPerTag
        // Of the keys of all kinds, as far as a run has them.
        const anyKey = (): number => {
          if (richShare === 0 || random.chance(0.6)) return random.integer(0, keys - 1)
          return random.chance(0.9) ? tag + random.integer(0, keysOfTag - 1) : countersFrom + random.integer(0, counters - 1)
        }
        const isGrouped = op === 'txn' || op === 'batch'
        operations.push({
          atUs,
          client,
          op,
          keys:
            op === 'getMany'
              ? [0, 1, 2].map(anyKey)
              : op === 'scan' || op === 'count'
                ? [anyKey(), random.integer(1, 20)]
                : op === 'increment'
                  ? [countersFrom + random.integer(0, counters - 1)]
                  : isGrouped
                    ? [tag + random.integer(0, keysOfTag - 1)]
                    : [anyKey()],
          steps: isGrouped ? drawSteps(random, tag, op === 'txn') : [],
          otherwise: op === 'txn' ? drawSteps(random, tag, true) : [],
          valueBytes: random.integer(0, isGrouped ? Math.min(maxValueBytes, 1000) : maxValueBytes),
          condition: !isRead && random.chance(conditional) ? random.pick(['last-seen', 'last-seen', 'absent'] as const) : 'none',
          consistency: isRead ? consistency(random) : 'linearizable',
          timeoutMs: Math.ceil((electionTimeoutUs / 1000) * random.pick([0.5, 4, 20, 60])),
          abortAfterMs: random.chance(0.05) ? random.between(0, (electionTimeoutUs / 1000) * 3) : null,
        })
      }
    }
  })
  return operations.sort((one, other) => one.atUs - other.atUs)
}
