/**
 * Judges histories: `npm run history -- FILE…` reads JSON lines as `History.toLines` writes them; `npm run history -- --measure` makes one of 200,000 operations on 1,000 keys and says how long it takes.
 *
 * Exit code 1 when one is not linearizable, or could not be decided within its budget.
 */
import { readFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { History } from '../src/testing/history.js'
import { checkHistory } from '../src/testing/history-checker.js'
import { randomHistory } from '../src/testing/random-history.js'

const usage = `usage: npm run history -- [FILE…] [--budget N] [--measure [--operations N] [--keys N]]
  --budget N      configurations that may be looked at, over all keys of a file (default 5,000,000)
  --measure       a made history instead of a file
  --operations N  of the made history (default 200,000)
  --keys N        of the made history (default 1,000)`

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    budget: { type: 'string', default: '5000000' },
    measure: { type: 'boolean', default: false },
    operations: { type: 'string', default: '200000' },
    keys: { type: 'string', default: '1000' },
    help: { type: 'boolean', default: false },
  },
})

if (values.help || (!values.measure && positionals.length === 0)) {
  process.stdout.write(`${usage}\n`)
  process.exitCode = values.help ? 0 : 2
} else {
  const histories: [name: string, operations: ReturnType<typeof History.fromLines>][] = []
  if (values.measure) histories.push(['a made history', randomHistory({ operations: Number(values.operations), keys: Number(values.keys) })])
  for (const file of positionals) histories.push([file, History.fromLines(await readFile(file, 'utf8'))])
  for (const [name, operations] of histories) {
    const startMs = performance.now()
    const result = checkHistory(operations, { maxConfigurations: Number(values.budget) })
    const seconds = ((performance.now() - startMs) / 1000).toFixed(2)
    if (result.ok) {
      process.stdout.write(
        `${name}: linearizable: ${result.operations} operations on ${result.keys} keys, ${result.configurations} configurations, ${seconds} s\n`,
      )
    } else {
      process.exitCode = 1
      process.stdout.write(`${name}: ${result.reason} at key ${JSON.stringify(result.key)}, ${seconds} s\n${result.message}\n`)
    }
  }
}
