/**
 * The child's side of workplace.ts: answers the parent's commands, and ends when the channel to the parent closes, whyever it does.
 */

export interface Request {
  readonly id: number
  readonly command: string
  readonly argument: unknown
}

/** `id` 0 is a note that nobody asked for. */
export interface Reply {
  readonly id: number
  readonly result?: unknown
  readonly error?: string
}

// Arguments and results differ by command; both sides agree on them by the type that they write.
// biome-ignore lint/suspicious/noExplicitAny: a handler states what it takes, and the channel cannot check it
export type Handlers = Readonly<Record<string, (argument: any) => unknown>>

/** The argument that the parent gave to `fork`. */
export function childArgument<Argument>(): Argument {
  return JSON.parse(process.argv[2] ?? 'null') as Argument
}

/** Sends the parent something that it did not ask for. */
export function note(message: unknown): void {
  if (process.connected) process.send?.({ id: 0, result: message } satisfies Reply)
}

/** Answers commands until the parent lets go; then closes and exits. */
export function serve(handlers: Handlers, close: () => Promise<void>): void {
  const all: Handlers = { ready: () => undefined, ...handlers }
  process.on('message', (message) => {
    const { id, command, argument } = message as Request
    const answer = async () => all[command]!(argument)
    answer().then(
      (result) => reply({ id, result }),
      (error: unknown) => reply({ id, error: error instanceof Error ? (error.stack ?? error.message) : String(error) }),
    )
  })
  const end = () => {
    close().then(
      () => process.exit(0),
      (error: unknown) => {
        console.error(error)
        process.exit(1)
      },
    )
  }
  // The parent may have gone while this process was still starting.
  if (process.connected) process.once('disconnect', end)
  else end()
}

function reply(message: Reply): void {
  if (process.connected) process.send?.(message)
}
