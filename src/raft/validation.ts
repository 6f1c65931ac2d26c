/**
 * Owns which messages have a form that the algorithm may be asked about. Nothing here knows the replica's state.
 *
 * 1. Terms and indexes are whole and leave room to count on. 2. Entries follow right on the previous index, their terms never fall, and none is later than
 * the message's own. 3. A configuration entry holds one, with voters. 4. To itself a replica sends only the votes and acknowledgements that wait for its disk.
 */
import { decodeConfiguration } from './message-codec.js'
import { type AppendRequest, EntryKind, type Message } from './types.js'

/** Terms, indexes and counters beyond this are refused: whatever is added to one of them stays exact. */
export const maxCounter = 2 ** 52

const maxKind = Math.max(...Object.values(EntryKind))

function isCounter(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0 && value <= maxCounter
}

/** A place in a log: index 0 and term 0 belong together. */
function isPosition(index: number, term: number, termLimit: number): boolean {
  return isCounter(index) && isCounter(term) && term <= termLimit && (index === 0) === (term === 0)
}

function isConfiguration(data: Uint8Array): boolean {
  try {
    return decodeConfiguration(data).voters.length > 0
  } catch {
    return false
  }
}

function isWellFormedAppend(message: AppendRequest): boolean {
  const { previousIndex, entries } = message
  if (!isPosition(previousIndex, message.previousTerm, message.term)) return false
  if (!isCounter(message.commitIndex) || !isCounter(message.session) || !isCounter(message.sequence)) return false
  if (!isCounter(previousIndex + entries.length)) return false
  let term = message.previousTerm
  let index = previousIndex
  for (const entry of entries) {
    index++
    if (entry.index !== index || !(entry.term >= term) || !(entry.term <= message.term)) return false
    if (entry.term !== term) {
      if (!isCounter(entry.term) || entry.term === 0) return false
      term = entry.term
    }
    if (!(entry.kind >= 0 && entry.kind <= maxKind)) return false
    if (entry.kind === EntryKind.configuration && !isConfiguration(entry.data)) return false
  }
  return true
}

/** Whether a message may be looked at. */
export function isWellFormed(message: Message): boolean {
  if (!isCounter(message.term)) return false
  const isToItself = message.from === message.to
  if (isToItself && message.type !== 'vote-reply' && message.type !== 'append-reply') return false
  // Term 0 is the time before the first election: only a refusal can speak of it.
  if (message.term === 0 && message.type !== 'pre-vote-reply' && message.type !== 'vote-reply') return false
  switch (message.type) {
    case 'pre-vote-request':
    case 'vote-request':
      // A candidate's log is older than the term that it campaigns in.
      return isPosition(message.lastIndex, message.lastTerm, message.term - 1) && isCounter(message.sequence)
    case 'pre-vote-reply':
    case 'vote-reply':
      return isCounter(message.sequence)
    case 'append-request':
      return isWellFormedAppend(message)
    case 'append-reply':
      if (!isCounter(message.session) || !isCounter(message.sequence) || !isCounter(message.matchIndex)) return false
      if (!isCounter(message.conflictTerm) || !isCounter(message.conflictIndex)) return false
      return message.accepted || message.conflictIndex > 0
    case 'heartbeat':
      return isCounter(message.commitIndex) && isCounter(message.round)
    case 'heartbeat-reply':
      return isCounter(message.round)
    case 'snapshot-offer':
      if (!isPosition(message.snapshotIndex, message.snapshotTerm, message.term) || message.snapshotIndex === 0) return false
      return isCounter(message.session) && isCounter(message.sequence)
    case 'timeout-now':
      return true
    default:
      message satisfies never
      return false
  }
}
