/**
 * The shape of a replica's log for comparing: the term and a hash of the whole prefix at each index.
 *
 * Invariants: 1. two logs with the same prefix hash at an index hold the same entries up to it (32-bit hashes: up to chance);
 * 2. index 0 is the empty prefix, with term 0 and hash 0.
 */
import type { Entry } from '../../raft/types.js'

/** Mixes one 32-bit value into a hash (the step of MurmurHash3). */
export function mixHash(hash: number, value: number): number {
  let k = Math.imul(value, 0xcc9e2d51)
  k = (k << 15) | (k >>> 17)
  let h = hash ^ Math.imul(k, 0x1b873593)
  h = (h << 13) | (h >>> 19)
  return (Math.imul(h, 5) + 0xe6546b64) | 0
}

/** FNV-1a over bytes. */
export function hashBytes(bytes: Uint8Array): number {
  let hash = 0x811c9dc5 | 0
  for (let position = 0; position < bytes.length; position++) hash = Math.imul(hash ^ (bytes[position] as number), 0x01000193)
  return hash
}

/** The hash of a prefix that ends with this entry. */
export function extendHash(prefixHash: number, entry: Entry): number {
  return mixHash(mixHash(mixHash(prefixHash, entry.term), entry.kind), hashBytes(entry.data))
}

/** Terms and prefix hashes of one log. */
export class LogShape {
  readonly #terms: number[] = [0]
  readonly #hashes: number[] = [0]

  get lastIndex(): number {
    return this.#terms.length - 1
  }

  get lastTerm(): number {
    return this.#terms[this.#terms.length - 1] as number
  }

  /** The term at an index; undefined beyond the last. */
  termAt(index: number): number | undefined {
    return this.#terms[index]
  }

  /** The hash of the prefix up to an index; undefined beyond the last. */
  hashAt(index: number): number | undefined {
    return this.#hashes[index]
  }

  /** Adds the next entry and returns the hash of the prefix that it ends. */
  append(entry: Entry): number {
    const hash = extendHash(this.#hashes[this.#hashes.length - 1] as number, entry)
    this.push(entry.term, hash)
    return hash
  }

  /** Adds an entry whose prefix hash is known. */
  push(term: number, hash: number): void {
    this.#terms.push(term)
    this.#hashes.push(hash)
  }

  /** Removes the entries from this index on. */
  truncateFrom(index: number): void {
    if (index > this.lastIndex) return
    this.#terms.length = index
    this.#hashes.length = index
  }

  /** A snapshot stands for everything up to an index; what follows stays or not. */
  restore(index: number, prefix: LogShape, keepsLater: boolean): void {
    const terms = keepsLater ? this.#terms.slice(index + 1) : []
    const hashes = keepsLater ? this.#hashes.slice(index + 1) : []
    this.#terms.length = 0
    this.#hashes.length = 0
    for (let position = 0; position <= index; position++) this.push(prefix.#terms[position] as number, prefix.#hashes[position] as number)
    for (const [position, term] of terms.entries()) this.push(term, hashes[position] as number)
  }

  /** Makes this the same as another. */
  copyFrom(other: LogShape): void {
    this.#terms.length = 0
    this.#hashes.length = 0
    for (let index = 0; index <= other.lastIndex; index++) this.push(other.#terms[index] as number, other.#hashes[index] as number)
  }
}
