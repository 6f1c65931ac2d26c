/** Transactions, increments and fences in the state machine: against the model's own idea of them, exactly once, bounded, and refused when they are no such thing. */
import { expect } from 'chai'
import fc from 'fast-check'
import { CorruptionError, QuorateError } from '../../src/base/errors.js'
import { type CommandResult, CommandStatus, CommandType, checkBatch, defaultLimits } from '../../src/engine/command.js'
import { decodeInteger, encodeInteger, formatInteger, parseInteger } from '../../src/engine/integer.js'
import {
  encodeTransaction,
  type KeyCondition,
  maxResultBytes,
  readStepResults,
  readTransaction,
  type Step,
  StepKind,
  type Transaction,
} from '../../src/engine/transaction.js'
import { ModelStore } from '../../src/testing/model-store.js'
import { newSeed } from '../support/seed.js'
import { encodeCommands, type MachineFixture, machineShards, shardOfKey, withMachine } from './support/machine-fixture.js'

const { ok, again, stale, fenced, notANumber, outOfRange, tooLarge, conditionFailed } = CommandStatus
const shard = shardOfKey('t')
const keyOf = (name: string) => Buffer.from(`{t}${name}`)
const nameOf = (key: Uint8Array) => Buffer.from(key).toString().slice(3) as 'a' | 'b' | 'c'

const put = (name: string, value: string | Uint8Array): Step => ({ kind: StepKind.put, key: keyOf(name), value: Buffer.from(value as string) })
const remove = (name: string): Step => ({ kind: StepKind.delete, key: keyOf(name), value: null })
const get = (name: string): Step => ({ kind: StepKind.get, key: keyOf(name), value: null })
const compare = (name: string, condition: Partial<KeyCondition>): KeyCondition => ({
  key: keyOf(name),
  version: undefined,
  revision: undefined,
  value: undefined,
  isAbsent: undefined,
  ...condition,
})

const txn = (then: readonly Step[], otherwise: readonly Step[] = [], compares: readonly KeyCondition[] = [], wantsResults = true): Transaction => ({
  wantsResults,
  compares,
  branches: [then, otherwise],
})

const transactionCommand = (sequence: number, transaction: Transaction) => ({
  type: CommandType.transaction,
  sequence,
  shard,
  value: encodeTransaction(transaction),
})

/** Applies one transaction as one request. */
function transact(fixture: MachineFixture, session: number, sequence: number, transaction: Transaction, lowWater = sequence): CommandResult {
  return fixture.apply(encodeCommands(session, lowWater, [transactionCommand(sequence, transaction)]))[0]!
}

const incrementCommand = (sequence: number, name: string, by: bigint) => ({
  type: CommandType.increment,
  sequence,
  shard,
  key: keyOf(name),
  value: encodeInteger(by),
})

function increment(fixture: MachineFixture, sequence: number, name: string, by: bigint): [status: number, value: string | undefined] {
  const { status, body } = fixture.apply(encodeCommands(1, sequence, [incrementCommand(sequence, name, by)]))[0]!
  return [status, body && Buffer.from(body).toString()]
}

const bytes = fc.array(fc.constantFrom(0x00, 0x31, 0x7b, 0x7d, 0xff), { maxLength: 3 }).map((each) => Buffer.from(each))
const anyKey = fc.constantFrom('a', 'b', 'c').map(keyOf)
const small = fc.option(fc.nat(4), { nil: undefined })
const anyCondition: fc.Arbitrary<KeyCondition> = fc
  .record({
    key: anyKey,
    version: small,
    revision: small,
    value: fc.option(bytes, { nil: undefined }),
    isAbsent: fc.option(fc.boolean(), { nil: undefined }),
  })
  .filter(({ version, revision, value, isAbsent }) => [version, revision, value, isAbsent].some((each) => each !== undefined))
const anyStep: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant(StepKind.put), key: anyKey, value: bytes }),
  fc.record({ kind: fc.constantFrom(StepKind.get, StepKind.delete), key: anyKey, value: fc.constant(null) }),
)
const steps = fc.array(anyStep, { maxLength: 5 })
const anyTransaction: fc.Arbitrary<Transaction> = fc.record({
  wantsResults: fc.constant(true),
  compares: fc.array(anyCondition, { maxLength: 2 }),
  branches: fc.tuple(steps, steps),
})

