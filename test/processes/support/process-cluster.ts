/**
 * ProcessCluster: nodes in processes of their own, on real disks, behind a proxy for each link, with all that faults need: who leads, what failed, whether all agree.
 *
 * Invariant: `close` leaves no process, mount or folder, and neither does the death of this process (undertaker.ts).
 */
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { freeAddresses } from '../../../scripts/workplace.js'
import { type Node, openNode } from '../../../src/index.js'
import { tcp } from '../../../src/transport/tcp.js'
import { NodeProcess, type ProcessStatus } from '../../support/node-process.js'
import { Undertaker } from '../../support/undertaker.js'
import { LinkProxy } from './link-proxy.js'
import { SmallDisk } from './small-disk.js'
import { SyncFaults } from './sync-faults.js'

/** How long a condition may take to come true before that is a failure: the machine may be slow, the cluster must not hang. */
const patienceMs = 45_000
const pollMs = 10
const shortLogs = { compactLogEntries: 100, flushBytes: 16 * 1024, flushAfterMs: 200 }
const smallDiskBytes = 4 * 1024 ** 3

export interface ProcessClusterOptions {
  readonly size: number
  readonly groups: number
  readonly seed: number
  /** Puts a proxy before each node. Default true. */
  readonly proxied?: boolean
  /** Puts the last node on a disk that can be filled. Default false. */
  readonly smallDisk?: boolean
  /** Makes the syncs of the first node fail or hang on command. Default false. */
  readonly syncFaults?: boolean
  /** Cuts logs after few entries, so that a node that was away for a moment needs a snapshot. Default false. */
  readonly shortLogs?: boolean
}

export class ProcessCluster {
  readonly folder: string
  readonly nodes: readonly NodeProcess[]
  readonly addresses: readonly string[]
  readonly proxy: LinkProxy | null
  /** Of the last node; null where disks cannot be mounted, or were not asked for. */
  readonly smallDisk: SmallDisk | null
  /** Of the first node; null where they cannot be compiled, or were not asked for. */
  readonly syncFaults: SyncFaults | null
  readonly groups: number
  readonly #undertaker: Undertaker
  readonly #clients: Node[] = []

  private constructor(
    parts: Pick<ProcessCluster, 'folder' | 'nodes' | 'addresses' | 'proxy' | 'smallDisk' | 'syncFaults' | 'groups'>,
    undertaker: Undertaker,
  ) {
    this.folder = parts.folder
    this.nodes = parts.nodes
    this.addresses = parts.addresses
    this.proxy = parts.proxy
    this.smallDisk = parts.smallDisk
    this.syncFaults = parts.syncFaults
    this.groups = parts.groups
    this.#undertaker = undertaker
  }

  /** Makes folders, proxies and processes, and starts the nodes. */
  static async open(options: ProcessClusterOptions): Promise<ProcessCluster> {
    const { size, groups, seed, proxied = true } = options
    const undertaker = new Undertaker()
    const folder = await mkdtemp(join(tmpdir(), 'quorate-processes-'))
    undertaker.add('folder', folder)
    const free = await freeAddresses(proxied ? size * 2 : size)
    const known = Array.from({ length: size }, (_, at) => {
      const target = free[at]!
      return { id: `n${at + 1}`, target, address: proxied ? free[size + at]! : target }
    })
    const proxy = proxied ? new LinkProxy(known, seed) : null
    const last = known[size - 1]!.id
    const smallDisk = options.smallDisk === true ? await SmallDisk.mount(join(folder, last), smallDiskBytes, undertaker) : null
    const library = options.syncFaults === true ? await SyncFaults.compile(folder) : null
    const syncFaults = library === null ? null : SyncFaults.of(library, join(folder, 'sync-mode'))
    // Every node in every group: each fault of a node is then one of every group.
    const bootstrap = { nodes: known.map(({ id, address }) => ({ id, address })), groups, replicas: size }
    const nodes = known.map(
      ({ id, target, address }, at) =>
        new NodeProcess(
          {
            id,
            location: join(folder, id, 'data'),
            listen: target,
            advertise: address,
            bootstrap,
            ...(options.shortLogs === true ? { tuning: shortLogs } : {}),
          },
          { undertaker, ...(at === 0 && syncFaults !== null ? { environment: syncFaults.environment } : {}) },
        ),
    )
    const addresses = known.map(({ address }) => address)
    const cluster = new ProcessCluster({ folder, nodes, addresses, proxy, smallDisk, syncFaults, groups }, undertaker)
    try {
      await proxy?.open()
      for (const { id } of known) await mkdir(join(folder, id), { recursive: true })
      await Promise.all(nodes.map((node) => node.start()))
    } catch (error) {
      await cluster.close()
      throw error
    }
    return cluster
  }

