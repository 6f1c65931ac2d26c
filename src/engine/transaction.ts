/**
 * Transactions: several conditions and operations on the keys of one shard, as bytes and as what they do to a shard's state.
 *
 * The caller encodes one once (`encodeTransaction`), which also copies its keys and values; the bytes travel unread to the state machine. Formats: docs/formats.md.
 *
 * Invariants: 1. all or nothing: `runTransaction` changes nothing itself, it returns what is to be written; 2. operations happen in order, and each sees what those before it in the
 * same transaction did; 3. all writes of a transaction carry the same revision, and a key's version rises by one with each of them; 4. what the gets return is bounded in bytes, and what
 * goes beyond is refused whole: an answer is stored with the effect until its client has it.
 */
import { asBuffer, toLatin1 } from '../base/bytes.js'
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'

/** A condition: all that is given holds. Version and revision 0 mean absent. */
export interface KeyCondition {
  readonly key: Uint8Array
  readonly version: number | undefined
  readonly revision: number | undefined
  readonly value: Uint8Array | undefined
  readonly isAbsent: boolean | undefined
}

export const StepKind = { put: 1, delete: 2, get: 3 } as const
export type StepKind = (typeof StepKind)[keyof typeof StepKind]

/** One operation. */
export interface Step {
  readonly kind: StepKind
  readonly key: Uint8Array
  /** Of a put; null else. */
  readonly value: Uint8Array | null
}

export interface Transaction {
  /** Whether the caller wants to know what each operation did; else the answer is the revision alone. */
  readonly wantsResults: boolean
  readonly compares: readonly KeyCondition[]
  /** What is done when all conditions hold, and what when they do not. */
  readonly branches: readonly [then: readonly Step[], otherwise: readonly Step[]]
}

/** What the results of one transaction may take: they are kept with the effect, and a reply holds those of many. */
export const maxResultBytes = 2 * 1024 * 1024

const wantsResultsFlag = 1
const versionFlag = 1
const revisionFlag = 2
const valueFlag = 4
const absentFlag = 8
const presentFlag = 16

export function encodeTransaction({ wantsResults, compares, branches }: Transaction): Uint8Array {
  const writer = new Writer(1024).u8(wantsResults ? wantsResultsFlag : 0).varint(compares.length)
  for (const { key, version, revision, value, isAbsent } of compares) {
    const absence = isAbsent === undefined ? 0 : isAbsent ? absentFlag : presentFlag
    const given = (version === undefined ? 0 : versionFlag) | (revision === undefined ? 0 : revisionFlag) | (value === undefined ? 0 : valueFlag)
    writer.u8(given | absence).bytes(key)
    if (version !== undefined) writer.varint(version)
    if (revision !== undefined) writer.varint(revision)
    if (value !== undefined) writer.bytes(value)
  }
  for (const steps of branches) {
    writer.varint(steps.length)
    for (const { kind, key, value } of steps) {
      writer.u8(kind).bytes(key)
      if (value !== null) writer.bytes(value)
    }
  }
  return writer.finish()
}

/** Decodes a transaction; keys and values are views. Throws CorruptionError `MALFORMED`. */
export function readTransaction(bytes: Uint8Array): Transaction {
  const reader = new Reader(bytes)
  const head = reader.u8()
  if (head > wantsResultsFlag) throw new CorruptionError(`unknown transaction ${head}`, 'MALFORMED')
  const compares: KeyCondition[] = []
  for (let left = reader.count(2); left > 0; left--) compares.push(readCondition(reader))
  const branches = [readSteps(reader), readSteps(reader)] as const
  reader.end()
  return { wantsResults: head === wantsResultsFlag, compares, branches }
}

function readCondition(reader: Reader): KeyCondition {
  const flags = reader.u8()
  const isKnown = flags < 2 * presentFlag && (flags & (absentFlag | presentFlag)) !== (absentFlag | presentFlag)
  if (!isKnown || flags === 0) throw new CorruptionError(`unknown condition ${flags}`, 'MALFORMED')
  const key = reader.bytes()
  const version = flags & versionFlag ? reader.varint() : undefined
  const revision = flags & revisionFlag ? reader.varint() : undefined
  const value = flags & valueFlag ? reader.bytes() : undefined
  const isAbsent = flags & absentFlag ? true : flags & presentFlag ? false : undefined
  return { key, version, revision, value, isAbsent }
}

