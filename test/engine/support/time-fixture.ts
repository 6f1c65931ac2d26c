/** A state machine over a real LevelDB, led by a replica without a log or peers, in time that the test turns by hand: for what expires. */
import { join } from 'node:path'
import { Writer } from '../../../src/base/codec.js'
import { type Cancel, type Runtime, systemRuntime } from '../../../src/base/runtime.js'
import { type CommandResult, CommandType, shardOf, stampEntry, writeBatchHeader, writeCommand } from '../../../src/engine/command.js'
import { type Database, openLevel } from '../../../src/engine/database.js'
import { Expiry } from '../../../src/engine/expiry.js'
import { KvMachine } from '../../../src/engine/kv-machine.js'
import { LogClock } from '../../../src/engine/log-clock.js'
import { decodeRecord } from '../../../src/engine/records.js'
import type { ServedReplica, WriteReply } from '../../../src/engine/served-replica.js'
import { StateStore } from '../../../src/engine/state-store.js'
import { withFolder } from '../../support/folders.js'
import { testShards, until } from './engine-fixture.js'

/** A clock that stands still until it is turned. */
export class HandClock implements Runtime {
  timeMs = 1000
  #timers: { atMs: number; task: () => void }[] = []

  nowMs(): number {
    return this.timeMs
  }

  wallClockMs(): number {
    return this.timeMs
  }

  random = systemRuntime.random
  randomBytes = systemRuntime.randomBytes
  defer = systemRuntime.defer

  schedule(delayMs: number, task: () => void): Cancel {
    const timer = { atMs: this.timeMs + delayMs, task }
    this.#timers.push(timer)
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer)
    }
  }

  /** Turns the clock on and runs what is due, at its time. */
  turn(durationMs: number): void {
    const untilMs = this.timeMs + durationMs
    for (;;) {
      this.#timers.sort((one, other) => one.atMs - other.atMs)
      const next = this.#timers[0]
      if (next === undefined || next.atMs > untilMs) break
      this.#timers.shift()
      this.timeMs = Math.max(this.timeMs, next.atMs)
      next.task()
    }
    this.timeMs = untilMs
  }

  /** The event loop stands still meanwhile: all that became due runs at its end. */
  stall(durationMs: number): void {
    this.timeMs += durationMs
    this.turn(0)
  }
}

export interface Wish {
  readonly key: string
  readonly value?: string | null
  readonly sequence: number
}

export class TimeFixture {
  readonly clock = new HandClock()
  readonly sessionTtlMs: number
  readonly database: Database
  store!: StateStore
  machine!: KvMachine
  expiry!: Expiry
  replica!: ServedReplica
  term = 1
  isLeader = true
  /** Entries that Expiry has proposed. */
  readonly proposed: Uint8Array[] = []
  /** Held back, in place of being applied, while it is not null. */
  held: (() => void)[] | null = null
  #index = 0

  constructor(database: Database, sessionTtlMs: number) {
    this.database = database
    this.sessionTtlMs = sessionTtlMs
  }

  async open(): Promise<void> {
    this.store = new StateStore({
      database: this.database,
      group: 1,
      runtime: systemRuntime,
      decode: decodeRecord,
      cacheBytes: () => 100_000,
      flushBytes: 1_000_000,
      flushAfterMs: 100_000,
      durableIndex: () => Number.MAX_SAFE_INTEGER,
      beforeFreeze: () => this.machine.saveShards(),
      onFailure: (error) => {
        throw error
      },
    })
    await this.store.open()
    this.machine = new KvMachine(this.store)
    this.#index = this.store.appliedIndex
    this.replica = this.#makeReplica()
    this.expiry = new Expiry({
      runtime: this.clock,
      source: { replicas: [this.replica] },
      ownership: { shardsOf: () => Array.from({ length: testShards }, (_, shard) => shard) },
      sessionTtlMs: this.sessionTtlMs,
    })
  }

