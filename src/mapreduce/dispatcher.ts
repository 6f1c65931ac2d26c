/**
 * Dispatcher: chooses the node for a task, and brings the attempt to it.
 *
 * Invariants: 1. a node gets no more attempts than it has worker threads; 2. an attempt is sent to one node only, again and again until that has it, refuses it
 * or is lost; 3. a task that failed somewhere goes elsewhere, while there is room elsewhere.
 */
import { OverloadedError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { JobMessenger } from './loopback.js'
import type { Member, Members } from './members.js'
import { Method, type TaskRequest, taskReply, taskRequest } from './protocol.js'
import { sleep } from './sleep.js'
import type { Attempt, Task } from './task-table.js'

export interface DispatcherOptions {
  readonly messenger: JobMessenger
  readonly runtime: Runtime
  readonly members: Members
  readonly heartbeatMs: number
  readonly nodeTimeoutMs: number
  /** Ends all sending. */
  readonly signal: AbortSignal
  /** The node has the attempt. May come after its report. */
  readonly onAccepted: (task: Task, attempt: Attempt) => void
  /** The node has no room: the attempt did not begin. */
  readonly onRefused: (task: Task) => void
}

export class Dispatcher {
  readonly #options: DispatcherOptions

  constructor(options: DispatcherOptions) {
    this.#options = options
  }

  /** The node with the most room, of those on which the task has not failed if there is one. */
  choose(task: Task, nowMs: number): Member | undefined {
    const failedOn = new Set(task.history.map(({ nodeId }) => nodeId))
    let best: Member | undefined
    let bestRank = Number.POSITIVE_INFINITY
    for (const member of this.#options.members.all) {
      if (member.state !== 'usable' || member.running >= member.workers || member.notBeforeMs > nowMs) continue
      const rank = member.running / member.workers + (failedOn.has(member.id) ? 1 : 0)
      if (rank < bestRank) {
        best = member
        bestRank = rank
      }
    }
    return best
  }

  async send(task: Task, attempt: Attempt, member: Member, request: TaskRequest): Promise<void> {
    const { messenger, runtime, members, heartbeatMs, nodeTimeoutMs, signal, onAccepted, onRefused } = this.#options
    const payload = taskRequest.encode(request)
    const isCurrent = (): boolean => !signal.aborted && task.current === attempt && task.state === 'running'
    while (isCurrent()) {
      try {
        const reply = await messenger.request(member.address, Method.task, payload, { timeoutMs: nodeTimeoutMs, signal })
        const { incarnation } = taskReply.decode(reply)
        attempt.acknowledgedMs = runtime.nowMs()
        if (!isCurrent()) return
        onAccepted(task, attempt)
        members.heard(member, incarnation)
        return
      } catch (error) {
        if (!isCurrent()) return
        if (error instanceof UnavailableError) {
          await sleep(runtime, heartbeatMs / 4, signal).catch(() => {})
          continue
        }
        if (error instanceof OverloadedError) {
          member.running--
          member.notBeforeMs = runtime.nowMs() + heartbeatMs / 2
          onRefused(task)
        } else {
          // It has ended the job by itself, or has been started anew without it: what it had is gone.
          members.lose(member)
        }
        return
      }
    }
  }
}
