/** Runs abstract-level's own suite, as it is published in the package, with tape, and counts. */
import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)

/** What tape's stream says of each test, assertion and end. */
interface Row {
  readonly type: 'test' | 'assert' | 'end'
  readonly id?: number
  readonly test?: number
  readonly name?: string
  readonly ok?: boolean
  readonly skip?: boolean
  readonly error?: Error
}

interface Harness {
  createStream(options: { objectMode: true }): NodeJS.ReadableStream
}

export interface SuiteTotals {
  readonly tests: number
  readonly assertions: number
  readonly failed: number
  readonly seconds: number
}

export interface SuiteRun {
  /** A new, empty, unopened database each time. */
  readonly factory: (options?: object) => unknown
  readonly onFailure: (test: string, assertion: string, error: Error | undefined) => void
}

// abstract-level's suite has no types; tape's are a package of their own.
type Suite = (options: { readonly test: Harness; readonly factory: SuiteRun['factory'] }) => void

/** Resolves when the last test has ended. */
export async function runLevelSuite({ factory, onFailure }: SuiteRun): Promise<SuiteTotals> {
  const { createHarness } = require('tape') as { createHarness(): Harness }
  const suite = require('abstract-level/test') as Suite
  const startedMs = performance.now()
  const harness = createHarness()
  const rows = harness.createStream({ objectMode: true })
  suite({ test: harness, factory })
  const names = new Map<number, string>()
  let tests = 0
  let assertions = 0
  let failed = 0
  // An old stream, which cannot be iterated.
  rows.on('data', (row: Row) => {
    if (row.type === 'test') {
      tests++
      names.set(row.id!, row.name!)
    } else if (row.type === 'assert' && !row.skip) {
      assertions++
      if (row.ok) return
      failed++
      onFailure(names.get(row.test!) ?? '', row.name ?? '', row.error)
    }
  })
  await new Promise((resolve) => rows.on('end', resolve))
  return { tests, assertions, failed, seconds: (performance.now() - startedMs) / 1000 }
}