function check(property: fc.IRawProperty<unknown> | fc.IAsyncProperty<unknown>, numRuns: number): Promise<void> {
  return Promise.resolve(fc.assert(property as fc.IAsyncProperty<unknown>, { seed: newSeed() | 0, numRuns }))
}

/** What a transaction's answer says, in a form that compares. */
function told(transaction: Transaction, result: CommandResult) {
  const { succeeded, results } = readStepResults(result.body!, transaction)
  const texts = results.map((each) => {
    if (each.kind === StepKind.put) return `put v${each.version}`
    if (each.kind === StepKind.delete) return `deleted ${each.deleted}`
    return each.found === undefined ? 'absent' : `${Buffer.from(each.found.value).toString('hex')} v${each.found.version} r${each.found.revision}`
  })
  return { succeeded, revision: result.revision, texts }
}

describe('transactions in the state machine', () => {
  it('do and answer what the model does, over any sequence of them', () =>
    withMachine((fixture) => {
      const model = new ModelStore()
      let sequence = 0
      let run = 0
      return check(
        fc.property(fc.array(anyTransaction, { maxLength: 12 }), (transactions) => {
          const keys = { a: keyOf(`a${++run}`), b: keyOf(`b${run}`), c: keyOf(`c${run}`) }
          // Keys of its own for each run, and revisions counted from its beginning.
          const before = model.revision
          const place = <Part extends { readonly key: Uint8Array }>(part: Part): Part => ({ ...part, key: keys[nameOf(part.key)] })
          const placed = transactions.map(({ compares, branches, ...rest }) => ({
            ...rest,
            compares: compares.map((each) => ({ ...place(each), revision: each.revision && each.revision + before })),
            branches: [branches[0].map(place), branches[1].map(place)] as const,
          }))
          for (const transaction of placed) {
            const expected = model.transact(transaction)
            const texts = expected.results.map((result) => {
              if (result === undefined) return 'absent'
              if ('key' in result) return `${Buffer.from(result.value).toString('hex')} v${result.version} r${result.revision}`
              return 'version' in result ? `put v${result.version}` : `deleted ${result.deleted}`
            })
            const result = transact(fixture, 1, ++sequence, transaction)
            expect(told(transaction, result)).to.deep.equal({ succeeded: expected.succeeded, revision: expected.revision, texts })
          }
          for (const key of Object.values(keys)) {
            const found = fixture.machine.read(shard, key)
            const wanted = model.read(key)
            expect(found && [Buffer.from(found.value).toString('hex'), found.version, found.revision]).to.deep.equal(
              wanted && [Buffer.from(wanted.value).toString('hex'), wanted.version, wanted.revision],
            )
          }
        }),
        500,
      )
    }))

  it('raise the revision once, whatever they write, and not at all when they change nothing', () =>
    withMachine((fixture) => {
      expect(transact(fixture, 1, 1, txn([put('a', '1'), put('b', '1'), put('a', '2')], [], [], false))).to.deep.equal({
        status: ok,
        version: 0,
        revision: 1,
        body: undefined,
      })
      expect([fixture.read('{t}a'), fixture.read('{t}b')]).to.deep.equal(['2 v2 r1', '1 v1 r1'])
      expect(transact(fixture, 1, 2, txn([remove('none'), put('c', 'x'), remove('c')])).revision).to.equal(1)
      expect(transact(fixture, 1, 3, txn([put('a', 'no')], [], [compare('a', { version: 7 })])).revision).to.equal(1)
      expect(transact(fixture, 1, 4, txn([remove('a'), put('b', '2')])).revision).to.equal(2)
      expect([fixture.read('{t}a'), fixture.read('{t}b'), fixture.read('{t}c')]).to.deep.equal([undefined, '2 v2 r2', undefined])
    }))

  it('K3: a repeat of one that wrote gets the first answer with its results, over a restart, and writes nothing', () =>
    withMachine(async (fixture) => {
      transact(fixture, 1, 1, txn([put('a', 'old')]))
      const swap = txn([get('a'), put('a', 'new'), remove('b')])
      const first = transact(fixture, 1, 2, swap)
      expect(told(swap, first).texts).to.deep.equal([`${Buffer.from('old').toString('hex')} v1 r1`, 'put v2', 'deleted false'])
      transact(fixture, 2, 1, txn([put('a', 'other')]))
      expect(told(swap, transact(fixture, 1, 2, swap))).to.deep.equal(told(swap, first))
      await fixture.restart()
      expect(told(swap, transact(fixture, 1, 2, swap))).to.deep.equal(told(swap, first))
      expect(fixture.read('{t}a')).to.equal('other v3 r3')
    }))

  it('K3: one that changed nothing keeps no answer, and a late copy of it does nothing: it is to be asked again under another sequence', () =>
    withMachine(async (fixture) => {
      transact(fixture, 1, 1, txn([put('large', 'x'.repeat(100_000))]))
      const create = txn([put('a', 'created')], [get('large'), get('a')], [compare('a', { isAbsent: false })])
      expect(told(create, transact(fixture, 1, 2, create)).succeeded).to.equal(false)
      transact(fixture, 2, 1, txn([put('a', 'by another')]))
      // Now its condition would hold.
      const copy = { status: again, version: 0, revision: 0 }
      expect(transact(fixture, 1, 2, create)).to.deep.equal(copy)
      await fixture.restart()
      expect(transact(fixture, 1, 2, create)).to.deep.equal(copy)
      expect(fixture.read('{t}a')).to.equal('by another v1 r2')
      expect(transact(fixture, 1, 3, create, 3).status).to.equal(ok)
      expect(transact(fixture, 1, 2, create).status).to.equal(stale)
      expect(fixture.read('{t}a')).to.equal('created v2 r3')
    }))

  it('what sessions keep of answers is bounded: beyond that a transaction is done by nobody and asked again', () =>
    withMachine(async (fixture) => {
      const value = Buffer.alloc(1024 * 1024, 'v')
      transact(fixture, 9, 1, txn([put('large', value)]))
      const move = (sequence: number) => txn([get('large'), put('a', `${sequence}`)])
      for (let sequence = 1; sequence <= 3; sequence++) expect(transact(fixture, 1, sequence, move(sequence), 1).status).to.equal(ok)
      expect(transact(fixture, 1, 4, move(4), 1).status).to.equal(again)
      expect(fixture.read('{t}a')).to.match(/^3 v3 /)
      // Small answers are not held up, and what was put off stays undone, whatever becomes free.
      expect(transact(fixture, 1, 5, txn([put('b', '5')]), 1).status).to.equal(ok)
      expect(transact(fixture, 1, 4, move(4), 4).status).to.equal(again)
      expect(transact(fixture, 1, 6, move(6), 6).status).to.equal(ok)
      expect(fixture.read('{t}a')).to.match(/^6 v4 /)
      expect(await fixture.storedBytes()).to.be.lessThan(3 * value.length)
      // What is freed is free: a session that has its answers may go on for ever.
      for (let sequence = 7; sequence < 27; sequence++) expect(transact(fixture, 1, sequence, move(sequence)).status).to.equal(ok)
      expect(await fixture.storedBytes()).to.be.lessThan(3 * value.length)
    }))

  it('the answers of one log entry are bounded, those of mere reads too', () =>
    withMachine((fixture) => {
      transact(fixture, 9, 1, txn([put('large', Buffer.alloc(1024 * 1024, 'v'))]))
      const commands = Array.from({ length: 10 }, (_, at) => transactionCommand(at + 1, txn([get('large')])))
      const statuses = fixture.apply(encodeCommands(1, 1, commands)).map(({ status }) => status)
      expect(statuses).to.deep.equal([ok, ok, ok, ...Array.from({ length: 7 }, () => again)])
      // The next entry has room again.
      expect(transact(fixture, 1, 11, txn([get('large')])).status).to.equal(ok)
    }))

  it('one whose gets find too much is refused whole, and stays refused', () =>
    withMachine((fixture) => {
      transact(fixture, 9, 1, txn([put('half', Buffer.alloc(maxResultBytes / 2 - 100, 'v'))]))
      expect(transact(fixture, 1, 1, txn([get('half'), get('half')])).status).to.equal(ok)
      const large = txn([put('a', 'x'), get('half'), get('half'), get('half')])
      expect(transact(fixture, 1, 2, large)).to.deep.equal({ status: tooLarge, version: 0, revision: 0 })
      transact(fixture, 9, 2, txn([remove('half')]))
      expect(transact(fixture, 1, 2, large).status).to.equal(tooLarge)
      expect(fixture.read('{t}a')).to.equal(undefined)
      // Who does not want to know is told nothing, whatever it reads.
      transact(fixture, 9, 3, txn([put('half', Buffer.alloc(maxResultBytes, 'v'))]))
      expect(transact(fixture, 1, 3, { ...large, wantsResults: false })).to.include({ status: ok, body: undefined })
    }))

  it('100,000 sessions that each did one transaction leave at most 200 bytes each', function () {
    this.timeout(120_000)
    return withMachine(async (fixture) => {
      transact(fixture, 9, 1, txn([put('large', 'x'.repeat(10_000))]))
      const update = encodeTransaction(txn([put('k', 'v')], [get('large')], [compare('k', { isAbsent: true })]))
      const wanted = { type: CommandType.transaction, sequence: 1, shard, value: update }
      for (let number = 1; number <= 100_000; number++) {
        const session = Buffer.alloc(8)
        session.writeUInt32BE(number)
        fixture.apply(encodeCommands(session, 1, [wanted]))
      }
      expect(await fixture.storedBytes()).to.be.at.most(100_000 * 200)
    })
  })
})

