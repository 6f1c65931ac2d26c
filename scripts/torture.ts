/** `npm run torture`: faults against real processes on real disks and sockets, under load; prints what was done, and every violation. Exit code 1 when there was one. */
import { parseArgs } from 'node:util'
import { type FaultName, faultNames, faults } from '../test/processes/support/faults.js'
import { runTorture, type Waits } from '../test/processes/support/torture.js'

const usage = `npm run torture -- [options]
  --rounds N   rounds of one fault each (default 200)
  --seed S     draws the faults; printed when not given
  --only A,B   only these faults
  --nodes N    nodes of each cluster (default 3, and 5 in every third)
  --json       print the summary as JSON, last
faults:
${faultNames.map((name) => `  ${name.padEnd(18)} ${faults[name].hazards}`).join('\n')}`

function wholeNumber(text: string | undefined, name: string, fallback: number): number {
  if (text === undefined) return fallback
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`--${name} takes a whole number, not ${text}`)
  return value
}

function waits({ count, p50Ms, p99Ms, mostMs }: Waits): string {
  return count === 0 ? 'none measured' : `p50 ${p50Ms} ms, p99 ${p99Ms} ms, most ${mostMs} ms (${count} times)`
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string' },
      seed: { type: 'string' },
      only: { type: 'string' },
      nodes: { type: 'string' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  const print = (text: string) => process.stdout.write(`${text}\n`)
  if (values.help) {
    print(usage)
    return 0
  }
  const seed = wholeNumber(values.seed, 'seed', Math.floor(Math.random() * 2 ** 32))
  const rounds = wholeNumber(values.rounds, 'rounds', 200)
  const only = values.only?.split(',') ?? faultNames
  for (const name of only) if (!(name in faults)) throw new RangeError(`there is no fault ${name}`)
  if (!values.json) print(`seed ${seed}`)
  const summary = await runTorture({
    seed,
    rounds,
    only: only as FaultName[],
    ...(values.nodes === undefined ? {} : { size: wholeNumber(values.nodes, 'nodes', 3) }),
    onRound: (round, fault, seconds) => {
      if (!values.json) print(`${String(round + 1).padStart(4)}/${rounds} ${fault.padEnd(18)} ${seconds.toFixed(1)} s`)
    },
  })
  if (values.json) print(JSON.stringify(summary, null, 2))
  else {
    print(`${summary.rounds} rounds in ${summary.seconds.toFixed(0)} s: ${JSON.stringify(summary.faults)}`)
    for (const fault of summary.leftOut) print(`left out: ${fault}`)
    print(
      `${summary.operations} operations, ${summary.unknownOutcomes} of unknown outcome; every history linearizable: ${summary.violations.length === 0}`,
    )
    print(`writes held up by SIGKILL of a leader: ${waits(summary.heldUp.killed)}`)
    print(`writes held up by closing a leader:    ${waits(summary.heldUp.closed)}`)
    print(`${summary.violations.length} violations`)
    for (const { round, fault, message } of summary.violations) print(`round ${round + 1} (${fault}, seed ${seed}): ${message}`)
  }
  return summary.violations.length === 0 ? 0 : 1
}

main().then(
  (exitCode) => {
    process.exitCode = exitCode
  },
  (error: unknown) => {
    process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n${usage}\n`)
    process.exitCode = 2
  },
)
