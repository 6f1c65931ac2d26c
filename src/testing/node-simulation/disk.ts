/**
 * SimulatedDisk: one node's disk with its databases, which survives the lives of the node's process. Simulated at the level of LevelDB's batches.
 *
 * Invariants:
 * 1. A batch is stored whole or not at all; batches become visible in the order of their writes.
 * 2. A batch written with `sync` survives whatever comes, once its write was reported. What was written without may be lost when the machine loses power: of the log file
 *    that is being written all but a beginning, and the same of each earlier file that LevelDB closed without fsync. So a middle range can be lost, and what was written later survive.
 * 3. A process that is killed loses no write that was reported, and each write under way whole or not at all.
 * 4. After a failed write every later write of that database fails too, until it is opened anew (LevelDB's background error).
 */
import { fromLatin1, toLatin1 } from '../../base/bytes.js'
import { CorruptionError, QuorateError, RefusedError } from '../../base/errors.js'
import type { Database, DatabaseBatch, DatabaseIterator, DatabaseRange, DatabaseSnapshot, OpenDatabase } from '../../engine/database.js'
import type { SeededRandom } from '../seeded-random.js'
import { lowerBoundOf, type RecordView, SortedRecords, valueIn } from './sorted-records.js'
import type { SimulatedProcess, World } from './world.js'

export interface DiskModel {
  /** Mean time of a synced write, of an unsynced one, and of a page of an iterator. */
  readonly syncMeanUs: number
  readonly writeMeanUs: number
  readonly readMeanUs: number
  /** Bytes after which LevelDB takes a new log file. */
  readonly rotateBytes: number
  /** Mean time until a closed log file is in a table, and so durable. */
  readonly compactMeanUs: number
}

export interface BatchOperation {
  readonly key: string
  /** Null deletes. */
  readonly value: Uint8Array | null
}

export interface StoredBatch {
  readonly operations: readonly BatchOperation[]
  readonly sync: boolean
  /** What the observer attached to the write. */
  readonly note: unknown
}

export interface DiskObserver {
  /** A batch survives whatever comes from now on. */
  onDurable(disk: SimulatedDisk, database: string, batch: StoredBatch): void
  /** The disk is about to do something: the place to crash the node. */
  onOperation(disk: SimulatedDisk): void
  count(fault: string): void
}

interface PendingWrite {
  readonly batch: StoredBatch
  readonly bytes: number
  readonly process: SimulatedProcess
  readonly resolve: () => void
  readonly reject: (error: unknown) => void
}

interface LogFile {
  batches: StoredBatch[]
  bytes: number
}

/** Why a write fails. */
export type WriteFault = 'io-error' | 'disk-full'

export class SimulatedDisk {
  readonly node: string
  readonly world: World
  readonly model: DiskModel
  readonly observer: DiskObserver
  readonly random: SeededRandom
  readonly #databases = new Map<string, DatabaseFile>()
  /** Writes take so many times longer. */
  slowness = 1
  /** Nothing is written before this time. */
  hangUntilUs = 0
  /** The next write to any database fails so. */
  failNext: WriteFault | null = null
  /** A write has failed since the last crash. */
  failed = false

  constructor(world: World, node: string, model: DiskModel, observer: DiskObserver) {
    this.world = world
    this.node = node
    this.model = model
    this.observer = observer
    this.random = world.stream(`disk ${node}`)
  }

  /** How a process opens databases on this disk. */
  opener(process: SimulatedProcess): OpenDatabase {
    return (location) =>
      new Promise((resolve, reject) => {
        this.observer.onOperation(this)
        process.complete(this.latency(this.model.readMeanUs), () => {
          const file = this.file(location)
          if (file.owner?.alive) reject(new RefusedError('FOLDER_IN_USE', `${location} is open in another process or node`))
          else if (file.unreadable) reject(new CorruptionError(`${location} is damaged`))
          else resolve(file.open(process))
        })
      })
  }

