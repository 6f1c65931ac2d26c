/** The options of `npm run bench`. */
import { parseArgs } from 'node:util'
import type { OperationName } from './load.js'

export const peerNames = ['etcd', 'redis'] as const
export type Peer = (typeof peerNames)[number]

export interface BenchOptions {
  readonly seconds: number
  readonly warmUpSeconds: number
  readonly callers: readonly number[]
  readonly operations: readonly OperationName[]
  readonly rounds: number
  readonly groups: number
  /** Systems that take turns with quorate. */
  readonly peers: readonly Peer[]
  readonly json: boolean
  /** Instead of cells: load for so long on so many keys, and what memory that takes. */
  readonly soakMinutes: number | undefined
  readonly keys: number
  /** Instead of load: what so many idle groups cost. */
  readonly idleGroups: number | undefined
  /** Instead of load alone: puts while a snapshot of so many MiB streams to a follower, and without. */
  readonly snapshotMegabytes: number | undefined
}

export const usage = `npm run bench -- [options]

  --seconds N       measured seconds of a cell (default 5)
  --warm-up N       seconds before that which do not count (default 1)
  --callers LIST    concurrent callers (default 1,16,64,256)
  --ops LIST        put, get (default put,get)
  --rounds N        how often each system runs (default 1; 3 with a peer); the table has the medians
  --groups N        Raft groups of the quorate cluster (default 3)
  --peer LIST       etcd (three members), redis (one server, appendfsync always): run in turn with it, when their programs are there; installs nothing
  --idle-groups N   instead of load: three nodes with so many groups that do nothing, and what CPU they take
  --snapshot MB     instead of load: latencies of puts while a snapshot of so many MiB streams to a follower, and without, in turn
  --soak MINUTES    instead of cells: a million keys, puts and gets in turn for so long, and what memory the nodes take
  --keys N          keys of the soak (default 1,000,000)
  --json            prints the rows and ratios as JSON on the last line
`

function numberOption(name: string, text: string, least: number): number {
  const value = Number(text)
  if (!Number.isFinite(value) || value < least) throw new Error(`Expected --${name} to be a number of at least ${least}, got ${JSON.stringify(text)}`)
  return value
}

function wholeNumberOption(name: string, text: string): number {
  const value = numberOption(name, text, 1)
  if (!Number.isInteger(value)) throw new Error(`Expected --${name} to be whole, got ${JSON.stringify(text)}`)
  return value
}

/** Throws an Error that names the option when one is wrong. */
export function parseOptions(args: readonly string[]): BenchOptions {
  const text = { type: 'string' } as const
  const { values } = parseArgs({
    args: [...args],
    options: {
      ...{ seconds: text, 'warm-up': text, callers: text, ops: text, rounds: text, groups: text, peer: text, 'idle-groups': text, snapshot: text },
      ...{ soak: text, keys: text },
      json: { type: 'boolean' },
    },
  })
  const peers = (values.peer?.split(',') ?? []).map((name): Peer => {
    const peer = peerNames.find((known) => known === name)
    if (peer === undefined) throw new Error(`Expected --peer to list ${peerNames.join(' and ')}, got ${JSON.stringify(name)}`)
    return peer
  })
  const operations = (values.ops ?? 'put,get').split(',').map((name): OperationName => {
    if (name !== 'put' && name !== 'get') throw new Error(`Expected --ops to list put and get, got ${JSON.stringify(name)}`)
    return name
  })
  return {
    seconds: numberOption('seconds', values.seconds ?? '5', 0.1),
    warmUpSeconds: numberOption('warm-up', values['warm-up'] ?? '1', 0),
    callers: (values.callers ?? '1,16,64,256').split(',').map((count) => wholeNumberOption('callers', count)),
    operations,
    rounds: wholeNumberOption('rounds', values.rounds ?? (peers.length === 0 ? '1' : '3')),
    groups: wholeNumberOption('groups', values.groups ?? '3'),
    peers,
    json: values.json ?? false,
    soakMinutes: values.soak === undefined ? undefined : numberOption('soak', values.soak, 0.1),
    keys: wholeNumberOption('keys', values.keys ?? '1000000'),
    snapshotMegabytes: values.snapshot === undefined ? undefined : wholeNumberOption('snapshot', values.snapshot),
    idleGroups: values['idle-groups'] === undefined ? undefined : wholeNumberOption('idle-groups', values['idle-groups']),
  }
}
