/** Short ways to write logs in tests. */
import { type Entry, EntryKind, type TermRun } from '../../../src/raft/types.js'

/** The runs of terms of entries that begin at index 1, or wherever the first says. */
export function entriesAsRuns(entries: readonly Entry[]): TermRun[] {
  const runs: TermRun[] = []
  for (const { term, index } of entries) {
    if (runs[runs.length - 1]?.term !== term) runs.push({ term, firstIndex: index })
  }
  return runs
}

/** Entries of these terms, from an index on; each one's data says where it is from. */
export function logOf(terms: readonly number[], firstIndex = 1): Entry[] {
  return terms.map((term, position) => {
    const index = firstIndex + position
    return { term, index, kind: EntryKind.command, data: new TextEncoder().encode(`${term}:${index}`) }
  })
}
