/** What is committed and when: Raft paper §5.4.2 and figure 8, and the bounds on what is not. */
import { expect } from 'chai'
import { entryBytes } from '../../src/raft/log.js'
import { Cluster } from './support/cluster.js'
import { logOf } from './support/entries.js'
import { only, Solo } from './support/solo.js'

describe('raft commit', () => {
  it('follows the quorum of each size, the leader included only when durable (§5.3)', () => {
    for (const size of [2, 3, 4, 5, 6, 7]) {
      const voters = Array.from({ length: size }, (_, position) => `n${position + 1}`)
      const leader = new Solo({ voters, learners: ['l1', 'l2', 'l3'] }).leadAgreed()
      leader.propose('a')
      const requests = only(leader.drain().sendNow, 'append-request')
      for (const request of requests.filter(({ to }) => to.startsWith('l'))) leader.accept(request, 2)
      leader.persist()
      let durable = 1
      for (const request of requests.filter(({ to }) => to.startsWith('n'))) {
        expect(leader.core.commitIndex, `${durable} of ${size}`).to.equal(durable > size / 2 ? 2 : 1)
        leader.accept(request, 2)
        durable++
      }
      expect(leader.core.commitIndex).to.equal(2)
    }
  })

  it('hazard D2.14: figure 8: an entry of an earlier term on a quorum is not committed by counting', () => {
    const leader = new Solo({ voters: ['n1', 'n2', 'n3', 'n4', 'n5'], terms: [1, 2], hardState: { term: 3, vote: null } })
    const requests = only(leader.lead(), 'append-request')
    for (const to of ['n2', 'n3', 'n4', 'n5']) leader.accept(requests.find((request) => request.to === to)!, 2)
    leader.settle()
    expect(leader.core.commitIndex, 'index 2 is on all five').to.equal(0)
    for (const to of ['n2', 'n3']) leader.accept(requests.find((request) => request.to === to)!, 3)
    expect(leader.core.commitIndex, 'and committed with an entry of the leader itself').to.equal(3)
  })

  it('hazard D2.14: figure 8, played out: the overwritten entry was never committed', () => {
    const entries = (terms: number[]) => ({ hardState: { term: 3, vote: null }, entries: logOf(terms) })
    const cluster = new Cluster({
      voters: 5,
      // (c): S1 leads term 4 and brings the entry of term 2 to all it reaches; S5 holds one of term 3.
      initial: { n1: entries([1, 2]), n2: entries([1, 2]), n3: entries([1, 2]), n4: entries([1]), n5: entries([1, 3]) },
    })
    // S1's own entry reaches nobody: only acknowledgements of the old ones come back.
    cluster.filter = (message) => {
      if (message.to === 'n5') return false
      if (message.from === 'n1') return !(message.type === 'append-request' && message.entries.some(({ term }) => term > 3))
      return message.type.endsWith('-reply')
    }
    cluster.until(() => cluster.leader?.id === 'n1', 'S1 leads')
    cluster.advance(100)
    const knownMatches = ['n2', 'n3'].map((peer) => cluster.core('n1').progressOf(peer)!.matchIndex)
    expect(knownMatches, 'three of five hold the entry of term 2, and S1 knows it').to.deep.equal([2, 2])
    expect(cluster.core('n1').commitIndex).to.equal(0)
    cluster.crash('n1')
    // (d): S5 may still win, and overwrites it everywhere.
    cluster.heal()
    cluster.elect('n5')
    cluster.restart('n1')
    cluster.until(() => cluster.up.every(({ core }) => core.commitIndex === 3), 'all agree with S5')
    expect(cluster.up.map(({ disk }) => disk.at(2)!.term)).to.deep.equal([3, 3, 3, 3, 3])
  })

  it('a new leader commits all that its predecessor left, with its no-op (§8)', () => {
    const cluster = new Cluster({ voters: 3 })
    cluster.elect('n1')
    cluster.filter = ({ type }) => type !== 'append-reply' && type !== 'heartbeat'
    cluster.propose('n1', 'left behind')
    cluster.advance(5)
    cluster.crash('n1')
    cluster.heal()
    cluster.elect('n2')
    expect(cluster.get('n2').commands).to.deep.equal(['left behind'])
  })

  it('hazard D7.53: counts uncommitted bytes exactly, and admits any one proposal when there are none', () => {
    const size = entryBytes({ term: 1, index: 1, kind: 1, data: new Uint8Array(10) })
    const leader = new Solo({ raft: { maxUncommittedBytes: 3 * size } }).leadAgreed()
    expect(leader.core.uncommittedBytes).to.equal(0)
    const ids = Array.from({ length: 5 }, () => leader.propose('0123456789'))
    const output = leader.drain()
    expect(output.accepted.map(({ id }) => id)).to.deep.equal(ids.slice(0, 3))
    expect(output.rejected).to.deep.equal(ids.slice(3).map((id) => ({ id, reason: 'overloaded' })))
    expect(leader.core.uncommittedBytes).to.equal(3 * size)
    const [request] = only(output.sendNow, 'append-request')
    leader.persist()
    leader.accept(request!, 3)
    expect(leader.core.uncommittedBytes).to.equal(size)
    leader.accept(request!, 4)
    expect(leader.core.uncommittedBytes).to.equal(0)
    leader.propose('x'.repeat(100 * size))
    expect(leader.drain().accepted).to.have.length(1)
    leader.propose('a')
    expect(leader.drain().rejected).to.have.length(1)
    leader.heartbeat({ from: 'n3', term: 9 })
    expect(leader.core.uncommittedBytes).to.equal(0)
  })

  it('hazard D7.53: a leader is not held responsible for what earlier leaders left uncommitted', () => {
    const leader = new Solo({ terms: Array.from({ length: 50 }, () => 1), raft: { maxUncommittedBytes: 200 } })
    const requests = only(leader.lead(), 'append-request')
    leader.accept(requests[0]!, 51)
    leader.settle()
    expect(leader.core.commitIndex).to.equal(51)
    expect(leader.core.uncommittedBytes).to.equal(0)
  })

  it('hazard D7.54: never goes back, and skips nothing, however it is learnt', () => {
    const cluster = new Cluster({ voters: 3, seed: 11 })
    cluster.elect()
    let before = 0
    for (let round = 0; round < 300; round++) {
      if (cluster.leader !== undefined) cluster.propose(cluster.leader.id, `${round}`)
      if (round % 50 === 0) cluster.cut(`n${1 + (round % 3)}`)
      if (round % 50 === 25) cluster.heal()
      cluster.advance(5)
      const now = Math.max(...cluster.up.map(({ core }) => core.commitIndex))
      expect(now).to.be.at.least(before)
      before = now
    }
    cluster.heal()
    cluster.until(() => cluster.up.every(({ core }) => core.commitIndex === cluster.leader?.core.commitIndex), 'all agree')
    expect(new Set(cluster.up.map(({ applied }) => applied.map(({ index, term }) => `${index}:${term}`).join())).size).to.equal(1)
  })

  it('3B BasicAgree3B: a command is committed on all, not before it is proposed', () => {
    const cluster = new Cluster({ voters: 3 })
    cluster.elect('n1')
    for (const [position, command] of ['a', 'b', 'c'].entries()) {
      expect(cluster.up.every(({ commands }) => commands.length === position)).to.equal(true)
      cluster.propose('n1', command)
      cluster.until(() => cluster.up.every(({ commands }) => commands.at(-1) === command), command)
    }
  })

  it('3B FailNoAgree3B: without a quorum nothing is committed', () => {
    const cluster = new Cluster({ voters: 5 })
    cluster.elect('n1')
    cluster.cut('n2', 'n3', 'n4')
    cluster.propose('n1', 'lost or not')
    cluster.advance(1000)
    expect(cluster.up.every(({ commands }) => commands.length === 0)).to.equal(true)
    cluster.heal()
    const leader = cluster.elect()
    cluster.propose(leader.id, 'after')
    cluster.until(() => cluster.up.every(({ commands }) => commands.at(-1) === 'after'), 'agreement after healing')
  })

  it('3B Backup3B: long uncommittable tails of several leaders are replaced quickly', () => {
    const cluster = new Cluster({ voters: 5, seed: 12 })
    const others = (...ids: string[]) => cluster.up.map(({ id }) => id).filter((id) => !ids.includes(id))
    const first = cluster.elect('n1').id
    cluster.partition([first, 'n2'], others(first, 'n2'))
    for (let count = 0; count < 50; count++) cluster.propose(first, `lost ${count}`)
    cluster.until(() => cluster.leader !== undefined && cluster.leader.id !== first, 'a second leader')
    const second = cluster.leader!.id
    for (let count = 0; count < 50; count++) cluster.propose(second, `kept ${count}`)
    cluster.advance(50)
    const [third, fourth] = others(first, 'n2', second)
    cluster.partition([second, third!])
    for (let count = 0; count < 50; count++) cluster.propose(second, `lost too ${count}`)
    cluster.advance(300)
    cluster.partition([first, 'n2', fourth!])
    cluster.until(() => cluster.leader?.id === fourth, 'the one with the longest log leads')
    for (let count = 0; count < 50; count++) cluster.propose(fourth!, `kept as well ${count}`)
    cluster.heal()
    cluster.until(() => cluster.up.every(({ commands }) => commands.length === 100), 'all have the 100 that count', 1000)
    expect(cluster.up.every(({ commands }) => commands.every((command) => command.startsWith('kept')))).to.equal(true)
  })

  it('3C Persist13C: what was committed is there after all restart', () => {
    const cluster = new Cluster({ voters: 3, seed: 13 })
    for (let round = 0; round < 5; round++) {
      const leader = cluster.elect()
      cluster.propose(leader.id, `round ${round}`)
      cluster.until(() => cluster.up.every(({ core }) => core.commitIndex === leader.core.lastIndex), 'committed')
      for (const { id } of [...cluster.replicas.values()]) cluster.crash(id)
      for (const id of cluster.replicas.keys()) cluster.restart(id)
    }
    const leader = cluster.elect()
    expect(leader.disk.entries.filter(({ data }) => data.length > 0)).to.have.length(5)
  })
})
