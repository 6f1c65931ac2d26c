/** A core around a core that changes nothing: mutations override what they break. */
import type { Configuration, Consensus, Entry, Input, NodeId, Output, PeerProgress, RaftStatus, Role } from '../../raft/types.js'

export class CoreWrapper implements Consensus {
  protected readonly inner: Consensus

  constructor(inner: Consensus) {
    this.inner = inner
  }

  step(input: Input): void {
    this.inner.step(input)
  }

  drain(): Output {
    return this.inner.drain()
  }

  get dirty(): boolean {
    return this.inner.dirty
  }

  get role(): Role {
    return this.inner.role
  }

  get term(): number {
    return this.inner.term
  }

  get isTransferring(): boolean {
    return this.inner.isTransferring
  }

  get leader(): NodeId | null {
    return this.inner.leader
  }

  get commitIndex(): number {
    return this.inner.commitIndex
  }

  get lastIndex(): number {
    return this.inner.lastIndex
  }

  get firstIndex(): number {
    return this.inner.firstIndex
  }

  get configuration(): Configuration {
    return this.inner.configuration
  }

  configurationAt(index: number): Configuration | undefined {
    return this.inner.configurationAt(index)
  }

  progress(): readonly PeerProgress[] {
    return this.inner.progress()
  }

  get nextTickMs(): number {
    return this.inner.nextTickMs
  }

  status(): RaftStatus {
    return { ...this.inner.status(), commitIndex: this.commitIndex }
  }

  termAt(index: number): number | undefined {
    return this.inner.termAt(index)
  }

  entries(firstIndex: number, lastIndex: number, maxBytes: number): readonly Entry[] {
    return this.inner.entries(firstIndex, lastIndex, maxBytes)
  }
}
