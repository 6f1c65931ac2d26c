/**
 * Known bugs of host, stores and state machine, put back by the seams: what real systems did wrong around a sound consensus core. The simulator is only worth something if
 * it catches each within a budget of seeds.
 *
 * Numbers in the descriptions are rows of the hazards catalogue.
 */
import { CorruptionError } from '../../base/errors.js'
import type { DatabaseBatch, DatabaseIterator, DatabaseRange } from '../../engine/database.js'
import { KvMachine } from '../../engine/kv-machine.js'
import { type GroupWork, LogStore } from '../../engine/log-store.js'
import { Replica } from '../../engine/replica.js'
import { StateStore } from '../../engine/state-store.js'
import { RaftCore } from '../../raft/core.js'
import type { MessageNow } from '../../raft/types.js'
import { Bindings } from '../../shard/founding.js'
import { clientMutations } from './client-mutations.js'
import { SimulatedDatabase } from './disk.js'
import type { Seams } from './seams.js'
import { SimulatedProcess } from './world.js'

export interface NodeMutation {
  readonly name: string
  /** What goes wrong. */
  readonly description: string
  readonly plant: (seams: Seams) => void
}

/** A batch that does something else with what is put into it. */
function changedBatches(
  seams: Seams,
  database: 'log' | 'state',
  change: (batch: DatabaseBatch, make: () => DatabaseBatch) => Partial<DatabaseBatch>,
): void {
  seams.replace(SimulatedDatabase, 'batch', (batch) => {
    return function () {
      const sound = batch.call(this)
      if (!this.location.endsWith(`/${database}`)) return sound
      const made: DatabaseBatch = {
        put: (key, value) => sound.put(key, value),
        del: (key) => sound.del(key),
        write: (options) => sound.write(options),
      }
      return Object.assign(
        made,
        change(sound, () => batch.call(this)),
      )
    }
  })
}

/** What the host gives the log to write is something else. */
function changedWorks(seams: Seams, change: (each: GroupWork) => GroupWork): void {
  seams.replace(LogStore, 'write', (write) => {
    return function (works) {
      return write.call(this, works.map(change))
    }
  })
}

/** Keys of the state database: group (2 bytes), area (1), shard (2), type (1), rest. */
const typeAt = 5
const sessionType = 2
const isSession = (key: Uint8Array): boolean => key[typeAt] === sessionType && !(key[3] === 0xff && key[4] === 0xff)
const isAppliedIndex = (key: Uint8Array): boolean => key.length === 6 && key[3] === 0xff && key[4] === 0xff && key[5] === 0x61
/** Keys of the log database. */
const recordPrefix = 0x02