  #makeReplica(): ServedReplica {
    const fixture = this
    const clock = new LogClock()
    return {
      group: 1,
      machine: this.machine,
      stopped: false,
      damaged: (error) => {
        throw error
      },
      leaderNode: '',
      get isLeader() {
        return fixture.isLeader
      },
      get term() {
        return fixture.term
      },
      get appliedIndex() {
        return fixture.store.appliedIndex
      },
      logTimeMs: () => clock.look(this.term, this.machine.timeMs, this.clock.nowMs()),
      propose: (data: Uint8Array, reply: WriteReply) => {
        this.proposed.push(data)
        const apply = () => reply(this.applyEntry(data), null)
        if (this.held === null) apply()
        else this.held.push(apply)
      },
      awaitReadable: (reply) => reply(null),
      awaitAny: (reply) => reply(null),
    }
  }

  /** Applies an entry as it is. */
  applyEntry(data: Uint8Array): CommandResult[] {
    const results = this.machine.apply(data)
    this.store.advance(++this.#index)
    return results
  }

  /** A batch of puts and deletes, stamped with the leader's time. */
  apply(session: Uint8Array | number, head: { birth?: number; lowWater?: number; stampMs?: number }, ...wishes: Wish[]): CommandResult[] {
    return this.applyEntry(this.batch(session, head, ...wishes))
  }

  batch(
    session: Uint8Array | number,
    { birth = 1, lowWater = 1, stampMs }: { birth?: number; lowWater?: number; stampMs?: number },
    ...wishes: Wish[]
  ): Uint8Array {
    const writer = new Writer()
    writeBatchHeader(writer, { session: typeof session === 'number' ? Buffer.alloc(8, session) : session, birth, lowWater }, wishes.length)
    for (const { key, value = null, sequence } of wishes) {
      const bytes = Buffer.from(key)
      const type = value === null ? CommandType.delete : CommandType.put
      const conditions = { ifVersion: undefined, ifRevision: undefined, fence: undefined }
      writeCommand(
        writer,
        { type, sequence, key: bytes, value: value === null ? null : Buffer.from(value), shard: shardOf(bytes, testShards), ...conditions },
        lowWater,
      )
    }
    const data = writer.finish()
    stampEntry(data, stampMs ?? this.replica.logTimeMs())
    return data
  }

  read(key: string): string | undefined {
    const found = this.machine.read(shardOf(Buffer.from(key), testShards), Buffer.from(key))
    return found && Buffer.from(found.value).toString()
  }

  /** Turns the clock, in steps, until a condition holds: searches run meanwhile. */
  async turnUntil(condition: () => boolean, stepMs = 500): Promise<void> {
    while (!condition()) {
      this.clock.turn(stepMs)
      for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve))
    }
  }

  async turn(durationMs: number, stepMs = 500): Promise<void> {
    const endMs = this.clock.timeMs + durationMs
    await this.turnUntil(() => this.clock.timeMs >= endMs, stepMs)
  }

  /** All records of the group's shards, as the database has them after a flush. */
  async records(): Promise<[key: Uint8Array, value: Uint8Array][]> {
    this.store.flushSoon()
    await until(() => this.store.flushedIndex === this.store.appliedIndex)
    const iterator = this.database.iterate({ gte: Buffer.from([0, 1, 0]), lt: Buffer.from([0, 1, 0xff]) })
    const found: [Uint8Array, Uint8Array][] = []
    for (let page = await iterator.nextv(1000); page.length > 0; page = await iterator.nextv(1000)) found.push(...page)
    await iterator.close()
    return found
  }

  async restart(): Promise<void> {
    await this.close()
    await this.open()
  }

  async close(): Promise<void> {
    this.expiry.close()
    await this.store.close()
  }
}

export async function withTime(run: (fixture: TimeFixture) => Promise<void>, sessionTtlMs = 600_000): Promise<void> {
  await withFolder(async (folder) => {
    const database = await openLevel(join(folder, 'state'), { cacheBytes: 1024 * 1024, writeBufferBytes: 64 * 1024 })
    const fixture = new TimeFixture(database, sessionTtlMs)
    try {
      await fixture.open()
      await run(fixture)
    } finally {
      await fixture.close()
      await database.close()
    }
  })
}
