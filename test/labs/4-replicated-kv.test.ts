/**
 * Lab 4B and 4C of 2025 and 2026, by the names of its tests (networks as in the column of A25), on whole nodes with real clients in a simulated world.
 *
 * `maxraftstate` 1000 is a log that is compacted over 1000 bytes; the log of no server may exceed the lab's 8000 when the lab looks. −1 is a log that is not compacted in the test's time: the lab
 * wants no snapshot then; here no log may have lost its beginning, and no snapshot may have been sent. The lab's snapshot size is that of all records that a snapshot would hold.
 *
 * Partitions come as in the lab, when the clerks are about to end, and again (`long`) while they work.
 */
import { expect } from 'chai'
import { scenario } from './support/cluster-scenario.js'
import { type GenericOptions, onePartition, puts, snapshotSize, snapshotTransfer, speed } from './support/cluster-scenarios.js'
import { putAt } from './support/kv-helpers.js'

interface Row extends GenericOptions {
  readonly name: string
  readonly servers?: number
  readonly unreliable?: boolean
}

/** A generic test; those with partitions once more with partitions while the clerks work, and deadlines short enough for unknown outcomes. */
function generic(part: '4B' | '4C', { name, servers = 5, unreliable = false, ...options }: Row): void {
  const lab = { servers, unreliable, ...(part === '4C' ? { maxRaftState: 1000 } : {}) }
  scenario(`${part} ${name}`, lab, (cluster) => puts(cluster, options))
  if (options.partitions === undefined) return
  scenario(`${part} ${name}, long`, lab, (cluster) => puts(cluster, { ...options, partitions: 'long' }))
  scenario(`${part} ${name}, long, with unknown outcomes`, lab, (cluster) => puts(cluster, { ...options, partitions: 'long', timeoutMs: 300 }))
}

const increase = async (kv: Parameters<typeof putAt>[0], number: number) => {
  expect(await putAt(kv, 'k', `${number}`, number)).to.deep.equal({ type: 'ok', version: number + 1 })
}

describe('lab 4B: replicated key/value service', () => {
  generic('4B', { name: 'Basic4B: one client', clerks: 1 })
  scenario('4B Speed4B: a thousand puts one after the other', { servers: 3 }, (lab) => speed(lab, increase))
  generic('4B', { name: 'Concurrent4B: many clients', clerks: 5 })
  generic('4B', { name: 'Unreliable4B: many clients', clerks: 5, unreliable: true })
  scenario('4B OnePartition4B: progress in the majority only', { servers: 5, unreliable: true }, onePartition)
  generic('4B', { name: 'ManyPartitionsOneClient4B: partitions, one client', clerks: 1, partitions: 'late' })
  generic('4B', { name: 'ManyPartitionsManyClients4B: partitions, many clients', clerks: 5, partitions: 'late' })
  generic('4B', { name: 'PersistOneClient4B: restarts, one client', clerks: 1, crash: true })
  generic('4B', { name: 'PersistConcurrent4B: restarts, many clients', clerks: 5, crash: true })
  generic('4B', { name: 'PersistConcurrentUnreliable4B: restarts, many clients', clerks: 5, unreliable: true, crash: true })
  generic('4B', { name: 'PersistPartition4B: restarts, partitions, many clients', clerks: 5, crash: true, partitions: 'late' })
  generic('4B', {
    name: 'PersistPartitionUnreliable4B: restarts, partitions, many clients',
    clerks: 5,
    unreliable: true,
    crash: true,
    partitions: 'late',
  })
  generic('4B', {
    name: 'PersistPartitionUnreliableLinearizable4B: restarts, partitions, random keys, many clients',
    clerks: 15,
    servers: 7,
    unreliable: true,
    crash: true,
    partitions: 'late',
    randomKeys: true,
  })
})

describe('lab 4C: replicated key/value service with snapshots', () => {
  scenario('4C SnapshotRPC4C: a server that was away gets a snapshot', { servers: 3, maxRaftState: 1000 }, snapshotTransfer)
  scenario('4C SnapshotSize4C: snapshots have a reasonable size', { servers: 3, maxRaftState: 1000 }, snapshotSize)
  scenario('4C Speed4C: a thousand puts one after the other', { servers: 3, maxRaftState: 1000 }, (lab) => speed(lab, increase))
  generic('4C', { name: 'SnapshotRecover4C: restarts, one client', clerks: 1, crash: true })
  generic('4C', { name: 'SnapshotRecoverManyClients4C: restarts, many clients', clerks: 20, crash: true })
  generic('4C', { name: 'SnapshotUnreliable4C: many clients', clerks: 5, unreliable: true })
  generic('4C', { name: 'SnapshotUnreliableRecover4C: restarts, many clients', clerks: 5, unreliable: true, crash: true })
  generic('4C', {
    name: 'SnapshotUnreliableRecoverConcurrentPartition4C: restarts, partitions, many clients',
    clerks: 5,
    unreliable: true,
    crash: true,
    partitions: 'late',
  })
  generic('4C', {
    name: 'SnapshotUnreliableRecoverConcurrentPartitionLinearizable4C: restarts, partitions, random keys, many clients',
    clerks: 15,
    servers: 7,
    unreliable: true,
    crash: true,
    partitions: 'late',
    randomKeys: true,
  })
})
