/**
 * `npm test`: builds, runs mocha in a process of its own, and closes with `N passed, M failed` on a line of its own, whatever happened.
 * Plain JavaScript, because it must be able to report that the build failed. Arguments go to mocha: `npm test -- --grep lock`.
 *
 * 1. The line is the last that this process prints. 2. M is at least 1 whenever the exit code is not 0, and the other way round:
 * a build error, an import error, a crash after the last test and a run without a single test all count as a failure.
 */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..')
const require = createRequire(import.meta.url)

/** @param {{ passes: number, failures: number }} counts */
function close({ passes, failures }, exitCode = 0) {
  const failed = Math.max(failures, exitCode === 0 && passes > 0 ? 0 : 1)
  process.exitCode = exitCode !== 0 ? exitCode : failed > 0 ? 1 : 0
  process.stdout.write(`${passes} passed, ${failed} failed\n`)
}

/** Removes what an earlier build left of sources that are gone: mocha would run it. */
function removeStaleOutput(folder = join(root, 'dist')) {
  if (!existsSync(folder)) return
  for (const name of readdirSync(folder)) {
    const path = join(folder, name)
    if (statSync(path).isDirectory()) {
      removeStaleOutput(path)
      continue
    }
    const stem = /^(.*)\.(?:js|js\.map|d\.ts|d\.ts\.map)$/.exec(path)?.[1]
    if (stem !== undefined && !existsSync(`${stem.replace(join(root, 'dist'), root)}.ts`)) rmSync(path)
  }
}

function build() {
  removeStaleOutput()
  return spawnSync(process.execPath, [require.resolve('typescript/bin/tsc'), '-p', 'tsconfig.json'], { cwd: root, stdio: 'inherit' }).status ?? 1
}

function runMocha() {
  let counts = { passes: 0, failures: 0 }
  // The fourth stream is a channel on which the reporter (test/support/reporter.ts) hands over its counts.
  const mocha = spawn(process.execPath, [join(root, 'node_modules/mocha/bin/mocha.js'), ...process.argv.slice(2)], {
    cwd: root,
    stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
  })
  mocha.on('message', (message) => {
    counts = /** @type {{ passes: number, failures: number }} */ (message)
  })
  // A signal to the group reaches mocha too; this process stays to report.
  for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM'])) process.on(signal, () => mocha.kill(signal))
  mocha.on('error', (error) => {
    console.error(error)
    close(counts, 1)
  })
  mocha.on('close', (exitCode, signal) => {
    if (signal !== null) console.error(`mocha was ended by ${signal}`)
    close(counts, exitCode ?? 1)
  })
}

const buildStatus = build()
if (buildStatus === 0) runMocha()
else {
  console.error('The build failed: no test ran.')
  close({ passes: 0, failures: 1 }, buildStatus)
}
