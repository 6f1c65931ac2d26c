/**
 * The simulators' command line: `npm run sim -- [--node] [--seeds N] [--from S] [--seed S] [--mutations] [--mutation NAME] [--budget N] [--json]`.
 *
 * With `--json` the result is the last thing on stdout. Exit code 1 when an invariant was violated, or a mutation was not caught.
 */
import { parseArgs } from 'node:util'
import { runNodeCampaign } from '../src/testing/node-simulation/campaign.js'
import { drawNodePlan } from '../src/testing/node-simulation/plan.js'
import { runNodeSimulation } from '../src/testing/node-simulation/simulation.js'
import { runCampaign, runMutation } from '../src/testing/simulation/campaign.js'
import { mutations } from '../src/testing/simulation/mutations.js'
import { drawPlan } from '../src/testing/simulation/plan.js'
import { runSimulation, soundParts } from '../src/testing/simulation/simulation.js'

const usage = `usage: npm run sim -- [options]
  --node           whole nodes, not the consensus core alone
  --seeds N        run N seeds (default 200)
  --from S         start at seed S (default 1)
  --seed S         replay one seed and print every event
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

async function replayNodes(seed: number, json: boolean): Promise<number> {
  const { faults, operations, ...config } = drawNodePlan(seed)
  if (!json) print(`plan ${JSON.stringify({ ...config, faults: faults.length, operations: operations.length }, null, 2)}`)
  const { line, flush } = lineBlocks()
  const { plan: _plan, ...result } = await runNodeSimulation({ seed, ...(json ? {} : { onLine: line }) })
  flush()
  print(JSON.stringify(result, null, 2))
  return result.violation === null ? 0 : 1
}

async function campaignOfNodes(firstSeed: number, seeds: number, json: boolean): Promise<number> {
  const summary = await runNodeCampaign({
    firstSeed,
    seeds,
    onResult: ({ seed, violation }) => {
      if (json) return
      if (violation !== null) print(`seed ${seed}: ${violation.invariant}: ${violation.message}`)
      const done = seed - firstSeed + 1
      if (done % 100 === 0) process.stderr.write(`${done} of ${seeds} seeds\n`)
    },
  })
  if (json) print(JSON.stringify(summary, null, 2))
  else printSummary(summary, `${summary.frames} frames`)
  return summary.violations.length === 0 ? 0 : 1
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      node: { type: 'boolean', default: false },
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

  if (values.node && values.seed !== undefined) return replayNodes(integer(values.seed, 'seed', 1), values.json)
  if (values.node) return campaignOfNodes(firstSeed, integer(values.seeds, 'seeds', 200), values.json)

  if (values.mutations) {
    const budget = integer(values.budget, 'budget', 500)
    const outcomes = mutations.map((mutation) => {
      const outcome = runMutation(mutation, firstSeed, budget)
      if (!values.json) {
        const result =
          outcome.caughtAfterSeeds === null
            ? `NOT CAUGHT in ${budget} seeds`
            : `caught after ${outcome.caughtAfterSeeds} seeds by ${outcome.invariant}`
        print(`${mutation.name.padEnd(36)} ${result}`)
      }
      return outcome
    })
    if (values.json) print(JSON.stringify({ mutations: outcomes }, null, 2))
    return outcomes.some(({ caughtAfterSeeds }) => caughtAfterSeeds === null) ? 1 : 0
  }

  let parts = soundParts
  if (values.mutation !== undefined) {
    const mutation = mutations.find(({ name }) => name === values.mutation)
    if (mutation === undefined) throw new RangeError(`no mutation ${values.mutation}; there are: ${mutations.map(({ name }) => name).join(', ')}`)
    parts = mutation.parts()
  }

  if (values.seed !== undefined) {
    const seed = integer(values.seed, 'seed', 1)
    if (!values.json) print(`plan ${JSON.stringify(drawPlan(seed), null, 2)}`)
    const { line, flush } = lineBlocks()
    const result = runSimulation({ seed, parts, ...(values.json ? {} : { onLine: line }) })
    flush()
    print(JSON.stringify(result, null, 2))
    return result.violation === null ? 0 : 1
  }

  const seeds = integer(values.seeds, 'seeds', 200)
  const summary = runCampaign({
    firstSeed,
    seeds,
    parts,
    onResult: ({ seed, violation }) => {
      if (values.json) return
      if (violation !== null) print(`seed ${seed}: ${violation.invariant}: ${violation.message}`)
      const done = seed - firstSeed + 1
      if (done % 500 === 0) process.stderr.write(`${done} of ${seeds} seeds\n`)
    },
  })
  if (values.json) print(JSON.stringify(summary, null, 2))
  else printSummary(summary, `${summary.messages} messages`)
  return summary.violations.length === 0 ? 0 : 1
}

try {
  process.exitCode = await main()
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${usage}\n`)
  process.exitCode = 2
}
