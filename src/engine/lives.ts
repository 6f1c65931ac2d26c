/**
 * Lives: which replicas live in this node's folder; makes new ones and destroys old ones while the node runs.
 *
 * A replica is never made by a Raft message. The leader of its group asks for one (`prepare`), the node makes an empty one under a life that was never used, durably, and only then
 * may the group make a member of it. So a node that lost its disk, one that was removed and comes back, and one whose log is damaged all come back as somebody new, of whom
 * nothing is believed that an earlier one said (hazards p5, m6, D5.45).
 *
 * Invariants:
 * 1. At most one replica of a group lives here. Its record is durable before it takes part, and marks it as doomed, durably, before anything of it is deleted.
 * 2. `prepare` is idempotent: while a healthy replica lives here, it is the answer. A damaged one is replaced.
 * 3. `destroy` names a life, and touches no other one.
 * 4. Of one group one thing happens at a time; what is slow for one group holds up no other.
 */
import type { Runtime } from '../base/runtime.js'
import type { DataFolder } from './data-folder.js'
import type { ReplicaRecord } from './identity.js'
import type { Replica } from './replica.js'

export interface LivesOptions {
  readonly folder: DataFolder
  readonly runtime: Runtime
  /** Loads the replica of a record and lets it take part; null when it is damaged. */
  readonly start: (record: ReplicaRecord) => Promise<Replica | null>
  /** Stops a group's replica and lets go of its stores, without writing what it still holds. Does nothing without one. */
  readonly stop: (group: number) => Promise<void>
  /** Deletes all that a group has stored. */
  readonly deleteData: (group: number) => Promise<void>
  /** Deleting failed: the node's disk is sick. */
  readonly onFailure: (error: unknown) => void
}

interface Place {
  record: ReplicaRecord | null
  /** The replica can never take part again. */
  isDamaged: boolean
  /** What happens to the group here; the next thing waits for it. */
  busy: Promise<unknown>
}

export class Lives {
  readonly #options: LivesOptions
  readonly #places = new Map<number, Place>()
  #closed = false

  constructor(options: LivesOptions) {
    this.#options = options
  }

  /** Starts the replicas of the folder, and goes on destroying those that were doomed. */
  async open(): Promise<void> {
    for (const record of await this.#options.folder.replicas()) {
      const place = this.#place(record.group)
      place.record = record
      if (record.isDoomed) void this.#inTurn(place, () => this.#finishDestroying(place, record))
      else place.isDamaged = (await this.#options.start(record)) === null
    }
  }

  /** The life of a group's replica here; undefined when there is none that may take part. */
  lifeOf(group: number): number | undefined {
    const place = this.#places.get(group)
    return place === undefined || place.record === null || place.record.isDoomed ? undefined : place.record.life
  }

  /** The groups whose replicas here are damaged, and wait to be replaced. */
  get damaged(): number[] {
    return [...this.#places].filter(([, { isDamaged }]) => isDamaged).map(([group]) => group)
  }

  /** A replica was found damaged while it ran: it takes part no more. */
  markDamaged(group: number): void {
    const place = this.#places.get(group)
    if (place !== undefined) place.isDamaged = true
  }

  /** The life of the group's replica here, which is made when there is none, or a damaged one. */
  prepare(group: number): Promise<number> {
    const place = this.#place(group)
    return this.#inTurn(place, async () => {
      if (place.record !== null && !place.record.isDoomed && !place.isDamaged) return place.record.life
      if (place.record !== null) await this.#destroy(place, place.record)
      return this.#create(place, { group, life: this.#newLife(), founders: [], isDoomed: false })
    })
  }

  /** Makes the replicas that a founder begins with. Their records are durable already. */
  async found(records: readonly ReplicaRecord[]): Promise<void> {
    for (const record of records) {
      const place = this.#place(record.group)
      await this.#inTurn(place, async () => {
        place.record = record
        place.isDamaged = (await this.#options.start(record)) === null
      })
    }
  }

  /** Destroys a replica, if it is of this life: it stops at once, and its data is deleted in the background. */
  async destroy(group: number, life: number): Promise<void> {
    const place = this.#places.get(group)
    if (place === undefined) return
    await this.#inTurn(place, async () => {
      const { record } = place
      if (record === null || record.isDoomed || record.life !== life) return
      const doomed = { ...record, isDoomed: true }
      await this.#doom(place, doomed)
      void this.#inTurn(place, () => this.#finishDestroying(place, doomed))
    })
  }

  async #create(place: Place, record: ReplicaRecord): Promise<number> {
    await this.#options.folder.storeReplica(record)
    place.record = record
    place.isDamaged = (await this.#options.start(record)) === null
    return record.life
  }

  async #destroy(place: Place, record: ReplicaRecord): Promise<void> {
    const doomed = { ...record, isDoomed: true }
    if (!record.isDoomed) await this.#doom(place, doomed)
    await this.#finishDestroying(place, doomed)
  }

  async #doom(place: Place, doomed: ReplicaRecord): Promise<void> {
    await this.#options.folder.storeReplica(doomed)
    place.record = doomed
    await this.#options.stop(doomed.group)
  }

  async #finishDestroying(place: Place, { group, life }: ReplicaRecord): Promise<void> {
    // Whoever prepared the next replica meanwhile has destroyed this one first, and what is stored now is the next one's.
    if (this.#closed || place.record?.life !== life || !place.record.isDoomed) return
    await this.#options.deleteData(group)
    if (this.#closed) return
    await this.#options.folder.forgetReplica(group)
    place.record = null
    place.isDamaged = false
  }

  #place(group: number): Place {
    let place = this.#places.get(group)
    if (place === undefined) {
      place = { record: null, isDamaged: false, busy: Promise.resolve() }
      this.#places.set(group, place)
    }
    return place
  }

  /** Runs when all that was asked for this group before is done. */
  #inTurn<T>(place: Place, run: () => Promise<T>): Promise<T> {
    const result = place.busy.then(run)
    place.busy = result.catch((error: unknown) => {
      if (!this.#closed) this.#options.onFailure(error)
    })
    return result
  }

  /** A random number that no replica here had before, but for a chance of one in four billion; never 0. */
  #newLife(): number {
    const bytes = this.#options.runtime.randomBytes(4)
    return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0) || 1
  }

  /** Waits for what is under way; what is still to be deleted goes at the next start. */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([...this.#places.values()].map(({ busy }) => busy))
  }
}
