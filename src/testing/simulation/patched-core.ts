/**
 * A copy of the compiled consensus core in which single lines are replaced: how known bugs are put back inside it, while the product itself has no hooks for tests.
 *
 * Invariants: 1. a text that is to be replaced stands in its file exactly once, else loading fails: a bug never vanishes silently because the code has changed;
 * 2. nothing stays behind: the copy lives in a temporary folder as long as it takes to load it.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { RaftCore } from '../../raft/core.js'
import type { Consensus, RaftOptions } from '../../raft/types.js'

/** One replacement in a compiled file of the core. */
export interface Patch {
  /** The file's name without its ending. */
  readonly file: string
  readonly find: string
  readonly replace: string
}

/** Loads the core with these replacements and returns what makes one. */
export function loadPatchedCore(patches: readonly Patch[]): (options: RaftOptions) => Consensus {
  const raft = fileURLToPath(new URL('../../raft/', import.meta.url))
  const base = new URL('../../base/', import.meta.url).href
  const folder = mkdtempSync(join(tmpdir(), 'quorate-mutation-'))
  try {
    writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
    for (const name of readdirSync(raft)) {
      if (!name.endsWith('.js')) continue
      let code = readFileSync(join(raft, name), 'utf8')
        .replaceAll(`from '../base/`, `from '${base}`)
        .replace(/\n\/\/# sourceMappingURL=.*/, '')
      for (const { file, find, replace } of patches) {
        if (`${file}.js` !== name) continue
        if (code.split(find).length !== 2) throw new Error(`${name} does not hold exactly once: ${find}`)
        code = code.replace(find, () => replace)
      }
      writeFileSync(join(folder, name), code)
    }
    const { RaftCore: Patched } = createRequire(import.meta.url)(join(folder, 'core.js')) as { RaftCore: typeof RaftCore }
    return (options) => new Patched(options)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
