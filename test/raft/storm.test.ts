/** A small storm over a few hundred seeds, as a first net under every change of the core. (The simulator in src/testing goes further.) */
import { storm } from './support/storm.js'

describe('raft in a storm', () => {
  it('keeps every safety rule and heals, over 200 seeds', () => {
    for (let seed = 1; seed <= 200; seed++) {
      try {
        storm(seed)
      } catch (cause) {
        throw new Error(`seed ${seed}: ${(cause as Error).message}`, { cause })
      }
    }
  })
})
