/**
 * ReferenceMachine: what a group's log means, written down a second time in the plainest way: a Map of keys, and every request with its answer and its effects, for ever.
 *
 * The replicas' answers at each index are compared with this one's, so a state that lost or repeated anything shows at the next write that touches it. What clients were told is
 * compared with it too (`requests.ts`): it knows the truth of each unknown outcome.
 *
 * It forgets sessions as the log says, but not their answers: a request that has an effect twice shows as one, whenever that is.
 *
 * Invariants: 1. it is fed with each committed entry once, in order; 2. a request (session, sequence) has an effect once (K3); 3. each write raises the version of its key by one,
 * beginning at 1 (K2); 4. all writes of one command have one revision, and are seen together or not at all (K6).
 */

import { toLatin1 } from '../../base/bytes.js'
import { type Command, type CommandResult, CommandStatus, CommandType, readBatch } from '../../engine/command.js'
import { isExpiryEntry, readExpiryEntry } from '../../engine/expiry-entry.js'
import { decodeInteger } from '../../engine/integer.js'
import { type KeyCondition, readStepResults, readTransaction, StepKind, type Transaction } from '../../engine/transaction.js'
import type { KnownWrite } from './known-order.js'

export interface ReferenceValue {
  readonly version: number
  readonly revision: number
  /** One unit a byte. */
  readonly value: string
  readonly shard: number
}

/** What a request did to one key. */
export interface Effect extends KnownWrite {
  readonly key: string
}

export interface KnownAnswer {
  readonly status: CommandStatus
  readonly version: number
  readonly revision: number
  /** What its body says, in a form that can be compared; undefined for none. */
  readonly told: string | undefined
}

export interface KnownRequest {
  readonly index: number
  readonly answer: KnownAnswer
  readonly effects: readonly Effect[]
}

/** The name of a request. */
export function requestName(session: Uint8Array, shard: number, sequence: number): string {
  return `${toLatin1(session)}/${shard}/${sequence}`
}

/** What the body of an answer says, in a form that can be compared. */
export function toldBy({ type, value }: Pick<Command, 'type' | 'value'>, body: Uint8Array | undefined): string | undefined {
  if (body === undefined) return undefined
  if (type !== CommandType.transaction) return toLatin1(body)
  const { succeeded, results } = readStepResults(body, readTransaction(value!))
  const steps = results.map((result) => {
    if (result.kind !== StepKind.get) return result.kind === StepKind.put ? result.version : result.deleted
    return result.found && { ...result.found, value: toLatin1(result.found.value) }
  })
  return describeSteps(succeeded, steps)
}

function describeSteps(succeeded: boolean, steps: readonly unknown[]): string {
  return JSON.stringify([succeeded, ...steps.map((step) => step ?? null)])
}

interface Expected {
  readonly answer: KnownAnswer
  /** The request had come before. */
  readonly isRepeat: boolean
}

/** When, in truth, an entry was proposed: first, and last. */
export interface Proposed {
  readonly firstUs: number
  readonly lastUs: number
}

interface ReferenceSession {
  readonly floor: number
  birth: number
  touchedMs: number
  touchedUs: number
  lowWater: number
}

interface ReferenceShard {
  revision: number
  horizon: number
  forgottenMs: number
}

interface Held {
  readonly version: number
  readonly value: string
}

const least = -(2n ** 63n)
const greatest = 2n ** 63n - 1n
const number = /^(0|-?[1-9][0-9]{0,18})$/

const keyText = (key: Uint8Array): string => Buffer.from(key).toString('utf8')

export class ReferenceMachine {
  /** By key, as text. */
  readonly values = new Map<string, ReferenceValue>()
  /** By key: all its writes, in order. */
  readonly writes = new Map<string, KnownWrite[]>()
  /** By name: every request that was ever applied. */
  readonly requests = new Map<string, KnownRequest>()
  readonly #shards = new Map<number, ReferenceShard>()
  /** By session and shard. */
  readonly #sessions = new Map<string, ReferenceSession>()
  readonly #onExpired: (what: string, livedUs: number, ttlMs: number) => void
  #timeMs = 0
  /** Sessions that were forgotten for their silence, and requests that came too late for theirs. */
  forgotten = 0
  refusals = 0
  /** Commands that repeated an earlier request. */
  repeats = 0
  /** The expected answers at each index. */
  readonly #expected: (readonly Expected[])[] = []
  #applied = 0

