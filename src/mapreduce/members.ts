/**
 * Members: the nodes that may work for a job, as its coordinator sees them: which have the job, how many threads they have, which are lost.
 *
 * Invariants: 1. a node that has not answered for `nodeTimeoutMs` and several heartbeats, or answers as another incarnation, is lost; nothing it did in that session counts after;
 * 2. a lost node is asked on, and comes back in a new session when it answers; 3. peers that join while the job runs are used.
 */
import { QuorateError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { JobMessenger } from './loopback.js'
import { beatReply, beatRequest, describeReply, describeRequest, Method } from './protocol.js'
import type { AttemptName } from './task-outputs.js'
import type { JobDescription } from './thread.js'
import type { PeerAddress } from './worker-service.js'

export interface Member {
  readonly id: string
  readonly address: string
  /** `asked`: no answer yet. `without`: it does not have the job or runs no tasks. */
  state: 'asked' | 'usable' | 'without' | 'lost'
  workers: number
  incarnation: string
  session: number
  lastHeardMs: number
  /** Heartbeats without an answer since then. */
  missed: number
  /** Attempts given to it in this session that have not ended. */
  running: number
  /** After it refused for now. */
  notBeforeMs: number
  /** Why it does not have the job, though it is registered there. */
  problem: QuorateError | undefined
}

export interface MembersOptions {
  readonly messenger: JobMessenger
  readonly runtime: Runtime
  readonly peers: () => readonly PeerAddress[]
  readonly jobId: string
  readonly job: string
  readonly heartbeatMs: number
  readonly nodeTimeoutMs: number
  /** A node has become usable, or may be again. */
  readonly onUsable: (member: Member, description: JobDescription) => void
  readonly onLost: (member: Member) => void
  /** What a node says that it works on; `askedMs`: when it was asked. */
  readonly onAttempts: (member: Member, attempts: readonly AttemptName[], askedMs: number) => void
}

const missedBeats = 3

export class Members {
  readonly #options: MembersOptions
  readonly #members = new Map<string, Member>()
  readonly #cancels = new Map<string, () => void>()
  #cancelDiscovery: () => void = () => {}
  #closed = false
  #lastUsableMs: number

  constructor(options: MembersOptions) {
    this.#options = options
    this.#lastUsableMs = options.runtime.nowMs()
  }

  start(): void {
    this.#discover()
  }

  stop(): void {
    this.#closed = true
    this.#cancelDiscovery()
    for (const cancel of this.#cancels.values()) cancel()
  }

  get all(): readonly Member[] {
    return [...this.#members.values()]
  }

  get(id: string): Member | undefined {
    return this.#members.get(id)
  }

  /** How long there has been no usable node. */
  get idleMs(): number {
    if (this.all.some(({ state }) => state === 'usable')) this.#lastUsableMs = this.#options.runtime.nowMs()
    return this.#options.runtime.nowMs() - this.#lastUsableMs
  }

  /** Every known node has answered that it does not have the job. */
  get nobodyHasIt(): boolean {
    return this.#members.size > 0 && this.all.every(({ state }) => state === 'without')
  }

  #discover(): void {
    const { peers, runtime, heartbeatMs } = this.#options
    for (const { id, address } of peers()) {
      const known = this.#members.get(id)
      if (known?.address === address) continue
      // A node may come back at another address; as far as this job goes it is the next session of the same.
      if (known !== undefined) {
        this.#cancels.get(id)?.()
        this.lose(known)
      }
      const session = (known?.session ?? 0) + 1
      const member: Member = {
        id,
        address,
        state: 'asked',
        workers: 0,
        incarnation: '',
        session,
        lastHeardMs: 0,
        missed: 0,
        running: 0,
        notBeforeMs: 0,
        problem: undefined,
      }
      this.#members.set(id, member)
      this.#ask(member)
    }
    this.#cancelDiscovery = runtime.schedule(heartbeatMs * 2, () => this.#discover())
  }

  #ask(member: Member): void {
    const { runtime, heartbeatMs } = this.#options
    const usable = member.state === 'usable'
    void (usable ? this.#beat(member) : this.#describe(member)).finally(() => {
      if (this.#closed || this.#members.get(member.id) !== member) return
      // Who does not have the job may get it, with a restart; that is no hurry.
      const delayMs = member.state === 'without' ? heartbeatMs * 10 : heartbeatMs
      this.#cancels.set(
        member.id,
        runtime.schedule(delayMs, () => this.#ask(member)),
      )
    })
  }

  async #describe(member: Member): Promise<void> {
    const { messenger, runtime, job, nodeTimeoutMs, onUsable } = this.#options
    try {
      // The first answer may have to wait for a worker thread to load the job.
      const timeoutMs = nodeTimeoutMs * 2
      const reply = describeReply.decode(await messenger.request(member.address, Method.describe, describeRequest.encode({ job }), { timeoutMs }))
      if (this.#closed || this.#members.get(member.id) !== member) return
      member.lastHeardMs = runtime.nowMs()
      member.missed = 0
      member.incarnation = reply.incarnation
      member.workers = reply.workers
      if (reply.job === undefined || reply.workers === 0) {
        member.state = 'without'
        return
      }
      member.state = 'usable'
      member.problem = undefined
      this.#lastUsableMs = runtime.nowMs()
      onUsable(member, reply.job)
    } catch (error) {
      // A node that answers, but cannot load the job's module, is as one without the job.
      if (!isInvalid(error)) return
      member.state = 'without'
      member.problem = error
    }
  }

  async #beat(member: Member): Promise<void> {
    const { messenger, runtime, jobId, nodeTimeoutMs, heartbeatMs, onAttempts } = this.#options
    const askedMs = runtime.nowMs()
    const { session } = member
    try {
      const timeoutMs = Math.min(nodeTimeoutMs / 2, heartbeatMs * 4)
      const reply = beatReply.decode(await messenger.request(member.address, Method.beat, beatRequest.encode({ jobId, session }), { timeoutMs }))
      if (this.#closed || member.session !== session) return
      this.heard(member, reply.incarnation)
      if (member.session === session) onAttempts(member, reply.attempts, askedMs)
    } catch {
      if (this.#closed || member.session !== session) return
      // Several, so that a stall of this process, after which all timers come at once, is not taken for a death of the other.
      if (++member.missed >= missedBeats && runtime.nowMs() - member.lastHeardMs >= nodeTimeoutMs) this.lose(member)
    }
  }

  /** A node has answered. */
  heard(member: Member, incarnation: string): void {
    if (incarnation !== member.incarnation) this.lose(member)
    else {
      member.lastHeardMs = this.#options.runtime.nowMs()
      member.missed = 0
    }
  }

  /** Gives a node up for this session. */
  lose(member: Member): void {
    if (member.state !== 'usable') return
    member.state = 'lost'
    member.session++
    member.running = 0
    this.#options.onLost(member)
  }
}

function isInvalid(error: unknown): error is QuorateError {
  return error instanceof QuorateError && ['INVALID_JOB', 'UNKNOWN_METHOD', 'INVALID_ARGUMENT'].includes(error.code)
}
