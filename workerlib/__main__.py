"""The generic entry of worker processes: `python -m workerlib MODULE:CLASS`, started by `Worker.spawn` and parsupd."""

import sys

from workerlib.core.config import MARKER


def main() -> int:
    from workerlib.hosting import load_worker, run_worker  # noqa: PLC0415 - the check below comes first
    from workerlib.role import is_spawned  # noqa: PLC0415 - same

    if not is_spawned():
        sys.stderr.write(
            f"python -m workerlib is the entry of spawned workers (${MARKER} is not set): use Worker.spawn,"
            ' or a unit of parsupd with type = "worker"\n'
        )
        return 2
    return run_worker(lambda env: load_worker(env.config.worker))


if __name__ == "__main__":
    sys.exit(main())
