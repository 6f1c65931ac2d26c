/**
 * Known bugs between the caller and the state machine, put back by the seams: what makes a key-value store lie to its clients though its consensus is sound. Each breaks one of K1 to K6, or what watches promise.
 */
import { OutcomeUnknownError, UnavailableError } from '../../base/errors.js'
import { CommandStatus } from '../../engine/command.js'
import { History } from '../../engine/history.js'
import { KvMachine } from '../../engine/kv-machine.js'
import { RecordType } from '../../engine/records.js'
import { Replica } from '../../engine/replica.js'
import { SessionRecord } from '../../engine/session-record.js'
import type { RecordCursor } from '../../engine/state-store.js'
import { StateStore } from '../../engine/state-store.js'
import { ValueRecord } from '../../engine/value-record.js'
import { Dispatcher } from '../../shard/dispatcher.js'
import { GroupRoute } from '../../shard/group-route.js'
import type { NodeMutation } from './mutations.js'

/** Keys of the state store begin with shard (2 units) and type (1). */
const keyAt = 3

export const clientMutations: readonly NodeMutation[] = [
  {
    name: 'version-not-raised',
    description: 'What is stored has the version before, though the answer names the next one (K2)',
    plant: (seams) => {
      seams.replace(StateStore, 'set', (set) => {
        return function (key, record) {
          const isLater = record instanceof ValueRecord && record.version > 3
          return set.call(this, key, isLater ? new ValueRecord(record.version - 1, record.revision, record.value) : record)
        }
      })
    },
  },
  {
    name: 'version-used-again',
    description: 'A key that was deleted and is written anew goes on where its versions ended (K2)',
    plant: (seams) => {
      const versions = new WeakMap<StateStore, Map<string, number>>()
      seams.replace(StateStore, 'set', (set) => {
        return function (key, record) {
          const deleted = versions.get(this) ?? new Map<string, number>()
          versions.set(this, deleted)
          const before = this.get(key)
          if (record === null && before instanceof ValueRecord) deleted.set(key, before.version)
          const isAnew = record instanceof ValueRecord && record.version === 1 && deleted.has(key)
          return set.call(this, key, isAnew ? new ValueRecord(deleted.get(key)! + 1, record.revision, record.value) : record)
        }
      })
    },
  },
  {
    name: 'retry-under-another-id',
    description: 'A write that is sent again gets a request id of its own (K3, D9.64)',
    plant: (seams) => {
      seams.replace(GroupRoute, 'add', (add) => {
        return function (operation) {
          if (operation.kind === 'write' && operation.uncertain) Object.assign(operation, { sequence: operation.sequence + 1_000_000 })
          return add.call(this, operation)
        }
      })
    },
  },
  {
    name: 'doubt-told-as-failure',
    description: 'A write whose deadline passes while it is under way is reported as not done (K4)',
    plant: (seams) => {
      seams.replace(Dispatcher, 'wait', (wait) => {
        return function (options, make) {
          return wait.call(this, options, (sequence, waiting) =>
            make(sequence, {
              ...waiting,
              reject: (error) => waiting.reject(error instanceof OutcomeUnknownError ? new UnavailableError('too late', 'TIMEOUT') : error),
            }),
          )
        }
      })
    },
  },
  {
    name: 'transaction-half-done',
    description: 'Of the writes of a transaction the second is lost (K6)',
    plant: (seams) => {
      const last = new WeakMap<StateStore, { key: string; revision: number }>()
      seams.replace(StateStore, 'set', (set) => {
        return function (key, record) {
          if (record instanceof ValueRecord) {
            const { revision } = record
            const before = last.get(this)
            last.set(this, { key, revision })
            if (before?.revision === revision && before.key !== key && before.key.slice(0, keyAt) === key.slice(0, keyAt)) return
          }
          return set.call(this, key, record)
        }
      })
    },
  },
  {
    name: 'unchanged-transaction-forgotten',
    description: 'That a transaction which changed nothing is over is not written down: a late copy of it is done after all (K3)',
    plant: (seams) => {
      seams.replace(SessionRecord, 'complete', (complete) => {
        return function (sequence, result, birth, timeMs) {
          if (result.status !== CommandStatus.again) complete.call(this, sequence, result, birth, timeMs)
        }
      })
    },
  },
  {
    name: 'results-not-kept',
    description: 'What a transaction found is not kept with its effect: a retry is told that it was done, and not what (K3)',
    plant: (seams) => {
      seams.replace(SessionRecord, 'complete', (complete) => {
        return function (sequence, { status, version, revision }, birth, timeMs) {
          complete.call(this, sequence, { status, version, revision }, birth, timeMs)
        }
      })
    },
  },
  {
    name: 'read-remembered',
    description: 'A replica answers every second read of a key with what it answered before (K5)',
    plant: (seams) => {
      const remembered = new WeakMap<KvMachine, Map<string, ValueRecord | undefined>>()
      seams.replace(KvMachine, 'read', (read) => {
        return function (shard, key) {
          const known = remembered.get(this) ?? new Map<string, ValueRecord | undefined>()
          remembered.set(this, known)
          const name = `${shard} ${Buffer.from(key).toString('latin1')}`
          if (known.has(name)) {
            const before = known.get(name)
            known.delete(name)
            return before
          }
          const record = read.call(this, shard, key)
          known.set(name, record)
          return record
        }
      })
    },
  },
  {
    name: 'page-not-of-one-moment',
    description: 'A page of a scan is read entry by entry, each as of its own moment (K6)',
    plant: (seams) => {
      seams.replace(KvMachine, 'scan', (scan) => {
        return function (shard, gte, lt, reverse) {
          let [from, to] = [gte, lt]
          const cursor: Pick<RecordCursor, 'next' | 'close'> = {
            next: async () => {
              const one = scan.call(this, shard, from, to, reverse)
              const found = await one.next()
              await one.close()
              if (found === undefined) return undefined
              const key = Buffer.from(found.key.slice(keyAt), 'latin1')
              if (reverse) to = key
              else from = Buffer.concat([key, Buffer.from([0])])
              return found
            },
            close: async () => {},
          }
          return cursor as RecordCursor
        }
      })
    },
  },
  {
    name: 'event-left-out',
    description: 'Of the writes of a transaction only the first is in the history that watches are told (W2, W3)',
    plant: (seams) => {
      const last = new WeakMap<History, Map<number, number>>()
      seams.replace(History, 'record', (record) => {
        return function (shard, key, value, revision) {
          const revisions = last.get(this) ?? new Map<number, number>()
          last.set(this, revisions)
          if (revisions.get(shard) === revision) return
          revisions.set(shard, revision)
          record.call(this, shard, key, value, revision)
        }
      })
    },
  },
  {
    name: 'event-told-twice',
    description: 'A watch goes on with the event that it ended with (W1)',
    plant: (seams) => {
      seams.replace(History, 'read', (read) => {
        return function (shard, after, visitor) {
          read.call(this, shard, Math.max(0, after - 1), visitor)
        }
      })
    },
  },
  {
    name: 'snapshot-without-history',
    description: 'A snapshot leaves out the history: whoever leads after it cannot tell watches what they missed (W4)',
    plant: (seams) => {
      seams.replace(Replica, 'stage', (stage) => {
        return function (records) {
          return stage.call(
            this,
            records.filter(([key]) => key[2] !== RecordType.history),
          )
        }
      })
    },
  },
]
