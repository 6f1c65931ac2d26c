/**
 * The text that the demo works on: every Markdown, licence and `.d.ts` file of the installed packages, or the user's own files and folders.
 *
 * 1. Nothing is dropped silently: what is skipped is named in `skipped`. 2. A file over the limit of a value becomes several documents, cut after a line
 * end, so that no word is cut. 3. The order, and so every key, is the same in each run.
 */
import { readdir, readFile, realpath, stat } from 'node:fs/promises'
import { basename, join, relative } from 'node:path'

/** A value of the store, under the file's path. */
export interface Document {
  readonly key: string
  readonly value: Uint8Array
}

export interface Corpus {
  readonly documents: readonly Document[]
  readonly files: number
  readonly bytes: number
  /** Files that became several documents. */
  readonly cut: readonly string[]
  /** Files that are no text, with the reason. */
  readonly skipped: readonly string[]
}

/** Comfortably below the store's limit of a value (1 MiB). */
const maxDocumentBytes = 512 * 1024
/** The parent holds all of it in memory, for the sequential count. */
const maxCorpusBytes = 128 * 1024 * 1024
const maxKeyBytes = 1024

const documentationPattern = /\.(?:md|markdown|d\.ts|d\.mts|d\.cts)$|^(?:licen[cs]e|copying)/i

/** The documentation of the installed packages. */
export function gatherDocumentation(nodeModules: string): Promise<Corpus> {
  return gather([{ path: nodeModules, base: nodeModules, wanted: (name) => documentationPattern.test(name), enter: (name) => name !== '.bin' }])
}

/** The user's own files, and all text files below his folders, except below `node_modules` and what is hidden. */
export function gatherPaths(paths: readonly string[]): Promise<Corpus> {
  const base = process.cwd()
  return gather(
    paths.map((path) => ({ path, base, wanted: (name) => !name.startsWith('.'), enter: (name) => !name.startsWith('.') && name !== 'node_modules' })),
  )
}

interface Source {
  readonly path: string
  /** Keys are paths from here. */
  readonly base: string
  readonly wanted: (name: string) => boolean
  readonly enter: (name: string) => boolean
}

async function gather(sources: readonly Source[]): Promise<Corpus> {
  const documents: Document[] = []
  const cut: string[] = []
  const skipped: string[] = []
  const seen = new Set<string>()
  let bytes = 0
  for (const source of sources) {
    for (const path of await listFiles(source)) {
      const real = await realpath(path)
      if (seen.has(real)) continue
      const key = relative(source.base, path).replaceAll('\\', '/')
      const content = await readFile(path)
      const objection = whyNot(key, content)
      if (objection !== undefined) {
        skipped.push(`${path} (${objection})`)
        continue
      }
      seen.add(real)
      bytes += content.length
      if (bytes > maxCorpusBytes) throw new Error(`That is more text than the demo takes (${maxCorpusBytes / 1024 / 1024} MiB)`)
      const parts = cutAtLines(content)
      if (parts.length > 1) cut.push(path)
      parts.forEach((value, position) => {
        documents.push({ key: position === 0 ? key : `${key}#${position + 1}`, value })
      })
    }
  }
  if (documents.length === 0) throw new Error(`There is no text in ${sources.map(({ path }) => path).join(', ')}`)
  return { documents, files: seen.size, bytes, cut, skipped }
}

async function listFiles(source: Source): Promise<string[]> {
  if (!(await stat(source.path)).isDirectory()) return [source.path]
  const files: string[] = []
  const walk = async (folder: string): Promise<void> => {
    const entries = await readdir(folder, { withFileTypes: true })
    entries.sort((a, b) => (a.name < b.name ? -1 : 1))
    for (const entry of entries) {
      const path = join(folder, entry.name)
      if (entry.isDirectory() && source.enter(entry.name)) await walk(path)
      else if (entry.isFile() && source.wanted(basename(path))) files.push(path)
    }
  }
  await walk(source.path)
  return files
}

function whyNot(key: string, content: Buffer): string | undefined {
  if (content.length === 0) return 'empty'
  if (content.subarray(0, 8192).includes(0)) return 'not text'
  if (Buffer.byteLength(key) > maxKeyBytes) return 'its path is too long for a key'
  return undefined
}

function cutAtLines(content: Buffer): Buffer[] {
  const parts: Buffer[] = []
  let start = 0
  while (content.length - start > maxDocumentBytes) {
    const lineEnd = content.lastIndexOf(0x0a, start + maxDocumentBytes - 1)
    // A file of one endless line is cut where it has to be, at the last blank if there is one.
    const blank = lineEnd >= start ? lineEnd : content.lastIndexOf(0x20, start + maxDocumentBytes - 1)
    const end = blank >= start ? blank + 1 : start + maxDocumentBytes
    parts.push(content.subarray(start, end))
    start = end
  }
  parts.push(content.subarray(start))
  return parts
}
