/**
 * `npm run demo`: the whole of quorate on real text, with three real processes on loopback, one of which is killed in the middle.
 *
 * This process is a client of the cluster (a node without data) and runs the jobs; the nodes and their worker threads are in the other three.
 *
 * 1. `verified` is printed only when every result equals a plain sequential count of the same files (sequential.ts). 2. Nothing is left: no process,
 * no folder, on success, failure and Ctrl-C alike. 3. The exit code is 0 only with `verified`.
 */
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import PQueue from 'p-queue'
import { type Node, openNode } from 'quorate'
import { fromKv, type JobEvent, openOutput, toKv } from 'quorate/mapreduce'
import { tcp } from 'quorate/transport/tcp'
import { type Child, freeAddresses, Workplace } from '../../scripts/workplace.js'
import { type Corpus, gatherDocumentation, gatherPaths } from './corpus.js'
import type { NodeArgument, ReplicaStatus } from './node-process.js'
import { type ProbeSummary, WriteProbe } from './probe.js'
import { countSequentially, differences, type Results } from './sequential.js'

/** Puts under way at once while loading. */
const loadConcurrency = 32
/** Input of a map task: small, so that there are enough tasks to see them move. */
const splitBytes = 512 * 1024
const probeWriters = 8
const progressIntervalMs = 1000
const searchWord = 'fsync'
const documentPrefix = 'docs/'
const countsPrefix = 'results/word-count/'
const indexPrefix = 'results/inverted-index/'

const startMs = performance.now()

/** A line of the story, with the seconds since the start. */
function say(line: string): void {
  const seconds = ((performance.now() - startMs) / 1000).toFixed(1)
  console.log(`${seconds.padStart(5)} s  ${line}`)
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}

interface Cluster {
  readonly members: Map<string, Child>
  readonly client: Node
}

async function openCluster(workplace: Workplace): Promise<Cluster> {
  const ids = ['a', 'b', 'c']
  const addresses = await freeAddresses(ids.length)
  const nodes = ids.map((id, position) => ({ id, address: addresses[position]! }))
  const members = new Map<string, Child>()
  const open = async (id: string) => {
    const argument: NodeArgument = { id, location: join(workplace.folder, id), nodes }
    members.set(id, await workplace.fork(id, new URL('./node-process.js', import.meta.url), { argument }))
  }
  await Promise.all(ids.map(open))
  return { members, client: await openNode({ role: 'client', transport: tcp(), seeds: addresses }) }
}

/** Who leads each group, asked of every node that is alive; resolves when every group has a leader. */
async function findLeaders(cluster: Cluster): Promise<Map<number, { id: string; term: number }>> {
  for (;;) {
    const leaders = new Map<number, { id: string; term: number }>()
    const groups = new Set<number>()
    const alive = [...cluster.members].filter(([, member]) => !member.isEnded)
    const statuses = await Promise.all(alive.map(async ([id, member]) => ({ id, replicas: await member.ask<ReplicaStatus[]>('status') })))
    for (const { id, replicas } of statuses) {
      for (const { group, role, term } of replicas) {
        groups.add(group)
        // Right after a change the old leader may not know yet: the higher term counts.
        if (role === 'leader' && term > (leaders.get(group)?.term ?? 0)) leaders.set(group, { id, term })
      }
    }
    if (leaders.size === groups.size) return leaders
    await sleep(50)
  }
}

function describeLeaders(leaders: ReadonlyMap<number, { id: string; term: number }>): string {
  return [...leaders].map(([group, { id, term }]) => `group ${group} is led by ${id} (term ${term})`).join(', ')
}

async function load(kv: Node['kv'], corpus: Corpus): Promise<string> {
  const begunMs = performance.now()
  const queue = new PQueue({ concurrency: loadConcurrency })
  let done = 0
  let saidQuarter = 0
  const put = async ({ key, value }: Corpus['documents'][number]) => {
    await kv.put(documentPrefix + key, value)
    const quarter = Math.floor((++done * 4) / corpus.documents.length)
    if (quarter > saidQuarter && quarter < 4) say(`  loading: ${quarter * 25} %`)
    saidQuarter = quarter
  }
  await queue.addAll(corpus.documents.map((document) => () => put(document)))
  const seconds = (performance.now() - begunMs) / 1000
  return `${corpus.documents.length} documents, ${megabytes(corpus.bytes)} in ${seconds.toFixed(1)} s: ${megabytes(corpus.bytes / seconds)}/s, each fsynced on a majority`
}

/** Runs a job over all documents, with progress; its result is in the store afterwards. */
async function runJob(client: Node, job: string, prefix: string, signal: AbortSignal, onEvent: (event: JobEvent) => Promise<void>): Promise<void> {
  const begunMs = performance.now()
  const handle = client.mapReduce({ job, input: fromKv({ prefix: documentPrefix }), output: toKv({ prefix }), splitBytes, signal })
  const nodes = new Set<string>()
  let saidAtMs = 0
  for await (const event of handle) {
    await onEvent(event)
    if (event.type === 'task-finished') nodes.add(event.nodeId)
    if (event.type === 'worker-lost') say(`  ${job}: node ${event.nodeId} is gone; ${event.tasks.length} tasks run again elsewhere`)
    if (event.type !== 'progress' || (performance.now() - saidAtMs < progressIntervalMs && event.done < event.total)) continue
    // The number of map tasks grows while ranges of keys prove larger than thought.
    say(`  ${job}: ${event.done} of ${event.total} ${event.phase} tasks done`)
    saidAtMs = performance.now()
  }
  const { stats, output } = await handle.result()
  const seconds = ((performance.now() - begunMs) / 1000).toFixed(1)
  say(
    `${job}: ${output.pairs} words from ${megabytes(stats.inputBytes)} in ${seconds} s by nodes ${[...nodes].sort().join(', ')}; ${stats.retried} of ${stats.attempts} attempts lost`,
  )
}

