/**
 * The simulator's command line: `npm run sim -- [--seeds N] [--from S] [--seed S] [--mutations] [--mutation NAME] [--budget N] [--json]`.
 *
 * With `--json` the result is the last thing on stdout. Exit code 1 when an invariant was violated, or a mutation was not caught.
 */
import { parseArgs } from 'node:util'
import { runCampaign, runMutation } from '../src/testing/simulation/campaign.js'
import { mutations } from '../src/testing/simulation/mutations.js'
import { drawPlan } from '../src/testing/simulation/plan.js'
import { runSimulation, soundParts } from '../src/testing/simulation/simulation.js'

const usage = `usage: npm run sim -- [options]
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

function main(): number {
  const { values } = parseArgs({
    options: {
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
  const print = (text: string): void => {
    process.stdout.write(`${text}\n`)
  }
  if (values.help) {
    print(usage)
    return 0
  }
  const firstSeed = integer(values.from, 'from', 1)

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
    // Written in blocks: one write a line would take longer than the run.
    let block: string[] = []
    const flush = (): void => {
      if (block.length > 0) print(block.join('\n'))
      block = []
    }
    const onLine = (line: string): void => {
      block.push(line)
      if (block.length >= 1000) flush()
    }
    const result = runSimulation({ seed, parts, ...(values.json ? {} : { onLine }) })
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
  else {
    const ratio = summary.simulatedSeconds / summary.realSeconds
    print(
      `${summary.seeds} seeds, ${summary.steps} steps, ${(summary.simulatedSeconds / 3600).toFixed(2)} simulated hours in ${summary.realSeconds.toFixed(1)} s (${ratio.toFixed(0)} to 1)`,
    )
    print(`${summary.messages} messages, ${summary.elections} elections, ${summary.committed} entries committed`)
    print(`operations: ${JSON.stringify(summary.operations)}`)
    print(`faults: ${JSON.stringify(summary.faults)}`)
    print(`reached: ${JSON.stringify(summary.reached)}`)
    print(`${summary.violations.length} violations`)
  }
  return summary.violations.length === 0 ? 0 : 1
}

try {
  process.exitCode = main()
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${usage}\n`)
  process.exitCode = 2
}
