/** The public face: re-exports, nothing else. */
export * from './base/errors.js'
export type { Runtime } from './base/runtime.js'
export type { Limits } from './engine/command.js'
export type { EngineTuning, GroupStatus } from './engine/engine.js'
export type * from './engine/kv.js'
export { type LocalEvents, type LocalOptions, type LocalStore, openLocal } from './local.js'
export { createLocks, type LockHandle, LockLostError, LockNotHeldError, type Locks, LockTimeoutError, type NamedLock } from './lock/index.js'
export {
  defineJob,
  fromFiles,
  fromItems,
  fromKv,
  JobCancelledError,
  type JobEvent,
  JobFailedError,
  JobHandle,
  type JobOptions,
  type JobResult,
  OutputExistsError,
  openOutput,
  toArray,
  toFolder,
  toKv,
} from './mapreduce/index.js'
export { type ClientOptions, type MemberOptions, Node, type NodeEvents, type NodeOptions, type NodeStatus, openNode } from './node.js'
export type { Administration } from './shard/administration.js'
export type { BootstrapOptions, ClusterNode } from './shard/cluster-map.js'
export {
  type FolderGroup,
  type FolderInspection,
  type FolderOptions,
  inspectFolder,
  type Recovery,
  type RecoveryOptions,
  recoverFromQuorumLoss,
} from './shard/recovery.js'
export type { Refusal } from './transport/messenger.js'
export type { Address, FrameHandler, PeerState, PeerStateHandler, Transport } from './transport/transport.js'
