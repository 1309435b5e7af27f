"""What is done in a new process before its program: limits, priority, processors, user. Each failure is told by name.

It is done by a function that Python runs between fork and exec, the one place in which it holds for the first
instruction of the program. Rejected: prlimit and the like from outside, which comes after the exec; and wrappers such
as setpriv, which report failures as exit statuses of the program. The process that forks may have threads (journald's),
so what runs here takes no lock and imports nothing: it calls the kernel through functions that were bound before.
Programs without such keys are started by vfork, which is quicker.
"""

import contextlib
import os
import resource
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Self

from parsupd.core.attributes import LIMITS, Limit
from parsupd.core.units import UnitSpec
from parsupd.shell.accounts import Identity
from workerlib.launchers.local import Launched, LocalLauncher, Watch

_FAILURE = struct.Struct("!ii")  # index of the step, errno
_UNKNOWN = 0
_LAST = ("limit_data", "limit_stack", "limit_as")
"""Set after the others: Python itself may need a page in between."""


class Step(NamedTuple):
    """One thing that is done in the new process; `what` names it with its value, as a unit's file has it."""

    what: str
    do: Callable[[], object]


def steps_for(spec: UnitSpec, identity: Identity | None) -> list[Step]:
    """What the description asks for, in the order in which it can be done: last what only root may, then the user."""
    steps: list[Step] = []
    if (score := spec.oom_score_adj) is not None:
        steps.append(Step(f"oom_score_adj = {score}", _OomScore(score)))
    if (nice := spec.nice) is not None:
        steps.append(Step(f"nice = {nice}", lambda: os.setpriority(os.PRIO_PROCESS, 0, nice)))
    if cpus := spec.cpu_affinity:
        steps.append(Step(f"cpu_affinity = {list(cpus)}", lambda: os.sched_setaffinity(0, cpus)))
    limits = spec.limits
    steps += [limit_step(key, limits[key]) for key in sorted(limits, key=_LAST.__contains__)]
    if identity is not None:
        steps += _steps_to(identity, spec)
        if path := spec.working_directory:  # as that user: who may not enter a directory shall not be put into it
            steps.append(Step(f"working_directory = {path!r}", lambda: os.chdir(path)))
    return steps


def limit_step(key: str, limit: Limit) -> Step:
    # Not setrlimit, which turns a refusal into a ValueError without a number.
    return Step(f"{key} = {limit}", lambda: resource.prlimit(0, LIMITS[key], limit))


class _OomScore:
    def __init__(self, score: int) -> None:
        self._score = str(score).encode()

    def __call__(self) -> None:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, self._score)
        os.close(fd)


def _steps_to(identity: Identity, spec: UnitSpec) -> Iterator[Step]:
    uid, gid, groups, _ = identity
    yield Step(f"groups {sorted(groups)}", lambda: os.setgroups(groups))
    yield Step(f"group = {spec.group or gid}", lambda: os.setresgid(gid, gid, gid))
    if spec.user:
        yield Step(f"user = {spec.user!r}", lambda: os.setresuid(uid, uid, uid))


class Preparation:
    """The steps of one start: a context manager around the fork, which knows afterwards what failed."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._reading = self._writing = -1

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reading)
        os.close(self._writing)

    def run(self) -> None:
        """In the new process: does the steps. What it raises ends that process before its program."""
        index = 0
        try:
            for index, (_, do) in enumerate(self._steps):  # noqa: B007 - told when it fails
                do()
        except OSError as error:
            os.write(self._writing, _FAILURE.pack(index, error.errno or _UNKNOWN))
            raise
        except BaseException:
            os.write(self._writing, _FAILURE.pack(index, _UNKNOWN))
            raise

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """In the one that forks: turns the failure of a step into an OSError with its name and value."""
        try:
            yield
        except subprocess.SubprocessError:
            index, number = _FAILURE.unpack(os.read(self._reading, _FAILURE.size))
            raise OSError(number, f"{self._steps[index].what}: {os.strerror(number)}") from None


class PreparedLauncher:
    """Starts a worker's process in which these steps are done first, and which comes to be `inside` something."""

    def __init__(self, watch: Watch, steps: Sequence[Step], inside: Callable[[], AbstractContextManager[None]]) -> None:
        self._watch = watch
        self._steps = steps
        self._inside = inside

    async def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        on_stderr: Callable[[str], object],
        on_stdout: Callable[[str], object] | None = None,
        pass_fds: Sequence[int],
        cwd: str | None,
    ) -> Launched:
        """As LocalLauncher's, which does not wait: nothing else happens `inside`."""
        with self._inside(), Preparation(self._steps) as preparation, preparation.named():
            launcher = LocalLauncher(self._watch, preparation.run if self._steps else None)
            return await launcher.launch(
                argv, env=env, stdin=stdin, on_stderr=on_stderr, on_stdout=on_stdout, pass_fds=pass_fds, cwd=cwd
            )
