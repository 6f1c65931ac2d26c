/**
 * The simulators' command line: `npm run sim -- [--node] [--seeds N] [--from S] [--seed S] [--mutations] [--mutation NAME] [--budget N] [--json]`.
 *
 * With `--json` the result is the last thing on stdout. Exit code 1 when an invariant was violated, or a mutation was not caught.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type NodeCampaignSummary, runNodeCampaign, runNodeMutation } from '../src/testing/node-simulation/campaign.js'
import { type NodeMutation, nodeMutations } from '../src/testing/node-simulation/mutations.js'
import { drawNodePlan, type NodePlan } from '../src/testing/node-simulation/plan.js'
import { shrinkPlan } from '../src/testing/node-simulation/shrink.js'
import { runNodeSimulation } from '../src/testing/node-simulation/simulation.js'
import { type CampaignSummary, runCampaign, runMutation } from '../src/testing/simulation/campaign.js'
import { mutations } from '../src/testing/simulation/mutations.js'
import { drawPlan, type SimulationPlan } from '../src/testing/simulation/plan.js'
import { runSimulation, type SimulationParts, soundParts } from '../src/testing/simulation/simulation.js'

const usage = `usage: npm run sim -- [options]
  --node           whole nodes, not the consensus core alone
  --all            both, and the known bugs: --seeds-core N (2000) and --seeds-node M (200)
  --seeds N        run N seeds (default 200)
  --from S         start at seed S (default 1)
  --seed S         replay one seed and print every event
  --shrink         with --node --seed S: make its plan smaller while the same invariant fails, and save it
  --plan FILE      with --node: run a plan that was saved
  --mutations      put known bugs back one by one and count the seeds until each is caught
  --mutation NAME  run with one known bug
  --budget N       seeds for each mutation (default 500)
  --json           print the result as JSON, last`

function integer(text: string | undefined, name: string, fallback: number): number {
  if (text === undefined) return fallback
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`--${name} takes a whole number, not ${text}`)
  return value
}

const print = (text: string): void => {
  process.stdout.write(`${text}\n`)
}

interface Summary {
  readonly seeds: number
  readonly steps: number
  readonly simulatedSeconds: number
  readonly realSeconds: number
  readonly elections: number
  readonly committed: number
  readonly operations: Readonly<Record<string, number>>
  readonly faults: Readonly<Record<string, number>>
  readonly reached: Readonly<Record<string, number>>
  readonly violations: readonly unknown[]
}

function printSummary(summary: Summary, transported: string): void {
  const ratio = summary.simulatedSeconds / summary.realSeconds
  print(
    `${summary.seeds} seeds, ${summary.steps} steps, ${(summary.simulatedSeconds / 3600).toFixed(2)} simulated hours in ${summary.realSeconds.toFixed(1)} s (${ratio.toFixed(0)} to 1)`,
  )
  print(`${transported}, ${summary.elections} elections, ${summary.committed} entries committed`)
  print(`operations: ${JSON.stringify(summary.operations)}`)
  print(`faults: ${JSON.stringify(summary.faults)}`)
  print(`reached: ${JSON.stringify(summary.reached)}`)
  print(`${summary.violations.length} violations`)
}

/** Collects lines and writes them in blocks: one write a line would take longer than the run. */
function lineBlocks(): { line: (line: string) => void; flush: () => void } {
  let block: string[] = []
  const flush = (): void => {
    if (block.length > 0) print(block.join('\n'))
    block = []
  }
  const line = (text: string): void => {
    block.push(text)
    if (block.length >= 1000) flush()
  }
  return { line, flush }
}

function findNodeMutation(name: string | undefined): NodeMutation | undefined {
  if (name === undefined) return undefined
  const mutation = nodeMutations.find((each) => each.name === name)
  if (mutation === undefined) throw new RangeError(`no mutation ${name}; there are: ${nodeMutations.map((each) => each.name).join(', ')}`)
  return mutation
}

