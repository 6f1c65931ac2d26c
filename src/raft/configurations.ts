/**
 * Owns which configuration is in force: those that the log holds, in the order of their entries, and the one that stood where the log now starts.
 *
 * 1. A configuration is in force from the moment its entry is in the log, committed or not (Raft paper §6), and no longer once that entry is truncated
 * (hazard D5.42): what is in force is always the last one in the log.
 * 2. There is always at least one: the first is the one in force at the index before the log's first. Compacting the log moves that index on and keeps the configuration; a snapshot that
 * replaces the log replaces them all (hazards D5.41, D5.42).
 */
import { CorruptionError, InvalidArgumentError } from '../base/errors.js'
import { invariant } from './invariant.js'
import { normalizeConfiguration } from './quorum.js'
import type { Configuration, ConfigurationRecord } from './types.js'

export class Configurations {
  /** Ascending by index; the first may lie anywhere up to the index before the log's first. */
  #records: ConfigurationRecord[]

  constructor(records: readonly ConfigurationRecord[], snapshotIndex: number, lastIndex: number) {
    const base = records[0]
    if (base === undefined) throw new InvalidArgumentError('at least one configuration must be given: the one that the log starts with')
    let previousIndex = -1
    for (const { index } of records) {
      const fits = index > previousIndex && index <= lastIndex && (previousIndex === -1 ? index <= snapshotIndex : index > snapshotIndex)
      if (!fits) throw new CorruptionError(`configuration at index ${index} does not fit in the log`)
      previousIndex = index
    }
    this.#records = records.map(({ index, configuration }) => ({ index, configuration: normalizeConfiguration(configuration) }))
  }

  /** The configuration in force. */
  get current(): Configuration {
    return this.#records[this.#records.length - 1]!.configuration
  }

  /** The index of the entry that holds it. */
  get currentIndex(): number {
    return this.#records[this.#records.length - 1]!.index
  }

  /** The one in force at an index that the log covers. */
  at(index: number): Configuration {
    let position = this.#records.length - 1
    while (position > 0 && this.#records[position]!.index > index) position--
    return this.#records[position]!.configuration
  }

  /** The one in force at an index, and all that follow it: one of these is the one that is committed. */
  from(index: number): Configuration[] {
    let position = this.#records.length - 1
    while (position > 0 && this.#records[position]!.index > index) position--
    return this.#records.slice(position).map(({ configuration }) => configuration)
  }

  appended(index: number, configuration: Configuration): void {
    invariant(index > this.currentIndex, 'configurations follow one another')
    this.#records.push({ index, configuration: normalizeConfiguration(configuration) })
  }

  /** Entries from an index on are gone. */
  truncated(fromIndex: number): void {
    while (this.#records.length > 1 && this.currentIndex >= fromIndex) this.#records.pop()
    invariant(this.currentIndex < fromIndex, 'the configuration that the log starts with is never truncated')
  }

  /** The log starts right after an index now. */
  compacted(index: number): void {
    let position = this.#records.length - 1
    while (position > 0 && this.#records[position]!.index > index) position--
    if (position > 0) this.#records.splice(0, position)
  }

  /** A snapshot replaced the state, and the log up to an index; beyond it, entries are kept or not. */
  restored(index: number, configuration: Configuration, keepsLater: boolean): void {
    const later = keepsLater ? this.#records.filter((record) => record.index > index) : []
    this.#records = [{ index, configuration: normalizeConfiguration(configuration) }, ...later]
  }
}
