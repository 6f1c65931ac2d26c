/** A local store under SIGKILL: whatever was acknowledged is there. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import { openLocal } from '../../src/index.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { withFolder } from '../support/folders.js'
import { newSeed } from '../support/seed.js'

const program = fileURLToPath(new URL('writer-program.js', import.meta.url))

describe('a local store in a process that is killed', function () {
  this.timeout(60_000)

  it('loses nothing that was acknowledged, and opens again, ten times over', () =>
    withFolder(async (location) => {
      const seed = newSeed()
      const random = new SeededRandom(seed, 'kill')
      const acknowledged = new Set<number>()
      let next = 0
      for (let round = 0; round < 10; round++) {
        const enough = random.integer(1, 400)
        const child = fork(program, [location, String(next)], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
        const ended = once(child, 'exit')
        let count = 0
        child.on('message', (message) => {
          if (typeof message !== 'number') return
          acknowledged.add(message)
          next = Math.max(next, message + 100)
          if (++count === enough) child.kill('SIGKILL')
        })
        const [, signal] = await ended
        expect(signal, `seed ${seed}, round ${round}`).to.equal('SIGKILL')
      }
      const store = await openLocal({ location })
      const lost = []
      for (const at of acknowledged) {
        const entry = await store.kv.get(`key-${at}`)
        if (entry === undefined || Buffer.from(entry.value).toString() !== `value ${at}`) lost.push(at)
      }
      await store.close()
      expect(acknowledged.size).to.be.at.least(10)
      expect(lost, `seed ${seed}`).to.deep.equal([])
    }))
})
