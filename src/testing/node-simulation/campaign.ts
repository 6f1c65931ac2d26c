/** Many seeds of whole nodes, summed up: what `npm run sim -- --node` runs and prints. */
import { addUp, sorted } from '../counts.js'
import type { NodeMutation } from './mutations.js'
import { type NodeSimulationResult, type NodeViolation, type PlantBug, runNodeSimulation } from './simulation.js'

export interface NodeCampaignOptions {
  readonly firstSeed: number
  readonly seeds: number
  readonly plant?: PlantBug
  /** Every so many seeds one is run twice, and must leave the same trace. Default 20; 0: never. */
  readonly repeatEvery?: number
  /** Called after each seed. */
  readonly onResult?: (result: NodeSimulationResult) => void
}

export interface NodeCampaignSummary {
  readonly seeds: number
  /** Seeds that were run twice, to the same trace. */
  readonly repeated: number
  /** Events. */
  readonly steps: number
  readonly simulatedSeconds: number
  readonly realSeconds: number
  readonly frames: number
  readonly elections: number
  readonly committed: number
  readonly operations: Readonly<Record<string, number>>
  /** How often each kind of fault happened. */
  readonly faults: Readonly<Record<string, number>>
  /** How often states were reached that are worth reaching. */
  readonly reached: Readonly<Record<string, number>>
  readonly violations: readonly NodeViolation[]
}

/** Runs consecutive seeds. */
export async function runNodeCampaign(options: NodeCampaignOptions): Promise<NodeCampaignSummary> {
  const startedMs = performance.now()
  const { firstSeed, seeds, plant, repeatEvery = 20 } = options
  const faults: Record<string, number> = {}
  const reached: Record<string, number> = {}
  const operations: Record<string, number> = {}
  const violations: NodeViolation[] = []
  const sums = { steps: 0, simulatedUs: 0, frames: 0, elections: 0, committed: 0, repeated: 0 }
  for (let seed = firstSeed; seed < firstSeed + seeds; seed++) {
    const result = await runNodeSimulation({ seed, ...(plant === undefined ? {} : { plant }) })
    let { violation } = result
    if (repeatEvery > 0 && (seed - firstSeed) % repeatEvery === 0) {
      sums.repeated++
      const again = await runNodeSimulation({ seed, ...(plant === undefined ? {} : { plant }) })
      if (again.traceHash !== result.traceHash) {
        violation ??= { seed, invariant: 'determinism', message: `two runs left the traces ${result.traceHash} and ${again.traceHash}` }
      }
    }
    sums.steps += result.steps
    sums.simulatedUs += result.simulatedUs
    sums.frames += result.frames
    sums.elections += result.elections
    sums.committed += result.committed
    addUp(faults, result.faults)
    addUp(reached, result.reached)
    addUp(operations, result.operations)
    if (violation !== null) violations.push(violation)
    options.onResult?.({ ...result, violation })
  }
  const { simulatedUs, ...counts } = sums
  return {
    seeds,
    ...counts,
    simulatedSeconds: Math.round(simulatedUs / 1e3) / 1e3,
    realSeconds: Math.round(performance.now() - startedMs) / 1e3,
    operations: sorted(operations),
    faults: sorted(faults),
    reached: sorted(reached),
    violations,
  }
}

export interface NodeMutationOutcome {
  readonly name: string
  /** How many seeds it took; null when none caught it. */
  readonly caughtAfterSeeds: number | null
  /** The invariant that caught it. */
  readonly invariant: string | null
}

/** Runs seeds with a known bug put back until one is caught, or the budget of seeds is spent. */
export async function runNodeMutation({ name, plant }: NodeMutation, firstSeed: number, budgetSeeds: number): Promise<NodeMutationOutcome> {
  for (let tried = 1; tried <= budgetSeeds; tried++) {
    const { violation } = await runNodeSimulation({ seed: firstSeed + tried - 1, plant })
    if (violation !== null) return { name, caughtAfterSeeds: tried, invariant: violation.invariant }
  }
  return { name, caughtAfterSeeds: null, invariant: null }
}
