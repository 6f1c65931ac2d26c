/**
 * Owns the bytes of Raft messages and of runs of entries (formats: docs/formats.md). The log store keeps entries in the same form.
 *
 * 1. One meaning, one form: what decodes encodes to the same bytes again, so checksums and comparisons of bytes mean something.
 * 2. Nothing from outside is believed: unknown types and kinds, counts that the remaining bytes cannot hold, runs that do not add up and numbers out of
 * range end in CorruptionError `MALFORMED`. Whether a message makes sense is the core's to judge.
 * 3. Sender and receiver are not written: the frame knows them. Data of decoded entries are views of the buffer.
 *
 * message     type u8, term, then by type:
 *   (pre-)vote request      lastIndex, lastTerm, sequence; a vote request also transfer u8
 *   (pre-)vote reply        granted u8, sequence
 *   append request          previousIndex, previousTerm, commitIndex, session, sequence, entries
 *   append reply            accepted u8, session, sequence, then accepted: matchIndex; else: conflictTerm, conflictIndex
 *   heartbeat               commitIndex, round, resting u8
 *   heartbeat reply         round
 *   snapshot offer          snapshotIndex, snapshotTerm, session, sequence
 *   timeout now             nothing
 * configuration             version u8 (1), then voters, learners, outgoing voters: count and so many ids (text), each once
 * entries     count; unless 0: firstIndex, runs of one term and kind (term less the previous run's, kind u8, length) until they add up to the count,
 *             then each entry's data behind its length
 * Numbers are varints unless said otherwise.
 */
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import { unreachable } from './invariant.js'
import { type Configuration, type Entry, EntryKind, type Message, type NodeId } from './types.js'

const MessageType = {
  'pre-vote-request': 1,
  'pre-vote-reply': 2,
  'vote-request': 3,
  'vote-reply': 4,
  'append-request': 5,
  'append-reply': 6,
  heartbeat: 7,
  'heartbeat-reply': 8,
  'snapshot-offer': 9,
  'timeout-now': 10,
} as const satisfies Record<Message['type'], number>

const messageTypes = new Map<number, Message['type']>(Object.entries(MessageType).map(([type, value]) => [value, type as Message['type']]))
const kinds = new Set<number>(Object.values(EntryKind))

function malformed(what: string): CorruptionError {
  return new CorruptionError(`malformed Raft message: ${what}`, 'MALFORMED')
}

/** Writes consecutive entries; terms and kinds once per run. */
export function encodeEntries(writer: Writer, entries: readonly Entry[]): void {
  const count = entries.length
  writer.varint(count)
  if (count === 0) return
  writer.varint(entries[0]!.index)
  let previousTerm = 0
  let start = 0
  while (start < count) {
    const { term, kind } = entries[start]!
    let end = start + 1
    while (end < count && entries[end]!.term === term && entries[end]!.kind === kind) end++
    writer
      .varint(term - previousTerm)
      .u8(kind)
      .varint(end - start)
    previousTerm = term
    start = end
  }
  for (const entry of entries) writer.bytes(entry.data)
}

/** Reads what `encodeEntries` wrote. Each entry's data is a view of the reader's buffer. Throws CorruptionError. */
export function decodeEntries(reader: Reader): Entry[] {
  const count = reader.count()
  if (count === 0) return []
  const firstIndex = reader.varint()
  if (firstIndex === 0) throw malformed('entries from index 0')
  if (firstIndex > Number.MAX_SAFE_INTEGER - count) throw malformed('entries beyond the last possible index')
  const runs: { term: number; kind: EntryKind; length: number }[] = []
  let known = 0
  let term = 0
  let kind = -1
  while (known < count) {
    const step = reader.varint()
    const runKind = reader.u8()
    const length = reader.varint()
    if (!kinds.has(runKind)) throw malformed(`entry kind ${runKind}`)
    if (length === 0 || length > count - known) throw malformed('runs do not add up to the count of entries')
    if (step === 0 && (term === 0 || runKind === kind)) throw malformed('a run that does not differ from the one before')
    term += step
    if (term > Number.MAX_SAFE_INTEGER) throw malformed('term out of range')
    kind = runKind
    known += length
    runs.push({ term, kind: runKind as EntryKind, length })
  }
  const entries: Entry[] = []
  let index = firstIndex
  for (const run of runs) {
    for (let position = 0; position < run.length; position++) {
      entries.push({ term: run.term, index, kind: run.kind, data: reader.bytes() })
      index++
    }
  }
  return entries
}

const configurationVersion = 1

/** The data of a configuration entry; also how the log store keeps a configuration. */
export function encodeConfiguration(configuration: Configuration): Uint8Array {
  const writer = new Writer()
  writer.u8(configurationVersion)
  for (const ids of [configuration.voters, configuration.learners, configuration.votersOutgoing]) {
    writer.varint(ids.length)
    for (const id of ids) writer.text(id)
  }
  return writer.finish()
}

