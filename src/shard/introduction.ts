/** Introduction: what two nodes tell each other when one asks the other for the cluster map: who and where each is, and the map when it is later than the other's. */
import { Reader, Writer } from '../base/codec.js'
import type { Address } from '../transport/transport.js'

export interface Introduction {
  /** Empty for a client. */
  readonly nodeId: string
  readonly incarnation: number
  /** Where others reach it. */
  readonly address: Address
  readonly epoch: number
  /** Encoded; empty when the other side's is not older. */
  readonly map: Uint8Array
}

export function encodeIntroduction({ nodeId, incarnation, address, epoch, map }: Introduction): Uint8Array {
  return new Writer(map.length + 96).text(nodeId).u32(incarnation).text(address).varint(epoch).bytes(map).finish()
}

/** Throws CorruptionError `MALFORMED`. */
export function decodeIntroduction(bytes: Uint8Array): Introduction {
  const reader = new Reader(bytes)
  const introduction = { nodeId: reader.text(), incarnation: reader.u32(), address: reader.text(), epoch: reader.varint(), map: reader.bytes() }
  reader.end()
  return introduction
}
