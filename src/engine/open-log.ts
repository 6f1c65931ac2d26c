/**
 * Opens a group's log beside its state: a new group's is begun, one that a crash left behind an installed snapshot is reset to it, and what does not fit together is refused as damage.
 *
 * Invariants: 1. log and state leave no gap: the log starts at or before the state's applied index and reaches it; 2. what a replica has promised or acknowledged is never made
 * up: a log that ends too early, or starts too late, has lost something.
 */
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { decodeConfiguration, encodeConfiguration } from '../raft/message-codec.js'
import type { NodeId } from '../raft/types.js'
import type { LoadedLog, LogBase, LogStore } from './log-store.js'
import type { StateStore } from './state-store.js'

const originVersion = 1

/** What a state that was installed from a snapshot remembers of it. */
export function encodeOrigin({ index, term, configuration }: LogBase): Uint8Array {
  return new Writer().u8(originVersion).varint(index).varint(term).raw(encodeConfiguration(configuration)).finish()
}

function decodeOrigin(bytes: Uint8Array): LogBase {
  const reader = new Reader(bytes)
  const version = reader.u8()
  if (version !== originVersion) throw new CorruptionError(`a state was installed by another version of quorate (${version})`)
  const index = reader.varint()
  const term = reader.varint()
  const configuration = decodeConfiguration(reader.raw(reader.remaining))
  return { index, term, configuration }
}

/** Loads a group's log, whose state is open. `founders` are the voters of a new group. Throws CorruptionError when log or state has lost something. */
export async function openLog(log: LogStore, store: StateStore, group: number, founders: readonly NodeId[]): Promise<LoadedLog> {
  let loaded = await log.load(group)
  if (loaded === undefined) {
    await log.create(group, { index: 0, term: 0, configuration: { voters: founders, learners: [], votersOutgoing: [] } })
    loaded = (await log.load(group))!
  }
  const originBytes = store.origin()
  const origin = originBytes === undefined ? null : decodeOrigin(originBytes)
  // The state is replaced first, the log second; nothing is applied in between.
  if (origin !== null && origin.index === store.appliedIndex && !holds(loaded, origin)) loaded = await resetLog(log, group, origin)
  if (store.appliedIndex > loaded.lastIndex)
    throw new CorruptionError(
      `the state of group ${group} reaches index ${store.appliedIndex}, its log only ${loaded.lastIndex}: a part of the log is lost`,
    )
  if (store.appliedIndex < loaded.base.index)
    throw new CorruptionError(
      `the state of group ${group} reaches index ${store.appliedIndex}, its log starts after ${loaded.base.index}: a part of the state is lost`,
    )
  return loaded
}

/** Whether the log covers an index with that very entry, or starts beyond it. */
function holds({ base, terms, lastIndex }: LoadedLog, { index, term }: LogBase): boolean {
  if (index < base.index) return true
  if (index > lastIndex) return false
  if (index === base.index) return base.term === term
  let found = 0
  for (const run of terms) if (run.firstIndex <= index) found = run.term
  return found === term
}

/** (The core enters the snapshot's term by itself.) */
async function resetLog(log: LogStore, group: number, origin: LogBase): Promise<LoadedLog> {
  await log.write([{ group, work: { sequence: 0, hardState: null, reset: { ...origin, keepsLater: false }, truncateFrom: null, entries: [] } }])
  return (await log.load(group))!
}