/** Reads what `encodeConfiguration` wrote. Throws CorruptionError, also for a member that stands twice in a list or is voter and learner at once. */
export function decodeConfiguration(data: Uint8Array): Configuration {
  const reader = new Reader(data)
  const version = reader.u8()
  if (version !== configurationVersion) throw malformed(`version ${version} of a configuration`)
  const voters = decodeIds(reader)
  const learners = decodeIds(reader)
  const votersOutgoing = decodeIds(reader)
  reader.end()
  for (const id of learners) if (voters.includes(id)) throw malformed('a member that is voter and learner at once')
  return { voters, learners, votersOutgoing }
}

function decodeIds(reader: Reader): NodeId[] {
  const ids = new Set<NodeId>()
  const count = reader.count(2)
  for (let position = 0; position < count; position++) {
    const id = reader.text()
    if (id === '') throw malformed('a member without id')
    ids.add(id)
  }
  if (ids.size !== count) throw malformed('a member that stands twice in a configuration')
  return [...ids]
}

/** Writes one message, without sender and receiver. */
export function encodeMessage(writer: Writer, message: Message): void {
  writer.u8(MessageType[message.type]).varint(message.term)
  switch (message.type) {
    case 'pre-vote-request':
      writer.varint(message.lastIndex).varint(message.lastTerm).varint(message.sequence)
      break
    case 'vote-request':
      writer
        .varint(message.lastIndex)
        .varint(message.lastTerm)
        .varint(message.sequence)
        .u8(message.transfer ? 1 : 0)
      break
    case 'pre-vote-reply':
    case 'vote-reply':
      writer.u8(message.granted ? 1 : 0).varint(message.sequence)
      break
    case 'append-request':
      writer.varint(message.previousIndex).varint(message.previousTerm).varint(message.commitIndex).varint(message.session).varint(message.sequence)
      encodeEntries(writer, message.entries)
      break
    case 'append-reply':
      writer
        .u8(message.accepted ? 1 : 0)
        .varint(message.session)
        .varint(message.sequence)
      if (message.accepted) writer.varint(message.matchIndex)
      else writer.varint(message.conflictTerm).varint(message.conflictIndex)
      break
    case 'heartbeat':
      writer
        .varint(message.commitIndex)
        .varint(message.round)
        .u8(message.isResting ? 1 : 0)
      break
    case 'heartbeat-reply':
      writer.varint(message.round)
      break
    case 'snapshot-offer':
      writer.varint(message.snapshotIndex).varint(message.snapshotTerm).varint(message.session).varint(message.sequence)
      break
    case 'timeout-now':
      break
    default:
      unreachable(message)
  }
}

function decodeFlag(reader: Reader): boolean {
  const flag = reader.u8()
  if (flag > 1) throw malformed(`flag ${flag}`)
  return flag === 1
}

/**
 * Reads one message. Several may follow one another in a buffer; after the last the caller asks the reader for its `end`.
 * Throws CorruptionError. `from` and `to` are what the frame says.
 */
export function decodeMessage(reader: Reader, from: NodeId, to: NodeId): Message {
  const typeByte = reader.u8()
  const type = messageTypes.get(typeByte)
  if (type === undefined) throw malformed(`type ${typeByte}`)
  const term = reader.varint()
  // Object literals keep the order of evaluation: fields are read in the order written here.
  switch (type) {
    case 'pre-vote-request':
      return { type, from, to, term, lastIndex: reader.varint(), lastTerm: reader.varint(), sequence: reader.varint() }
    case 'vote-request':
      return { type, from, to, term, lastIndex: reader.varint(), lastTerm: reader.varint(), sequence: reader.varint(), transfer: decodeFlag(reader) }
    case 'pre-vote-reply':
    case 'vote-reply':
      return { type, from, to, term, granted: decodeFlag(reader), sequence: reader.varint() }
    case 'append-request':
      return {
        type,
        from,
        to,
        term,
        previousIndex: reader.varint(),
        previousTerm: reader.varint(),
        commitIndex: reader.varint(),
        session: reader.varint(),
        sequence: reader.varint(),
        entries: decodeEntries(reader),
      }
    case 'append-reply': {
      const accepted = decodeFlag(reader)
      const session = reader.varint()
      const sequence = reader.varint()
      if (accepted) return { type, from, to, term, accepted, session, sequence, matchIndex: reader.varint(), conflictTerm: 0, conflictIndex: 0 }
      return { type, from, to, term, accepted, session, sequence, matchIndex: 0, conflictTerm: reader.varint(), conflictIndex: reader.varint() }
    }
    case 'heartbeat': {
      const heartbeat = { type, from, to, term, commitIndex: reader.varint(), round: reader.varint() }
      return decodeFlag(reader) ? { ...heartbeat, isResting: true } : heartbeat
    }
    case 'heartbeat-reply':
      return { type, from, to, term, round: reader.varint() }
    case 'snapshot-offer':
      return {
        type,
        from,
        to,
        term,
        snapshotIndex: reader.varint(),
        snapshotTerm: reader.varint(),
        session: reader.varint(),
        sequence: reader.varint(),
      }
    case 'timeout-now':
      return { type, from, to, term }
    default:
      return unreachable(type)
  }
}
