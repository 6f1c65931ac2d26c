/** Mocha's spec reporter, closing with the one line that CI reads: `N passed, M failed`. */
import Mocha from 'mocha'

export default class CountingReporter extends Mocha.reporters.Spec {
  constructor(runner: Mocha.Runner, options: Mocha.MochaOptions) {
    super(runner, options)
    runner.once('end', () => {
      // After Spec's own epilogue, which it prints on the same event.
      process.once('exit', () => {
        process.stdout.write(`${this.stats.passes} passed, ${this.stats.failures} failed\n`)
      })
    })
  }
}
