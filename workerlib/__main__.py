"""The generic entry of worker processes: `python -m workerlib MODULE:CLASS`, started by `Worker.spawn` and parsupd."""

import gc
import sys


def main() -> int:
    collects = gc.isenabled()
    gc.disable()  # looking for garbage among what is being imported takes a tenth of a worker's start
    from workerlib.core.config import MARKER  # noqa: PLC0415 - after that
    from workerlib.detaching import detach_worker  # noqa: PLC0415 - same
    from workerlib.role import is_spawned  # noqa: PLC0415 - same

    if not is_spawned():
        sys.stderr.write(
            f"python -m workerlib is the entry of spawned workers (${MARKER} is not set): use Worker.spawn,"
            ' or a unit of parsupd with type = "worker"\n'
        )
        return 2
    detached = detach_worker()
    from workerlib.hosting import run_worker  # noqa: PLC0415 - in the daemon: see workerlib.detaching

    gc.freeze()  # what is there now stays for ever: no collection need look at it again
    if collects:
        gc.enable()
    return run_worker(detached)


if __name__ == "__main__":
    sys.exit(main())
