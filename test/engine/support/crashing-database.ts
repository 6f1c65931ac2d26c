/** A real database that stops after so many writes: nothing reaches the disk from then on, as at SIGKILL. */
import type { Database, DatabaseBatch } from '../../../src/engine/database.js'

export class CrashedError extends Error {}

export interface CrashingDatabase extends Database {
  /** Writes done so far. */
  readonly writes: number
  readonly crashed: boolean
}

/** Writes that are left until the crash, over all databases of a node. */
export class CrashBudget {
  writes = 0
  crashed = false
  readonly #limit: number

  constructor(limit: number) {
    this.#limit = limit
  }

  spend(): void {
    this.crashed ||= this.writes >= this.#limit
    if (this.crashed) throw new CrashedError('crashed')
    this.writes++
  }
}

/** `writesLeft` batches go through; the next one, and all after it, are lost and reject. */
export function crashAfter(database: Database, writesLeft: number | CrashBudget): CrashingDatabase {
  const budget = typeof writesLeft === 'number' ? new CrashBudget(writesLeft) : writesLeft
  const guarded = (batch: DatabaseBatch): DatabaseBatch => ({
    put: (key, value) => batch.put(key, value),
    del: (key) => batch.del(key),
    write: async (options) => {
      budget.spend()
      await batch.write(options)
    },
  })
  return {
    ...database,
    batch: () => guarded(database.batch()),
    get writes() {
      return budget.writes
    },
    get crashed() {
      return budget.crashed
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
