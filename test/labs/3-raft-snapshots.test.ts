/** Lab 3D, log compaction and snapshots, on whole nodes in a simulated world: every row of the lab by its name. */
import { expect } from 'chai'
import { SnapshotLab, type SnapshotLabOptions } from './support/snapshot-lab.js'

/** Declares a test under the lab's name that runs the scenario with each seed of `1…seeds`. */
function scenario(
  title: string,
  options: Omit<SnapshotLabOptions, 'seed'> & { readonly seeds: number },
  run: (lab: SnapshotLab) => Promise<void>,
): void {
  it(`${title} (${options.servers} servers, ${options.unreliable ? 'unreliable' : 'reliable'}, ${options.seeds} seeds)`, async () => {
    for (let seed = 1; seed <= options.seeds; seed++) {
      const lab = new SnapshotLab({ ...options, seed })
      try {
        await run(lab)
      } catch (cause) {
        throw new Error(`seed ${seed}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
      } finally {
        lab.close()
      }
    }
  })
}

const rounds = 30

/** The lab's `snapcommon`: bursts of commands with a server that is away meanwhile, or not. */
async function bursts(lab: SnapshotLab, away: 'nobody' | 'disconnected' | 'crashed'): Promise<void> {
  const present = away === 'nobody' ? 3 : 2
  await lab.one(3)
  let leader = await lab.checkOneLeader()
  for (let round = 0; round < rounds; round++) {
    let victim = (leader + 1) % 3
    let sender = leader
    if (round % 3 === 1) {
      sender = (leader + 1) % 3
      victim = leader
    }
    if (away === 'disconnected') lab.disconnect(victim)
    if (away === 'crashed') lab.crash(victim)
    if (away !== 'nobody') await lab.one(present)
    const count = 5 + lab.random.integer(0, 9)
    for (let each = 0; each < count; each++) lab.start(sender)
    await lab.one(present)
    lab.checkSizes()
    if (away === 'nobody') continue
    if (away === 'disconnected') lab.connect(victim)
    else await lab.restart(victim)
    await lab.one(3)
    leader = await lab.checkOneLeader()
  }
  lab.checkSameState()
  if (away !== 'nobody') expect(lab.installs, 'snapshots installed').to.be.greaterThan(3)
}

describe('lab 3D: log compaction and snapshots', () => {
  scenario('3D SnapshotBasic3D: snapshots basic', { servers: 3, unreliable: false, seeds: 3 }, (lab) => bursts(lab, 'nobody'))

  scenario('3D SnapshotInstall3D: install snapshots (disconnect)', { servers: 3, unreliable: false, seeds: 3 }, (lab) => bursts(lab, 'disconnected'))

  scenario('3D SnapshotInstallUnreliable3D: install snapshots (disconnect)', { servers: 3, unreliable: true, seeds: 3 }, (lab) =>
    bursts(lab, 'disconnected'),
  )

  scenario('3D SnapshotInstallCrash3D: install snapshots (crash)', { servers: 3, unreliable: false, seeds: 3 }, (lab) => bursts(lab, 'crashed'))

  scenario('3D SnapshotInstallUnCrash3D: install snapshots (crash)', { servers: 3, unreliable: true, seeds: 3 }, (lab) => bursts(lab, 'crashed'))

  for (const unreliable of [false, true]) {
    scenario('3D SnapshotAllCrash3D: crash and restart all servers', { servers: 3, unreliable, seeds: 3 }, async (lab) => {
      await lab.one(3)
      for (let round = 0; round < 5; round++) {
        const count = 5 + lab.random.integer(0, 9)
        for (let each = 0; each < count; each++) await lab.one(3)
        const before = await lab.one(3)
        await restartAll(lab)
        expect(await lab.one(3)).to.be.at.least(before + 1)
      }
      lab.checkSameState()
    })

    scenario('3D SnapshotInit3D: snapshot initialization after crash', { servers: 3, unreliable, seeds: 3 }, async (lab) => {
      for (let each = 0; each < 12; each++) await lab.one(3)
      await restartAll(lab)
      await lab.one(3)
      await restartAll(lab)
      const last = await lab.one(3)
      expect(lab.countApplied(last)).to.equal(3)
      lab.checkSameState()
    })
  }
})

async function restartAll(lab: SnapshotLab): Promise<void> {
  for (let server = 0; server < lab.servers.length; server++) lab.crash(server)
  for (let server = 0; server < lab.servers.length; server++) await lab.restart(server)
}
