/**
 * The rules that the shape of the source must keep, as functions over source text, so that a test can prove that each rule bites.
 *
 * 1. Folders of `src/` are layers and imports point down only. 2. The core (`src/raft`) is synchronous and has no clock, no chance, no I/O.
 * 3. Every source file opens with a comment that says what it owns. 4. `src/index.ts` re-exports and does nothing else.
 */
import { readdirSync } from 'node:fs'
import { join, posix } from 'node:path'
import ts from 'typescript'

/** A file of `src/`, by its path from there (`engine/kv.ts`). */
export interface SourceFile {
  readonly path: string
  readonly text: string
}

/** What a layer may import: folders of `src/` or single files, and packages (`node:` for all of Node's own). */
interface LayerRule {
  readonly sources: readonly string[]
  readonly packages: readonly string[]
}

/** Everything that node.ts puts together. */
const belowNode = ['base', 'transport', 'raft', 'snapshot', 'engine', 'shard', 'lock', 'mapreduce']

/** A layer is a folder of `src/`, or a file directly in it. A layer may always import itself. */
const layerRules: Readonly<Record<string, LayerRule>> = {
  base: { sources: [], packages: ['node:', '@msgpack/msgpack'] },
  transport: { sources: ['base'], packages: ['node:', '@msgpack/msgpack'] },
  raft: { sources: ['base/codec.ts', 'base/errors.ts'], packages: [] },
  snapshot: { sources: ['base', 'transport', 'raft'], packages: ['node:', 'classic-level', '@msgpack/msgpack', 'p-queue'] },
  engine: {
    sources: ['base', 'transport', 'raft', 'snapshot'],
    packages: ['node:', 'classic-level', 'abstract-level', '@msgpack/msgpack', 'p-queue'],
  },
  shard: { sources: ['base', 'transport', 'raft', 'snapshot', 'engine'], packages: ['node:', '@msgpack/msgpack', 'p-queue'] },
  lock: { sources: ['base', 'engine/kv.ts'], packages: ['node:events', '@msgpack/msgpack'] },
  mapreduce: { sources: ['base', 'engine/kv.ts', 'transport', 'lock'], packages: ['node:', '@msgpack/msgpack', 'p-queue', 'piscina'] },
  level: { sources: ['base', 'engine/kv.ts', 'engine/sharding.ts'], packages: ['abstract-level'] },
  // The simulator of whole nodes opens nodes.
  testing: { sources: [...belowNode, 'node.ts', 'local.ts'], packages: ['node:', 'classic-level', 'abstract-level', '@msgpack/msgpack'] },
  'node.ts': { sources: belowNode, packages: ['node:', 'classic-level', '@msgpack/msgpack', 'p-queue'] },
  'local.ts': { sources: belowNode, packages: ['node:'] },
  'index.ts': { sources: [...belowNode, 'node.ts', 'local.ts'], packages: [] },
}

function layerOf(path: string): string {
  const slash = path.indexOf('/')
  return slash < 0 ? path : path.slice(0, slash)
}

/** The specifiers that a file imports or re-exports: static, dynamic, and type-only. */
function importsOf(file: SourceFile): string[] {
  return ts.preProcessFile(file.text, true, true).importedFiles.map(({ fileName }) => fileName)
}

/** Imports that point up or sideways, and packages that the layer has no business with. */
export function importViolations(file: SourceFile): string[] {
  const layer = layerOf(file.path)
  const rule = layerRules[layer]
  if (rule === undefined) return [`${file.path}: src/${layer} is no layer of the design; add it to the rules of test/support/source-rules.ts`]
  const violations: string[] = []
  for (const specifier of importsOf(file)) {
    if (specifier.startsWith('.')) {
      const target = posix.join(posix.dirname(file.path), specifier).replace(/\.js$/, '.ts')
      const allowed = layerOf(target) === layer || rule.sources.some((source) => target === source || target.startsWith(`${source}/`))
      if (!allowed) violations.push(`${file.path} imports ${target}: ${layer} may import only ${[layer, ...rule.sources].join(', ')}`)
    } else if (!rule.packages.some((name) => specifier === name || (name.endsWith(':') && specifier.startsWith(name)))) {
      violations.push(`${file.path} imports ${specifier}: ${layer} may use only ${rule.packages.join(', ') || 'no package'}`)
    }
  }
  return violations
}

/** Names that would give the core a clock, chance, a queue of the event loop, or I/O. */
const impureNames = new Set([
  ...['Date', 'performance', 'setTimeout', 'setInterval', 'setImmediate', 'queueMicrotask', 'Promise', 'process', 'console', 'crypto', 'fetch'],
  ...['globalThis', 'Worker', 'MessageChannel', 'Atomics'],
])

/** What makes a file of the core impure: a forbidden global, Math.random, async or await. Names of members (`entry.process`) do not count. */
export function purityViolations(file: SourceFile): string[] {
  const violations: string[] = []
  const tree = ts.createSourceFile(file.path, file.text, ts.ScriptTarget.ES2023, true)
  const visit = (node: ts.Node): void => {
    const parent = node.parent
    if (ts.isIdentifier(node) && impureNames.has(node.text)) {
      const isMember =
        (ts.isPropertyAccessExpression(parent) && parent.name === node) ||
        ((ts.isPropertyAssignment(parent) || ts.isPropertySignature(parent) || ts.isPropertyDeclaration(parent)) && parent.name === node)
      if (!isMember) violations.push(`${file.path} uses ${node.text}`)
    }
    if (ts.isPropertyAccessExpression(node) && node.expression.getText() === 'Math' && node.name.text === 'random') {
      violations.push(`${file.path} uses Math.random`)
    }
    if (node.kind === ts.SyntaxKind.AwaitExpression || node.kind === ts.SyntaxKind.AsyncKeyword || node.kind === ts.SyntaxKind.AwaitKeyword) {
      violations.push(`${file.path} uses ${node.kind === ts.SyntaxKind.AsyncKeyword ? 'async' : 'await'}`)
    }
    ts.forEachChild(node, visit)
  }
  visit(tree)
  return violations
}

/** A file must open with a comment, before any code. */
export function openingViolations(file: SourceFile): string[] {
  return /^\s*(?:\/\*\*?[\s\S]*?\*\/|\/\/)/.test(file.text) ? [] : [`${file.path} does not open with a comment of what it owns`]
}

/** The public face only passes on what others export. */
export function faceViolations(file: SourceFile): string[] {
  const tree = ts.createSourceFile(file.path, file.text, ts.ScriptTarget.ES2023, true)
  return tree.statements
    .filter((statement) => !(ts.isExportDeclaration(statement) && statement.moduleSpecifier !== undefined))
    .map((statement) => `${file.path} does more than re-export: ${statement.getText().split('\n', 1)[0]}`)
}

/** Every TypeScript file below a folder, as paths from there with `/`, sorted. */
export function listSources(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length).replaceAll('\\', '/').replace(/^\//, ''))
    .sort()
}
