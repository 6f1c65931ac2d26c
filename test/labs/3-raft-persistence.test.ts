/** Lab 3C, persistence and unreliable networks, on the simulated clock: every row of the lab by its name. */
import { scenario } from './support/over-seeds.js'
import { type LabProcess, labElectionTimeoutMs, type RaftLab } from './support/raft-lab.js'

const T = labElectionTimeoutMs

function fresh(lab: RaftLab): string {
  return `r${lab.random.uint32()}`
}

/** Restarts dead servers until all are up and connected. */
function reviveAll(lab: RaftLab): void {
  for (let server = 0; server < lab.servers.length; server++) {
    if (!lab.up(server)) lab.restart(server)
    else lab.connect(server)
  }
}

/** Proposes on every live server; returns the last that took it for itself to append, or -1. */
function startEverywhere(lab: RaftLab): number {
  let leader = -1
  const command = fresh(lab)
  for (let server = 0; server < lab.servers.length; server++) if (lab.up(server) && lab.start(server, command) !== null) leader = server
  return leader
}

/** Three clients that propose random values and remember those that they saw applied, while servers come and go. */
function churn(lab: RaftLab): void {
  const size = lab.servers.length
  let stop = false
  function* client(me: number): LabProcess<string[]> {
    const seen: string[] = []
    while (!stop) {
      const command = fresh(lab)
      let index = -1
      for (let server = 0; server < size; server++) {
        const started = lab.start(server, command)
        if (started !== null) index = started.index
      }
      if (index === -1) {
        yield 79 + me * 17
        continue
      }
      for (const pauseMs of [10, 20, 50, 100, 200]) {
        const found = lab.committed(index).command
        if (found !== undefined) {
          if (found === command) seen.push(command)
          break
        }
        yield pauseMs
      }
    }
    return seen
  }
  function* disturb(): LabProcess<string[]> {
    for (let round = 0; round < 20; round++) {
      if (lab.random.chance(0.2)) lab.disconnect(lab.random.integer(0, size - 1))
      if (lab.random.chance(0.5)) {
        const server = lab.random.integer(0, size - 1)
        if (!lab.up(server)) lab.restart(server)
        lab.connect(server)
      }
      if (lab.random.chance(0.2)) {
        const server = lab.random.integer(0, size - 1)
        if (lab.up(server)) lab.crash(server)
      }
      yield 700
    }
    yield T
    lab.network.unreliable = false
    reviveAll(lab)
    stop = true
    return []
  }
  const seen = lab.runAll([client(0), client(1), client(2), disturb()]).flat()
  lab.sleep(T)
  const last = lab.one(fresh(lab), size, true)
  const final = new Set<string>()
  for (let index = 1; index <= last; index++) final.add(lab.wait(index, size, -1) as string)
  for (const command of seen) lab.check(final.has(command), `${command} was seen committed and is not in the final log`)
  lab.check(seen.length > 0, 'no client saw anything committed')
}

