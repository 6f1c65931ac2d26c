/** How operations watch the signals of their callers. */
import { getEventListeners } from 'node:events'
import { expect } from 'chai'
import { watchSignal } from '../../src/shard/operations.js'

describe('watching a signal', () => {
  it('tells every operation that shares it, by one listener, which goes with the last of them', () => {
    const controller = new AbortController()
    const { signal } = controller
    const told: number[] = []
    const stops = Array.from({ length: 100 }, (_, number) => watchSignal({ signal }, () => told.push(number))!)
    expect(getEventListeners(signal, 'abort').length).to.equal(1)
    for (const stop of stops) stop()
    expect(getEventListeners(signal, 'abort').length).to.equal(0)
    watchSignal({ signal }, () => told.push(100))!()
    const kept = [101, 102].map((number) => watchSignal({ signal }, () => told.push(number))!)
    controller.abort()
    expect(told).to.deep.equal([101, 102])
    for (const stop of kept) stop()
  })

  it('may stop watching while it is told', () => {
    const controller = new AbortController()
    const told: string[] = []
    const stop = watchSignal({ signal: controller.signal }, () => {
      told.push('first')
      stop()
    })!
    watchSignal({ signal: controller.signal }, () => told.push('second'))
    controller.abort()
    expect(told).to.deep.equal(['first', 'second'])
  })

  it('needs no signal', () => {
    expect(watchSignal({}, () => {})).to.equal(null)
  })
})
