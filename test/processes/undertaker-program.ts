/** A harness that breaks off in the middle: opens a cluster with all that leaves traces, pauses a node, says what there is, and waits to be killed. */
import { ProcessCluster } from './support/process-cluster.js'

const cluster = await ProcessCluster.open({ size: 3, groups: 1, seed: 1, smallDisk: true })
cluster.nodes[0]!.pause()
process.send!({ pids: cluster.nodes.map(({ pid }) => pid), folder: cluster.folder, mount: cluster.smallDisk?.location ?? null })
