/**
 * Snapshots: sends and receives the snapshots of this node's replicas: puts src/snapshot, the replicas and the messenger together.
 *
 * Invariant: a snapshot that is sent is the state that its group's database held at one moment, with the term and the configuration of the log at that index.
 */
import { UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { InstallRequest, NodeId } from '../raft/types.js'
import { SnapshotErrorCode } from '../snapshot/messages.js'
import { SnapshotReceiver, type SnapshotTarget, type TransferStatus } from '../snapshot/receiver.js'
import { type SnapshotCapture, SnapshotSender } from '../snapshot/sender.js'
import type { MessengerFace } from '../transport/messenger.js'
import type { Address } from '../transport/transport.js'
import { nodeOf } from './identity.js'
import type { Replica } from './replica.js'

export interface SnapshotsOptions {
  readonly messenger: MessengerFace
  readonly runtime: Runtime
  readonly addressOf: (nodeId: NodeId) => Address | undefined
  /** The replica of a group here, if it takes part. */
  readonly replicaOf: (group: number) => Replica | undefined
  readonly chunkBytes: number
  readonly maxBytesPerSecond: number
  readonly onFailure: (group: number, error: unknown) => void
}

export class Snapshots {
  readonly #options: SnapshotsOptions
  readonly #sender: SnapshotSender
  readonly #receiver: SnapshotReceiver

  constructor(options: SnapshotsOptions) {
    this.#options = options
    const { messenger, runtime, addressOf, chunkBytes, maxBytesPerSecond, onFailure } = options
    this.#sender = new SnapshotSender({ messenger, runtime, chunkBytes, capture: (group) => this.#capture(group) })
    this.#receiver = new SnapshotReceiver({ messenger, runtime, addressOf, maxBytesPerSecond, onFailure })
  }

  /** Snapshots that are being sent from here. */
  get sending(): number {
    return this.#sender.sessions
  }

  /** The snapshot that a group's replica here is fetching; undefined for none. */
  receiving(group: number): TransferStatus | undefined {
    return this.#receiver.status(group)
  }

  /** The log after this index is needed by those who receive a snapshot of the group from here. */
  neededAfter(group: number): number {
    return this.#sender.neededAfter(group)
  }

  /** Bytes of the largest snapshot of a group that is being sent from here, or was a short while ago. */
  sentBytes(group: number): number {
    return this.#sender.sentBytes(group)
  }

  /** A replica was offered a snapshot that it needs. */
  offered(replica: Replica, { from, index }: InstallRequest): void {
    if (!replica.stopped) this.#receiver.offer(replica.group, nodeOf(from), index, targetOf(replica))
  }

  #capture(group: number): SnapshotCapture {
    const replica = this.#options.replicaOf(group)
    if (replica === undefined || replica.stopped) throw new UnavailableError(`group ${group} is not served here`, SnapshotErrorCode.none)
    return replica.capture()
  }

  /** A group's replica stops: nothing of it is sent, staged or installed any more. */
  async stop(group: number): Promise<void> {
    this.#sender.drop(group)
    await this.#receiver.cancel(group)
  }

  async close(): Promise<void> {
    await Promise.all([this.#sender.close(), this.#receiver.close()])
  }
}

function targetOf(replica: Replica): SnapshotTarget {
  return {
    get appliedIndex() {
      return replica.appliedIndex
    },
    begin: () => replica.beginInstall(),
    stage: (records) => replica.stage(records),
    install: (manifest) => replica.install(manifest),
    discard: () => replica.abandonInstall(),
  }
}
