/**
 * Overlay: the part of a group's state that is newer than the state database: records by key, null for a deleted one.
 *
 * Keys are latin1 strings (`toLatin1`), so that string order is byte order.
 *
 * Invariants: 1. once `freeze`d no record changes; 2. `sortedKeys` is sorted and complete at the time of the call.
 */

/** What the state holds under a key; encoded only when it is flushed. */
export interface StateRecord {
  encode(): Uint8Array
  /** Roughly the bytes of memory that it holds. */
  readonly sizeBytes: number
}

/** What a Map entry and its key cost beside the record, roughly. */
const entryOverheadBytes = 100

export class Overlay {
  readonly records = new Map<string, StateRecord | null>()
  #bytes = 0
  #sorted: string[] = []
  /** Keys not yet in `#sorted`. */
  #fresh: string[] = []

  get bytes(): number {
    return this.#bytes
  }

  get size(): number {
    return this.records.size
  }

  get(key: string): StateRecord | null | undefined {
    return this.records.get(key)
  }

  set(key: string, record: StateRecord | null): void {
    const before = this.records.get(key)
    if (before === undefined) {
      this.#fresh.push(key)
      this.#bytes += key.length + entryOverheadBytes
    } else if (before !== null) {
      this.#bytes -= before.sizeBytes
    }
    if (record !== null) this.#bytes += record.sizeBytes
    this.records.set(key, record)
  }

  /** All keys in order. Costs a sort of what was added since the last call, and a merge. */
  sortedKeys(): readonly string[] {
    if (this.#fresh.length > 0) {
      this.#sorted = mergeSorted(this.#sorted, this.#fresh.sort())
      this.#fresh = []
    }
    return this.#sorted
  }
}

function mergeSorted(left: readonly string[], right: readonly string[]): string[] {
  if (left.length === 0) return [...right]
  const merged: string[] = new Array(left.length + right.length)
  let l = 0
  let r = 0
  for (let i = 0; i < merged.length; i++) {
    merged[i] = r >= right.length || (l < left.length && left[l]! < right[r]!) ? left[l++]! : right[r++]!
  }
  return merged
}

/** The index of the first key that is not less than `key`. */
export function lowerBound(keys: readonly string[], key: string): number {
  let low = 0
  let high = keys.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (keys[middle]! < key) low = middle + 1
    else high = middle
  }
  return low
}
