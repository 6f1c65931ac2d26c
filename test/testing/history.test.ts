import { expect } from 'chai'
import { History, type Operation, recordHistory } from '../../src/testing/history.js'
import { assertLinearizable, checkHistory } from '../../src/testing/history-checker.js'
import { ModelKV, unreliableFaults } from '../../src/testing/model-kv.js'
import { ModelStore } from '../../src/testing/model-store.js'
import { randomHistory } from '../../src/testing/random-history.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'
import { type SimulatedProcess, SimulatedRuntime } from '../../src/testing/simulated-runtime.js'

type Line = Partial<Operation> & Pick<Operation, 'op' | 'call'>

/** A history of key k from what differs from the usual. */
function history(...lines: Line[]): Operation[] {
  return lines.map((line, position) => ({
    client: `c${position}`,
    ret: line.result === 'unknown' ? null : line.call + 1,
    key: 'k',
    value: null,
    version: line.result === 'unknown' ? null : 0,
    result: 'ok',
    ...line,
  }))
}

const put = (call: number, value: string, version: number, more: Partial<Operation> = {}): Line => ({ op: 'put', call, value, version, ...more })
const get = (call: number, value: string | null, version: number, more: Partial<Operation> = {}): Line => ({
  op: 'get',
  call,
  value,
  version,
  ...more,
})
const unknownPut = (call: number, value: string, more: Partial<Operation> = {}): Line => ({ op: 'put', call, value, result: 'unknown', ...more })

const accepts = (...lines: Line[]) => expect(checkHistory(history(...lines))).to.have.property('ok', true)
const refuses = (...lines: Line[]) => expect(checkHistory(history(...lines))).to.include({ ok: false, reason: 'not-linearizable', key: 'k' })

/** What a store that goes wrong would have told, put into a history (without deletes) that was right; each returns the key. */
const anomalies: Record<string, (operations: Operation[], random: SeededRandom) => string> = {
  'stale read': (operations, random) => {
    const old = random.pick(operations.filter(({ op, version }) => op === 'get' && version! > 0 && version! < 20))
    operations.push({ ...old, client: 'late', call: 1e9, ret: 1e9 + 1 })
    return old.key
  },
  'lost write': (operations, random) => {
    const { key } = random.pick(operations)
    // The last thing that happens: it is acknowledged, and whoever reads then finds what was there before.
    const ofKey = operations.filter((operation) => operation.key === key && operation.result === 'ok')
    const before = ofKey.reduce((latest, operation) => (operation.version! >= latest.version! ? operation : latest))
    const read = { client: 'late', key, op: 'get', result: 'ok', value: before.value, version: before.version, revision: before.revision! } as const
    operations.push({ ...read, call: 1e9, ret: 1e9 + 1 })
    expect(checkHistory(operations).ok, 'the read of the last value').to.equal(true)
    operations.push({
      client: 'late',
      key,
      op: 'put',
      call: 1e9 + 2,
      ret: 1e9 + 3,
      value: 'lost',
      version: before.version! + 1,
      revision: 1e9,
      result: 'ok',
    })
    operations.push({ ...read, call: 1e9 + 4, ret: 1e9 + 5 })
    return key
  },
  'duplicate apply': (operations, random) => {
    const twice = random.pick(operations.filter(({ op, result }) => op === 'put' && result === 'ok').slice(100, -100))
    // From there on every version of the key counts one more than there were puts.
    for (const operation of operations) {
      if (operation.key === twice.key && operation.version !== null && operation.version >= twice.version! && operation !== twice) operation.version++
      if (operation.key === twice.key && operation.result === 'unknown') operation.result = 'failed'
    }
    return twice.key
  },
  'split brain': (operations, random) => {
    const one = random.pick(operations.filter(({ op, result }) => op === 'put' && result === 'ok'))
    operations.push({ ...one, client: 'other', value: 'of the other side', revision: one.revision! + 0.5 })
    return one.key
  },
  'version that is used again': (operations, random) => {
    const last = new Map(operations.filter(({ op, result }) => op === 'put' && result === 'ok').map((operation) => [operation.key, operation]))
    const latest = random.pick([...last.values()])
    operations.push({
      ...latest,
      ifVersion: latest.version! - 1,
      client: 'late',
      call: 1e9,
      ret: 1e9 + 1,
      value: 'again',
      revision: 1e9,
    } as Operation)
    return latest.key
  },
  'value from nowhere': (operations, random) => {
    const seen = random.pick(operations.filter(({ op, version }) => op === 'get' && version! > 0))
    seen.value = 'from nowhere'
    return seen.key
  },
}

