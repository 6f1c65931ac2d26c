/**
 * RequestLedger: what the clients of a simulation asked for and what they were told, request by request, so that both can be compared with what the log says.
 *
 * K3 what a caller asked for once takes effect once at most, under whatever request ids it was sent · K4 what was acknowledged is in the log with that answer; what failed has no effect; of
 * what ended in doubt the truth is known here · K5 every key read, of a get, of many, shows what the log says of the position that the answer names · K6 so does every page of a scan, as a whole:
 * one point in time of its group.
 *
 * Invariant: it changes nothing; it stands between an operation of the dispatcher and its caller, and passes everything on.
 */
import { toLatin1 } from '../../base/bytes.js'
import { ConditionFailedError, InvalidArgumentError, OutcomeUnknownError } from '../../base/errors.js'
import { CommandStatus } from '../../engine/command.js'
import type { ReadPosition } from '../../engine/kv.js'
import { type ReadResult, ScanForm, type ScanPage } from '../../engine/kv-protocol.js'
import { Dispatcher } from '../../shard/dispatcher.js'
import { GroupRoute } from '../../shard/group-route.js'
import type { Operation, ReadOperation, ScanOperation, WriteAnswer, WriteOperation } from '../../shard/operations.js'
import type { History, Operation as HistoryLine } from '../history.js'
import { InvariantViolation } from '../simulation/invariants.js'
import type { NodeInvariants } from './checker.js'
import { stateAt } from './known-order.js'
import { type Effect, type KnownRequest, requestName, toldBy } from './reference.js'
import type { Seams } from './seams.js'
import { SimulatedProcess, type World } from './world.js'

/** `waiting`: its process died, or the run has ended. */
type Outcome = 'waiting' | 'done' | 'refused' | 'not-done' | 'unknown'

interface AskedWrite {
  readonly process: SimulatedProcess
  readonly operation: WriteOperation
  /** Under which it was sent, or was going to be. */
  readonly sequences: Set<number>
  /** Its lines in the history; none for what is not recorded. */
  readonly lines: readonly HistoryLine[]
  outcome: Outcome
  answer: { readonly version: number; readonly revision: number; readonly told: string | undefined } | null
}

const describe = ({ operation: { group, shard, key, type }, process, sequences, outcome }: AskedWrite): string =>
  `the ${['', 'put', 'delete', 'transaction', 'increment'][type]} of ${Buffer.from(key)} by ${process.name} (group ${group}, shard ${shard}, sequence ${[...sequences]}, ${outcome})`

/** What is left of an error for those who asked. */
function outcomeOf(error: unknown): Outcome {
  if (error instanceof OutcomeUnknownError) return 'unknown'
  return error instanceof ConditionFailedError || error instanceof InvalidArgumentError ? 'refused' : 'not-done'
}

export class RequestLedger {
  readonly #world: World
  readonly #checker: NodeInvariants
  readonly #history: History
  readonly #writes: AskedWrite[] = []
  readonly #byResolve = new WeakMap<object, AskedWrite>()
  /** What each process drew that is as long as a session id. */
  readonly #draws = new WeakMap<SimulatedProcess, Uint8Array[]>()
  /** Lines of the history before this one belong to operations that were asked earlier. */
  #linesSeen = 0

  constructor(world: World, checker: NodeInvariants, history: History) {
    this.#world = world
    this.#checker = checker
    this.#history = history
  }

  observe(seams: Seams): void {
    const ledger = this
    const onDraw = (process: SimulatedProcess, bytes: Uint8Array) => {
      if (bytes.length !== 8) return
      const draws = this.#draws.get(process)
      if (draws === undefined) this.#draws.set(process, [bytes.slice()])
      else draws.push(bytes.slice())
    }
    seams.replace(SimulatedProcess, 'randomBytes', (randomBytes) => {
      return function (length) {
        const bytes = randomBytes.call(this, length)
        onDraw(this, bytes)
        return bytes
      }
    })
    seams.replace(Dispatcher, 'wait', (wait) => {
      return function (options, make) {
        return wait.call(this, options, (sequence, waiting) => ledger.#asked(make(sequence, waiting)))
      }
    })
    const onAdd = ({ kind, resolve, ...operation }: Operation) => {
      if (kind === 'write') this.#byResolve.get(resolve)?.sequences.add((operation as WriteOperation).sequence)
    }
    seams.replace(GroupRoute, 'add', (add) => {
      return function (operation) {
        onAdd(operation)
        return add.call(this, operation)
      }
    })
  }

  /** In the midst of the product's code nothing is thrown: the world knows. */
  #violation(invariant: string, message: string): void {
    try {
      this.#checker.violation(invariant, message)
    } catch (error) {
      if (!(error instanceof InvariantViolation)) throw error
    }
  }

