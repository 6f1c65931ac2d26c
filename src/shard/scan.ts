/**
 * Scan over all groups: pages of each group merged into one sequence in key order.
 *
 * Invariants: 1. every key of the range appears once, in byte order; 2. a group's next page is asked for when its last one is used up, so memory is bounded by one page a
 * group; 3. each page is a consistent, linearizable view of its group; a scan as a whole is not one point in time.
 */
import { asBuffer, toBytes } from '../base/bytes.js'
import { InvalidArgumentError } from '../base/errors.js'
import type { KeyLike, KeyValue, ScanOptions } from '../engine/kv.js'
import { type ScanEntry, ScanForm, type ScanPage, type ScanRequest } from '../engine/kv-protocol.js'

const firstPageEntries = 128
const pageEntries = 1000
const pageBytes = 512 * 1024
const countEntries = 10_000

type Page = Pick<ScanPage, 'entries' | 'count' | 'last' | 'more'>

export interface KeyRange {
  readonly gte: Uint8Array
  /** Null: to the end. */
  readonly lt: Uint8Array | null
}

/** The bounds of a scan as one half-open range. Throws InvalidArgumentError. */
export function rangeOf(options: Pick<ScanOptions, 'prefix' | 'gt' | 'gte' | 'lt' | 'lte'>): KeyRange {
  const lowers: Buffer[] = [Buffer.alloc(0)]
  const uppers: Buffer[] = []
  if (options.prefix !== undefined) {
    const end = prefixEnd(bound(options.prefix))
    lowers.push(bound(options.prefix))
    if (end !== null) uppers.push(end)
  }
  if (options.gte !== undefined) lowers.push(bound(options.gte))
  if (options.gt !== undefined) lowers.push(after(bound(options.gt)))
  if (options.lt !== undefined) uppers.push(bound(options.lt))
  if (options.lte !== undefined) uppers.push(after(bound(options.lte)))
  return { gte: lowers.sort(Buffer.compare).at(-1)!, lt: uppers.sort(Buffer.compare).at(0) ?? null }
}

function bound(key: KeyLike): Buffer {
  if (typeof key !== 'string' && !(key instanceof Uint8Array))
    throw new InvalidArgumentError(`Expected a bound of type string or Uint8Array, got ${typeof key}`)
  return asBuffer(toBytes(key))
}

/** The least key greater than this one. */
export function after(key: Uint8Array): Buffer {
  return Buffer.concat([key, Buffer.from([0])])
}

/** The least key that is greater than every key with this prefix; null when there is none. */
function prefixEnd(prefix: Buffer): Buffer | null {
  for (let at = prefix.length - 1; at >= 0; at--) {
    if (prefix[at]! === 0xff) continue
    const end = Buffer.from(prefix.subarray(0, at + 1))
    end[at]!++
    return end
  }
  return null
}

/** The pages of one group, one after the other. */
class GroupPages {
  readonly #fetch: (request: ScanRequest) => Promise<Page>
  readonly #reverse: boolean
  readonly #form: ScanForm
  #range: KeyRange
  #more = true
  #pages = 0

  constructor(range: KeyRange, reverse: boolean, form: ScanForm, fetch: (request: ScanRequest) => Promise<Page>) {
    this.#range = range
    this.#reverse = reverse
    this.#form = form
    this.#fetch = fetch
  }

  get more(): boolean {
    return this.#more
  }

  /** Fetches the next page; `wanted` entries at most will be used. */
  async next(wanted: number): Promise<Page> {
    const largest = this.#form === ScanForm.count ? countEntries : this.#pages++ === 0 ? firstPageEntries : pageEntries
    const maxEntries = Math.min(wanted, largest)
    const page = await this.#fetch({ ...this.#range, reverse: this.#reverse, form: this.#form, maxEntries, maxBytes: pageBytes })
    this.#more = page.more && page.count > 0
    if (page.last !== null) {
      this.#range = this.#reverse ? { ...this.#range, lt: Buffer.from(page.last) } : { ...this.#range, gte: after(page.last) }
    }
    return page
  }
}

/** One group's part of a scan. */
class GroupCursor {
  readonly #pages: GroupPages
  #entries: readonly ScanEntry[] = []
  #at = 0

  constructor(pages: GroupPages) {
    this.#pages = pages
  }

  get head(): ScanEntry | undefined {
    return this.#entries[this.#at]
  }

  advance(): void {
    this.#at++
  }

  get needsPage(): boolean {
    return this.#at === this.#entries.length && this.#pages.more
  }

  async fill(wanted: number): Promise<void> {
    const { entries } = await this.#pages.next(wanted)
    this.#entries = entries
    this.#at = 0
  }
}

/** The groups that may have keys of a range. */
type GroupsOf = (range: KeyRange) => readonly number[]
type FetchPage = (group: number, request: ScanRequest) => Promise<Page>

/** The groups' pages, and how many entries are wanted; null when the range is empty. Throws InvalidArgumentError. */
function pagesOf(options: ScanOptions, groupsOf: GroupsOf, form: ScanForm, fetch: FetchPage): { pages: GroupPages[]; limit: number } | null {
  const { reverse = false, limit = Number.POSITIVE_INFINITY } = options
  if (!(limit >= 0)) throw new InvalidArgumentError(`Expected \`limit\` to be a number of at least 0, got ${limit}`)
  const range = rangeOf(options)
  if (range.lt !== null && Buffer.compare(range.gte, range.lt) >= 0) return null
  const pages = groupsOf(range).map((group) => new GroupPages(range, reverse, form, (request) => fetch(group, request)))
  return { pages, limit: Math.floor(limit) }
}

export async function* scanGroups(options: ScanOptions, groupsOf: GroupsOf, fetch: FetchPage): AsyncGenerator<KeyValue, void, void> {
  const { reverse = false, keysOnly = false } = options
  const found = pagesOf(options, groupsOf, keysOnly ? ScanForm.keys : ScanForm.entries, fetch)
  if (found === null) return
  const cursors = found.pages.map((pages) => new GroupCursor(pages))
  for (let left = found.limit; left > 0; left--) {
    const empty = cursors.filter((cursor) => cursor.needsPage)
    if (empty.length > 0) await Promise.all(empty.map((cursor) => cursor.fill(left)))
    let best: GroupCursor | undefined
    for (const cursor of cursors) {
      if (cursor.head === undefined) continue
      if (best === undefined || Buffer.compare(cursor.head.key, best.head!.key) < 0 !== reverse) best = cursor
    }
    if (best === undefined) return
    const { key, value, version, revision } = best.head!
    best.advance()
    yield { key: Buffer.from(key), value: Buffer.from(value), version, revision }
  }
}

/** How many entries a scan would give. The groups are counted side by side, each up to the limit. */
export async function countGroups(options: ScanOptions, groupsOf: GroupsOf, fetch: FetchPage): Promise<number> {
  const found = pagesOf(options, groupsOf, ScanForm.count, fetch)
  if (found === null || found.limit === 0) return 0
  const { pages, limit } = found
  const counts = await Promise.all(
    pages.map(async (group) => {
      let count = 0
      while (group.more && count < limit) count += (await group.next(limit - count)).count
      return count
    }),
  )
  return Math.min(
    limit,
    counts.reduce((sum, count) => sum + count, 0),
  )
}
