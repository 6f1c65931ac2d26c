/**
 * Watch cursors: where a watch stands, as a text that an application may keep: a revision for each shard of its range. Format: docs/formats.md.
 *
 * Invariant: a cursor is taken only whole, undamaged and by the cluster that it is of: else a watch could miss events, or tell them twice, without a word.
 */
import { crc32 } from 'node:zlib'
import { Reader, Writer } from '../base/codec.js'
import { InvalidArgumentError } from '../base/errors.js'

const cursorVersion = 1
const clusterIdBytes = 8
/** Far more than the largest cluster needs: longer texts are not looked at. */
const maxCursorLength = 128 * 1024

/** By shard: everything up to this revision was told. */
export type Positions = ReadonlyMap<number, number>

/** `clusterId` in hexadecimal digits. */
export function encodeCursor(clusterId: string, shards: number, positions: Positions): string {
  const writer = new Writer(32 + positions.size * 6).u8(cursorVersion).raw(Buffer.from(clusterId, 'hex')).varint(shards).varint(positions.size)
  let before = 0
  for (const [shard, revision] of [...positions].sort(([left], [right]) => left - right)) {
    writer.varint(shard - before).varint(revision)
    before = shard
  }
  writer.u32(crc32(writer.view()))
  return Buffer.from(writer.view()).toString('base64url')
}

/** Throws InvalidArgumentError `BAD_CURSOR`. */
export function decodeCursor(cursor: string, clusterId: string, shards: number): Map<number, number> {
  if (typeof cursor !== 'string') throw new InvalidArgumentError(`Expected a cursor of type string, got ${typeof cursor}`)
  if (cursor.length > maxCursorLength || !/^[\w-]+$/.test(cursor)) throw badCursor('it is not one')
  const bytes = Buffer.from(cursor, 'base64url')
  const end = bytes.length - 4
  if (end < 1 || bytes.readUInt32BE(end) !== crc32(bytes.subarray(0, end)) || bytes.toString('base64url') !== cursor) throw badCursor('it is damaged')
  try {
    const reader = new Reader(bytes, 0, end)
    const version = reader.u8()
    if (version !== cursorVersion) throw badCursor(`its version is ${version}`)
    const cluster = Buffer.from(reader.raw(clusterIdBytes)).toString('hex')
    if (cluster !== clusterId) throw badCursor(`it is of cluster ${cluster}`)
    if (reader.varint() !== shards) throw badCursor(`the cluster has ${shards} shards`)
    const positions = new Map<number, number>()
    let shard = 0
    for (let left = reader.count(2); left > 0; left--) {
      shard += reader.varint()
      positions.set(shard, reader.varint())
    }
    reader.end()
    return positions
  } catch (cause) {
    throw cause instanceof InvalidArgumentError ? cause : badCursor('it is damaged', cause)
  }
}

export function badCursor(why: string, cause?: unknown): InvalidArgumentError {
  return new InvalidArgumentError(`The cursor cannot be used here: ${why}`, 'BAD_CURSOR', { cause })
}
