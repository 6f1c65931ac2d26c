/**
 * One core alone, with its peers, disk and clock played by the test: what it says to which input, message by message.
 *
 * 1. `drain` hands out what the core put out and keeps the work until `persist`; `settle` does both until nothing is left, and returns what was sent.
 * 2. Messages of the core to itself are delivered to it by `persist`.
 */
import { RaftCore } from '../../../src/raft/core.js'
import type {
  AppendReply,
  AppendRequest,
  Entry,
  HardState,
  Heartbeat,
  Message,
  MessageAfterPersist,
  NodeId,
  Output,
  PersistWork,
  RaftOptions,
} from '../../../src/raft/types.js'
import { entriesAsRuns, logOf } from './entries.js'

export interface SoloOptions {
  readonly voters?: readonly NodeId[]
  readonly learners?: readonly NodeId[]
  readonly hardState?: HardState
  /** The term of each entry of the log that it starts with. */
  readonly terms?: readonly number[]
  readonly raft?: Partial<RaftOptions>
}

type Fields<M extends Message> = Partial<Omit<M, 'type' | 'to'>> & { readonly from: NodeId }

export class Solo {
  readonly core: RaftCore
  readonly entries: readonly Entry[]
  nowMs = 0
  /** All output since the start. */
  readonly outputs: Output[] = []
  #works: PersistWork[] = []
  #waiting: MessageAfterPersist[] = []
  #proposal = 0

  constructor(options: SoloOptions = {}) {
    this.entries = logOf(options.terms ?? [])
    const lastTerm = options.terms?.at(-1) ?? 0
    this.core = new RaftCore({
      id: 'n1',
      configurations: [
        { index: 0, configuration: { voters: options.voters ?? ['n1', 'n2', 'n3'], learners: options.learners ?? [], votersOutgoing: [] } },
      ],
      hardState: options.hardState ?? { term: lastTerm, vote: null },
      terms: entriesAsRuns(this.entries),
      lastIndex: this.entries.length,
      snapshotIndex: 0,
      snapshotTerm: 0,
      commitIndex: 0,
      nowMs: 0,
      electionTimeoutMs: 100,
      heartbeatIntervalMs: 10,
      maxInflightBytes: 1000,
      maxAppendBytes: 400,
      maxTailBytes: 1 << 20,
      maxUncommittedBytes: 1 << 20,
      random: () => 0.5,
      ...options.raft,
    })
  }

  tick(durationMs: number): this {
    this.nowMs += durationMs
    this.core.step({ type: 'tick', nowMs: this.nowMs })
    return this
  }

  message(message: Message): this {
    this.core.step({ type: 'message', message })
    return this
  }

  append(fields: Fields<AppendRequest>): this {
    return this.message({
      type: 'append-request',
      to: 'n1',
      term: this.core.term,
      previousIndex: 0,
      previousTerm: 0,
      entries: [],
      commitIndex: 0,
      session: 1,
      sequence: 1,
      ...fields,
    })
  }

  heartbeat(fields: Fields<Heartbeat>): this {
    return this.message({ type: 'heartbeat', to: 'n1', term: this.core.term, commitIndex: 0, round: 0, ...fields })
  }

  /** A follower's acceptance of a request, or of whatever ends at `matchIndex`. */
  accept(request: Pick<AppendRequest, 'to' | 'session' | 'sequence'>, matchIndex: number): this {
    const { to, session, sequence } = request
    return this.#reply({ from: to, session, sequence, accepted: true, matchIndex, conflictTerm: 0, conflictIndex: 0 })
  }

  reject(request: Pick<AppendRequest, 'to' | 'session' | 'sequence'>, conflictTerm: number, conflictIndex: number): this {
    const { to, session, sequence } = request
    return this.#reply({ from: to, session, sequence, accepted: false, matchIndex: 0, conflictTerm, conflictIndex })
  }

