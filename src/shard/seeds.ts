/** Seeds: asking nodes whose addresses are all that is known for the cluster they belong to. */
import { QuorateError, UnavailableError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { MessengerFace } from '../transport/messenger.js'
import type { Address } from '../transport/transport.js'
import { type ClusterMap, decodeClusterMap } from './cluster-map.js'

/** Gives up on a seed that does not answer in this time and asks the next. */
const describeTimeoutMs = 500
/** A seed that refuses at once must not be asked in a tight loop. */
const describePauseMs = 50

/** The map of the cluster that the first seed to answer belongs to. Rejects with UnavailableError `TIMEOUT` when none answers, RefusedError when one will never answer. */
export async function describeCluster(messenger: MessengerFace, seeds: readonly Address[], runtime: Runtime, timeoutMs: number): Promise<ClusterMap> {
  const deadlineMs = runtime.nowMs() + timeoutMs
  let failure: unknown
  for (let turn = 0; runtime.nowMs() < deadlineMs; turn++) {
    const startMs = runtime.nowMs()
    try {
      return decodeClusterMap(await messenger.request(seeds[turn % seeds.length]!, 'describe', new Uint8Array(0), { timeoutMs: describeTimeoutMs }))
    } catch (error) {
      if (!(error instanceof QuorateError) || !error.retryable) throw error
      failure = error
      if (runtime.nowMs() - startMs < describePauseMs) await new Promise<void>((resolve) => runtime.schedule(describePauseMs, resolve))
    }
  }
  throw new UnavailableError(`no seed answered within ${timeoutMs} ms: ${seeds.join(', ')}`, 'TIMEOUT', { cause: failure })
}
