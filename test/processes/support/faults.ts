/**
 * The faults that are done to real processes, by name: each breaks something, waits for what must hold meanwhile, and leaves the cluster whole (its nodes running, its
 * links clear), though not yet caught up.
 *
 * No fault sleeps to let things happen: it waits for conditions. The times that a fault lasts (a pause, a delay) are the fault itself and drawn from the seed.
 */
import { rm } from 'node:fs/promises'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { metaGroup } from '../../../src/engine/command.js'
import type { SeededRandom } from '../../../src/testing/seeded-random.js'
import { type NodeProcess, StartFailedError } from '../../support/node-process.js'
import { clientEnd, type LinkProxy } from './link-proxy.js'
import type { Load } from './load.js'
import { type ProcessCluster, until } from './process-cluster.js'

/** What a fault works on. */
export interface Scene {
  readonly cluster: ProcessCluster
  readonly load: Load
  readonly random: SeededRandom
  /** Notes how long writes were held up by the end of a leader. */
  heldUp(how: 'killed' | 'closed', ms: number): void
}

export interface Fault {
  /** Hazards of `/docs` that it stands for. */
  readonly hazards: string
  /** What it needs: proxies between the nodes, a disk that can be filled, syncs that can fail. */
  readonly needs?: 'links' | 'small-disk' | 'sync-faults'
  run(scene: Scene): Promise<void>
}

/** Longer than two election timeouts at most, and than any lease. */
const leastPauseMs = 550
const longestPauseMs = 1500
const refillMs = 500

const anyNode = ({ cluster, random }: Scene): NodeProcess => random.pick(cluster.nodes)

/** A node that leads a group with data; some group has a leader soon. (Nobody writes to the meta group.) */
async function anyLeader({ cluster, random }: Scene): Promise<NodeProcess> {
  let leaders: NodeProcess[] = []
  await until('there is a leader', async () => {
    const leaderships = [...(await cluster.leaders())].filter(([group]) => group !== metaGroup)
    leaders = [...new Set(leaderships.map(([, leader]) => leader))]
    return leaders.length > 0
  })
  return random.pick(leaders)
}

/** Ends a leader and notes how long writes waited for the next. */
async function endLeader(scene: Scene, how: 'killed' | 'closed'): Promise<void> {
  const { cluster, load } = scene
  await cluster.healed()
  await load.progress()
  const leader = await anyLeader(scene)
  const heldUp = load.watch()
  const sinceMs = performance.now()
  const ended = how === 'killed' ? leader.kill() : leader.close()
  await load.progress()
  scene.heldUp(how, heldUp(sinceMs))
  await ended
  await leader.start()
}

async function pauseWhile({ random, load }: Scene, nodes: readonly NodeProcess[], othersServe: boolean): Promise<void> {
  const lastsMs = random.integer(leastPauseMs, longestPauseMs)
  const startMs = performance.now()
  for (const node of nodes) node.pause()
  try {
    if (othersServe) await load.progress()
    await sleep(Math.max(0, lastsMs - (performance.now() - startMs)))
  } finally {
    for (const node of nodes) node.resume()
  }
}

/** Does something to the links while writes get on. */
async function disturb({ cluster, load }: Scene, change: (proxy: LinkProxy) => void | Promise<void>, writes = 4): Promise<void> {
  const { proxy } = cluster
  if (proxy === null) throw new Error('this fault needs proxied links')
  try {
    await change(proxy)
    await load.progress(writes)
  } finally {
    await proxy.heal()
  }
}

/** A node whose disk failed says so, keeps running, and serves nothing. */
async function saysThatItFailed(node: NodeProcess): Promise<void> {
  await until(`${node.id} says that its storage failed`, async () => (await node.status()).failure !== null)
  const { failure } = await node.status()
  if (failure?.code !== 'STORAGE_FAILED') throw new Error(`${node.id} failed with ${JSON.stringify(failure)}, expected STORAGE_FAILED`)
  if (node.failures.length === 0) throw new Error(`${node.id} failed without an event`)
}