describe('increments in the state machine', () => {
  it('K3: count once over repeats and a restart', () =>
    withMachine(async (fixture) => {
      for (let sequence = 1; sequence <= 20; sequence++) {
        const command = encodeCommands(1, Math.max(1, sequence - 2), [incrementCommand(sequence, 'n', 3n)])
        const first = fixture.apply(command)[0]!
        if (sequence % 7 === 0) await fixture.restart()
        expect(fixture.apply(command)[0]).to.deep.equal(first)
        expect(Buffer.from(first.body!).toString()).to.equal(`${3 * sequence}`)
      }
      expect(fixture.read('{t}n')).to.equal('60 v20 r20')
    }))

  it('refuse what is no number and what would be none, without effect', () =>
    withMachine((fixture) => {
      transact(fixture, 9, 1, txn([put('text', 'x'), put('most', '9223372036854775807')]))
      expect(increment(fixture, 1, 'text', 1n)).to.deep.equal([notANumber, undefined])
      expect(increment(fixture, 2, 'most', 1n)).to.deep.equal([outOfRange, undefined])
      expect(increment(fixture, 3, 'most', -1n)).to.deep.equal([ok, '9223372036854775806'])
      expect(fixture.read('{t}text')).to.equal('x v1 r1')
      const wrong = { ...incrementCommand(4, 'most', 1n), ifVersion: 9 }
      expect(fixture.apply(encodeCommands(1, 4, [wrong]))[0]).to.deep.equal({ status: conditionFailed, version: 2, revision: 2 })
    }))

  it('numbers have one text each, and come back from it', () => {
    for (const number of [0n, 1n, -1n, 10n, -10n, 2n ** 53n, 2n ** 63n - 1n, -(2n ** 63n)]) {
      expect(parseInteger(formatInteger(number))).to.equal(number)
      expect(decodeInteger(encodeInteger(number))).to.equal(number)
    }
    for (const text of [
      '',
      '-',
      '-0',
      '00',
      '01',
      '+1',
      ' 1',
      '1 ',
      '1n',
      '1.',
      '9223372036854775808',
      '-9223372036854775809',
      '1'.repeat(21),
      '\xb2',
    ]) {
      expect(parseInteger(Buffer.from(text, 'latin1')), text).to.equal(null)
    }
  })
})

