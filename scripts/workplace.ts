/**
 * A temporary folder and the child processes that work in it, for the programs that need several real processes (demo, bench).
 *
 * 1. No child and no folder outlives the program: not on success, failure, Ctrl-C or SIGTERM. 2. Even when this process is killed outright its
 * children end: a Node.js child sees its channel close (see child.ts), any other one is watched by a shell that sees its input close.
 * 3. Only processes started here are ever signalled, each by its own pid.
 */
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { createWriteStream, mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Reply, Request } from './child.js'

/** How long a child may take to end by itself before it is killed. */
const gracePeriodMs = 5_000

/** A Node.js child that answers commands (see `serve` in child.ts). */
export class Child {
  readonly name: string
  readonly #process: ChildProcess
  readonly #waiting = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>()
  readonly #onNote: (note: unknown) => void
  #nextId = 1
  #ended: Promise<void>
  #isEnded = false

  constructor(name: string, process: ChildProcess, onNote: (note: unknown) => void) {
    this.name = name
    this.#process = process
    this.#onNote = onNote
    process.on('message', (message) => this.#onMessage(message as Reply))
    this.#ended = new Promise((resolve) => {
      process.once('exit', (exitCode, signal) => {
        this.#isEnded = true
        const error = new Error(`process ${name} ended (${signal ?? `exit code ${exitCode}`})`)
        for (const { reject } of this.#waiting.values()) reject(error)
        this.#waiting.clear()
        resolve()
      })
    })
  }

  /** Resolves when the process is gone. */
  get ended(): Promise<void> {
    return this.#ended
  }

  get isEnded(): boolean {
    return this.#isEnded
  }

  /** Runs a command in the child; resolves to what it returns, rejects with its error or when the child ends. */
  ask<Result>(command: string, argument?: unknown): Promise<Result> {
    return new Promise<Result>((resolve, reject) => {
      if (this.#isEnded) return reject(new Error(`process ${this.name} has ended`))
      const id = this.#nextId++
      this.#waiting.set(id, { resolve: resolve as (value: unknown) => void, reject })
      this.#process.send({ id, command, argument } satisfies Request, (error) => {
        if (error === null) return
        this.#waiting.delete(id)
        reject(error)
      })
    })
  }

  /** SIGKILL: nothing is flushed, nobody is told. Resolves when the process is gone. */
  async kill(): Promise<void> {
    if (!this.#isEnded) this.#process.kill('SIGKILL')
    await this.#ended
  }

  /** Closes the channel, on which the child closes what it has open and ends; kills it when that takes too long. */
  async stop(): Promise<void> {
    if (this.#process.connected) this.#process.disconnect()
    const timer = setTimeout(() => this.#process.kill('SIGKILL'), gracePeriodMs)
    await this.#ended
    clearTimeout(timer)
  }

  #onMessage(reply: Reply): void {
    if (reply.id === 0) {
      this.#onNote(reply.result)
      return
    }
    const waiting = this.#waiting.get(reply.id)
    this.#waiting.delete(reply.id)
    if (reply.error === undefined) waiting?.resolve(reply.result)
    else waiting?.reject(new Error(`in process ${this.name}: ${reply.error}`))
  }
}

export class Workplace {
  /** The temporary folder. */
  readonly folder: string
  readonly #children = new Set<Child>()
  /** Shells that watch foreign programs: to end one is to end its program. */
  readonly #programs = new Set<ChildProcess>()
  readonly #onExit = () => this.#endNow()
  readonly #onSignal = (signal: NodeJS.Signals) => {
    process.stderr.write(`\n${signal}: stopping\n`)
    void this.close().finally(() => process.exit(signal === 'SIGINT' ? 130 : 143))
  }

  constructor(name: string) {
    this.folder = mkdtempSync(join(tmpdir(), `${name}-`))
    process.on('exit', this.#onExit)
    process.once('SIGINT', this.#onSignal)
    process.once('SIGTERM', this.#onSignal)
  }

  /** Starts a Node.js program that uses `serve` of child.ts, and waits until it is ready for commands. */
  async fork(name: string, program: URL, options: { argument?: unknown; onNote?: (note: unknown) => void } = {}): Promise<Child> {
    const { argument, onNote = () => {} } = options
    const childProcess = fork(program, [JSON.stringify(argument ?? null)], {
      // A group of its own: Ctrl-C reaches only this process, which then ends its children in order.
      detached: true,
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      serialization: 'advanced',
    })
    const child = new Child(name, childProcess, onNote)
    this.#children.add(child)
    void child.ended.then(() => this.#children.delete(child))
    await child.ask('ready')
    return child
  }

  /** Starts a program that is not ours; its output goes to `<name>.log` in the folder. Returns how to stop it. */
  spawn(name: string, command: string, args: readonly string[]): { stop(): Promise<void> } {
    // `read` returns when our end of the pipe closes, by `stop` or by our death; the program has the shell as its parent.
    const watch = '"$@" & child=$!; read -r _; kill "$child"; wait "$child"'
    const shell = spawn('/bin/sh', ['-c', watch, 'sh', command, ...args], { cwd: this.folder, detached: true, stdio: ['pipe', 'pipe', 'pipe'] })
    const log = createWriteStream(join(this.folder, `${name}.log`), { flags: 'a' })
    shell.stdout.pipe(log, { end: false })
    shell.stderr.pipe(log, { end: false })
    this.#programs.add(shell)
    const ended = new Promise<void>((resolve) => {
      shell.once('close', () => {
        this.#programs.delete(shell)
        log.end(resolve)
      })
    })
    return {
      stop: async () => {
        shell.stdin.end()
        await ended
      },
    }
  }

  /** Ends every child and removes the folder. Idempotent. */
  async close(): Promise<void> {
    process.off('SIGINT', this.#onSignal)
    process.off('SIGTERM', this.#onSignal)
    const programs = [...this.#programs].map(
      (program) =>
        new Promise((resolve) => {
          program.once('close', resolve)
          program.stdin?.end()
        }),
    )
    await Promise.all([...[...this.#children].map((child) => child.stop()), ...programs])
    this.#endNow()
    process.off('exit', this.#onExit)
  }

  /** The last resort, synchronous: when the process exits without `close`. */
  #endNow(): void {
    for (const child of this.#children) void child.kill()
    for (const program of this.#programs) program.stdin?.destroy()
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 })
  }
}

/** Free ports of 127.0.0.1, outside the range that the system hands out by itself: nobody takes one between now and its use by chance. */
export async function freeAddresses(count: number): Promise<string[]> {
  const addresses = new Set<string>()
  while (addresses.size < count) {
    const port = 10_000 + Math.floor(Math.random() * 20_000)
    if (await isFree(port)) addresses.add(`127.0.0.1:${port}`)
  }
  return [...addresses]
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen({ host: '127.0.0.1', port }, () => server.close(() => resolve(true)))
  })
}
