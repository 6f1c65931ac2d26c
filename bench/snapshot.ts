/**
 * Puts while a snapshot streams: three nodes with one group; one follower is killed, the log is compacted past it, it comes back and fetches a snapshot under load; then the same
 * load again without. Both cells of a round follow one another in one run; the stream outlasts the first one.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Child, freeAddresses, type Workplace } from '../scripts/workplace.js'
import type { CellOptions, CellResult } from './load.js'
import type { LoadProcessStatus } from './load-process.js'
import { forkLoad, memberNames, until } from './systems.js'

export interface SnapshotRound {
  readonly streamed: CellResult
  readonly quiet: CellResult
  /** How long the transfer took, and how much came. */
  readonly streamMs: number
  readonly streamedBytes: number
}

export interface SnapshotBenchOptions {
  readonly megabytes: number
  readonly callers: number
  readonly rounds: number
  readonly progress: (line: string) => void
}

/** Small, so that what is written while the follower is away is more than the log keeps. */
const tuning = { compactLogBytes: 4 * 1024 * 1024 }

export async function measureSnapshots(
  workplace: Workplace,
  { megabytes, callers, rounds, progress }: SnapshotBenchOptions,
): Promise<SnapshotRound[]> {
  const addresses = await freeAddresses(memberNames.length)
  const nodes = memberNames.map((id, position) => ({ id, address: addresses[position]! }))
  const start = (id: string) =>
    forkLoad(workplace, id, { system: 'quorate-node', id, location: `${workplace.folder}/${id}`, nodes, groups: 1, tuning })
  const members = new Map<string, Child>()
  for (const id of memberNames) members.set(id, await start(id))
  const statusOf = (id: string) => members.get(id)!.ask<LoadProcessStatus>('status')
  const leader = await until('an election', async () => {
    for (const id of memberNames) if ((await statusOf(id)).groupsLed === 1) return id
    return undefined
  })
  const follower = memberNames.find((id) => id !== leader)!
  const client = await forkLoad(workplace, 'client', { system: 'quorate-client', seeds: addresses })
  await client.ask('preload')
  progress(`writing ${megabytes} MiB`)
  await client.ask('fill', megabytes * 2 ** 20)
  const put = (durationMs: number) => client.ask<CellResult>('measure', { operation: 'put', callers, warmUpMs: 0, durationMs } satisfies CellOptions)
  const results: SnapshotRound[] = []
  for (let round = 0; round < rounds; round++) {
    await members.get(follower)!.kill()
    // More than twice what the log keeps for a follower that is away.
    await client.ask('fill', 24 * 2 ** 20)
    await put(1500)
    members.set(follower, await start(follower))
    await until('the beginning of a snapshot', async () => ((await statusOf(follower)).receivedBytes ? true : undefined))
    const beganMs = performance.now()
    let streamedBytes = 0
    let streamMs = 0
    const watching = (async () => {
      for (;;) {
        const { receivedBytes } = await statusOf(follower)
        if (receivedBytes === null) break
        streamedBytes = receivedBytes
        streamMs = performance.now() - beganMs
        await sleep(50)
      }
    })()
    // The first second belongs to the start of a process.
    await sleep(1000)
    const cellMs = Math.max(1000, megabytes * 20)
    const streamed = await put(cellMs)
    await watching
    await until('the follower to catch up', async () => {
      const [behind, ahead] = await Promise.all([statusOf(follower), statusOf(leader)])
      return behind.receivedBytes === null && behind.appliedIndex + 1000 > ahead.appliedIndex ? true : undefined
    })
    await sleep(2000)
    const quiet = await put(cellMs)
    results.push({ streamed, quiet, streamMs, streamedBytes })
    progress(
      `round ${round + 1}: p99 ${streamed.p99Ms.toFixed(2)} ms with, ${quiet.p99Ms.toFixed(2)} ms without; the stream took ${(streamMs / 1000).toFixed(1)} s, the cell ${cellMs / 1000} s`,
    )
  }
  await client.stop()
  for (const member of members.values()) await member.stop()
  return results
}
