/** The public face of MapReduce: re-exports, nothing else. */
export { type AttemptRecord, JobCancelledError, JobFailedError, OutputExistsError, TaskError } from './errors.js'
export type { JobEvent } from './events.js'
export { fromFiles, fromItems, fromKv, type InputItem, type JobInput } from './input.js'
export {
  type Counter,
  defineJob,
  type InputRecord,
  type Job,
  type JobDefinition,
  type JobKey,
  type MapContext,
  type ReduceContext,
  type TaskContext,
} from './job.js'
export { JobHandle } from './job-handle.js'
export type { JobOptions, JobResult, JobStats } from './job-options.js'
export { OutputReader, type OutputScanOptions, openOutput } from './open-output.js'
export {
  type ArrayOutput,
  type ArrayResult,
  type FolderOutput,
  type FolderResult,
  type JobOutput,
  type KvOutput,
  type KvResult,
  type OutputFile,
  type ResultOf,
  toArray,
  toFolder,
  toKv,
} from './output.js'
export { defaultJobTiming, JobRunner, type JobRunnerOptions, type JobTiming } from './runner.js'
export type { PeerAddress } from './worker-service.js'