describe('lab 3C: persistence', () => {
  scenario('3C Persist13C: commands survive restarts of all, of the leader, of a follower', { servers: 3, seeds: 60 }, (lab) => {
    lab.one('11', 3, true)
    for (let server = 0; server < 3; server++) lab.restart(server)
    lab.one('12', 3, true)
    const leader1 = lab.checkOneLeader()
    lab.restart(leader1)
    lab.one('13', 3, true)
    const leader2 = lab.checkOneLeader()
    lab.crash(leader2)
    lab.one('14', 2, true)
    lab.restart(leader2)
    lab.wait(4, 3, -1)
    const another = (lab.checkOneLeader() + 1) % 3
    lab.crash(another)
    lab.one('15', 2, true)
    lab.restart(another)
    lab.one('16', 3, true)
  })

  scenario('3C Persist23C: five rounds of overlapping crashes', { servers: 5, seeds: 30 }, (lab) => {
    let index = 1
    for (let round = 0; round < 5; round++) {
      lab.one(`${10 + index}`, 5, true)
      index++
      const leader = lab.checkOneLeader()
      const away = (distance: number): number => (leader + distance) % 5
      lab.crash(away(1))
      lab.crash(away(2))
      lab.one(`${10 + index}`, 3, true)
      index++
      lab.crash(away(0))
      lab.crash(away(3))
      lab.crash(away(4))
      lab.restart(away(1))
      lab.restart(away(2))
      lab.sleep(T)
      lab.restart(away(3))
      lab.one(`${10 + index}`, 3, true)
      index++
      lab.restart(away(4))
      lab.restart(away(0))
    }
    lab.one('1000', 5, true)
  })

  scenario('3C Persist33C: a partitioned follower and the restarted leader make a quorum', { servers: 3, seeds: 60 }, (lab) => {
    lab.one('101', 3, true)
    const leader = lab.checkOneLeader()
    const away = (distance: number): number => (leader + distance) % 3
    lab.disconnect(away(2))
    lab.one('102', 2, true)
    lab.crash(away(0))
    lab.crash(away(1))
    lab.connect(away(2))
    lab.restart(away(0))
    lab.one('103', 2, true)
    lab.restart(away(1))
    lab.one('104', 3, true)
  })

  scenario('3C Figure83C: leaders crash before and after their entries commit', { servers: 5, seeds: 20 }, (lab) => {
    lab.one(fresh(lab), 1, true)
    let alive = 5
    for (let round = 0; round < 1000; round++) {
      const leader = startEverywhere(lab)
      lab.sleep(lab.random.chance(0.1) ? lab.random.integer(0, T / 2 - 1) : lab.random.integer(0, 12))
      if (leader !== -1) {
        lab.crash(leader)
        alive--
      }
      if (alive < 3) {
        const server = lab.random.integer(0, 4)
        if (!lab.up(server)) {
          lab.restart(server)
          alive++
        }
      }
    }
    reviveAll(lab)
    lab.one(fresh(lab), 5, true)
  })

  scenario('3C UnreliableAgree3C: agreement over a lossy network', { servers: 5, seeds: 20, unreliable: true }, (lab) => {
    const side: ReturnType<RaftLab['spawn']>[] = []
    for (let round = 1; round < 50; round++) {
      for (let number = 0; number < 4; number++) side.push(lab.spawn(lab.oneProcess(`${100 * round + number}`, 1, true)))
      lab.one(`${round}`, 1, true)
    }
    lab.network.unreliable = false
    lab.check(
      lab.queue.runUntil(() => side.every((ended) => ended() !== null), 60_000_000),
      'a parallel command did not reach agreement',
    )
    lab.one('100', 5, true)
  })

  scenario('3C Figure8Unreliable3C: leaders are cut off, replies come late and out of order', { servers: 5, seeds: 20, unreliable: true }, (lab) => {
    lab.one(fresh(lab), 1, true)
    let alive = 5
    for (let round = 0; round < 1000; round++) {
      if (round === 200) lab.network.longReordering = true
      const leader = startEverywhere(lab)
      lab.sleep(lab.random.chance(0.1) ? lab.random.integer(0, T / 2 - 1) : lab.random.integer(0, 12))
      if (leader !== -1 && lab.random.chance(0.5)) {
        lab.disconnect(leader)
        alive--
      }
      if (alive < 3) {
        const server = lab.random.integer(0, 4)
        if (!lab.connected(server)) {
          lab.connect(server)
          alive++
        }
      }
    }
    reviveAll(lab)
    lab.one(fresh(lab), 5, true)
  })

  scenario('3C ReliableChurn3C: clients propose while servers come and go', { servers: 5, seeds: 8 }, churn)
  scenario('3C UnreliableChurn3C: clients propose while servers come and go, over a lossy network', { servers: 5, seeds: 8, unreliable: true }, churn)
})
