/** Transactions and increments on whole nodes with real clients in a simulated world that loses frames, parts servers and takes their power: exactly once, and never half. */
import { expect } from 'chai'
import type { KeyValue, KV } from '../../src/engine/kv.js'
import { History, recordHistory } from '../../src/testing/history.js'
import { assertLinearizable } from '../../src/testing/history-checker.js'
import type { ClusterLab } from '../labs/support/cluster-lab.js'
import { scenario } from '../labs/support/cluster-scenario.js'

const text = (entry: KeyValue | undefined) => (entry === undefined ? undefined : Buffer.from(entry.value).toString())
const keys = ['{bank}a', '{bank}b', '{bank}c', '{bank}d']

/** So that the work lasts as long as the faults. */
const pause = (lab: ClusterLab) => lab.sleep(lab.random.integer(0, 400))

/** Several clients work while servers are parted again and again; in the middle all lose their power. */
async function underFaults(lab: ClusterLab, clients: number, work: (kv: KV, client: number) => Promise<void>): Promise<void> {
  const kvs: KV[] = []
  for (let client = 0; client < clients; client++) kvs.push(await lab.createClient())
  for (const crash of [true, false]) {
    const stop = lab.partitionRepeatedly()
    const working = Promise.all(kvs.map(work))
    if (crash) {
      await lab.sleep(1500)
      lab.crashAll()
      await lab.sleep(500)
      await lab.restartAll()
    }
    await working
    await stop()
  }
}

describe('transactions under faults', () => {
  for (const unreliable of [false, true]) {
    const network = unreliable ? 'a network that loses frames' : 'a reliable network'
    scenario(`K3: increments over partitions and losses of power, ${network}: N of them count N`, { servers: 3, unreliable }, async (lab) => {
      const sums: bigint[] = []
      const each = 25
      await underFaults(lab, 4, async (kv) => {
        for (let done = 0; done < each; done++) {
          await pause(lab)
          sums.push((await kv.increment('counter')).value)
        }
      })
      const expected = Array.from({ length: 2 * 4 * each }, (_, at) => BigInt(at + 1))
      expect(
        sums.sort((one, other) => (one < other ? -1 : 1)),
        'each sum was told once',
      ).to.deep.equal(expected)
      const final = await (await lab.createClient()).get('counter')
      expect([text(final), final?.version]).to.deep.equal([`${expected.length}`, expected.length])
      await lab.checkSameState(['counter'])
    })

    scenario(
      `transfers over partitions and losses of power, ${network}: the sum stays, and nobody sees half of one`,
      { servers: 3, unreliable },
      async (lab) => {
        const history = new History({ runtime: lab.runtime })
        const setup = await lab.createClient()
        await recordHistory(setup, history, 'setup').batch(keys.map((key) => ({ put: key, value: '1000' })))
        let transfers = 0
        await underFaults(lab, 4, async (plain, client) => {
          const kv = recordHistory(plain, history, `${client}`)
          for (let round = 0; round < 12; round++) {
            await pause(lab)
            const { results } = await kv.txn({ then: keys.map((key) => ({ get: key })) })
            const balances = results.map((entry) => Number(text(entry as KeyValue)))
            expect(balances.reduce((sum, balance) => sum + balance)).to.equal(4000)
            const [from, to] = [client, (client + 1 + (round % 3)) % 4] as const
            const { succeeded } = await kv.txn({
              if: [from, to].map((at) => ({ key: keys[at]!, revision: (results[at] as KeyValue).revision })),
              then: [
                { put: keys[from]!, value: `${balances[from]! - 1}` },
                { put: keys[to]!, value: `${balances[to]! + 1}` },
              ],
              else: [{ get: keys[from]! }],
            })
            if (succeeded) transfers++
          }
        })
        const final = await setup.txn({ then: keys.map((key) => ({ get: key })) })
        const entries = final.results as KeyValue[]
        expect(entries.reduce((sum, entry) => sum + Number(text(entry)), 0)).to.equal(4000)
        expect(
          entries.reduce((sum, { version }) => sum + version, 0),
          'writes that took effect',
        ).to.equal(4 + 2 * transfers)
        assertLinearizable(history.operations)
        await lab.checkSameState(keys)
      },
    )
  }

  scenario('batches and updates of several clients at once: whole, in one order, and linearizable', { servers: 3, unreliable: true }, async (lab) => {
    const history = new History({ runtime: lab.runtime })
    await underFaults(lab, 4, async (plain, client) => {
      const kv = recordHistory(plain, history, `${client}`)
      for (let round = 0; round < 6; round++) {
        await pause(lab)
        await kv.batch(keys.map((key) => ({ put: key, value: `${client}.${round}.${lab.random.integer(0, 1e9)}` })))
        await kv.update(keys[round % 4]!, (current) => (round % 3 === 2 ? null : `${text(current)}+${client}.${round}`))
        await kv.getOrPut(keys[round % 4]!, `created by ${client} in ${round}`)
        await kv.getMany(keys)
      }
    })
    assertLinearizable(history.operations)
    await lab.checkSameState(keys)
  })

  scenario('a stale owner’s writes are refused, however late they come', { servers: 3, unreliable: true }, async (lab) => {
    const kv = await lab.createClient()
    const other = await lab.createClient()
    let stale: { key: string; revision: number } | null = null
    for (let reign = 1; reign <= 10; reign++) {
      const { revision } = await (reign % 2 === 0 ? kv : other).put('{job}owner', `${reign}`)
      const before = stale
      const fence = { key: '{job}owner', revision }
      const late =
        before === null ? [] : Array.from({ length: 5 }, () => kv.increment('{job}stale', 1, { fence: before }).catch((error) => error.code))
      await Promise.all(Array.from({ length: 5 }, () => other.increment('{job}done', 1, { fence })))
      for (const code of await Promise.all(late)) expect(code).to.equal('FENCED')
      stale = fence
    }
    expect(text(await kv.get('{job}done'))).to.equal('50')
    expect(await kv.get('{job}stale')).to.equal(undefined)
  })
})
