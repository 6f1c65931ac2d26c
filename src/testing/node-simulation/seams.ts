/**
 * Seams: where the oracle looks into a running node, and where a known bug is put in: public methods of the product's classes, replaced for the time of a run. So the
 * product has no hook for tests, and what runs is what ships.
 *
 * Invariants: 1. after `remove` every class is as it was; 2. a replaced method calls the one before, once, unless a known bug says otherwise; 3. one run at a time in a process.
 */

// biome-ignore lint/suspicious/noExplicitAny: stands for a method of any class
type AnyMethod = (...parameters: any[]) => unknown

/** The names of a class's methods. */
type MethodName<Instance> = { [Name in keyof Instance]: Instance[Name] extends AnyMethod ? Name : never }[keyof Instance]
/** A method as a function with its `this`. */
type Method<Instance, Name extends keyof Instance> = Instance[Name] extends (...parameters: infer Parameters) => infer Result
  ? (this: Instance, ...parameters: Parameters) => Result
  : never

export class Seams {
  readonly #undo: (() => void)[] = []

  /**
   * Replaces a method.
   *
   * @example
   * seams.replace(LogStore, 'write', (write) => function (works) { return write.call(this, works) })
   */
  replace<Instance extends object, Name extends MethodName<Instance>>(
    target: { readonly prototype: Instance },
    name: Name,
    make: (original: Method<Instance, Name>) => Method<Instance, Name>,
  ): void {
    const descriptor = Object.getOwnPropertyDescriptor(target.prototype, name)
    if (descriptor === undefined) throw new Error(`there is no method ${String(name)}`)
    Object.defineProperty(target.prototype, name, { ...descriptor, value: make(descriptor.value as Method<Instance, Name>) })
    this.#undo.push(() => Object.defineProperty(target.prototype, name, descriptor))
  }

  /** Replaces what a getter gives. */
  replaceGetter<Instance extends object, Name extends keyof Instance>(
    target: { readonly prototype: Instance },
    name: Name,
    make: (instance: Instance, original: Instance[Name]) => Instance[Name],
  ): void {
    const descriptor = Object.getOwnPropertyDescriptor(target.prototype, name)
    const original = descriptor?.get
    if (descriptor === undefined || original === undefined) throw new Error(`there is no getter ${String(name)}`)
    const get = function (this: Instance): Instance[Name] {
      return make(this, original.call(this) as Instance[Name])
    }
    Object.defineProperty(target.prototype, name, { ...descriptor, get })
    this.#undo.push(() => Object.defineProperty(target.prototype, name, descriptor))
  }

  remove(): void {
    for (const undo of this.#undo.reverse()) undo()
    this.#undo.length = 0
  }
}
