/** Many seeds, summed up: what `npm run sim` runs and prints. */
import { addUp, sorted } from '../counts.js'
import type { Mutation } from './mutations.js'
import { runSimulation, type SimulationParts, type SimulationResult, type Violation } from './simulation.js'

export interface CampaignOptions {
  readonly firstSeed: number
  readonly seeds: number
  readonly parts?: SimulationParts
  /** Called after each seed. */
  readonly onResult?: (result: SimulationResult) => void
}

export interface CampaignSummary {
  readonly seeds: number
  /** Events. */
  readonly steps: number
  readonly simulatedSeconds: number
  readonly realSeconds: number
  readonly messages: number
  readonly elections: number
  readonly committed: number
  readonly operations: Readonly<Record<string, number>>
  /** How often each kind of fault happened. */
  readonly faults: Readonly<Record<string, number>>
  /** How often states were reached that are worth reaching. */
  readonly reached: Readonly<Record<string, number>>
  readonly violations: readonly Violation[]
}

/** Runs consecutive seeds. */
export function runCampaign(options: CampaignOptions): CampaignSummary {
  const startedMs = performance.now()
  const faults: Record<string, number> = {}
  const reached: Record<string, number> = {}
  const operations: Record<string, number> = {}
  const violations: Violation[] = []
  let steps = 0
  let simulatedUs = 0
  let messages = 0
  let elections = 0
  let committed = 0
  for (let seed = options.firstSeed; seed < options.firstSeed + options.seeds; seed++) {
    const result = runSimulation({ seed, ...(options.parts === undefined ? {} : { parts: options.parts }) })
    steps += result.steps
    simulatedUs += result.simulatedUs
    messages += result.messages
    elections += result.elections
    committed += result.committed
    addUp(faults, result.faults)
    addUp(reached, result.reached)
    addUp(operations, { ...result.operations })
    if (result.violation !== null) violations.push(result.violation)
    options.onResult?.(result)
  }
  return {
    seeds: options.seeds,
    steps,
    simulatedSeconds: Math.round(simulatedUs / 1e3) / 1e3,
    realSeconds: Math.round(performance.now() - startedMs) / 1e3,
    messages,
    elections,
    committed,
    operations,
    faults: sorted(faults),
    reached: sorted(reached),
    violations,
  }
}

export interface MutationOutcome {
  readonly name: string
  /** How many seeds it took; null when none caught it. */
  readonly caughtAfterSeeds: number | null
  /** The invariant that caught it. */
  readonly invariant: string | null
}

/** Runs seeds with a known bug put back until one is caught, or the budget of seeds is spent. */
export function runMutation(mutation: Mutation, firstSeed: number, budgetSeeds: number): MutationOutcome {
  for (let tried = 1; tried <= budgetSeeds; tried++) {
    const seed = firstSeed + tried - 1
    const plan = mutation.plan === undefined ? {} : { plan: mutation.plan(seed) }
    const { violation } = runSimulation({ seed, parts: mutation.parts(), ...plan })
    if (violation !== null) return { name: mutation.name, caughtAfterSeeds: tried, invariant: violation.invariant }
  }
  return { name: mutation.name, caughtAfterSeeds: null, invariant: null }
}
