/** Outputs: whole or not at all, once, and nothing left of what did not come to an end. */
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { expect } from 'chai'
import { UnavailableError } from '../../src/base/errors.js'
import { systemRuntime } from '../../src/base/runtime.js'
import {
  fromItems,
  JobCancelledError,
  JobFailedError,
  OutputExistsError,
  OutputReader,
  openOutput,
  toArray,
  toFolder,
  toKv,
} from '../../src/mapreduce/index.js'
import { generationPrefix, manifestKey, readManifest } from '../../src/mapreduce/output-claim.js'
import { ModelKV } from '../../src/testing/model-kv.js'
import { readParts, TestCluster, watch } from './cluster.js'
import { until } from './until.js'

/** With two reducers, `a` is in part 0 and the others are in part 1. */
const texts = ['a two three', 'two three', 'three']
const counts = [
  ['a', 1],
  ['three', 3],
  ['two', 2],
] as const

describe('outputs', () => {
  let cluster: TestCluster
  let folder: string

  beforeEach(async () => {
    cluster = await TestCluster.start({ nodes: 2, workers: 1 })
    folder = join(cluster.folder, 'steering')
  })
  afterEach(async () => {
    const left = await cluster.leftovers()
    await cluster.close()
    expect(left).to.deep.equal([])
  })

  const steered = { job: 'steered', splitBytes: 1, reducers: 2, backoff: { initialMs: 1 } }
  const input = (): ReturnType<typeof fromItems> => fromItems(texts)
  const failing = (): unknown => ({ folder, faults: { 'reduce-1': 'throw' } })
  const gated = (): unknown => ({ folder, gates: ['reduce-1'] })
  const openGate = (): Promise<void> => writeFile(join(folder, 'gate-reduce-1'), '')
  const gateReached = (): Promise<void> =>
    until('the last reduce has begun', async () => (await readdir(folder).catch(() => [])).some((name) => name.startsWith('started-reduce-1')))
  const thrown = (task: Promise<unknown>): Promise<unknown> =>
    task.then(
      () => undefined,
      (error: unknown) => error,
    )

  describe('to a folder', () => {
    const out = (): string => join(cluster.folder, 'out')
    const siblings = async (): Promise<string[]> => (await readdir(cluster.folder)).filter((name) => name.includes('out'))

    it('has parts and a manifest with their sizes, pairs and checksums', async () => {
      const { output } = await cluster.first.runner.run({ ...steered, input: input(), output: toFolder(out()), params: { folder } }).result()
      expect((await readdir(out())).sort()).to.deep.equal(['_SUCCESS', 'part-00000', 'part-00001'])
      const manifest = JSON.parse(await readFile(join(out(), '_SUCCESS'), 'utf8'))
      expect(manifest).to.include({ format: 1, job: 'steered' })
      expect(manifest.files).to.deep.equal(output.files)
      for (const { name, bytes, checksum, pairs } of output.files) {
        const content = await readFile(join(out(), name))
        expect(content.length).to.equal(bytes)
        expect(crc32(content)).to.equal(checksum)
        expect(content.toString().split('\n').length - 1).to.equal(pairs)
      }
      expect(await siblings()).to.deep.equal(['out'])
    })

    it('M3: is not there before the job has succeeded, and nothing of it when it fails', async () => {
      const job = cluster.first.runner.run({ ...steered, input: input(), output: toFolder(out()), params: failing() })
      for await (const event of job) if (event.type === 'task-failed') expect(await stat(out()).catch(({ code }) => code)).to.equal('ENOENT')
      expect(await thrown(job.result())).to.be.instanceOf(JobFailedError)
      expect(await siblings()).to.deep.equal([])
    })

    it('is refused where something is already, and that is not touched', async () => {
      await mkdir(out())
      await writeFile(join(out(), 'mine'), 'precious')
      const job = cluster.first.runner.run({ ...steered, input: input(), output: toFolder(out()), params: { folder } })
      expect(await thrown(job.result())).to.be.instanceOf(OutputExistsError)
      expect(await readdir(out())).to.deep.equal(['mine'])
      // Nothing has run for it.
      expect(await readdir(folder).catch(() => [])).to.deep.equal([])
      await writeFile(join(cluster.folder, 'file'), '')
      expect(
        await thrown(cluster.first.runner.run({ ...steered, input: input(), output: toFolder(join(cluster.folder, 'file')) }).result()),
      ).to.be.instanceOf(OutputExistsError)
    })

    it('M1: of two jobs with one output, the second to end is refused', async () => {
      const slow = cluster.first.runner.run({ ...steered, input: input(), output: toFolder(out()), params: gated() })
      await gateReached()
      const other = join(cluster.folder, 'steering-2')
      await (cluster.nodes[1] as (typeof cluster.nodes)[0]).runner
        .run({ ...steered, input: fromItems(['fast']), output: toFolder(out()), params: { folder: other } })
        .result()
      await openGate()
      expect(await thrown(slow.result())).to.be.instanceOf(OutputExistsError)
      expect((await readParts(out())).all).to.equal('fast 1\n')
      expect(await siblings()).to.deep.equal(['out'])
    })

    it('takes the place of an earlier one with overwrite, which stays until then and when the job fails', async () => {
      const first = { ...steered, output: toFolder(out(), { overwrite: true }) }
      await cluster.first.runner.run({ ...first, input: fromItems(['old']), params: { folder } }).result()
      const job = cluster.first.runner.run({ ...first, input: input(), params: { ...(failing() as object), folder: `${folder}-2` } })
      expect(await thrown(job.result())).to.be.instanceOf(JobFailedError)
      expect((await readParts(out())).all).to.equal('old 1\n')
      await cluster.first.runner.run({ ...first, input: input(), params: { folder: `${folder}-3` } }).result()
      expect((await readParts(out())).all.split('\n').sort()).to.deep.equal(['', 'a 1', 'three 3', 'two 2'])
      expect(await siblings()).to.deep.equal(['out'])
    })
  })

  describe('to an array', () => {
    it('gives the pairs, part after part', async () => {
      const { output, stats } = await cluster.first.runner.run({ ...steered, input: input(), output: toArray(), params: { folder } }).result()
      expect([...output.pairs].sort()).to.deep.equal(counts)
      expect(stats).to.include({ maps: 3, reducers: 2, attempts: 5, retried: 0, inputRecords: 3, mapPairs: 6, outputPairs: 3 })
    })

    it('fails when there is more than maxBytes', async () => {
      const job = cluster.first.runner.run({ ...steered, input: input(), output: toArray({ maxBytes: 5 }), params: { folder } })
      const error = await thrown(job.result())
      expect(error).to.be.instanceOf(JobFailedError).with.property('code', 'OUTPUT_FAILED')
    })
  })

  describe('to the store', () => {
    const prefix = 'counts/'
    const output = (overwrite = false): ReturnType<typeof toKv> => toKv({ prefix, overwrite })
    const allKeys = async (): Promise<string[]> => {
      const keys: string[] = []
      for await (const { key } of cluster.first.kv.scan({ prefix })) keys.push(Buffer.from(key).toString())
      return keys
    }
    const openedPairs = async (): Promise<unknown[]> => {
      const pairs: unknown[] = []
      for await (const pair of (await openOutput(cluster.first.kv, prefix)).scan()) pairs.push(pair)
      return pairs
    }

    it('is read with openOutput: by key, in order, in ranges, backwards', async () => {
      const { output: result } = await cluster.first.runner.run({ ...steered, input: input(), output: output(), params: { folder } }).result()
      const opened = await openOutput<number>((cluster.nodes[1] as (typeof cluster.nodes)[0]).kv, prefix)
      expect(opened).to.include({ pairs: 3, job: 'steered', generation: result.generation, fence: result.fence })
      expect(await opened.get('three')).to.equal(3)
      expect(await opened.get('four')).to.equal(undefined)
      expect(await openedPairs()).to.deep.equal(counts)
      const collect = async (options: object): Promise<unknown[]> => {
        const pairs: unknown[] = []
        for await (const pair of opened.scan(options)) pairs.push(pair)
        return pairs
      }
      expect(await collect({ prefix: 't', limit: 1 })).to.deep.equal([['three', 3]])
      expect(await collect({ gte: 'p', lt: 'tw' })).to.deep.equal([['three', 3]])
      expect(await collect({ reverse: true })).to.deep.equal([...counts].reverse())
    })

    it('M3: nothing can be opened before the commit, and nothing is left when the job fails or is cancelled', async () => {
      const slow = cluster.first.runner.run({ ...steered, input: input(), output: output(), params: gated() })
      await gateReached()
      await until('data is written', async () => (await allKeys()).length > 1)
      expect(await thrown(openOutput(cluster.first.kv, prefix)))
        .to.be.instanceOf(UnavailableError)
        .with.property('code', 'NO_OUTPUT')
      await slow.cancel('no longer wanted')
      expect(await thrown(slow.result()))
        .to.be.instanceOf(JobCancelledError)
        .with.property('cause', 'no longer wanted')
      expect(await allKeys()).to.deep.equal(['counts/manifest'])
      const failed = cluster.first.runner.run({
        ...steered,
        input: input(),
        output: output(),
        params: { ...(failing() as object), folder: `${folder}-2` },
      })
      expect(await thrown(failed.result())).to.be.instanceOf(JobFailedError)
      expect(await allKeys()).to.deep.equal(['counts/manifest'])
      expect(await thrown(openOutput(cluster.first.kv, prefix))).to.be.instanceOf(UnavailableError)
    })

    it('takes the place of an earlier generation in one step, with a higher fence, and removes it', async () => {
      await cluster.first.runner.run({ ...steered, input: fromItems(['old']), output: output(), params: { folder } }).result()
      const opened = await openOutput<number>(cluster.first.kv, prefix)
      const again = cluster.first.runner.run({ ...steered, input: input(), output: output(), params: { folder } })
      expect(await thrown(again.result())).to.be.instanceOf(OutputExistsError)
      const { output: next } = await cluster.first.runner.run({ ...steered, input: input(), output: output(true), params: { folder } }).result()
      expect(next.fence).to.be.greaterThan(opened.fence)
      expect(await openedPairs()).to.deep.equal(counts)
      // Who had the earlier one open goes over to the new one.
      expect(await opened.get('a')).to.equal(1)
      expect(opened.generation).to.equal(next.generation)
      expect(await allKeys()).to.have.length(4)
    })

    it('tells a scan whose generation was replaced meanwhile', async () => {
      await cluster.first.runner.run({ ...steered, input: input(), output: output(), params: { folder } }).result()
      const opened = await openOutput(cluster.first.kv, prefix)
      const scan = opened.scan()
      await scan.next()
      await cluster.first.runner.run({ ...steered, input: fromItems(['new']), output: output(true), params: { folder } }).result()
      const rest = (async () => {
        for await (const _ of scan);
      })()
      expect(await thrown(rest))
        .to.be.instanceOf(UnavailableError)
        .with.property('code', 'OUTPUT_REPLACED')
      expect(await openedPairs()).to.deep.equal([['new', 1]])
    })

    it('M1: a second job at the same prefix is refused while the first lives, and gets it when that is dead', async () => {
      const slow = cluster.first.runner.run({ ...steered, input: input(), output: output(), params: gated() })
      await gateReached()
      const second = cluster.nodes[1] as (typeof cluster.nodes)[0]
      const refused = second.runner.run({ ...steered, input: fromItems(['second']), output: output(true), params: { folder: `${folder}-2` } })
      expect(await thrown(refused.result())).to.be.instanceOf(OutputExistsError)
      // Its renewals come through no more: for all others it is dead. It has written data meanwhile.
      await until('data is written', async () => (await allKeys()).length > 1)
      cluster.first.kv.cut = 'both'
      const taken = second.runner.run({ ...steered, input: fromItems(['second']), output: output(), params: { folder: `${folder}-2` } })
      await taken.result()
      expect(await thrown(openOutput(second.kv, prefix).then((opened) => opened.get('second')))).to.equal(undefined)
      // It wakes: its commit must not come through, and nothing of it stays.
      cluster.first.kv.cut = 'none'
      await openGate()
      expect(await thrown(slow.result())).to.be.instanceOf(OutputExistsError)
      expect(await openedPairs()).to.deep.equal([['second', 1]])
      expect(await allKeys()).to.have.length(2)
    })

    it('M8: the next job sweeps what a crashed one has left', async () => {
      const dead = 'd'.repeat(32)
      const { kv } = cluster.first
      for (let number = 0; number < 100; number++) await kv.put(Buffer.concat([generationPrefix(prefix, dead), Buffer.from(`key-${number}`)]), 'left')
      await cluster.first.runner.run({ ...steered, input: input(), output: output(), params: { folder } }).result()
      expect(await allKeys()).to.have.length(4)
    })

    it('hazard w7: commits once over a store that loses, delays and refuses requests and replies', async () => {
      for (const { kv } of cluster.nodes)
        kv.faults = { ...kv.faults, maximumDelayMs: 5, requestLost: 0.1, replyLost: 0.2, slow: 0.1, slowMs: 300, refused: 0.05 }
      const job = cluster.first.runner.run({ ...steered, input: input(), output: output(), params: { folder } })
      const { output: result } = await job.result()
      for (const { kv } of cluster.nodes) kv.faults = { ...kv.faults, maximumDelayMs: 0, requestLost: 0, replyLost: 0, slow: 0, refused: 0 }
      expect(await openedPairs()).to.deep.equal(counts)
      expect((await readManifest(cluster.first.kv, prefix)).manifest.current).to.include({ generation: result.generation, pairs: 3 })
    })

    it('hazard w7: waits for a store that is away at the commit', async () => {
      const { kv } = cluster.first
      const { put } = kv
      let cut = false
      // From the very write that would commit on, nothing comes through until later.
      kv.put = async function (this: ModelKV, key, value, options) {
        const isCommit =
          Buffer.compare(Buffer.from(key as Uint8Array), Buffer.from(manifestKey(prefix))) === 0 &&
          Buffer.from(value as Uint8Array).includes('steered') &&
          (await allParts())
        if (isCommit && !cut) {
          cut = true
          kv.cut = 'replies'
          systemRuntime.schedule(1500, () => {
            kv.cut = 'none'
          })
        }
        return put.call(this, key, value, { ...options, timeoutMs: 300 })
      }
      const observer = new ModelKV({ runtime: systemRuntime, store: cluster.store })
      const allParts = async (): Promise<boolean> => {
        let found = 0
        for await (const { key } of observer.scan({ prefix })) if (!Buffer.from(key).toString().endsWith('manifest')) found++
        return found === 3
      }
      const result = await cluster.first.runner.run({ ...steered, input: input(), output: output(), params: { folder } }).result()
      expect(cut).to.equal(true)
      expect(await openedPairs()).to.deep.equal(counts)
      expect((await openOutput(kv, prefix)).generation).to.equal(result.output.generation)
    })

    it('hazard E1.31: keys of the output never name anything but keys', async () => {
      const job = { ...steered, job: 'faulty', input: fromItems(['a']), params: { how: 'path as key' }, reducers: 1 }
      await cluster.first.runner.run({ ...job, output: output() }).result()
      expect(await (await openOutput(cluster.first.kv, prefix)).get('../../etc/passwd')).to.equal(1)
      const out = join(cluster.folder, 'out')
      await cluster.first.runner.run({ ...job, output: toFolder(out) }).result()
      expect((await readParts(out)).all).to.equal('../../etc/passwd 1\na 1\n')
      expect((await readdir(out)).sort()).to.deep.equal(['_SUCCESS', 'part-00000'])
    })

    it('hazard E1.34: refuses a manifest that somebody has written by hand', async () => {
      await cluster.first.kv.put(manifestKey(prefix), 'not a manifest')
      const error = await thrown(openOutput(cluster.first.kv, prefix))
      expect(error).to.have.property('code', 'MALFORMED')
      const { error: refused } = await watch(cluster.first.runner.run({ ...steered, input: input(), output: output(), params: { folder } }))
      expect(refused).to.have.property('code', 'MALFORMED')
    })

    it('opens as what it is', async () => {
      await cluster.first.runner.run({ job: 'byte-keys', input: fromItems(['abab']), output: output(), reducers: 2 }).result()
      const opened = await openOutput(cluster.first.kv, prefix)
      expect(opened).to.be.instanceOf(OutputReader)
      const pairs: unknown[] = []
      for await (const [key, value] of opened.scan()) pairs.push([Buffer.from(key as Uint8Array).toString(), value])
      expect(pairs).to.deep.equal([
        ['ab', 2],
        ['ba', 1],
      ])
      expect(await opened.get(Buffer.from('ab'))).to.equal(2)
    })
  })
})