describe('history checker', () => {
  it('accepts what one store could have done', () => {
    accepts(put(0, 'a', 1), get(2, 'a', 1), put(4, 'b', 2), get(6, 'b', 2))
    accepts({ op: 'get', call: 0 }, put(2, 'a', 1), { op: 'delete', call: 4, deleted: true }, get(6, null, 0), put(8, 'b', 1))
    accepts({ op: 'delete', call: 0, deleted: false }, put(2, 'a', 1, { ifVersion: 0 }), put(4, 'x', 1, { ifVersion: 0, result: 'condition-failed' }))
    // Concurrent: the get may come before or after.
    accepts(put(0, 'a', 1), put(2, 'b', 2, { ret: 10 }), get(3, 'a', 1), get(5, 'b', 2))
  })

  it('takes an answer and a call at the same time for concurrent', () => {
    accepts(put(0, 'a', 1), put(2, 'b', 2, { ret: 5 }), get(5, 'a', 1))
    refuses(put(0, 'a', 1), put(2, 'b', 2, { ret: 5 }), get(5.001, 'a', 1))
  })

  it('hazard K1: refuses a stale read', () => {
    refuses(put(0, 'a', 1), put(2, 'b', 2), get(4, 'a', 1))
    // Two reads one after the other must not go back, though the write is concurrent with both.
    refuses(put(0, 'a', 1), put(2, 'b', 2, { ret: 10 }), get(3, 'b', 2), get(5, 'a', 1))
  })

  it('refuses a lost write', () => {
    refuses(put(0, 'a', 1), get(2, null, 0))
    refuses(put(0, 'a', 1), put(2, 'b', 1))
  })

  it('hazard K3: refuses a write applied twice', () => {
    refuses(put(0, 'a', 1), get(2, 'a', 2))
    refuses(put(0, 'a', 1), put(2, 'b', 3))
    refuses(unknownPut(0, 'a', { ifVersion: 0 }), get(2, 'a', 2))
  })

  it('refuses a split brain: two writers both get the same version', () => {
    refuses(put(0, 'a', 1), put(2, 'b', 2, { ret: 10, ifVersion: 1 }), put(3, 'c', 2, { ret: 11, ifVersion: 1 }))
    refuses(put(0, 'a', 1), put(2, 'b', 2, { ret: 10 }), put(2, 'c', 2, { ret: 10 }), get(12, 'b', 2), get(14, 'c', 2))
  })

  it('hazard K5: refuses a value from nowhere, and the wrong version with the right value', () => {
    refuses(put(0, 'a', 1), get(2, 'z', 1))
    refuses(put(0, 'a', 1), get(2, 'a', 3))
    refuses(put(0, 'a', 1), get(2, null, 1))
  })

  it('hazard K4: a failed condition must have failed, and tells the version', () => {
    accepts(put(0, 'a', 1), put(2, 'b', 1, { ifVersion: 7, result: 'condition-failed' }))
    refuses(put(0, 'a', 1), put(2, 'b', 1, { ifVersion: 1, result: 'condition-failed' }))
    refuses(put(0, 'a', 1), put(2, 'b', 4, { ifVersion: 7, result: 'condition-failed' }))
    refuses(put(0, 'a', 1), put(2, 'b', 1, { ifVersion: 7, result: 'condition-failed' }), get(4, 'b', 2))
    refuses(put(0, 'a', 1), put(2, 'b', 2, { ifVersion: 0 }))
    // Nothing was done, and nothing is said of the key.
    accepts(put(0, 'a', 1), put(2, 'b', 0, { result: 'failed', version: null }), get(4, 'a', 1))
    refuses(put(0, 'a', 1), put(2, 'b', 0, { result: 'failed', version: null }), get(4, 'b', 2))
  })

  it('a write of unknown outcome may take effect, late, or never, but once and not before its call', () => {
    accepts(unknownPut(0, 'a'), get(2, null, 0), get(4, 'a', 1))
    accepts(unknownPut(0, 'a'), get(2, null, 0), put(4, 'b', 1))
    accepts(unknownPut(0, 'a'), put(4, 'b', 2), get(6, 'b', 2))
    accepts(unknownPut(0, 'a'), put(4, 'b', 1), get(6, 'a', 2))
    refuses(unknownPut(0, 'a'), get(2, 'a', 1), get(4, null, 0))
    refuses(get(0, 'a', 1), unknownPut(2, 'a'))
    refuses(unknownPut(0, 'a'), put(2, 'b', 1), get(4, 'a', 2), put(6, 'c', 3), get(8, 'a', 4))
    // With a condition it can only come where that holds.
    accepts(put(0, 'a', 1), unknownPut(2, 'b', { ifVersion: 1 }), get(4, 'b', 2))
    refuses(put(0, 'a', 1), unknownPut(2, 'b', { ifVersion: 1 }), put(4, 'c', 2), get(6, 'b', 3))
    accepts(put(0, 'a', 1), { op: 'delete', call: 2, result: 'unknown', version: null }, get(4, 'a', 1), get(6, null, 0))
    refuses(put(0, 'a', 1), { op: 'delete', call: 2, result: 'unknown', version: null }, get(4, null, 0), get(6, 'a', 1))
  })

  it('revisions rise, and agree between writes, reads and conditions', () => {
    accepts(put(0, 'a', 1, { revision: 5 }), get(2, 'a', 1, { revision: 5 }), put(4, 'b', 2, { revision: 9, ifRevision: 5 }))
    refuses(put(0, 'a', 1, { revision: 5 }), get(2, 'a', 1, { revision: 6 }))
    refuses(put(0, 'a', 1, { revision: 5 }), put(2, 'b', 2, { revision: 5 }))
    refuses(put(0, 'a', 1, { revision: 5 }), { op: 'delete', call: 2, deleted: true, revision: 6 }, put(4, 'a', 1, { revision: 5 }))
    refuses(put(0, 'a', 1, { revision: 5 }), put(2, 'b', 2, { revision: 9, ifRevision: 4 }))
    refuses(put(0, 'a', 1, { revision: 5 }), put(2, 'b', 1, { revision: 5, ifRevision: 5, result: 'condition-failed' }))
    // The revision of a write of unknown outcome is only known to be above what was there before.
    accepts(put(0, 'a', 1, { revision: 5 }), unknownPut(2, 'b'), get(4, 'b', 2, { revision: 8 }), put(6, 'c', 3, { ifRevision: 8, revision: 9 }))
    refuses(put(0, 'a', 1, { revision: 5 }), unknownPut(2, 'b'), get(4, 'b', 2, { revision: 4 }))
  })

  it('takes keys apart, and says which one is wrong, what was possible and what was going on', () => {
    const good = history(put(0, 'a', 1), get(2, 'a', 1))
    const bad = history(put(0, 'a', 1), put(1.5, 'b', 2, { ret: 9 }), get(2, 'a', 1), get(4, 'z', 1)).map((operation) => ({
      ...operation,
      key: 'other',
    }))
    const result = checkHistory([...bad, ...good])
    expect(result).to.include({ ok: false, key: 'other' })
    expect(() => assertLinearizable([...bad, ...good])).to.throw(/not linearizable at key "other".*"z"[\s\S]*version 1 = "a"[\s\S]*under way: .*"b"/)
    assertLinearizable(good)
  })

  it('running out of its budget is a failure', () => {
    const lines: Line[] = []
    for (let number = 0; number < 24; number++) lines.push(unknownPut(number / 100, `u${number}`))
    for (let number = 0; number < 24; number++) lines.push(get(1000 + number, `u${number}`, 30 + number))
    const result = checkHistory(history(...lines), { maxConfigurations: 1000 })
    expect(result).to.include({ ok: false, reason: 'out-of-budget' })
  })

  it('many writes of unknown outcome that nobody reads cost little', () => {
    const lines: Line[] = []
    for (let number = 0; number < 200; number++) lines.push(unknownPut(number / 1000, `u${number}`))
    lines.push(put(10, 'a', 101), get(12, 'a', 101), put(14, 'b', 150), get(16, 'b', 150))
    const result = checkHistory(history(...lines))
    expect(result).to.have.property('ok', true)
    refuses(...lines, put(18, 'c', 250))
  })

  it('agrees with trying out every order, on 20000 small random histories', () => {
    const random = new SeededRandom(1, 'small histories')
    let linearizable = 0
    for (let round = 0; round < 20_000; round++) {
      const operations = smallHistory(random)
      const expected = bruteForce(operations)
      const actual = checkHistory(operations)
      if (actual.ok !== expected)
        expect.fail(`round ${round}: expected ${expected}, got ${JSON.stringify(actual)} for\n${JSON.stringify(operations, null, 1)}`)
      if (expected) linearizable++
    }
    expect(linearizable).to.be.within(2000, 18_000)
  })

  it('200,000 operations on 1,000 keys (`npm run history -- --measure` says how long it takes)', function () {
    this.timeout(120_000)
    const operations = randomHistory({ operations: 200_000, keys: 1000 })
    expect(checkHistory(operations)).to.include({ ok: true, operations: 200_000, keys: 1000 })
    // One planted stale read among them is found.
    const victim = operations.findLast(({ op, result, version }) => op === 'get' && result === 'ok' && version! > 1)!
    victim.version = victim.version! - 1
    expect(checkHistory(operations)).to.include({ ok: false, reason: 'not-linearizable', key: victim.key })
  })

  for (const [name, plant] of Object.entries(anomalies)) {
    it(`finds a planted ${name} among two thousand operations, also after a way through JSON lines`, () => {
      for (let seed = 1; seed <= 20; seed++) {
        const random = new SeededRandom(seed, name)
        // Whether a lost write was there before is only known where no outcome is unknown.
        const operations = randomHistory({ operations: 2000, keys: 10, seed, deletes: 0, unknown: name === 'lost write' ? 0 : 0.05 })
        expect(checkHistory(operations).ok, `seed ${seed}`).to.equal(true)
        const key = plant(operations, random)
        const log = new History()
        log.operations.push(...operations)
        for (const each of [operations, History.fromLines(log.toLines())]) {
          expect(checkHistory(each), `seed ${seed}`).to.include({ ok: false, reason: 'not-linearizable', key })
        }
      }
    })
  }
})

