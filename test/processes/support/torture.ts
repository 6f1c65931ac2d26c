/**
 * A campaign against real processes: rounds of one fault each under load, every history judged, nothing acknowledged lost at any later time.
 *
 * Invariants: 1. the same seed draws the same faults with the same parameters; what real processes make of them differs from run to run; 2. a violation ends the campaign, and
 * leaves nothing behind.
 */
import { performance } from 'node:perf_hooks'
import { SeededRandom } from '../../../src/testing/seeded-random.js'
import { type Fault, type FaultName, faultNames, faults } from './faults.js'
import { Ledger, Load } from './load.js'
import { ProcessCluster } from './process-cluster.js'

export interface TortureOptions {
  readonly seed: number
  readonly rounds: number
  /** The faults to draw from, each as often as the others. Default: all that this machine can do. */
  readonly only?: readonly FaultName[]
  /** Nodes. Default 3, and 5 in every third cluster. */
  readonly size?: number
  /** Rounds before a fresh cluster takes over. Default 40. */
  readonly roundsPerCluster?: number
  readonly onRound?: (round: number, fault: FaultName, seconds: number) => void
}

export interface Waits {
  readonly count: number
  readonly p50Ms: number
  readonly p99Ms: number
  readonly mostMs: number
}

export interface TortureSummary {
  readonly seed: number
  readonly rounds: number
  readonly seconds: number
  /** Rounds by fault. */
  readonly faults: Readonly<Record<string, number>>
  /** Faults that this machine cannot do, and why. */
  readonly leftOut: readonly string[]
  readonly operations: number
  readonly unknownOutcomes: number
  /** How long writes were held up by the end of a leader. */
  readonly heldUp: { readonly killed: Waits; readonly closed: Waits }
  readonly violations: readonly { readonly round: number; readonly fault: string; readonly message: string }[]
}

export async function runTorture(options: TortureOptions): Promise<TortureSummary> {
  const { seed, rounds, only = faultNames, roundsPerCluster = 40, onRound } = options
  const random = new SeededRandom(seed, 'rounds')
  const startMs = performance.now()
  const counts: Record<string, number> = {}
  const heldUp = { killed: [] as number[], closed: [] as number[] }
  const leftOut = new Set<string>()
  const violations: { round: number; fault: string; message: string }[] = []
  let operations = 0
  let unknownOutcomes = 0
  let done = 0
  for (let epoch = 0; done < rounds && violations.length === 0; epoch++) {
    const size = options.size ?? (epoch % 3 === 2 ? 5 : 3)
    const needs = (what: Fault['needs']) => only.some((name) => (faults[name] as Fault).needs === what)
    const cluster = await ProcessCluster.open({
      size,
      groups: random.integer(2, 4),
      seed: seed + epoch,
      proxied: needs('links'),
      shortLogs: random.chance(0.5),
      smallDisk: needs('small-disk'),
      syncFaults: needs('sync-faults'),
    })
    try {
      const able = only.filter((name) => {
        const { needs: need } = faults[name] as Fault
        const lacks = (need === 'small-disk' && cluster.smallDisk === null) || (need === 'sync-faults' && cluster.syncFaults === null)
        if (lacks) leftOut.add(`${name}: ${need === 'small-disk' ? 'no right to mount' : 'no C compiler'}`)
        return !lacks
      })
      const ledger = new Ledger()
      const clients = await Promise.all([cluster.client(), cluster.client()])
      // Each fault once before any comes again.
      let deck: FaultName[] = []
      for (let round = 0; round < roundsPerCluster && done < rounds && violations.length === 0; round++) {
        if (deck.length === 0) deck = random.shuffle(able)
        const name = deck.pop()!
        const roundMs = performance.now()
        const load = new Load(
          clients.map(({ kv }) => kv),
          `round-${done}`,
          seed,
        )
        load.start()
        try {
          await load.progress(1)
          await faults[name].run({ cluster, load, random: new SeededRandom(seed, `round ${done}`), heldUp: (how, ms) => heldUp[how].push(ms) })
          await cluster.healed()
          await load.progress()
          await load.stop()
          ledger.add(await load.check())
          if (round % 10 === 9) await ledger.check(clients[0].kv)
        } catch (error) {
          await load.stop().catch(() => {})
          violations.push({ round: done, fault: name, message: error instanceof Error ? (error.stack ?? error.message) : String(error) })
        }
        operations += load.history.operations.length
        unknownOutcomes += load.history.operations.filter(({ result }) => result === 'unknown').length
        counts[name] = (counts[name] ?? 0) + 1
        onRound?.(done, name, (performance.now() - roundMs) / 1000)
        done++
      }
      if (violations.length === 0) {
        await ledger.check(clients[1].kv).catch((error: unknown) => {
          violations.push({ round: done - 1, fault: 'none', message: String(error) })
        })
      }
    } finally {
      await cluster.close()
    }
  }
  return {
    seed,
    rounds: done,
    seconds: (performance.now() - startMs) / 1000,
    faults: counts,
    leftOut: [...leftOut],
    operations,
    unknownOutcomes,
    heldUp: { killed: summarize(heldUp.killed), closed: summarize(heldUp.closed) },
    violations,
  }
}

function summarize(waits: readonly number[]): Waits {
  const sorted = [...waits].sort((a, b) => a - b)
  // The smallest that so many hundredths do not exceed.
  const at = (share: number) => Math.round((sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0) * 10) / 10
  return { count: sorted.length, p50Ms: at(0.5), p99Ms: at(0.99), mostMs: at(1) }
}
