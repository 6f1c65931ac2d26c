/**
 * Histories of the tests on real nodes: everything that a test asks of a node's `kv` is written down, and must be linearizable in the end.
 *
 * A history that is not is saved as JSON lines; `npm run history -- FILE` judges it again.
 */
import { writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Node } from '../../src/index.js'
import { type History, recordHistory } from '../../src/testing/history.js'
import { assertLinearizable } from '../../src/testing/history-checker.js'

/** From now on what is asked of `node.kv` is in the history. The locks and jobs of a node have their own ways to the store, which are not. */
export function recordNode(node: Node, history: History, client = node.id): Node {
  Object.defineProperty(node, 'kv', { value: recordHistory(node.kv, history, client) })
  return node
}

/** Throws when the history is not linearizable, and tells where it was saved. */
export function checkRecorded(history: History): void {
  try {
    assertLinearizable(history.operations)
  } catch (error) {
    const file = join(tmpdir(), `quorate-history-${process.pid}-${Date.now()}.jsonl`)
    writeFileSync(file, history.toLines())
    throw new Error(`${(error as Error).message}\nthe history is in ${file}`, { cause: error })
  }
}
