/**
 * `npm run bench`: puts and linearizable gets of a three-node quorate cluster, alone or in turn with etcd and Redis. Method, pitfalls and figures: README.md here.
 *
 * 1. Systems take turns within one run (A B A B …) and only one of them runs at a time. 2. Progress goes to stderr; the table, and with `--json` the JSON as the last
 * line, go to stdout. 3. No process outlives the run.
 */
import { loadavg } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { Workplace } from '../scripts/workplace.js'
import { measureIdleGroups } from './idle.js'
import type { CellOptions, CellResult } from './load.js'
import { type BenchOptions, type Peer, parseOptions, usage } from './options.js'
import { formatTable, type Measurement, makeReport } from './report.js'
import { measureSnapshots } from './snapshot.js'
import { soak } from './soak.js'
import { etcdSystem, findProgram, quorateSystem, redisSystem, type System } from './systems.js'

/** Time for the disk to write back what a system left, before the other one starts. */
const settleMs = 1000

const peerPrograms = {
  etcd: { program: 'etcd', debianPackage: 'etcd-server', system: etcdSystem },
  redis: { program: 'redis-server', debianPackage: 'redis-server', system: redisSystem },
} as const satisfies Record<Peer, unknown>

function progress(line: string): void {
  process.stderr.write(`${line}\n`)
}

async function measureSystem(system: System, options: BenchOptions, isFirstRound: boolean): Promise<Measurement[]> {
  const measurements: Measurement[] = []
  const sources = await system.start()
  if (isFirstRound) {
    progress(`${system.name}: writing the keys`)
    await sources[0]!.process.ask('preload')
  }
  for (const source of sources) {
    // Everything is fresh in each round, compiled code included: one cell that does not count.
    await source.process.ask<CellResult>('measure', { operation: 'put', callers: 64, warmUpMs: 0, durationMs: 1500 } satisfies CellOptions)
    for (const op of options.operations) {
      for (const callers of options.callers) {
        const cell: CellOptions = { operation: op, callers, warmUpMs: options.warmUpSeconds * 1000, durationMs: options.seconds * 1000 }
        const logWritesBefore = await system.logWrites()
        const result = await source.process.ask<CellResult>('measure', cell)
        const logWritesAfter = await system.logWrites()
        // The servers count from before the warm-up: take the measured share of it.
        const share = options.seconds / (options.seconds + options.warmUpSeconds)
        const logWrites = logWritesBefore === undefined ? undefined : (logWritesAfter! - logWritesBefore) * share
        measurements.push({ system: source.system, op, callers, logWrites, ...result })
        progress(
          `${source.system} ${op} ${callers}: ${Math.round(result.opsPerSecond)} ops/s, p50 ${result.p50Ms.toFixed(2)} ms, p99 ${result.p99Ms.toFixed(2)} ms`,
        )
      }
    }
  }
  await system.stop()
  await sleep(settleMs)
  return measurements
}

async function run(options: BenchOptions): Promise<void> {
  const programs = options.peers.map((peer) => {
    const { program, debianPackage } = peerPrograms[peer]
    const path = findProgram(program)
    if (path === undefined)
      throw new Error(`there is no ${program} program on the PATH, and this installs nothing (Debian has it in ${debianPackage})`)
    return { peer, path }
  })
  const workplace = new Workplace('quorate-bench')
  try {
    const systems = [await quorateSystem(workplace, options.groups)]
    for (const { peer, path } of programs) systems.push(await peerPrograms[peer].system(workplace, path))
    const cells = (2 + systems.length - 1) * options.operations.length * options.callers.length * options.rounds
    progress(
      `${cells} cells, about ${Math.ceil((cells * (options.seconds + options.warmUpSeconds)) / 60)} minutes; load average before the start: ${loadavg()[0]!.toFixed(2)}`,
    )
    const measurements: Measurement[] = []
    for (let round = 0; round < options.rounds; round++) {
      for (const system of systems) measurements.push(...(await measureSystem(system, options, round === 0)))
    }
    const report = makeReport(measurements)
    console.log(formatTable(measurements, report, options.seconds))
    if (options.json) console.log(JSON.stringify(report))
  } finally {
    await workplace.close()
  }
}

async function runSoak(minutes: number, options: BenchOptions): Promise<void> {
  const workplace = new Workplace('quorate-bench')
  try {
    progress(`load average before the start: ${loadavg()[0]!.toFixed(2)}; writing ${options.keys} keys`)
    const samples = await soak(workplace, {
      minutes,
      keys: options.keys,
      onKeys: () => progress('keys written'),
      onSample: ({ minute, putsPerSecond, getsPerSecond, rssMegabytes, heapMegabytes, externalMegabytes }) =>
        console.log(
          `${minute.toFixed(1).padStart(5)} min: ${putsPerSecond} puts/s, ${getsPerSecond} gets/s; MiB resident ${rssMegabytes.join(' ')}, heap ${heapMegabytes.join(' ')}, external ${externalMegabytes.join(' ')}`,
        ),
    })
    if (options.json) console.log(JSON.stringify({ keys: options.keys, samples }))
  } finally {
    await workplace.close()
  }
}

async function runSnapshot(megabytes: number, options: BenchOptions): Promise<void> {
  const workplace = new Workplace('quorate-bench')
  try {
    progress(`load average before the start: ${loadavg()[0]!.toFixed(2)}`)
    const callers = options.callers.length === 1 ? options.callers[0]! : 64
    const rounds = await measureSnapshots(workplace, { megabytes, callers, rounds: options.rounds, progress })
    for (const { streamed, quiet, streamMs, streamedBytes } of rounds) {
      console.log(
        `with a snapshot of ${(streamedBytes / 2 ** 20).toFixed(0)} MiB in ${(streamMs / 1000).toFixed(1)} s: ${describeCell(streamed)}; without: ${describeCell(quiet)}; p99 ${(streamed.p99Ms / quiet.p99Ms).toFixed(2)} times`,
      )
    }
    if (options.json) console.log(JSON.stringify({ callers, rounds }))
  } finally {
    await workplace.close()
  }
}

function describeCell({ opsPerSecond, p50Ms, p99Ms }: CellResult): string {
  return `${Math.round(opsPerSecond)} puts/s, p50 ${p50Ms.toFixed(2)} ms, p99 ${p99Ms.toFixed(2)} ms`
}

async function runIdle(groups: number, options: BenchOptions): Promise<void> {
  const workplace = new Workplace('quorate-bench')
  try {
    const costs = await measureIdleGroups(workplace, groups, options.seconds)
    for (const { node, groupsLed, cpuPercent } of costs) {
      console.log(`node ${node}: leads ${groupsLed} of ${groups} idle groups, ${cpuPercent.toFixed(1)} % of a core`)
    }
    if (options.json) console.log(JSON.stringify({ groups, nodes: costs }))
  } finally {
    await workplace.close()
  }
}

try {
  const options = parseOptions(process.argv.slice(2).filter((argument) => argument !== '--help'))
  if (process.argv.includes('--help')) console.log(usage)
  else if (options.soakMinutes !== undefined) await runSoak(options.soakMinutes, options)
  else if (options.snapshotMegabytes !== undefined) await runSnapshot(options.snapshotMegabytes, options)
  else if (options.idleGroups === undefined) await run(options)
  else await runIdle(options.idleGroups, options)
} catch (error) {
  console.error(error instanceof Error ? error : String(error))
  process.exitCode = 1
}
