/** Nothing outlives a program that works with child processes: not on success, a signal, a failure, or its own death. */
import { spawn } from 'node:child_process'
import { existsSync, rmSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'

const program = fileURLToPath(new URL('./workplace-program.js', import.meta.url))

interface Told {
  readonly folder: string
  readonly pids: readonly number[]
}

/** Runs the program until it has told what it started, then lets `act` end it; resolves when it is gone. */
async function runProgram(mode: string, act: (pid: number) => void): Promise<Told & { exitCode: number | null }> {
  const child = spawn(process.execPath, [program, mode], { stdio: ['ignore', 'pipe', 'ignore'] })
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve))
  let told: Told | undefined
  for await (const line of createInterface({ input: child.stdout })) {
    told = JSON.parse(line) as Told
    act(child.pid!)
  }
  const exitCode = await ended
  if (told === undefined) throw new Error('the program told nothing')
  return { ...told, exitCode }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** Waits for processes to end; the test's own timeout is the bound. */
async function untilGone(pids: readonly number[]): Promise<void> {
  while (pids.some(isAlive)) await new Promise((resolve) => setTimeout(resolve, 20))
}

describe('the workplace of child processes', () => {
  const cases: [string, string, (pid: number) => void, number | null][] = [
    ['closes', 'close', () => {}, 0],
    ['fails without closing', 'throw', () => {}, 1],
    ['is interrupted by Ctrl-C', 'wait', (pid) => process.kill(pid, 'SIGINT'), 130],
    ['is terminated', 'wait', (pid) => process.kill(pid, 'SIGTERM'), 143],
  ]
  for (const [what, mode, act, expected] of cases) {
    it(`leaves no process and no folder when the program ${what}`, async () => {
      const { folder, pids, exitCode } = await runProgram(mode, act)
      expect(exitCode).to.equal(expected)
      expect(pids).to.have.length(2)
      await untilGone(pids)
      expect(existsSync(folder)).to.equal(false)
    })
  }

  it('leaves no process when the program is killed outright', async () => {
    const { pids, folder } = await runProgram('wait', (pid) => process.kill(pid, 'SIGKILL'))
    await untilGone(pids)
    // Nobody is left who could have removed the folder.
    rmSync(folder, { recursive: true, force: true })
  })

  it('hands over results, errors and notes', async () => {
    const { exitCode } = await runProgram('commands', () => {})
    expect(exitCode).to.equal(0)
  })
})
