/**
 * Shrinking: from a plan that fails to a smaller one that fails by the same invariant. Streams of chance belong to purposes and nodes, so what is left out hardly moves the rest.
 *
 * Order: the end is cut at the failure; whole kinds of faults and whole rates go; then single faults and operations by delta debugging (Zeller and Hildebrandt 2002, ddmin); then client nodes and
 * groups. A candidate is kept only if the same invariant fails.
 */
import type { NodePlan } from './plan.js'
import { type NodeSimulationResult, type PlantBug, runNodeSimulation } from './simulation.js'

export interface ShrinkOptions {
  readonly plan: NodePlan
  /** The invariant that must fail again. */
  readonly invariant: string
  readonly plant?: PlantBug
  /** Runs at most. Default 300. */
  readonly maxRuns?: number
}

export interface ShrunkPlan {
  readonly plan: NodePlan
  readonly runs: number
  /** The run of the smallest plan. */
  readonly result: NodeSimulationResult
}

/** Makes a failing plan smaller. Throws when the plan does not fail by the invariant. */
export async function shrinkPlan({ plan, invariant, plant, maxRuns = 300 }: ShrinkOptions): Promise<ShrunkPlan> {
  let best = plan
  let bestResult: NodeSimulationResult | null = null
  let runs = 0
  const attempt = async (candidate: NodePlan): Promise<boolean> => {
    if (runs >= maxRuns) return false
    runs++
    const result = await runNodeSimulation({ seed: candidate.seed, plan: candidate, ...(plant === undefined ? {} : { plant }) })
    if (result.violation?.invariant !== invariant) return false
    best = candidate
    bestResult = result
    return true
  }
  if (!(await attempt(plan))) throw new Error(`the plan of seed ${plan.seed} does not violate ${invariant}`)
  await cutEnd()
  for (const rate of ['lossRate', 'repeatRate', 'heldRate', 'flipRate'] as const) {
    if (best.network[rate] > 0) await attempt({ ...best, network: { ...best.network, [rate]: 0 } })
  }
  if (best.clockDrift > 0) await attempt({ ...best, clockDrift: 0 })
  for (const kind of new Set(best.faults.map((fault) => fault.kind)))
    await attempt({ ...best, faults: best.faults.filter((fault) => fault.kind !== kind) })
  await minimise('operations')
  await minimise('faults')
  if (best.clientNodes > 0) await attempt({ ...best, clientNodes: 0 })
  for (let groups = 1; groups < best.groups; groups++) if (await attempt({ ...best, groups })) break
  for (let nodes = best.replicas; nodes < best.nodes; nodes++) if (await attempt({ ...best, nodes })) break
  await minimise('faults')
  return { plan: best, runs, result: bestResult! }

  async function cutEnd(): Promise<void> {
    const endUs = Math.min(best.faultyUs, bestResult!.simulatedUs + 1)
    const cut = (atUs: number): NodePlan => ({
      ...best,
      faultyUs: atUs,
      faults: best.faults.filter((fault) => fault.atUs <= atUs),
      operations: best.operations.filter((operation) => operation.atUs <= atUs),
    })
    await attempt(cut(endUs))
    for (const part of [0.25, 0.5, 0.75]) if (await attempt(cut(best.faultyUs * part))) break
  }

  /** ddmin: leaves out ever smaller parts of a list. */
  async function minimise(list: 'faults' | 'operations'): Promise<void> {
    let parts = 2
    while (runs < maxRuns) {
      const items = best[list] as readonly unknown[]
      if (items.length === 0) return
      const size = Math.ceil(items.length / parts)
      let smaller = false
      for (let start = 0; start < items.length && !smaller; start += size) {
        const rest = [...items.slice(0, start), ...items.slice(start + size)]
        smaller = await attempt({ ...best, [list]: rest })
      }
      if (smaller) parts = Math.max(2, parts - 1)
      else if (size === 1) return
      else parts = Math.min(items.length, parts * 2)
    }
  }
}
