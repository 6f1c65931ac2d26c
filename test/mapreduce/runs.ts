/** Runs as tests make and look at them. */
import { defineJob, type JobDefinition } from '../../src/mapreduce/index.js'
import type { AnyJob, JobKey } from '../../src/mapreduce/job.js'
import type { Segment } from '../../src/mapreduce/map-buffer.js'
import { GroupValues, MergedGroups } from '../../src/mapreduce/merge.js'
import type { RunSource } from '../../src/mapreduce/run-reader.js'

/** A job of which only some functions matter. */
export function makeJob(options: Partial<JobDefinition<string, unknown>> = {}): AnyJob {
  return defineJob<string, unknown>({ name: 'test', map: () => {}, reduce: () => undefined, ...options })
}

/** The runs of a part over segments, in order. */
export function runsOf(segments: readonly Segment[], part: number): RunSource[] {
  return segments.map(({ bytes, index }, map) => {
    const start = index.lengths.slice(0, part).reduce((sum, length) => sum + length, 0)
    const length = index.lengths[part] as number
    return { map, bytes: bytes.subarray(start, start + length), length, checksum: index.checksums[part] as number }
  })
}

/** All groups of runs. */
export function groupsOf(runs: readonly RunSource[], keys: 'text' | 'bytes' = 'text'): [JobKey, unknown[]][] {
  const merged = new MergedGroups(runs)
  const groups: [JobKey, unknown[]][] = []
  while (merged.next()) groups.push([keys === 'text' ? merged.keyAsText() : merged.keyAsBytes(), [...new GroupValues(merged.readers)]])
  return groups
}
