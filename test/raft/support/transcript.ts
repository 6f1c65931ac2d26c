/**
 * Runs a transcript: a text of commands to a group of cores, each followed by all that it made them do. The transcripts are tests and documentation in one (test/raft/transcripts).
 *
 * 1. Nothing happens that no command asks for: messages wait until they are delivered, writes until they are done (unless `writes at once`), clocks stand still until they are moved.
 * 2. Every effect is printed: messages sent, works for the disk, changes of role, commits, answers.
 */
import { RaftCore } from '../../../src/raft/core.js'
import {
  type Configuration,
  EntryKind,
  type Message,
  type MessageAfterPersist,
  type NodeId,
  type Output,
  type PersistWork,
} from '../../../src/raft/types.js'
import { describeMessage } from '../../../src/testing/simulation/trace.js'
import { Disk } from './cluster.js'
import { entriesAsRuns, logOf } from './entries.js'

interface Member {
  readonly id: NodeId
  readonly disk: Disk
  core: RaftCore
  isUp: boolean
  nowMs: number
  appliedIndex: number
  pending: { work: PersistWork | null; messages: readonly MessageAfterPersist[] }[]
}

/** `1-3:1 4:2` for three entries of term 1 and one of term 2. */
function describeLog(disk: Disk): string {
  const runs: string[] = []
  let first = 0
  for (const [position, { index, term }] of disk.entries.entries()) {
    const next = disk.entries[position + 1]
    if (first === 0) first = index
    if (next?.term === term) continue
    runs.push(`${first === index ? index : `${first}-${index}`}:${term}`)
    first = 0
  }
  const base = disk.base.index === 0 ? [] : [`(${disk.base.index}:${disk.base.term})`]
  return [...base, ...runs].join(' ') || 'empty'
}

function describeConfiguration({ voters, learners, votersOutgoing }: Configuration): string {
  const parts = [`voters ${voters.join(',') || 'nobody'}`]
  if (votersOutgoing.length > 0) parts.push(`outgoing ${votersOutgoing}`)
  if (learners.length > 0) parts.push(`learners ${learners}`)
  return parts.join(' ')
}

function describeWork({ hardState, reset, truncateFrom, entries }: PersistWork): string {
  const parts: string[] = []
  if (hardState !== null) parts.push(`term ${hardState.term} vote ${hardState.vote ?? 'nobody'}`)
  if (reset !== null) parts.push(`log begins after ${reset.index}:${reset.term}${reset.keepsLater ? ' and keeps the rest' : ''}`)
  if (truncateFrom !== null) parts.push(`cut from ${truncateFrom}`)
  const kinds = { [EntryKind.noop]: 'no-op', [EntryKind.command]: '', [EntryKind.configuration]: 'configuration' }
  if (entries.length > 0)
    parts.push(
      `entries ${entries.map(({ index, term, kind, data }) => `${index}:${term} ${kinds[kind] || Buffer.from(data).toString()}`).join(', ')}`,
    )
  return parts.join('; ')
}

export class Transcript {
  readonly #members = new Map<NodeId, Member>()
  #network: Message[] = []
  #output: string[] = []
  #nextId = 1
  #manual = new Set<NodeId>()
  #initialLogs = new Map<NodeId, number[]>()
  #initialTerms = new Map<NodeId, number>()
  #cutOff = new Set<NodeId>()

  /** Runs a whole text and returns it with what happens now in place of what stands there. */
  static run(text: string): string {
    const transcript = new Transcript()
    const result: string[] = []
    for (const line of text.split('\n')) {
      if (line.startsWith('#') || (line === '' && result.at(-1) !== '')) result.push(line)
      if (!line.startsWith('> ')) continue
      result.push(line, ...transcript.#execute(line.slice(2)), '')
    }
    while (result.at(-1) === '') result.pop()
    return `${result.join('\n')}\n`
  }

  #member(id: string | undefined): Member {
    const member = this.#members.get(id ?? '')
    if (member === undefined) throw new Error(`no replica ${id}`)
    return member
  }

