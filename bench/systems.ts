/**
 * The systems under test. Each starts three server processes with a folder each on loopback, fsync on, and the processes that make the load.
 *
 * 1. Servers run with their defaults. 2. `stop` ends every process and leaves the folders, so that the next round finds the same data.
 */
import { accessSync, constants } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Child, freeAddresses, type Workplace } from '../scripts/workplace.js'
import type { LoadProcessArgument, LoadProcessStatus } from './load-process.js'

/** Where load comes from: the name of the row, and the process that measures it. */
export interface LoadSource {
  readonly system: string
  readonly process: Child
}

export interface System {
  readonly name: string
  /** Starts the servers and their load processes, and resolves when they serve. */
  start(): Promise<readonly LoadSource[]>
  /** Log writes (fsyncs) of all servers since their start, where the system tells. */
  logWrites(): Promise<number | undefined>
  stop(): Promise<void>
}

const loadProcess = new URL('./load-process.js', import.meta.url)
export const memberNames = ['a', 'b', 'c'] as const

export function forkLoad(workplace: Workplace, name: string, argument: LoadProcessArgument): Promise<Child> {
  return workplace.fork(name, loadProcess, { argument })
}

/** Asks until the answer is there; the servers are other processes, so there is nothing to wait on but time. */
export async function until<Result>(what: string, ask: () => Promise<Result | undefined>, deadlineMs = 30_000): Promise<Result> {
  let failure: unknown
  for (const endMs = performance.now() + deadlineMs; performance.now() < endMs; await sleep(100)) {
    try {
      const result = await ask()
      if (result !== undefined) return result
    } catch (error) {
      failure = error
    }
  }
  throw new Error(`${what} did not happen in ${deadlineMs} ms`, { cause: failure })
}

/** Three quorate nodes, a client process of its own, and callers inside the node that leads the fewest groups. */
export async function quorateSystem(workplace: Workplace, groups: number): Promise<System> {
  const addresses = await freeAddresses(memberNames.length)
  const nodes = memberNames.map((id, position) => ({ id, address: addresses[position]! }))
  let members: Child[] = []
  let client: Child | undefined
  const statuses = () => Promise.all(members.map((member) => member.ask<LoadProcessStatus>('status')))
  return {
    name: 'quorate',
    async start() {
      members = await Promise.all(
        memberNames.map((id) =>
          forkLoad(workplace, `quorate-${id}`, { system: 'quorate-node', id, location: join(workplace.folder, `quorate-${id}`), nodes, groups }),
        ),
      )
      client = await forkLoad(workplace, 'quorate-client', { system: 'quorate-client', seeds: addresses })
      const led = await until('an election in every group', async () => {
        const counts = (await statuses()).map(({ groupsLed }) => groupsLed)
        return counts.reduce((sum, count) => sum + count) === groups ? counts : undefined
      })
      return [
        { system: 'quorate', process: client },
        { system: 'quorate-embedded', process: members[led.indexOf(Math.min(...led))]! },
      ]
    },
    async logWrites() {
      return (await statuses()).reduce((sum, { logWrites }) => sum + logWrites, 0)
    },
    async stop() {
      await client?.stop()
      await Promise.all(members.map((member) => member.stop()))
    },
  }
}

/** The path of a program, or undefined when it is not there. */
export function findProgram(name: string): string | undefined {
  for (const folder of (process.env['PATH'] ?? '').split(delimiter)) {
    try {
      accessSync(join(folder, name), constants.X_OK)
      return join(folder, name)
    } catch {
      // Not in this one.
    }
  }
  return undefined
}

/** Three etcd members with their defaults, and a client process with one connection to the leader: that is where etcd is fastest. */
export async function etcdSystem(workplace: Workplace, program: string): Promise<System> {
  const addresses = await freeAddresses(2 * memberNames.length)
  const members = memberNames.map((name, position) => ({ name, client: addresses[position]!, peer: addresses[position + memberNames.length]! }))
  const cluster = members.map(({ name, peer }) => `${name}=http://${peer}`).join(',')
  let running: { stop(): Promise<void> }[] = []
  let client: Child | undefined
  return {
    name: 'etcd',
    async start() {
      running = members.map(({ name, client, peer }) =>
        workplace.spawn(`etcd-${name}`, program, [
          ...['--name', name, '--data-dir', join(workplace.folder, `etcd-${name}`)],
          ...['--listen-client-urls', `http://${client}`, '--advertise-client-urls', `http://${client}`],
          ...['--listen-peer-urls', `http://${peer}`, '--initial-advertise-peer-urls', `http://${peer}`],
          ...['--initial-cluster', cluster],
        ]),
      )
      const leader = await until('an election among the etcd members', async () => {
        for (const { client } of members) if (await leads(client)) return client
        return undefined
      })
      client = await forkLoad(workplace, 'etcd-client', { system: 'etcd', address: leader })
      return [{ system: 'etcd', process: client }]
    },
    logWrites: async () => undefined,
    async stop() {
      await client?.stop()
      await Promise.all(running.map((member) => member.stop()))
    },
  }
}

/** One Redis server that syncs every write to its log, and a client process. Nothing is replicated: it is what a single fsynced server can do. */
export async function redisSystem(workplace: Workplace, program: string): Promise<System> {
  const [address] = await freeAddresses(1)
  const [host, port] = address!.split(':')
  let server: { stop(): Promise<void> } | undefined
  let client: Child | undefined
  return {
    name: 'redis',
    async start() {
      const folder = join(workplace.folder, 'redis')
      await mkdir(folder, { recursive: true })
      const settings = { bind: host!, port: port!, dir: folder, daemonize: 'no', save: '', appendonly: 'yes', appendfsync: 'always' }
      server = workplace.spawn(
        'redis',
        program,
        Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]),
      )
      client = await until('an answer of redis', () => forkLoad(workplace, 'redis-client', { system: 'redis', address: address! }))
      return [{ system: 'redis', process: client }]
    },
    logWrites: async () => undefined,
    async stop() {
      await client?.stop()
      await server?.stop()
    },
  }
}

/** Whether the etcd member at this address leads, by its JSON gateway. */
async function leads(address: string): Promise<boolean> {
  const response = await fetch(`http://${address}/v3/maintenance/status`, { method: 'POST', body: '{}', signal: AbortSignal.timeout(1000) })
  const status = (await response.json()) as { header?: { member_id?: string }; leader?: string }
  return status.leader !== undefined && status.leader !== '0' && status.leader === status.header?.member_id
}
