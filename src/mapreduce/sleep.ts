/** Waiting on a Runtime's clock, trying again while a store is away, and signals that many wait for. */
import { setMaxListeners } from 'node:events'
import { OutcomeUnknownError, QuorateError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'

/** Resolves after `delayMs`; rejects with the signal's reason when that fires first. */
export function sleep(runtime: Runtime, delayMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason)
      return
    }
    const onAbort = (): void => {
      cancel()
      reject(signal?.reason)
    }
    const cancel = runtime.schedule(delayMs, () => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    })
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}

/** A controller whose signal any number of requests may listen to at a time, without a warning. */
export function sharedController(): AbortController {
  const controller = new AbortController()
  setMaxListeners(0, controller.signal)
  return controller
}

/** A signal that fires with any of these, likewise. */
export function anySignal(...signals: AbortSignal[]): AbortSignal {
  const signal = AbortSignal.any(signals)
  setMaxListeners(0, signal)
  return signal
}

/** Whether an error says no more than that the store could not be reached for now. */
export function isPassing(error: unknown): boolean {
  return error instanceof QuorateError && (error.retryable || error instanceof OutcomeUnknownError)
}

const retryWaitMs = 200

/** Does what may be done any number of times, again while the store is away, for at most `timeoutMs`. */
export async function persist<T>(
  options: { runtime: Runtime; timeoutMs: number; signal?: AbortSignal | undefined },
  task: () => Promise<T>,
): Promise<T> {
  const { runtime, timeoutMs, signal } = options
  const deadlineMs = runtime.nowMs() + timeoutMs
  for (;;) {
    try {
      return await task()
    } catch (error) {
      signal?.throwIfAborted()
      if (!isPassing(error) || runtime.nowMs() >= deadlineMs) throw error
      await sleep(runtime, retryWaitMs, signal)
    }
  }
}
