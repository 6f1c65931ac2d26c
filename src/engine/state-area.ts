/**
 * Areas: where a group's records lie in the state database. A group has two areas; one is current, the other is empty, being staged, or being emptied.
 *
 * Invariants:
 * 1. One record of the group names the current area. It changes in the same synced batch that makes the other area complete, so no half state is ever current.
 * 2. What lies in the area that is not current is nobody's: it is emptied at open, after a switch, and before anything is staged there.
 *
 * Layout (docs/formats.md): group, area, shard, type, rest; group, ff: the pointer.
 */
import { fromLatin1 } from '../base/bytes.js'
import { Reader, Writer } from '../base/codec.js'
import { CorruptionError } from '../base/errors.js'
import type { Database, DatabaseBatch, DatabaseReader } from './database.js'

/** 0 or 1. */
export type Area = number

const pointerVersion = 1
/** Keys deleted in one batch: bounds the memory, and the time that a flush of another group waits behind it. */
const keysPerBatch = 1000

/** The group's first two bytes of every key. */
export function groupPrefix(group: number): string {
  return String.fromCharCode(group >> 8, group & 0xff)
}

export function areaPrefix(group: number, area: Area): string {
  return groupPrefix(group) + String.fromCharCode(area)
}

function pointerKey(group: number): Buffer {
  return fromLatin1(`${groupPrefix(group)}\xff`)
}

/** The current area of a group; 0 for a new one. */
export function readCurrentArea(reader: DatabaseReader, group: number): Area {
  const bytes = reader.getSync(pointerKey(group))
  if (bytes === undefined) return 0
  const pointer = new Reader(bytes)
  const version = pointer.u8()
  const area = pointer.u8()
  pointer.end()
  if (version !== pointerVersion || area > 1) throw new CorruptionError(`state of group ${group}: version ${version}, area ${area} in its pointer`)
  return area
}

export function pointTo(batch: DatabaseBatch, group: number, area: Area): void {
  batch.put(pointerKey(group), new Writer(2).u8(pointerVersion).u8(area).finish())
}

/**
 * Deletes all records of an area, in parts, so that neither memory nor a crash in between matters. `pause` runs between the parts; a false answer ends it early.
 *
 * The deletions are synced: one that were lost after records of the same keys have been staged anew would bring back what it should have removed.
 */
export async function emptyArea(database: Database, group: number, area: Area, pause: () => Promise<boolean>): Promise<void> {
  const iterator = database.iterate({ gte: fromLatin1(areaPrefix(group, area)), lt: fromLatin1(areaPrefix(group, area + 1)), keysOnly: true })
  try {
    for (;;) {
      const page = await iterator.nextv(keysPerBatch)
      if (page.length === 0) return
      const batch = database.batch()
      for (const [key] of page) batch.del(key)
      await batch.write({ sync: true })
      if (!(await pause())) return
    }
  } finally {
    await iterator.close()
  }
}

/** Deletes all that a group has in the state database, in parts; false when `pause` ended it early. */
export async function deleteState(database: Database, group: number, pause: () => Promise<boolean>): Promise<boolean> {
  let isWanted = true
  const pauseOrEnd = async () => {
    isWanted = await pause()
    return isWanted
  }
  for (const area of [0, 1]) if (isWanted) await emptyArea(database, group, area, pauseOrEnd)
  if (!isWanted) return false
  const batch = database.batch()
  batch.del(pointerKey(group))
  await batch.write({ sync: true })
  return true
}
