"""Runs the commands of a unit's own: exec_start_pre and the like. No decisions here.

A command is a unit's process as its main one is: same environment, output and directory, found by its tag. What it
leaves behind when it ends is killed: it is no way to start a daemon.
"""

import asyncio
from collections.abc import Callable, Mapping
from signal import SIGKILL

from parsupd.core import events as told
from parsupd.core.effects import RunHook
from parsupd.core.units import SIGNAL_NAMES, ExitCause, ExitKind, InstanceName, UnitSpec
from parsupd.lives import cause_of
from parsupd.shell.children import Child, Children
from parsupd.shell.leftovers import HOOK
from workerlib.core.daemonizing import ExitCause as Exit

Spawner = Callable[[RunHook, tuple[str, ...], Mapping[str, str]], Child]
"""Starts a program for a generation of an instance, with more variables in its environment."""


class Hooks:
    """The commands that run."""

    def __init__(self, children: Children, spawn: Spawner, feed: Callable[[told.FleetEvent], None]) -> None:
        self._children = children
        self._spawn = spawn
        self._feed = feed
        self._running: dict[tuple[InstanceName, int], Child] = {}

    def run(self, effect: RunHook, spec: UnitSpec, main_pid: int | None) -> None:
        """Starts a command. Raises what a spawn raises."""
        name = f"{effect.stage.value}:{effect.index}"
        environment = {HOOK: name, **_result(effect.cause)}
        if main_pid is not None:
            environment["MAINPID"] = str(main_pid)
        argv = spec.hooks(effect.stage)[effect.index].exec
        self.follow(effect.instance, effect.generation, self._spawn(effect, argv, environment))

    def follow(self, instance: InstanceName, generation: int, child: Child) -> None:
        """Reports its end when nothing of it is left."""
        self._running[instance, generation] = child

        def exited(_future: "asyncio.Future[Exit | None]") -> None:
            self._children.signal_all(child, SIGKILL)

        def empty(_future: "asyncio.Future[None]") -> None:
            self._running.pop((instance, generation), None)
            self._feed(told.HookEnded(instance, generation, cause_of(child.exited.result())))

        child.exited.add_done_callback(exited)
        child.group_empty.add_done_callback(empty)

    def signal(self, instance: InstanceName, generation: int, signum: int) -> None:
        """Nothing to do when it has ended."""
        if (child := self._running.get((instance, generation))) is not None:
            self._children.signal_all(child, signum, resume=True)


def _result(cause: ExitCause | None) -> dict[str, str]:
    """What a command that runs after the main process may want to know, in systemd's words: systemd.exec(5)."""
    if cause is None:
        return {}
    results = {
        ExitKind.EXITED: "exit-code" if cause.number else "success",
        ExitKind.SIGNALED: "signal",
        ExitKind.TIMED_OUT: "timeout",
        ExitKind.WATCHDOG: "watchdog",
        ExitKind.UNHEALTHY: "watchdog",
        ExitKind.SPAWN_FAILED: "exit-code",
        ExitKind.UNKNOWN: "exit-code",
    }
    found = {"SERVICE_RESULT": results[cause.kind]}
    if cause.kind is ExitKind.EXITED:
        found |= {"EXIT_CODE": "exited", "EXIT_STATUS": str(cause.number)}
    if cause.kind is ExitKind.SIGNALED:
        name = SIGNAL_NAMES.get(cause.number, str(cause.number)).removeprefix("SIG")
        found |= {"EXIT_CODE": "killed", "EXIT_STATUS": name}
    return found
