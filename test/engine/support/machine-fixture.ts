/** A KvMachine over a real LevelDB folder, fed with batches of one session after the other, as a group's replica feeds it. */
import { join } from 'node:path'
import { Writer } from '../../../src/base/codec.js'
import { systemRuntime } from '../../../src/base/runtime.js'
import { type Command, type CommandResult, shardOf, writeBatchHeader, writeCommand } from '../../../src/engine/command.js'
import { type Database, openLevel } from '../../../src/engine/database.js'
import { KvMachine, type KvMachineOptions } from '../../../src/engine/kv-machine.js'
import { decodeRecord, RecordType } from '../../../src/engine/records.js'
import { StateStore } from '../../../src/engine/state-store.js'
import { withFolder } from '../../support/folders.js'

export const machineShards = 16

export function shardOfKey(key: string | Uint8Array): number {
  return shardOf(Buffer.from(key as string), machineShards)
}

/** A command but for what most have alike. */
export type WantedCommand = Pick<Command, 'type' | 'sequence' | 'shard'> & Partial<Command>

export function encodeCommands(session: number | Uint8Array, lowWater: number, commands: readonly WantedCommand[]): Uint8Array {
  const writer = new Writer()
  writeBatchHeader(writer, { session: typeof session === 'number' ? Buffer.alloc(8, session) : session, birth: 1, lowWater }, commands.length)
  const blank = { value: null, key: new Uint8Array(0), ifVersion: undefined, ifRevision: undefined, fence: undefined }
  for (const command of commands) writeCommand(writer, { ...blank, ...command }, lowWater)
  return writer.finish()
}

export class MachineFixture {
  store!: StateStore
  machine!: KvMachine
  readonly #database: Database
  readonly #options: KvMachineOptions
  #index = 0

  constructor(database: Database, options: KvMachineOptions) {
    this.#database = database
    this.#options = options
  }

  async open(): Promise<void> {
    let machine: KvMachine | null = null
    this.store = new StateStore({
      database: this.#database,
      group: 1,
      runtime: systemRuntime,
      decode: decodeRecord,
      cacheBytes: () => 500,
      flushBytes: 1_000_000_000,
      flushAfterMs: 1_000_000,
      durableIndex: () => Number.MAX_SAFE_INTEGER,
      beforeFreeze: () => machine?.saveShards(),
      onFailure: (error) => {
        throw error
      },
    })
    await this.store.open()
    machine = new KvMachine(this.store, this.#options)
    this.machine = machine
  }

  apply(data: Uint8Array): CommandResult[] {
    const results = this.machine.apply(data)
    this.store.advance(++this.#index)
    return results
  }

  /** What a key holds, with version and revision, as text. */
  read(key: string): string | undefined {
    const found = this.machine.read(shardOfKey(key), Buffer.from(key))
    return found && `${Buffer.from(found.value)} v${found.version} r${found.revision}`
  }

  async restart(): Promise<void> {
    await this.store.close()
    await this.open()
  }

  /** Bytes of everything that the shards hold in the database, but for their history; flushes first. */
  async storedBytes(): Promise<number> {
    await this.restart()
    const iterator = this.#database.iterate({ gte: Buffer.from([0, 1, 0]), lt: Buffer.from([0, 1, 0xff]) })
    let bytes = 0
    for (let page = await iterator.nextv(1000); page.length > 0; page = await iterator.nextv(1000)) {
      for (const [key, value] of page) if (key[5] !== RecordType.history) bytes += key.length + value.length
    }
    await iterator.close()
    return bytes
  }
}

export async function withMachine(run: (fixture: MachineFixture) => Promise<void> | void, options: KvMachineOptions = {}): Promise<void> {
  await withFolder(async (folder) => {
    const database = await openLevel(join(folder, 'state'), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
    const fixture = new MachineFixture(database, options)
    try {
      await fixture.open()
      await run(fixture)
    } finally {
      await fixture.store.close()
      await database.close()
    }
  })
}
