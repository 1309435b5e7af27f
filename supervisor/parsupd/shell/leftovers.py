"""Processes of units, whoever their parent is now: those that an earlier parsupd on the same runtime directory started.

Every process of a unit carries a token in its environment, so that it is found whatever it did to its session, process
group or parent. Where units have control groups, it is found in there even when it has another environment.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from parsupd.core.cgroups import GroupName
from parsupd.core.recovery import Found
from parsupd.core.units import InstanceName
from parsupd.shell.cgroup import Tree
from workerlib.shell import process
from workerlib.shell.pidfd import wait_pidfd

TOKEN = "PARSUP_TOKEN"  # noqa: S105 - the name of a variable; its value is no secret either

HOOK = "PARSUP_HOOK"
"""Names a unit's own command in its environment, so that it is not taken for the unit's main process."""


COMMAND = "command"
"""Stands for such a name where only the control group tells."""


def token_of(runtime_dir: Path) -> str:
    """What names one runtime directory, however its path is spelled."""
    return f"parsupd:{runtime_dir.resolve()}"


def _environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty when nobody may tell."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in block.decode(errors="surrogateescape").split("\0"))
    return {name: value for name, _, value in pairs}


class Tag(NamedTuple):
    """What the environment of a unit's process says of it."""

    token: str
    instance: InstanceName
    generation: int
    hook: str = ""  # of the unit's own commands: which one

    @property
    def group(self) -> GroupName:
        """The name of its control group."""
        return GroupName(self.instance, self.generation, bool(self.hook))


def tag_of(pid: int) -> Tag | None:
    """None for a process that belongs to no unit, or does not tell."""
    environment = _environment(pid)
    token, instance = environment.get(TOKEN), _instance(environment)
    if token is None or instance is None:
        return None
    return Tag(token, instance, _number(environment, "PARSUP_GENERATION"), environment.get(HOOK, ""))


def tagged(tag: Tag) -> frozenset[int]:
    """All processes with this tag, whoever is their parent now."""
    return frozenset(pid for pid in process.everybody() if tag_of(pid) == tag)


def carries(pid: int, token: str) -> bool:
    """Whether the process was started in a unit of the parsupd with that token."""
    return _environment(pid).get(TOKEN) == token


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 1:
        yield pid
        pid = process.parent(pid)


def find(token: str, tree: Tree | None = None) -> list[Found]:
    """All processes with that token or in a group of that tree, this one and its ancestors excepted."""
    mine = set(_ancestors())
    found = {pid: one for pid in process.everybody() if pid not in mine and (one := _look_at(pid, token)) is not None}
    for group in [] if tree is None else tree.groups():
        for pid in group.pids() - found.keys():
            with contextlib.suppress(ProcessLookupError):
                hook = COMMAND if group.name.is_command else ""
                whose = group.name.instance, group.name.generation, hook
                found[pid] = Found(pid, process.start_time(pid), os.getpgid(pid), *whose)
    return list(found.values())


def _look_at(pid: int, token: str) -> Found | None:
    try:
        started = process.start_time(pid)
        environment = _environment(pid)
        if environment.get(TOKEN) != token:
            return None
        found = Found(
            pid,
            started,
            os.getpgid(pid),
            _instance(environment),
            _number(environment, "PARSUP_GENERATION"),
            environment.get(HOOK, ""),
        )
        return found if process.start_time(pid) == started else None
    except ProcessLookupError:
        return None


def lives(found: Found) -> bool:
    """Whether it is still there, and no zombie."""
    try:
        return process.start_time(found.pid) == found.started and not process.is_zombie(found.pid)
    except ProcessLookupError:
        return False


def _instance(environment: Mapping[str, str]) -> InstanceName | None:
    try:
        return InstanceName.parse(f"{environment.get('PARSUP_UNIT', '')}@{environment.get('PARSUP_INSTANCE', '')}")
    except ValueError:
        return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


async def end(processes: Iterable[Found], *, within_s: float = 5.0) -> list[int]:
    """Ends them: SIGTERM, then SIGKILL after `within_s`. Returns the pids that were there."""
    pidfds: dict[int, int] = {}
    for one in processes:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(one.pid)
            if process.start_time(one.pid) == one.started:  # still the same process, now that it is held
                pidfds[one.pid] = pidfd
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


async def end_all(
    processes: Iterable[Found], more: Callable[[], Iterable[Found]], *, within_s: float = 5.0
) -> list[int]:
    """The same for processes that fork while they are being ended: `more` is asked for those that came to be.

    One that cannot be killed is waited for once. Returns the pids that were there.
    """
    pids: list[int] = []
    while left := [one for one in processes if one.pid not in pids]:
        pids += await end(left, within_s=within_s)
        processes = more()
    return pids
