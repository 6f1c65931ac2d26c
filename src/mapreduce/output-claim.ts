/**
 * The manifest of an output in the store: one key that says which generation of the output is visible, and which job is making the next (the claim).
 * Every write of it is conditional on the version read before, so that of all who might write only one succeeds:
 *
 * 1. a job claims the prefix, and only then writes data, under a generation of its own that nobody reads;
 * 2. it renews the claim (a write that changes nothing but the version) as long as it lives;
 * 3. it commits with one write that makes its generation the visible one and ends the claim;
 * 4. a claim whose version stands still for `claimExpiryMs`, by the watcher's own monotonic clock, is a dead job's: it may be taken over or revoked.
 *
 * So a job that was only slow and wakes after its claim was taken cannot commit (its version is gone), and a commit whose answer was lost is found by reading.
 * The revision of the claiming write is the job's fencing token.
 */
import { toBytes } from '../base/bytes.js'
import { ConditionFailedError, OutcomeUnknownError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { KeyLike, KV } from '../engine/kv.js'
import { OutputExistsError } from './errors.js'
import { afterPrefix } from './plan-keys.js'
import { choice, fields, integer, Message, optional, text } from './schema.js'
import { isPassing, persist, sleep } from './sleep.js'

const generationPattern = /^[0-9a-f]{32}$/

const manifestMessage = new Message(
  'output manifest',
  fields({
    format: integer(1, 1),
    /** What readers see. */
    current: optional(
      fields({
        generation: text(32, generationPattern),
        fence: integer(),
        pairs: integer(),
        bytes: integer(),
        job: text(100),
        keys: choice('text', 'bytes'),
      }),
    ),
    /** The job that is making the next. */
    claim: optional(fields({ generation: text(32, generationPattern), nodeId: text(256), job: text(100) })),
  }),
)
export type Manifest = ReturnType<typeof manifestMessage.decode>
export type Committed = NonNullable<Manifest['current']>

export interface ManifestCell {
  readonly manifest: Manifest
  /** 0: never written. */
  readonly version: number
  readonly revision: number
}

export interface ClaimTiming {
  readonly renewMs: number
  readonly expiryMs: number
}
export const defaultClaimTiming: ClaimTiming = { renewMs: 4000, expiryMs: 15_000 }

/** How long the store may be away before a job gives up its output. */
export const patienceMs = 60_000

export function manifestKey(prefix: KeyLike): Uint8Array {
  return Buffer.concat([toBytes(prefix), Buffer.from('manifest')])
}

function dataPrefix(prefix: KeyLike): Uint8Array {
  return Buffer.concat([toBytes(prefix), Buffer.from('data/')])
}

/** Where the pairs of a generation lie: followed by the pair's own key. */
export function generationPrefix(prefix: KeyLike, generation: string): Uint8Array {
  return Buffer.concat([dataPrefix(prefix), Buffer.from(`${generation}/`)])
}

export async function readManifest(kv: KV, prefix: KeyLike, signal?: AbortSignal): Promise<ManifestCell> {
  const entry = await kv.get(manifestKey(prefix), { signal })
  if (entry === undefined) return { manifest: { format: 1, current: undefined, claim: undefined }, version: 0, revision: 0 }
  return { manifest: manifestMessage.decode(entry.value), version: entry.version, revision: entry.revision }
}

/**
 * Writes the manifest if it is still at the version read before. True: written. False: it is not, and not written.
 * Settles a lost answer by reading: `isOurs` tells this write's effect from others'.
 */
async function writeIf(
  kv: KV,
  prefix: KeyLike,
  cell: ManifestCell,
  manifest: Manifest,
  isOurs: (now: ManifestCell) => boolean,
  signal: AbortSignal | undefined,
): Promise<ManifestCell | undefined> {
  try {
    const { version, revision } = await kv.put(manifestKey(prefix), manifestMessage.encode(manifest), { ifVersion: cell.version, signal })
    return { manifest, version, revision }
  } catch (error) {
    if (!(error instanceof ConditionFailedError) && !(error instanceof OutcomeUnknownError)) throw error
    const now = await readManifest(kv, prefix, signal)
    if (isOurs(now)) return now
    if (error instanceof ConditionFailedError || now.version !== cell.version) return undefined
    // Unknown, and not yet visible: it may still come. The caller tries again with the same condition, of which only one can succeed.
    throw error
  }
}

export interface ClaimOptions {
  readonly kv: KV
  readonly prefix: KeyLike
  readonly generation: string
  readonly nodeId: string
  readonly job: string
  readonly runtime: Runtime
  readonly timing: ClaimTiming
}

/** The claim of a job on a prefix. */
export class OutputClaim {
  readonly #options: ClaimOptions
  #cell: ManifestCell
  /** Fencing token: greater than that of every claim before it. */
  readonly fence: number
  #lost: Error | undefined
  #renewal: Promise<void> = Promise.resolve()
  #cancelTimer: () => void = () => {}
  #ended = false

  private constructor(options: ClaimOptions, cell: ManifestCell) {
    this.#options = options
    this.#cell = cell
    this.fence = cell.revision
    this.#scheduleRenewal()
  }

  /** Claims the prefix. @throws OutputExistsError when there is an output (unless `overwrite`) or a living job makes one. */
  static take(options: ClaimOptions, overwrite: boolean, signal: AbortSignal): Promise<OutputClaim> {
    const { kv, prefix, generation, nodeId, job, runtime } = options
    return persist({ runtime, timeoutMs: patienceMs, signal }, async () => {
      for (;;) {
        const cell = await readManifest(kv, prefix, signal)
        const { current, claim } = cell.manifest
        // Else an earlier try has come through.
        if (claim?.generation !== generation) {
          if (current !== undefined && !overwrite) throw new OutputExistsError(`there is an output of job ${current.job} at this prefix`)
          if (claim !== undefined && !(await claimIsDead(options, cell, signal))) {
            throw new OutputExistsError(`job ${claim.job} of node ${claim.nodeId} is writing to this prefix`)
          }
        }
        const isOurs = (now: ManifestCell): boolean => now.manifest.claim?.generation === generation
        const taken = await writeIf(kv, prefix, cell, { format: 1, current, claim: { generation, nodeId, job } }, isOurs, signal)
        if (taken !== undefined) return new OutputClaim(options, taken)
      }
    })
  }

  /** What was visible when the claim was taken. */
  get previous(): Committed | undefined {
    return this.#cell.manifest.current
  }

  /** Set once somebody else has taken or revoked the claim. */
  get lost(): Error | undefined {
    return this.#lost
  }

  #isOurs(now: ManifestCell): boolean {
    return now.manifest.claim?.generation === this.#options.generation
  }

  #scheduleRenewal(): void {
    if (this.#ended) return
    this.#cancelTimer = this.#options.runtime.schedule(this.#options.timing.renewMs, () => {
      this.#renewal = this.#renew().finally(() => this.#scheduleRenewal())
    })
  }

  async #renew(): Promise<void> {
    const { kv, prefix } = this.#options
    try {
      const renewed = await writeIf(kv, prefix, this.#cell, this.#cell.manifest, (now) => this.#isOurs(now), undefined)
      if (renewed !== undefined) this.#cell = renewed
      else this.#lose()
    } catch (error) {
      // The store cannot be reached: the next renewal, or the commit, will tell.
      if (!isPassing(error)) this.#lost = error as Error
    }
  }

  #lose(): void {
    this.#lost = new OutputExistsError('another job has taken over the output, as this one was thought dead')
    this.#ended = true
  }

  async #endRenewals(): Promise<void> {
    this.#ended = true
    this.#cancelTimer()
    await this.#renewal
  }

  /**
   * Makes the generation the visible one. Tries again while the store cannot be reached, for a minute.
   * @throws OutputExistsError when the claim was lost; after the time, the store's error: then only `revoke` can tell whether a try has come through.
   */
  async commit(summary: { pairs: number; bytes: number; keys: 'text' | 'bytes' }, signal: AbortSignal): Promise<void> {
    await this.#endRenewals()
    const { kv, prefix, generation, job, runtime } = this.#options
    const current = { generation, fence: this.fence, job, ...summary }
    const isCommitted = (now: ManifestCell): boolean => now.manifest.current?.generation === generation
    await persist({ runtime, timeoutMs: patienceMs, signal }, async () => {
      for (;;) {
        if (this.#lost !== undefined) throw this.#lost
        signal.throwIfAborted()
        if ((await writeIf(kv, prefix, this.#cell, { format: 1, current, claim: undefined }, isCommitted, undefined)) !== undefined) return
        // Not at our version: either a renewal whose answer was lost, or somebody else.
        const now = await readManifest(kv, prefix)
        if (isCommitted(now)) return
        if (this.#isOurs(now)) this.#cell = now
        else this.#lose()
      }
    })
  }

  /** Gives the claim up, so that this job can never commit. False: it has committed. */
  async revoke(timeoutMs: number): Promise<boolean> {
    await this.#endRenewals()
    const { kv, prefix, generation, runtime } = this.#options
    return persist({ runtime, timeoutMs }, async () => {
      for (;;) {
        const cell = await readManifest(kv, prefix)
        if (cell.manifest.current?.generation === generation) return false
        if (!this.#isOurs(cell) || (await revokeClaim(kv, prefix, cell)) !== undefined) return true
      }
    })
  }
}

async function revokeClaim(kv: KV, prefix: KeyLike, cell: ManifestCell): Promise<ManifestCell | undefined> {
  const generation = cell.manifest.claim?.generation
  const manifest = { ...cell.manifest, claim: undefined }
  return writeIf(kv, prefix, cell, manifest, (now) => now.manifest.claim?.generation !== generation, undefined)
}

/** Watches a claim for as long as a living job could leave it alone. */
async function claimIsDead(
  options: { kv: KV; prefix: KeyLike; runtime: Runtime; timing: ClaimTiming },
  cell: ManifestCell,
  signal: AbortSignal,
): Promise<boolean> {
  const { kv, prefix, runtime, timing } = options
  await sleep(runtime, timing.expiryMs, signal)
  return (await readManifest(kv, prefix, signal)).version === cell.version
}

/**
 * For nodes that worked for a job and lost its coordinator: if that is dead, revokes its claim and removes what it wrote. Does nothing when
 * it lives, has committed, or somebody else was faster.
 */
export async function discardDeadOutput(
  options: { kv: KV; prefix: KeyLike; generation: string; runtime: Runtime; timing: ClaimTiming },
  signal: AbortSignal,
): Promise<void> {
  const { kv, prefix, generation } = options
  const cell = await readManifest(kv, prefix, signal)
  if (cell.manifest.claim?.generation !== generation) return
  if (!(await claimIsDead(options, cell, signal))) return
  if ((await revokeClaim(kv, prefix, cell)) === undefined) return
  await deleteGeneration(kv, prefix, generation, signal)
}

/** Removes the pairs of a generation that is not, and can no longer become, the visible one. */
export async function deleteGeneration(kv: KV, prefix: KeyLike, generation: string, signal?: AbortSignal): Promise<void> {
  const keys: Uint8Array[] = []
  const flush = async (): Promise<void> => {
    await Promise.all(keys.splice(0).map((key) => kv.delete(key, { signal })))
  }
  for await (const { key } of kv.scan({ prefix: generationPrefix(prefix, generation), signal })) {
    keys.push(key)
    if (keys.length >= 64) await flush()
  }
  await flush()
}

/** Removes every generation but those named: what crashed jobs left. */
export async function sweepGenerations(kv: KV, prefix: KeyLike, keep: readonly (string | undefined)[], signal: AbortSignal): Promise<void> {
  const data = dataPrefix(prefix)
  const end = afterPrefix(data)
  let from: Uint8Array | undefined = data
  while (from !== undefined) {
    let found: Uint8Array | undefined
    for await (const { key } of kv.scan({ gte: from, lt: end, limit: 1, signal })) found = key
    if (found === undefined) return
    const generation = Buffer.from(found.subarray(data.length, data.length + 32)).toString('latin1')
    if (!keep.includes(generation)) await deleteGeneration(kv, prefix, generation, signal)
    from = afterPrefix(generationPrefix(prefix, generation))
  }
}
