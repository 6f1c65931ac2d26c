/** Locks on a real cluster: real disks, real sockets, real time. */
import { expect } from 'chai'
import { createLocks } from '../../src/lock/index.js'
import { withCluster } from '../support/cluster.js'

describe('locks on a cluster of three nodes', () => {
  it('hazard l5: a lock outlives the leader of its group, and passes on with a greater token', () =>
    withCluster(3, async (cluster) => {
      const clients = [await cluster.openClient(), await cluster.openClient()]
      const [holding, waiting] = clients.map((client) => createLocks(client.kv, { session: { ttlMs: 6000 } }))
      try {
        const handle = await holding!.acquire('l')
        const next = waiting!.acquire('l')
        while ((await holding!.inspect('l')).waiters.length === 0);
        for (const group of [1, 2]) {
          const leader = cluster.leaderOf(group)
          if (leader === undefined) continue
          await cluster.stop(leader)
          // Served by the new leader.
          expect((await holding!.inspect('l')).holder?.token).to.equal(handle.token)
          await cluster.start(leader)
        }
        handle.assertHeld()
        expect(await handle.release()).to.deep.equal({ released: true })
        const after = await next
        expect(after.token > handle.token).to.equal(true)
        await after.release()
      } finally {
        await Promise.all([holding, waiting].map((locks) => locks!.close()))
        await Promise.all(clients.map((client) => client.close()))
      }
    }))
})
