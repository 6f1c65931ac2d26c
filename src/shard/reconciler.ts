/**
 * Reconciler: on every node, for each group that it leads, moves the group's members towards what the map wants: asks nodes for replicas, takes them as learners, waits until they have
 * caught up, and changes the voters in one joint change. And for each replica here that hears of no leader, finds out whether it is still a member, and destroys it when it is not.
 *
 * Invariants:
 * 1. Nothing is remembered between leaders: all that a step needs stands in the group's configuration, in the map, and in the nodes' answers. Every step may be done twice (hazards D5.41, m2).
 * 2. Before a leader acts on a map it makes sure that it is the latest one, by a linearizable read: an old leader with an old map does not undo what was asked for since.
 * 3. Whoever is slow or dead is waited for by nothing but its own place: nodes are asked side by side, each with a time limit, and what can be done without their answers is done
 * meanwhile (hazard D5.46).
 * 4. A replica is destroyed only when a leader has confirmed, by a round of its voters, that a committed configuration does not name its life, nor any later one. A life that was removed never comes back, so
 * that stays true.
 */
import { Reader, Writer } from '../base/codec.js'
import { InvalidArgumentError, QuorateError } from '../base/errors.js'
import type { Cancel, Runtime } from '../base/runtime.js'
import type { Host } from '../engine/host.js'
import { lifeOf, memberId, nodeOf } from '../engine/identity.js'
import type { Lives } from '../engine/lives.js'
import type { Replica } from '../engine/replica.js'
import type { Configuration, NodeId, PeerProgress } from '../raft/types.js'
import type { MessengerFace } from '../transport/messenger.js'
import type { Router } from './cluster-map.js'
import { CatchUp, isAsWanted, nextMembers } from './placement.js'

export interface ReconcilerOptions {
  readonly nodeId: NodeId
  readonly runtime: Runtime
  readonly messenger: MessengerFace
  readonly router: Router
  readonly host: Host
  readonly lives: Lives
  /** Makes sure that the router has the latest map; rejects with a QuorateError when that cannot be known now. */
  readonly refreshMap: () => Promise<unknown>
  readonly electionTimeoutMs: number
  /** How often all groups are looked at when all is well. */
  readonly intervalMs: number
}

/** What the leader of a group knows of those that it cares for; gone with its leadership. */
interface Care {
  readonly replica: Replica
  readonly term: number
  /** The members that live on wanted nodes, as these have said. */
  readonly lives: Map<NodeId, NodeId>
  /** When a node is asked again; infinity while it is being asked. */
  readonly askAtMs: Map<NodeId, number>
  readonly catchUps: Map<NodeId, CatchUp>
  /** The epoch of the map that is known to be the latest, and when that was made sure of. */
  checkedEpoch: number
  isChecking: boolean
  isChanging: boolean
}

/** A replica here that hears of no leader. */
interface Orphan {
  readonly replica: Replica
  readonly sinceMs: number
  askAtMs: number
  turn: number
}

const MembershipAnswer = { no: 0, yes: 1, unknown: 2 } as const

/** How often a group is looked at while something about it is to be changed. */
const busyIntervalMs = 50
const requestTimeoutMs = 1000
const askAgainAfterFailureMs = 250
const askAgainAfterAnswerMs = 1000
const handOnAgainAfterMs = 2000
/** A replica asks whether it is still a member when it has heard of no leader for so many election timeouts. */
const orphanAfterTimeouts = 12

export class Reconciler {
  readonly #options: ReconcilerOptions
  readonly #cares = new Map<number, Care>()
  readonly #orphans = new Map<number, Orphan>()
  /** By group: when a leader that should not hold it tries again to hand it over. */
  readonly #handOnAtMs = new Map<number, number>()
  #cancelTimer: Cancel | null = null
  #nextScanMs = 0
  #closed = false

