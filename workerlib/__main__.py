"""The generic entry of worker processes: `python -m workerlib MODULE:CLASS`, started by `Worker.spawn` and parsupd."""

import gc
import sys


def main() -> int:
    gc.disable()  # looking for garbage among what is being imported takes a tenth of a worker's start
    from workerlib.core.config import MARKER  # noqa: PLC0415 - after that
    from workerlib.detaching import worker_init_before_async  # noqa: PLC0415 - same
    from workerlib.role import is_spawned  # noqa: PLC0415 - same

    if not is_spawned():
        sys.stderr.write(
            f"python -m workerlib is the entry of spawned workers (${MARKER} is not set): use Worker.spawn,"
            ' or a unit of parsupd with type = "worker"\n'
        )
        return 2
    env = worker_init_before_async()
    from workerlib.hosting import run_worker  # noqa: PLC0415 - in the daemon: see workerlib.detaching

    gc.freeze()  # what is there now stays for ever: no collection need look at it again
    gc.enable()
    return run_worker(env)


if __name__ == "__main__":
    sys.exit(main())
