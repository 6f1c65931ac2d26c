/**
 * The conformance suite of the KV interface (`src/engine/kv.ts`): what lock, MapReduce and applications rely on, as tests. It needs a test runner's `describe` and
 * `it` and nothing else (mocha, jest, vitest and node:test fit).
 *
 * 1. Every test has keys of its own, under a prefix that no other test uses, so that one store may serve them all. 2. Nothing waits for a fixed time. 3. Results are
 * compared by their bytes: an implementation may return any kind of Uint8Array.
 */
import type { ScanOptions } from '../engine/kv.js'
import { type Bench, bytes, collect, encoder, join, type KvFixture, type KvManifest, text } from './kv-suite-bench.js'
import { declareCalls } from './kv-suite-calls.js'
import { declareConveniences } from './kv-suite-conveniences.js'
import { declareScans } from './kv-suite-scan.js'
import { declareTransactions } from './kv-suite-transactions.js'
import { declareWatches } from './kv-suite-watch.js'
import { declareWrites } from './kv-suite-writes.js'

export type { KvFixture, KvManifest } from './kv-suite-bench.js'

export interface KvSuiteOptions {
  readonly describe: (title: string, suite: () => void) => unknown
  readonly it: (title: string, test: () => Promise<void>) => unknown
  /** The implementation's name, for the titles. */
  readonly name: string
  readonly manifest: KvManifest
  /** Makes a fixture; called once per test. It may be over the same store each time. */
  readonly create: () => Promise<KvFixture> | KvFixture
}

let benches = 0

/**
 * Declares the tests.
 *
 * @example
 * kvSuite({ describe, it, name: 'my store', manifest: { manyClients: false, cut: false }, create: () => ({ kv: new MyStore(), maxKeyBytes: 4096, maxValueBytes: 1 << 20 }) })
 */
export function kvSuite(options: KvSuiteOptions): void {
  const { describe, it, name, manifest, create } = options

  const test = (title: string, body: (bench: Bench) => Promise<void>) => {
    it(title, async () => {
      const fixture = await create()
      const prefix = encoder.encode(`suite ${process.pid} ${benches++}/`)
      const key = (rest: string | Uint8Array) => join(prefix, bytes(rest))
      const scan = async (range: ScanOptions = {}) => {
        const entries = await collect(fixture.kv.scan({ prefix, ...range }))
        return entries.map((entry) => text(entry.key.subarray(prefix.length)))
      }
      const { kv, maxKeyBytes, maxValueBytes, maxBatchOperations, maxBatchBytes, maxResultBytes } = fixture
      const tag = encoder.encode(`{${text(prefix)}}`)
      const bench: Bench = {
        kv,
        maxKeyBytes,
        maxValueBytes,
        maxBatchOperations,
        maxBatchBytes,
        maxResultBytes,
        key,
        near: (name) => join(tag, bytes(name)),
        scan,
        another: () => required(fixture.another?.()),
        cutOff: () => fixture.cutOff?.(),
        reconnect: () => fixture.reconnect?.(),
      }
      try {
        if (fixture.run === undefined) await body(bench)
        else await fixture.run(() => body(bench))
      } finally {
        await fixture.dispose?.()
      }
    })
  }

  describe(`KV suite: ${name}`, () => {
    declareWrites({ describe, test })
    declareScans({ describe, test })
    declareTransactions({ describe, test }, manifest)
    declareConveniences({ describe, test }, manifest)
    declareCalls({ describe, test }, manifest)
    declareWatches({ describe, test }, manifest)
  })
}

function required<Part>(part: Part | undefined): Part {
  if (part === undefined) throw new Error('the manifest promises what the fixture does not have')
  return part
}
