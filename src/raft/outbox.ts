/**
 * Owns the lists that a drain hands out, and the rule which of them a message may go to.
 *
 * 1. What claims something about this replica's disk goes to `sendAfterPersist`; the types leave no other place for votes and append acknowledgements.
 * 2. When the term rises, what still waits there speaks for an older term and is dropped, as if the network had lost it: what does leave is true
 * of the state that was persisted with it.
 */
import type { AppendReply, FetchRequest, InstallRequest, MessageAfterPersist, MessageNow, Output, PersistWork, RejectReason } from './types.js'

export class Outbox {
  #sendNow: MessageNow[] = []
  #sendAfterPersist: MessageAfterPersist[] = []
  #accepted: Output['accepted'] = []
  #rejected: Output['rejected'] = []
  #reads: Output['reads'] = []
  #fetch: FetchRequest[] = []
  #configured: Output['configured'] = []
  #transferred: Output['transferred'] = []
  #install: InstallRequest | null = null

  get isEmpty(): boolean {
    return (
      this.#sendNow.length === 0 &&
      this.#sendAfterPersist.length === 0 &&
      this.#accepted.length === 0 &&
      this.#rejected.length === 0 &&
      this.#reads.length === 0 &&
      this.#fetch.length === 0 &&
      this.#configured.length === 0 &&
      this.#transferred.length === 0 &&
      this.#install === null
    )
  }

  now(message: MessageNow): void {
    this.#sendNow.push(message)
  }

  afterPersist(message: MessageAfterPersist): void {
    this.#sendAfterPersist.push(message)
  }

  /** An acceptance says all that an earlier one of the same session said: within a drain only the last goes out. */
  acknowledge(reply: AppendReply): void {
    const list = this.#sendAfterPersist
    const last = list[list.length - 1]
    const covered =
      last?.type === 'append-reply' && last.accepted && last.to === reply.to && last.session === reply.session && last.matchIndex <= reply.matchIndex
    if (covered) list[list.length - 1] = reply
    else list.push(reply)
  }

  accepted(id: number, index: number, term: number): void {
    this.#accepted.push({ id, index, term })
  }

  rejected(id: number, reason: RejectReason): void {
    this.#rejected.push({ id, reason })
  }

  read(id: number, index: number): void {
    this.#reads.push({ id, index })
  }

  fetchEntries(request: FetchRequest): void {
    this.#fetch.push(request)
  }

  configured(id: number): void {
    this.#configured.push({ id })
  }

  transferred(id: number): void {
    this.#transferred.push({ id })
  }

  /** The last offer counts. */
  install(request: InstallRequest): void {
    this.#install = request
  }

  /** The term rose. */
  dropClaims(): void {
    if (this.#sendAfterPersist.length > 0) this.#sendAfterPersist = []
  }

  take(persist: PersistWork | null): Output {
    const output: Output = {
      sendNow: this.#sendNow,
      sendAfterPersist: this.#sendAfterPersist,
      persist,
      accepted: this.#accepted,
      rejected: this.#rejected,
      reads: this.#reads,
      fetch: this.#fetch,
      configured: this.#configured,
      transferred: this.#transferred,
      install: this.#install,
    }
    this.#sendNow = []
    this.#sendAfterPersist = []
    this.#accepted = []
    this.#rejected = []
    this.#reads = []
    this.#fetch = []
    this.#configured = []
    this.#transferred = []
    this.#install = null
    return output
  }
}
