/**
 * How far a group's log is compacted: by size and by count.
 *
 * Invariants: 1. never beyond what the state holds durably; 2. a log over a limit is cut to half of it, so that a follower that was away for a moment still finds what it
 * lacks; 3. what live followers, or receivers of a snapshot, still need is kept longer, but not beyond twice the limit, or as much as the snapshot itself holds: one slow follower
 * must not fill the disk, it gets another snapshot; and one that a large snapshot is sent to must find its log there afterwards, or it would be sent snapshots for ever (hazard D6.48); 4. a cut that frees little is not made: each one costs a write.
 */
import type { LogTable } from './log-table.js'

export interface CompactionLimits {
  readonly maxBytes: number
  readonly maxEntries: number
}

export interface CompactionInput {
  readonly table: LogTable
  readonly baseIndex: number
  readonly lastIndex: number
  /** What the state holds durably. */
  readonly flushedIndex: number
  /** Entries after this index are still needed; infinity when nobody does. */
  readonly neededAfter: number
  /** Bytes of the largest snapshot that is being sent, or was a short while ago; 0 for none. */
  readonly snapshotBytes: number
  readonly limits: CompactionLimits
}

export interface CompactionDecision {
  /** Cut to this index; null for not now. */
  readonly compactTo: number | null
  /** The state should be flushed: what it does not hold durably yet keeps the log long. */
  readonly flush: boolean
}

export function decideCompaction({
  table,
  baseIndex,
  lastIndex,
  flushedIndex,
  neededAfter,
  snapshotBytes,
  limits,
}: CompactionInput): CompactionDecision {
  const { maxBytes, maxEntries } = limits
  if (table.bytes <= maxBytes && lastIndex - baseIndex <= maxEntries) return { compactTo: null, flush: false }
  let wanted = Math.max(table.indexBeforeLast(maxBytes / 2), lastIndex - Math.floor(maxEntries / 2))
  if (neededAfter < wanted) {
    const keptBytes = Math.max(2 * maxBytes, snapshotBytes)
    const keptEntries = Math.floor(maxEntries * (keptBytes / maxBytes))
    wanted = Math.max(neededAfter, table.indexBeforeLast(keptBytes), lastIndex - keptEntries)
  }
  const isMuch = (from: number, to: number) =>
    to > from && (to - from >= maxEntries / 8 || table.bytesBefore(to + 1) - table.bytesBefore(from + 1) >= maxBytes / 8)
  const compactTo = Math.min(wanted, flushedIndex)
  return { compactTo: isMuch(baseIndex, compactTo) ? compactTo : null, flush: isMuch(Math.max(flushedIndex, baseIndex), wanted) }
}
