/**
 * The history checker: is there an order of all operations that a single store, doing one after the other, could have produced, and that keeps every operation between its call
 * and its answer? (Linearizability, Herlihy and Wing 1990.) Keys are checked apart, which is enough because linearizability is local.
 *
 * The search is Lowe's just-in-time linearization ("Testing for linearizability", 2017): it walks over calls and answers in the order of time and keeps the set of all
 * configurations that are possible at that moment. A configuration is a state with those operations that have been placed in the order although their answer is yet to come. At an answer
 * the operation must be placed, after as few others as it takes; what cannot be placed then is a violation, and that moment is what the report shows. Memory follows the concurrency, not the length.
 *
 * Invariants: 1. an operation that does not change the state is placed as soon as it is legal, which never loses an order; 2. equal configurations are kept once, and one that has
 * used up more of the optional writes (those of unknown outcome) than another of the same state is dropped; 3. running out of the budget is a failure, never a pass.
 */
import type { Operation } from './history.js'
import { initialState, isPast, type KeyOperation, type KeyState, prepare, step, unreadValue } from './history-model.js'

export interface CheckOptions {
  /** How many configurations may be looked at, over all keys. Default 5 million. */
  readonly maxConfigurations?: number
}

export type CheckResult =
  | { readonly ok: true; readonly operations: number; readonly keys: number; readonly configurations: number }
  | { readonly ok: false; readonly reason: 'not-linearizable' | 'out-of-budget'; readonly key: string; readonly message: string }

/** Judges a history. Operations may come in any order; times must be from one clock. */
export function checkHistory(operations: readonly Operation[], options: CheckOptions = {}): CheckResult {
  const byKey = new Map<string, Operation[]>()
  for (const operation of operations) {
    const list = byKey.get(operation.key)
    if (list === undefined) byKey.set(operation.key, [operation])
    else list.push(operation)
  }
  const budget = { left: options.maxConfigurations ?? 5_000_000 }
  const allowed = budget.left
  for (const [key, list] of byKey) {
    const failure = checkKey(list, budget)
    if (failure !== null) return { ok: false, key, ...failure }
  }
  return { ok: true, operations: operations.length, keys: byKey.size, configurations: allowed - budget.left }
}

/** Throws with a report when the history is not linearizable, or when that could not be decided within the budget. */
export function assertLinearizable(operations: readonly Operation[], options: CheckOptions = {}): void {
  const result = checkHistory(operations, options)
  if (!result.ok)
    throw new Error(`history is ${result.reason === 'out-of-budget' ? 'not decided' : 'not linearizable'} at key "${result.key}": ${result.message}`)
}

interface Configuration {
  readonly state: KeyState
  /** Operations placed before their answer, as indexes in rising order. */
  readonly placed: readonly number[]
}

type Failure = { readonly reason: 'not-linearizable' | 'out-of-budget'; readonly message: string }

function checkKey(source: readonly Operation[], budget: { left: number }): Failure | null {
  const operations = prepare([...source].sort((left, right) => left.call - right.call))
  const neverDeleted = !operations.some(({ kind, conditionFailed }) => kind === 'delete' && !conditionFailed)
  const pendingPure: KeyOperation[] = []
  const pendingWrites: KeyOperation[] = []
  let configurations: Configuration[] = [{ state: initialState, placed: [] }]

  /** Places what does not change the state and is legal in it, and forgets optional writes that can have no effect any more. */
  const settle = (state: KeyState, placed: readonly number[]): Configuration => {
    let result = placed
    for (const operation of pendingPure) {
      if (!result.includes(operation.index) && step(state, operation) !== null) result = insert(result, operation.index)
    }
    const isOver = (index: number) => {
      const operation = operations[index] as KeyOperation
      return !operation.mandatory && isPast(state, operation, neverDeleted)
    }
    return { state, placed: result.some(isOver) ? result.filter((index) => !isOver(index)) : result }
  }

  for (const event of timeline(operations)) {
    const { operation } = event
    if (event.type === 'call') {
      if (operation.pure) {
        pendingPure.push(operation)
        configurations = configurations.map(({ state, placed }) => settle(state, placed))
      } else {
        pendingWrites.push(operation)
      }
      continue
    }

    // The answer: from every configuration, place this operation.
    const reached = new ConfigurationSet(operations)
    const visited = new Set<string>()
    const stack = [...configurations]
    while (stack.length > 0) {
      const { state, placed } = stack.pop() as Configuration
      if (placed.includes(operation.index)) {
        reached.add({ state, placed: placed.filter((index) => index !== operation.index) })
        continue
      }
      let unreadTried = false
      for (const write of pendingWrites) {
        if (placed.includes(write.index)) continue
        if (isInterchangeable(write)) {
          // Which one of those is placed makes no difference: the first that is left stands for all.
          if (unreadTried) continue
          unreadTried = true
        }
        const next = step(state, write)
        // An optional write without effect need not be placed.
        if (next === null || (next === state && !write.mandatory)) continue
        const configuration = settle(next, insert(placed, write.index))
        const key = configurationKey(configuration)
        if (visited.has(key)) continue
        visited.add(key)
        if (budget.left-- <= 0) return { reason: 'out-of-budget', message: `the search was given up at ${describe(operation.source)}` }
        stack.push(configuration)
      }
    }
    remove(operation.pure ? pendingPure : pendingWrites, operation)
    const before = configurations
    configurations = reached.all()
    if (configurations.length === 0)
      return { reason: 'not-linearizable', message: report(operation, before, [...pendingPure, ...pendingWrites], operations) }
  }
  return null
}

