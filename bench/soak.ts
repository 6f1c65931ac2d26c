/** Memory under lasting load: three nodes, many keys, puts and linearizable gets in turn; what each node's process holds, sampled after every cell. */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Child, freeAddresses, type Workplace } from '../scripts/workplace.js'
import type { CellOptions, CellResult } from './load.js'
import type { LoadProcessStatus } from './load-process.js'
import { forkLoad, memberNames, until } from './systems.js'

export interface SoakSample {
  readonly minute: number
  readonly putsPerSecond: number
  readonly getsPerSecond: number
  /** Of each node, in MiB: what the process holds, its JavaScript heap after collections, and memory outside of it. */
  readonly rssMegabytes: readonly number[]
  readonly heapMegabytes: readonly number[]
  readonly externalMegabytes: readonly number[]
}

const cellMs = 15_000
const callers = 64

/** Runs until the time is up, and tells of each sample. */
export async function soak(
  workplace: Workplace,
  { minutes, keys, onSample, onKeys }: { minutes: number; keys: number; onSample: (sample: SoakSample) => void; onKeys: () => void },
): Promise<SoakSample[]> {
  const groups = 3
  const addresses = await freeAddresses(memberNames.length)
  const nodes = memberNames.map((id, position) => ({ id, address: addresses[position]! }))
  const members: Child[] = await Promise.all(
    memberNames.map((id) => forkLoad(workplace, id, { system: 'quorate-node', id, location: `${workplace.folder}/${id}`, nodes, groups })),
  )
  const client = await forkLoad(workplace, 'client', { system: 'quorate-client', seeds: addresses })
  await until('an election in every group', async () => {
    const statuses = await Promise.all(members.map((member) => member.ask<LoadProcessStatus>('status')))
    return statuses.reduce((sum, { groupsLed }) => sum + groupsLed, 0) === groups ? true : undefined
  })
  await client.ask('preload', keys)
  onKeys()
  const samples: SoakSample[] = []
  const startMs = performance.now()
  while (performance.now() - startMs < minutes * 60_000) {
    const cell = (operation: CellOptions['operation']): CellOptions => ({ operation, callers, warmUpMs: 0, durationMs: cellMs, keys })
    const puts = await client.ask<CellResult>('measure', cell('put'))
    const gets = await client.ask<CellResult>('measure', cell('get'))
    await sleep(100)
    const memory = await Promise.all(members.map((member) => member.ask<NodeJS.MemoryUsage>('memory')))
    const megabytes = (of: (usage: NodeJS.MemoryUsage) => number) => memory.map((usage) => Math.round(of(usage) / 2 ** 20))
    const sample = {
      minute: Math.round((performance.now() - startMs) / 6000) / 10,
      putsPerSecond: Math.round(puts.opsPerSecond),
      getsPerSecond: Math.round(gets.opsPerSecond),
      rssMegabytes: megabytes(({ rss }) => rss),
      heapMegabytes: megabytes(({ heapUsed }) => heapUsed),
      externalMegabytes: megabytes(({ external }) => external),
    }
    samples.push(sample)
    onSample(sample)
  }
  await client.stop()
  await Promise.all(members.map((member) => member.stop()))
  return samples
}
