/** The KV suite, locks and jobs on a store without replication: nothing above the store may tell the difference. */
import { join } from 'node:path'
import { expect } from 'chai'
import { defaultLimits } from '../../src/engine/command.js'
import { fromKv, type LocalStore, openLocal, toArray } from '../../src/index.js'
import { createLocks } from '../../src/lock/index.js'
import { kvSuite } from '../../src/testing/kv-suite.js'
import { withFolder } from '../support/folders.js'

for (const shards of [1, 64]) {
  describe(`a local store of ${shards} shards`, () => {
    let store: LocalStore
    let done: () => void
    let removed: Promise<void>
    before(async () => {
      await new Promise<void>((opened, failed) => {
        removed = withFolder(async (location) => {
          store = await openLocal({ location, shards })
          opened()
          await new Promise<void>((resolve) => {
            done = resolve
          })
          await store.close()
        })
        removed.catch(failed)
      })
    })
    after(async () => {
      done()
      await removed
    })

    kvSuite({
      describe,
      it,
      name: `a local store of ${shards} shards`,
      manifest: { manyClients: true, cut: false, crossShard: shards === 1 },
      create: () => ({ kv: store.kv, another: async () => store.another(), ...defaultLimits }),
    })
  })
}

async function withStore(run: (store: LocalStore) => Promise<void>): Promise<void> {
  await withFolder(async (location) => {
    const jobs = { 'word-count': new URL('../../examples/jobs/word-count.js', import.meta.url) }
    const store = await openLocal({ location: join(location, 'data'), jobs, workers: 1 })
    try {
      await run(store)
    } finally {
      await store.close()
    }
  })
}

describe('on a local store', () => {
  it('locks exclude one another, pass on, and hand out tokens that rise', () =>
    withStore(async (store) => {
      const all = [store.locks, createLocks(store.another()), createLocks(store.another())]
      const tokens: bigint[] = []
      let inside = 0
      await Promise.all(
        all.flatMap((locks) =>
          [1, 2, 3].map(() =>
            locks.lock('report').run(async ({ fence }) => {
              expect(++inside).to.equal(1)
              await store.kv.put('work', 'done')
              tokens.push(fence)
              inside--
            }),
          ),
        ),
      )
      expect(tokens).to.have.length(9)
      expect(
        tokens.every((token, at) => at === 0 || token > tokens[at - 1]!),
        `${tokens}`,
      ).to.equal(true)
      await Promise.all(all.map((locks) => locks.close()))
    }))

  for (const engine of ['inline', 'threads'] as const) {
    it(`jobs run, ${engine}`, () =>
      withStore(async (store) => {
        await store.kv.put('doc/1', 'one two two')
        await store.kv.put('doc/2', 'two one two')
        const { output } = await store.mapReduce({ job: 'word-count', input: fromKv({ prefix: 'doc/' }), output: toArray(), engine }).result()
        expect(output.pairs).to.have.deep.members([
          ['one', 2],
          ['two', 4],
        ])
      }))
  }
})
