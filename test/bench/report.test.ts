/** What the benchmark makes of its measurements, and what it measures of operations whose times are known. */
import { expect } from 'chai'
import { measure } from '../../bench/load.js'
import { parseOptions } from '../../bench/options.js'
import { formatTable, type Measurement, makeReport } from '../../bench/report.js'

function cell(system: string, op: 'put' | 'get', callers: number, opsPerSecond: number): Measurement {
  return { system, op, callers, opsPerSecond, operations: opsPerSecond, p50Ms: 1, p99Ms: 2, maxMs: 3, longestStallMs: 4, logWrites: undefined }
}

describe('the benchmark report', () => {
  const rounds = [
    ...[cell('quorate', 'put', 64, 10_000), cell('quorate-embedded', 'put', 64, 9000), cell('etcd', 'put', 64, 5000)],
    ...[cell('quorate', 'put', 64, 30_000), cell('quorate-embedded', 'put', 64, 1000), cell('etcd', 'put', 64, 4000)],
    ...[cell('quorate', 'put', 64, 12_000), cell('quorate-embedded', 'put', 64, 8000), cell('etcd', 'put', 64, 8000)],
  ]

  it('takes medians over the rounds and the ratio of the client process to etcd', () => {
    const { rows, ratios } = makeReport(rounds)
    expect(rows.map(({ system, opsPerSecond }) => [system, opsPerSecond])).to.deep.equal([
      ['quorate', 12_000],
      ['quorate-embedded', 8000],
      ['etcd', 5000],
    ])
    expect(ratios).to.deep.equal([{ op: 'put', callers: 64, ratio: 2.4 }])
  })

  it('has no ratios without a peer', () => {
    expect(makeReport(rounds.filter(({ system }) => system !== 'etcd')).ratios).to.deep.equal([])
  })

  it('shows the spread in the table', () => {
    expect(formatTable(rounds, makeReport(rounds), 5)).to.match(/quorate\s+put\s+64\s+12000\s+\(10000 … 30000\)[\s\S]*put at 64 callers: 2\.40 times/)
  })
})

describe('the benchmark options', () => {
  it('has the defaults of its help', () => {
    expect(parseOptions([])).to.deep.include({ seconds: 5, callers: [1, 16, 64, 256], operations: ['put', 'get'], rounds: 1, json: false })
    expect(parseOptions(['--peer', 'etcd'])).to.deep.include({ rounds: 3, peer: 'etcd' })
  })

  for (const wrong of [
    ['--seconds', 'x'],
    ['--callers', '1,0'],
    ['--callers', '1.5'],
    ['--ops', 'scan'],
    ['--peer', 'redis'],
    ['--rounds', '0'],
    ['--bogus'],
  ]) {
    it(`refuses ${wrong.join(' ')}`, () => {
      expect(() => parseOptions(wrong)).to.throw(Error, wrong[0]!.slice(2))
    })
  }
})

describe('the closed loop of the benchmark', () => {
  it('counts what completes within the time, by so many callers at once', async () => {
    let underWay = 0
    let most = 0
    let puts = 0
    const put = async () => {
      puts += 1
      most = Math.max(most, ++underWay)
      await new Promise(setImmediate)
      underWay -= 1
    }
    const result = await measure({ put, get: async () => undefined }, { operation: 'put', callers: 7, warmUpMs: 20, durationMs: 100 })
    expect(most).to.equal(7)
    expect(result.operations).to.be.within(1, puts - 1)
    expect(result.opsPerSecond).to.be.closeTo(result.operations * 10, 0.001)
    expect(result.p50Ms).to.be.at.most(result.p99Ms)
    expect(result.p99Ms).to.be.at.most(result.maxMs)
  })

  it('ends with the error of an operation, and with a get that finds nothing', async () => {
    const failing = { put: () => Promise.reject(new Error('refused')), get: async () => undefined }
    for (const operation of ['put', 'get'] as const) {
      let failure: unknown
      await measure(failing, { operation, callers: 2, warmUpMs: 0, durationMs: 50 }).catch((error: unknown) => {
        failure = error
      })
      expect(String(failure)).to.match(operation === 'put' ? /refused/ : /resolved to no bytes/)
    }
  })
})
