/** A majority is gone for good: what one survivor can be made to, on real folders and sockets. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { inspectFolder, type MemberOptions, type Node, openNode, RefusedError, recoverFromQuorumLoss, UnavailableError } from '../../src/index.js'
import { tcp } from '../../src/transport/tcp.js'
import { failureOf, until } from '../support/conditions.js'
import { freePorts, withFolder } from '../support/folders.js'

describe('recovery from a lost quorum', function () {
  this.timeout(60_000)

  it('one survivor of three becomes a cluster with all it had, refuses those of the old one, and grows again', () =>
    withFolder(async (folder) => {
      const ids = ['a', 'b', 'c']
      const ports = await freePorts(3)
      const address = (id: string) => `127.0.0.1:${ports[ids.indexOf(id)]}`
      const bootstrap = { nodes: ids.map((id) => ({ id, address: address(id) })) }
      const nodes = new Map<string, Node>()
      const open = async (id: string, options: Partial<MemberOptions> = {}) => {
        const node = await openNode({ id, location: join(folder, id), transport: tcp({ listen: address(id) }), ...options })
        nodes.set(id, node)
        return node
      }
      const close = async (id: string) => {
        await nodes.get(id)?.close()
        nodes.delete(id)
      }
      try {
        await Promise.all(ids.map((id) => open(id, { bootstrap })))
        const keys = Array.from({ length: 50 }, (_, at) => `key-${at}`)
        await Promise.all(keys.map((key) => nodes.get('a')!.kv.put(key, 'kept')))
        // Everything has reached everybody.
        await until(() => {
          const indexes = [...nodes.values()].map((node) =>
            node
              .status()
              .groups.map(({ group, appliedIndex }) => `${group}:${appliedIndex}`)
              .join(),
          )
          return new Set(indexes).size === 1
        })
        expect(await failureOf(inspectFolder({ location: join(folder, 'a') })))
          .to.be.instanceOf(RefusedError)
          .and.include({ code: 'FOLDER_IN_USE' })
        for (const id of ids) await close(id)
        await rm(join(folder, 'c'), { recursive: true })
        const before = await inspectFolder({ location: join(folder, 'a') })
        expect(before).to.include({ nodeId: 'a' })
        expect(before.groups.map(({ group, voters }) => [group, voters.length])).to.deep.equal([
          [0, 3],
          [1, 3],
          [2, 3],
        ])
        // Alone it does not serve: nothing happens by itself.
        const alone = await open('a')
        expect(await failureOf(alone.kv.get(keys[0]!, { timeoutMs: 1500 }))).to.be.instanceOf(UnavailableError)
        await close('a')
        const { newClusterId, clusterId } = await recoverFromQuorumLoss({ location: join(folder, 'a') })
        expect(newClusterId).to.not.equal(clusterId)
        const refused: unknown[] = []
        const a = await open('a')
        a.on('refused', (refusal) => refused.push(refusal))
        expect(a.status().clusterId).to.equal(newClusterId)
        for (const key of keys) expect(Buffer.from((await a.kv.get(key))!.value).toString()).to.equal('kept')
        await a.kv.put('after', '1')
        // The other survivor comes back as what it was: it is no part of this cluster.
        await open('b')
        await until(() => refused.length > 0)
        expect(await failureOf(nodes.get('b')!.kv.put('after', '2', { timeoutMs: 1000 }))).to.not.equal(undefined)
        expect((await a.kv.get('after'))?.version).to.equal(1)
        await close('b')
        await rm(join(folder, 'b'), { recursive: true })
        for (const id of ['b', 'c']) await open(id, { seeds: [address('a')] })
        await until(() => {
          const led = [...nodes.values()].flatMap((node) => node.status().groups).filter(({ role }) => role === 'leader')
          return (
            new Set(led.map(({ group }) => group)).size === 3 &&
            led.every(({ voters, learners, live }) => voters.length === 3 && learners.length === 0 && live === 3)
          )
        })
        await close('a')
        expect((await nodes.get('b')!.kv.put('after', '3')).version).to.equal(2)
        for (const key of keys) expect((await nodes.get('c')!.kv.get(key))?.version).to.equal(1)
      } finally {
        for (const id of ids) await close(id)
      }
    }))

  it('refuses an empty folder, and one that lacks groups, unless that is accepted', () =>
    withFolder(async (folder) => {
      expect(await failureOf(recoverFromQuorumLoss({ location: join(folder, 'nothing') }))).to.include({ code: 'NO_DATA' })
      const ids = ['a', 'b']
      const ports = await freePorts(2)
      const list = ids.map((id, at) => ({ id, address: `127.0.0.1:${ports[at]}` }))
      const bootstrap = { nodes: list, replicas: 1 }
      const nodes = await Promise.all(
        list.map(({ id, address }) => openNode({ id, location: join(folder, id), transport: tcp({ listen: address }), bootstrap })),
      )
      const keys = Array.from({ length: 20 }, (_, at) => `key-${at}`)
      await Promise.all(keys.map((key) => nodes[0]!.kv.put(key, 'v')))
      await Promise.all(nodes.map((node) => node.close()))
      const location = join(folder, 'a')
      const { missing } = await inspectFolder({ location })
      expect(missing).to.have.length.greaterThan(0)
      expect(await failureOf(recoverFromQuorumLoss({ location })))
        .to.be.instanceOf(RefusedError)
        .and.include({ code: 'GROUPS_LOST' })
      await recoverFromQuorumLoss({ location, acceptLostGroups: true })
      const node = await openNode({ id: 'a', location, transport: tcp({ listen: list[0]!.address }) })
      try {
        const found = await node.kv.getMany(keys)
        const kept = found.filter((entry) => entry !== undefined).length
        expect(kept).to.be.within(1, keys.length - 1)
        await Promise.all(keys.map((key) => node.kv.put(key, 'w')))
      } finally {
        await node.close()
      }
    }))
})