function readSteps(reader: Reader): Step[] {
  const steps: Step[] = []
  for (let left = reader.count(2); left > 0; left--) {
    const kind = reader.u8()
    if (kind < StepKind.put || kind > StepKind.get) throw new CorruptionError(`unknown operation ${kind} in a transaction`, 'MALFORMED')
    const key = reader.bytes()
    steps.push({ kind: kind as StepKind, key, value: kind === StepKind.put ? reader.bytes() : null })
  }
  return steps
}

/** What is stored under a key. */
export interface StoredValue {
  readonly version: number
  readonly revision: number
  readonly value: Uint8Array
}

/** A shard's state, as a transaction sees it. Keys as text of one unit a byte. */
export interface TransactionState {
  /** The shard's revision before the transaction. */
  readonly revision: number
  read(key: string): StoredValue | undefined
}

export interface TransactionOutcome {
  /** By key: what it holds afterwards, null for nothing. Empty when nothing changes; then the revision stays. */
  readonly writes: ReadonlyMap<string, StoredValue | null>
  /** What the operations did, when the caller wants to know. */
  readonly body: Uint8Array | undefined
}

/** What a transaction does to a state; null when its results would be too large. */
export function runTransaction({ wantsResults, compares, branches }: Transaction, state: TransactionState): TransactionOutcome | null {
  const succeeded = compares.every((condition) => holds(condition, state.read(toLatin1(condition.key))))
  const revision = state.revision + 1
  const writes = new Map<string, StoredValue | null>()
  const results = wantsResults ? new Writer(64).u8(succeeded ? 1 : 0) : null
  for (const { kind, key, value } of branches[succeeded ? 0 : 1]) {
    const text = toLatin1(key)
    const changed = writes.get(text)
    const before = changed === undefined ? state.read(text) : (changed ?? undefined)
    switch (kind) {
      case StepKind.put: {
        const version = (before?.version ?? 0) + 1
        writes.set(text, { version, revision, value: value! })
        results?.varint(version)
        break
      }
      case StepKind.delete:
        // What this transaction itself created and deletes again was never there.
        if (state.read(text) === undefined) writes.delete(text)
        else writes.set(text, null)
        results?.u8(before === undefined ? 0 : 1)
        break
      case StepKind.get:
        if (results === null) break
        if (before === undefined) results.varint(0)
        else results.varint(before.version).varint(before.revision).bytes(before.value)
        if (results.length > maxResultBytes) return null
        break
      default:
        kind satisfies never
    }
  }
  // A copy of just its size: it may be kept for long, and the writer's buffer is larger, or a part of one that others share.
  return { writes, body: results === null ? undefined : new Uint8Array(results.view()) }
}

function holds({ version, revision, value, isAbsent }: KeyCondition, stored: StoredValue | undefined): boolean {
  if (version !== undefined && version !== (stored?.version ?? 0)) return false
  if (revision !== undefined && revision !== (stored?.revision ?? 0)) return false
  if (value !== undefined && (stored === undefined || !asBuffer(stored.value).equals(value))) return false
  return isAbsent === undefined || isAbsent === (stored === undefined)
}

/** What one operation did: a get what it found, a put the key's new version, a delete whether the key was there. */
export type StepResult =
  | { readonly kind: typeof StepKind.get; readonly found: StoredValue | undefined }
  | { readonly kind: typeof StepKind.put; readonly version: number }
  | { readonly kind: typeof StepKind.delete; readonly deleted: boolean }

/** Reads the results of a transaction by its operations; values are views. */
export function readStepResults(body: Uint8Array, { branches }: Pick<Transaction, 'branches'>): { succeeded: boolean; results: StepResult[] } {
  const reader = new Reader(body)
  const succeeded = reader.u8() === 1
  const results = branches[succeeded ? 0 : 1].map(({ kind }) => readStepResult(reader, kind))
  reader.end()
  return { succeeded, results }
}

function readStepResult(reader: Reader, kind: StepKind): StepResult {
  switch (kind) {
    case StepKind.put:
      return { kind, version: reader.varint() }
    case StepKind.delete:
      return { kind, deleted: reader.u8() === 1 }
    default: {
      const version = reader.varint()
      return { kind, found: version === 0 ? undefined : { version, revision: reader.varint(), value: reader.bytes() } }
    }
  }
}
