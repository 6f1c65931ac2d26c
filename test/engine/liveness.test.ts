/** Signs of life between nodes whose groups rest, on a simulated clock. */
import { expect } from 'chai'
import { Liveness } from '../../src/engine/liveness.js'
import { SimulatedRuntime } from '../../src/testing/simulated-runtime.js'

function fixture() {
  const runtime = new SimulatedRuntime({ seed: 1 })
  const beats: string[] = []
  const silent: string[] = []
  const liveness = new Liveness({ runtime, intervalMs: 50, silenceMs: 250, beat: (node) => beats.push(node), onSilent: (node) => silent.push(node) })
  return { runtime, liveness, beats, silent }
}

describe('Liveness', () => {
  it('hazard D8.60: beats each interval for a node with resting groups, tells its silence once, and again after it was heard', async () => {
    const { runtime, liveness, beats, silent } = fixture()
    liveness.rests('b')
    await runtime.advance(220)
    expect(beats).to.have.length(4)
    liveness.heard('b', runtime.nowMs())
    await runtime.advance(220)
    expect(silent).to.deep.equal([])
    await runtime.advance(500)
    expect(silent).to.deep.equal(['b'])
    liveness.heard('b', runtime.nowMs())
    await runtime.advance(500)
    expect(silent).to.deep.equal(['b', 'b'])
    liveness.stop()
  })

  it('watches nobody when no group rests, and forgets a node when its groups rest no longer', async () => {
    const { runtime, liveness, beats, silent } = fixture()
    liveness.heard('b', runtime.nowMs())
    await runtime.advance(1000)
    expect(beats).to.deep.equal([])
    liveness.rests('b')
    for (let passed = 0; passed < 20_000; passed += 40) {
      liveness.heard('b', runtime.nowMs())
      await runtime.advance(40)
    }
    const { length } = beats
    await runtime.advance(1000)
    expect(beats).to.have.length(length)
    expect(silent).to.deep.equal([])
    liveness.stop()
  })
})