  #execute(command: string): string[] {
    this.#output = []
    const [verb, ...words] = command.split(' ')
    const options = new Map(words.filter((word) => word.includes('=')).map((word) => word.split('=') as [string, string]))
    const plain = words.filter((word) => !word.includes('='))
    const list = (name: string): string[] => (options.get(name) ?? '').split(',').filter((id) => id !== '')
    switch (verb) {
      case 'log':
        this.#initialLogs.set(plain[0] as string, plain.slice(1).map(Number))
        break
      case 'term':
        this.#initialTerms.set(plain[0] as string, Number(plain[1]))
        break
      case 'start':
        this.#start(list('voters'), list('learners'), list('joiners'))
        break
      case 'writes':
        // `writes by hand n1`, `writes at once n1`
        if (plain[1] === 'hand') this.#manual.add(plain[2] as string)
        else {
          this.#manual.delete(plain[2] as string)
          this.#settle(this.#member(plain[2]))
        }
        break
      case 'write':
        this.#completeOne(this.#member(plain[0]))
        break
      case 'wait':
        for (const id of plain.slice(1)) this.#tick(this.#member(id), Number(plain[0]))
        break
      case 'timeout': {
        const member = this.#member(plain[0])
        this.#tick(member, member.core.nextTickMs - member.nowMs)
        break
      }
      case 'deliver':
        this.#deliver(plain)
        break
      case 'lose':
        for (const message of this.#take(plain)) this.#output.push(`lost: ${describeMessage(message)}`)
        break
      case 'cut':
        this.#cutOff = new Set(plain)
        break
      case 'heal':
        this.#cutOff = new Set()
        break
      case 'elect':
        this.#elect(this.#member(plain[0]))
        break
      case 'propose':
        this.#step(this.#member(plain[0]), { type: 'propose', id: this.#nextId++, data: new TextEncoder().encode(plain.slice(1).join(' ')) })
        break
      case 'read':
        this.#step(this.#member(plain[0]), { type: 'read', id: this.#nextId++, lease: plain[1] === 'lease' })
        break
      case 'configure':
        this.#step(this.#member(plain[0]), { type: 'configure', id: this.#nextId++, voters: list('voters'), learners: list('learners') })
        break
      case 'transfer':
        this.#step(this.#member(plain[0]), { type: 'transfer', id: this.#nextId++, to: plain[1] ?? null })
        break
      case 'compact': {
        const member = this.#member(plain[0])
        member.disk.compact(Number(plain[1]))
        this.#step(member, { type: 'compacted', index: Number(plain[1]) })
        break
      }
      case 'install':
        this.#install(this.#member(plain[0]), this.#member(plain[1]))
        break
      case 'crash':
        this.#member(plain[0]).isUp = false
        this.#member(plain[0]).pending = []
        break
      case 'restart': {
        const member = this.#member(plain[0])
        member.isUp = true
        member.core = this.#makeCore(member)
        this.#settle(member)
        break
      }
      case 'state':
        for (const member of this.#members.values()) this.#output.push(this.#describe(member))
        break
      case 'messages':
        this.#output.push(...this.#network.map((message) => describeMessage(message)))
        break
      default:
        throw new Error(`unknown command: ${command}`)
    }
    return this.#output.length > 0 ? this.#output : ['ok']
  }

  #start(voters: string[], learners: string[], joiners: string[]): void {
    const configuration = { voters, learners, votersOutgoing: [] }
    for (const id of [...voters, ...learners, ...joiners]) {
      const disk = new Disk(joiners.includes(id) ? { voters: [], learners: [], votersOutgoing: [] } : configuration)
      const terms = this.#initialLogs.get(id) ?? []
      disk.entries = logOf(terms)
      disk.hardState = { term: this.#initialTerms.get(id) ?? terms.at(-1) ?? 0, vote: null }
      const member: Member = { id, disk, core: undefined as unknown as RaftCore, isUp: true, nowMs: 0, appliedIndex: 0, pending: [] }
      this.#members.set(id, member)
      member.core = this.#makeCore(member)
    }
  }

  #makeCore(member: Member): RaftCore {
    const { disk, id } = member
    return new RaftCore({
      id,
      configurations: disk.configurations(),
      hardState: disk.hardState,
      terms: entriesAsRuns(disk.entries),
      lastIndex: disk.lastIndex,
      snapshotIndex: disk.base.index,
      snapshotTerm: disk.base.term,
      commitIndex: member.appliedIndex,
      nowMs: member.nowMs,
      electionTimeoutMs: 100,
      heartbeatIntervalMs: 10,
      maxInflightBytes: 1 << 16,
      maxAppendBytes: 1 << 16,
      maxTailBytes: 1 << 16,
      maxUncommittedBytes: 1 << 16,
      random: () => 0.5,
    })
  }

