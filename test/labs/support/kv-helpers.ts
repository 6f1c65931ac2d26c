/**
 * The helpers that the lab scenarios of the key/value store share (`OnePut`, `SpawnClientsAndWait`, …), over any KV.
 *
 * The lab's errors in this store's words: ErrVersion and ErrNoKey are ConditionFailedError (with the version found, 0 for no key); ErrMaybe is OutcomeUnknownError, which comes only
 * when the caller's deadline passes first. The stricter readings of the lab's known gaps are taken: «my put» checks id and number, gets check value and version, and an undecided
 * history is a failure.
 */
import { expect } from 'chai'
import { ConditionFailedError, OutcomeUnknownError, UnavailableError } from '../../../src/base/errors.js'
import type { Runtime } from '../../../src/base/runtime.js'
import type { KV, WaitOptions } from '../../../src/engine/kv.js'
import { History, recordHistory } from '../../../src/testing/history.js'
import { assertLinearizable } from '../../../src/testing/history-checker.js'

/** Where a scenario runs. */
export interface Lab {
  /** A client of its own, over the same store each time. */
  createClient(): Promise<KV>
  /** What the scenario may expect: on a reliable network every operation has a known outcome. */
  readonly network: 'reliable' | 'unreliable'
  /** The clock and chance of the clients. */
  readonly runtime: Runtime
  /** How long clients go on where the lab lets them. Default: the lab's time. */
  readonly durationMs?: number
}

export function sleep(runtime: Runtime, delayMs: number): Promise<void> {
  return new Promise((resolve) => {
    runtime.schedule(delayMs, resolve)
  })
}

export function text(value: Uint8Array): string {
  return Buffer.from(value).toString('utf8')
}

/** How a conditional put ended, in the lab's words. */
export type PutOutcome =
  | { readonly type: 'ok'; readonly version: number }
  /** ErrVersion, or ErrNoKey when `actualVersion` is 0. */
  | { readonly type: 'version'; readonly actualVersion: number }
  | { readonly type: 'maybe' }
  | { readonly type: 'unsent' }

/** Puts upon a version and tells how it ended; all else is thrown. */
export async function putAt(kv: KV, key: string, value: string | Uint8Array, version: number, options: WaitOptions = {}): Promise<PutOutcome> {
  try {
    return { type: 'ok', version: (await kv.put(key, value, { ifVersion: version, ...options })).version }
  } catch (error) {
    if (error instanceof ConditionFailedError) return { type: 'version', actualVersion: error.actualVersion }
    if (error instanceof OutcomeUnknownError) return { type: 'maybe' }
    // The deadline came before it was sent at all: certainly not done, and the history that is checked says so.
    if (error instanceof UnavailableError && options.timeoutMs !== undefined) return { type: 'unsent' }
    throw error
  }
}

/** The value (text) and version of a key; version 0 when it is absent. */
export async function read(kv: KV, key: string): Promise<{ readonly value: string; readonly version: number }> {
  const entry = await kv.get(key)
  return entry === undefined ? { value: '', version: 0 } : { value: text(entry.value), version: entry.version }
}

export async function checkGet(kv: KV, key: string, value: string, version: number): Promise<void> {
  expect(await read(kv, key)).to.deep.equal({ value, version })
}

export interface PutCounts {
  ok: number
  maybe: number
}

/** OnePut: puts upon the version known until one put is not refused, and checks what it finds after each. Resolves to the version read last. */
export async function onePut(kv: KV, client: number, key: string, version: number, counts: PutCounts, options: WaitOptions): Promise<number> {
  let known = version
  for (;;) {
    const own = JSON.stringify({ id: client, number: known })
    const outcome = await putAt(kv, key, own, known, options)
    const found = await read(kv, key)
    // Somebody else may have written on top, but what has the version that follows mine must be mine.
    if (outcome.type === 'ok') {
      expect(outcome.version).to.equal(known + 1)
      expect(found.version).to.be.at.least(known + 1)
      if (found.version === known + 1) expect(found.value).to.equal(own)
    } else if (outcome.type === 'version') {
      expect(outcome.actualVersion, 'refused although the version was right').not.to.equal(known)
    }
    known = found.version
    if (outcome.type === 'version' || outcome.type === 'unsent') continue
    counts[outcome.type]++
    return known
  }
}

/** Runs so many clients for the duration: each is told when the time is over, and finishes what it is doing. The history of all, with what was in it before, is checked. */
export async function withClients(
  lab: Lab,
  count: number,
  durationMs: number,
  work: (kv: KV, client: number, over: () => boolean) => Promise<void>,
  history = new History({ runtime: lab.runtime }),
): Promise<void> {
  const { runtime } = lab
  const endMs = runtime.nowMs() + (lab.durationMs ?? durationMs)
  const over = () => runtime.nowMs() >= endMs
  const run = async (client: number) => work(recordHistory(await lab.createClient(), history, `${client}`), client, over)
  await Promise.all(Array.from({ length: count }, (_, client) => run(client)))
  assertLinearizable(history.operations)
}

/** CheckPutConcurrent: each put counted once. */
export function checkPutCounts(network: Lab['network'], version: number, { ok, maybe }: PutCounts): void {
  if (network === 'reliable') expect(maybe, 'outcomes unknown on a reliable network').to.equal(0)
  expect(version).to.be.within(ok, ok + maybe)
}

/**
 * Append as a client makes it from get and put: exactly once, because the element itself tells whether an append of unknown outcome was done. Resolves to the value before.
 */
export async function append(kv: KV, key: string, element: string, options: WaitOptions = {}): Promise<string> {
  for (;;) {
    const before = await read(kv, key)
    const at = before.value.indexOf(element)
    if (at !== -1) return before.value.slice(0, at)
    const outcome = await putAt(kv, key, before.value + element, before.version, options)
    if (outcome.type === 'ok') return before.value
  }
}
