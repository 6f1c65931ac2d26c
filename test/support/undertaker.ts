/**
 * Undertaker: a shell that outlives the harness by a moment and takes down what it left: processes (stopped ones too, which no closed channel would reach), mounts
 * and folders. It reads what there is from a pipe; when that closes, by `end` or by the death of this process, whatever is still noted is removed.
 *
 * Invariant: only processes, mounts and folders that were noted by this process are touched.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'

/** In the order in which they are removed. */
export type Leftover = 'process' | 'mount' | 'folder'

const script = `
while read -r verb what; do
  case $verb in
    +*) set -- "$@" "\${verb#+} $what" ;;
    -*) left=$#
        while [ $left -gt 0 ]; do
          [ "$1" = "\${verb#-} $what" ] || set -- "$@" "$1"
          shift; left=$((left - 1))
        done ;;
  esac
done
for item in "$@"; do case $item in process\\ *) kill -KILL "\${item#process }" ;; esac; done
for item in "$@"; do case $item in mount\\ *) umount -l "\${item#mount }" ;; esac; done
for item in "$@"; do case $item in folder\\ *) rm -rf "\${item#folder }" ;; esac; done
exit 0`

export class Undertaker {
  readonly #shell: ChildProcess

  constructor() {
    // A group of its own: Ctrl-C must not end it before its work.
    this.#shell = spawn('/bin/sh', ['-c', script], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] })
    this.#shell.stdin!.on('error', () => {})
  }

  add(kind: Leftover, what: string | number): void {
    this.#shell.stdin!.write(`+${kind} ${what}\n`)
  }

  remove(kind: Leftover, what: string | number): void {
    this.#shell.stdin!.write(`-${kind} ${what}\n`)
  }

  /** Removes what is still noted. */
  async end(): Promise<void> {
    if (this.#shell.exitCode !== null) return
    const ended = once(this.#shell, 'exit')
    this.#shell.stdin!.end()
    await ended
  }
}
