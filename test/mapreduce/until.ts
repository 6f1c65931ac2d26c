/** Waiting for a condition: what tests do instead of sleeping. */
import { setTimeout as wait } from 'node:timers/promises'

/** Resolves once `holds` does; rejects when it has not within `timeoutMs`. */
export async function until(what: string, holds: () => boolean | Promise<boolean>, timeoutMs = 20_000): Promise<void> {
  const startedMs = performance.now()
  while (!(await holds())) {
    if (performance.now() - startedMs > timeoutMs) throw new Error(`waited ${timeoutMs} ms in vain until ${what}`)
    await wait(5)
  }
}
