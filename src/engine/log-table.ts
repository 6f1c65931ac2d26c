/**
 * LogTable: where the records of one group's log start, how large they are and what their checksums are, in memory, so that compaction and truncation need not
 * read the database. 24 bytes a record, and a record is a whole write of the group.
 *
 * Invariant: first indexes rise strictly; `bytes` is the sum over all records that are listed.
 */
export class LogTable {
  #firstIndexes: number[] = []
  #sizes: number[] = []
  #checksums: number[] = []
  /** Records before this position are gone. */
  #head = 0
  #bytes = 0

  /** Records listed. */
  get count(): number {
    return this.#firstIndexes.length - this.#head
  }

  /** Bytes of their values. */
  get bytes(): number {
    return this.#bytes
  }

  /** First index of the newest record; 0 when there is none. */
  get lastFirstIndex(): number {
    return this.count === 0 ? 0 : this.#firstIndexes[this.#firstIndexes.length - 1]!
  }

  /** Checksum of the newest record; 0 when there is none. */
  get lastChecksum(): number {
    return this.count === 0 ? 0 : this.#checksums[this.#checksums.length - 1]!
  }

  add(firstIndex: number, bytes: number, checksum: number): void {
    this.#firstIndexes.push(firstIndex)
    this.#sizes.push(bytes)
    this.#checksums.push(checksum)
    this.#bytes += bytes
  }

  /** Takes out the records that start at `index` or later; calls back with the first index of each. */
  truncate(index: number, onRemoved: (firstIndex: number) => void): void {
    while (this.lastFirstIndex >= index && this.count > 0) {
      onRemoved(this.#firstIndexes.pop()!)
      this.#bytes -= this.#sizes.pop()!
      this.#checksums.pop()
    }
  }

  /**
   * Takes out the records that end before `index`: all before the last one that starts at `index` or earlier. Returns the checksum of the last one that
   * was taken out, `before` when none was.
   */
  dropBefore(index: number, before: number): number {
    const kept = this.#position(index)
    if (kept <= this.#head) return before
    for (let at = this.#head; at < kept; at++) this.#bytes -= this.#sizes[at]!
    const checksum = this.#checksums[kept - 1]!
    this.#head = kept
    if (this.#head > 1000 && this.#head > this.#firstIndexes.length / 2) {
      this.#firstIndexes = this.#firstIndexes.slice(this.#head)
      this.#sizes = this.#sizes.slice(this.#head)
      this.#checksums = this.#checksums.slice(this.#head)
      this.#head = 0
    }
    return checksum
  }

  /** First index of the oldest record; `otherwise` when there is none. */
  oldestFirstIndex(otherwise: number): number {
    return this.count === 0 ? otherwise : this.#firstIndexes[this.#head]!
  }

  /** The least index such that the records that start after it hold at most `maxBytes`; the index before the oldest record when all fit. */
  indexBeforeLast(maxBytes: number): number {
    let bytes = 0
    let at = this.#firstIndexes.length
    while (at > this.#head && bytes + this.#sizes[at - 1]! <= maxBytes) bytes += this.#sizes[--at]!
    return at === this.#firstIndexes.length ? this.lastFirstIndex : this.#firstIndexes[at]! - 1
  }

  /** Bytes of the records that start at `index` or earlier, but for the last of them: what a compaction to `index - 1` would free. */
  bytesBefore(index: number): number {
    const kept = this.#position(index)
    let bytes = 0
    for (let at = this.#head; at < kept; at++) bytes += this.#sizes[at]!
    return bytes
  }

  /** Position of the last record that starts at `index` or earlier; the head's when there is none. */
  #position(index: number): number {
    let low = this.#head
    let high = this.#firstIndexes.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#firstIndexes[middle]! <= index) low = middle + 1
      else high = middle
    }
    return Math.max(low - 1, this.#head)
  }
}
