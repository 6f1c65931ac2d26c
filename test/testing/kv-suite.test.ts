/** The KV suite over ModelKV: on a whole network in real time, and on the lab's unreliable one in simulated time. And that the suite bites. */
import { expect } from 'chai'
import { systemRuntime } from '../../src/base/runtime.js'
import { maxResultBytes } from '../../src/engine/transaction.js'
import { type KvFixture, kvSuite } from '../../src/testing/kv-suite.js'
import { ModelKV, unreliableFaults } from '../../src/testing/model-kv.js'
import { ModelStore } from '../../src/testing/model-store.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'

const maxKeyBytes = 300
const maxValueBytes = 20_000
const limits = { maxKeyBytes, maxValueBytes, maxBatchOperations: 150, maxBatchBytes: 100_000 }
const manifest = { manyClients: true, cut: true, boundedHistory: true }
const keptWrites = 500

function cutting(kv: ModelKV) {
  return {
    cutOff: () => {
      kv.cut = 'both'
    },
    reconnect: () => {
      kv.cut = 'none'
    },
  }
}

const shared = new ModelStore({ keptWrites })
kvSuite({
  describe,
  it,
  name: 'ModelKV in real time, one store for all tests',
  manifest,
  create: () => {
    const options = { runtime: systemRuntime, store: shared, ...limits }
    const kv = new ModelKV(options)
    return { kv, another: async () => new ModelKV(options), ...limits, maxResultBytes, ...cutting(kv) }
  },
})

let seed = 1
const simulated = (store: ModelStore, faults = unreliableFaults): KvFixture => {
  const runtime = new SimulatedRuntime({ seed: seed++ })
  const options = { runtime, store, faults, ...limits }
  const kv = new ModelKV(options)
  return {
    kv,
    another: async () => new ModelKV(options),
    ...limits,
    maxResultBytes,
    ...cutting(kv),
    run: (test) => runtime.settle(test),
  }
}
kvSuite({
  describe,
  it,
  name: 'ModelKV on an unreliable network in simulated time',
  manifest,
  create: () => simulated(new ModelStore({ keptWrites })),
})