  #reply(fields: Omit<AppendReply, 'type' | 'to' | 'term'>): this {
    return this.message({ type: 'append-reply', to: 'n1', term: this.core.term, ...fields })
  }

  answerHeartbeat(from: NodeId, round = 0): this {
    return this.message({ type: 'heartbeat-reply', from, to: 'n1', term: this.core.term, round })
  }

  propose(text: string): number {
    const id = ++this.#proposal
    this.core.step({ type: 'propose', id, data: new TextEncoder().encode(text) })
    return id
  }

  read(id: number): this {
    this.core.step({ type: 'read', id })
    return this
  }

  /** Takes the output; its work waits for `persist`. */
  drain(): Output {
    const output = this.core.drain()
    this.outputs.push(output)
    if (output.persist !== null) this.#works.push(output.persist)
    this.#waiting.push(...output.sendAfterPersist)
    return output
  }

  /** Everything handed out is durable: tells the core, delivers its messages to itself, and returns those for others. */
  persist(): MessageAfterPersist[] {
    const last = this.#works.at(-1)
    this.#works = []
    if (last !== undefined) this.core.step({ type: 'persisted', sequence: last.sequence })
    const released = this.#waiting
    this.#waiting = []
    for (const message of released) if (message.to === 'n1') this.core.step({ type: 'message', message })
    return released.filter(({ to }) => to !== 'n1')
  }

  /** Drains and persists until nothing is left; returns all that was sent to others. */
  settle(): Message[] {
    const sent: Message[] = []
    while (this.core.dirty || this.#works.length > 0 || this.#waiting.length > 0) {
      sent.push(...this.drain().sendNow)
      sent.push(...this.persist())
    }
    return sent
  }

  /** Lets the election timer end; returns what was sent. */
  timeout(): Message[] {
    // Twice, since the first tick after a standstill puts the campaign off.
    for (let turn = 0; turn < 2 && this.core.role === 'follower'; turn++) {
      this.nowMs = Math.max(this.nowMs, this.core.nextTickMs)
      this.tick(0)
    }
    while (this.core.role === 'follower' && this.core.nextTickMs > this.nowMs && this.core.leader !== null)
      this.tick(this.core.nextTickMs - this.nowMs)
    return this.settle()
  }

  /** A follower's answer to a question for its (pre-)vote. */
  vote(question: Message, granted = true): this {
    if (question.type === 'pre-vote-request') {
      const term = granted ? question.term : question.term - 1
      return this.message({ type: 'pre-vote-reply', from: question.to, to: 'n1', term, granted, sequence: question.sequence })
    }
    if (question.type !== 'vote-request') throw new Error(`${question.type} asks for no vote`)
    return this.message({ type: 'vote-reply', from: question.to, to: 'n1', term: question.term, granted, sequence: question.sequence })
  }

  /** Wins an election with the votes of all; returns what was sent on winning. */
  lead(): Message[] {
    const sent = this.campaign()
    if (this.core.role !== 'leader') throw new Error(`is ${this.core.role}`)
    return sent
  }

  /** Campaigns with the votes of all; returns what was sent after that. */
  campaign(): Message[] {
    for (const message of this.timeout()) if (message.type === 'pre-vote-request') this.vote(message)
    for (const message of this.settle()) if (message.type === 'vote-request') this.vote(message)
    return this.settle()
  }

  /** Wins, and has every follower accept all that the leader's log holds. */
  leadAgreed(): this {
    for (const message of this.lead()) if (message.type === 'append-request') this.accept(message, message.previousIndex + message.entries.length)
    for (const message of this.settle()) if (message.type === 'append-request') this.accept(message, message.previousIndex + message.entries.length)
    this.settle()
    return this
  }
}

/** The messages of one type, and to one node when it is named. */
export function only<T extends Message['type']>(messages: readonly Message[], type: T, to?: NodeId): Extract<Message, { type: T }>[] {
  return messages.filter((message): message is Extract<Message, { type: T }> => message.type === type && (to === undefined || message.to === to))
}
