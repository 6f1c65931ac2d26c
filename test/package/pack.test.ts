/**
 * The package as a user gets it: packed, installed into an empty project, every export imported there, and the README's lines run.
 * The dependencies come from npm's cache or the configured registry, as they do for `npm ci`.
 */
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect } from 'chai'
import { freeAddresses } from '../../scripts/workplace.js'

const root = fileURLToPath(new URL('../../..', import.meta.url))
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { name: string; exports: Record<string, string>; types: string }

/** Without what the outer npm told its own children of this project: the inner one must find its own. */
const cleanEnvironment = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^(?:npm_(?:package|lifecycle)_.*|npm_config_local_prefix|INIT_CWD)$/.test(name)),
)

async function run(command: string, args: readonly string[], folder: string): Promise<string> {
  const { stdout } = await promisify(execFile)(command, [...args], { cwd: folder, env: cleanEnvironment, maxBuffer: 1 << 26 })
  return stdout
}

/** The program of an installed development dependency, by the `bin` of its manifest. */
function programOf(dependency: string, program: string): string {
  const folder = join(root, 'node_modules', dependency)
  const { bin } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { bin: string | Record<string, string> }
  return join(folder, typeof bin === 'string' ? bin : bin[program]!)
}

describe('package.json', () => {
  it('exports and types only what the build makes', () => {
    const promised = [...Object.values(manifest.exports), manifest.types]
    const typed = Object.values(manifest.exports).filter((path) => path.endsWith('.js'))
    expect([...promised, ...typed.map((path) => path.replace(/\.js$/, '.d.ts'))].filter((path) => !existsSync(join(root, path)))).to.deep.equal([])
  })
})

describe('the packed package', function () {
  this.timeout(120_000)
  let place: string
  let project: string
  let tarball: string

  before(async () => {
    place = mkdtempSync(join(tmpdir(), 'quorate-pack-'))
    project = mkdtempSync(join(place, 'project-'))
    const packed = JSON.parse(await run('npm', ['pack', '--ignore-scripts', '--json', '--pack-destination', place], root)) as { filename: string }[]
    tarball = join(place, packed[0]!.filename)
    writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'somebody', private: true }))
    await run('npm', ['install', tarball, '--prefer-offline', '--no-audit', '--no-fund'], project)
  })

  after(() => rmSync(place, { recursive: true, force: true }))

  it('lets every export be imported, with names in it', async () => {
    const specifiers = Object.keys(manifest.exports)
      .filter((path) => path !== './package.json')
      .map((path) => path.replace(/^\./, manifest.name))
    writeFileSync(
      join(project, 'imports.mjs'),
      `for (const specifier of ${JSON.stringify(specifiers)}) if (Object.keys(await import(specifier)).length === 0) throw new Error(specifier + ' exports nothing')
       const { default: manifest } = await import('quorate/package.json', { with: { type: 'json' } })
       console.log(manifest.name)`,
    )
    expect(await run(process.execPath, ['--no-warnings', 'imports.mjs'], project)).to.equal('quorate\n')
  })

  it('runs the fifteen lines of the README', async () => {
    const code = /```js\n([\s\S]*?)```/.exec(readFileSync(join(root, 'README.md'), 'utf8'))?.[1]
    expect(code, 'a js block in README.md').to.be.a('string')
    expect(code!.trimEnd().split('\n').length).to.be.at.most(15)
    // Its ports may be in use here: each becomes a free one.
    const ports = [...new Set(code!.match(/\b700\d\b/g))]
    const addresses = await freeAddresses(ports.length)
    const text = ports.reduce((code, port, position) => code.replaceAll(port, addresses[position]!.split(':')[1]!), code!)
    writeFileSync(join(project, 'readme.mjs'), text)
    const said = /```text\n([\s\S]*?)```/.exec(readFileSync(join(root, 'README.md'), 'utf8'))?.[1]
    expect(await run(process.execPath, ['readme.mjs'], project)).to.equal(said)
  })

  it('is clean by publint and by attw', async () => {
    await run(process.execPath, [programOf('publint', 'publint'), 'run', tarball, '--strict'], root)
    await run(process.execPath, [programOf('@arethetypeswrong/cli', 'attw'), tarball, '--profile', 'esm-only'], root)
  })
})