describe('recordHistory', () => {
  const run = async (seed: number, corrupt: (store: ModelStore, runtime: SimulatedRuntime) => void = () => {}) => {
    const runtime = new SimulatedRuntime({ seed })
    const store = new ModelStore()
    const log = new History({ runtime })
    corrupt(store, runtime)
    const chance = runtime.stream('work')
    const clients = Array.from({ length: 5 }, async (_, number) => {
      const process: SimulatedProcess = runtime.process(`c${number}`)
      const faults = { ...unreliableFaults, slow: 0.1, slowMs: 2000, refused: 0.05 }
      const kv = recordHistory(new ModelKV({ runtime: process, network: runtime, store, faults }), log, `c${number}`)
      for (let round = 0; round < 40; round++) {
        const key = `k${chance.integer(0, 3)}`
        const timeoutMs = chance.pick([30, 100, 1000])
        try {
          const seen = await kv.get(key, { timeoutMs })
          const condition = chance.pick([{}, { ifVersion: seen?.version ?? 0 }, { ifRevision: seen?.revision ?? 0 }])
          if (chance.chance(0.2)) await kv.delete(key, { timeoutMs, ...condition })
          else await kv.put(key, `${number}/${round}`, { timeoutMs, ...condition })
          if (chance.chance(0.1)) await kv.getMany(['k0', 'k1', 'k2'], { timeoutMs })
          if (chance.chance(0.1)) for await (const entry of kv.scan({ prefix: 'k', timeoutMs })) void entry
        } catch (error) {
          if (!('code' in (error as object))) throw error
        }
      }
    })
    await runtime.settle(Promise.all(clients))
    return log
  }

  it('what clients see of a right store under faults is linearizable, unknown outcomes and all', async () => {
    const results = new Set<string>()
    for (let seed = 1; seed <= 30; seed++) {
      const log = await run(seed)
      for (const { op, result } of log.operations) results.add(`${op} ${result}`)
      const result = checkHistory(log.operations)
      if (!result.ok) expect.fail(`seed ${seed}: ${result.message}`)
    }
    for (const kind of [
      'get ok',
      'get failed',
      'put ok',
      'put unknown',
      'put failed',
      'put condition-failed',
      'delete ok',
      'delete unknown',
      'delete condition-failed',
    ]) {
      expect(results).to.include(kind)
    }
  })

  it('what they see of a store that goes wrong once is not', async () => {
    for (const [name, corrupt] of Object.entries<(store: ModelStore, runtime: SimulatedRuntime) => void>({
      'stale read': (store, runtime) => {
        const read = store.read.bind(store)
        const old = new Map<string, ReturnType<typeof read>>()
        store.read = (key) => {
          const now = read(key)
          const text = Buffer.from(key).toString()
          if (runtime.nowMs() < 200) old.set(text, now)
          return runtime.nowMs() > 1000 && runtime.nowMs() < 1500 ? old.get(text) : now
        }
      },
      'lost write': (store, runtime) => {
        const write = store.write.bind(store)
        store.write = (key, value, condition) => {
          const before = store.read(key)
          const result = write(key, value, condition)
          if (runtime.nowMs() > 1000 && before === undefined) store.remove(key)
          return result
        }
      },
      'duplicate apply': (store, runtime) => {
        const write = store.write.bind(store)
        store.write = (key, value, condition) => {
          const result = write(key, value, condition)
          if (runtime.nowMs() > 1000) write(key, value)
          return result
        }
      },
      'condition ignored': (store, runtime) => {
        const write = store.write.bind(store)
        store.write = (key, value, condition) => write(key, value, runtime.nowMs() > 1000 ? {} : condition)
      },
    })) {
      let found = 0
      for (let seed = 1; seed <= 5; seed++) {
        const log = await run(seed, corrupt)
        if (!checkHistory(log.operations).ok) found++
      }
      expect(found, name).to.equal(5)
    }
  })

  it('writes JSON lines that give the same verdict when read back', async () => {
    const log = await run(7)
    const lines = log.toLines()
    expect(JSON.parse(lines.split('\n')[0] as string)).to.include.all.keys('client', 'call', 'ret', 'op', 'key', 'value', 'version', 'result')
    const read = History.fromLines(lines)
    expect(read).to.deep.equal(log.operations)
    expect(checkHistory(read).ok).to.equal(true)
  })

  it('keeps keys and values apart that are not text, look like hexadecimal, or are long', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const log = new History({ runtime })
    const kv = recordHistory(new ModelKV({ runtime }), log, 'c')
    const keys = ['0xff', new Uint8Array([0xff]), 'ÿ', '\ufeffÿ']
    await runtime.settle(async () => {
      for (const [number, key] of keys.entries()) await kv.put(key, `${number}`)
      await kv.put('long', 'x'.repeat(100_000))
      await kv.put('long', `${'x'.repeat(99_999)}y`)
      await kv.get('long')
    })
    expect(new Set(log.operations.map(({ key }) => key)).size).to.equal(5)
    const [first, second, read] = log.operations.filter(({ key }) => key === 'long')
    expect(first?.value).not.to.equal(second?.value)
    expect(read?.value).to.equal(second?.value)
    expect(log.toLines().length).to.be.lessThan(2000)
    expect(checkHistory(log.operations).ok).to.equal(true)
  })

  it('an operation of a client that died is of unknown outcome', async () => {
    const runtime = new SimulatedRuntime({ seed: 1 })
    const process = runtime.process('c')
    const log = new History({ runtime })
    const kv = recordHistory(new ModelKV({ runtime: process, network: runtime }), log, 'c')
    void kv.put('k', 'v')
    process.pause()
    await runtime.advance(60_000)
    expect(log.operations).to.have.length(1)
    expect(log.operations[0]).to.include({ result: 'unknown', ret: null })
  })
})

