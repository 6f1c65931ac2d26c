/**
 * FlushChain: finds out whether a state database lost a flush from its middle.
 *
 * A group's replica can tell by its log; a store without one cannot, and LevelDB says nothing when it passes over a damaged part of its own log file on opening. So each flush leaves a link,
 * named by its applied index, and removes that of the flush before. Then: 1. a whole database has exactly one link, that of its last flush; 2. without a flush from the middle, the link that it should have
 * removed is still there beside the last one. (Damage to the very last flush looks like a write that a crash cut short, and is taken for one.)
 */
import { Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import type { StateRecord } from './record-table.js'
import type { StateStore } from './state-store.js'

/** In the shard of the group's own records. */
const linkPrefix = '\xff\xfff'
const afterLinks = '\xff\xffg'

class Link implements StateRecord {
  readonly sizeBytes = 16

  encode(): void {}
}

const link = new Link()

export function isLink(key: string): boolean {
  return key.startsWith(linkPrefix)
}

export function decodeLink(): StateRecord {
  return link
}

function linkKey(index: number): string {
  const bytes = new Writer(8)
    .u32(Math.floor(index / 0x100000000))
    .u32(index % 0x100000000)
    .finish()
  return linkPrefix + String.fromCharCode(...bytes)
}

export class FlushChain {
  readonly #store: StateStore

  constructor(store: StateStore) {
    this.#store = store
  }

  /** Looks whether every flush is there; called when the store was opened. Throws CorruptionError. */
  async verify(): Promise<void> {
    const { appliedIndex } = this.#store
    const expected = appliedIndex === 0 ? [] : [linkKey(appliedIndex)]
    const found: string[] = []
    const cursor = this.#store.iterate(linkPrefix, afterLinks, false)
    try {
      for (let next = await cursor.next(); next !== undefined && found.length < 2; next = await cursor.next()) found.push(next.key)
    } finally {
      await cursor.close()
    }
    if (found.length !== expected.length || found[0] !== expected[0])
      throw new CorruptionError(`a part of what was written before index ${appliedIndex} is missing`)
  }

  /** Called right before a flush, whose link comes with it. */
  extend(): void {
    const { appliedIndex, flushedIndex } = this.#store
    if (flushedIndex > 0) this.#store.set(linkKey(flushedIndex), null)
    this.#store.set(linkKey(appliedIndex), link)
  }
}
