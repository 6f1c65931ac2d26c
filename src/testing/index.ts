/** `quorate/testing`: simulated time and store, conformance suites for adapters, and the history checker. */
export { History, type Operation, type OperationResult, recordHistory } from './history.js'
export { assertLinearizable, type CheckOptions, type CheckResult, checkHistory } from './history-checker.js'
export { type KvFixture, type KvManifest, type KvSuiteOptions, kvSuite } from './kv-suite.js'
export { type ModelCut, type ModelFaults, ModelKV, type ModelKVOptions, reliableFaults, unreliableFaults } from './model-kv.js'
export { ModelStore, type ModelWrite } from './model-store.js'
export { SeededRandom } from './seeded-random.js'
export { type SettleOptions, SimulatedProcess, SimulatedRuntime } from './simulated-runtime.js'
export { type TransportFixture, type TransportManifest, type TransportSuiteOptions, transportSuite } from './transport-suite.js'
