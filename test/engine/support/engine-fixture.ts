/** One engine over real LevelDB folders, driven by hand: the tests deliver messages, look at what is sent, and hold back what the disk does. */
import { Writer } from '../../../src/base/codec.js'
import { type Runtime, systemRuntime } from '../../../src/base/runtime.js'
import { CommandType, shardOf, writeBatchHeader, writeCommand } from '../../../src/engine/command.js'
import { DataFolder } from '../../../src/engine/data-folder.js'
import { type DatabaseBatch, type OpenDatabase, openLevel } from '../../../src/engine/database.js'
import { defaultTuning, Engine, type EngineTuning } from '../../../src/engine/engine.js'
import { encodeMessage } from '../../../src/raft/message-codec.js'
import { type Entry, EntryKind, type Message } from '../../../src/raft/types.js'
import { Channel, type MessageHandler, type MessengerFace } from '../../../src/transport/messenger.js'

export const testShards = 16

/** A messenger whose network is the test. */
export class HandMessenger implements MessengerFace {
  readonly address = 'here'
  readonly sent: { to: string; channel: Channel; body: Buffer }[] = []
  readonly #handlers = new Map<Channel, MessageHandler>()

  send(to: string, channel: Channel, body: Uint8Array): void {
    this.sent.push({ to, channel, body: Buffer.from(body) })
  }

  onMessage(channel: Channel, handler: MessageHandler): void {
    this.#handlers.set(channel, handler)
  }

  deliver(channel: Channel, nodeId: string, body: Uint8Array): void {
    this.#handlers.get(channel)!({ nodeId, address: `address of ${nodeId}` }, body)
  }

  request(): Promise<Uint8Array> {
    throw new Error('nobody asks')
  }

  handle(): void {}
  flush(): void {}
  async open(): Promise<void> {}
  async close(): Promise<void> {}
}

/** Holds back writes to one of the databases until it is opened, or makes them fail. */
export class DiskGate {
  failure: Error | null = null
  #held: (() => void)[] | null = null

  close(): void {
    this.#held ??= []
  }

  open(): void {
    const held = this.#held ?? []
    this.#held = null
    for (const release of held) release()
  }

  /** Writes that wait. */
  get held(): number {
    return this.#held?.length ?? 0
  }

  async pass(): Promise<void> {
    await new Promise<void>((resolve) => (this.#held === null ? resolve() : this.#held.push(resolve)))
    if (this.failure !== null) throw this.failure
  }
}

export class EngineFixture {
  readonly folder: string
  readonly members: readonly string[]
  readonly logGate = new DiskGate()
  readonly stateGate = new DiskGate()
  readonly failures: unknown[] = []
  /** The nodes of the cluster's map; null for all that may be asked for. */
  known: readonly string[] | null = null
  /** Timers that are set: they have neither fired nor been called off. */
  readonly timers = new Set<object>()
  readonly #runtime: Runtime = {
    ...systemRuntime,
    schedule: (delayMs, task) => {
      const timer = {}
      this.timers.add(timer)
      const cancel = systemRuntime.schedule(delayMs, () => {
        this.timers.delete(timer)
        task()
      })
      return () => {
        this.timers.delete(timer)
        cancel()
      }
    },
  }
  /** What opens the databases, below the gates. */
  openDatabase: OpenDatabase = openLevel
  messenger = new HandMessenger()
  engine!: Engine
  #data!: DataFolder

  constructor(folder: string, members: readonly string[] = ['a', 'b', 'c']) {
    this.folder = folder
    this.members = members
  }

  /** Opens node `b`'s engine, with one group whose timers never fire unless the tuning says so. */
  async open(
    tuning: Partial<EngineTuning> = {},
    groups: readonly { id: number; members: readonly string[] }[] = [{ id: 1, members: this.members }],
  ): Promise<void> {
    this.messenger = new HandMessenger()
    const openGated: OpenDatabase = async (location, options) => {
      const database = await this.openDatabase(location, options)
      const gate = location.endsWith('log') ? this.logGate : this.stateGate
      const gated = (batch: DatabaseBatch): DatabaseBatch => ({
        put: (key, value) => batch.put(key, value),
        del: (key) => batch.del(key),
        write: async (writeOptions) => {
          await gate.pass()
          await batch.write(writeOptions)
        },
      })
      return { ...database, batch: () => gated(database.batch()) }
    }
    this.#data = await DataFolder.open(this.folder, openGated, 1024 * 1024)
    try {
      for (const { id, members } of groups) await this.#data.storeReplica({ group: id, life: 0, founders: members, isDoomed: false })
      this.engine = await Engine.open({
        nodeId: 'b',
        folder: this.#data,
        runtime: this.#runtime,
        messenger: this.messenger,
        tuning: { ...defaultTuning, electionTimeoutMs: 600_000, heartbeatIntervalMs: 100_000, ...tuning },
        addressOf: (nodeId) => (this.known?.includes(nodeId) === false ? undefined : `address of ${nodeId}`),
        onFailure: (error) => this.failures.push(error),
        onStatus: () => {},
      })
    } catch (error) {
      await this.#data.close()
      throw error
    }
  }

  async close(): Promise<void> {
    this.logGate.open()
    this.stateGate.open()
    try {
      await this.engine.close()
    } finally {
      await this.#data.close()
    }
  }

  get status() {
    return this.engine.status()[0]!
  }

  receive(message: Message): void {
    const writer = new Writer().varint(1).varint(0).varint(0)
    encodeMessage(writer, message)
    this.messenger.deliver(Channel.raft, message.from, writer.finish())
  }

  /** An append request of a leader. */
  append(from: string, term: number, previous: readonly [index: number, term: number], entries: readonly Entry[], commitIndex = 0): void {
    const [previousIndex, previousTerm] = previous
    this.receive({ type: 'append-request', from, to: 'b', term, previousIndex, previousTerm, entries, commitIndex, session: 1, sequence: 1 })
  }
}

/** An entry that puts a key. */
export function putEntry(index: number, term: number, key: string, value: string): Entry {
  return { index, term, kind: EntryKind.command, data: putBatch(index, key, value) }
}

/** A batch with one put, of session 7 7 7 …. */
export function putBatch(sequence: number, key: string, value: string): Uint8Array {
  const writer = new Writer()
  const bytes = Buffer.from(key)
  writeBatchHeader(writer, { session: Buffer.alloc(8, 7), birth: 1, lowWater: sequence }, 1)
  writeCommand(
    writer,
    {
      type: CommandType.put,
      sequence,
      key: bytes,
      value: Buffer.from(value),
      shard: shardOf(bytes, testShards),
      ifVersion: undefined,
      ifRevision: undefined,
      fence: undefined,
    },
    sequence,
  )
  return writer.finish()
}

/** Lets the event loop turn until a condition holds; mocha's timeout ends what never comes. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1))
}

/** Lets everything that needs no disk and no timer happen. */
export async function turns(count = 5): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve))
}