export const nodeMutations: readonly NodeMutation[] = [
  {
    name: 'host-acknowledges-before-sync',
    description: 'A log write is taken for done when it is begun (D1.4, D1.5)',
    plant: (seams) => {
      seams.replace(LogStore, 'write', (write) => {
        return function (works) {
          write.call(this, works).catch(() => {})
          return Promise.resolve()
        }
      })
    },
  },
  {
    name: 'host-releases-messages-early',
    description: 'What must wait for the disk is sent at once (D1.2, D1.5)',
    plant: (seams) => {
      seams.replace(RaftCore, 'drain', (drain) => {
        return function () {
          const output = drain.call(this)
          const { id } = this.status()
          // Only what goes to others: a message to oneself cannot be sent.
          const early = output.sendAfterPersist.filter(({ to }) => to !== id)
          return {
            ...output,
            sendNow: [...output.sendNow, ...(early as unknown as MessageNow[])],
            sendAfterPersist: output.sendAfterPersist.filter(({ to }) => to === id),
          }
        }
      })
    },
  },
  {
    name: 'host-ignores-failed-sync',
    description: 'A log write that failed is taken for done (d12, D7)',
    plant: (seams) => {
      seams.replace(LogStore, 'write', (write) => {
        return function (works) {
          return write.call(this, works).catch(() => {})
        }
      })
    },
  },
  {
    name: 'log-not-synced',
    description: 'The log is written without sync (D1.8)',
    plant: (seams) => changedBatches(seams, 'log', (batch) => ({ write: () => batch.write({ sync: false }) })),
  },
  {
    name: 'hard-state-dropped',
    description: 'Term and vote are left out of the batch (D1.1)',
    plant: (seams) => changedWorks(seams, (each) => (each.work === null ? each : { ...each, work: { ...each.work, hardState: null } })),
  },
  {
    name: 'hard-state-lost-on-disk',
    description: 'Term and vote are in the batch, but not under their key (D1.1)',
    plant: (seams) =>
      changedBatches(seams, 'log', (batch) => ({ put: (key, value) => (key[0] === 0x01 && key.length === 3 ? undefined : batch.put(key, value)) })),
  },
  {
    name: 'truncation-forgotten-on-disk',
    description: 'Records that a conflict replaces stay in the log database (D2.12)',
    plant: (seams) => changedBatches(seams, 'log', (batch) => ({ del: (key) => (key[0] === recordPrefix ? undefined : batch.del(key)) })),
  },
  {
    name: 'flush-ahead-of-log',
    description: 'The state of entries is flushed whose log write is still in flight (D1.7)',
    plant: (seams) => {
      seams.replace(RaftCore, 'status', (status) => {
        return function () {
          const found = status.call(this)
          return { ...found, durableIndex: found.lastIndex }
        }
      })
    },
  },
  {
    name: 'applied-index-behind-data',
    description: 'The applied index is saved after the data, in a batch of its own (D1.7)',
    plant: (seams) =>
      changedBatches(seams, 'state', (batch, make) => {
        let applied: [Uint8Array, Uint8Array] | null = null
        return {
          put: (key, value) => {
            if (isAppliedIndex(key)) applied = [Buffer.from(key), Buffer.from(value)]
            else batch.put(key, value)
          },
          write: async (options) => {
            await batch.write(options)
            if (applied === null) return
            const later = make()
            later.put(...applied)
            await later.write(options)
          },
        }
      }),
  },
  {
    name: 'applied-index-ahead-of-data',
    description: 'The applied index is saved before the data, in a batch of its own (D1.7)',
    plant: (seams) =>
      changedBatches(seams, 'state', (batch, make) => {
        let applied: [Uint8Array, Uint8Array] | null = null
        return {
          put: (key, value) => {
            if (isAppliedIndex(key)) applied = [Buffer.from(key), Buffer.from(value)]
            else batch.put(key, value)
          },
          write: async (options) => {
            if (applied !== null) {
              const earlier = make()
              earlier.put(...applied)
              await earlier.write(options)
            }
            await batch.write(options)
          },
        }
      }),
  },
  {
    name: 'completion-records-not-saved',
    description: 'What a request was answered is not flushed with its effect (K3)',
    plant: (seams) => changedBatches(seams, 'state', (batch) => ({ put: (key, value) => (isSession(key) ? undefined : batch.put(key, value)) })),
  },
  {
    name: 'completion-records-not-read',
    description: 'A repeated request is carried out again (K3)',
    plant: (seams) => {
      seams.replace(StateStore, 'get', (get) => {
        return function (key) {
          return key.charCodeAt(2) === sessionType ? undefined : get.call(this, key)
        }
      })
    },
  },
  {
    name: 'replay-skips-an-entry',
    description: 'After a restart the replay begins one entry too late (D1.7)',
    plant: (seams) => {
      seams.replace(StateStore, 'open', (open) => {
        return async function () {
          await open.call(this)
          if (this.appliedIndex > 0) this.advance(this.appliedIndex + 1)
        }
      })
    },
  },
  {
    name: 'read-without-index',
    description: 'A leader answers reads from its own state, without asking anybody (D4.33, D4.34)',
    plant: (seams) => {
      seams.replace(Replica, 'awaitReadable', () => {
        return (reply) => reply(null)
      })
    },
  },
  {
    name: 'read-not-awaited',
    description: 'A read is served when its index is confirmed, before the state has reached it (D4.33)',
    plant: (seams) => {
      seams.replace(Replica, 'settle', (settle) => {
        return function (output) {
          settle.call(this, { ...output, reads: output.reads.map(({ id }) => ({ id, index: 0 })) })
        }
      })
    },
  },
  {
    name: 'applies-before-commit',
    description: 'Entries are applied when they are in the log (D2.13)',
    plant: (seams) => seams.replaceGetter(RaftCore, 'commitIndex', (core) => core.lastIndex),
  },
  {
    name: 'apply-not-deterministic',
    description: 'The state machine asks its own memory, not the log: a shard’s revision starts anew with each life (D9.63)',
    plant: (seams) => {
      seams.replace(KvMachine, 'saveShards', () => {
        return () => {}
      })
    },
  },
  {
    name: 'snapshot-not-of-one-moment',
    description: 'A snapshot is read from the database as it is by then, not as it was when it was taken (R13)',
    plant: (seams) => {
      seams.replace(SimulatedDatabase, 'snapshot', (snapshot) => {
        return function () {
          const sound = snapshot.call(this)
          const iterate = (range: DatabaseRange): DatabaseIterator => {
            const live = this.iterate(range)
            return {
              // The index stays that of the snapshot: the receiver compares it.
              nextv: async (count) => (await live.nextv(count)).map(([key, value]) => [key, isAppliedIndex(key) ? sound.getSync(key)! : value]),
              close: () => live.close(),
            }
          }
          return { ...sound, iterate }
        }
      })
    },
  },
  {
    name: 'snapshot-without-completions',
    description: 'A snapshot leaves out what requests were answered (K3, S4)',
    plant: (seams) => {
      seams.replace(Replica, 'stage', (stage) => {
        return function (records) {
          return stage.call(
            this,
            records.filter(([key]) => key[2] !== sessionType || (key[0] === 0xff && key[1] === 0xff)),
          )
        }
      })
    },
  },
  {
    name: 'half-installed-state-visible',
    description: 'The state is switched when a snapshot begins to be staged, not when it is whole (D6.52)',
    plant: (seams) =>
      changedBatches(seams, 'state', (batch) => ({
        put: (key, value) => {
          // The pointer of a group names its current area; what is staged lies in the other one.
          if (key.length > 3 && key[2] !== 0xff) batch.put(Buffer.from([key[0]!, key[1]!, 0xff]), Buffer.from([1, key[2]!]))
          batch.put(key, value)
        },
      })),
  },
  {
    name: 'log-not-reset-after-install',
    description: 'The log stays as it was when a snapshot is installed (D2.20, D6.47)',
    plant: (seams) => changedWorks(seams, (each) => (each.work === null ? each : { ...each, work: { ...each.work, reset: null } })),
  },
  {
    name: 'log-compacted-beyond-flush',
    description: 'The log is cut by what is applied in memory, not by what the state database holds (D1)',
    plant: (seams) => seams.replaceGetter(StateStore, 'flushedIndex', (store) => store.appliedIndex),
  },
  {
    name: 'state-not-synced',
    description: 'The state is written without sync, and the log cut by it all the same (D1.10)',
    plant: (seams) => changedBatches(seams, 'state', (batch) => ({ write: () => batch.write({ sync: false }) })),
  },
  {
    name: 'wiped-founder-votes',
    description: 'A founder that lost its folder comes back as who it was (p5, D5.45)',
    plant: (seams) => {
      seams.replace(Bindings, 'answer', (answer) => {
        return async function (from, request) {
          const answered = await answer.call(this, from, request)
          // Bound: never heard of an earlier folder.
          return answered.length === 1 ? answered : Uint8Array.of(0)
        }
      })
    },
  },
  {
    name: 'damaged-log-begun-anew',
    description: 'A log that is damaged is begun anew under the same name (d5, D6)',
    plant: (seams) => {
      seams.replace(LogStore, 'load', (load) => {
        return async function (group) {
          try {
            return await load.call(this, group)
          } catch (error) {
            if (!(error instanceof CorruptionError)) throw error
            await this.remove(group)
            return undefined
          }
        }
      })
    },
  },
  {
    name: 'old-life-believed',
    description: 'A replica that is made anew takes the name of the one before it (m6, D5.45)',
    plant: (seams) => {
      seams.replace(SimulatedProcess, 'randomBytes', (randomBytes) => {
        // Lives are the only numbers of four bytes that the engine draws.
        return function (length) {
          return length === 4 ? Uint8Array.of(0, 0, 0, 7) : randomBytes.call(this, length)
        }
      })
    },
  },
  ...clientMutations,
]
