/**
 * Seeded chance for tests: one stream per purpose, each derived from (seed, name), so that removing one fault does not shift every other draw.
 *
 * The generator is sfc32 (Chris Doty-Humphrey, PractRand): 32-bit arithmetic only, fast in JavaScript, passes BigCrush.
 */

/** Mixes a text into 32 bits (FNV-1a with a final avalanche). */
function hash32(text: string, start: number): number {
  let hash = (0x811c9dc5 ^ start) >>> 0
  for (let position = 0; position < text.length; position++) {
    hash = Math.imul(hash ^ text.charCodeAt(position), 0x01000193)
  }
  hash ^= hash >>> 16
  hash = Math.imul(hash, 0x85ebca6b)
  hash ^= hash >>> 13
  hash = Math.imul(hash, 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}

export class SeededRandom {
  #a: number
  #b: number
  #c: number
  #counter = 1

  constructor(seed: number, name = '') {
    const label = `${seed}/${name}`
    this.#a = hash32(label, 1)
    this.#b = hash32(label, 2)
    this.#c = hash32(label, 3)
    for (let warmUp = 0; warmUp < 12; warmUp++) this.uint32()
  }

  uint32(): number {
    const result = (this.#a + this.#b + this.#counter) | 0
    this.#counter = (this.#counter + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + result
    this.#c |= 0
    return result >>> 0
  }

  /** Uniform in [0, 1). */
  next = (): number => this.uint32() / 0x100000000

  /** A whole number in [low, high], both included. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1))
  }

  /** Uniform in [low, high). */
  between(low: number, high: number): number {
    return low + this.next() * (high - low)
  }

  /** True with the given probability. Draws once, whatever the probability, so that changing a rate keeps the other draws. */
  chance(probability: number): boolean {
    return this.next() < probability
  }

  pick<T>(choices: readonly T[]): T {
    if (choices.length === 0) throw new RangeError('nothing to pick from')
    return choices[Math.floor(this.next() * choices.length)] as T
  }

  /** A whole number drawn from the exponential distribution of this mean. */
  exponential(mean: number): number {
    return Math.floor(-Math.log(1 - this.next()) * mean)
  }

  /** The items in a random order, as a new list. */
  shuffle<T>(items: readonly T[]): T[] {
    const result = [...items]
    for (let last = result.length - 1; last > 0; last--) {
      const other = this.integer(0, last)
      const kept = result[last] as T
      result[last] = result[other] as T
      result[other] = kept
    }
    return result
  }

  bytes(length: number): Uint8Array {
    const bytes = new Uint8Array(length)
    for (let position = 0; position < length; position++) bytes[position] = this.uint32() & 0xff
    return bytes
  }
}
