/**
 * SortedRecords: keys and values in byte order, with snapshots that cost nothing until somebody writes.
 *
 * Invariants: 1. keys are latin1 strings, one unit a byte, so that string order is byte order; 2. what a snapshot shows never changes.
 */

/** How a database looked at one moment. */
export interface RecordView {
  readonly keys: readonly string[]
  readonly values: readonly Uint8Array[]
}

/** The first position whose key is not below this one. */
export function lowerBoundOf(keys: readonly string[], key: string): number {
  let low = 0
  let high = keys.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (keys[middle]! < key) low = middle + 1
    else high = middle
  }
  return low
}

export function valueIn({ keys, values }: RecordView, key: string): Uint8Array | undefined {
  const position = lowerBoundOf(keys, key)
  return keys[position] === key ? values[position] : undefined
}

export class SortedRecords {
  #keys: string[] = []
  #values: Uint8Array[] = []
  /** Somebody holds the arrays as they are. */
  #shared = false

  get size(): number {
    return this.#keys.length
  }

  get(key: string): Uint8Array | undefined {
    return valueIn({ keys: this.#keys, values: this.#values }, key)
  }

  view(): RecordView {
    this.#shared = true
    return { keys: this.#keys, values: this.#values }
  }

  #own(): void {
    if (!this.#shared) return
    this.#keys = this.#keys.slice()
    this.#values = this.#values.slice()
    this.#shared = false
  }

  put(key: string, value: Uint8Array): void {
    this.#own()
    const keys = this.#keys
    if (keys.length === 0 || keys[keys.length - 1]! < key) {
      keys.push(key)
      this.#values.push(value)
      return
    }
    const position = lowerBoundOf(keys, key)
    if (keys[position] === key) this.#values[position] = value
    else {
      keys.splice(position, 0, key)
      this.#values.splice(position, 0, value)
    }
  }

  delete(key: string): void {
    const position = lowerBoundOf(this.#keys, key)
    if (this.#keys[position] !== key) return
    this.#own()
    this.#keys.splice(position, 1)
    this.#values.splice(position, 1)
  }

  /** A copy that goes its own way. */
  clone(): SortedRecords {
    const copy = new SortedRecords()
    copy.#keys = this.#keys.slice()
    copy.#values = this.#values.slice()
    return copy
  }
}
