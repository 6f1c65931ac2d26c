/**
 * The same results, made as plainly as possible from the files in memory: one loop over all text, two maps. It shares no code with the jobs or the library,
 * so that a mistake there cannot hide here.
 *
 * A word is a run of letters of any alphabet, in lower case, as the jobs (../jobs) have it; they look for the words, this cuts at what is none.
 */
import type { Document } from './corpus.js'

/** How often each word occurs, and the keys of the documents that have it, in order. */
export interface Results {
  readonly counts: ReadonlyMap<string, number>
  readonly index: ReadonlyMap<string, readonly string[]>
}

export function countSequentially(documents: readonly Document[], keyPrefix: string): Results {
  const counts = new Map<string, number>()
  const keysOf = new Map<string, Set<string>>()
  for (const { key, value } of documents) {
    for (const word of Buffer.from(value)
      .toString('utf8')
      .toLowerCase()
      .split(/\P{L}+/u)) {
      if (word === '') continue
      counts.set(word, (counts.get(word) ?? 0) + 1)
      const keys = keysOf.get(word)
      if (keys === undefined) keysOf.set(word, new Set([keyPrefix + key]))
      else keys.add(keyPrefix + key)
    }
  }
  const index = new Map(Array.from(keysOf, ([word, keys]) => [word, [...keys].sort()] as const))
  return { counts, index }
}

/** What differs, as lines to read; at most `most` of each kind. */
export function differences(actual: Results, expected: Results, most = 10): string[] {
  const lines: string[] = []
  for (const kind of ['counts', 'index'] as const) {
    const words = new Set([...actual[kind].keys(), ...expected[kind].keys()])
    let found = 0
    for (const word of words) {
      const [is, should] = [JSON.stringify(actual[kind].get(word)), JSON.stringify(expected[kind].get(word))]
      if (is === should) continue
      if (++found <= most) lines.push(`${kind}, ${JSON.stringify(word)}: is ${is}, should be ${should}`)
    }
    if (found > most) lines.push(`${kind}: and ${found - most} more`)
  }
  return lines
}
