/**
 * The clients of a plan: real KV clients, in members and in nodes without data. Each operation is written into a history; what came of it is compared with what the log says.
 *
 * Invariants: 1. the value of each put is unique, so that what a read shows and what the log holds can be traced to one operation; 2. an operation whose process dies stays of unknown outcome.
 */
import { ClosedError, ConditionFailedError, OutcomeUnknownError, OverloadedError, UnavailableError } from '../../base/errors.js'
import type { BatchOperation, KV, TxnOperation } from '../../engine/kv.js'
import { type History, recordHistory } from '../history.js'
import { countersFrom, keysPerTag, type PlannedOperation, type PlannedStep } from './plan.js'
import { describeError, type SimulatedNode } from './simulated-node.js'
import type { SimulatedProcess, World } from './world.js'

export interface WorkloadEnvironment {
  readonly world: World
  readonly history: History
  /** The node of a client. */
  home(client: number): SimulatedNode
  violation(invariant: string, message: string): void
  trace(node: string, event: string, detail?: string): void
}

/** The name of a key: plain, with the tag that it shares with others, or of a counter. */
export function keyName(number: number): string {
  if (number >= countersFrom) return `counter-${number - countersFrom}`
  return number < keysPerTag ? `key-${number}` : `{tag-${Math.floor(number / keysPerTag)}}-${number % keysPerTag}`
}

/** What the names of the keys of a tag begin with. */
export function keyPrefix(number: number): string {
  return `{tag-${Math.floor(number / keysPerTag)}}`
}

export class NodeWorkload {
  readonly counts: Record<string, number> = {}
  readonly #environment: WorkloadEnvironment
  /** By client: the versions that it saw last, by key. */
  readonly #seen = new Map<number, Map<number, number>>()
  /** Operations that wait, by the process that asked. */
  readonly #pending = new Map<SimulatedProcess, number>()
  #stopped = false

  constructor(environment: WorkloadEnvironment, operations: readonly PlannedOperation[]) {
    this.#environment = environment
    operations.forEach((operation, number) => {
      environment.world.schedule(operation.atUs, () => {
        if (!this.#stopped) this.#begin(operation, number)
      })
    })
  }

  stop(): void {
    this.#stopped = true
  }

  /** Operations that still wait for their answers, those aside whose process is dead. */
  get pending(): number {
    let sum = 0
    for (const [process, count] of this.#pending) if (process.alive) sum += count
    return sum
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1
  }

  #begin(operation: PlannedOperation, number: number): void {
    const home = this.#environment.home(operation.client)
    const { process, node } = home
    if (process === null || node === null) return this.#count('not-asked')
    process.complete(0, () => {
      this.#count('asked')
      this.#pending.set(process, (this.#pending.get(process) ?? 0) + 1)
      const kv = recordHistory(node.kv, this.#environment.history, `client-${operation.client}`)
      const ended = this.#run(kv, operation, number, process).then(
        () => {
          this.#count(`${operation.op}-ok`)
          if (operation.consistency !== 'linearizable') this.#count(`${operation.consistency}-ok`)
        },
        (error: unknown) => this.#onError(operation, error),
      )
      void ended.then(() => this.#pending.set(process, (this.#pending.get(process) ?? 0) - 1))
    })
  }

  #onError({ op, abortAfterMs }: PlannedOperation, error: unknown): void {
    if (error instanceof ConditionFailedError) this.#count(`${op}-condition-failed`)
    else if (error instanceof OutcomeUnknownError) this.#count(`${op}-unknown`)
    else if (error instanceof UnavailableError) this.#count(`${op}-unavailable`)
    else if (error instanceof OverloadedError) this.#count(`${op}-overloaded`)
    else if (error instanceof ClosedError) this.#count(`${op}-closed`)
    else if (abortAfterMs !== null && error instanceof Error && error.name === 'AbortError') this.#count(`${op}-aborted`)
    else this.#environment.violation('K4', `a ${op} was answered ${describeError(error)}`)
  }

  #versions(client: number): Map<number, number> {
    let versions = this.#seen.get(client)
    if (versions === undefined) {
      versions = new Map()
      this.#seen.set(client, versions)
    }
    return versions
  }

