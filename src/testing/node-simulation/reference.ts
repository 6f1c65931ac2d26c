/**
 * ReferenceMachine: what a group's log means, written down a second time in the plainest way: a Map of keys, and every answer ever given to a request, for ever.
 *
 * The replicas' answers at each index are compared with this one's, so a state that lost or repeated anything shows at the next write that touches it.
 *
 * Invariant: it is fed with each committed entry once, in order; a request (session, sequence) has an effect once (K3).
 */

import { toLatin1 } from '../../base/bytes.js'
import { type CommandResult, CommandStatus, readBatch } from '../../engine/command.js'
import type { KnownWrite } from './known-order.js'

export interface ReferenceValue {
  readonly version: number
  readonly revision: number
  /** One unit a byte. */
  readonly value: string
  readonly shard: number
}

/** When a write took effect. */
export interface Effect {
  readonly index: number
  readonly version: number
  readonly revision: number
}

export class ReferenceMachine {
  /** By key, as text. */
  readonly values = new Map<string, ReferenceValue>()
  /** By `key value`: the effects of puts. Values of the workload are unique, so there is one at most. */
  readonly puts = new Map<string, Effect[]>()
  /** By key: the revisions of the deletes that took effect. */
  readonly deletes = new Map<string, Set<number>>()
  /** By key: all its writes, in order. */
  readonly writes = new Map<string, KnownWrite[]>()
  readonly #revisions = new Map<number, number>()
  readonly #answers = new Map<string, CommandResult>()
  /** By session and shard: requests below are over. */
  readonly #lowWaters = new Map<string, number>()
  /** Commands that repeated an earlier request. */
  repeats = 0
  /** The expected answers at each index. */
  readonly #expected: (readonly CommandResult[])[] = []
  #applied = 0

  get appliedIndex(): number {
    return this.#applied
  }

  /** The answers that the entry at this index must get; its bytes are needed when it is the next one. */
  expect(index: number, data: Uint8Array): readonly CommandResult[] {
    if (index > this.#applied) {
      this.#applied = index
      this.#expected[index] = this.#apply(index, data)
    }
    return this.#expected[index] ?? []
  }

  /** Whether a replica's answers are right. */
  agrees(index: number, data: Uint8Array, results: readonly CommandResult[]): boolean {
    const expected = this.expect(index, data)
    return (
      expected.length === results.length &&
      expected.every((answer, position) => {
        const given = results[position]!
        return given.status === answer.status && given.version === answer.version && given.revision === answer.revision
      })
    )
  }

  #apply(index: number, data: Uint8Array): CommandResult[] {
    const { session, lowWater, commands } = readBatch(data)
    return commands.map((command) => {
      const place = `${toLatin1(session)}/${command.shard}`
      const lowest = this.#lowWaters.get(place) ?? 0
      const request = `${place}/${command.sequence}`
      const first = this.#answers.get(request)
      if (first !== undefined) this.repeats++
      // The client has given this request up: whether it came before or not, it has no effect from now on.
      if (command.sequence < lowest) return { status: CommandStatus.stale, version: 0, revision: 0 }
      if (first !== undefined) return first
      this.#lowWaters.set(place, Math.max(lowest, lowWater))
      const key = Buffer.from(command.key).toString('utf8')
      const before = this.values.get(key)
      const version = before?.version ?? 0
      const revision = before?.revision ?? 0
      const shardRevision = this.#revisions.get(command.shard) ?? 0
      let answer: CommandResult
      if (
        (command.ifVersion !== undefined && command.ifVersion !== version) ||
        (command.ifRevision !== undefined && command.ifRevision !== revision)
      ) {
        answer = { status: CommandStatus.conditionFailed, version, revision }
      } else if (command.value === null && before === undefined) {
        answer = { status: CommandStatus.absent, version: 0, revision: shardRevision }
      } else {
        const raised = shardRevision + 1
        this.#revisions.set(command.shard, raised)
        const writes = this.writes.get(key) ?? []
        writes.push({ index, revision: raised, version: command.value === null ? 0 : version + 1 })
        this.writes.set(key, writes)
        if (command.value === null) {
          this.values.delete(key)
          const deletes = this.deletes.get(key) ?? new Set()
          deletes.add(raised)
          this.deletes.set(key, deletes)
          answer = { status: CommandStatus.ok, version: 0, revision: raised }
        } else {
          const value = toLatin1(command.value)
          this.values.set(key, { version: version + 1, revision: raised, value, shard: command.shard })
          answer = { status: CommandStatus.ok, version: version + 1, revision: raised }
          const effects = this.puts.get(`${key} ${value}`) ?? []
          effects.push({ index, version: version + 1, revision: raised })
          this.puts.set(`${key} ${value}`, effects)
        }
      }
      this.#answers.set(request, answer)
      return answer
    })
  }
}
