/** A real database that stops after so many writes: nothing reaches the disk from then on, as at SIGKILL. */
import type { Database, DatabaseBatch } from '../../../src/engine/database.js'

export class CrashedError extends Error {}

export interface CrashingDatabase extends Database {
  /** Writes done so far. */
  readonly writes: number
  readonly crashed: boolean
}

/** `writesLeft` batches go through; the next one, and all after it, are lost and reject. */
export function crashAfter(database: Database, writesLeft: number): CrashingDatabase {
  let writes = 0
  let crashed = false
  const guarded = (batch: DatabaseBatch): DatabaseBatch => ({
    put: (key, value) => batch.put(key, value),
    del: (key) => batch.del(key),
    write: async (options) => {
      crashed ||= writes >= writesLeft
      if (crashed) throw new CrashedError('crashed')
      writes++
      await batch.write(options)
    },
  })
  return {
    ...database,
    batch: () => guarded(database.batch()),
    get writes() {
      return writes
    },
    get crashed() {
      return crashed
    },
  }
}

/** Every record of the database, for comparing. */
export async function dump(database: Database): Promise<string[]> {
  const iterator = database.iterate({ gte: Buffer.alloc(0), lt: Buffer.alloc(4, 0xff) })
  const found: string[] = []
  try {
    for (;;) {
      const page = await iterator.nextv(1000)
      if (page.length === 0) return found
      for (const [key, value] of page) found.push(`${Buffer.from(key).toString('latin1')}=${Buffer.from(value).toString('latin1')}`)
    }
  } finally {
    await iterator.close()
  }
}
