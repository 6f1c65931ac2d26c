/**
 * Virtual time: a heap of tasks by (time, sequence).
 *
 * Invariants: 1. time is an integer of microseconds and never goes back; 2. tasks of the same time run in the order in which they
 * were scheduled; 3. everything is synchronous: no promise is involved, so a task always runs to its end before the next.
 */

interface ScheduledTask {
  readonly timeUs: number
  readonly sequence: number
  readonly task: () => void
}

/** A queue of tasks in virtual time. */
export class EventQueue {
  readonly #heap: ScheduledTask[] = []
  #sequence = 0
  #nowUs = 0
  #steps = 0

  /** Virtual time in microseconds. */
  get nowUs(): number {
    return this.#nowUs
  }

  /** How many tasks have run. */
  get steps(): number {
    return this.#steps
  }

  /** How many tasks wait. */
  get size(): number {
    return this.#heap.length
  }

  /** Runs the task `delayUs` from now; fractions of microseconds are cut. */
  schedule(delayUs: number, task: () => void): void {
    const timeUs = this.#nowUs + Math.max(0, Math.floor(delayUs))
    const entry: ScheduledTask = { timeUs, sequence: this.#sequence++, task }
    const heap = this.#heap
    let position = heap.length
    heap.push(entry)
    while (position > 0) {
      const parentPosition = (position - 1) >> 1
      const parent = heap[parentPosition] as ScheduledTask
      if (parent.timeUs < timeUs || (parent.timeUs === timeUs && parent.sequence < entry.sequence)) break
      heap[position] = parent
      position = parentPosition
    }
    heap[position] = entry
  }

  #pop(): ScheduledTask {
    const heap = this.#heap
    const first = heap[0] as ScheduledTask
    const last = heap.pop() as ScheduledTask
    const size = heap.length
    if (size > 0) {
      let position = 0
      for (;;) {
        let childPosition = 2 * position + 1
        if (childPosition >= size) break
        let child = heap[childPosition] as ScheduledTask
        if (childPosition + 1 < size) {
          const right = heap[childPosition + 1] as ScheduledTask
          if (right.timeUs < child.timeUs || (right.timeUs === child.timeUs && right.sequence < child.sequence)) {
            child = right
            childPosition++
          }
        }
        if (last.timeUs < child.timeUs || (last.timeUs === child.timeUs && last.sequence < child.sequence)) break
        heap[position] = child
        position = childPosition
      }
      heap[position] = last
    }
    return first
  }

  /** Runs the next task that is due no later than `limitUs`; false, with the time moved to the limit, when there is none. */
  runNext(limitUs: number): boolean {
    const first = this.#heap[0]
    if (first === undefined || first.timeUs > limitUs) {
      if (limitUs > this.#nowUs) this.#nowUs = limitUs
      return false
    }
    this.#pop()
    this.#nowUs = first.timeUs
    this.#steps++
    first.task()
    return true
  }

  /** Runs everything that is due within the next `durationUs`. */
  runFor(durationUs: number): void {
    const limitUs = this.#nowUs + Math.floor(durationUs)
    while (this.runNext(limitUs));
  }

  /** Runs tasks until the condition holds (checked after each) or virtual time reaches `nowUs + timeoutUs`; tells whether it holds. */
  runUntil(condition: () => boolean, timeoutUs: number): boolean {
    const limitUs = this.#nowUs + Math.floor(timeoutUs)
    if (condition()) return true
    while (this.runNext(limitUs)) if (condition()) return true
    return condition()
  }
}
