/** Leadership transfer (thesis §3.10). */
import { expect } from 'chai'
import { Cluster, type ClusterOptions } from './support/cluster.js'
import { only, Solo } from './support/solo.js'

function led(options: Partial<ClusterOptions> = {}): Cluster {
  const cluster = new Cluster({ voters: 3, ...options })
  cluster.elect('n1')
  cluster.advance(20)
  return cluster
}

describe('raft transfer', () => {
  it('hands over to the one who was named, in a few round trips, one term on', () => {
    const cluster = led()
    const { term } = cluster.core('n1')
    const request = cluster.transfer('n1', 'n3')
    cluster.until(() => cluster.leader?.id === 'n3', 'n3 leads', 10)
    expect(cluster.core('n3').term).to.equal(term + 1)
    cluster.until(() => cluster.get('n1').transferred.has(request), 'n1 knows', 10)
    expect(only(cluster.sent, 'pre-vote-request').filter((message) => message.term === term + 1)).to.deep.equal([])
  })

  it('without a name to the voter whose log is the furthest', () => {
    const cluster = led({ voters: 4, learners: 1 })
    cluster.cut('n2', 'n4')
    cluster.propose('n1', 'n3 alone has it')
    cluster.advance(5)
    cluster.transfer('n1', null)
    expect(only(cluster.sent, 'timeout-now').map(({ to }) => to)).to.deep.equal(['n3'])
  })

  it('hazard D7.56: waits until the other holds all, and takes no proposals meanwhile', () => {
    const cluster = led()
    cluster.cut('n3')
    cluster.propose('n1', 'n3 lacks it')
    cluster.advance(20)
    const request = cluster.transfer('n1', 'n3')
    expect(only(cluster.sent, 'timeout-now')).to.deep.equal([])
    const refused = cluster.propose('n1', 'too late')
    expect(cluster.get('n1').rejected.get(refused)).to.equal('transferring')
    cluster.configure('n1', ['n1', 'n2'], [], 77)
    expect(cluster.get('n1').rejected.get(77)).to.equal('transferring')
    cluster.heal()
    cluster.until(() => cluster.get('n1').transferred.has(request), 'n3 caught up and leads', 60)
    expect(cluster.get('n3').commands).to.deep.equal(['n3 lacks it'])
  })

  it('hazard D7.56: ends when the other does not take over in time, and proposals are taken again', () => {
    const cluster = led()
    cluster.cut('n3')
    const request = cluster.transfer('n1', 'n3')
    cluster.until(() => cluster.get('n1').rejected.get(request) === 'timeout', 'the end', 110)
    const proposal = cluster.propose('n1', 'again')
    cluster.until(() => cluster.get('n1').commands.includes('again'), 'committed')
    expect(cluster.get('n1').accepted.has(proposal)).to.equal(true)
    expect(cluster.leader?.id).to.equal('n1')
  })

  it('asks again when the message was lost', () => {
    const cluster = led()
    let lost = 0
    cluster.filter = ({ type }) => type !== 'timeout-now' || lost++ > 1
    cluster.transfer('n1', 'n2')
    cluster.until(() => cluster.leader?.id === 'n2', 'n2 leads', 40)
    expect(lost).to.be.above(1)
  })

  it('refuses what cannot be, and a second one', () => {
    const cluster = led({ learners: 1 })
    const cases: [string | null, string][] = [
      ['n1', 'invalid'],
      ['n4', 'invalid'],
      ['n9', 'invalid'],
    ]
    for (const [to, reason] of cases) expect(cluster.get('n1').rejected.get(cluster.transfer('n1', to)), `${to}`).to.equal(reason)
    expect(cluster.get('n2').rejected.get(cluster.transfer('n2', 'n3'))).to.equal('not-leader')
    cluster.cut('n2')
    cluster.transfer('n1', 'n2')
    expect(cluster.get('n1').rejected.get(cluster.transfer('n1', 'n3'))).to.equal('busy')
    const alone = new Cluster({ voters: 1 })
    alone.elect()
    expect(alone.get('n1').rejected.get(alone.transfer('n1', null))).to.equal('invalid')
  })

  it('says `lost` when another one takes over', () => {
    const cluster = led()
    cluster.filter = ({ type }) => type !== 'timeout-now'
    const request = cluster.transfer('n1', 'n2')
    cluster.deliver({ type: 'timeout-now', from: 'n1', to: 'n3', term: cluster.core('n1').term })
    cluster.until(() => cluster.leader?.id === 'n3', 'n3 leads')
    cluster.until(() => cluster.get('n1').rejected.get(request) === 'lost', 'n1 knows')
  })

  describe('timeout-now', () => {
    const ask = (solo: Solo, fields: { from?: string; term?: number } = {}) =>
      solo.message({ type: 'timeout-now', from: 'n2', to: 'n1', term: solo.core.term, ...fields }).settle()

    it('is obeyed by a voter that follows its sender: at once, without a pre-vote, with requests that say why', () => {
      const solo = new Solo({ hardState: { term: 3, vote: null } })
      solo.heartbeat({ from: 'n2', term: 3 })
      const requests = only(ask(solo), 'vote-request')
      expect(requests.map(({ to, term, transfer }) => [to, term, transfer])).to.deep.equal([
        ['n2', 4, true],
        ['n3', 4, true],
      ])
    })

    it('hazard D3.26: is not obeyed by one that was removed, a learner, one that knows no leader or another one, or a later term', () => {
      const removed = new Solo({ voters: ['n2', 'n3'], hardState: { term: 3, vote: null } })
      removed.heartbeat({ from: 'n2', term: 3 })
      const learner = new Solo({ voters: ['n2', 'n3'], learners: ['n1'], hardState: { term: 3, vote: null } })
      learner.heartbeat({ from: 'n2', term: 3 })
      const lonely = new Solo({ hardState: { term: 3, vote: null } })
      const faithful = new Solo({ hardState: { term: 3, vote: null } })
      faithful.heartbeat({ from: 'n3', term: 3 })
      const later = new Solo({ hardState: { term: 5, vote: null } })
      later.heartbeat({ from: 'n2', term: 5 })
      for (const solo of [removed, learner, lonely, faithful]) {
        ask(solo, { term: 3 })
        expect([solo.core.role, solo.core.term]).to.deep.equal(['follower', 3])
      }
      ask(later, { term: 4 })
      expect([later.core.role, later.core.term]).to.deep.equal(['follower', 5])
    })

    it('hazard D3.28: to a leader changes nothing', () => {
      const leader = new Solo().leadAgreed()
      ask(leader)
      expect(leader.core.role).to.equal('leader')
      expect(leader.core.status().malformedMessages).to.equal(1)
    })

    it('hazard D3.31: is not obeyed while the disk hangs', () => {
      const solo = new Solo({ hardState: { term: 3, vote: null } })
      solo.heartbeat({ from: 'n2', term: 4 })
      solo.drain()
      solo.tick(90).heartbeat({ from: 'n2', term: 4 }).tick(90)
      solo.message({ type: 'timeout-now', from: 'n2', to: 'n1', term: 4 })
      expect(solo.core.role).to.equal('follower')
    })
  })

  it('a vote for a transfer does not wait for the leader to fall silent; any other does (thesis §4.2.3)', () => {
    for (const transfer of [true, false]) {
      const solo = new Solo({ hardState: { term: 3, vote: null } })
      solo.tick(100).heartbeat({ from: 'n2', term: 3 })
      solo.message({ type: 'vote-request', from: 'n3', to: 'n1', term: 4, lastIndex: 0, lastTerm: 0, sequence: 1, transfer })
      const replies = only(solo.settle(), 'vote-reply')
      expect(replies.map(({ granted }) => granted)).to.deep.equal(transfer ? [true] : [])
    }
  })
})