  #asked(operation: Operation): Operation {
    const { operations } = this.#history
    // The line that was begun for it in this very turn; what was refused before it came here has ended already.
    const lines = operations.slice(this.#linesSeen).filter(({ ret, op }) => ret === null && op !== 'get')
    this.#linesSeen = operations.length
    const process = this.#world.current
    if (process === null) return operation
    switch (operation.kind) {
      case 'write':
        return this.#askedWrite(process, operation, lines)
      case 'read':
        return this.#askedRead(operation)
      case 'scan':
        return this.#askedScan(operation)
      case 'watch':
        // What a watch tells is checked by those who watch: many answers make up what it promises.
        return operation
      default:
        return operation satisfies never
    }
  }

  #askedWrite(process: SimulatedProcess, operation: WriteOperation, lines: readonly HistoryLine[]): WriteOperation {
    const asked: AskedWrite = { process, operation, sequences: new Set([operation.sequence]), lines, outcome: 'waiting', answer: null }
    this.#writes.push(asked)
    const resolve = (answer: WriteAnswer) => {
      asked.outcome = 'done'
      asked.answer = { version: answer.version, revision: answer.revision, told: toldBy(operation, answer.body) }
      operation.resolve(answer)
    }
    const reject = (error: unknown) => {
      asked.outcome = outcomeOf(error)
      operation.reject(error)
    }
    this.#byResolve.set(resolve, asked)
    return { ...operation, resolve, reject }
  }

  #askedRead(operation: ReadOperation): ReadOperation {
    let position: ReadPosition | null = null
    const onPosition = (told: ReadPosition) => {
      position = told
      operation.onPosition?.(told)
    }
    const resolve = (result: ReadResult | undefined) => {
      this.#checkRead(toLatin1(operation.key), result, position)
      operation.resolve(result)
    }
    return { ...operation, onPosition, resolve }
  }

  #checkRead(key: string, found: ReadResult | undefined, position: ReadPosition | null): void {
    if (position === null) return this.#violation('K5', `a read of ${key} does not say what it reflects`)
    const { reference } = this.#checker.group(position.group)
    const wanted = stateAt(reference.writes.get(key) ?? [], position.index)
    if (found?.version === wanted?.version && found?.revision === wanted?.revision && (!found || toLatin1(found.value) === wanted?.value)) {
      return this.#checker.reach('read-checked')
    }
    this.#violation(
      'K5',
      `a read of ${key} at index ${position.index} of group ${position.group} gives version ${found?.version}, the log says ${wanted?.version}`,
    )
  }

  #askedScan(operation: ScanOperation): ScanOperation {
    const resolve = (page: ScanPage) => {
      this.#checkPage(operation, page)
      operation.resolve(page)
    }
    return { ...operation, resolve }
  }

  #checkPage({ group, request }: ScanOperation, { entries, count, more, last, appliedIndex }: ScanPage): void {
    const { gte, lt, reverse, form } = request
    const wanted: [key: string, version: number, revision: number, value: string | null][] = []
    for (const [key, writes] of this.#checker.group(group).reference.writes) {
      if (key < toLatin1(gte) || (lt !== null && key >= toLatin1(lt))) continue
      const state = stateAt(writes, appliedIndex)
      if (state !== undefined) wanted.push([key, state.version, state.revision, form === ScanForm.entries ? state.value : ''])
    }
    wanted.sort(([one], [other]) => (one < other !== reverse ? -1 : 1))
    const page = wanted.slice(0, count)
    const given = entries.map(({ key, version, revision, value }) => [toLatin1(key), version, revision, toLatin1(value)])
    const isWhole = count <= wanted.length && (more || count === wanted.length)
    const isRight = isWhole && (last === null ? count === 0 : toLatin1(last) === page.at(-1)?.[0])
    if (isRight && (form === ScanForm.count || JSON.stringify(given) === JSON.stringify(page))) return this.#checker.reach('page-checked')
    this.#violation(
      'K6',
      `a page of group ${group} at index ${appliedIndex} has ${count} entries (more: ${more}) ${JSON.stringify(given.map((entry) => entry.slice(0, 3)))}, the log says ${JSON.stringify(wanted.map((entry) => entry.slice(0, 3)))}`,
    )
  }

  /** The requests that it was sent as, those that came into the log. */
  #known({ process, operation: { group, shard }, sequences }: AskedWrite): KnownRequest[] {
    const { requests } = this.#checker.group(group).reference
    const found: KnownRequest[] = []
    for (const session of this.#draws.get(process) ?? []) {
      for (const sequence of sequences) {
        const request = requests.get(requestName(session, shard, sequence))
        if (request !== undefined) found.push(request)
      }
    }
    return found
  }

  /** At the end: judges what every caller was told, and settles in the history what ended in doubt. */
  judge(): void {
    for (const asked of this.#writes) this.#judge(asked)
  }

  #judge(asked: AskedWrite): void {
    const settled = new Set<HistoryLine>()
    const known = this.#known(asked)
    const effective = known.filter(({ effects }) => effects.length > 0)
    if (effective.length > 1) {
      return this.#checker.violation('K3', `${describe(asked)} took effect ${effective.length} times, at ${effective.map(({ index }) => index)}`)
    }
    const effects = effective[0]?.effects ?? []
    const { outcome, answer } = asked
    switch (outcome) {
      case 'done': {
        const { version, revision, told } = answer!
        const isIt = ({ answer: given }: KnownRequest) =>
          (given.status === CommandStatus.ok || given.status === CommandStatus.absent) &&
          given.version === version &&
          given.revision === revision &&
          given.told === told
        if (!known.some(isIt)) {
          return this.#checker.violation('K4', `${describe(asked)} was answered ${JSON.stringify(answer)}; the log says ${JSON.stringify(known)}`)
        }
        break
      }
      case 'refused':
        if (known.length === 0 || effects.length > 0) {
          return this.#checker.violation('K4', `${describe(asked)} was refused; the log says ${JSON.stringify(known)}`)
        }
        break
      case 'not-done':
        if (effects.length > 0)
          return this.#checker.violation('K4', `${describe(asked)} was told as certainly not done; the log says ${JSON.stringify(known)}`)
        break
      default:
        this.#checker.reach(effects.length > 0 ? 'doubt-was-done' : 'doubt-was-not-done')
    }
    // Both branches of a transaction may write one key: the lines that are known to be done have the effects, and what is left is for those in doubt.
    const left = [...effects]
    for (const result of ['ok', 'unknown', 'failed', 'condition-failed']) {
      for (const line of asked.lines.filter((each) => each.result === result && !settled.has(each))) {
        settled.add(line)
        this.#settle(asked, line, left)
      }
    }
  }

  /** Completes a line of the history by what is known, or finds that it says something else. */
  #settle(asked: AskedWrite, line: HistoryLine, left: Effect[]): void {
    const at = left.findIndex(({ key, version }) => key === line.key && (version === 0) === (line.op === 'delete'))
    const [effect] = at < 0 ? [] : left.splice(at, 1)
    switch (line.result) {
      case 'unknown':
        line.result = effect === undefined ? 'failed' : 'ok'
        break
      case 'failed':
      case 'condition-failed':
        if (effect !== undefined) this.#checker.violation('K4', `${describe(asked)} is in the history as ${line.result}, and had an effect`)
        return
      case 'ok':
        if (effect !== undefined && (line.version ?? effect.version) !== effect.version) {
          return this.#checker.violation('K2', `${describe(asked)} is in the history with version ${line.version}; the log says ${effect.version}`)
        }
        if (effect === undefined && (line.op === 'put' || line.deleted === true)) {
          return this.#checker.violation('K4', `${describe(asked)} is in the history as done, and had no effect on ${line.key}`)
        }
        break
      default:
        line.result satisfies never
    }
    if (line.op === 'delete') {
      line.deleted = effect !== undefined
      line.version = 0
    }
    if (effect === undefined) return
    line.version = effect.version
    line.revision = effect.revision
    if (line.op === 'put' && line.value === null) line.value = effect.value
  }
}
