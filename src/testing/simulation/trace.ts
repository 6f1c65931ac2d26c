/** The trace of a run: a rolling hash of every event, always, and readable lines for whoever replays a seed. */
import type { Message } from '../../raft/types.js'
import type { EventQueue } from './event-queue.js'
import { mixHash } from './log-shape.js'

/** One message in one line. */
export function describeMessage(message: Message): string {
  const head = `${message.from}>${message.to} ${message.type} term ${message.term}`
  switch (message.type) {
    case 'pre-vote-request':
      return `${head} last ${message.lastIndex}@${message.lastTerm}`
    case 'vote-request':
      return `${head} last ${message.lastIndex}@${message.lastTerm}${message.transfer ? ' transfer' : ''}`
    case 'pre-vote-reply':
    case 'vote-reply':
      return `${head} ${message.granted ? 'granted' : 'refused'}`
    case 'append-request':
      return `${head} after ${message.previousIndex}@${message.previousTerm} entries ${message.entries.length} commit ${message.commitIndex} session ${message.session} sequence ${message.sequence}`
    case 'append-reply':
      return `${head} ${message.accepted ? `match ${message.matchIndex}` : `conflict ${message.conflictIndex}@${message.conflictTerm}`} session ${message.session} sequence ${message.sequence}`
    case 'heartbeat':
      return `${head} commit ${message.commitIndex} round ${message.round}`
    case 'heartbeat-reply':
      return `${head} round ${message.round}`
    case 'snapshot-offer':
      return `${head} up to ${message.snapshotIndex}@${message.snapshotTerm} session ${message.session} sequence ${message.sequence}`
    case 'timeout-now':
      return head
    default: {
      const never: never = message
      return JSON.stringify(never)
    }
  }
}

export class Trace {
  readonly #queue: EventQueue
  readonly #line: ((line: string) => void) | undefined
  #hash = 0

  /** `line` receives each event as text; without it only the hash is kept. */
  constructor(queue: EventQueue, line?: (line: string) => void) {
    this.#queue = queue
    this.#line = line
  }

  /** A hash of every event so far. */
  get hash(): string {
    return (this.#hash >>> 0).toString(16).padStart(8, '0')
  }

  /** Records an event: two numbers of it go into the hash; `detail(subject)` is only called when somebody reads the lines. */
  event<S>(id: string, event: string, a: number, b: number, detail: (subject: S) => string, subject: S): void
  event(id: string, event: string, a: number, b: number, detail: () => string): void
  event<S>(id: string, event: string, a: number, b: number, detail: (subject?: S) => string, subject?: S): void {
    let hash = mixHash(this.#hash, this.#queue.nowUs)
    for (let position = 0; position < id.length; position++) hash = Math.imul(hash ^ id.charCodeAt(position), 0x01000193)
    for (let position = 0; position < event.length; position++) hash = Math.imul(hash ^ event.charCodeAt(position), 0x01000193)
    this.#hash = mixHash(mixHash(hash, a), b)
    if (this.#line !== undefined)
      this.#line(`${(this.#queue.nowUs / 1e6).toFixed(6).padStart(12)}  ${id.padEnd(3)} ${event.padEnd(13)} ${detail(subject)}`)
  }
}