/** Up to six operations of one key: the run of a real store with random overlaps, in which something may have been changed. */
function smallHistory(random: SeededRandom): Operation[] {
  const operations: Operation[] = []
  let value: string | null = null
  let version = 0
  const count = random.integer(1, 6)
  for (let number = 0; number < count; number++) {
    const at = number * 2
    const call = at - random.next() * random.pick([0.5, 4])
    const ret = at + random.next() * random.pick([0.5, 4])
    const base = { client: `c${number}`, call, ret, key: 'k', result: 'ok' as const }
    const ifVersion = random.pick([undefined, undefined, version, random.integer(0, 2)])
    const condition = ifVersion === undefined ? {} : { ifVersion }
    const holds = ifVersion === undefined || ifVersion === version
    const unknown = random.chance(0.2)
    switch (random.integer(0, 4)) {
      case 0:
      case 1:
        operations.push({ ...base, op: 'get', value, version })
        break
      case 2:
      case 3: {
        const written = `v${random.integer(0, 2)}`
        if (unknown) {
          operations.push({ ...base, ...condition, op: 'put', ret: null, value: written, version: null, result: 'unknown' })
          if (!random.chance(0.5) || !holds) break
          value = written
          version++
        } else if (holds) {
          value = written
          operations.push({ ...base, ...condition, op: 'put', value, version: ++version })
        } else {
          operations.push({ ...base, ...condition, op: 'put', value: written, version, result: 'condition-failed' })
        }
        break
      }
      default:
        if (unknown) {
          operations.push({ ...base, ...condition, op: 'delete', ret: null, value: null, version: null, result: 'unknown' })
          if (!random.chance(0.5) || !holds) break
        } else if (holds) {
          operations.push({ ...base, ...condition, op: 'delete', value: null, version: 0, deleted: version > 0 })
        } else {
          operations.push({ ...base, ...condition, op: 'delete', value: null, version, result: 'condition-failed' })
          break
        }
        value = null
        version = 0
    }
  }
  if (random.chance(0.6)) {
    const victim = operations[random.integer(0, operations.length - 1)] as { -readonly [name in keyof Operation]: Operation[name] }
    if (victim.version !== null && random.chance(0.5)) victim.version = random.integer(0, 3)
    else if (victim.op !== 'delete') victim.value = random.pick(['v0', 'v1', 'v2', null])
    if (victim.op === 'get' && victim.version === 0) victim.value = null
    if (victim.op === 'put' && victim.value === null) victim.value = 'v0'
    if (victim.op === 'delete' && victim.result === 'ok') victim.version = 0
  }
  return operations
}

/** Every order of every choice of the optional operations, without any cleverness. */
function bruteForce(operations: readonly Operation[]): boolean {
  const place = (left: readonly Operation[], value: string | null, version: number): boolean => {
    if (left.every((operation) => operation.result === 'unknown')) return true
    return left.some((operation) => {
      const { op, result, ifVersion } = operation
      if (left.some((other) => other !== operation && other.ret !== null && other.ret < operation.call)) return false
      const others = left.filter((other) => other !== operation)
      const holds = ifVersion === undefined || ifVersion === version
      if (op === 'get') return operation.value === value && operation.version === version && place(others, value, version)
      if (result === 'condition-failed') return !holds && operation.version === version && place(others, value, version)
      if (!holds) return result === 'unknown' && place(others, value, version)
      if (op === 'put') return (result === 'unknown' || operation.version === version + 1) && place(others, operation.value, version + 1)
      if (result === 'ok' && operation.deleted !== version > 0) return false
      return place(others, null, 0)
    })
  }
  return place(operations, null, 0)
}
