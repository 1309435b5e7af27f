"""The door to control groups, version 2: the tree that is delegated to parsupd, with a group for each run.

Only what systemd, or whoever sets up its surroundings, has marked as delegated is ever touched: by the extended
attribute `user.delegate` of the group that parsupd is in (systemd's CGROUP_DELEGATION, from 251 on). That the group can
be written is not enough: root can write all of them, also that of a session in which somebody tries parsupd by hand.

A group that shares out memory or tasks to those below it takes no process itself. So parsupd goes into one below it,
and shares nothing out before a unit needs it. systemd starts the next parsupd in the upper one again, and would fail:
so when one goes and its units stay, that is undone (`release`), and memory_max and tasks_max do not hold until the next
one has adopted the units.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from parsupd.core import cgroups
from parsupd.core.attributes import CONTROLLERS
from parsupd.core.cgroups import Counts, GroupName

DELEGATED = "user.delegate"
OWNER = "user.parsupd.token"
"""Whose tree it is: two parsupds can be started in one group, and would take each other's runs for leftovers."""


class NotDelegatedError(Exception):
    """There is no tree for parsupd; the message says why."""


class Group:
    """One group of the tree, which may have gone: then nobody is in it."""

    def __init__(self, name: GroupName, path: Path) -> None:
        self.name = name
        self._path = path
        self._last = Counts()

    def enter(self) -> None:
        """Moves this process into it. Raises OSError."""
        _write(self._path / "cgroup.procs", "0")

    def exists(self) -> bool:
        return self._path.is_dir()

    def pids(self) -> frozenset[int]:
        """All that are in it, or in a group that they have made below it; without zombies."""
        found = (int(pid) for folder in self._folders() for pid in _read(folder / "cgroup.procs").split())
        return frozenset(found) - {0}  # those that another process namespace hides

    def kill(self) -> None:
        """Kills all of them at once, so that none can fork away. Kernels before 5.14 cannot; nothing happens then."""
        with contextlib.suppress(OSError):
            _write(self._path / "cgroup.kill", "1")

    def limit(self, contents: Mapping[str, str]) -> None:
        """Sets its limits. Raises OSError. Less memory than is taken is waited for, until some of it was killed."""
        for file, text in contents.items():
            _write(self._path / file, text)

    def counts(self) -> Counts:
        """What the kernel has done to those in it; of a group that was removed, what was so then."""
        found = cgroups.counts(_read(self._path / "memory.events"), _read(self._path / "pids.events"))
        self._last = Counts(*map(max, found, self._last))
        return self._last

    def remove(self) -> bool:
        """Removes it when nobody is in it; whether it has gone."""
        self.counts()
        for folder in reversed(list(self._folders())):
            with contextlib.suppress(FileNotFoundError):
                try:
                    folder.rmdir()
                except OSError:
                    return False
        return True

    def _folders(self) -> Iterator[Path]:
        for folder, _, _ in os.walk(self._path):
            yield Path(folder)


