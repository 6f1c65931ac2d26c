/** The simulator's parts: virtual time, the log disk, the network. */
import { expect } from 'chai'
import type { Message } from '../../../src/raft/types.js'
import { SeededRandom } from '../../../src/testing/seeded-random.js'
import { EventQueue } from '../../../src/testing/simulation/event-queue.js'
import { SimulatedLogDisk } from '../../../src/testing/simulation/log-disk.js'
import { LogShape } from '../../../src/testing/simulation/log-shape.js'
import { type NetworkModel, SimulatedNetwork } from '../../../src/testing/simulation/network.js'
import { calmNetwork } from '../../../src/testing/simulation/plan.js'

describe('EventQueue', () => {
  it('runs by time, and by order of scheduling within a time', () => {
    const queue = new EventQueue()
    const random = new SeededRandom(7, 'queue')
    const ran: [number, number][] = []
    for (let number = 0; number < 1000; number++) {
      const delayUs = random.integer(0, 50)
      queue.schedule(delayUs, () => ran.push([delayUs, number]))
    }
    queue.runFor(100)
    const sorted = [...ran].sort(([a, first], [b, second]) => a - b || first - second)
    expect(ran).to.deep.equal(sorted)
    expect(ran).to.have.length(1000)
    expect(queue.nowUs).to.equal(100)
  })

  it('runs what a task schedules, and stops at the limit', () => {
    const queue = new EventQueue()
    let count = 0
    const again = (): void => {
      count++
      queue.schedule(10, again)
    }
    queue.schedule(10, again)
    queue.runFor(95)
    expect(count).to.equal(9)
    expect(queue.runUntil(() => count === 12, 1000)).to.equal(true)
    expect(queue.nowUs).to.equal(120)
    expect(queue.runUntil(() => false, 50)).to.equal(false)
    expect(queue.nowUs).to.equal(170)
  })
})

describe('SimulatedLogDisk', () => {
  const entry = (index: number, term: number) => ({ index, term, kind: 1 as const, data: new Uint8Array(4) })
  const make = (seed: number) => {
    const queue = new EventQueue()
    const disk = new SimulatedLogDisk(
      'n1',
      queue,
      new SeededRandom(seed, 'disk'),
      { writeMeanUs: 100, readMeanUs: 10 },
      { stored: () => {}, count: () => {}, committedPrefix: () => new LogShape() },
    )
    return { queue, disk }
  }

  it('keeps all or nothing of the write in flight at a crash, and always what was reported', () => {
    const outcomes = new Set<string>()
    for (let seed = 0; seed < 40; seed++) {
      const { queue, disk } = make(seed)
      let reported = 0
      disk.write(
        [{ sequence: 1, hardState: { term: 1, vote: 'n2' }, reset: null, truncateFrom: null, entries: [entry(1, 1), entry(2, 1)] }],
        () => reported++,
      )
      queue.runFor(100_000)
      expect(reported, `seed ${seed}`).to.equal(1)
      disk.write(
        [{ sequence: 2, hardState: { term: 2, vote: null }, reset: null, truncateFrom: 2, entries: [entry(2, 2), entry(3, 2)] }],
        () => reported++,
      )
      disk.crash()
      queue.runFor(100_000)
      expect(reported, `seed ${seed}`).to.equal(1)
      outcomes.add(`${disk.hardState.term} ${disk.lastIndex} ${disk.shape.lastTerm}`)
    }
    expect([...outcomes].sort()).to.deep.equal(['1 2 1', '2 3 2'])
  })

  it('hangs until told, and fails when told', () => {
    const { queue, disk } = make(1)
    let outcome = ''
    disk.hangUntilUs = 1_000_000
    disk.write([{ sequence: 1, hardState: null, reset: null, truncateFrom: null, entries: [entry(1, 1)] }], (failed) => {
      outcome = failed ? 'failed' : 'done'
    })
    queue.runFor(999_000)
    expect(outcome).to.equal('')
    queue.runFor(2_000)
    expect(outcome).to.equal('done')
    disk.failNext = true
    disk.write([{ sequence: 2, hardState: null, reset: null, truncateFrom: null, entries: [entry(2, 1)] }], (failed) => {
      outcome = failed ? 'failed' : 'done'
    })
    queue.runFor(10_000)
    expect(outcome).to.equal('failed')
  })
})

describe('SimulatedNetwork', () => {
  const make = (model: Partial<NetworkModel>) => {
    const queue = new EventQueue()
    const arrived: Message[] = []
    const faults: Record<string, number> = {}
    const network = new SimulatedNetwork(
      ['a', 'b'],
      { ...calmNetwork(250), faultyLinks: 1, ...model },
      {
        queue,
        stream: (name) => new SeededRandom(11, name),
        deliver: (message) => arrived.push(message),
        count: (fault) => {
          faults[fault] = (faults[fault] ?? 0) + 1
        },
      },
    )
    const send = (round: number): void => network.send({ type: 'heartbeat', from: 'a', to: 'b', term: 1, commitIndex: 0, round })
    return { queue, network, arrived, faults, send }
  }
  const rounds = (messages: readonly Message[]): number[] => messages.map((message) => (message.type === 'heartbeat' ? message.round : -1))

  it('delivers equal messages that are other objects, in order where the link keeps it', () => {
    const { queue, arrived, send } = make({ inOrder: true, delayMeanUs: 5000 })
    for (let round = 1; round <= 100; round++) send(round)
    queue.runFor(10_000_000)
    expect(rounds(arrived)).to.deep.equal(Array.from({ length: 100 }, (_, position) => position + 1))
    expect(arrived[0]).to.deep.equal({ type: 'heartbeat', from: 'a', to: 'b', term: 1, commitIndex: 0, round: 1 })
  })

  it('reorders, loses and repeats at its rates', () => {
    const { queue, arrived, faults, send } = make({ delayMeanUs: 5000, lossRate: 0.2, repeatRate: 0.1, replayRate: 0.1, replayMaxUs: 1_000_000 })
    for (let round = 1; round <= 2000; round++) send(round)
    queue.runFor(10_000_000)
    const got = rounds(arrived)
    expect(got).to.not.deep.equal([...got].sort((a, b) => a - b))
    expect(faults['lost']).to.be.within(300, 500)
    expect(arrived).to.have.length(2000 - (faults['lost'] as number) + (faults['repeated'] as number) + (faults['replayed-later'] as number))
  })

  it('cuts one way, counts overlapping cuts, filters by type, holds back', () => {
    const { queue, network, arrived, send } = make({})
    const first = network.cut('a', 'b')
    const second = network.cut('a', 'b')
    send(1)
    first()
    first()
    send(2)
    network.send({ type: 'heartbeat-reply', from: 'b', to: 'a', term: 1, round: 1 })
    queue.runFor(1_000_000)
    expect(arrived.map(({ type }) => type)).to.deep.equal(['heartbeat-reply'])
    second()
    const unfilter = network.filter('a', 'b', 'heartbeat')
    send(3)
    unfilter()
    network.hold('a', 'b', queue.nowUs + 500_000)
    send(4)
    queue.runFor(400_000)
    expect(rounds(arrived.slice(1))).to.deep.equal([])
    queue.runFor(200_000)
    expect(rounds(arrived.slice(1))).to.deep.equal([4])
  })
})
