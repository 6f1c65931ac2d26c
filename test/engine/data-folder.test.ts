/** DataFolder: what a write that fails does, whatever was being written. */
import { expect } from 'chai'
import { DataFolder } from '../../src/engine/data-folder.js'
import { type DatabaseBatch, type OpenDatabase, openLevel } from '../../src/engine/database.js'
import { failureOf } from '../support/conditions.js'
import { withFolder } from '../support/folders.js'

const identity = { nodeId: 'a', clusterId: '0123456789abcdef', originId: '0123456789abcdef', incarnation: 0 }
const record = { group: 1, life: 0, founders: ['a'], isDoomed: false }
const map = Buffer.from('a map')

describe('DataFolder', () => {
  it('hazard d12, D7: every write that fails is told, since what is on disk is unknown from then on; a sound one is synced and is not', () =>
    withFolder(async (location) => {
      let failure: Error | null = null
      const synced: boolean[] = []
      const openFailing: OpenDatabase = async (path, options) => {
        const database = await openLevel(path, options)
        const failing = (batch: DatabaseBatch): DatabaseBatch => ({
          put: (key, value) => batch.put(key, value),
          del: (key) => batch.del(key),
          write: async (writeOptions) => {
            if (failure !== null) throw failure
            synced.push(writeOptions.sync)
            await batch.write(writeOptions)
          },
        })
        return { ...database, batch: () => failing(database.batch()) }
      }
      const folder = await DataFolder.open(location, openFailing, 1024 * 1024)
      const told: unknown[] = []
      folder.onFailure = (error) => told.push(error)
      const writes: (() => Promise<void>)[] = [
        () => folder.claim(identity, map, [record]),
        () => folder.entered(),
        () => folder.bind('b', 7),
        () => folder.storeMap(map),
        () => folder.storeReplica(record),
        () => folder.forgetReplica(1),
      ]
      try {
        for (const write of writes) await write()
        expect(told).to.deep.equal([])
        expect(synced.every((sync) => sync)).to.equal(true)
        for (const write of writes) {
          failure = new Error(`write ${told.length} failed`)
          expect(await failureOf(write())).to.equal(failure)
          expect(told.at(-1)).to.equal(failure)
        }
        expect(told).to.have.length(writes.length)
      } finally {
        await folder.close()
      }
    }))
})
