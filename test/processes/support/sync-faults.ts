/**
 * SyncFaults: makes fsync and fdatasync of a real process fail or hang, by a library that is loaded before the system's own (LD_PRELOAD). It is compiled on the spot, so it
 * exists only where there is a C compiler (and glibc or musl).
 *
 * The mode is the first byte of a file that the library reads at each call: `p` passes the call on, `f` fails it with EIO, `h` holds it until the mode changes.
 */
import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

const source = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static char mode(void) {
  const char *path = getenv("QUORATE_SYNC_FAULT");
  char found = 'p';
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file >= 0) {
    if (read(file, &found, 1) != 1) found = 'p';
    close(file);
  }
  return found;
}

static int sync_or_not(int file, const char *name) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  while (mode() == 'h') usleep(1000);
  if (mode() == 'f') {
    errno = EIO;
    return -1;
  }
  return real(file);
}

int fsync(int file) { return sync_or_not(file, "fsync"); }
int fdatasync(int file) { return sync_or_not(file, "fdatasync"); }
`

export type SyncMode = 'pass' | 'fail' | 'hang'

export class SyncFaults {
  /** What a node process needs in its environment. */
  readonly environment: Readonly<Record<string, string>>
  readonly #control: string

  private constructor(library: string, control: string) {
    this.#control = control
    this.environment = { LD_PRELOAD: library, QUORATE_SYNC_FAULT: control }
  }

  /** Compiles the library into a folder; null where there is no compiler. */
  static async compile(folder: string): Promise<string | null> {
    const file = join(folder, 'sync-faults.c')
    const library = join(folder, 'sync-faults.so')
    await writeFile(file, source)
    try {
      await promisify(execFile)('cc', ['-shared', '-fPIC', '-O1', '-o', library, file, '-ldl'])
      return library
    } catch {
      return null
    }
  }

  /** Faults of one process. */
  static of(library: string, control: string): SyncFaults {
    const faults = new SyncFaults(library, control)
    faults.set('pass')
    return faults
  }

  /** From the next call on; calls that hang go on as soon as the mode is another. */
  set(mode: SyncMode): void {
    writeFileSync(this.#control, mode)
  }
}