describe('fences in the state machine', () => {
  it('hold for every kind of command, are looked at when it is applied, and are part of the first answer', () =>
    withMachine((fixture) => {
      transact(fixture, 9, 1, txn([put('owner', 'me')]))
      const fence = { key: keyOf('owner'), revision: 1 }
      const commands = [
        { type: CommandType.put, sequence: 1, shard, key: keyOf('k'), value: Buffer.from('1'), fence },
        { ...incrementCommand(2, 'k', 1n), fence },
        { ...transactionCommand(3, txn([put('k', '3')])), fence },
        { type: CommandType.delete, sequence: 4, shard, key: keyOf('k'), fence },
      ]
      const statuses = (sequenceOffset: number) =>
        fixture
          .apply(
            encodeCommands(
              1,
              1,
              commands.map((each) => ({ ...each, sequence: each.sequence + sequenceOffset })),
            ),
          )
          .map(({ status }) => status)
      expect(statuses(0)).to.deep.equal([ok, ok, ok, ok])
      transact(fixture, 9, 2, txn([put('k', 'new owner’s'), put('owner', 'somebody else')]))
      expect(statuses(0)).to.deep.equal([ok, ok, ok, ok])
      expect(statuses(4)).to.deep.equal([fenced, fenced, fenced, fenced])
      expect(fixture.read('{t}k')).to.match(/^new owner’s v1 /)
      // It does not help that the fence holds again: what was answered stays answered.
      const { revision } = fixture.machine.read(shard, keyOf('owner'))!
      const last = { type: CommandType.delete, sequence: 5, shard, key: keyOf('k'), fence: { key: keyOf('owner'), revision } }
      expect(fixture.apply(encodeCommands(1, 1, [last]))[0]!.status).to.equal(fenced)
    }))
})

