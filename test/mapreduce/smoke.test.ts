/** One job from end to end. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'chai'
import { fromFiles, toArray } from '../../src/mapreduce/index.js'
import { TestCluster } from './cluster.js'

describe('MapReduce smoke', () => {
  it('counts words on three nodes', async () => {
    const cluster = await TestCluster.start()
    try {
      await writeFile(join(cluster.folder, 'a.txt'), 'one two two\nthree three three\n')
      await writeFile(join(cluster.folder, 'b.txt'), 'two one\n')
      const job = cluster.first.runner.run({
        job: 'word-count',
        input: fromFiles([join(cluster.folder, 'a.txt'), join(cluster.folder, 'b.txt')]),
        output: toArray(),
        reducers: 3,
        splitBytes: 12,
      })
      const result = await job.result()
      expect(Object.fromEntries(result.output.pairs)).to.deep.equal({ one: 2, two: 3, three: 3 })
    } finally {
      await cluster.close()
    }
  })
})