  #step({ kind, key }: PlannedStep, { client, valueBytes }: PlannedOperation, number: number): TxnOperation {
    if (kind === 'put') return { put: keyName(key), value: uniqueValue(client, number, valueBytes) }
    return kind === 'get' ? { get: keyName(key) } : { delete: keyName(key) }
  }

  async #run(kv: KV, operation: PlannedOperation, number: number, process: { schedule(delayMs: number, task: () => void): void }): Promise<void> {
    const { client, op, keys, valueBytes, condition, consistency, timeoutMs, abortAfterMs } = operation
    const versions = this.#versions(client)
    const key = keys[0]!
    let signal: AbortSignal | undefined
    if (abortAfterMs !== null) {
      const controller = new AbortController()
      signal = controller.signal
      process.schedule(abortAfterMs, () => controller.abort())
    }
    const wait = { timeoutMs, ...(signal === undefined ? {} : { signal }) }
    const ifVersion = condition === 'none' ? {} : { ifVersion: condition === 'absent' ? 0 : (versions.get(key) ?? 0) }
    try {
      switch (op) {
        case 'get': {
          const found = await kv.get(keyName(key), { ...wait, consistency })
          if (consistency !== 'stale') versions.set(key, found?.version ?? 0)
          return
        }
        case 'getMany': {
          const found = await kv.getMany(keys.map(keyName), { ...wait, consistency })
          if (consistency === 'stale') return
          for (const [position, each] of keys.entries()) versions.set(each, found[position]?.version ?? 0)
          return
        }
        case 'put': {
          const { version } = await kv.put(keyName(key), uniqueValue(client, number, valueBytes), { ...wait, ...ifVersion })
          versions.set(key, version)
          return
        }
        case 'txn': {
          const compare = condition === 'none' ? [] : [{ key: keyName(key), version: ifVersion.ifVersion }]
          const branches = [operation.steps, operation.otherwise].map((steps) => steps.map((step) => this.#step(step, operation, number)))
          const { succeeded, results } = await kv.txn({ if: compare, then: branches[0]!, else: branches[1]! }, wait)
          this.#count(succeeded ? 'txn-then' : 'txn-else')
          for (const [position, step] of (succeeded ? operation.steps : operation.otherwise).entries()) {
            const result = results[position]
            versions.set(step.key, result !== undefined && 'version' in result ? result.version : 0)
          }
          return
        }
        case 'batch':
          await kv.batch(
            operation.steps.map((step) => this.#step(step, operation, number) as BatchOperation),
            wait,
          )
          return
        case 'increment':
          versions.set(key, (await kv.increment(keyName(key), (number % 7) - 2, { ...wait, ...ifVersion })).version)
          return
        case 'getOrPut':
          versions.set(key, (await kv.getOrPut(keyName(key), uniqueValue(client, number, valueBytes), wait)).version)
          return
        case 'update': {
          const value = uniqueValue(client, number, valueBytes)
          let attempts = 0
          // Each attempt writes a value of its own; now and then it deletes, or leaves things as they are.
          const change = () => (number % 5 === 0 ? null : number % 7 === 0 ? undefined : `${value}!${attempts++}`)
          versions.set(key, (await kv.update(keyName(key), change, wait))?.version ?? 0)
          return
        }
        case 'count':
          await kv.count({ gte: keyName(key), limit: keys[1]!, ...wait, consistency })
          return
        case 'delete':
          await kv.delete(keyName(key), { ...wait, ...ifVersion })
          versions.set(key, 0)
          return
        case 'scan': {
          for await (const entry of kv.scan({ gte: keyName(key), limit: keys[1]!, ...wait, consistency })) void entry
          return
        }
        default:
          op satisfies never
      }
    } catch (error) {
      if (error instanceof ConditionFailedError) versions.set(key, error.actualVersion)
      throw error
    }
  }
}

/** A value that no other put writes. */
export function uniqueValue(client: number, number: number, bytes: number): string {
  return `${client}.${number}${'.'.repeat(bytes)}`
}
