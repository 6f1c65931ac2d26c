/**
 * Judges a history when the order of all writes is known, as it is to a simulator that has the log: then it need not be searched for, and a few passes decide.
 *
 * Of each key the states follow one another in the log's order. Each write happens at some time between its call and its answer, each read at some time of its own call while the state that
 * it shows lasts. Every write is put as early as it can be: after the write before it, after its own call, and after the calls of all reads of the state that it ends. The history is
 * linearizable if and only if no operation then ends before the state that it needs begins.
 */
import type { Operation } from '../history.js'

/** A write that took effect, in the order of the log. */
export interface KnownWrite {
  /** In the log of its group. */
  readonly index: number
  readonly revision: number
  /** 0: it deleted the key. */
  readonly version: number
  /** One unit a byte; null when it deleted the key. */
  readonly value: string | null
}

interface State {
  readonly version: number
  readonly revision: number
  /** The earliest time at which it can begin. */
  beginsMs: number
  /** The write that began it was called then; before the history when nobody says that it was his. */
  calledMs: number
  /** When its writer was told. */
  answeredMs: number
  /** The latest call of those who saw it. */
  seenMs: number
}

/** What a read of a state at this index must show: the last write up to there; undefined when there was none, or it was a delete. */
export function stateAt(writes: readonly KnownWrite[], index: number): KnownWrite | undefined {
  const last = writes.findLast((write) => write.index <= index)
  return last === undefined || last.version === 0 ? undefined : last
}

/** What is wrong with the history of a key; null for nothing. Operations of unknown outcome must have been settled as far as the log can. */
export function judgeKey(operations: readonly Operation[], writes: readonly KnownWrite[]): string | null {
  const states: State[] = [{ index: 0, version: 0, revision: 0, value: null }, ...writes].map((state) => ({
    ...state,
    beginsMs: Number.NEGATIVE_INFINITY,
    calledMs: Number.NEGATIVE_INFINITY,
    answeredMs: Number.POSITIVE_INFINITY,
    seenMs: Number.NEGATIVE_INFINITY,
  }))
  const byRevision = new Map(states.map((state) => [state.revision, state]))
  const readers: { operation: Operation; state: State }[] = []
  const absentReaders: Operation[] = []
  for (const operation of operations) {
    const { op, result, ret, version, revision, deleted, call } = operation
    if (result === 'failed' || result === 'unknown') continue
    const writes = result === 'ok' && (op === 'put' || (op === 'delete' && deleted !== false))
    if (!writes && (version === 0 || op === 'delete') && !(op === 'delete' && result === 'condition-failed' && version !== 0)) {
      absentReaders.push(operation)
      continue
    }
    const state = revision === undefined ? undefined : byRevision.get(revision)
    if (state === undefined || (version !== null && version !== state.version)) return `the log has no such write: ${JSON.stringify(operation)}`
    if (writes) {
      state.calledMs = call
      state.answeredMs = ret ?? Number.POSITIVE_INFINITY
    } else {
      state.seenMs = Math.max(state.seenMs, call)
      readers.push({ operation, state })
    }
  }
  const absentStates = states.filter(({ version }) => version === 0)
  // Who saw nothing saw one of the states without a value: the latest that was there in time binds the others least. A state that is seen may move later ones, so look again.
  for (;;) {
    let before = Number.NEGATIVE_INFINITY
    for (const state of states) {
      state.beginsMs = Math.max(before, state.calledMs)
      if (state.beginsMs > state.answeredMs)
        return `revision ${state.revision} was acknowledged at ${state.answeredMs} ms and cannot have been written before ${state.beginsMs} ms`
      before = Math.max(state.beginsMs, state.seenMs)
    }
    for (const { operation, state } of readers) {
      if (state.beginsMs > (operation.ret ?? Number.POSITIVE_INFINITY))
        return `seen before it can have been written (${state.beginsMs} ms): ${JSON.stringify(operation)}`
    }
    let moved = false
    for (const operation of absentReaders) {
      const state = absentStates.findLast(({ beginsMs }) => beginsMs <= (operation.ret ?? Number.POSITIVE_INFINITY))
      if (state === undefined) return `nothing was there before the key was written: ${JSON.stringify(operation)}`
      if (operation.call > state.seenMs) {
        state.seenMs = operation.call
        moved = true
      }
    }
    if (!moved) return null
  }
}