async function replayNodes(plan: NodePlan, mutation: NodeMutation | undefined, json: boolean): Promise<number> {
  const { faults, operations, ...config } = plan
  if (!json) print(`plan ${JSON.stringify({ ...config, faults: faults.length, operations: operations.length }, null, 2)}`)
  const { line, flush } = lineBlocks()
  const plant = mutation === undefined ? {} : { plant: mutation.plant }
  const { plan: _plan, ...result } = await runNodeSimulation({ seed: plan.seed, plan, ...plant, ...(json ? {} : { onLine: line }) })
  flush()
  print(JSON.stringify(result, null, 2))
  return result.violation === null ? 0 : 1
}

/** Shrinks what failed, and saves the smaller plan where `--plan` finds it. */
async function shrinkAndSave(seed: number, mutation: NodeMutation | undefined): Promise<void> {
  const plant = mutation === undefined ? {} : { plant: mutation.plant }
  const { plan, violation } = await runNodeSimulation({ seed, ...plant })
  if (violation === null) return print(`seed ${seed} violates nothing`)
  const shrunk = await shrinkPlan({ plan, invariant: violation.invariant, ...plant })
  const file = join(tmpdir(), `quorate-simulation-${seed}.json`)
  await writeFile(file, JSON.stringify(shrunk.plan, null, 2))
  print(
    `seed ${seed} shrunk in ${shrunk.runs} runs: ${plan.faults.length} faults to ${shrunk.plan.faults.length}, ${plan.operations.length} operations to ${shrunk.plan.operations.length}; replay: npm run sim -- --node --plan ${file}`,
  )
  print(`${violation.invariant}: ${shrunk.result.violation!.message}`)
  for (const fault of shrunk.plan.faults) print(`  ${JSON.stringify(fault)}`)
}

async function campaignOfNodes(firstSeed: number, seeds: number, json: boolean): Promise<NodeCampaignSummary> {
  const summary = await runNodeCampaign({
    firstSeed,
    seeds,
    onResult: ({ seed, violation }) => {
      if (json) return
      if (violation !== null) print(`seed ${seed}: ${violation.invariant}: ${violation.message}`)
      const done = seed - firstSeed + 1
      if (done % 100 === 0) process.stderr.write(`${done} of ${seeds} seeds of whole nodes\n`)
    },
  })
  if (!json) {
    printSummary(summary, `${summary.frames} frames`)
    for (const { seed, invariant } of summary.violations.slice(0, 3)) if (invariant !== 'determinism') await shrinkAndSave(seed, undefined)
  }
  return summary
}

function campaignOfCores(firstSeed: number, seeds: number, parts: SimulationParts, json: boolean): CampaignSummary {
  const summary = runCampaign({
    firstSeed,
    seeds,
    parts,
    onResult: ({ seed, violation }) => {
      if (json) return
      if (violation !== null) print(`seed ${seed}: ${violation.invariant}: ${violation.message}`)
      const done = seed - firstSeed + 1
      if (done % 500 === 0) process.stderr.write(`${done} of ${seeds} seeds\n`)
    },
  })
  if (!json) printSummary(summary, `${summary.messages} messages`)
  return summary
}

interface AnyMutationOutcome {
  readonly name: string
  readonly caughtAfterSeeds: number | null
  readonly invariant: string | null
}

/** Puts all known bugs back, one by one: those of the core in the core's simulator, those of host and stores in whole nodes. */
async function catchMutations(firstSeed: number, budget: number, json: boolean): Promise<AnyMutationOutcome[]> {
  const outcomes: AnyMutationOutcome[] = []
  const note = (outcome: AnyMutationOutcome): void => {
    outcomes.push(outcome)
    if (json) return
    const { name, caughtAfterSeeds, invariant } = outcome
    print(
      `${name.padEnd(36)} ${caughtAfterSeeds === null ? `NOT CAUGHT in ${budget} seeds` : `caught after ${caughtAfterSeeds} seeds by ${invariant}`}`,
    )
  }
  for (const mutation of mutations) note(runMutation(mutation, firstSeed, budget))
  for (const mutation of nodeMutations) note(await runNodeMutation(mutation, firstSeed, budget))
  return outcomes
}

