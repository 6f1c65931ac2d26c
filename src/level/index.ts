/** `quorate/level`: a store as an abstract-level database. Guarantees: docs/level.md. */
export { LevelError } from './errors.js'
export type * from './options.js'
export { QuorateLevel } from './quorate-level.js'