  constructor(options: ReconcilerOptions) {
    this.#options = options
    const { messenger, router } = options
    messenger.handle('prepare-replica', (_from, request) => this.#prepare(request))
    messenger.handle('destroy-replica', (_from, request) => this.#destroy(request))
    messenger.handle('is-member', (_from, request) => this.#answerMembership(request))
    router.onUpdate(() => this.wake())
  }

  start(): void {
    this.wake()
  }

  /** Something changed: looks at all groups soon. */
  wake(): void {
    this.#schedule(0)
  }

  #schedule(delayMs: number): void {
    if (this.#closed) return
    const { runtime } = this.#options
    const atMs = runtime.nowMs() + delayMs
    if (this.#cancelTimer !== null && this.#nextScanMs <= atMs) return
    this.#cancelTimer?.()
    this.#nextScanMs = atMs
    this.#cancelTimer = runtime.schedule(delayMs, () => {
      this.#cancelTimer = null
      this.#scan()
    })
  }

  #scan(): void {
    const { host, router, runtime, intervalMs } = this.#options
    let isBusy = false
    for (const replica of host.replicas) {
      if (replica.stopped) continue
      if (replica.core.role !== 'leader') {
        this.#cares.delete(replica.group)
        this.#watchOrphan(replica)
        continue
      }
      this.#orphans.delete(replica.group)
      const wanted = router.membersOf(replica.group)
      const isWell = isAsWanted(replica.core.configuration, wanted) && replica.core.progress().every(({ isActive }) => isActive)
      if (!wanted.includes(this.#options.nodeId)) this.#handOn(replica, wanted)
      if (isWell) this.#cares.delete(replica.group)
      else if (this.#lookAfter(this.#careOf(replica), wanted)) isBusy = true
    }
    this.#schedule(isBusy ? busyIntervalMs : intervalMs * (0.75 + runtime.random() / 2))
  }

  /** A leader that should not hold the group hands it to one that should, if it can: those who ask for the group look there. */
  #handOn(replica: Replica, wanted: readonly NodeId[]): void {
    const { core } = replica
    const nowMs = this.#options.runtime.nowMs()
    // While it is being handed over the group takes neither writes nor changes: what failed is not tried again at once.
    if (nowMs < (this.#handOnAtMs.get(replica.group) ?? 0)) return
    let next: PeerProgress | undefined
    for (const each of core.progress()) {
      const { peer, isActive, state, matchIndex } = each
      if (!isActive || state !== 'replicate' || !wanted.includes(nodeOf(peer)) || !core.configuration.voters.includes(peer)) continue
      if (next === undefined || matchIndex > next.matchIndex) next = each
    }
    if (next === undefined) return
    this.#handOnAtMs.set(replica.group, nowMs + handOnAgainAfterMs)
    void replica.transfer(next.peer)
  }

  #careOf(replica: Replica): Care {
    const { group, core } = replica
    let care = this.#cares.get(group)
    if (care === undefined || care.replica !== replica || care.term !== core.term) {
      care = {
        replica,
        term: core.term,
        lives: new Map(),
        askAtMs: new Map(),
        catchUps: new Map(),
        checkedEpoch: 0,
        isChecking: false,
        isChanging: false,
      }
      this.#cares.set(group, care)
    }
    return care
  }

  /** One look at a group that is not as it should be; returns whether it should be looked at again soon. */
  #lookAfter(care: Care, wanted: readonly NodeId[]): boolean {
    const { core } = care.replica
    if (care.checkedEpoch !== this.#options.router.map.epoch) {
      void this.#checkMap(care)
      return false
    }
    this.#askNodes(care, wanted)
    this.#watchLearners(care)
    const { configuration } = core
    if (care.isChanging) return true
    // Whoever leads leaves the joint configuration by itself.
    if (configuration.votersOutgoing.length > 0) return true
    const active = new Set(core.progress().flatMap(({ peer, isActive }) => (isActive ? [peer] : [])))
    active.add(care.replica.member)
    const next = nextMembers({
      configuration,
      wanted,
      lives: care.lives,
      isCaughtUp: (member) => care.catchUps.get(member)?.isDone === true,
      isActive: (member) => active.has(member),
    })
    if (next !== null) void this.#change(care, configuration, next.voters, next.learners)
    return next !== null || configuration.learners.length > 0
  }

  /** Makes sure that the map is the latest one. */
  async #checkMap(care: Care): Promise<void> {
    if (care.isChecking) return
    care.isChecking = true
    try {
      await this.#options.refreshMap()
      care.checkedEpoch = this.#options.router.map.epoch
      this.wake()
    } catch (error) {
      // The meta group cannot be asked now: the next look tries again.
      if (!(error instanceof QuorateError)) throw error
    } finally {
      care.isChecking = false
    }
  }

  /** Asks wanted nodes which replica lives there, and for one where there is none: those that are no members yet, and those that are not heard. */
  #askNodes(care: Care, wanted: readonly NodeId[]): void {
    const { nodeId, runtime } = this.#options
    const { core, member: own } = care.replica
    const { voters, learners } = core.configuration
    const progress = new Map(core.progress().map((each) => [each.peer, each]))
    care.lives.set(nodeId, own)
    for (const node of wanted) {
      if (node === nodeId || (care.askAtMs.get(node) ?? 0) > runtime.nowMs()) continue
      const known = care.lives.get(node)
      const member = [...voters, ...learners].find((each) => nodeOf(each) === node && (known === undefined || each === known))
      if (member !== undefined && progress.get(member)?.isActive) continue
      void this.#ask(care, node)
    }
    for (const node of [...care.lives.keys()]) if (!wanted.includes(node)) care.lives.delete(node)
  }

  async #ask(care: Care, node: NodeId): Promise<void> {
    const { messenger, router, runtime } = this.#options
    const address = router.addressOf(node)
    if (address === undefined) return
    care.askAtMs.set(node, Number.POSITIVE_INFINITY)
    let pauseMs = askAgainAfterFailureMs
    try {
      const request = new Writer(4).varint(care.replica.group).finish()
      const reply = new Reader(await messenger.request(address, 'prepare-replica', request, { timeoutMs: requestTimeoutMs }))
      care.lives.set(node, memberId(node, reply.u32()))
      pauseMs = askAgainAfterAnswerMs
      this.wake()
    } catch (error) {
      // It may be down, or not yet up: it is asked again.
      if (!(error instanceof QuorateError)) throw error
    } finally {
      care.askAtMs.set(node, runtime.nowMs() + pauseMs)
    }
  }

