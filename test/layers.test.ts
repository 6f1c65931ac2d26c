/** The shape of the source: import direction, the purity of the core, opening comments, and a lock file that ties nobody to a registry. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import { faceViolations, importViolations, listSources, openingViolations, purityViolations, type SourceFile } from './support/source-rules.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const sources: SourceFile[] = listSources(join(root, 'src')).map((path) => ({ path, text: readFileSync(join(root, 'src', path), 'utf8') }))

describe('the shape of the source', () => {
  it('has source files to look at', () => {
    expect(sources.map(({ path }) => path)).to.include.members(['base/errors.ts', 'engine/kv.ts', 'raft/types.ts', 'transport/transport.ts'])
  })

  it('imports only downwards', () => {
    expect(sources.flatMap(importViolations)).to.deep.equal([])
  })

  it('keeps the core free of clock, chance, asynchrony and I/O', () => {
    expect(sources.filter(({ path }) => path.startsWith('raft/')).flatMap(purityViolations)).to.deep.equal([])
  })

  it('opens every file with a comment of what it owns', () => {
    expect(sources.flatMap(openingViolations)).to.deep.equal([])
  })

  it('keeps index.ts a list of re-exports', () => {
    expect(sources.filter(({ path }) => path === 'index.ts').flatMap(faceViolations)).to.deep.equal([])
  })
})

describe('the checker of the shape bites', () => {
  const imports: [string, string, boolean][] = [
    ['lock/mutex.ts', `import type { KV } from '../engine/kv.js'`, true],
    ['lock/mutex.ts', `import { ClosedError } from '../base/errors.js'`, true],
    ['lock/mutex.ts', `import { Host } from '../engine/host.js'`, false],
    ['lock/mutex.ts', `import type { Host } from '../engine/host.js'`, false],
    ['lock/mutex.ts', `export * from '../raft/types.js'`, false],
    ['lock/mutex.ts', `const raft = await import('../raft/raft.js')`, false],
    ['lock/deep/mutex.ts', `import { x } from '../../shard/router.js'`, false],
    ['lock/mutex.ts', `import { readFile } from 'node:fs/promises'`, false],
    ['mapreduce/worker.ts', `import { Lock } from '../lock/index.js'\nimport { Messenger } from '../transport/messenger.js'`, true],
    ['mapreduce/worker.ts', `import { Router } from '../shard/router.js'`, false],
    ['mapreduce/worker.ts', `import { store } from '../engine/log-store.js'`, false],
    ['raft/election.ts', `import { CorruptionError } from '../base/errors.js'\nimport { Writer } from '../base/codec.js'`, true],
    ['raft/election.ts', `import { systemRuntime } from '../base/runtime.js'`, false],
    ['raft/election.ts', `import { performance } from 'node:perf_hooks'`, false],
    ['transport/tcp.ts', `import type { Entry } from '../raft/types.js'`, false],
    ['engine/host.ts', `import { router } from '../shard/router.js'`, false],
    ['engine/host.ts', `import { openNode } from '../node.js'`, false],
    ['node.ts', `import { network } from './testing/index.js'`, false],
    ['node.ts', `import { Router } from './shard/router.js'`, true],
    ['index.ts', `export { openNode } from './node.js'`, true],
    ['index.ts', `export { network } from './testing/index.js'`, false],
    ['gadgets/new.ts', '', false],
  ]
  for (const [path, text, allowed] of imports) {
    it(`${allowed ? 'accepts' : 'refuses'} ${text.replaceAll('\n', '; ') || 'a folder that is no layer'} in ${path}`, () => {
      expect(importViolations({ path, text }).length === 0).to.equal(allowed)
    })
  }

  const impure = [
    'const now = Date.now()',
    'const chance = Math.random()',
    'setTimeout(() => {}, 1)',
    'async function step() {}',
    'const run = async () => {}',
    'export class Raft { async step() { await 1 } }',
    'let pending: Promise<void>',
    'process.nextTick(() => {})',
    'const all = { Date }',
  ]
  for (const text of impure) {
    it(`finds what is impure in: ${text}`, () => {
      expect(purityViolations({ path: 'raft/sample.ts', text })).to.not.deep.equal([])
    })
  }

  it('leaves members and comments with such names alone', () => {
    const text = `// No Promise, Date or await here.\nexport interface A { process: number }\nexport const f = (a: A) => a.process + Math.max(1, 2)`
    expect(purityViolations({ path: 'raft/sample.ts', text })).to.deep.equal([])
  })

  it('finds a file without an opening comment, and an index that does more than re-export', () => {
    expect(openingViolations({ path: 'a.ts', text: 'export const a = 1 // late' })).to.have.length(1)
    expect(faceViolations({ path: 'index.ts', text: `export * from './node.js'\nexport const a = 1` })).to.have.length(1)
  })
})

describe('package.json', () => {
  it('has a lock file that names no registry', () => {
    // `resolved`, or an address of a registry, would tie whoever installs to one; `npm ci` takes the configured one when it is left out.
    expect(readFileSync(join(root, 'package-lock.json'), 'utf8')).to.not.match(/"resolved":|\/\/[^"]*registry/)
  })
})