  /** `onExpired` is told of everything that expires: for how long it has lived in truth, and was to live. */
  constructor(onExpired: (what: string, livedUs: number, ttlMs: number) => void) {
    this.#onExpired = onExpired
  }

  get appliedIndex(): number {
    return this.#applied
  }

  /** The answers that the entry at this index must get; its bytes are needed when it is the next one. */
  expect(index: number, data: Uint8Array, proposed: Proposed): readonly Expected[] {
    if (index > this.#applied) {
      this.#applied = index
      this.#expected[index] = this.#apply(index, data, proposed)
    }
    return this.#expected[index] ?? []
  }

  /** The invariant that a replica's answers break; null when they are right. */
  problemOf(index: number, data: Uint8Array, results: readonly CommandResult[], proposed: Proposed): 'K2' | 'K3' | 'K4' | 'R14' | null {
    const expected = this.expect(index, data, proposed)
    const commands = isExpiryEntry(data) ? [] : readBatch(data).commands
    if (expected.length !== results.length) return 'R14'
    for (const [position, { answer, isRepeat }] of expected.entries()) {
      const { status, version, revision, body } = results[position]!
      const isSame = status === answer.status && version === answer.version && revision === answer.revision
      if (isSame && toldBy(commands[position]!, body) === answer.told) continue
      if (isRepeat) return 'K3'
      if (status !== answer.status) return 'K4'
      return version === answer.version ? 'R14' : 'K2'
    }
    return null
  }