/** Kills the process that leads the first group, once, as soon as the map tasks of a job are under way. */
class Killer {
  readonly #cluster: Cluster
  readonly #probe: WriteProbe
  /** Resolves when the groups have leaders again. */
  healed: Promise<void> | undefined

  constructor(cluster: Cluster, probe: WriteProbe) {
    this.#cluster = cluster
    this.#probe = probe
  }

  async onEvent(event: JobEvent): Promise<void> {
    if (this.healed !== undefined || event.type !== 'progress' || event.phase !== 'map') return
    // With a handful of tasks the first sign of life is the middle.
    if (event.done < Math.floor(event.total / 3)) return
    this.healed = this.#kill(`${event.done} of ${event.total} map tasks done`)
    await this.healed
  }

  async #kill(when: string): Promise<void> {
    const leaders = await findLeaders(this.#cluster)
    const [group, { id }] = [...leaders][0]!
    const led = [...leaders].filter(([, leader]) => leader.id === id).map(([each]) => each)
    say(`SIGKILL to the process of node ${id}, which leads group ${led.join(' and ') || group}, with ${when}`)
    this.#probe.markKill()
    await this.#cluster.members.get(id)!.kill()
    const newLeaders = await findLeaders(this.#cluster)
    say(`${describeLeaders(newLeaders)}; ${id} is gone`)
  }
}

/** Reads what the jobs left in the store. */
async function readResults(kv: Node['kv']): Promise<Results> {
  const counts = new Map<string, number>()
  for await (const [word, count] of (await openOutput<number>(kv, countsPrefix)).scan()) counts.set(String(word), count)
  const index = new Map<string, readonly string[]>()
  for await (const [word, keys] of (await openOutput<string[]>(kv, indexPrefix)).scan()) index.set(String(word), keys)
  return { counts, index }
}

/** The package (or the folder) that a document belongs to. */
function packageOf(key: string): string {
  const path = key.slice(documentPrefix.length).split('/')
  const inner = path.lastIndexOf('node_modules')
  const own = path.slice(inner + 1)
  return own[0]!.startsWith('@') ? `${own[0]}/${own[1]}` : own[0]!
}

/** Prints what a reader of the results would want to see. */
function showResults({ counts, index }: Results): void {
  const top = [...counts].sort(([, a], [, b]) => b - a).slice(0, 12)
  say(`top words: ${top.map(([word, count]) => `${word} ${count}`).join(', ')}`)
  const found = index.get(searchWord) ?? []
  const packages = new Map<string, number>()
  for (const key of found) packages.set(packageOf(key), (packages.get(packageOf(key)) ?? 0) + 1)
  const list = [...packages].sort(([, a], [, b]) => b - a).map(([name, files]) => `${name} (${files})`)
  say(`"${searchWord}" is in ${found.length} documents of: ${list.join(', ') || 'none'}`)
}

async function run(workplace: Workplace): Promise<void> {
  const paths = process.argv.slice(2)
  say(`three node processes start on loopback, their folders in ${workplace.folder}`)
  const [cluster, corpus] = await Promise.all([
    openCluster(workplace),
    paths.length > 0 ? gatherPaths(paths) : gatherDocumentation(fileURLToPath(new URL('../../../node_modules', import.meta.url))),
  ])
  const { client } = cluster
  try {
    say(describeLeaders(await findLeaders(cluster)))
    say(`${corpus.files} files, ${megabytes(corpus.bytes)} of text; ${corpus.cut.length} large ones cut into parts, ${corpus.skipped.length} skipped`)
    for (const line of corpus.skipped.slice(0, 10)) say(`  skipped ${line}`)
    const throughput = await load(client.kv, corpus)
    say(`loaded ${throughput}`)

    const probe = new WriteProbe(client.kv, probeWriters)
    const killer = new Killer(cluster, probe)
    let summary: ProbeSummary | undefined
    await client.lock('demo').run(async ({ fence, signal }) => {
      say(`lock "demo" taken, fencing token ${fence}; ${probeWriters} writers now write all the time`)
      probe.start()
      const onEvent = (event: JobEvent) => killer.onEvent(event)
      await runJob(client, 'word-count', countsPrefix, signal, onEvent)
      await runJob(client, 'inverted-index', indexPrefix, signal, onEvent)
      await killer.healed
      summary = await probe.stop()
    })
    say('lock "demo" given back, held all the time')
    if (killer.healed === undefined || summary === undefined) throw new Error('no leader was killed while a job ran')
    const { writes, holdUpMs, usualHoldUpMs } = summary
    say(
      `writes were held up for ${holdUpMs.toFixed(0)} ms by the kill (the longest wait before it: ${usualHoldUpMs.toFixed(0)} ms); ${writes} writes, none lost, none done twice`,
    )

    const results = await readResults(client.kv)
    showResults(results)
    say(`load: ${throughput}`)
    const wrong = differences(results, countSequentially(corpus.documents, documentPrefix))
    if (wrong.length > 0) throw new Error(`the results differ from a plain sequential count:\n${wrong.join('\n')}`)
    say(`verified: ${results.counts.size} counts and ${results.index.size} index entries equal a plain sequential count`)
  } finally {
    await client.close()
  }
}

const workplace = new Workplace('quorate-demo')
// This client coordinates the jobs and keeps their parts in the system's temporary folder for a while: let that go with everything else.
process.env['TMPDIR'] = workplace.folder
try {
  await run(workplace)
} catch (error) {
  console.error(error)
  process.exitCode = 1
} finally {
  await workplace.close()
}
