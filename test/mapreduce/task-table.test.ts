/** The states of tasks, and that no order of events leads them astray. */
import { expect } from 'chai'
import type { AttemptRecord } from '../../src/mapreduce/errors.js'
import type { Split } from '../../src/mapreduce/splits.js'
import { type Attempt, type MapTask, type ReduceTask, type Task, TaskTable } from '../../src/mapreduce/task-table.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'

const split: Split = { kind: 'held', length: 1, read: async () => new Uint8Array(1) }
const segment = { lengths: [5, 0], checksums: [1, 0] }
const record: AttemptRecord = { attempt: 1, nodeId: 'a', code: 'X', message: 'x', durationMs: 1 }

function makeTable(maps: number, reducers: number, maxAttempts = 4): TaskTable {
  const retry = { maxAttempts, backoff: { initialMs: 100, factor: 2, maxMs: 1000 } }
  return new TaskTable({ splits: Array.from({ length: maps }, () => split), reducers, retry, random: () => 1 })
}

const runnable = (table: TaskTable, nowMs = 0): string[] => [...table.runnable(nowMs)].map(({ kind, id }) => `${kind}-${id}`)
const map = (table: TaskTable, id: number): MapTask => table.find('map', id) as MapTask
const reduce = (table: TaskTable, id: number): ReduceTask => table.find('reduce', id) as ReduceTask

function finishMap(table: TaskTable, id: number, nodeId = 'a'): void {
  table.start(map(table, id), nodeId, 1, 0)
  table.mapDone(map(table, id), [segment])
}

