/**
 * The messages between the node that runs a job (its coordinator) and the nodes that work for it. All are requests of the messenger; every handler
 * may get the same request twice.
 *
 * | method | from | does |
 * |---|---|---|
 * | `mapreduce.describe` | coordinator | which jobs the node has, how many worker threads |
 * | `mapreduce.task` | coordinator | start an attempt of a task |
 * | `mapreduce.beat` | coordinator | keep the job alive on the node; answers with the attempts that it works on |
 * | `mapreduce.report` | worker | an attempt has ended |
 * | `mapreduce.input` | worker | bytes of a split, from the coordinator |
 * | `mapreduce.read` | any | bytes that an attempt made, from the node that keeps them |
 * | `mapreduce.end` | coordinator | the job is over: stop its attempts, remove all of it |
 *
 * Of a job only its registered name and plain parameters travel: never code, a path or a URL. Nodes are named by their ids, and each finds another's address
 * in its own list of peers.
 */
import { maxKeyBytes } from './map-buffer.js'
import { bytes, choice, fields, finite, flag, integer, list, Message, optional, type Shaped, text, variants } from './schema.js'

export const Method = {
  describe: 'mapreduce.describe',
  task: 'mapreduce.task',
  beat: 'mapreduce.beat',
  report: 'mapreduce.report',
  input: 'mapreduce.input',
  read: 'mapreduce.read',
  end: 'mapreduce.end',
} as const

export const limits = {
  /** Tasks of a job, maps and reduces each. */
  maxTasks: 100_000,
  maxReducers: 10_000,
  maxParamsBytes: 1024 * 1024,
  /** Segments of one map's output. */
  maxSegments: 10_000,
  /** A split, in bytes; also the largest record. */
  maxSplitBytes: 512 * 1024 * 1024,
  /** What one request for bytes may ask for. */
  maxPieceBytes: 1024 * 1024,
  maxNodes: 10_000,
  /** Runs of one reduce. */
  maxRuns: 1_000_000,
  maxCounters: 1000,
} as const

const jobId = text(32, /^[0-9a-f]{32}$/)
const taskId = integer(0, limits.maxTasks * 2)
const attempt = integer(1, 1_000_000)
const session = integer(1, 1_000_000_000)
const part = integer(0, limits.maxReducers - 1)
const checksum = integer(0, 0xffffffff)
const jobName = text(100, /^[A-Za-z0-9][A-Za-z0-9._-]*$/)
const nodeId = text(256)
const kind = choice('map', 'reduce')

export const describeRequest = new Message('describe', fields({ job: jobName }))
export const describeReply = new Message(
  'describe reply',
  fields({
    incarnation: text(32),
    workers: integer(0, 10_000),
    /** Undefined: no such job here. */
    job: optional(fields({ input: optional(choice('lines', 'files')), keys: choice('text', 'bytes') })),
  }),
)

const mapFields = {
  partitions: integer(1, limits.maxReducers),
  records: choice('lines', 'whole'),
  input: variants({
    /** Bytes that the coordinator holds. */
    split: fields({ length: integer(0, limits.maxSplitBytes) }),
    /** Keys of the store, from `from` up to but without `to`; the task stops after `maxBytes` and says where, when that is given. */
    range: fields({ from: bytes(maxKeyBytes), to: optional(bytes(maxKeyBytes)), maxBytes: optional(integer(1, limits.maxSplitBytes)) }),
  }),
}

/** One run that a reduce has to fetch. */
const runReference = fields({
  /** Which of `nodes` keeps it. */
  node: integer(0, limits.maxNodes - 1),
  map: taskId,
  attempt,
  segment: integer(0, limits.maxSegments - 1),
  length: integer(0),
  checksum,
})
export type RunReference = Shaped<typeof runReference>

const reduceFields = {
  part,
  output: choice('lines', 'pairs'),
  nodes: list(nodeId, limits.maxNodes),
  /** In the order of the input. */
  runs: list(runReference, limits.maxRuns),
}

export const taskWork = variants({ map: fields(mapFields), reduce: fields(reduceFields) })
export type TaskWork = Shaped<typeof taskWork>

export const taskRequest = new Message(
  'task',
  fields({
    jobId,
    /** Rises when the coordinator gave the node up and takes it back: what it did before counts no more. */
    session,
    taskId,
    attempt,
    job: jobName,
    /** MessagePack of the caller's `params`. */
    params: bytes(limits.maxParamsBytes),
    timeoutMs: integer(1),
    /** Where in the store the coordinator writes the output: to be cleaned up, should it die. */
    outputPrefix: optional(bytes(maxKeyBytes)),
    work: taskWork,
  }),
  limits.maxRuns * 8,
)
export type TaskRequest = Parameters<typeof taskRequest.encode>[0]

export const taskReply = new Message('task reply', fields({ incarnation: text(32) }))

export const beatRequest = new Message('beat', fields({ jobId, session }))
export const beatReply = new Message(
  'beat reply',
  fields({ incarnation: text(32), attempts: list(fields({ kind, taskId, attempt }), 10_000) }),
  50_000,
)

const counters = list(fields({ name: text(200), sum: finite }), limits.maxCounters)

export const outcome = variants({
  mapped: fields({
    /** Runs by segment and part. */
    segments: list(fields({ lengths: list(integer(0), limits.maxReducers), checksums: list(checksum, limits.maxReducers) }), limits.maxSegments),
    inputBytes: integer(0),
    records: integer(0),
    pairs: integer(0),
    spilledBytes: integer(0),
    /** Where the next task of the range goes on, when this one stopped early. */
    next: optional(bytes(maxKeyBytes)),
    counters,
  }),
  reduced: fields({
    length: integer(0),
    checksum,
    groups: integer(0),
    pairs: integer(0),
    inputBytes: integer(0),
    spilledBytes: integer(0),
    counters,
  }),
  failed: fields({
    code: text(100),
    message: text(10_000),
    stack: optional(text(20_000)),
    /** The record or key that it happened at. */
    at: optional(text(2000)),
    /** The map whose output could not be had, which has to run again; then the failure is not this task's own. */
    lostMap: optional(fields({ map: taskId, attempt, gone: flag })),
  }),
})
export type Outcome = Shaped<typeof outcome>

export const reportRequest = new Message(
  'report',
  fields({ jobId, session, kind, taskId, attempt, outcome }),
  limits.maxReducers * limits.maxSegments,
)
export type Report = Parameters<typeof reportRequest.encode>[0]
/** `stale`: the attempt counts no more, its output can go. `unknown`: there is no such job, all of it can go. */
export const reportReply = new Message('report reply', fields({ answer: choice('accepted', 'stale', 'unknown') }))

export const inputRequest = new Message(
  'input',
  fields({ jobId, taskId, offset: integer(0, limits.maxSplitBytes), length: integer(1, limits.maxPieceBytes) }),
)

const readItem = fields({
  kind,
  taskId,
  attempt,
  /** Of a map: which run. Of a reduce: 0 and 0. */
  segment: integer(0, limits.maxSegments - 1),
  part,
  offset: integer(0),
  length: integer(1, limits.maxPieceBytes),
})
export type ReadItem = Shaped<typeof readItem>
/** The answer is the bytes of all items, one behind the other. */
export const readRequest = new Message('read', fields({ jobId, items: list(readItem, 10_000) }), 100_000)

export const endRequest = new Message('end', fields({ jobId }))
