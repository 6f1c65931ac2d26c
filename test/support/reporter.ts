/**
 * Mocha's spec reporter, closing with the one line that CI reads: `N passed, M failed`, and a watchdog for what keeps the process alive.
 *
 * 1. The line is printed once, at the very end: by `scripts/test.mjs` when that started mocha (it can also report a crash), else here.
 * 2. Mocha is not told to exit: a handle that a test leaves open is a bug. When the process lives on after the last test, the
 * watchdog names what keeps it alive, counts that as a failure and ends the process. `TRACE_HANDLES=1 npm test` adds where each was made.
 * 3. A rejection that nobody handles fails the test that runs. Mocha 12 listens for these and drops them, which also switches off
 * Node's own way of ending the process.
 * 4. Once the event loop is empty the process ends at once.
 */
import { createHook } from 'node:async_hooks'
import Mocha from 'mocha'

/** How long after the last test handles may take to let go. Long, because the machine may be slow; never reached when all is well. */
const lingerMs = 10_000

export default class CountingReporter extends Mocha.reporters.Spec {
  constructor(runner: Mocha.Runner, options: Mocha.MochaOptions) {
    super(runner, options)
    if (process.env['TRACE_HANDLES'] !== undefined) traceHandles()
    // First in line, and it throws: the rejection reaches Mocha as an uncaught exception, which it does count.
    process.on('unhandledRejection', (reason) => {
      throw reason
    })
    runner.once('end', () => {
      // Spec prints its own epilogue on the same event, and was registered first.
      this.#report()
      // The watchdog itself keeps nothing alive: it only fires when something else does.
      setTimeout(() => this.#endLingering(), lingerMs).unref()
      endWithoutCleanup()
      if (process.send === undefined) {
        process.once('exit', () => process.stdout.write(`${this.stats.passes} passed, ${this.stats.failures} failed\n`))
      }
    })
  }

  #report(): void {
    process.send?.({ passes: this.stats.passes, failures: this.stats.failures })
  }

  #endLingering(): void {
    console.error(`\nThe tests are over, but these keep the process alive ${lingerMs} ms later:`)
    for (const line of describeLingering()) console.error(`  ${line}`)
    this.stats.failures += 1
    this.#report()
    process.exit(1)
  }
}

/**
 * Nothing keeps the process alive any more: it ends here, after every other listener. What Node.js does next, taking its environment apart, has been seen to spin for ever (once in three whole runs; in
 * `CleanupHandles`, with nothing open but the channel to the parent).
 */
function endWithoutCleanup(): void {
  process.once('beforeExit', () => {
    process.once('exit', () => process.exit())
  })
}

/** What Node.js counts as alive, with as much detail as it can give. */
function describeLingering(): string[] {
  const lines = process.getActiveResourcesInfo().map((type) => `resource ${type}`)
  for (const [type, stack] of handleOrigins.values()) lines.push(`${type} made ${stack}`)
  // No public API has the objects; the detail is worth the private one in a diagnosis.
  const handles = (process as unknown as { _getActiveHandles?: () => unknown[] })._getActiveHandles?.() ?? []
  for (const handle of handles) {
    const { spawnargs, pid, localPort, remotePort, fd, address } = handle as Record<string, unknown>
    if (fd === 0 || fd === 1 || fd === 2) continue
    const where = typeof address === 'function' ? address.call(handle) : undefined
    lines.push(`handle ${(handle as object).constructor.name} ${JSON.stringify({ spawnargs, pid, localPort, remotePort, address: where })}`)
  }
  return lines
}

/** Type and stack of what was made and not yet let go, by async id; filled only when asked for, since it slows everything down. */
const handleOrigins = new Map<number, [string, string]>()

function traceHandles(): void {
  createHook({
    init: (id, type) => {
      if (/PROMISE|TickObject|Microtask|Immediate|REQ/i.test(type)) return
      const frames = new Error().stack?.split('\n').filter((line) => line.includes('file://') && !line.includes('/test/support/reporter.js')) ?? []
      handleOrigins.set(id, [type, frames.slice(0, 3).join(' ').trim() || 'by Node.js itself'])
    },
    destroy: (id) => {
      handleOrigins.delete(id)
    },
  }).enable()
}