describe('the KV suite bites', () => {
  class WithoutDeletedRevisions extends ModelStore {
    override remove(...call: Parameters<ModelStore['remove']>) {
      const result = super.remove(...call)
      return { ...result, revision: 1 }
    }
  }
  class VersionsGoOn extends ModelStore {
    readonly #versions = new Map<string, number>()
    override write(...[key, value, condition]: Parameters<ModelStore['write']>) {
      const result = super.write(key, value, condition)
      const text = Buffer.from(key).toString('hex')
      this.#versions.set(text, (this.#versions.get(text) ?? 0) + 1)
      return { ...result, version: this.#versions.get(text) as number }
    }
  }
  class IgnoresRevisions extends ModelStore {
    override write(...[key, value, condition]: Parameters<ModelStore['write']>) {
      return super.write(key, value, { ifVersion: condition?.ifVersion })
    }
  }
  class OrdersByUtf16 extends ModelStore {
    override page(...call: Parameters<ModelStore['page']>) {
      const text = (key: Uint8Array) => Buffer.from(key).toString()
      const sign = call[0].reverse ? -1 : 1
      return super.page(...call).sort((left, right) => (text(left.key) < text(right.key) ? -sign : sign))
    }
  }
  class LosesTheLastOfAPage extends ModelStore {
    override page(...[range, limit]: Parameters<ModelStore['page']>) {
      const page = super.page(range, limit)
      return page.length > 2 ? [...page.slice(0, -2), page.at(-1)!] : page
    }
  }
  class DeletesWithoutCondition extends ModelStore {
    override remove(...[key]: Parameters<ModelStore['remove']>) {
      return super.remove(key)
    }
  }
  class AppliesTwice extends ModelStore {
    override write(...[key, value, condition]: Parameters<ModelStore['write']>) {
      super.write(key, value, condition)
      return super.write(key, value)
    }
  }
  class TransactsTwice extends ModelStore {
    override transact(...[transaction, condition]: Parameters<ModelStore['transact']>) {
      const result = super.transact(transaction, condition)
      super.transact(transaction)
      return result
    }
  }
  class IgnoresCompares extends ModelStore {
    override transact(...[transaction, condition]: Parameters<ModelStore['transact']>) {
      return super.transact({ ...transaction, compares: transaction.compares.slice(0, 1) }, condition)
    }
  }
  class ElseDoesNothing extends ModelStore {
    override transact(...[transaction, condition]: Parameters<ModelStore['transact']>) {
      const result = super.transact({ ...transaction, branches: [transaction.branches[0], []] }, condition)
      return result.succeeded
        ? result
        : {
            ...result,
            results: super.transact({ ...transaction, compares: [], branches: [transaction.branches[1].filter(({ kind }) => kind === 3), []] })
              .results,
          }
    }
  }
  class BothBranches extends ModelStore {
    override transact(...[transaction, condition]: Parameters<ModelStore['transact']>) {
      const result = super.transact(transaction, condition)
      if (!result.succeeded) super.transact({ ...transaction, compares: [], branches: [transaction.branches[0], []] })
      return result
    }
  }
  class WritesInSeveralSteps extends ModelStore {
    override transact(...[transaction, condition]: Parameters<ModelStore['transact']>) {
      if (transaction.compares.length > 0) return super.transact(transaction, condition)
      const parts = transaction.branches[0].map((step) => super.transact({ ...transaction, branches: [[step], []] }, condition))
      return { succeeded: true, revision: parts.at(-1)!.revision, results: parts.flatMap(({ results }) => results) }
    }
  }
  class IgnoresFences extends ModelStore {
    override transact(...[transaction]: Parameters<ModelStore['transact']>) {
      return super.transact(transaction)
    }
  }
  class ForgetsThatAbsentIsNoValue extends ModelStore {
    override transact(...[transaction, condition]: Parameters<ModelStore['transact']>) {
      const compares = transaction.compares.map((each) => (each.value?.length === 0 ? { ...each, value: undefined, version: 0 } : each))
      return super.transact({ ...transaction, compares }, condition)
    }
  }
  class CountsInDoubles extends ModelStore {
    override increment(...[key, by, condition]: Parameters<ModelStore['increment']>) {
      const { version, revision, value } = super.increment(key, by, condition)
      return { version, revision, value: BigInt(Number(value)) }
    }
  }
  class WrapsAround extends ModelStore {
    override increment(...[key, by, condition]: Parameters<ModelStore['increment']>) {
      try {
        return super.increment(key, by, condition)
      } catch (error) {
        if ((error as { code?: string }).code !== 'NUMBER_OUT_OF_RANGE') throw error
        const value = BigInt.asIntN(64, BigInt(Buffer.from(this.read(key)!.value).toString()) + by)
        return { ...this.write(key, Buffer.from(`${value}`)), value }
      }
    }
  }
  for (const Broken of [
    TransactsTwice,
    IgnoresCompares,
    ElseDoesNothing,
    BothBranches,
    WritesInSeveralSteps,
    IgnoresFences,
    ForgetsThatAbsentIsNoValue,
    CountsInDoubles,
    WrapsAround,
    WithoutDeletedRevisions,
    VersionsGoOn,
    IgnoresRevisions,
    OrdersByUtf16,
    LosesTheLastOfAPage,
    DeletesWithoutCondition,
    AppliesTwice,
  ]) {
    it(`on a store that ${Broken.name}`, async () => {
      const failed: string[] = []
      const tests: (() => Promise<void>)[] = []
      kvSuite({
        describe: (_title, suite) => suite(),
        it: (title, test) => {
          tests.push(() => test().catch(() => void failed.push(title)))
        },
        name: 'broken',
        manifest,
        create: () => simulated(new Broken(), { ...unreliableFaults, requestLost: 0, replyLost: 0 }),
      })
      for (const test of tests) await test()
      expect(failed).not.to.deep.equal([])
      expect(failed.length).to.be.lessThan(tests.length)
    })
  }
})