  #apply(index: number, data: Uint8Array, proposed: Proposed): Expected[] {
    if (isExpiryEntry(data)) {
      this.#expire(data, proposed)
      return []
    }
    const { stampMs, session, birth, lowWater, commands } = readBatch(data)
    this.#timeMs = Math.max(this.#timeMs, stampMs)
    return commands.map((command) => {
      const place = `${toLatin1(session)}/${command.shard}`
      const shard = this.#shard(command.shard)
      const record = this.#sessions.get(place) ?? { floor: shard.horizon, birth: 0, touchedMs: 0, touchedUs: 0, lowWater: 0 }
      if (birth <= record.floor) {
        this.refusals++
        return { answer: { status: CommandStatus.expired, version: shard.forgottenMs, revision: shard.horizon, told: undefined }, isRepeat: false }
      }
      const name = requestName(session, command.shard, command.sequence)
      const first = this.requests.get(name)
      const isRepeat = first !== undefined
      if (isRepeat) this.repeats++
      // The client has given this request up: whether it came before or not, it has no effect from now on.
      if (command.sequence < record.lowWater) return { answer: { status: CommandStatus.stale, version: 0, revision: 0, told: undefined }, isRepeat }
      if (first !== undefined) {
        // What had no effect is not kept with all that it told.
        const isKept = first.answer.told === undefined || first.effects.length > 0
        return { answer: isKept ? first.answer : { status: CommandStatus.again, version: 0, revision: 0, told: undefined }, isRepeat }
      }
      record.lowWater = Math.max(record.lowWater, lowWater)
      record.birth = Math.max(record.birth, birth)
      record.touchedMs = this.#timeMs
      record.touchedUs = proposed.firstUs
      this.#sessions.set(place, record)
      const { answer, changes } = this.#execute(command)
      const effects = this.#change(index, command.shard, changes)
      this.requests.set(name, { index, answer, effects })
      return { answer, isRepeat }
    })
  }

  /** Makes the changes (null deletes), which share a revision. */
  #change(index: number, shard: number, changes: ReadonlyMap<string, Held | null>): Effect[] {
    if (changes.size === 0) return []
    const revision = ++this.#shard(shard).revision
    return [...changes].map(([key, held]) => {
      const effect: Effect = { key, index, revision, version: held?.version ?? 0, value: held?.value ?? null }
      if (held === null) this.values.delete(key)
      else this.values.set(key, { ...held, revision, shard })
      const writes = this.writes.get(key)
      if (writes === undefined) this.writes.set(key, [effect])
      else writes.push(effect)
      return effect
    })
  }

  #shard(shard: number): ReferenceShard {
    let state = this.#shards.get(shard)
    if (state === undefined) {
      state = { revision: 0, horizon: 0, forgottenMs: 0 }
      this.#shards.set(shard, state)
    }
    return state
  }

  #expire(data: Uint8Array, { lastUs }: Proposed): void {
    const { stampMs, items } = readExpiryEntry(data)
    this.#timeMs = Math.max(this.#timeMs, stampMs)
    for (const { shard, sinceMs, ttlMs, id } of items) {
      const place = `${toLatin1(id)}/${shard}`
      const record = this.#sessions.get(place)
      if (record === undefined || record.touchedMs !== sinceMs || this.#timeMs <= sinceMs + ttlMs) continue
      this.#onExpired(`a session of shard ${shard}`, lastUs - record.touchedUs, ttlMs)
      const state = this.#shard(shard)
      state.horizon = Math.max(state.horizon, record.birth)
      state.forgottenMs = Math.max(state.forgottenMs, sinceMs + 1)
      this.#sessions.delete(place)
      this.forgotten++
    }
  }

  #execute(command: Command): { answer: KnownAnswer; changes: ReadonlyMap<string, Held | null> } {
    const { type, shard, fence } = command
    const without = (status: CommandStatus, version: number, revision: number, told?: string) => ({
      answer: { status, version, revision, told },
      changes: new Map<string, Held | null>(),
    })
    if (fence !== undefined) {
      const guard = this.values.get(keyText(fence.key))
      if ((guard?.revision ?? 0) !== fence.revision) return without(CommandStatus.fenced, guard?.version ?? 0, guard?.revision ?? 0)
    }
    const raised = this.#shard(shard).revision + 1
    if (type === CommandType.transaction) {
      const { told, changes } = this.#transact(readTransaction(command.value!), raised)
      const revision = changes.size === 0 ? raised - 1 : raised
      return { answer: { status: CommandStatus.ok, version: 0, revision, told }, changes }
    }
    const key = keyText(command.key)
    const before = this.values.get(key)
    const version = before?.version ?? 0
    const revision = before?.revision ?? 0
    if ((command.ifVersion ?? version) !== version || (command.ifRevision ?? revision) !== revision) {
      return without(CommandStatus.conditionFailed, version, revision)
    }
    switch (type) {
      case CommandType.put: {
        const held = { version: version + 1, value: toLatin1(command.value!) }
        return { answer: { status: CommandStatus.ok, version: version + 1, revision: raised, told: undefined }, changes: new Map([[key, held]]) }
      }
      case CommandType.delete:
        if (before === undefined) return without(CommandStatus.absent, 0, raised - 1)
        return { answer: { status: CommandStatus.ok, version: 0, revision: raised, told: undefined }, changes: new Map([[key, null]]) }
      case CommandType.increment: {
        const text = before?.value ?? '0'
        const isNumber = number.test(text) && BigInt(text) >= least && BigInt(text) <= greatest
        if (!isNumber) return without(CommandStatus.notANumber, version, revision)
        const sum = BigInt(text) + decodeInteger(command.value!)
        if (sum < least || sum > greatest) return without(CommandStatus.outOfRange, version, revision)
        const held = { version: version + 1, value: sum.toString() }
        return { answer: { status: CommandStatus.ok, version: version + 1, revision: raised, told: held.value }, changes: new Map([[key, held]]) }
      }
      default:
        return type satisfies never
    }
  }

  #transact({ wantsResults, compares, branches }: Transaction, raised: number): { told: string | undefined; changes: Map<string, Held | null> } {
    const succeeded = compares.every((compare) => this.#holds(compare))
    const changes = new Map<string, Held | null>()
    const steps = branches[succeeded ? 0 : 1].map(({ kind, key: bytes, value }) => {
      const key = keyText(bytes)
      const change = changes.get(key)
      const stored = this.values.get(key)
      const now = change === undefined ? stored && { ...stored } : change && { ...change, revision: raised }
      switch (kind) {
        case StepKind.put: {
          const version = (now?.version ?? 0) + 1
          changes.set(key, { version, value: toLatin1(value!) })
          return version
        }
        case StepKind.delete:
          if (stored === undefined) changes.delete(key)
          else changes.set(key, null)
          return now !== undefined && now !== null
        case StepKind.get:
          return now && { version: now.version, revision: now.revision, value: now.value }
        default:
          return kind satisfies never
      }
    })
    return { told: wantsResults ? describeSteps(succeeded, steps) : undefined, changes }
  }

  #holds({ key, version, revision, value, isAbsent }: KeyCondition): boolean {
    const stored = this.values.get(keyText(key))
    return (
      (version ?? stored?.version ?? 0) === (stored?.version ?? 0) &&
      (revision ?? stored?.revision ?? 0) === (stored?.revision ?? 0) &&
      (value === undefined || toLatin1(value) === stored?.value) &&
      (isAbsent ?? stored === undefined) === (stored === undefined)
    )
  }
}
