/** The public face: re-exports, nothing else. */
export * from './base/errors.js'
export type { Runtime } from './base/runtime.js'
export type { Limits } from './engine/command.js'
export type { EngineTuning, GroupStatus } from './engine/engine.js'
export type * from './engine/kv.js'
export { type ClientOptions, type MemberOptions, Node, type NodeEvents, type NodeOptions, type NodeStatus, openNode } from './node.js'
export type { BootstrapOptions, ClusterNode } from './shard/cluster-map.js'
export type { Address, FrameHandler, Transport } from './transport/transport.js'
