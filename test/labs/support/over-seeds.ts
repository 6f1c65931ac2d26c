/** Runs a lab scenario over several seeds: chance is part of every scenario, and one lucky draw proves little. */
import { RaftLab, type RaftLabOptions } from './raft-lab.js'

/** Declares a test under the lab's name that runs the scenario with each seed of `1…seeds`. */
export function scenario(title: string, options: Omit<RaftLabOptions, 'seed'> & { readonly seeds: number }, run: (lab: RaftLab) => void): void {
  it(`${title} (${options.servers} servers, ${options.unreliable ? 'unreliable' : 'reliable'}, ${options.seeds} seeds)`, () => {
    for (let seed = 1; seed <= options.seeds; seed++) {
      try {
        run(new RaftLab({ ...options, seed }))
      } catch (cause) {
        throw new Error(`seed ${seed}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
      }
    }
  })
}