/** Configurations, each once, and none that is worse than another. */
class ConfigurationSet {
  readonly #operations: readonly KeyOperation[]
  /** By the state and the mandatory part: the sets of optional writes used, none of which contains another. */
  readonly #groups = new Map<string, { readonly configuration: Configuration; readonly optional: readonly number[] }[]>()

  constructor(operations: readonly KeyOperation[]) {
    this.#operations = operations
  }

  add(configuration: Configuration): void {
    const isMandatory = (index: number) => (this.#operations[index] as KeyOperation).mandatory
    const mandatory = configuration.placed.filter(isMandatory)
    const optional = configuration.placed.filter((index) => !isMandatory(index))
    const key = configurationKey({ state: configuration.state, placed: mandatory })
    const group = this.#groups.get(key) ?? []
    if (group.some((other) => other.optional.every((index) => optional.includes(index)))) return
    const kept = group.filter((other) => !optional.every((index) => other.optional.includes(index)))
    kept.push({ configuration, optional })
    this.#groups.set(key, kept)
  }

  all(): Configuration[] {
    return [...this.#groups.values()].flatMap((group) => group.map(({ configuration }) => configuration))
  }
}

/** A put of unknown outcome whose value nobody has read: like any other of that kind. */
function isInterchangeable(operation: KeyOperation): boolean {
  const { kind, mandatory, value, ifVersion, ifRevision } = operation
  return kind === 'put' && !mandatory && value === unreadValue && ifVersion === undefined && ifRevision === undefined
}

interface TimelineEvent {
  readonly type: 'call' | 'answer'
  readonly operation: KeyOperation
  readonly atMs: number
}

/** Calls, and the answers of mandatory operations, in time; at the same time calls come first, so that doubt about the order means concurrent. */
function timeline(operations: readonly KeyOperation[]): TimelineEvent[] {
  const events: TimelineEvent[] = []
  for (const operation of operations) {
    events.push({ type: 'call', operation, atMs: operation.source.call })
    if (operation.mandatory) events.push({ type: 'answer', operation, atMs: operation.source.ret ?? Number.POSITIVE_INFINITY })
  }
  return events.sort((left, right) => {
    if (left.atMs !== right.atMs) return left.atMs - right.atMs
    return left.type === right.type ? 0 : left.type === 'call' ? -1 : 1
  })
}

function configurationKey({ state, placed }: Configuration): string {
  return `${state.version},${state.value},${state.revision},${state.floor}|${placed.join()}`
}

function insert(sorted: readonly number[], value: number): number[] {
  const result = [...sorted]
  let position = result.length
  while (position > 0 && (result[position - 1] as number) > value) position--
  result.splice(position, 0, value)
  return result
}

function remove(list: KeyOperation[], operation: KeyOperation): void {
  list.splice(list.indexOf(operation), 1)
}

function describe(operation: Operation): string {
  return JSON.stringify(operation)
}

function report(
  operation: KeyOperation,
  before: readonly Configuration[],
  pending: readonly KeyOperation[],
  operations: readonly KeyOperation[],
): string {
  const values = new Map(operations.map(({ value, source }) => [value, source.value]))
  const states = before
    .slice(0, 5)
    .map(
      ({ state }) =>
        `version ${state.version} = ${state.value === unreadValue ? 'a value that no get has shown' : JSON.stringify(values.get(state.value) ?? null)}`,
    )
  const lines = [`no order explains the answer of ${describe(operation.source)}`]
  lines.push(`possible before: ${states.join('; ')}`)
  const others = pending.filter((other) => other !== operation).slice(-20)
  lines.push(others.length === 0 ? 'nothing else was under way' : `under way: ${others.map(({ source }) => describe(source)).join(' ')}`)
  return lines.join('\n  ')
}
