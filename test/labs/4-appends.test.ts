/**
 * Lab 4 of 2021 to 2024 (`kvraft`, parts A and B), by the names of its tests, beside those of 2025: clerks append and read for five seconds a round, under partitions all that time: the harder
 * load. An append is made of a get and a put upon the version read; each element must be there once and in order.
 *
 * The names say which part of that year a test was: 3A (2021 to 2023) and 4A (2024) are without snapshots, 3B and 4B with.
 */

import { scenario } from './support/cluster-scenario.js'
import { appends, type GenericOptions, onePartition, snapshotSize, snapshotTransfer, speed } from './support/cluster-scenarios.js'
import { append } from './support/kv-helpers.js'
import { appendOneKey } from './support/kv-scenarios.js'

interface Row extends GenericOptions {
  readonly name: string
  readonly servers?: number
  readonly unreliable?: boolean
}

function generic(part: '4A 2024' | '4B 2024', { name, servers = 5, unreliable = false, ...options }: Row): void {
  const lab = { servers, unreliable, ...(part === '4B 2024' ? { maxRaftState: 1000 } : {}) }
  scenario(`${part} ${name}`, lab, (cluster) => appends(cluster, options))
}

const appendOne = async (kv: Parameters<typeof append>[0], number: number) => {
  await append(kv, 'k', `x 0 ${number} y`)
}

describe('lab 4 of 2021 to 2024: without snapshots', () => {
  generic('4A 2024', { name: 'TestBasic4A: one client', clerks: 1 })
  scenario('4A 2024 TestSpeed4A: a thousand appends one after the other', { servers: 3 }, (lab) => speed(lab, appendOne))
  generic('4A 2024', { name: 'TestConcurrent4A: many clients', clerks: 5 })
  generic('4A 2024', { name: 'TestUnreliable4A: many clients', clerks: 5, unreliable: true })
  scenario('4A 2024 TestUnreliableOneKey4A: concurrent appends to one key', { servers: 3, unreliable: true }, appendOneKey)
  scenario('4A 2024 TestOnePartition4A: progress in the majority only', { servers: 5, unreliable: false }, onePartition)
  generic('4A 2024', { name: 'TestManyPartitionsOneClient4A: partitions, one client', clerks: 1, partitions: 'long' })
  generic('4A 2024', { name: 'TestManyPartitionsManyClients4A: partitions, many clients', clerks: 5, partitions: 'long' })
  generic('4A 2024', { name: 'TestPersistOneClient4A: restarts, one client', clerks: 1, crash: true })
  generic('4A 2024', { name: 'TestPersistConcurrent4A: restarts, many clients', clerks: 5, crash: true })
  generic('4A 2024', { name: 'TestPersistConcurrentUnreliable4A: restarts, many clients', clerks: 5, unreliable: true, crash: true })
  generic('4A 2024', { name: 'TestPersistPartition4A: restarts, partitions, many clients', clerks: 5, crash: true, partitions: 'long' })
  generic('4A 2024', {
    name: 'TestPersistPartitionUnreliable4A: restarts, partitions, many clients',
    clerks: 5,
    unreliable: true,
    crash: true,
    partitions: 'long',
  })
  generic('4A 2024', {
    name: 'TestPersistPartitionUnreliableLinearizable4A: restarts, partitions, random keys, many clients',
    clerks: 15,
    servers: 7,
    unreliable: true,
    crash: true,
    partitions: 'long',
    randomKeys: true,
  })
})

describe('lab 4 of 2021 to 2024: with snapshots', () => {
  scenario('4B 2024 TestSnapshotRPC4B: a server that was away gets a snapshot', { servers: 3, maxRaftState: 1000 }, snapshotTransfer)
  scenario('4B 2024 TestSnapshotSize4B: snapshots have a reasonable size', { servers: 3, maxRaftState: 1000 }, snapshotSize)
  scenario('4B 2024 TestSpeed4B: a thousand appends one after the other', { servers: 3, maxRaftState: 1000 }, (lab) => speed(lab, appendOne))
  generic('4B 2024', { name: 'TestSnapshotRecover4B: restarts, one client', clerks: 1, crash: true })
  generic('4B 2024', { name: 'TestSnapshotRecoverManyClients4B: restarts, many clients', clerks: 20, crash: true })
  generic('4B 2024', { name: 'TestSnapshotUnreliable4B: many clients', clerks: 5, unreliable: true })
  generic('4B 2024', { name: 'TestSnapshotUnreliableRecover4B: restarts, many clients', clerks: 5, unreliable: true, crash: true })
  generic('4B 2024', {
    name: 'TestSnapshotUnreliableRecoverConcurrentPartition4B: restarts, partitions, many clients',
    clerks: 5,
    unreliable: true,
    crash: true,
    partitions: 'long',
  })
  generic('4B 2024', {
    name: 'TestSnapshotUnreliableRecoverConcurrentPartitionLinearizable4B: restarts, partitions, random keys, many clients',
    clerks: 15,
    servers: 7,
    unreliable: true,
    crash: true,
    partitions: 'long',
    randomKeys: true,
  })
})