  #watchLearners(care: Care): void {
    const { runtime, electionTimeoutMs } = this.#options
    const { core } = care.replica
    const nowMs = runtime.nowMs()
    const { learners } = core.configuration
    for (const member of [...care.catchUps.keys()]) if (!learners.includes(member)) care.catchUps.delete(member)
    for (const { peer, matchIndex, isActive } of core.progress()) {
      if (!learners.includes(peer)) continue
      const catchUp = care.catchUps.get(peer)
      if (catchUp === undefined) care.catchUps.set(peer, new CatchUp(core.lastIndex, nowMs))
      else if (isActive) catchUp.reached(matchIndex, core.lastIndex, nowMs, electionTimeoutMs)
      else catchUp.lost(core.lastIndex, nowMs)
    }
  }

  async #change(care: Care, before: Configuration, voters: readonly NodeId[], learners: readonly NodeId[]): Promise<void> {
    care.isChanging = true
    const outcome = await care.replica.configure(voters, learners)
    care.isChanging = false
    if (outcome === null) {
      for (const member of [...before.voters, ...before.learners]) {
        if (!voters.includes(member) && !learners.includes(member)) this.#dismiss(care.replica.group, member)
      }
      this.wake()
    }
  }

  /** Tells a member that was removed. It need not arrive: a replica that nobody talks to asks. */
  #dismiss(group: number, member: NodeId): void {
    const { messenger, router, nodeId, lives } = this.#options
    if (nodeOf(member) === nodeId) {
      void lives.destroy(group, lifeOf(member))
      return
    }
    const address = router.addressOf(nodeOf(member))
    if (address === undefined) return
    messenger.request(address, 'destroy-replica', encodeMember(group, member), { timeoutMs: requestTimeoutMs }).catch(() => {})
  }

  /** A replica that hears of no leader for long may have been removed without being told. */
  #watchOrphan(replica: Replica): void {
    const { runtime, electionTimeoutMs } = this.#options
    const nowMs = runtime.nowMs()
    let orphan = this.#orphans.get(replica.group)
    if (replica.core.leader !== null) {
      this.#orphans.delete(replica.group)
      return
    }
    if (orphan?.replica !== replica) {
      orphan = { replica, sinceMs: nowMs, askAtMs: 0, turn: 0 }
      this.#orphans.set(replica.group, orphan)
    }
    if (nowMs - orphan.sinceMs < electionTimeoutMs * orphanAfterTimeouts || nowMs < orphan.askAtMs) return
    void this.#askMembership(orphan)
  }

  async #askMembership(orphan: Orphan): Promise<void> {
    const { messenger, router, nodeId, runtime, lives } = this.#options
    const { replica } = orphan
    const nodes = router.membersOf(replica.group).filter((node) => node !== nodeId)
    const address = router.addressOf(nodes[orphan.turn++ % Math.max(1, nodes.length)] ?? '')
    orphan.askAtMs = runtime.nowMs() + requestTimeoutMs
    if (address === undefined) return
    try {
      const reply = await messenger.request(address, 'is-member', encodeMember(replica.group, replica.member), { timeoutMs: requestTimeoutMs })
      if (reply[0] === MembershipAnswer.no && !this.#closed) await lives.destroy(replica.group, replica.life)
      // Whoever answered leads the group, and will send to a member.
      if (reply[0] === MembershipAnswer.yes) orphan.askAtMs = runtime.nowMs() + 10 * requestTimeoutMs
    } catch (error) {
      if (!(error instanceof QuorateError)) throw error
    }
  }

  async #prepare(request: Uint8Array): Promise<Uint8Array> {
    const reader = new Reader(request)
    const group = reader.varint()
    reader.end()
    if (group > 0xfffe) throw new InvalidArgumentError(`there is no group ${group}`)
    const life = await this.#options.lives.prepare(group)
    return new Writer(4).u32(life).finish()
  }

  async #destroy(request: Uint8Array): Promise<Uint8Array> {
    const { group, member } = decodeMember(request)
    if (nodeOf(member) === this.#options.nodeId) await this.#options.lives.destroy(group, lifeOf(member))
    return new Uint8Array(0)
  }

  /** Whether a member belongs to a group, as far as a leader can say. */
  async #answerMembership(request: Uint8Array): Promise<Uint8Array> {
    const { group, member } = decodeMember(request)
    const replica = this.#options.host.replica(group)
    const isReadable =
      replica !== undefined && (await new Promise<boolean>((resolve) => replica.awaitReadable((refusal) => resolve(refusal === null))))
    if (replica === undefined || !isReadable || replica.core.role !== 'leader') return Uint8Array.of(MembershipAnswer.unknown)
    const { core } = replica
    const names = (configuration: Configuration | undefined) =>
      configuration === undefined ||
      [configuration.voters, configuration.learners, configuration.votersOutgoing].some((list) => list.includes(member))
    const isMember = names(core.configuration) || names(core.configurationAt(core.commitIndex))
    return Uint8Array.of(isMember ? MembershipAnswer.yes : MembershipAnswer.no)
  }

  /** Starts nothing more. */
  close(): void {
    this.#closed = true
    this.#cancelTimer?.()
  }
}

function encodeMember(group: number, member: NodeId): Uint8Array {
  return new Writer(96).varint(group).text(member).finish()
}

function decodeMember(bytes: Uint8Array): { group: number; member: NodeId } {
  const reader = new Reader(bytes)
  const decoded = { group: reader.varint(), member: reader.text() }
  reader.end()
  return decoded
}