  file(location: string): DatabaseFile {
    let file = this.#databases.get(location)
    if (file === undefined) {
      file = new DatabaseFile(this, location)
      this.#databases.set(location, file)
    }
    return file
  }

  get files(): readonly DatabaseFile[] {
    return [...this.#databases.values()]
  }

  latency(meanUs: number): number {
    return Math.floor((this.random.exponential(meanUs) + 1) * this.slowness)
  }

  /** The node's process is gone; with the power, what was not synced may be too. */
  crash(power: boolean): void {
    this.failed = false
    for (const file of this.#databases.values()) file.crash(power)
  }

  /** All faults of the disk are over. */
  calm(): void {
    this.slowness = 1
    this.hangUntilUs = 0
    this.failNext = null
    for (const file of this.#databases.values()) file.hurry()
  }

  /** The disk is replaced by an empty one. */
  wipe(): void {
    this.#databases.clear()
  }
}

export class DatabaseFile {
  readonly location: string
  readonly #disk: SimulatedDisk
  #visible = new SortedRecords()
  /** What is sure to survive; the same object as `#visible` while that is all. */
  #durable = this.#visible
  /** Log files with batches that are not sure to survive, oldest first; the last one is being written. */
  #files: LogFile[] = [{ batches: [], bytes: 0 }]
  #queue: PendingWrite[] = []
  #writing = false
  /** Of the write under way: what was scheduled for an earlier one must not end this. */
  #attempt = 0
  /** Batches whose write failed. */
  #uncertain: StoredBatch[] = []
  #broken: Error | null = null
  #life = 0
  owner: SimulatedProcess | null = null
  /** LevelDB itself finds it damaged. */
  unreadable = false
  /** Goes with the next batch that is begun. */
  note: unknown = null

  constructor(disk: SimulatedDisk, location: string) {
    this.#disk = disk
    this.location = location
  }

  get view(): RecordView {
    return this.#visible.view()
  }

  /** Flips a bit of a record, or takes it away, behind LevelDB's back. Returns the key; undefined when there is no record that may be damaged. Only while the database is not open. */
  damage(isWanted: (key: string) => boolean, mayVanish: (key: string) => boolean): string | undefined {
    const { random } = this.#disk
    const keys = this.#durable.view().keys.filter(isWanted)
    if (keys.length === 0) return undefined
    const key = random.pick(keys)
    const value = Buffer.from(this.#durable.get(key)!)
    if (mayVanish(key) && random.chance(0.3)) this.#durable.delete(key)
    else {
      value[random.integer(0, value.length - 1)]! ^= 1 << random.integer(0, 7)
      this.#durable.put(key, value)
    }
    return key
  }

  open(process: SimulatedProcess): Database {
    this.owner = process
    this.#broken = null
    // LevelDB reads its log files into tables, fsynced, before it is open.
    for (const file of this.#files) this.#harden(file)
    const kept = this.#disk.random.integer(0, this.#uncertain.length)
    for (const batch of this.#uncertain.slice(0, kept)) {
      apply(this.#durable, batch)
      if (this.#visible !== this.#durable) apply(this.#visible, batch)
      this.#disk.observer.onDurable(this.#disk, this.location, batch)
    }
    this.#uncertain = []
    this.#files = [{ batches: [], bytes: 0 }]
    this.#durable = this.#visible
    return new SimulatedDatabase(this.#disk, this, process)
  }

  get(key: string): Uint8Array | undefined {
    return this.#visible.get(key)
  }

  takeNote(): unknown {
    const { note } = this
    this.note = null
    return note
  }

  write(batch: StoredBatch, process: SimulatedProcess): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#disk.observer.onOperation(this.#disk)
      if (!process.alive || this.owner !== process) return
      let bytes = 0
      for (const { key, value } of batch.operations) bytes += key.length + (value?.length ?? 0)
      this.#queue.push({ batch, bytes, process, resolve, reject })
      if (!this.#writing) this.#startWrite()
    })
  }

  #startWrite(): void {
    const next = this.#queue[0]
    if (next === undefined) return
    this.#writing = true
    const disk = this.#disk
    const { world, model } = disk
    const attempt = ++this.#attempt
    const waitUs = Math.max(0, disk.hangUntilUs - world.nowUs)
    world.schedule(waitUs + disk.latency(next.batch.sync ? model.syncMeanUs : model.writeMeanUs), () => {
      if (this.#attempt !== attempt) return
      // It began to hang meanwhile.
      if (disk.hangUntilUs > world.nowUs) return this.#startWrite()
      this.#queue.shift()
      this.#writing = false
      this.#finishWrite(next)
      this.#startWrite()
    })
  }

  #finishWrite({ batch, bytes, process, resolve, reject }: PendingWrite): void {
    const disk = this.#disk
    if (this.#broken === null && disk.failNext !== null) {
      const code = disk.failNext
      disk.failNext = null
      disk.observer.count(code)
      disk.failed = true
      this.#broken = new QuorateError('WRITE_FAILED', code === 'disk-full' ? 'no space left on device' : 'input/output error', false)
      // What failed may be there after a restart all the same: in part never, whole perhaps.
      this.#uncertain.push(batch)
    }
    if (this.#broken !== null) {
      const error = this.#broken
      process.complete(0, () => reject(error))
      return
    }
    this.#store(batch, bytes)
    process.complete(0, resolve)
    disk.observer.onOperation(disk)
  }

  #store(batch: StoredBatch, bytes: number): void {
    if (!batch.sync && this.#durable === this.#visible) this.#durable = this.#visible.clone()
    apply(this.#visible, batch)
    const current = this.#files[this.#files.length - 1]!
    current.batches.push(batch)
    current.bytes += bytes
    if (batch.sync) {
      this.#harden(current)
      if (this.#files.length === 1) this.#durable = this.#visible
    }
    if (current.bytes >= this.#disk.model.rotateBytes) this.#rotate(current)
  }

  /** What makes writes slow is over: the one under way need not take the time that was drawn for it. */
  hurry(): void {
    if (this.#writing) this.#startWrite()
  }

  /** Everything in this log file is durable now. */
  #harden(file: LogFile): void {
    for (const batch of file.batches) {
      if (this.#durable !== this.#visible) apply(this.#durable, batch)
      this.#disk.observer.onDurable(this.#disk, this.location, batch)
    }
    file.batches = []
  }

  #rotate(file: LogFile): void {
    this.#files.push({ batches: [], bytes: 0 })
    const life = this.#life
    this.#disk.world.schedule(this.#disk.random.exponential(this.#disk.model.compactMeanUs), () => {
      if (this.#life !== life) return
      this.#compact(file)
    })
  }

  /** The file's content is in a table, fsynced; tables are made in the order of the files. */
  #compact(file: LogFile): void {
    const position = this.#files.indexOf(file)
    if (position < 0) return
    for (const earlier of this.#files.splice(0, position + 1)) this.#harden(earlier)
  }

  crash(power: boolean): void {
    const { random, observer } = this.#disk
    this.#life++
    this.#attempt++
    this.owner = null
    const records = this.#durable
    // Of the writes under way a beginning may have reached the disk, and so may one that failed: they come last in the file that is being written.
    const underWay = [...this.#uncertain, ...this.#queue.map(({ batch }) => batch)]
    let lost = 0
    let keptAfterLoss = 0
    for (const [number, { batches }] of this.#files.entries()) {
      const isLast = number === this.#files.length - 1
      const all = isLast ? [...batches, ...underWay] : batches
      const kept = random.integer(power ? 0 : batches.length, all.length)
      for (const batch of all.slice(0, kept)) {
        apply(records, batch)
        observer.onDurable(this.#disk, this.location, batch)
      }
      if (lost > 0) keptAfterLoss += kept
      lost += Math.max(0, batches.length - kept)
      if (isLast && kept > batches.length) observer.count('write-under-way-kept')
      if (isLast && kept < all.length && underWay.length > 0) observer.count('write-under-way-lost')
    }
    if (lost > 0) observer.count('unsynced-lost')
    if (keptAfterLoss > 0) observer.count('middle-range-lost')
    this.#uncertain = []
    this.#queue = []
    this.#writing = false
    this.#broken = null
    this.#visible = records
    this.#durable = records
    this.#files = [{ batches: [], bytes: 0 }]
  }

  /** Waits for the writes under way and lets go. */
  async close(process: SimulatedProcess): Promise<void> {
    while (this.#queue.length > 0) await new Promise<void>((resolve) => process.complete(100, resolve))
    if (this.owner === process) this.owner = null
  }
}

function apply(records: SortedRecords, { operations }: StoredBatch): void {
  for (const { key, value } of operations) {
    if (value === null) records.delete(key)
    else records.put(key, value)
  }
}

/** A database as a process has it open. */
export class SimulatedDatabase implements Database {
  readonly #disk: SimulatedDisk
  readonly #file: DatabaseFile
  readonly #process: SimulatedProcess

  constructor(disk: SimulatedDisk, file: DatabaseFile, process: SimulatedProcess) {
    this.#disk = disk
    this.#file = file
    this.#process = process
  }

  getSync(key: Uint8Array): Uint8Array | undefined {
    return copyOf(this.#file.get(toLatin1(key)))
  }

  get location(): string {
    return this.#file.location
  }

  batch(): DatabaseBatch {
    const operations: BatchOperation[] = []
    const note = this.#file.takeNote()
    return {
      put: (key, value) => operations.push({ key: toLatin1(key), value: Buffer.from(value) }),
      del: (key) => operations.push({ key: toLatin1(key), value: null }),
      write: ({ sync }) => {
        return this.#file.write({ operations, sync, note }, this.#process)
      },
    }
  }

  iterate(range: DatabaseRange): DatabaseIterator {
    return new ViewIterator(this.#file.view, range, this.#disk, this.#process)
  }

  snapshot(): DatabaseSnapshot {
    const view = this.#file.view
    return {
      getSync: (key) => copyOf(valueIn(view, toLatin1(key))),
      iterate: (range) => new ViewIterator(view, range, this.#disk, this.#process),
      close: async () => {},
    }
  }

  close(): Promise<void> {
    return this.#file.close(this.#process)
  }
}

/** LevelDB gives out copies: whoever writes into one changes nothing here. */
function copyOf(value: Uint8Array | undefined): Uint8Array | undefined {
  return value && Buffer.from(value)
}

class ViewIterator implements DatabaseIterator {
  readonly #view: RecordView
  readonly #disk: SimulatedDisk
  readonly #process: SimulatedProcess
  readonly #reverse: boolean
  readonly #keysOnly: boolean
  readonly #start: number
  readonly #end: number
  #at: number

  constructor(view: RecordView, range: DatabaseRange, disk: SimulatedDisk, process: SimulatedProcess) {
    this.#view = view
    this.#disk = disk
    this.#process = process
    this.#reverse = range.reverse ?? false
    this.#keysOnly = range.keysOnly ?? false
    this.#start = lowerBoundOf(view.keys, toLatin1(range.gte))
    this.#end = Math.max(this.#start, lowerBoundOf(view.keys, toLatin1(range.lt)))
    this.#at = this.#reverse ? this.#end - 1 : this.#start
  }

  nextv(count: number): Promise<[Uint8Array, Uint8Array][]> {
    const page: [Uint8Array, Uint8Array][] = []
    while (page.length < count && this.#at >= this.#start && this.#at < this.#end) {
      const key = fromLatin1(this.#view.keys[this.#at]!)
      // LevelDB leaves the values out too, whatever the type says.
      page.push([key, this.#keysOnly ? (undefined as unknown as Uint8Array) : Buffer.from(this.#view.values[this.#at]!)])
      this.#at += this.#reverse ? -1 : 1
    }
    return new Promise((resolve) => this.#process.complete(this.#disk.latency(this.#disk.model.readMeanUs), () => resolve(page)))
  }

  async close(): Promise<void> {}
}
