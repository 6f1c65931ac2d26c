/** From the cells of all rounds to the table and the JSON: medians, spread and ratios. */
import type { CellResult, OperationName } from './load.js'

/** A cell of one round. */
export interface Measurement extends CellResult {
  readonly system: string
  readonly op: OperationName
  readonly callers: number
  /** Log writes (fsyncs) of all servers during the cell; undefined where the system does not tell. */
  readonly logWrites: number | undefined
}

export interface Row {
  readonly system: string
  readonly op: OperationName
  readonly callers: number
  readonly opsPerSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  readonly longestStallMs: number
}

export interface Ratio {
  readonly peer: string
  readonly op: OperationName
  readonly callers: number
  readonly ratio: number
}

export interface Report {
  readonly rows: readonly Row[]
  readonly ratios: readonly Ratio[]
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

function round(value: number, digits: number): number {
  return Number(value.toFixed(digits))
}

/** The measurements of one row of the table, over all rounds. */
function grouped(measurements: readonly Measurement[]): Measurement[][] {
  const rows = new Map<string, Measurement[]>()
  for (const measurement of measurements) {
    const key = `${measurement.system} ${measurement.op} ${measurement.callers}`
    const row = rows.get(key)
    if (row === undefined) rows.set(key, [measurement])
    else row.push(measurement)
  }
  return [...rows.values()]
}

/** Medians over the rounds; the ratios are quorate's client process over each peer's. */
export function makeReport(measurements: readonly Measurement[]): Report {
  const rows = grouped(measurements).map((cells): Row => {
    const { system, op, callers } = cells[0]!
    return {
      ...{ system, op, callers },
      opsPerSecond: Math.round(median(cells.map(({ opsPerSecond }) => opsPerSecond))),
      p50Ms: round(median(cells.map(({ p50Ms }) => p50Ms)), 3),
      p99Ms: round(median(cells.map(({ p99Ms }) => p99Ms)), 3),
      longestStallMs: round(median(cells.map(({ longestStallMs }) => longestStallMs)), 1),
    }
  })
  const ratios: Ratio[] = []
  for (const { system: peer, op, callers, opsPerSecond } of rows) {
    if (peer.startsWith('quorate')) continue
    const own = rows.find((row) => row.system === 'quorate' && row.op === op && row.callers === callers)
    if (own !== undefined) ratios.push({ peer, op, callers, ratio: round(own.opsPerSecond / opsPerSecond, 2) })
  }
  return { rows, ratios }
}

/** The table for people. `seconds` is the measured time of a cell. */
export function formatTable(measurements: readonly Measurement[], report: Report, seconds: number): string {
  const header = ['system', 'op', 'callers', 'ops/s', '(least … most)', 'p50 ms', 'p99 ms', 'longest stall ms', 'fsyncs/s', 'ops/fsync']
  const cellsOfRows = grouped(measurements)
  const body = report.rows.map((row, position) => {
    const cells = cellsOfRows[position]!
    const rates = cells.map(({ opsPerSecond }) => Math.round(opsPerSecond))
    const logWrites = cells[0]!.logWrites === undefined ? undefined : median(cells.map((cell) => cell.logWrites ?? 0))
    // A put is written by three nodes: so many operations share one fsync of one node.
    const perWrite = logWrites === undefined || row.op === 'get' || logWrites === 0 ? undefined : (3 * row.opsPerSecond * seconds) / logWrites
    return [
      ...[row.system, row.op, String(row.callers), String(row.opsPerSecond)],
      rates.length > 1 ? `(${Math.min(...rates)} … ${Math.max(...rates)})` : '',
      ...[row.p50Ms.toFixed(2), row.p99Ms.toFixed(2), row.longestStallMs.toFixed(1)],
      ...[logWrites === undefined ? '' : (logWrites / seconds).toFixed(0), perWrite?.toFixed(1) ?? ''],
    ]
  })
  const lines = alignColumns([header, ...body])
  for (const name of new Set(report.ratios.map(({ peer }) => peer))) {
    lines.push('', `quorate (client process) / ${name}:`)
    for (const { peer, op, callers, ratio } of report.ratios)
      if (peer === name) lines.push(`  ${op} at ${callers} callers: ${ratio.toFixed(2)} times`)
  }
  return lines.join('\n')
}

function alignColumns(table: readonly (readonly string[])[]): string[] {
  const widths = table[0]!.map((_, column) => Math.max(...table.map((row) => row[column]!.length)))
  return table.map((row) => row.map((text, column) => (column < 2 ? text.padEnd(widths[column]!) : text.padStart(widths[column]!))).join('  '))
}
