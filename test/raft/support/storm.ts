/** Random faults, inputs and disk delays over one seed, then healing; throws when a rule of `Cluster` is broken or the group does not heal. */
import { expect } from 'chai'
import { Cluster } from './cluster.js'

export function storm(seed: number): void {
  const cluster = new Cluster({
    voters: 3 + 2 * (seed % 2),
    learners: seed % 3 === 0 ? 1 : 0,
    seed,
    disk: 'manual',
    raft: { maxTailBytes: 300, maxInflightBytes: 512, maxAppendBytes: 160, maxUncommittedBytes: 4096 },
  })
  const { random } = cluster
  const ids = [...cluster.replicas.keys()]
  const pick = () => ids[Math.floor(random() * ids.length)]!
  let isCut: (from: string, to: string) => boolean = () => false
  cluster.filter = (message) => {
    if (isCut(message.from, message.to) || random() < 0.05) return false
    if (random() < 0.05) cluster.post(message, 1 + random() * 60)
    return true
  }
  let proposals = 0
  for (let round = 0; round < 400; round++) {
    const id = pick()
    const chance = random()
    if (chance < 0.02) {
      const side = new Set(ids.filter(() => random() < 0.5))
      const isOneWay = random() < 0.3
      isCut = (from, to) => side.has(from) !== side.has(to) && (!isOneWay || side.has(from))
    } else if (chance < 0.06) isCut = () => false
    else if (chance < 0.08) cluster.crash(id)
    else if (chance < 0.14 && !cluster.get(id).isUp) cluster.restart(id)
    if (cluster.get(id).isUp) {
      if (random() < 0.7) cluster.propose(id, `p${proposals++}`)
      if (random() < 0.3) cluster.read(id)
    }
    for (const other of ids) if (cluster.get(other).isUp && random() < 0.7) cluster.completeWrites(other, Math.ceil(random() * 3))
    cluster.advance(random() * 15)
  }
  // Then all faults end, and the group has to heal.
  cluster.heal()
  cluster.disk = 'instant'
  for (const id of ids) if (!cluster.get(id).isUp) cluster.restart(id)
  cluster.until(() => cluster.leader !== undefined, 'a leader after the storm')
  let isDone = false
  for (let attempt = 0; attempt < 20 && !isDone; attempt++) {
    const leader = cluster.leader
    if (leader !== undefined) {
      const proposal = cluster.propose(leader.id, `last${attempt}`)
      cluster.advance(200)
      const place = leader.accepted.get(proposal)
      isDone = place !== undefined && cluster.up.every(({ core }) => core.commitIndex >= place.index && core.termAt(place.index) === place.term)
    } else cluster.advance(200)
  }
  expect(isDone, cluster.describe()).to.equal(true)
  const logs = cluster.up.map(({ disk }) =>
    disk.entries
      .slice(0, cluster.leader!.core.commitIndex)
      .map(({ term, index }) => `${term}:${index}`)
      .join(),
  )
  expect(new Set(logs).size).to.equal(1)
  for (const { core, id } of cluster.up) {
    expect(core.status().malformedMessages, `malformed at ${id}`).to.equal(0)
    expect(core.uncommittedBytes).to.equal(0)
    expect(core.tailBytes).to.be.at.most(300)
  }
  for (const replica of cluster.up) {
    const read = cluster.read(replica.id)
    cluster.advance(50)
    expect(replica.reads.has(read) || replica.rejected.has(read)).to.equal(true)
  }
}
