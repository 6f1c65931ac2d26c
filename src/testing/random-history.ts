/** Made histories, linearizable by construction: what the history checker is measured with, and what anomalies are planted into. */
import type { Operation } from './history.js'
import { SeededRandom } from './seeded-random.js'

export interface RandomHistoryOptions {
  readonly operations: number
  readonly keys: number
  readonly seed?: number
  /** Of the writes; they took effect or not, by the toss of a coin. Default 0.05. */
  readonly unknown?: number
  /** Of the operations. Default 0.05. */
  readonly deletes?: number
}

/** Operations of 64 clients in the order in which they took effect, each reaching over up to eight others of its key: half of them reads, half of the writes conditional, some refused. */
export function randomHistory({ operations: count, keys, seed = 3, unknown = 0.05, deletes = 0.05 }: RandomHistoryOptions): Operation[] {
  const random = new SeededRandom(seed, 'random history')
  const states = Array.from({ length: keys }, () => ({ value: null as string | null, version: 0, revision: 0 }))
  const operations: Operation[] = []
  for (let number = 0; number < count; number++) {
    const state = states[number % keys]!
    const base = {
      client: `c${number % 64}`,
      call: number - random.next() * 4 * keys,
      ret: number + random.next() * 4 * keys,
      key: `key-${number % keys}`,
      result: 'ok' as const,
    }
    const kind = random.next()
    if (kind < 0.5) {
      const { value, version, revision } = state
      operations.push({ ...base, op: 'get', value, version, ...(version === 0 ? {} : { revision }) })
      continue
    }
    const op = kind > 1 - deletes ? 'delete' : 'put'
    const value = op === 'put' ? `value ${number}` : null
    const asked = random.chance(0.5) ? { ifVersion: random.chance(0.1) ? state.version + 1 : state.version } : {}
    const holds = asked.ifVersion === undefined || asked.ifVersion === state.version
    const isUnknown = random.chance(unknown)
    const { version, revision } = state
    const deleted = version > 0
    if (holds && (!isUnknown || random.chance(0.5)) && (op === 'put' || deleted)) {
      state.value = value
      state.version = op === 'put' ? version + 1 : 0
      state.revision = op === 'put' ? number + 1 : 0
    }
    if (isUnknown) operations.push({ ...base, ...asked, op, value, ret: null, version: null, result: 'unknown' })
    else if (!holds) operations.push({ ...base, ...asked, op, value, version, result: 'condition-failed', ...(deleted ? { revision } : {}) })
    else if (op === 'put') operations.push({ ...base, ...asked, op, value, version: state.version, revision: state.revision })
    else operations.push({ ...base, ...asked, op, value, version: 0, deleted, ...(deleted ? { revision: number + 1 } : {}) })
  }
  return operations
}
