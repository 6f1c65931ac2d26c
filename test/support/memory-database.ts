/** Databases that live in this process, for tests whose subject is not the disk. What is written is there at once, and is gone with the process. */
import { fromLatin1, toLatin1 } from '../../src/base/bytes.js'
import type { Database, DatabaseIterator, DatabaseRange, OpenDatabase } from '../../src/engine/database.js'
import { lowerBoundOf, type RecordView, SortedRecords, valueIn } from '../../src/testing/node-simulation/sorted-records.js'

/** Opens databases by their locations; each is kept for whoever opens it again. */
export function memoryDatabases(): OpenDatabase {
  const all = new Map<string, SortedRecords>()
  return async (location) => {
    const records = all.get(location) ?? new SortedRecords()
    all.set(location, records)
    return open(records)
  }
}

function open(records: SortedRecords): Database {
  return {
    getSync: (key) => records.get(toLatin1(key)),
    batch: () => {
      const operations: [string, Uint8Array | null][] = []
      return {
        put: (key, value) => operations.push([toLatin1(key), Buffer.from(value)]),
        del: (key) => operations.push([toLatin1(key), null]),
        write: async () => {
          // In a later turn, as a disk would.
          await new Promise((resolve) => setImmediate(resolve))
          for (const [key, value] of operations) {
            if (value === null) records.delete(key)
            else records.put(key, value)
          }
        },
      }
    },
    iterate: (range) => iterate(records.view(), range),
    snapshot: () => {
      const view = records.view()
      return { getSync: (key) => valueIn(view, toLatin1(key)), iterate: (range) => iterate(view, range), close: async () => {} }
    },
    close: async () => {},
  }
}

function iterate({ keys, values }: RecordView, { gte, lt, reverse = false, keysOnly = false }: DatabaseRange): DatabaseIterator {
  const start = lowerBoundOf(keys, toLatin1(gte))
  const end = lowerBoundOf(keys, toLatin1(lt))
  let given = 0
  return {
    nextv: async (count) => {
      const page: [Uint8Array, Uint8Array][] = []
      for (; page.length < count && start + given < end; given++) {
        const at = reverse ? end - 1 - given : start + given
        page.push([fromLatin1(keys[at]!), keysOnly ? (undefined as unknown as Uint8Array) : values[at]!])
      }
      return page
    },
    close: async () => {},
  }
}
