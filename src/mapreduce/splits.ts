/**
 * Splits: the pieces of input that map tasks work on, as the coordinator knows them.
 *
 * Invariants: 1. the splits of an input, in their order, are the whole input, each record in exactly one; 2. they depend on the input and on
 * `splitBytes` alone, not on the cluster, so that a job has the same splits wherever it runs; 3. a split can be read again as often as needed.
 */

/** A range of keys: from `from` up to but without `to` (undefined: to the end). */
export interface KeyRange {
  readonly from: Uint8Array
  readonly to: Uint8Array | undefined
}

/** Bytes that the coordinator holds or can read, as entries. */
export interface HeldSplit {
  readonly kind: 'held'
  readonly length: number
  read(offset: number, length: number): Promise<Uint8Array>
}

/** Keys that the task's own node scans. `maxBytes` undefined: exactly this range, else stop after so much and say where. */
export interface RangeSplit {
  readonly kind: 'range'
  readonly range: KeyRange
  readonly maxBytes: number | undefined
}

export type Split = HeldSplit | RangeSplit

export interface InputPlan {
  readonly splits: readonly Split[]
  /** Divides what is left of a range, when a task stopped before its end. */
  divide(range: KeyRange): Promise<readonly RangeSplit[]>
  /** Closes and removes what the plan keeps. */
  close(): Promise<void>
}

export interface PlanOptions {
  readonly splitBytes: number
  readonly maxTasks: number
  readonly records: 'lines' | 'whole'
  readonly signal: AbortSignal
}
