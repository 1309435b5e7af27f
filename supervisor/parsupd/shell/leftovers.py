"""Processes of units that an earlier parsupd on the same runtime directory left when it was killed.

Every process of a unit carries a token in its environment, so that it is found whatever it did to its session, process
group or parent.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from workerlib.shell.pidfd import wait_pidfd

TOKEN = "PARSUP_TOKEN"  # noqa: S105 - the name of a variable; its value is no secret either


def token_of(runtime_dir: Path) -> str:
    """What names one runtime directory, however its path is spelled."""
    return f"parsupd:{runtime_dir.resolve()}"


def carries(pid: int, token: str) -> bool:
    """Whether the process was started in a unit of the parsupd with that token."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{TOKEN}={token}".encode() in environ.split(b"\0")


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 1:
        yield pid
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        pid = int(stat.rpartition(")")[2].split()[1])


def find(token: str) -> list[int]:
    """Pids of all processes with that token, this one and its ancestors excepted."""
    mine = set(_ancestors())
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid not in mine and carries(pid, token)]


async def end(token: str, *, within_s: float = 5.0) -> list[int]:
    """Ends them: SIGTERM, then SIGKILL after `within_s`. Returns the pids that were there."""
    pidfds: dict[int, int] = {}
    for pid in find(token):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            if carries(pid, token):  # still the same process, now that it is held
                pidfds[pid] = pidfd
            else:
                os.close(pidfd)
    try:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for pidfd in pidfds.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signum)
            waiting = [asyncio.ensure_future(wait_pidfd(pidfd)) for pidfd in pidfds.values()]
            if waiting:
                _, late = await asyncio.wait(waiting, timeout=within_s)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)
    return list(pidfds)
