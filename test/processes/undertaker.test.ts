/** What is left when the harness dies in the middle: nothing. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import { until } from './support/process-cluster.js'

interface Left {
  readonly pids: readonly number[]
  readonly folder: string
  readonly mount: string | null
}

/** Whether a process runs, or stands still; one that is dead and not yet waited for does not. */
function lives(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

describe('the harness', () => {
  it('leaves no process, mount or folder when it is killed, not even a stopped process', async function () {
    if (!existsSync('/proc/self/stat')) this.skip()
    const harness = fork(fileURLToPath(new URL('undertaker-program.js', import.meta.url)))
    const [left] = (await once(harness, 'message')) as [Left]
    expect(left.pids.every(lives)).to.equal(true)
    expect(existsSync(left.folder)).to.equal(true)
    const mounts = () => readFileSync('/proc/self/mounts', 'utf8')
    if (left.mount !== null) expect(mounts()).to.include(left.mount)
    harness.kill('SIGKILL')
    await once(harness, 'exit')
    await until('all is gone', () => !left.pids.some(lives) && !existsSync(left.folder) && !mounts().includes(left.folder))
  })
})
