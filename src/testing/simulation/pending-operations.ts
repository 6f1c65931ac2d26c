/**
 * What clients have asked of one replica's running core and what it has not yet answered.
 *
 * Invariants: 1. each proposal and each read ends exactly once, here or by a crash; 2. a proposal is acknowledged when its entry is applied with the term
 * in which it was accepted, and lost when another entry is applied in its place.
 */
import type { Entry, Output } from '../../raft/types.js'
import type { SimulatedReplica } from './replica.js'
import type { ReplicaEnvironment } from './replica-environment.js'

export class PendingOperations {
  readonly #replica: SimulatedReplica
  readonly #environment: ReplicaEnvironment
  /** Proposals in the log, by their index. */
  readonly #inLog = new Map<number, { readonly id: number; readonly term: number }>()
  /** Proposals that the core has not answered. */
  readonly #asked = new Set<number>()
  readonly #reads = new Set<number>()
  /** Changes of members and transfers. */
  readonly #requests = new Set<number>()

  constructor(replica: SimulatedReplica, environment: ReplicaEnvironment) {
    this.#replica = replica
    this.#environment = environment
  }

  get size(): number {
    return this.#inLog.size + this.unanswered
  }

  /** What the core has neither taken nor refused nor answered. */
  get unanswered(): number {
    return this.#asked.size + this.#reads.size + this.#requests.size
  }

  propose(id: number): void {
    this.#asked.add(id)
  }

  read(id: number): void {
    this.#reads.add(id)
  }

  request(id: number): void {
    this.#requests.add(id)
  }

  forget(id: number): void {
    this.#requests.delete(id)
  }

  /** Takes what a drain says about proposals and reads. */
  answered(output: Output, termAt: (index: number) => number | undefined): void {
    const environment = this.#environment
    for (const { id, index, term } of output.accepted) {
      if (!this.#asked.delete(id)) throw new Error(`proposal ${id} was accepted twice, or never made`)
      environment.proposalAccepted(this.#replica, id, index, term)
      if (termAt(index) === term) this.#inLog.set(index, { id, term })
      else environment.proposalEnded(this.#replica, id, 'unknown')
    }
    for (const { id, reason } of output.rejected) {
      if (reason === 'overloaded') environment.reach('overloaded')
      if (this.#requests.delete(id)) {
        environment.reach(`request-${reason}`)
        continue
      }
      if (this.#asked.delete(id)) environment.proposalEnded(this.#replica, id, 'refused')
      else if (this.#reads.delete(id)) environment.readEnded(this.#replica, id, 'refused', 0)
      else throw new Error(`${id} was rejected, but is neither a proposal nor a read that waits`)
    }
    for (const [what, answers] of [
      ['configured', output.configured],
      ['transferred', output.transferred],
    ] as const) {
      for (const { id } of answers) {
        if (!this.#requests.delete(id)) throw new Error(`request ${id} was answered twice, or never made`)
        environment.reach(what)
      }
    }
    for (const { id, index } of output.reads) {
      if (!this.#reads.delete(id)) throw new Error(`read ${id} was answered twice, or never asked`)
      environment.readEnded(this.#replica, id, 'confirmed', index)
    }
  }

  /** Entries that were cut here may live on elsewhere, and commit: the outcome is unknown. */
  truncated(firstIndex: number): void {
    for (const [index, { id }] of [...this.#inLog]) {
      if (index < firstIndex) continue
      this.#inLog.delete(index)
      this.#environment.proposalEnded(this.#replica, id, 'unknown')
    }
  }

  /** The log was replaced: the same of entries that are in it no more. */
  replaced(firstIndex: number, termAt: (index: number) => number | undefined): void {
    for (const [index, { id, term }] of [...this.#inLog]) {
      if (index < firstIndex || termAt(index) === term) continue
      this.#inLog.delete(index)
      this.#environment.proposalEnded(this.#replica, id, 'unknown')
    }
  }

  /** A snapshot covers what was waited for: whether it is in there, nobody here knows (hazard D6.51). */
  covered(lastIndex: number): void {
    for (const [index, { id }] of [...this.#inLog]) {
      if (index > lastIndex) continue
      this.#inLog.delete(index)
      this.#environment.proposalEnded(this.#replica, id, 'unknown')
    }
  }

  applied(entry: Entry): void {
    const proposal = this.#inLog.get(entry.index)
    if (proposal === undefined) return
    this.#inLog.delete(entry.index)
    if (proposal.term !== entry.term) this.#environment.proposalEnded(this.#replica, proposal.id, 'lost')
    else this.#environment.acknowledged(this.#replica, proposal.id, entry.index)
  }

  /** The process died: nobody knows how anything ends. */
  crashed(): void {
    const proposals = [...this.#inLog.values()].map(({ id }) => id).concat(...this.#asked)
    const reads = [...this.#reads]
    this.#inLog.clear()
    this.#asked.clear()
    this.#reads.clear()
    this.#requests.clear()
    for (const id of proposals) this.#environment.proposalEnded(this.#replica, id, 'unknown')
    for (const id of reads) this.#environment.readEnded(this.#replica, id, 'unknown', 0)
  }
}
