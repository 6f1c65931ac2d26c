/**
 * The Messenger in a storm: seeded nodes that ask and tell each other, small and large, while the network drops, repeats, reorders and cuts, and nodes
 * crash and come back. What must hold: a request settles once, with its own reply or an error; what is delivered is whole; and when the storm is over nothing is left.
 */
import { createHash } from 'node:crypto'
import { expect } from 'chai'
import { QuorateError } from '../../src/base/errors.js'
import type { SeededRandom } from '../../src/testing/seeded-random.js'
import { networkPresets } from '../../src/transport/memory.js'
import { Channel, type Messenger } from '../../src/transport/messenger.js'
import { pattern, World } from './support.js'

const addresses = ['a', 'b', 'c', 'd']

/** A payload that carries its own digest. */
function sealed(random: SeededRandom): Buffer {
  const sizes = [0, 10, 100, 1000, 30_000, 200_000]
  const body = pattern(sizes[Math.floor(random.next() * sizes.length)] as number, random.uint32())
  return Buffer.concat([createHash('sha1').update(body).digest(), body])
}

function isWhole(bytes: Uint8Array): boolean {
  return createHash('sha1').update(bytes.subarray(20)).digest().equals(bytes.subarray(0, 20))
}

interface Outcome {
  readonly trace: number
  readonly replied: number
  readonly failed: number
  readonly delivered: number
}

async function storm(seed: number): Promise<Outcome> {
  const world = new World(seed, { maxFrameBytes: 16_384, faults: { ...networkPresets.unreliable, repeatProbability: 0.05 } })
  const { runtime, network } = world
  const random = runtime.stream('storm')
  const chance = (probability: number): boolean => random.next() < probability
  const anyone = (): string => addresses[Math.floor(random.next() * addresses.length)] as string
  const alive = new Map<string, Messenger>()
  let delivered = 0

  const start = async (address: string): Promise<void> => {
    const { messenger } = await world.node(address, { reassemblyTimeoutMs: 3000, nodeId: `node-${address}` })
    messenger.onMessage(Channel.raft, (_, body) => {
      expect(isWhole(body), `seed ${seed}: a message arrived damaged`).to.equal(true)
      delivered++
    })
    messenger.handle('echo', (_, payload) => payload)
    messenger.handle('later', async (_from, payload, signal) => {
      await runtime.sleep(payload.length % 97)
      if (signal.aborted) throw signal.reason
      return payload
    })
    alive.set(address, messenger)
  }
  for (const address of addresses) await start(address)

  let asked = 0
  let replied = 0
  let failed = 0
  const ask = (from: Messenger): void => {
    asked++
    const question = sealed(random)
    const controller = chance(0.1) ? new AbortController() : null
    if (controller !== null) runtime.schedule(random.next() * 100, () => controller.abort(new QuorateError('GAVE_UP', 'the caller gave up', false)))
    const options = { timeoutMs: 200 + random.next() * 2000, lane: chance(0.2) ? 'bulk' : 'control', signal: controller?.signal } as const
    from.request(anyone(), chance(0.5) ? 'echo' : 'later', question, options).then(
      (reply) => {
        replied++
        expect(question.equals(reply), `seed ${seed}: the reply to another question`).to.equal(true)
      },
      (error: unknown) => {
        failed++
        expect(error, `seed ${seed}`).to.be.instanceOf(QuorateError)
      },
    )
  }

  for (let step = 0; step < 250; step++) {
    for (const messenger of alive.values()) {
      if (chance(0.5)) ask(messenger)
      if (chance(0.3)) messenger.send(anyone(), Channel.raft, sealed(random))
      if (chance(0.1)) messenger.flush()
    }
    if (chance(0.03)) network.cut(anyone(), anyone(), { oneWay: chance(0.5) })
    if (chance(0.05)) network.heal()
    if (chance(0.02)) network.setFaults(chance(0.5) ? networkPresets.longReordering : networkPresets.unreliable)
    if (chance(0.03)) {
      const address = anyone()
      const messenger = alive.get(address)
      alive.delete(address)
      // Gone with its machine, or closed in good order; then back.
      if (chance(0.5)) network.crash(address, { silent: chance(0.5) })
      await messenger?.close()
      if (chance(0.5)) await runtime.advance(random.next() * 200)
      await start(address)
    }
    await runtime.advance(random.next() * 20)
  }

  // The storm is over: all settles, and nothing is left.
  network.heal()
  network.setFaults({})
  await runtime.advance(60_000)
  expect(replied + failed, `seed ${seed}: requests settled`).to.equal(asked)
  for (const [address, messenger] of alive) {
    const { peers, ...rest } = messenger.status()
    expect(peers).to.be.at.most(addresses.length)
    expect(rest, `seed ${seed}: left at ${address}`).to.deep.equal({ pendingRequests: 0, runningRequests: 0, bulkBytes: 0, reassemblyBytes: 0 })
  }
  for (const { handlerErrors, refusals } of world.nodes) {
    expect(handlerErrors, `seed ${seed}`).to.deep.equal([])
    expect(refusals, `seed ${seed}`).to.deep.equal([])
  }
  // And everyone reaches everyone.
  for (const messenger of alive.values())
    for (const to of addresses) {
      const question = sealed(random)
      expect(question.equals(await runtime.settle(messenger.request(to, 'later', question))), `seed ${seed}`).to.equal(true)
    }
  await world.close()
  return { trace: runtime.trace, replied, failed, delivered }
}

describe('Messenger in a storm', () => {
  it('keeps its promises over 6 seeds', async () => {
    for (let seed = 1; seed <= 6; seed++) {
      const { replied, failed, delivered } = await storm(seed)
      // The storm is one, and gets through.
      expect(Math.min(replied, failed, delivered), `seed ${seed}`).to.be.above(50)
    }
  })

  it('the same seed blows the same way', async () => {
    expect(await storm(99)).to.deep.equal(await storm(99))
  })
})