class Tree:
    """A group that is delegated to the parsupd with a token, and all below it."""

    def __init__(self, path: Path) -> None:
        """Nothing is changed."""
        self.path = path
        self.enabled: frozenset[str] = _words(path / "cgroup.subtree_control") & frozenset(CONTROLLERS.values())
        """The controllers of the groups of runs."""
        self._leaf = path / cgroups.LEAF
        self._leaving: dict[str, Group] = {}

    def settle(self, token: str) -> None:
        """Moves this process into its own group, so that those of the others can have controllers. Raises OSError."""
        self._leaf.mkdir(exist_ok=True)
        os.setxattr(self._leaf, OWNER, token.encode())
        _write(self._leaf / "cgroup.procs", "0")

    @contextlib.contextmanager
    def starting(self, name: GroupName, contents: Mapping[str, str]) -> Iterator[None]:
        """What this process starts meanwhile is in a new group from its first instruction on. Raises OSError.

        This process goes there and back. The kernel makes who moves a process wait, up to 15 ms where it is done rarely
        and for next to nothing where it is done often. Rejected: the new process goes by itself, before its program; it
        cannot be made by a vfork then, and each start took 20 ms more in a parsupd of 300 units. Or clone3, which knows
        groups, but not Python's vfork. The limits come last, lest they hold for this process, which is larger than what
        it starts, and would be killed for that. When the start fails, what it has left is killed.
        """
        group = self.make(name)
        try:
            try:
                group.enter()
                yield
            finally:
                _write(self._leaf / "cgroup.procs", "0")
            group.limit(contents)
        except BaseException:
            self.abandon(name)
            raise

    def abandon(self, name: GroupName) -> None:
        """Kills all that are in a group, whose start has failed, and removes it."""
        group = self.group(name)
        group.kill()
        self.drop(group)

    def make(self, name: GroupName) -> Group:
        """Makes a group. Raises OSError."""
        for group in list(self._leaving.values()):
            self.drop(group)
        self._leaving.pop(str(name), None)
        (self.path / str(name)).mkdir(exist_ok=True)
        return self.group(name)

    def group(self, name: GroupName) -> Group:
        """The group of that name, whether there is one or not."""
        return Group(name, self.path / str(name))

    def find(self, name: GroupName) -> Group | None:
        """The group of that name, if there is one."""
        found = self.group(name)
        return found if found.exists() else None

    def groups(self) -> list[Group]:
        """All groups of runs that there are."""
        names = [(entry, cgroups.parse_name(entry.name)) for entry in _entries(self.path)]
        return [Group(name, path) for path, name in names if name is not None]

    def drop(self, group: Group) -> None:
        """Removes a group, at once or when the next one is made: those that were killed may still be on their way."""
        self._leaving.pop(str(group.name), None)
        if not group.remove():
            self._leaving[str(group.name)] = group

    def enable(self, controllers: Iterable[str]) -> frozenset[str]:
        """Gives the groups of runs these controllers, as far as there are such; returns those that they have then.

        It fails while processes are in the upper group: those of a parsupd that knew no groups, until they have ended.
        """
        missing = frozenset(controllers) - self.enabled
        for controller in missing & _words(self.path / "cgroup.controllers") if missing else ():
            with contextlib.suppress(OSError):
                _write(self.path / "cgroup.subtree_control", f"+{controller}")
                self.enabled |= {controller}
        return self.enabled

    async def end(self, within_s: float) -> None:
        """Kills all that are left in groups of runs, and removes these."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + within_s
        while groups := self.groups():
            for group in groups:
                group.kill()
                self.drop(group)
            if loop.time() >= give_up_at:
                return
            await asyncio.sleep(0.01)

    def release(self) -> None:
        """Takes the controllers away again, so that systemd can put the next parsupd into the upper group."""
        for controller in self.enabled:
            with contextlib.suppress(OSError):
                _write(self.path / "cgroup.subtree_control", f"-{controller}")
        self.enabled = frozenset()


def delegated(token: str) -> Tree:
    """The tree of the parsupd with that token. Raises NotDelegatedError, and changes nothing."""
    try:
        path = cgroups.own_path(_text("/proc/self/cgroup"), _text("/proc/self/mountinfo"))
    except OSError as error:
        raise NotDelegatedError(str(error)) from None
    if not path:
        raise NotDelegatedError("no control group of version 2 can be seen")
    return tree_at(Path(cgroups.tree_of(path)), token)


def tree_at(path: Path, token: str) -> Tree:
    """The tree at that path. Raises NotDelegatedError unless it is delegated, and free for that parsupd."""
    try:
        if os.getxattr(path, DELEGATED) != b"1":
            raise NotDelegatedError(f"{str(path)!r} is marked as not delegated")
    except OSError as error:
        raise NotDelegatedError(f"{str(path)!r} is not marked as delegated: {error.strerror}") from None
    if not (os.access(path, os.W_OK) and os.access(path / "cgroup.procs", os.W_OK)):
        raise NotDelegatedError(f"{str(path)!r} cannot be written")
    leaf = path / cgroups.LEAF
    try:
        owner = os.getxattr(leaf, OWNER).decode(errors="replace")
    except OSError:
        owner = token
    if owner != token and "populated 1" in _read(leaf / "cgroup.events"):
        raise NotDelegatedError(f"{str(path)!r} is used by another parsupd, {owner!r}")
    return Tree(path)


def _entries(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _words(path: Path) -> frozenset[str]:
    return frozenset(_read(path).split())


def _read(path: Path) -> str:
    """The text of a file of a group; empty when there is none, which may mean that the group has gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _text(path: str) -> str:
    return Path(path).read_text(errors="surrogateescape")


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