  #tick(member: Member, durationMs: number): void {
    member.nowMs += durationMs
    this.#step(member, { type: 'tick', nowMs: member.nowMs })
  }

  #step(member: Member, input: Parameters<RaftCore['step']>[0]): void {
    if (!member.isUp) throw new Error(`${member.id} is down`)
    const { role, term, commitIndex } = member.core
    member.core.step(input)
    if (member.core.role !== role || member.core.term !== term) this.#output.push(`${member.id} is ${member.core.role} of term ${member.core.term}`)
    if (member.core.commitIndex !== commitIndex) this.#output.push(`${member.id} commits ${member.core.commitIndex}`)
    this.#settle(member)
  }

  #settle(member: Member): void {
    while (member.core.dirty) this.#handle(member, member.core.drain())
    if (member.appliedIndex < member.core.commitIndex) {
      member.appliedIndex = member.core.commitIndex
      member.core.step({ type: 'applied', index: member.appliedIndex })
    }
    while (!this.#manual.has(member.id) && member.pending.length > 0) this.#completeOne(member)
  }

  #handle(member: Member, output: Output): void {
    const say = (what: string): void => void this.#output.push(`${member.id} ${what}`)
    for (const { id, index, term } of output.accepted) say(`takes request ${id} at ${index}:${term}`)
    for (const { id, reason } of output.rejected) say(`rejects request ${id}: ${reason}`)
    for (const { id, index } of output.reads) say(`answers read ${id} at ${index}`)
    for (const { id } of output.configured) say(`has done request ${id}: ${describeConfiguration(member.core.configuration)}`)
    for (const { id } of output.transferred) say(`has done request ${id}: ${member.core.leader} leads`)
    if (output.install !== null) say(`needs a snapshot up to ${output.install.index}:${output.install.term}, which ${output.install.from} has`)
    for (const message of output.sendNow) this.#send(message)
    for (const { peer, firstIndex, lastIndex } of output.fetch) {
      say(`reads ${firstIndex === lastIndex ? firstIndex : `${firstIndex} to ${lastIndex}`} from its disk for ${peer}`)
      member.core.step({ type: 'fetched', peer, entries: member.disk.range(firstIndex, lastIndex) })
    }
    if (output.persist !== null) say(`writes ${describeWork(output.persist)}`)
    if (output.persist !== null || output.sendAfterPersist.length > 0)
      member.pending.push({ work: output.persist, messages: output.sendAfterPersist })
  }

  #send(message: Message): void {
    const isLost = this.#cutOff.has(message.from) !== this.#cutOff.has(message.to) || !this.#members.get(message.to)?.isUp
    this.#output.push(`${isLost ? 'lost: ' : ''}${describeMessage(message)}`)
    if (!isLost) this.#network.push(message)
  }

  #completeOne(member: Member): void {
    const done = member.pending.shift()
    if (done === undefined) throw new Error(`${member.id} has nothing to write`)
    if (done.work !== null) {
      if (this.#manual.has(member.id)) this.#output.push(`${member.id} has written ${describeWork(done.work)}`)
      member.disk.write(done.work)
      this.#step(member, { type: 'persisted', sequence: done.work.sequence })
    }
    for (const message of done.messages) {
      if (message.to === member.id) this.#step(member, { type: 'message', message })
      else this.#send(message)
    }
  }

  /** Takes the waiting messages that fit: `n1>n2`, `>n2`, `n1>`, and types; with `first` or `last` only that one. */
  #take(all: string[]): Message[] {
    const words = all.filter((word) => word !== 'last' && word !== 'first')
    const link = words.find((word) => word.includes('>'))?.split('>')
    const types = words.filter((word) => !word.includes('>') && word !== 'all')
    const fits = ({ from, to, type }: Message): boolean =>
      (link === undefined || ((link[0] === '' || link[0] === from) && (link[1] === '' || link[1] === to))) &&
      (types.length === 0 || types.includes(type))
    const fitting = this.#network.filter(fits)
    const taken = all.includes('last') ? fitting.slice(-1) : all.includes('first') ? fitting.slice(0, 1) : fitting
    this.#network = this.#network.filter((message) => !taken.includes(message))
    return taken
  }

  /** Those that wait now; with `all` also what follows from them, until nothing waits. */
  #deliver(words: string[]): void {
    do {
      for (const message of this.#take(words)) {
        const member = this.#member(message.to)
        if (member.isUp) this.#step(member, { type: 'message', message })
      }
    } while (words.includes('all') && this.#network.length > 0)
  }

  /** The others no longer stand by an earlier leader, and this one campaigns. */
  #elect(member: Member): void {
    for (const other of this.#members.values()) {
      if (!other.isUp || other === member || other.core.role === 'leader') continue
      other.nowMs += 100
      other.core.step({ type: 'tick', nowMs: other.nowMs })
    }
    this.#tick(member, member.core.nextTickMs - member.nowMs)
    this.#deliver(['all'])
  }

  #install(member: Member, source: Member): void {
    const index = source.appliedIndex
    member.appliedIndex = index
    this.#step(member, { type: 'restored', index, term: source.core.termAt(index)!, configuration: source.core.configurationAt(index)! })
  }

  #describe({ id, core, disk, isUp, appliedIndex }: Member): string {
    const { term, vote } = disk.hardState
    if (!isUp) return `${id} down      disk: term ${term} vote ${vote ?? 'nobody'} log ${describeLog(disk)}`
    const status = core.status()
    return `${id} ${core.role.padEnd(9)} term ${core.term} leader ${core.leader ?? 'nobody'} commit ${core.commitIndex} applied ${appliedIndex} last ${core.lastIndex} durable ${status.durableIndex} ${describeConfiguration(core.configuration)}\n   disk: term ${term} vote ${vote ?? 'nobody'} log ${describeLog(disk)}`
  }
}
