/**
 * Database: the few operations of a LevelDB that the engine uses, so that a simulated disk can stand in for it.
 *
 * Invariants: 1. a batch is atomic; 2. a batch written with `sync` is durable when its promise resolves; 3. batches become visible in the order in
 * which `write` was called; 4. an iterator sees the database as it was when `iterate` was called.
 */
import { ClassicLevel } from 'classic-level'
import { CorruptionError, QuorateError, RefusedError } from '../base/errors.js'

export interface DatabaseBatch {
  put(key: Uint8Array, value: Uint8Array): unknown
  del(key: Uint8Array): unknown
  write(options: { sync: boolean }): Promise<void>
}

export interface DatabaseRange {
  readonly gte: Uint8Array
  readonly lt: Uint8Array
  readonly reverse?: boolean
}

export interface DatabaseIterator {
  /** Up to `count` entries; empty at the end. */
  nextv(count: number): Promise<[Uint8Array, Uint8Array][]>
  close(): Promise<void>
}

export interface Database {
  getSync(key: Uint8Array): Uint8Array | undefined
  batch(): DatabaseBatch
  iterate(range: DatabaseRange): DatabaseIterator
  /** Forces everything written so far into fsynced tables: the durability barrier for writes without `sync`. */
  settle(): Promise<void>
  close(): Promise<void>
}

export interface DatabaseOptions {
  readonly cacheBytes: number
  readonly writeBufferBytes: number
}

/** Opens databases by folder. The node uses `openLevel`; the simulator brings its own. */
export type OpenDatabase = (location: string, options: DatabaseOptions) => Promise<Database>

/** Opens a LevelDB folder. Rejects with RefusedError `FOLDER_IN_USE` when another process has it open, CorruptionError when it is damaged. */
export const openLevel: OpenDatabase = async (location, options) => {
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
  return {
    getSync: (key) => level.getSync(key),
    batch: () => level.batch(),
    iterate: (range) => level.iterator({ ...range, highWaterMarkBytes: 256 * 1024, fillCache: false }),
    // Compacting a range without keys still flushes the memtable first and waits for its table to be fsynced.
    settle: () => level.compactRange(new Uint8Array([0xff, 0xff]), new Uint8Array([0xff, 0xff])),
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