  /** A client in this process, closed with the cluster. */
  async client(): Promise<Node> {
    const client = await openNode({ role: 'client', transport: tcp(), seeds: this.addresses, requestTimeoutMs: 30_000, openTimeoutMs: patienceMs })
    this.#clients.push(client)
    return client
  }

  node(id: string): NodeProcess {
    return this.nodes.find((node) => node.id === id)!
  }

  /** Of the nodes that can answer: running, and not paused. */
  statuses(): Promise<ProcessStatus[]> {
    return Promise.all(this.nodes.filter(({ running, paused }) => running && !paused).map((node) => node.status()))
  }

  /** The nodes that lead something, by the group: of two that both say so, the one of the later term. */
  async leaders(): Promise<Map<number, NodeProcess>> {
    const leaders = new Map<number, NodeProcess>()
    const terms = new Map<number, number>()
    for (const { id, groups } of await this.statuses()) {
      for (const { group, role, term } of groups) {
        if (role !== 'leader' || term <= (terms.get(group) ?? 0)) continue
        leaders.set(group, this.node(id))
        terms.set(group, term)
      }
    }
    return leaders
  }

  /** Waits until all nodes run without a failure, agree who leads each group, all of whose members live, and have applied what was committed by then. */
  async healed(): Promise<void> {
    let last: ProcessStatus[] = []
    const committed = new Map<number, number>()
    await until(
      () => `all nodes agree: ${JSON.stringify(last)}`,
      async () => {
        last = await this.statuses()
        if (last.length < this.nodes.length || last.some(({ failure }) => failure !== null)) return false
        const leaderships = new Map<number, string>()
        for (const { group, leader, term, commitIndex } of last.flatMap(({ groups }) => groups)) {
          const leadership = `${leader} ${term}`
          if (leader === null || (leaderships.get(group) ?? leadership) !== leadership) return false
          leaderships.set(group, leadership)
          committed.set(group, Math.max(committed.get(group) ?? 0, commitIndex))
        }
        // Every node holds every group: a replica that is being replaced is missing until it is a voter and has caught up.
        const isWhole = last.every(({ groups }) =>
          groups.every(({ role, voters, live }) => role !== 'leader' || (voters.length === this.nodes.length && live === this.nodes.length)),
        )
        return isWhole && leaderships.size >= this.groups && last.every(({ groups }) => groups.length === leaderships.size)
      },
    )
    await until(
      () => `all nodes have applied ${JSON.stringify([...committed])}: ${JSON.stringify(last)}`,
      async () => {
        last = await this.statuses()
        return last.every(({ groups }) => groups.every(({ group, appliedIndex }) => appliedIndex >= committed.get(group)!))
      },
    )
  }

  async close(): Promise<void> {
    try {
      await Promise.all(this.#clients.map((client) => client.close()))
      this.syncFaults?.set('pass')
      await Promise.all(this.nodes.map((node) => node.kill()))
      await this.proxy?.close()
      await this.smallDisk?.close()
      await rm(this.folder, { recursive: true, force: true, maxRetries: 3 })
      this.#undertaker.remove('folder', this.folder)
    } finally {
      await this.#undertaker.end()
    }
  }
}

/** Waits until a condition holds, asked again and again; rejects when it does not in `patienceMs`. */
export async function until(what: string | (() => string), holds: () => boolean | Promise<boolean>, giveUpAfterMs = patienceMs): Promise<void> {
  const startMs = performance.now()
  while (!(await holds())) {
    if (performance.now() - startMs > giveUpAfterMs)
      throw new Error(`it did not come about in ${giveUpAfterMs} ms that ${typeof what === 'string' ? what : what()}`)
    await sleep(pollMs)
  }
}
