"""The generic entry of worker processes: `python -m workerlib MODULE:CLASS`, started by `Worker.spawn` and parsupd."""

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workerlib.hosting import WorkerEnv


def main() -> int:
    gc.disable()  # looking for garbage among what is being imported takes a tenth of a worker's start
    from workerlib.core.config import MARKER  # noqa: PLC0415 - after that
    from workerlib.hosting import load_worker, run_worker  # noqa: PLC0415 - same
    from workerlib.role import is_spawned  # noqa: PLC0415 - same

    if not is_spawned():
        sys.stderr.write(
            f"python -m workerlib is the entry of spawned workers (${MARKER} is not set): use Worker.spawn,"
            ' or a unit of parsupd with type = "worker"\n'
        )
        return 2

    def load(env: "WorkerEnv") -> type:
        gc.freeze()  # what is there now stays for ever: no collection need look at it again
        gc.enable()
        return load_worker(env.config.worker)

    return run_worker(load)


if __name__ == "__main__":
    sys.exit(main())
