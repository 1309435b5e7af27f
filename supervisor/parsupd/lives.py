"""Follows the processes of the generations that run: which is the main one, how it ended, and when nothing is left.

The daemon of a forking unit is found here, and a main process is replaced by another one. No decisions.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from parsupd.core import events as told
from parsupd.core.notification import parse_pid
from parsupd.core.snapshot import ProcessRecord
from parsupd.core.units import ExitCause, InstanceName, UnitSpec
from parsupd.shell import inotify
from parsupd.shell.children import Child, Children
from parsupd.shell.kept_processes import KeptProcesses
from parsupd.shell.stack_files import StackFiles
from workerlib.core.daemonizing import ExitCause as Exit
from workerlib.core.daemonizing import Exited as ExitedWith
from workerlib.shell import process

MAX_PID_FILE = 64
STEP_S = 0.02

Key = tuple[InstanceName, int]


class Lives:
    """The main processes of all generations that run."""

    def __init__(
        self,
        children: Children,
        kept: KeptProcesses,
        records: dict[InstanceName, ProcessRecord],
        stacks: StackFiles,
        feed: Callable[[told.FleetEvent], None],
        log: Any,
    ) -> None:
        """`records` is kept up to date, for whoever takes the processes over."""
        self.on_exit: Callable[[InstanceName], None] = lambda _instance: None
        """Called before an exit is reported: what was said before it comes first."""
        self.explain: Callable[[InstanceName, Child, ExitCause], ExitCause] = lambda _instance, _main, cause: cause
        """Adds to how a main process ended what else is known of that."""
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._children = children
        self._kept = kept
        self._records = records
        self._stacks = stacks
        self._feed = feed
        self._log = log
        self._mains: dict[Key, Child] = {}
        self._watches: dict[Key, int] = {}

    def main(self, instance: InstanceName, generation: int) -> Child | None:
        """Its main process, or the one that was it while others are left."""
        return self._mains.get((instance, generation))

    def follow(
        self,
        instance: InstanceName,
        generation: int,
        child: Child,
        *,
        launcher: bool = False,
        launched: ExitCause | None = None,
    ) -> None:
        """Reports the exit of a main process and the end of all others, each once.

        `launcher`: it is to leave a daemon behind, which is looked for then. `launched`: how it ended, when that is
        known already.
        """
        self._mains[instance, generation] = child
        child.daemonizes = launcher
        self._records.setdefault(instance, ProcessRecord(child.pid, child.started, child.group))
        self._follow_main(instance, generation, child, launcher=launcher, launched=launched)

        def empty(_future: "asyncio.Future[None]") -> None:
            self._mains.pop((instance, generation), None)
            self._unwatch((instance, generation))
            self._records.pop(instance, None)
            oom_killed = child.cgroup is not None and child.cgroup.counts().oom_kills > 0
            self._feed(told.GroupEmpty(instance, generation, oom_killed))

        child.group_empty.add_done_callback(empty)

    def _follow_main(
        self,
        instance: InstanceName,
        generation: int,
        child: Child,
        *,
        launcher: bool = False,
        launched: ExitCause | None = None,
    ) -> None:
        its_exit, pid, started = child.exited, child.pid, child.started
        if not its_exit.done():
            self._kept.keep(pid, started)

        def exited(future: "asyncio.Future[Exit | None]") -> None:
            if child.exited is its_exit:
                self.on_exit(instance)
            if child.exited is not its_exit:
                return  # another process is the main one; perhaps those were its last words
            cause = launched or cause_of(future.result())
            if launcher:
                self._feed(told.Launched(instance, generation, cause))
            else:
                cause = self.explain(instance, child, cause)
                self._feed(told.Exited(instance, generation, cause, self._stacks.take(instance, generation)))
            self._ended(pid, started)

        its_exit.add_done_callback(exited)

    def _ended(self, pid: int, started: int) -> None:
        if not self.closed:  # else the next one shall see it
            self._kept.drop(pid, started)

    def change_main(self, instance: InstanceName, generation: int, pid: int) -> bool:
        """Makes another process of the unit its main one; False when it is none of the unit's."""
        child = self._mains.get((instance, generation))
        if child is None:
            return False
        old = child.pid, child.started
        if not self._children.succeed(child, pid):
            return False
        self._kept.drop(*old)
        self._records[instance] = ProcessRecord(child.pid, child.started, child.group)
        self._follow_main(instance, generation, child)
        return True

    # The daemon that a program has left behind

    def find_main(self, instance: InstanceName, generation: int, spec: UnitSpec) -> None:
        """Reports MainChanged as soon as it is known; GroupEmpty comes instead when nobody is left."""
        key = (instance, generation)
        child = self._mains.get(key)
        if child is None or child.group_empty.done():
            return
        if not spec.pid_file:
            self._guess(key, child)
        elif not self._read_pid_file(key, spec.pid_file) and key not in self._watches:
            self._watch(key, spec.pid_file)

    def _guess(self, key: Key, child: Child) -> None:
        roots = self._children.roots(child)
        if len(roots) > 1:
            self._log.warning(
                "main_pid_guessed",
                unit=str(key[0]),
                pids=roots,
                reason="several processes are left; pid_file would tell",
            )
        for pid in sorted(roots, key=_age):
            if self.change_main(*key, pid):
                self._feed(told.MainChanged(*key, pid))
                return
        # A step of a double fork that has gone by now: who follows it is about to come to us.
        self._loop.call_later(STEP_S, self._guess_again, key, child)

    def _guess_again(self, key: Key, child: Child) -> None:
        if self._mains.get(key) is child and not child.group_empty.done() and not self.closed:
            self._guess(key, child)

    def _read_pid_file(self, key: Key, path: str) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            pid = parse_pid(os.read(fd, MAX_PID_FILE).decode(errors="replace"))
        except OSError:
            return False
        finally:
            os.close(fd)
        if pid is None or not self.change_main(*key, pid):  # stale, or not written to its end
            return False
        self._unwatch(key)
        self._feed(told.MainChanged(*key, pid))
        return True

    def _watch(self, key: Key, path: str) -> None:
        try:
            self._watches[key] = fd = inotify.watch(os.path.dirname(path))  # noqa: PTH120 - no file is touched
        except OSError as error:
            self._log.warning("pid_file_not_watched", unit=str(key[0]), path=path, reason=str(error))
            return

        def changed() -> None:
            inotify.drain(fd)
            self._read_pid_file(key, path)

        self._loop.add_reader(fd, changed)
        self._read_pid_file(key, path)  # it may have come before it was watched

    def _unwatch(self, key: Key) -> None:
        fd = self._watches.pop(key, None)
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)

    def close(self) -> None:
        """Watches nothing any more: what ends from now on is for the next one to see."""
        self.closed = True
        for key in list(self._watches):
            self._unwatch(key)


def _age(pid: int) -> int:
    try:
        return process.start_time(pid)
    except ProcessLookupError:
        return 0


def cause_of(exit_cause: Exit | None) -> ExitCause:
    """The supervisor's word for how a process ended."""
    if exit_cause is None:
        return ExitCause.unknown("while no parsupd was there to see it")
    if isinstance(exit_cause, ExitedWith):
        return ExitCause.exited(exit_cause.code)
    return ExitCause.signaled(exit_cause.signal, core_dumped=exit_cause.core_dumped)
