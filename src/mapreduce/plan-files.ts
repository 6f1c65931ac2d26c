/**
 * Plans the splits of files: small files together in one split, large ones cut at line ends.
 *
 * Invariants: 1. a file is cut only behind a line end, and not at all when records are whole files; 2. a file that is not what it was when the job was
 * planned ends the job with `INPUT_CHANGED`, as no two tasks may see different inputs.
 */
import type { Stats } from 'node:fs'
import { type FileHandle, lstat, open, readdir, realpath, stat } from 'node:fs/promises'
import { join, relative, resolve, sep } from 'node:path'
import { InvalidArgumentError } from '../base/errors.js'
import { entryHeader } from './entries.js'
import { compareTextByBytes } from './key-order.js'
import { limits } from './protocol.js'
import type { HeldSplit, InputPlan, PlanOptions } from './splits.js'

interface FileState {
  readonly path: string
  readonly size: number
  readonly modifiedMs: number
}

/** Part of a file, as one entry of a split. */
interface Piece {
  readonly file: FileState
  readonly start: number
  readonly length: number
}

/** Walks the paths, and refuses those inside `outputFolder`: a job must not read what it writes. */
export async function planFiles(paths: readonly string[], outputFolder: string | undefined, options: PlanOptions): Promise<InputPlan> {
  const files: FileState[] = []
  const forbidden = outputFolder === undefined ? undefined : await realpath(outputFolder).catch(() => resolve(outputFolder))
  for (const path of paths) {
    const state = await stat(path).catch((cause) => {
      throw new InvalidArgumentError(
        `the input ${path} cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`,
        'INPUT_UNREADABLE',
        {
          cause,
        },
      )
    })
    const before = files.length
    await collect(path, state, files, options.signal)
    if (forbidden !== undefined) await refuseInside(forbidden, path, files.slice(before))
  }
  const splits: HeldSplit[] = []
  let pieces: Piece[] = []
  let bytes = 0
  const close = (): void => {
    if (pieces.length === 0) return
    splits.push(new FilesSplit(pieces))
    pieces = []
    bytes = 0
    if (splits.length > options.maxTasks) {
      throw new InvalidArgumentError(`the input makes more than ${options.maxTasks} tasks: choose larger splitBytes`, 'TOO_MANY_TASKS')
    }
  }
  for (const file of files) {
    for await (const piece of cut(file, options)) {
      if (bytes > 0 && bytes + piece.length > options.splitBytes) close()
      pieces.push(piece)
      bytes += piece.length
    }
    options.signal.throwIfAborted()
  }
  close()
  return { splits, divide: async () => [], close: async () => {} }
}

/** Refuses files that lie in a folder, by their real paths. Below the root, no link was followed. */
async function refuseInside(folder: string, root: string, files: readonly FileState[]): Promise<void> {
  const realRoot = await realpath(root)
  for (const { path } of files) {
    const inside = relative(folder, join(realRoot, relative(root, path)))
    if (inside === '..' || inside.startsWith(`..${sep}`)) continue
    throw new InvalidArgumentError(`the input ${path} lies in the output folder: a job cannot read what it writes`, 'CYCLIC_INPUT')
  }
}

async function collect(path: string, state: Stats, files: FileState[], signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  if (state.isFile()) files.push({ path, size: state.size, modifiedMs: state.mtimeMs })
  else if (state.isDirectory()) {
    const names = await readdir(path)
    for (const name of names.sort(compareTextByBytes)) {
      const child = join(path, name)
      // Links are not followed: they could lead in circles.
      await collect(child, await lstat(child), files, signal)
    }
  }
}

async function* cut(file: FileState, options: PlanOptions): AsyncGenerator<Piece> {
  const { splitBytes, records } = options
  if (file.size <= splitBytes || records === 'whole') {
    checkSize(file, file.size)
    yield { file, start: 0, length: file.size }
    return
  }
  const handle = await open(file.path, 'r')
  try {
    for (let start = 0; start < file.size; ) {
      const end = start + splitBytes >= file.size ? file.size : await afterNextLineEnd(handle, start + splitBytes - 1, file.size)
      checkSize(file, end - start)
      yield { file, start, length: end - start }
      start = end
    }
  } finally {
    await handle.close()
  }
}

function checkSize(file: FileState, length: number): void {
  if (length <= limits.maxSplitBytes - 1024 * 1024) return
  throw new InvalidArgumentError(`${file.path} has a record of more than ${limits.maxSplitBytes - 1024 * 1024} bytes`, 'RECORD_TOO_LARGE')
}

async function afterNextLineEnd(handle: FileHandle, from: number, size: number): Promise<number> {
  const window = Buffer.allocUnsafe(64 * 1024)
  for (let at = from; at < size; ) {
    const { bytesRead } = await handle.read(window, 0, window.length, at)
    if (bytesRead === 0) break
    const found = window.subarray(0, bytesRead).indexOf(10)
    if (found >= 0) return at + found + 1
    at += bytesRead
  }
  return size
}

class FilesSplit implements HeldSplit {
  readonly kind = 'held'
  readonly length: number
  readonly #pieces: readonly Piece[]

  constructor(pieces: readonly Piece[]) {
    this.#pieces = pieces
    this.length = pieces.reduce((sum, piece) => sum + headerOf(piece).length + piece.length, 0)
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const result = new Uint8Array(length)
    const end = offset + length
    let at = 0
    for (const piece of this.#pieces) {
      if (at >= end) break
      const header = headerOf(piece)
      const contentAt = at + header.length
      const pieceEnd = contentAt + piece.length
      if (offset < contentAt && end > at) {
        const from = Math.max(offset, at)
        result.set(header.subarray(from - at, Math.min(end, contentAt) - at), from - offset)
      }
      if (offset < pieceEnd && end > contentAt) {
        const from = Math.max(offset, contentAt)
        const into = result.subarray(from - offset, Math.min(end, pieceEnd) - offset)
        await readPiece(piece, into, piece.start + from - contentAt)
      }
      at = pieceEnd
    }
    return result
  }
}

function headerOf(piece: Piece): Uint8Array {
  return entryHeader(Buffer.from(piece.file.path), piece.start, piece.length)
}

async function readPiece({ file }: Piece, into: Uint8Array, position: number): Promise<void> {
  if (into.length === 0) return
  const changed = (cause?: unknown): never => {
    throw new InvalidArgumentError(`the input ${file.path} changed while the job was running`, 'INPUT_CHANGED', { cause })
  }
  const handle = await open(file.path, 'r').catch(changed)
  try {
    const state = await handle.stat()
    if (state.size !== file.size || state.mtimeMs !== file.modifiedMs) changed()
    for (let done = 0; done < into.length; ) {
      const { bytesRead } = await handle.read(into, done, into.length - done, position + done)
      if (bytesRead === 0) changed()
      done += bytesRead
    }
  } finally {
    await handle.close()
  }
}
