/** What many idle groups cost: three nodes, so many groups, no load; the CPU time that each process takes. */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Child, freeAddresses, type Workplace } from '../scripts/workplace.js'
import type { LoadProcessStatus } from './load-process.js'
import { forkLoad, memberNames, until } from './systems.js'

export interface IdleCost {
  readonly node: string
  readonly groupsLed: number
  /** CPU time in percent of one core. */
  readonly cpuPercent: number
}

export async function measureIdleGroups(workplace: Workplace, groups: number, seconds: number): Promise<IdleCost[]> {
  const addresses = await freeAddresses(memberNames.length)
  const nodes = memberNames.map((id, position) => ({ id, address: addresses[position]! }))
  const start = (id: string) => forkLoad(workplace, id, { system: 'quorate-node', id, location: `${workplace.folder}/${id}`, nodes, groups })
  const members: Child[] = await Promise.all(memberNames.map(start))
  const statuses = () => Promise.all(members.map((member) => member.ask<LoadProcessStatus>('status')))
  // The meta group is one more.
  const led = async () => (await statuses()).reduce((sum, { groupsLed }) => sum + groupsLed, 0)
  await until('an election in every group', async () => ((await led()) >= groups ? true : undefined), 120_000)
  // What the elections left to do is not idleness.
  await sleep(5000)
  const before = await statuses()
  await sleep(seconds * 1000)
  const after = await statuses()
  await Promise.all(members.map((member) => member.stop()))
  return memberNames.map((node, at) => ({
    node,
    groupsLed: after[at]!.groupsLed,
    cpuPercent: (after[at]!.cpuMs - before[at]!.cpuMs) / (seconds * 10),
  }))
}
