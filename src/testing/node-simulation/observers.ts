/** What the oracle watches in a running node, by the seams: the log store, the cores, the state machines, and what leaves for other nodes. */
import { Reader } from '../../base/codec.js'
import { Host } from '../../engine/host.js'
import { memberId } from '../../engine/identity.js'
import { KvMachine } from '../../engine/kv-machine.js'
import { LogStore } from '../../engine/log-store.js'
import { Replica } from '../../engine/replica.js'
import { JobRunner } from '../../mapreduce/index.js'
import { RaftCore } from '../../raft/core.js'
import { decodeMessage } from '../../raft/message-codec.js'
import { Channel, Messenger } from '../../transport/messenger.js'
import { InvariantViolation } from '../simulation/invariants.js'
import type { NodeInvariants } from './checker.js'
import type { Seams } from './seams.js'

export interface ObserverOptions {
  readonly checker: NodeInvariants
  /** The node whose code runs now; null when its process is dead: what it still does has no effect any more. */
  readonly current: () => string | null
  /** The node at an address. */
  readonly nodeAt: (address: string) => string | undefined
  /** The next synced write of a node's log database is this. */
  readonly noteWrite: (node: string, note: unknown) => void
  /** A node runs this replica. */
  readonly onReplica: (node: string, replica: Replica) => void
}

/** A look must change nothing: a violation ends the run after this event, and is not thrown into the product's code. */
function look(check: () => void): void {
  try {
    check()
  } catch (error) {
    if (!(error instanceof InvariantViolation)) throw error
  }
}

/** Puts the observers in. They come before the known bugs: what a bug does is what is seen. */
export function observe(seams: Seams, { checker, current, nodeAt, noteWrite, onReplica }: ObserverOptions): void {
  const replicas = new WeakMap<KvMachine, Replica>()

  seams.replace(LogStore, 'write', (write) => {
    return function (works) {
      const node = current()
      if (node === null) return write.call(this, works)
      // It begins its batch at once.
      noteWrite(node, works)
      const written = write.call(this, works)
      noteWrite(node, null)
      return written
    }
  })
  seams.replace(LogStore, 'load', (load) => {
    return async function (group) {
      const loaded = await load.call(this, group)
      const node = current()
      if (node !== null && loaded !== undefined) look(() => checker.onLoaded(node, group, loaded))
      return loaded
    }
  })
  seams.replace(LogStore, 'create', (create) => {
    return function (group, base) {
      const node = current()
      if (node !== null) look(() => checker.onCreated(node, group, base))
      return create.call(this, group, base)
    }
  })
  seams.replace(LogStore, 'remove', (remove) => {
    return function (group) {
      const node = current()
      if (node !== null) checker.onRemoved(node, group)
      return remove.call(this, group)
    }
  })
  seams.replace(Host, 'add', (add) => {
    return function (replica) {
      const node = current()
      replicas.set(replica.machine, replica)
      if (node !== null) {
        look(() => checker.onCore(node, replica))
        onReplica(node, replica)
      }
      return add.call(this, replica)
    }
  })
  seams.replace(RaftCore, 'drain', (drain) => {
    return function () {
      const output = drain.call(this)
      if (current() !== null) look(() => checker.onDrained(this, output.persist))
      return output
    }
  })
  seams.replace(RaftCore, 'step', (step) => {
    return function (input) {
      if (input.type === 'restored' && current() !== null) look(() => checker.onRestored(this, input.index, input.term))
      if (input.type === 'applied' && current() !== null) look(() => checker.onApplied(this, input.index))
      return step.call(this, input)
    }
  })
  seams.replace(KvMachine, 'apply', (apply) => {
    return function (data) {
      const results = apply.call(this, data)
      const replica = replicas.get(this)
      if (replica !== undefined && current() !== null) look(() => checker.onCommand(replica.core, replica.appliedIndex + 1, data, results))
      return results
    }
  })
  seams.replace(Replica, 'propose', (propose) => {
    return function (data, reply) {
      if (current() !== null) checker.onProposed(this, data)
      propose.call(this, data, (results, refusal) => {
        if (results !== null && current() !== null) look(() => checker.onAcknowledged(this))
        reply(results, refusal)
      })
    }
  })
  seams.replace(Replica, 'awaitReadable', (awaitReadable) => {
    return function (reply, ...rest) {
      const needed = checker.acknowledged(this.group)
      awaitReadable.call(
        this,
        (refusal) => {
          if (refusal === null && current() !== null) look(() => checker.onRead(this, needed))
          reply(refusal)
        },
        ...rest,
      )
    }
  })
  seams.replace(Messenger, 'send', (send) => {
    return function (to, channel, body) {
      if (channel === Channel.raft && current() !== null) {
        const reader = new Reader(body)
        while (reader.remaining > 0) {
          const group = reader.varint()
          const sender = memberId(this.nodeId, reader.varint())
          const receiver = memberId(nodeAt(to) ?? to, reader.varint())
          const message = decodeMessage(reader, sender, receiver)
          look(() => checker.onSend(this.nodeId, group, message))
        }
      }
      return send.call(this, to, channel, body)
    }
  })
  // Jobs have no part in a simulation, and their runner removes a folder of the real file system when it closes.
  seams.replace(JobRunner, 'close', () => async () => {})
}
