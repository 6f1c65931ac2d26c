/** Declares lab 4's tests: a scenario on a cluster of its own, in simulated time; a failure names its seed, and `SEED=…` repeats it. */
import { ClusterLab, type ClusterLabOptions } from './cluster-lab.js'

export interface ScenarioOptions {
  readonly servers: number
  readonly unreliable?: boolean
  /** Bytes; default: a log is never cut. */
  readonly maxRaftState?: number
}

/** One seed as a rule: the campaigns of the simulator are where many are run. */
const seed = Number(process.env['SEED'] ?? 1)

export function scenario(title: string, options: ScenarioOptions, run: (lab: ClusterLab) => Promise<void>): void {
  const { servers, unreliable = false, maxRaftState = null } = options
  it(`${title} (${servers} servers, ${unreliable ? 'unreliable' : 'reliable'})`, async () => {
    const labOptions: ClusterLabOptions = { seed, servers, unreliable, maxRaftState }
    const lab = new ClusterLab(labOptions)
    try {
      await lab.run(run)
    } catch (cause) {
      throw new Error(`seed ${seed}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
    } finally {
      lab.close()
    }
  })
}