/** All proofs with one command: seeds, simulated hours, faults by kind, mutations caught. */
async function everything(firstSeed: number, seedsOfCores: number, seedsOfNodes: number, budget: number, json: boolean): Promise<number> {
  if (!json) print('The consensus core')
  const core = campaignOfCores(firstSeed, seedsOfCores, soundParts, json)
  if (!json) print('\nWhole nodes')
  const node = await campaignOfNodes(firstSeed, seedsOfNodes, json)
  if (!json) print('\nKnown bugs put back')
  const caught = await catchMutations(firstSeed, budget, json)
  const missed = caught.filter(({ caughtAfterSeeds }) => caughtAfterSeeds === null).length
  if (json) print(JSON.stringify({ core, node, mutations: caught }, null, 2))
  else
    print(
      `\n${caught.length - missed} of ${caught.length} known bugs caught; ${core.violations.length + node.violations.length} violations without them`,
    )
  return core.violations.length + node.violations.length + missed === 0 ? 0 : 1
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      node: { type: 'boolean', default: false },
      all: { type: 'boolean', default: false },
      'seeds-core': { type: 'string' },
      'seeds-node': { type: 'string' },
      plan: { type: 'string' },
      shrink: { type: 'boolean', default: false },
      seeds: { type: 'string' },
      from: { type: 'string' },
      seed: { type: 'string' },
      mutations: { type: 'boolean', default: false },
      mutation: { type: 'string' },
      budget: { type: 'string' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    print(usage)
    return 0
  }
  const firstSeed = integer(values.from, 'from', 1)

  const budget = integer(values.budget, 'budget', 500)

  if (values.all) {
    return everything(
      firstSeed,
      integer(values['seeds-core'], 'seeds-core', 2000),
      integer(values['seeds-node'], 'seeds-node', 200),
      budget,
      values.json,
    )
  }
  if (values.mutations) {
    const outcomes = await catchMutations(firstSeed, budget, values.json)
    if (values.json) print(JSON.stringify({ mutations: outcomes }, null, 2))
    return outcomes.some(({ caughtAfterSeeds }) => caughtAfterSeeds === null) ? 1 : 0
  }
  if (values.node) {
    const mutation = findNodeMutation(values.mutation)
    if (values.plan !== undefined) return replayNodes(JSON.parse(await readFile(values.plan, 'utf8')) as NodePlan, mutation, values.json)
    if (values.seed !== undefined) {
      const seed = integer(values.seed, 'seed', 1)
      if (!values.shrink) return replayNodes(drawNodePlan(seed), mutation, values.json)
      await shrinkAndSave(seed, mutation)
      return 0
    }
    const summary = await campaignOfNodes(firstSeed, integer(values.seeds, 'seeds', 200), values.json)
    if (values.json) print(JSON.stringify(summary, null, 2))
    return summary.violations.length === 0 ? 0 : 1
  }

  let parts = soundParts
  let drawPlanOf: (seed: number) => SimulationPlan = drawPlan
  if (values.mutation !== undefined) {
    const mutation = mutations.find(({ name }) => name === values.mutation)
    if (mutation === undefined) throw new RangeError(`no mutation ${values.mutation}; there are: ${mutations.map(({ name }) => name).join(', ')}`)
    parts = mutation.parts()
    drawPlanOf = mutation.plan ?? drawPlan
  }

  if (values.seed !== undefined) {
    const seed = integer(values.seed, 'seed', 1)
    const plan = drawPlanOf(seed)
    if (!values.json) print(`plan ${JSON.stringify(plan, null, 2)}`)
    const { line, flush } = lineBlocks()
    const result = runSimulation({ seed, plan, parts, ...(values.json ? {} : { onLine: line }) })
    flush()
    print(JSON.stringify(result, null, 2))
    return result.violation === null ? 0 : 1
  }

  const summary = campaignOfCores(firstSeed, integer(values.seeds, 'seeds', 200), parts, values.json)
  if (values.json) print(JSON.stringify(summary, null, 2))
  return summary.violations.length === 0 ? 0 : 1
}

try {
  process.exitCode = await main()
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${usage}\n`)
  process.exitCode = 2
}
