/**
 * What one key does, as the history checker sees it: the sequential specification of get, put and delete with versions, conditions and revisions.
 *
 * Invariant: a step is refused only when no real store could have taken it. Where a revision is not known (the write had no answer) every revision above the last known one is possible.
 */
import type { Operation } from './history.js'

/** A key between two operations. */
export interface KeyState {
  /** 0: absent. */
  readonly version: number
  /** The number of the value (`KeyOperation.value`); `absentValue` when absent. */
  readonly value: number
  /** Of the last write; 0 when absent, `unknownRevision` when that write had no answer. */
  readonly revision: number
  /** The greatest revision known to lie behind. */
  readonly floor: number
}

export const absentValue = -1
/** All values that no get has read share this number: which of them it is makes no difference. */
export const unreadValue = -2
const unknownRevision = -1

export const initialState: KeyState = { version: 0, value: absentValue, revision: 0, floor: 0 }

/** An operation, prepared for checking. */
export interface KeyOperation {
  readonly index: number
  readonly source: Operation
  readonly kind: 'get' | 'put' | 'delete'
  readonly value: number
  readonly version: number | null
  readonly revision: number | undefined
  readonly ifVersion: number | undefined
  readonly ifRevision: number | undefined
  readonly deleted: boolean | undefined
  readonly conditionFailed: boolean
  /** Must take its place in the order; false for a write of unknown outcome. */
  readonly mandatory: boolean
  /** Leaves the state as it is, whenever it is legal at all. */
  readonly pure: boolean
}

/** The state after the operation; the same object when nothing changes; null when the operation cannot come here. */
export function step(state: KeyState, operation: KeyOperation): KeyState | null {
  if (operation.kind === 'get') {
    return operation.version === state.version && operation.value === state.value && revisionFits(state, operation.revision) ? state : null
  }
  const condition = conditionHolds(state, operation)
  if (operation.conditionFailed) {
    if (condition === 'yes') return null
    if (operation.version !== null && operation.version !== state.version) return null
    return revisionFits(state, operation.revision) ? state : null
  }
  if (condition === 'no') return null
  if (operation.kind === 'delete' && state.version === 0) return operation.deleted === true ? null : state
  if (operation.kind === 'delete' && operation.deleted === false) return null
  const floor = Math.max(state.floor, state.revision)
  if (operation.revision !== undefined && operation.revision <= floor) return null
  const newFloor = operation.revision ?? floor
  if (operation.kind === 'delete') return { version: 0, value: absentValue, revision: 0, floor: newFloor }
  const version = state.version + 1
  if (operation.version !== null && operation.version !== version) return null
  return { version, value: operation.value, revision: operation.revision ?? unknownRevision, floor: newFloor }
}

/** Whether the operation can have no effect from this state on: its condition asks for a revision, or (on a key that is never deleted) a version, that lies behind. */
export function isPast(state: KeyState, { ifVersion, ifRevision }: KeyOperation, neverDeleted: boolean): boolean {
  if (neverDeleted && ifVersion !== undefined && ifVersion < state.version) return true
  if (ifRevision === undefined || ifRevision === 0) return false
  return state.revision > 0 ? ifRevision < state.revision : ifRevision <= state.floor
}

function revisionFits(state: KeyState, revision: number | undefined): boolean {
  if (revision === undefined) return true
  return state.revision === unknownRevision ? revision > state.floor : revision === state.revision
}

function conditionHolds(state: KeyState, operation: KeyOperation): 'yes' | 'no' | 'perhaps' {
  if (operation.ifVersion !== undefined && operation.ifVersion !== state.version) return 'no'
  if (operation.ifRevision === undefined) return 'yes'
  if (state.revision !== unknownRevision) return operation.ifRevision === state.revision ? 'yes' : 'no'
  return operation.ifRevision > state.floor ? 'perhaps' : 'no'
}

/** Operations of one key, in the order of their calls, without those that say nothing. */
export function prepare(operations: readonly Operation[]): KeyOperation[] {
  const numbers = new Map<string, number>()
  for (const { op, value, result } of operations) {
    if (op === 'get' && result === 'ok' && value !== null && !numbers.has(value)) numbers.set(value, numbers.size)
  }
  const prepared: KeyOperation[] = []
  for (const source of operations) {
    const { op, value, version, result, revision, ifVersion, ifRevision, deleted } = source
    if (result === 'failed' || (op === 'get' && result !== 'ok')) continue
    const conditionFailed = result === 'condition-failed'
    prepared.push({
      index: prepared.length,
      source,
      kind: op,
      value: value === null ? absentValue : (numbers.get(value) ?? unreadValue),
      version: op === 'delete' && !conditionFailed ? null : version,
      revision,
      ifVersion,
      ifRevision,
      deleted,
      conditionFailed,
      mandatory: result !== 'unknown',
      pure: op === 'get' || conditionFailed || (op === 'delete' && deleted === false),
    })
  }
  return prepared
}
