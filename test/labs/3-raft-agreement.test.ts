/** Lab 3B, agreement, on the simulated clock: every row of the lab by its name, with its limits. */
import { scenario } from './support/over-seeds.js'
import { labElectionTimeoutMs, type RaftLab, type StartResult } from './support/raft-lab.js'

const T = labElectionTimeoutMs

/** Commands that no other server can have made up. */
function fresh(lab: RaftLab): string {
  return `r${lab.random.uint32()}`
}

function startAt(lab: RaftLab, server: number, command: string): StartResult {
  return lab.start(server, command) ?? lab.fail(`leader ${server} rejected Start`)
}

describe('lab 3B: agreement', () => {
  scenario('3B BasicAgree3B: three commands, each at the next index', { servers: 3, seeds: 100 }, (lab) => {
    for (let index = 1; index <= 3; index++) {
      lab.check(lab.committed(index).servers === 0, 'some have committed before Start')
      const got = lab.one(`${index * 100}`, 3, false)
      lab.check(got === index, `got index ${got}, but expected ${index}`)
    }
  })

  scenario('3B RPCBytes3B: each command is sent to each peer once', { servers: 3, seeds: 100 }, (lab) => {
    lab.one('99', 3, false)
    const before = lab.network.bytes
    let sent = 0
    for (let index = 2; index < 12; index++) {
      const command = fresh(lab).padEnd(5000, 'x')
      const got = lab.one(command, 3, false)
      lab.check(got === index, `got index ${got}, but expected ${index}`)
      sent += command.length
    }
    const got = lab.network.bytes - before
    lab.check(got <= 3 * sent + 50_000, `too many bytes: got ${got}, expected at most ${3 * sent + 50_000}`)
    // Stricter than the lab: two followers, and little besides the commands.
    lab.check(got <= 2 * sent + 10_000, `${got} bytes for ${2 * sent} of commands on their way`)
  })

  scenario('3B FollowerFailure3B: goes on with one follower, not with none', { servers: 3, seeds: 100 }, (lab) => {
    lab.one('101', 3, false)
    const leader1 = lab.checkOneLeader()
    lab.disconnect((leader1 + 1) % 3)
    lab.one('102', 2, false)
    lab.sleep(T)
    lab.one('103', 2, false)
    const leader2 = lab.checkOneLeader()
    lab.disconnect((leader2 + 1) % 3)
    lab.disconnect((leader2 + 2) % 3)
    const { index } = startAt(lab, leader2, '104')
    lab.check(index === 4, `expected index 4, got ${index}`)
    lab.sleep(2 * T)
    lab.check(lab.committed(index).servers === 0, 'command 104 committed without a majority')
  })

  scenario('3B LeaderFailure3B: goes on without the leader, not without two', { servers: 3, seeds: 100 }, (lab) => {
    lab.one('101', 3, false)
    const leader1 = lab.checkOneLeader()
    lab.disconnect(leader1)
    lab.one('102', 2, false)
    lab.sleep(T)
    lab.one('103', 2, false)
    const leader2 = lab.checkOneLeader()
    lab.disconnect(leader2)
    for (let server = 0; server < 3; server++) lab.start(server, '104')
    lab.sleep(2 * T)
    lab.check(lab.committed(4).servers === 0, 'command 104 committed without a majority')
  })

  scenario('3B FailAgree3B: a follower that was cut off catches up', { servers: 3, seeds: 100 }, (lab) => {
    lab.one('101', 3, false)
    const leader = lab.checkOneLeader()
    lab.disconnect((leader + 1) % 3)
    lab.one('102', 2, false)
    lab.one('103', 2, false)
    lab.sleep(T)
    lab.one('104', 2, false)
    lab.one('105', 2, false)
    lab.connect((leader + 1) % 3)
    lab.one('106', 3, true)
    lab.sleep(T)
    lab.one('107', 3, true)
  })

  scenario('3B FailNoAgree3B: no agreement while three of five are cut off', { servers: 5, seeds: 100 }, (lab) => {
    lab.one('10', 5, false)
    const leader = lab.checkOneLeader()
    for (let distance = 1; distance <= 3; distance++) lab.disconnect((leader + distance) % 5)
    const { index } = startAt(lab, leader, '20')
    lab.check(index === 2, `expected index 2, got ${index}`)
    lab.sleep(2 * T)
    lab.check(lab.committed(index).servers === 0, 'committed without a majority')
    for (let distance = 1; distance <= 3; distance++) lab.connect((leader + distance) % 5)
    // The cut-off majority may have elected a leader of its own, and forgotten index 2.
    const leader2 = lab.checkOneLeader()
    const second = startAt(lab, leader2, '30').index
    lab.check(second === 2 || second === 3, `unexpected index ${second}`)
    lab.one('1000', 5, true)
  })

  scenario('3B ConcurrentStarts3B: five commands at once', { servers: 3, seeds: 100 }, (lab) => {
    for (let attempt = 0; attempt < 5; attempt++) {
      if (attempt > 0) lab.sleep(3 * T)
      const leader = lab.checkOneLeader()
      const first = lab.start(leader, '1')
      if (first === null) continue
      const indexes: number[] = []
      for (let command = 0; command < 5; command++) {
        const started = lab.start(leader, `${100 + command}`)
        if (started !== null && started.term === first.term) indexes.push(started.index)
      }
      if (indexes.length < 5 || lab.servers.some((_, server) => lab.state(server).term !== first.term)) continue
      const commands = indexes.map((index) => lab.wait(index, 3, first.term))
      if (commands.includes(undefined)) continue
      for (let command = 0; command < 5; command++)
        lab.check(commands.includes(`${100 + command}`), `command ${100 + command} is missing in ${commands}`)
      return
    }
    lab.fail('term changed too often')
  })

  scenario('3B Rejoin3B: a leader that was cut off gives up its entries', { servers: 3, seeds: 100 }, (lab) => {
    lab.one('101', 3, true)
    const leader1 = lab.checkOneLeader()
    lab.disconnect(leader1)
    for (const command of ['102', '103', '104']) lab.start(leader1, command)
    lab.one('103', 2, true)
    const leader2 = lab.checkOneLeader()
    lab.disconnect(leader2)
    lab.connect(leader1)
    lab.one('104', 2, true)
    lab.connect(leader2)
    lab.one('105', 3, true)
  })

  scenario('3B Backup3B: logs that differ by fifty entries are repaired fast', { servers: 5, seeds: 30 }, (lab) => {
    lab.one(fresh(lab), 5, true)
    const leader1 = lab.checkOneLeader()
    const away = (distance: number): number => (leader1 + distance) % 5
    for (const distance of [2, 3, 4]) lab.disconnect(away(distance))
    for (let count = 0; count < 50; count++) lab.start(leader1, fresh(lab))
    lab.sleep(T / 2)
    lab.disconnect(away(0))
    lab.disconnect(away(1))
    for (const distance of [2, 3, 4]) lab.connect(away(distance))
    for (let count = 0; count < 50; count++) lab.one(fresh(lab), 3, true)
    const leader2 = lab.checkOneLeader()
    let other = away(2)
    if (leader2 === other) other = (leader2 + 1) % 5
    lab.disconnect(other)
    for (let count = 0; count < 50; count++) lab.start(leader2, fresh(lab))
    lab.sleep(T / 2)
    for (let server = 0; server < 5; server++) lab.disconnect(server)
    lab.connect(away(0))
    lab.connect(away(1))
    lab.connect(other)
    for (let count = 0; count < 50; count++) lab.one(fresh(lab), 3, true)
    for (let server = 0; server < 5; server++) lab.connect(server)
    lab.one(fresh(lab), 5, true)
  })

  scenario('3B Count3B: no more calls than needed', { servers: 3, seeds: 100 }, (lab) => {
    lab.checkOneLeader()
    const election = lab.allCalls()
    lab.check(election >= 1 && election <= 30, `too many or few calls (${election}) to elect the first leader`)

    const agreement = (): boolean => {
      const leader = lab.checkOneLeader()
      const before = lab.allCalls()
      const first = lab.start(leader, '1')
      if (first === null) return false
      const commands: string[] = []
      for (let count = 1; count < 12; count++) {
        const command = fresh(lab)
        commands.push(command)
        const started = lab.start(leader, command)
        if (started === null || started.term !== first.term) return false
        lab.check(started.index === first.index + count, `Start gave index ${started.index}, expected ${first.index + count}`)
      }
      for (let count = 1; count < 11; count++) {
        const command = lab.wait(first.index + count, 3, first.term)
        if (command === undefined) return false
        lab.check(command === commands[count - 1], `wrong value ${command} at ${first.index + count}`)
      }
      if (lab.servers.some((_, server) => lab.state(server).term !== first.term)) return false
      const calls = lab.allCalls() - before
      lab.check(calls <= (10 + 1 + 3) * 3, `too many calls (${calls}) for ten entries`)
      return true
    }
    let done = false
    for (let attempt = 0; attempt < 5 && !done; attempt++) {
      if (attempt > 0) lab.sleep(3 * T)
      done = agreement()
    }
    lab.check(done, 'term changed too often')

    const before = lab.allCalls()
    lab.sleep(T)
    const idle = lab.allCalls() - before
    lab.check(idle <= 60, `too many calls (${idle}) for an idle election timeout`)
    // The lab's rule for heartbeats: no more than ten to each peer in its second.
    lab.check(idle <= 2 * 10, `${idle} heartbeats to two peers in an idle election timeout`)
  })
})