export const faults = {
  'kill-one': {
    hazards: 'p1 p11',
    async run(scene) {
      const victim = anyNode(scene)
      await victim.kill()
      await scene.load.progress()
      await victim.start()
    },
  },
  'kill-leader': { hazards: 'p1 p11', run: (scene) => endLeader(scene, 'killed') },
  'kill-all': {
    hazards: 'p3 p2',
    async run({ cluster, random }) {
      await Promise.all(cluster.nodes.map((node) => node.kill()))
      // Some die again as soon as they are open, and start once more.
      const again = cluster.nodes.filter(() => random.chance(0.3))
      await Promise.all(
        cluster.nodes.map(async (node) => {
          await node.start()
          if (!again.includes(node)) return
          await node.kill()
          await node.start()
        }),
      )
    },
  },
  'left-behind': {
    hazards: 'm8 m10',
    async run(scene) {
      const { load, random } = scene
      const victim = anyNode(scene)
      await victim.kill()
      // Where logs are short, those of the others do not hold any more what it lacks: it needs snapshots, and may die again while it gets them.
      await load.progress(40)
      for (let deaths = random.integer(0, 2); deaths > 0; deaths--) {
        await victim.start()
        await load.progress(random.integer(1, 3))
        await victim.kill()
      }
      await victim.start()
    },
  },
  'disk-lost': {
    hazards: 'p5 m7',
    async run({ cluster, load, random }) {
      // Not the last node: its folder is where a disk is mounted.
      const victim = random.pick(cluster.nodes.slice(0, -1))
      await victim.kill()
      await load.progress()
      await rm(victim.options.location, { recursive: true })
      // It comes back as somebody new, who has promised nothing, and is made a member in the place of the old one.
      await victim.start()
    },
  },
  'pause-leader': { hazards: 'p6 t5', run: async (scene) => pauseWhile(scene, [await anyLeader(scene)], true) },
  'pause-one': { hazards: 'p6 t5', run: (scene) => pauseWhile(scene, [anyNode(scene)], true) },
  'pause-all': { hazards: 'p6 p10', run: (scene) => pauseWhile(scene, scene.cluster.nodes, false) },
  'pause-then-kill': {
    hazards: 'p6 p1 n15',
    async run(scene) {
      // What waits in its sockets is lost with it.
      const victim = await anyLeader(scene)
      victim.pause()
      await scene.load.progress()
      await victim.kill()
      await victim.start()
    },
  },
  'close-leader': { hazards: 'm12', run: (scene) => endLeader(scene, 'closed') },
  'close-all': {
    hazards: 'p2',
    async run({ cluster }) {
      const codes = await Promise.all(cluster.nodes.map((node) => node.close()))
      if (codes.some((code) => code !== 0)) throw new Error(`closing ended with ${codes}`)
      await Promise.all(cluster.nodes.map((node) => node.start()))
    },
  },
  'disk-full': {
    hazards: 'd14 D8',
    needs: 'small-disk',
    async run({ cluster, load, random }) {
      const disk = cluster.smallDisk!
      const node = cluster.nodes.at(-1)!
      try {
        await disk.fill(random.integer(0, 64) * 1024)
        let filledMs = performance.now()
        await until('the node comes upon the full disk', async () => {
          // Files that it had no more use for may have made room.
          if (performance.now() - filledMs > refillMs) {
            await disk.fill(0)
            filledMs = performance.now()
          }
          return (await node.status()).failure !== null
        })
        await saysThatItFailed(node)
        // The others are a majority; what is acknowledged now must hold although this node has none of it.
        await load.progress()
        if (random.chance(0.5)) await node.close()
        else await node.kill()
        if (random.chance(0.5)) {
          // On a disk without any room it says why it does not start, or it starts and fails at its first write; either way it harms nothing.
          await disk.fill(0)
          const outcome = await node.start().catch((error: unknown) => error)
          if (outcome === undefined) await saysThatItFailed(node)
          else if (!(outcome instanceof StartFailedError) || outcome.code === null) throw outcome
          await node.kill()
        }
      } finally {
        await disk.free()
        if (!node.running) await node.start()
      }
    },
  },
  'sync-fails': {
    hazards: 'd12 D7',
    needs: 'sync-faults',
    async run({ cluster, load }) {
      const syncs = cluster.syncFaults!
      const node = cluster.nodes[0]!
      try {
        syncs.set('fail')
        await saysThatItFailed(node)
        syncs.set('pass')
        // The sync that would work again is not tried: what it covers may be gone (fsyncgate).
        await load.progress()
        if ((await node.status()).failure === null) throw new Error(`${node.id} came back by itself`)
      } finally {
        syncs.set('pass')
        await node.kill()
        await node.start()
      }
    },
  },
  'sync-hangs': {
    hazards: 'd17 R18',
    needs: 'sync-faults',
    async run({ cluster, load, random }) {
      const syncs = cluster.syncFaults!
      const node = cluster.nodes[0]!
      try {
        syncs.set('hang')
        // A group that it leads and in which nothing is written may stay as it is.
        await load.progress()
        if (random.chance(0.3)) await node.kill()
      } finally {
        syncs.set('pass')
        if (!node.running) await node.start()
      }
    },
  },
  'slow-links': {
    hazards: 'n4 n6',
    needs: 'links',
    run: (scene) =>
      disturb(scene, (proxy) => {
        for (const link of proxy.links()) link.set({ delayMs: scene.random.integer(0, 20), jitterMs: scene.random.integer(0, 30) })
        for (const { id } of scene.cluster.nodes) proxy.link(clientEnd, id).set({ delayMs: scene.random.integer(0, 10), jitterMs: 10 })
      }),
  },
  'thin-links': {
    hazards: 'n6 n7',
    needs: 'links',
    run: (scene) =>
      disturb(scene, (proxy) => {
        for (const link of proxy.links()) link.set({ bytesPerSecond: scene.random.integer(20_000, 200_000) })
      }),
  },
  'cut-connections': {
    hazards: 'n13 n15 E1.4',
    needs: 'links',
    run: (scene) =>
      disturb(scene, async (proxy) => {
        const { random, load, cluster } = scene
        const links = [...proxy.links(), ...cluster.nodes.map(({ id }) => proxy.link(clientEnd, id))]
        for (let turn = random.integer(3, 8); turn > 0; turn--) {
          for (const link of links) if (random.chance(0.4)) link.cut({ how: random.chance(0.5) ? 'rst' : 'fin', midFrame: random.chance(0.7) })
          await load.progress(1)
        }
      }),
  },
  'one-way': {
    hazards: 'n11 R18',
    needs: 'links',
    async run(scene) {
      const leader = await anyLeader(scene)
      const isDeaf = scene.random.chance(0.5)
      await disturb(scene, (proxy) => {
        for (const other of scene.cluster.nodes) {
          if (other === leader) continue
          const link = isDeaf ? proxy.link(other.id, leader.id) : proxy.link(leader.id, other.id)
          link.set({ holdForward: true })
        }
      })
    },
  },
  'isolate-leader': {
    hazards: 'n9 n10 R15',
    needs: 'links',
    async run(scene) {
      const leader = await anyLeader(scene)
      await disturb(scene, (proxy) => {
        for (const other of scene.cluster.nodes) {
          if (other === leader) continue
          for (const link of [proxy.link(other.id, leader.id), proxy.link(leader.id, other.id)]) link.set({ holdForward: true, holdBackward: true })
        }
      })
    },
  },
  'refuse-one': {
    hazards: 'n16 n9',
    needs: 'links',
    async run(scene) {
      const victim = anyNode(scene)
      await disturb(scene, async (proxy) => {
        await proxy.refuse(victim.id)
        for (const { id } of scene.cluster.nodes) {
          for (const link of [proxy.link(id, victim.id), proxy.link(victim.id, id)]) link.cut({ how: 'rst', midFrame: false })
        }
        proxy.link(clientEnd, victim.id).cut({ how: 'rst', midFrame: false })
      })
    },
  },
} satisfies Record<string, Fault>

export type FaultName = keyof typeof faults
export const faultNames = Object.keys(faults) as FaultName[]
