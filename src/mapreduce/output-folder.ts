/**
 * Output to a folder: parts are written to a sibling folder, which is renamed as a whole.
 *
 * Invariants: 1. the folder appears by one rename, after every file and the sibling folder are on disk; 2. an output that is there is not touched before that, and
 * only with `overwrite`; then it is renamed away first, so that for a moment there is none, never a mixture; 3. no key ever becomes part of a path.
 */
import { access, mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { OutputExistsError } from './errors.js'
import { type FolderOutput, type FolderResult, type OutputFile, type PartInfo, partName, type Sink } from './output.js'

export class FolderSink implements Sink {
  readonly format = 'lines'
  readonly #path: string
  readonly #overwrite: boolean
  readonly #temporary: string
  readonly #replaced: string
  readonly #jobName: string
  readonly #jobId: string
  readonly #folder: string
  readonly #files: OutputFile[] = []

  constructor(output: FolderOutput, job: { name: string; id: string; folder: string }) {
    this.#path = resolve(output.path)
    this.#overwrite = output.overwrite
    this.#jobName = job.name
    this.#jobId = job.id
    this.#folder = job.folder
    const { temporary, replaced } = siblings(this.#path, job.id)
    this.#temporary = temporary
    this.#replaced = replaced
  }

  async prepare(): Promise<string> {
    await this.#refuseExisting()
    // Noted first, so that the sibling is found again should this process die.
    await mkdir(this.#folder, { recursive: true })
    await writeFile(join(this.#folder, noteName), this.#path)
    await mkdir(this.#temporary, { recursive: true })
    return this.#temporary
  }

  async #refuseExisting(): Promise<void> {
    if (this.#overwrite) return
    const present = await readdir(this.#path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return []
      throw new OutputExistsError(`${this.#path} is there and is no folder`, { cause: error })
    })
    if (present.length > 0) throw new OutputExistsError(`the folder ${this.#path} has something in it`)
  }

  async accept(part: number, path: string, info: PartInfo): Promise<void> {
    await syncPath(path)
    const name = partName(part)
    await rename(path, join(this.#temporary, name))
    this.#files[part] = { name, ...info }
  }

  async commit(): Promise<FolderResult> {
    const manifest = { format: 1, job: this.#jobName, jobId: this.#jobId, files: this.#files }
    const path = join(this.#temporary, '_SUCCESS')
    await writeFile(path, `${JSON.stringify(manifest, null, 2)}\n`, { flag: 'wx' })
    await syncPath(path)
    await syncPath(this.#temporary)
    if (this.#overwrite) await ignoreMissing(rename(this.#path, this.#replaced))
    try {
      // Onto nothing or an empty folder: anything else makes it fail.
      await rename(this.#temporary, this.#path)
    } catch (error) {
      if (this.#overwrite) await ignoreMissing(rename(this.#replaced, this.#path))
      const code = (error as NodeJS.ErrnoException).code
      if (code === 'ENOTEMPTY' || code === 'EEXIST' || code === 'ENOTDIR') {
        throw new OutputExistsError(`the folder ${this.#path} was made while the job was running`, { cause: error })
      }
      throw error
    }
    await syncPath(dirname(this.#path))
    await rm(this.#replaced, { recursive: true, force: true })
    return { kind: 'folder', path: this.#path, files: this.#files }
  }

  async abort(): Promise<string[]> {
    await rm(this.#temporary, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 })
    return []
  }
}

/** Beside the output, so that they are on the same file system. */
function siblings(path: string, jobId: string): { temporary: string; replaced: string } {
  const start = join(dirname(path), `.${basename(path)}.${jobId}`)
  return { temporary: `${start}.tmp`, replaced: `${start}.old` }
}

/** In the job's own folder: where its output goes. */
const noteName = 'output-folder'

/** Takes back what a job of an earlier life of this node has left beside its output. `folder`: that job's own; its name is the job's id. */
export async function recoverFolderOutput(folder: string): Promise<void> {
  const path = await readFile(join(folder, noteName), 'utf8').catch(() => undefined)
  if (path === undefined) return
  const { temporary, replaced } = siblings(path, basename(folder))
  const isThere = await access(path).then(
    () => true,
    () => false,
  )
  // It died between the two renames of an overwrite: the earlier output stays.
  if (!isThere) await ignoreMissing(rename(replaced, path))
  for (const sibling of [temporary, replaced]) await rm(sibling, { recursive: true, force: true })
}

async function syncPath(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function ignoreMissing(task: Promise<unknown>): Promise<void> {
  await task.catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
}
