/**
 * Database: the few operations of a LevelDB that the engine uses, so that a simulated disk can stand in for it.
 *
 * Invariants: 1. a batch is atomic; 2. a batch written with `sync` is durable when its promise resolves; 3. batches become visible in the order in
 * which `write` was called; 4. an iterator sees the database as it was when `iterate` was called.
 */
import { mkdir } from 'node:fs/promises'
import type { AbstractSnapshot } from 'abstract-level'
import { ClassicLevel } from 'classic-level'
import { CorruptionError, QuorateError, RefusedError } from '../base/errors.js'

export interface DatabaseBatch {
  /** Copies what it is given. */
  put(key: Uint8Array, value: Uint8Array): unknown
  del(key: Uint8Array): unknown
  write(options: { sync: boolean }): Promise<void>
}

export interface DatabaseRange {
  readonly gte: Uint8Array
  readonly lt: Uint8Array
  readonly reverse?: boolean
  /** Leave the values out: they come as undefined. */
  readonly keysOnly?: boolean
}

export interface DatabaseIterator {
  /** Up to `count` entries; empty at the end. */
  nextv(count: number): Promise<[Uint8Array, Uint8Array][]>
  close(): Promise<void>
}

/** What can be read: of the database as it is, or of a snapshot of it. */
export interface DatabaseReader {
  getSync(key: Uint8Array): Uint8Array | undefined
  iterate(range: DatabaseRange): DatabaseIterator
}

/** The database as it was at one moment. It costs nothing to make, and holds back the removal of what was overwritten since: close it in bounded time. */
export interface DatabaseSnapshot extends DatabaseReader {
  close(): Promise<void>
}

export interface Database extends DatabaseReader {
  batch(): DatabaseBatch
  snapshot(): DatabaseSnapshot
  close(): Promise<void>
}

export interface DatabaseOptions {
  readonly cacheBytes: number
  readonly writeBufferBytes: number
}

/** Opens databases by folder, which is made when it is not there. The node uses `openLevel`; the simulator brings its own. */
export type OpenDatabase = (location: string, options: DatabaseOptions) => Promise<Database>

/** Opens a LevelDB folder, made when it is not there. Rejects with RefusedError `FOLDER_IN_USE` when another process has it open, CorruptionError when it is damaged. */
export const openLevel: OpenDatabase = async (location, options) => {
  await mkdir(location, { recursive: true })
  const level = new ClassicLevel<Uint8Array, Uint8Array>(location, {
    keyEncoding: 'buffer',
    valueEncoding: 'buffer',
    cacheSize: options.cacheBytes,
    writeBufferSize: options.writeBufferBytes,
    compression: true,
  })
  try {
    await level.open()
  } catch (cause) {
    throw describeOpenFailure(location, cause)
  }
  const open = ({ keysOnly = false, ...range }: DatabaseRange, snapshot?: AbstractSnapshot) =>
    level.iterator({ ...range, values: !keysOnly, highWaterMarkBytes: 256 * 1024, fillCache: false, ...(snapshot === undefined ? {} : { snapshot }) })
  const get = (key: Uint8Array, snapshot?: AbstractSnapshot) => {
    try {
      return snapshot === undefined ? level.getSync(key) : level.getSync(key, { snapshot })
    } catch (cause) {
      throw describeReadFailure(location, cause)
    }
  }
  const iterate = (range: DatabaseRange, snapshot?: AbstractSnapshot): DatabaseIterator => {
    const iterator = open(range, snapshot)
    return {
      nextv: (count) =>
        iterator.nextv(count).catch((cause: unknown) => {
          throw describeReadFailure(location, cause)
        }),
      close: () => iterator.close(),
    }
  }
  return {
    getSync: (key) => get(key),
    batch: () => level.batch(),
    iterate: (range) => iterate(range),
    snapshot: () => {
      const snapshot = level.snapshot()
      return {
        getSync: (key) => get(key, snapshot),
        iterate: (range) => iterate(range, snapshot),
        close: () => snapshot.close(),
      }
    },
    close: () => level.close(),
  }
}

function describeOpenFailure(location: string, cause: unknown): QuorateError {
  const inner = cause instanceof Error && cause.cause instanceof Error ? cause.cause : cause
  const code = (inner as { code?: unknown }).code
  const text = inner instanceof Error ? inner.message : String(inner)
  if (code === 'LEVEL_LOCKED') return new RefusedError('FOLDER_IN_USE', `${location} is open in another process or node`, { cause })
  if (code === 'LEVEL_CORRUPTION') return new CorruptionError(`${location} is damaged: ${text}`, 'CORRUPTION', { cause })
  return new QuorateError('OPEN_FAILED', `${location} cannot be opened: ${text}`, false, { cause })
}

/** Damage that is met when reading, which callers tell from a database that is closed, and the like. */
function describeReadFailure(location: string, cause: unknown): unknown {
  if (!(cause instanceof Error) || (cause as { code?: unknown }).code !== 'LEVEL_CORRUPTION') return cause
  return new CorruptionError(`${location} is damaged: ${cause.message}`, 'CORRUPTION', { cause })
}
