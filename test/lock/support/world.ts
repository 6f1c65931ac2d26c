/**
 * A simulated world for lock tests: one model store, clients that are processes of their own (they can be paused or killed), and the truth about the lock
 * record, taken from the store's writes and not from any client.
 */
import { createLocks, type Locks } from '../../../src/lock/index.js'
import { decodeRecord, freeRecord, type LockRecord } from '../../../src/lock/record.js'
import { type ModelFaults, ModelKV } from '../../../src/testing/model-kv.js'
import { ModelStore } from '../../../src/testing/model-store.js'
import { type SimulatedProcess, SimulatedRuntime } from '../../../src/testing/simulated-runtime.js'

export interface WorldClient {
  readonly name: string
  readonly process: SimulatedProcess
  readonly kv: ModelKV
  readonly locks: Locks
}

/** One change of the record, as the store saw it. */
export interface RecordChange {
  readonly atMs: number
  readonly revision: number
  readonly record: LockRecord
}

export interface ClientOptions {
  readonly ttlMs?: number
  readonly clockRate?: number
  readonly faults?: Partial<ModelFaults>
}

export class World {
  readonly runtime: SimulatedRuntime
  readonly store: ModelStore
  readonly clients: WorldClient[] = []
  readonly changes: RecordChange[] = []
  onChange: (change: RecordChange) => void = () => {}

  constructor(seed: number) {
    this.runtime = new SimulatedRuntime({ seed })
    this.store = new ModelStore({
      onWrite: ({ key, value, revision }) => {
        if (!new TextDecoder().decode(key).startsWith('quorate/lock/')) return
        const change = { atMs: this.runtime.nowMs(), revision, record: value === undefined ? freeRecord : decodeRecord(value) }
        this.changes.push(change)
        this.onChange(change)
      },
    })
  }

  client(name: string, options: ClientOptions = {}): WorldClient {
    const { ttlMs = 3000, clockRate = 1, faults = { minimumDelayMs: 1, maximumDelayMs: 3 } } = options
    // A process of its own even under a name that was there before: another life draws other nonces.
    const process = this.runtime.process(`${name} ${this.clients.length}`, { clockRate })
    const kv = new ModelKV({ runtime: process, network: this.runtime, store: this.store, faults })
    const locks = createLocks(kv, { runtime: process, session: { ttlMs }, label: name })
    const client = { name, process, kv, locks }
    this.clients.push(client)
    return client
  }

  /** The record as it stands in the store. */
  record(name = 'l'): LockRecord {
    const entry = this.store.read(new TextEncoder().encode(`quorate/lock/${name}`))
    return entry === undefined ? freeRecord : decodeRecord(entry.value)
  }

  /** How many keys the store holds. */
  get keys(): number {
    return this.store.size
  }
}

/** The error that a promise rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<Error & { code?: string; why?: string }> {
  try {
    await promise
  } catch (error) {
    return error as Error
  }
  throw new Error('should have failed')
}
