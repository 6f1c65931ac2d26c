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
    expect(ratios).to.deep.equal([{ peer: 'etcd', op: 'put', callers: 64, ratio: 2.4 }])
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
    expect(parseOptions(['--peer', 'etcd'])).to.deep.include({ rounds: 3, peers: ['etcd'] })
  })

  for (const wrong of [
    ['--seconds', 'x'],
    ['--callers', '1,0'],
    ['--callers', '1.5'],
    ['--ops', 'scan'],
    ['--peer', 'mysql'],
    ['--rounds', '0'],
    ['--bogus'],
  ]) {
    it(`refuses ${wrong.join(' ')}`, () => {
      expect(() => parseOptions(wrong)).to.throw(Error, wrong[0]!.slice(2))
    })
  }
})

describe('the closed loop of the benchmark', () => {
  it('counts what completes after the warm-up and within the time, by so many callers at once', async () => {
    let clockMs = 0
    let underWay = 0
    let most = 0
    const put = async () => {
      most = Math.max(most, ++underWay)
      await new Promise(setImmediate)
      underWay -= 1
      clockMs += 1
    }
    const result = await measure({ put, get: async () => undefined }, { operation: 'put', callers: 7, warmUpMs: 20, durationMs: 700 }, () => clockMs)
    expect(most).to.equal(7)
    // One put ends each millisecond of this clock, at 20 and at 720 too; each has the other six before it.
    expect(result).to.deep.include({ operations: 701, p50Ms: 7, longestStallMs: 1 })
    expect(result.opsPerSecond).to.be.closeTo(1001, 1)
    expect(result.maxMs).to.be.at.most(7)
  })

  it('ends with the error of an operation, and with a get that finds nothing', async () => {
    const failing = { put: () => Promise.reject(new Error('refused')), get: async () => undefined }
    for (const operation of ['put', 'get'] as const) {
      let failure: unknown
      await measure(failing, { operation, callers: 2, warmUpMs: 0, durationMs: 50 }, () => 0).catch((error: unknown) => {
        failure = error
      })
      expect(String(failure)).to.match(operation === 'put' ? /refused/ : /resolved to no bytes/)
    }
  })
})