describe('checkBatch on transactions', () => {
  const whole = txn(
    [put('a', '1'), remove('b'), get('c')],
    [get('a')],
    [compare('a', { version: 1, revision: 2, value: Buffer.from('x'), isAbsent: false }), compare('b', { isAbsent: true })],
  )
  const fence = { key: keyOf('owner'), revision: 7 }
  const encode = (transaction: Transaction, extra: object = {}) => encodeCommands(1, 1, [{ ...transactionCommand(1, transaction), ...extra }])
  const refuse = (data: Uint8Array, why: string, limits = defaultLimits) =>
    expect(() => checkBatch(data, machineShards, limits), why)
      .to.throw(CorruptionError)
      .and.have.property('code', 'MALFORMED')

  it('takes what is whole, and gives it back as it was', () => {
    const { commands } = checkBatch(encode(whole, { fence }), machineShards, defaultLimits)
    expect(commands[0]).to.deep.include({ type: CommandType.transaction, sequence: 1, shard })
    expect(readTransaction(commands[0]!.value!)).to.deep.equal(whole)
    expect(Buffer.from(commands[0]!.fence!.key).toString()).to.equal('{t}owner')
    return check(
      fc.property(anyTransaction, (transaction) => {
        const read = readTransaction(encodeTransaction(transaction))
        expect(read).to.deep.equal(transaction)
      }),
      500,
    )
  })

  it('hazard E1.10, E1.27: refuses it at every cut', () => {
    const data = encode(whole, { fence })
    for (let length = 0; length < data.length; length++) refuse(data.subarray(0, length), `${length} bytes`)
    refuse(Buffer.concat([data, Buffer.from([0])]), 'a byte too many')
    const body = encodeTransaction(whole)
    for (let length = 0; length < body.length; length++) {
      refuse(encodeCommands(1, 1, [{ ...transactionCommand(1, whole), value: body.subarray(0, length) }]), `body of ${length} bytes`)
    }
    refuse(encodeCommands(1, 1, [{ ...transactionCommand(1, whole), value: Buffer.concat([body, Buffer.from([0])]) }]), 'a longer body')
  })

  it('hazard E1.27: whatever bytes it lets through the machine applies', () =>
    withMachine(async (fixture) => {
      let passed = 0
      let sequence = 1
      await check(
        fc.property(anyTransaction, fc.nat(), fc.nat(255), (transaction, place, byte) => {
          const data = Buffer.from(encode(transaction, { sequence: sequence++, fence: { key: keyOf('none'), revision: 0 } }))
          data[place % data.length] = byte
          try {
            checkBatch(data, machineShards, defaultLimits)
          } catch (error) {
            expect(error).to.be.instanceOf(QuorateError)
            return
          }
          passed++
          fixture.apply(data)
        }),
        3000,
      )
      expect(passed).to.be.greaterThan(100)
    }))

  it('refuses fields that say nothing or too much', () => {
    const withBody = (...body: number[]) => encodeCommands(1, 1, [{ ...transactionCommand(1, whole), value: Buffer.from(body) }])
    refuse(withBody(2, 0, 0, 0), 'an unknown flag')
    refuse(withBody(1, 0, 0, 0), 'nothing to do')
    refuse(withBody(1, 1, 0, 1, 0x61, 0, 0), 'a condition that says nothing')
    refuse(withBody(1, 1, 24, 1, 0x61, 0, 0), 'absent and there')
    refuse(withBody(1, 1, 32, 1, 0x61, 0, 0), 'an unknown condition')
    refuse(withBody(1, 0, 1, 4, 1, 0x61, 0), 'an unknown operation')
    refuse(withBody(1, 0, 1, 0, 1, 0x61, 0), 'operation 0')
    refuse(withBody(1, 255, 255, 3, 0, 0), 'a count that cannot be')
    refuse(encode(whole, { ifVersion: 1 }), 'the condition of a single write')
    refuse(encodeCommands(1, 1, [{ ...incrementCommand(1, 'a', 1n), value: Buffer.alloc(7) }]), 'an increment by 7 bytes')
    const head = encode(txn([get('a')]))
    for (const type of [0, 5, 6, 15, 0x83]) {
      const other = Buffer.from(head)
      other[other.indexOf(CommandType.transaction, 11)] = type
      refuse(other, `type ${type}`)
    }
  })

  it('hazard q2: keys, values, counts and bytes at their limits pass, one more does not; keys of other shards never', () => {
    const limits = { maxKeyBytes: 10, maxValueBytes: 20, maxBatchOperations: 4, maxBatchBytes: 60 }
    const passes = (transaction: Transaction, extra: object = {}) => checkBatch(encode(transaction, extra), machineShards, limits)
    const long = 'k'.repeat(7)
    passes(txn([put(long, 'v'.repeat(20))], [get(long)]))
    refuse(encode(txn([get(`${long}k`)])), 'a long key', limits)
    refuse(encode(txn([], [get(`${long}k`)])), 'a long key in the other branch', limits)
    refuse(encode(txn([], [], [compare(`${long}k`, { isAbsent: true })])), 'a long key in a condition', limits)
    refuse(encode(txn([put('a', 'v'.repeat(21))])), 'a long value', limits)
    refuse(encode(txn([], [], [compare('a', { value: Buffer.alloc(21) })])), 'a long value in a condition', limits)
    refuse(encode(txn([{ ...get('a'), key: new Uint8Array(0) }])), 'an empty key', limits)
    refuse(encode(txn([get('a')]), { fence: { key: keyOf(`${long}k`), revision: 1 } }), 'a long key of a fence', limits)
    passes(txn([get('a'), get('b')], [get('c')], [compare('a', { isAbsent: true })]))
    refuse(encode(txn([get('a'), get('b')], [get('c'), get('d')], [compare('a', { isAbsent: true })])), 'five', limits)
    passes(txn([put('a', 'v'.repeat(20)), put('b', 'v'.repeat(20)), put('c', 'v'.repeat(8))]))
    refuse(encode(txn([put('a', 'v'.repeat(20)), put('b', 'v'.repeat(20)), put('c', 'v'.repeat(9))])), '61 bytes', limits)
    const foreign = { ...get('a'), key: Buffer.from('{u}a') }
    expect(shardOfKey('{u}a')).not.to.equal(shard)
    refuse(encode(txn([get('a'), foreign])), 'another shard')
    refuse(encode(txn([], [foreign])), 'another shard in the other branch')
    refuse(encode(txn([get('a')]), { fence: { ...fence, key: foreign.key } }), 'a fence in another shard')
    refuse(encode(txn([get('a')], [], [{ ...compare('a', { isAbsent: true }), key: foreign.key }])), 'a condition in another shard')
  })
})
