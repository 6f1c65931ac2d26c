/** Changes of membership, joint consensus (Raft paper §6, thesis ch. 4). */
import { expect } from 'chai'
import { encodeConfiguration } from '../../src/raft/message-codec.js'
import { type Configuration, EntryKind } from '../../src/raft/types.js'
import { Cluster, type ClusterOptions } from './support/cluster.js'
import { only, Solo } from './support/solo.js'

const plain = (voters: readonly string[], learners: readonly string[] = []): Configuration => ({ voters, learners, votersOutgoing: [] })

function led(options: Partial<ClusterOptions> = {}): Cluster {
  const cluster = new Cluster({ voters: 3, ...options })
  cluster.elect('n1')
  cluster.advance(20)
  return cluster
}

/** Every member agrees on a configuration that is committed. */
function settled(cluster: Cluster, expected: Configuration): void {
  const members = [...expected.voters, ...expected.learners]
  cluster.until(
    () => members.every((id) => cluster.get(id).appliedIndex === cluster.core(members[0]!).lastIndex),
    `all of ${members} hold and apply all`,
  )
  for (const id of members) expect(cluster.core(id).configuration, id).to.deep.equal(expected)
}

describe('raft membership', () => {
  describe('a change of learners alone', () => {
    it('is one entry, in force on append, done when committed', () => {
      const cluster = led({ joiners: 1 })
      const before = cluster.core('n1').lastIndex
      const request = cluster.configure('n1', ['n1', 'n2', 'n3'], ['n4'])
      expect(cluster.core('n1').configuration).to.deep.equal(plain(['n1', 'n2', 'n3'], ['n4']))
      expect(cluster.get('n1').configured.has(request), 'not committed yet').to.equal(false)
      cluster.until(() => cluster.get('n1').configured.has(request), 'committed')
      expect(cluster.core('n1').lastIndex).to.equal(before + 1)
      settled(cluster, plain(['n1', 'n2', 'n3'], ['n4']))
    })

    it('hazard D4.35 D5.43: a learner counts in no quorum, of entries, reads or leases', () => {
      const cluster = led({ voters: 3, learners: 2 })
      cluster.until(
        () =>
          cluster
            .core('n1')
            .progress()
            .every(({ matchIndex }) => matchIndex === 1),
        'all caught up',
      )
      cluster.cut('n2', 'n3')
      const { commitIndex } = cluster.core('n1')
      cluster.propose('n1', 'only learners hold it')
      const [read, lease] = [cluster.read('n1'), cluster.read('n1', true)]
      expect(cluster.get('n1').reads.has(lease), 'the lease of the quorum before holds').to.equal(true)
      cluster.advance(80)
      expect(cluster.core('n1').progressOf('n4')!.matchIndex).to.equal(cluster.core('n1').lastIndex)
      expect(cluster.core('n1').commitIndex).to.equal(commitIndex)
      const late = cluster.read('n1', true)
      cluster.advance(10)
      expect([cluster.get('n1').reads.has(read), cluster.get('n1').reads.has(late)]).to.deep.equal([false, false])
      cluster.until(() => cluster.core('n1').role === 'follower', 'check-quorum, in spite of the learners')
    })

    it('hazard D3.26: a learner never campaigns, and votes when asked', () => {
      const solo = new Solo({ voters: ['n2', 'n3'], learners: ['n1'] })
      solo.tick(10_000)
      expect(solo.core.role).to.equal('follower')
      solo.message({ type: 'vote-request', from: 'n2', to: 'n1', term: 7, lastIndex: 0, lastTerm: 0, sequence: 1, transfer: false })
      expect(only(solo.settle(), 'vote-reply')[0], 'it may be a voter already (hazard D3.27)').to.include({ granted: true })
    })
  })

  describe('a change of voters', () => {
    const changes: [string, number, string[], string[], number][] = [
      ['adds one', 3, ['n1', 'n2', 'n3', 'n4'], [], 1],
      ['promotes and demotes at once', 3, ['n1', 'n2', 'n4'], ['n3'], 1],
      ['removes two of four', 4, ['n1', 'n2'], [], 0],
      ['replaces all followers', 3, ['n1', 'n4', 'n5'], [], 2],
      ['comes down to one', 3, ['n1'], [], 0],
      ['goes from one to three', 1, ['n1', 'n2', 'n3'], [], 2],
      ['replaces the leader and all others', 3, ['n4', 'n5', 'n6'], [], 3],
      ['demotes the leader', 3, ['n2', 'n3'], ['n1'], 0],
    ]
    for (const [what, voters, target, learners, joiners] of changes) {
      it(`${what}: joint first, then left, and writes go on`, () => {
        const cluster = led({ voters, joiners })
        const outgoing = [...cluster.configuration.voters]
        cluster.propose('n1', 'before')
        cluster.advance(20)
        const request = cluster.configure('n1', target, learners)
        expect(cluster.core('n1').configuration).to.deep.equal({ voters: target, learners, votersOutgoing: outgoing })
        cluster.until(() => cluster.get('n1').configured.has(request), 'done')
        settled(cluster, plain(target, learners))
        cluster.until(() => cluster.leader !== undefined && target.includes(cluster.leader.id), 'a voter leads')
        const leader = cluster.leader!
        cluster.until(() => leader.core.commitIndex === leader.core.lastIndex, 'committed in its term')
        cluster.propose(leader.id, 'after')
        cluster.until(() => [...target, ...learners].every((id) => cluster.get(id).commands.join() === 'before,after'), 'all apply it')
      })
    }

    it('hazard D2.15: while it is joint, neither majority alone commits', () => {
      const cluster = led({ joiners: 3 })
      // The new ones will hold it, of the old ones only the leader.
      cluster.partition(['n1', 'n4', 'n5', 'n6'], ['n2', 'n3'])
      cluster.configure('n1', ['n4', 'n5', 'n6'], ['n1'])
      const index = cluster.core('n1').lastIndex
      cluster.advance(40)
      expect(['n4', 'n5', 'n6'].map((id) => cluster.core('n1').progressOf(id)!.matchIndex)).to.deep.equal([index, index, index])
      expect(cluster.core('n1').commitIndex).to.be.below(index)
      cluster.heal()
      cluster.until(() => cluster.core('n4').configuration.votersOutgoing.length === 0, 'with both it does')
    })

    it('hazard D5.43: is not counted done while the new majority cannot be reached, and is undone by a leader of the old one', () => {
      const cluster = led({ joiners: 2 })
      cluster.partition(['n1'], ['n2', 'n3'])
      const request = cluster.configure('n1', ['n1', 'n4', 'n5'])
      cluster.until(() => cluster.core('n1').role === 'follower', 'check-quorum over both majorities')
      expect(cluster.get('n1').rejected.get(request)).to.equal('lost')
      cluster.until(() => cluster.leader !== undefined, 'the others elect one')
      cluster.heal()
      cluster.until(() => cluster.core('n1').leader === cluster.leader?.id, 'n1 follows')
      settled(cluster, plain(['n1', 'n2', 'n3']))
    })
  })

  describe('one at a time', () => {
    it('hazard D5.39: none before an entry of the own term is committed, none while another is under way', () => {
      const solo = new Solo()
      solo.lead()
      const ask = (id: number, voters: string[], learners: string[] = []) => {
        solo.core.step({ type: 'configure', id, voters, learners })
        const { rejected, configured } = solo.drain()
        return rejected.find((each) => each.id === id)?.reason ?? (configured.some((each) => each.id === id) ? 'configured' : 'pending')
      }
      expect(ask(1, ['n1', 'n2']), 'the no-op is not committed').to.equal('busy')
      const leader = new Solo().leadAgreed()
      const of = (id: number, voters: string[], learners: string[] = []) => {
        leader.core.step({ type: 'configure', id, voters, learners })
        const { rejected, configured } = leader.drain()
        return rejected.find((each) => each.id === id)?.reason ?? (configured.some((each) => each.id === id) ? 'configured' : 'pending')
      }
      expect(of(1, []), 'no voters').to.equal('invalid')
      expect(of(2, ['n1', 'n1'])).to.equal('invalid')
      expect(of(3, ['n1', 'n2'], ['n2'])).to.equal('invalid')
      expect(of(4, ['n3', 'n2', 'n1']), 'as it is').to.equal('configured')
      expect(of(5, ['n1', 'n2', 'n3'], ['n4'])).to.equal('pending')
      expect(of(6, ['n1', 'n2', 'n3'], ['n4', 'n5'])).to.equal('busy')
      expect(of(7, ['n1', 'n2', 'n3'], ['n4']), 'the same, but not committed').to.equal('busy')
      const follower = new Solo()
      follower.core.step({ type: 'configure', id: 1, voters: ['n1'], learners: [] })
      expect(follower.drain().rejected).to.deep.equal([{ id: 1, reason: 'not-leader' }])
    })
  })

  describe('leaving the joint configuration', () => {
    it('hazard D5.41: is done by the next leader, when the one who entered it is gone', () => {
      const cluster = led({ joiners: 1 })
      // The joint entry reaches all, but n1 never learns of that.
      const before = cluster.core('n1').lastIndex
      cluster.filter = (message) => !(message.to === 'n1' && message.type === 'append-reply' && message.matchIndex > before)
      cluster.configure('n1', ['n1', 'n2', 'n4'])
      cluster.until(() => ['n2', 'n3', 'n4'].every((id) => cluster.core(id).configuration.votersOutgoing.length === 3), 'it is in all logs')
      cluster.crash('n1')
      cluster.heal()
      cluster.until(() => cluster.leader !== undefined && cluster.leader.core.configuration.votersOutgoing.length === 0, 'the successor leaves it')
      const leader = cluster.leader!
      cluster.until(() => leader.core.commitIndex === leader.core.lastIndex, 'and that is committed')
      expect(leader.core.configuration).to.deep.equal(plain(['n1', 'n2', 'n4']))
      const entries = leader.disk.entries.filter(({ kind }) => kind === EntryKind.configuration)
      expect(entries, 'once').to.have.length(2)
    })

    it('hazard D5.41: the joint configuration is in force after a restart, and after a snapshot', () => {
      const cluster = led({ joiners: 1 })
      cluster.filter = ({ to, type }) => !(to === 'n1' && type === 'append-reply')
      cluster.configure('n1', ['n1', 'n2', 'n4'])
      cluster.until(() => cluster.core('n2').configuration.votersOutgoing.length === 3, 'it is in the log of n2')
      cluster.crash('n2')
      cluster.restart('n2')
      expect(cluster.core('n2').configuration.votersOutgoing).to.deep.equal(['n1', 'n2', 'n3'])
      const solo = new Solo()
      solo.core.step({ type: 'restored', index: 5, term: 1, configuration: { voters: ['n4'], learners: [], votersOutgoing: ['n1', 'n2', 'n3'] } })
      expect(solo.drain().persist!.reset!.configuration.votersOutgoing).to.deep.equal(['n1', 'n2', 'n3'])
      expect(solo.core.configuration.voters).to.deep.equal(['n4'])
    })

    it('hazard D5.42: an uncommitted configuration is rolled back with its entry', () => {
      const solo = new Solo({ terms: [1], raft: { commitIndex: 1 } })
      const configuration = { voters: ['n1', 'n2'], learners: ['n9'], votersOutgoing: ['n1', 'n2', 'n3'] }
      const entry = { index: 2, term: 1, kind: EntryKind.configuration, data: encodeConfiguration(configuration) }
      solo.append({ from: 'n2', term: 1, previousIndex: 1, previousTerm: 1, entries: [entry] })
      expect(solo.core.configuration).to.deep.equal(configuration)
      expect(solo.core.configurationAt(1)!.voters).to.deep.equal(['n1', 'n2', 'n3'])
      solo.append({
        from: 'n3',
        term: 2,
        previousIndex: 1,
        previousTerm: 1,
        entries: [{ ...entry, term: 2, kind: EntryKind.noop, data: new Uint8Array(0) }],
      })
      expect(solo.core.configuration).to.deep.equal(plain(['n1', 'n2', 'n3']))
    })
  })

  describe('who is removed', () => {
    it('hazard D5.44: a leader that is removed counts itself not, hands over, and leads no more', () => {
      const cluster = led({ voters: 3 })
      const term = cluster.core('n1').term
      cluster.configure('n1', ['n2', 'n3'])
      cluster.until(() => cluster.core('n1').role === 'follower', 'it steps down')
      expect(only(cluster.sent, 'timeout-now')).to.have.length.at.least(1)
      cluster.until(() => cluster.leader !== undefined, 'another leads', 30)
      expect(cluster.leader!.core.term, 'without an election timeout').to.equal(term + 1)
      cluster.advance(5000)
      expect(cluster.core('n1').role).to.equal('follower')
      expect(cluster.leader!.core.term, 'and is left alone').to.equal(term + 1)
    })

    it('hazard D5.44: counts the new majority, not itself, for the last configuration', () => {
      const cluster = led({ voters: 3 })
      cluster.configure('n1', ['n2', 'n3'])
      cluster.until(() => cluster.core('n1').configuration.votersOutgoing.length === 0, 'it left the joint one')
      const index = cluster.core('n1').lastIndex
      cluster.cut('n3')
      cluster.advance(60)
      expect(cluster.core('n1').progressOf('n2')!.matchIndex).to.equal(index)
      expect(cluster.core('n1').commitIndex, 'n1 and n2 are no majority of n2 and n3').to.be.below(index)
    })

    it('hazard D3.26: a member that was removed and does not know it disturbs nobody', () => {
      const cluster = led({ voters: 4 })
      cluster.cut('n4')
      const request = cluster.configure('n1', ['n1', 'n2', 'n3'])
      cluster.until(() => cluster.get('n1').configured.has(request), 'removed')
      const { term } = cluster.core('n1')
      cluster.heal()
      cluster.advance(10_000)
      expect(cluster.core('n4').role).to.equal('pre-candidate')
      expect([cluster.core('n1').term, cluster.core('n1').role]).to.deep.equal([term, 'leader'])
    })

    it('hazard D5.40 D5.46: a member that is dead is replaced by one that lives', () => {
      const cluster = led({ voters: 3, joiners: 1 })
      cluster.crash('n3')
      const learner = cluster.configure('n1', ['n1', 'n2', 'n3'], ['n4'])
      cluster.until(() => cluster.get('n1').configured.has(learner), 'n4 learns')
      const replaced = cluster.configure('n1', ['n1', 'n2', 'n4'])
      cluster.until(() => cluster.get('n1').configured.has(replaced), 'n4 votes')
      cluster.crash('n2')
      cluster.propose('n1', 'with n4')
      cluster.until(() => cluster.get('n4').commands.includes('with n4'), 'n1 and n4 are a majority')
    })
  })

  it('hazard D7.53: what a change counts as uncommitted is given back', () => {
    const cluster = led({ joiners: 1 })
    const request = cluster.configure('n1', ['n1', 'n2', 'n3', 'n4'])
    cluster.until(() => cluster.get('n1').configured.has(request), 'done')
    expect(cluster.core('n1').uncommittedBytes).to.equal(0)
  })

  it('a replica that knows of no members waits for a leader, and believes what it appends', () => {
    const solo = new Solo({ voters: [] })
    solo.tick(10_000)
    expect([solo.core.role, solo.core.nextTickMs > 10_000]).to.deep.equal(['follower', true])
    expect(only(solo.settle(), 'pre-vote-request')).to.deep.equal([])
    const entry = { index: 1, term: 2, kind: EntryKind.configuration, data: encodeConfiguration(plain(['n2'], ['n1'])) }
    solo.append({ from: 'n2', term: 2, entries: [entry] })
    expect(solo.core.configuration).to.deep.equal(plain(['n2'], ['n1']))
    expect(solo.core.status().malformedMessages).to.equal(0)
  })
})
