/** Real processes, real disks, real sockets: what SIGKILL must not break. */

import { join } from 'node:path'
import { expect } from 'chai'
import { openNode } from '../../src/index.js'
import { History, recordHistory } from '../../src/testing/history.js'
import { assertLinearizable } from '../../src/testing/history-checker.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { tcp } from '../../src/transport/tcp.js'
import { freePorts, withFolder } from '../support/folders.js'
import { NodeProcess } from '../support/node-process.js'
import { newSeed } from '../support/seed.js'

const rounds = 20
const writers = 8

describe('three real processes', function () {
  this.timeout(180_000)

  it(`hazard p1, p11: ${rounds} rounds of SIGKILL of a random node under write load lose no acknowledged write, and no read goes back`, async () => {
    const seed = newSeed()
    const random = new SeededRandom(seed, 'victims')
    await withFolder(async (folder) => {
      const ports = await freePorts(3)
      const nodes = ports.map((port, at) => ({ id: `n${at + 1}`, address: `127.0.0.1:${port}` }))
      const processes = nodes.map(
        ({ id, address }) => new NodeProcess({ id, location: join(folder, id), listen: address, bootstrap: { nodes, groups: 2 } }),
      )
      const client = await Promise.all(processes.map((process) => process.start())).then(() =>
        openNode({ role: 'client', transport: tcp(), seeds: nodes.map(({ address }) => address), requestTimeoutMs: 30_000 }),
      )
      const history = new History()
      const writing = recordHistory(client.kv, history, 'writer')
      const reading = recordHistory(client.kv, history, 'reader')
      let stopping = false
      const acknowledged = new Array<number>(writers).fill(0)
      const failures: unknown[] = []
      // A failed loop must show at once, not only when all rounds are over.
      const loop = async (run: () => Promise<void>) => {
        try {
          while (!stopping) await run()
        } catch (error) {
          failures.push(error)
          stopping = true
        }
      }
      try {
        const loops = Array.from({ length: writers }, (_, writer) =>
          loop(async () => {
            const next = acknowledged[writer]! + 1
            const { version } = await writing.put(`key-${writer}`, `${next}`, { ifVersion: next - 1 })
            expect(version).to.equal(next)
            acknowledged[writer] = next
          }),
        )
        const seen = new Array<number>(writers).fill(0)
        for (let writer = 0; writer < writers; writer++) {
          loops.push(
            loop(async () => {
              const least = Math.max(acknowledged[writer]!, seen[writer]!)
              const found = await reading.get(`key-${writer}`)
              const version = found?.version ?? 0
              expect(version, `key-${writer} went back (seed ${seed})`).to.be.at.least(least)
              if (found !== undefined) expect(Buffer.from(found.value).toString()).to.equal(`${version}`)
              seen[writer] = version
            }),
          )
        }
        for (let round = 0; round < rounds && !stopping; round++) {
          const before = acknowledged.slice()
          const victim = processes[random.integer(0, 2)]!
          await victim.kill('SIGKILL')
          // Every writer gets on without the victim: two of three are a majority.
          while (!stopping && acknowledged.some((count, at) => count < before[at]! + 2)) await client.kv.get('pace')
          await victim.start()
        }
        stopping = true
        await Promise.all(loops)
        if (failures.length > 0) throw failures[0]
        for (let writer = 0; writer < writers; writer++) {
          const found = await reading.get(`key-${writer}`)
          expect(found?.version, `key-${writer} (seed ${seed})`).to.equal(acknowledged[writer])
        }
        assertLinearizable(history.operations)
      } finally {
        stopping = true
        await client.close()
        await Promise.all(processes.map((process) => process.kill()))
      }
    })
  })
})
