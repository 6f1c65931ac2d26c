/**
 * SmallDisk: a file system of its own (tmpfs) that can be made full and freed: it is resized to what is in it, and back. Needs the right to mount.
 *
 * Invariant: what is mounted is unmounted by `close`, and by the undertaker when this process dies first.
 */
import { execFile } from 'node:child_process'
import { mkdir, statfs } from 'node:fs/promises'
import { promisify } from 'node:util'
import type { Undertaker } from '../../support/undertaker.js'

const run = promisify(execFile)

export class SmallDisk {
  readonly location: string
  readonly #sizeBytes: number
  readonly #undertaker: Undertaker

  private constructor(location: string, sizeBytes: number, undertaker: Undertaker) {
    this.location = location
    this.#sizeBytes = sizeBytes
    this.#undertaker = undertaker
  }

  /** Mounts a disk; null where this process may not. */
  static async mount(location: string, sizeBytes: number, undertaker: Undertaker): Promise<SmallDisk | null> {
    await mkdir(location, { recursive: true })
    undertaker.add('mount', location)
    try {
      await run('mount', ['-t', 'tmpfs', '-o', `size=${sizeBytes}`, 'quorate-test', location])
    } catch {
      undertaker.remove('mount', location)
      return null
    }
    return new SmallDisk(location, sizeBytes, undertaker)
  }

  /** Leaves room for so many bytes more. */
  async fill(leftBytes: number): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      const { bsize, blocks, bfree } = await statfs(this.location)
      try {
        await this.#resize((blocks - bfree) * bsize + leftBytes)
        return
      } catch (error) {
        // What was written in between must fit too.
        if (attempt === 20) throw error
      }
    }
  }

  async free(): Promise<void> {
    await this.#resize(this.#sizeBytes)
  }

  async #resize(bytes: number): Promise<void> {
    await run('mount', ['-o', `remount,size=${Math.ceil(bytes / 4096) * 4096}`, this.location])
  }

  async close(): Promise<void> {
    await run('umount', [this.location])
    this.#undertaker.remove('mount', this.location)
  }
}
