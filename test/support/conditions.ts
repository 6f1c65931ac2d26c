/** Waiting for what is to come, and for what is to fail. */

/** Waits for a condition, for 20 seconds at most: what waited longer would keep its nodes open after mocha has given up. `describe` says what is there instead. */
export async function until(condition: () => boolean | Promise<boolean>, describe: () => unknown = () => ''): Promise<void> {
  const endMs = performance.now() + 20_000
  while (!(await condition())) {
    if (performance.now() > endMs) throw new Error(`what was waited for did not come: ${JSON.stringify(describe())}`)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

/** What a promise rejects with; undefined when it does not. */
export async function failureOf(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise
  } catch (error) {
    return error
  }
  return undefined
}
