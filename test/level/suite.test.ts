/** abstract-level's own suite in short: one run of what `npm run test:level` does, in a process of its own, as tape and mocha do not share one. */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect } from 'chai'

const program = fileURLToPath(new URL('../../scripts/test-level.js', import.meta.url))

describe('abstract-level’s own suite', function () {
  this.timeout(300_000)

  it('passes on three replicas and four shards in memory, whole', async () => {
    const { stdout } = await promisify(execFile)(process.execPath, [program, '--on', 'memory', '--layout', 'colocated'], { maxBuffer: 1 << 26 })
    const [, passed, assertions] = /(\d+) of (\d+) assertions passed/.exec(stdout) ?? []
    expect(passed, stdout).to.equal(assertions)
    // As many as there are for what the manifest says: a run that ended early would have fewer.
    expect(Number(assertions)).to.be.at.least(4334)
  })
})