describe('TaskTable', () => {
  it('gives out maps, then reduces, each once', () => {
    const table = makeTable(2, 2)
    expect(runnable(table)).to.deep.equal(['map-0', 'map-1'])
    finishMap(table, 0)
    expect(runnable(table)).to.deep.equal(['map-1'])
    finishMap(table, 1)
    expect(runnable(table)).to.deep.equal(['reduce-0', 'reduce-1'])
    expect(() => table.start(map(table, 0), 'a', 1, 0)).to.throw('map-0 is done')
  })

  it('M4: a reduce gets one committed attempt of each map, in the order of the input', () => {
    const table = makeTable(2, 2)
    table.start(map(table, 1), 'b', 1, 0)
    table.fail(map(table, 1), record, 0)
    table.start(map(table, 1), 'c', 1, 100)
    table.mapDone(map(table, 1), [segment, segment])
    finishMap(table, 0)
    const { nodes, runs } = table.runsOf(0)
    expect(nodes).to.deep.equal(['a', 'c'])
    expect(runs.map(({ map: of, attempt, segment: at, node }) => [of, attempt, at, node])).to.deep.equal([
      [0, 1, 0, 0],
      [1, 2, 0, 1],
      [1, 2, 1, 1],
    ])
    // Empty runs are not even asked for.
    expect(table.runsOf(1).runs).to.deep.equal([])
  })

  it('what a task left of its range comes right behind it', () => {
    const table = makeTable(2, 1)
    table.start(map(table, 0), 'a', 1, 0)
    table.mapDone(map(table, 0), [segment], [split, split])
    for (const id of [1, 2, 3]) finishMap(table, id)
    expect(table.runsOf(0).runs.map(({ map: of }) => of)).to.deep.equal([0, 2, 3, 1])
  })

  it('M7, hazard w3: knows stale reports by attempt, node and session', () => {
    const table = makeTable(1, 1)
    const { number } = table.start(map(table, 0), 'a', 3, 0)
    expect(table.current('map', 0, number, 'a', 3)).to.equal(map(table, 0))
    for (const [attempt, node, session] of [
      [number + 1, 'a', 3],
      [number, 'b', 3],
      [number, 'a', 2],
      [number, 'a', 4],
    ] as const) {
      expect(table.current('map', 0, attempt, node, session)).to.equal(undefined)
    }
    table.lose(map(table, 0), record, 0)
    expect(table.current('map', 0, number, 'a', 3)).to.equal(undefined)
    expect(table.current('map', 9, number, 'a', 3)).to.equal(undefined)
  })

  it('M5: bounds failures, with waits that grow, and losses by a multiple', () => {
    const table = makeTable(1, 1, 3)
    const delays: (number | undefined)[] = []
    for (let nowMs = 0; ; nowMs += 10_000) {
      table.start(map(table, 0), 'a', 1, nowMs)
      const delay = table.fail(map(table, 0), record, nowMs)
      delays.push(delay)
      expect(delays.length).to.be.lessThan(10)
      if (delay === undefined) break
      expect(runnable(table, nowMs + delay - 1)).to.deep.equal([])
      expect(table.nextDelayMs(nowMs)).to.equal(delay)
      expect(runnable(table, nowMs + delay)).to.deep.equal(['map-0'])
    }
    expect(delays).to.deep.equal([100, 200, undefined])
    expect(map(table, 0).history).to.have.length(3)

    const lossy = makeTable(1, 1, 3)
    let losses = 0
    for (let nowMs = 0; ; nowMs += 10_000) {
      lossy.start(map(lossy, 0), 'a', 1, nowMs)
      expect(++losses).to.be.lessThan(100)
      if (lossy.lose(map(lossy, 0), record, nowMs) === undefined) break
    }
    expect(losses).to.equal(12)
  })

  it('runs a done map again only while some reduce needs it, and only for its committed attempt', () => {
    const table = makeTable(1, 1)
    finishMap(table, 0)
    expect(table.mapLost(0, 2)).to.equal(false)
    expect(table.mapLost(0, 1)).to.equal(true)
    expect(runnable(table)).to.deep.equal(['map-0'])
    finishMap(table, 0, 'b')
    table.start(reduce(table, 0), 'a', 1, 0)
    table.reduceCollecting(reduce(table, 0))
    table.reduceStoring(reduce(table, 0))
    table.reduceDone(reduce(table, 0))
    expect(table.allDone).to.equal(true)
    expect(table.mapLost(0, 2)).to.equal(false)
  })

  it('takes from a lost node what runs there and what is collected from there, but not what is here already', () => {
    const table = makeTable(2, 3)
    finishMap(table, 0, 'a')
    finishMap(table, 1, 'b')
    for (const id of [0, 1, 2]) table.start(reduce(table, id), id === 2 ? 'b' : 'a', 1, 0)
    table.reduceCollecting(reduce(table, 0))
    table.reduceCollecting(reduce(table, 1))
    table.reduceStoring(reduce(table, 1))
    const { attempts, outputs } = table.heldBy('a')
    expect(attempts.map(({ kind, id }) => `${kind}-${id}`)).to.deep.equal(['reduce-0'])
    expect(outputs.map(({ id }) => id)).to.deep.equal([0])
  })

  it('keeps its invariants under any order of events, and ends (random)', () => {
    for (let seed = 1; seed <= 300; seed++) {
      const random = new SeededRandom(seed, 'task-table')
      const pick = <T>(items: readonly T[]): T => items[Math.floor(random.next() * items.length)] as T
      const table = makeTable(1 + Math.floor(random.next() * 5), 1 + Math.floor(random.next() * 4), 1000)
      const stored = new Map<number, number>()
      const everGiven = new Map<string, number>()
      let calm = false
      try {
        for (let step = 0; !table.allDone; step++) {
          if (step > 400) calm = true
          expect(step).to.be.lessThan(2000)
          const nowMs = step * 100_000
          const tasks: Task[] = [...table.maps, ...table.reduces]
          const running = tasks.filter(({ state }) => state === 'running')
          const choices: (() => void)[] = []
          const waiting = [...table.runnable(nowMs)]
          if (waiting.length > 0) {
            choices.push(() => {
              const task = pick(waiting)
              if (task.kind === 'reduce') expect(table.maps.every(({ state }) => state === 'done')).to.equal(true)
              const attempt: Attempt = table.start(task, pick(['a', 'b', 'c']), 1, nowMs)
              const name = `${task.kind}-${task.id}`
              expect(attempt.number).to.be.greaterThan(everGiven.get(name) ?? 0)
              everGiven.set(name, attempt.number)
              // M4: every run is of the attempt that is committed now.
              if (task.kind === 'reduce')
                for (const run of table.runsOf(task.id).runs) expect(run.attempt).to.equal(map(table, run.map).output?.attempt)
            })
          }
          if (running.length > 0) {
            choices.push(() => {
              const task = pick(running)
              if (task.kind === 'reduce') table.reduceCollecting(task)
              else table.mapDone(task, [segment], !calm && random.next() < 0.1 ? [split] : [])
            })
            if (!calm)
              choices.push(
                () => table.fail(pick(running), record, nowMs),
                () => table.lose(pick(running), record, nowMs),
              )
          }
          for (const task of table.reduces) {
            if (task.state === 'collecting') choices.push(() => table.reduceStoring(task))
            if (task.state === 'storing') {
              choices.push(() => {
                stored.set(task.id, (stored.get(task.id) ?? 0) + 1)
                table.reduceDone(task)
              })
            }
          }
          if (!calm) {
            choices.push(() => {
              const { attempts, outputs } = table.heldBy(pick(['a', 'b', 'c']))
              for (const task of outputs) table.mapLost(task.id, task.output?.attempt as number)
              for (const task of attempts) table.lose(task, record, nowMs)
            })
          }
          pick(choices)()
          expect(table.mapsDone).to.equal(table.maps.filter(({ state }) => state === 'done').length)
        }
        // M1: each part is stored once.
        expect([...stored.values()].every((times) => times === 1)).to.equal(true)
        expect(stored.size).to.equal(table.reduces.length)
      } catch (error) {
        throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
      }
    }
  })
})
