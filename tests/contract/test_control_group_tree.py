"""The same cases for the door to control groups on the kernel's tree and on one of plain files.

The plain files have the controllers that the machine of the tests may not have in version 2.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from control_groups import control_group
from support import alive, wait_until

from parsupd.core.cgroups import LEAF, GroupName
from parsupd.core.units import InstanceName
from parsupd.shell.cgroup import DELEGATED, OWNER, Group, NotDelegatedError, Tree, tree_at

WEB = GroupName(InstanceName("web", 1), 7)
TOKEN = "parsupd:/run/test"


class Real:
    """The kernel's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self, tree: Tree, name: GroupName) -> Group:
        return tree.make(name)

    def enter(self, group: Group, pid: int) -> None:
        """Puts a process into a group."""
        (self.path / str(group.name) / "cgroup.procs").write_text(str(pid))

    def obey(self, group: Group) -> None:
        """Does what was written to cgroup.kill."""

    def clear(self, group: Group) -> None:
        """Lets a group be removed in which nobody is left."""


class Fake:
    """Plain files, and what the kernel would do about them."""

    FILES = ("cgroup.procs", "cgroup.kill", "cgroup.subtree_control", "memory.max", "pids.max")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fill(path)
        (path / "cgroup.controllers").write_text("cpu memory pids")

    def _fill(self, path: Path) -> None:
        for file in self.FILES:
            (path / file).touch()

    def make(self, tree: Tree, name: GroupName) -> Group:
        group = tree.make(name)
        self._fill(self.path / str(name))
        return group

    def enter(self, group: Group, pid: int) -> None:
        with (self.path / str(group.name) / "cgroup.procs").open("a") as procs:
            procs.write(f"{pid}\n")

    def obey(self, group: Group) -> None:
        folder = self.path / str(group.name)
        if (folder / "cgroup.kill").read_text() == "1":
            for pid in (folder / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)

    def clear(self, group: Group) -> None:
        shutil.rmtree(self.path / str(group.name))
        (self.path / str(group.name)).mkdir()


World = Real | Fake


@pytest.fixture(params=["real", "fake"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "real":
        with control_group() as path:
            yield Real(path)
    else:
        try:
            os.setxattr(tmp_path, DELEGATED, b"1")
        except OSError as error:
            pytest.skip(f"files in {tmp_path} cannot have extended attributes: {error.strerror}")
        yield Fake(tmp_path)


@contextmanager
def sleeping() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_who_is_in_a_group_is_known_and_killed(world: World) -> None:
    """Until then the group cannot be removed; it is when the next one is made."""
    tree = tree_at(world.path, TOKEN)
    group = world.make(tree, WEB)
    assert [found.name for found in tree.groups()] == [WEB]
    with sleeping() as pid:
        world.enter(group, pid)
        assert group.pids() == {pid}
        tree.drop(group)
        assert group.exists()
        group.kill()
        world.obey(group)
        wait_until(lambda: not alive(pid))
    world.clear(group)
    other = world.make(tree, WEB._replace(generation=8))
    assert not group.exists()
    assert group.pids() == frozenset()
    world.clear(other)
    tree.drop(other)
    assert tree.groups() == []


def test_only_what_is_marked_is_taken(world: World) -> None:
    """Neither a group without the mark, nor one that has it with another value; nor what is not there."""
    os.setxattr(world.path, DELEGATED, b"0")
    with pytest.raises(NotDelegatedError, match="marked as not delegated"):
        tree_at(world.path, TOKEN)
    os.removexattr(world.path, DELEGATED)
    with pytest.raises(NotDelegatedError, match="not marked as delegated"):
        tree_at(world.path, TOKEN)
    with pytest.raises(NotDelegatedError, match="not marked as delegated"):
        tree_at(world.path / "missing", TOKEN)


def test_a_group_of_somebody_else_is_not_taken_while_he_lives(world: World) -> None:
    """Once nobody is in his group any more, it can be."""
    leaf = world.path / LEAF
    leaf.mkdir()
    os.setxattr(leaf, OWNER, b"parsupd:/run/other")
    assert tree_at(world.path, "parsupd:/run/other").groups() == []
    if isinstance(world, Fake):
        tree_at(world.path, TOKEN)
        (leaf / "cgroup.events").write_text("populated 1\nfrozen 0\n")
        with pytest.raises(NotDelegatedError, match="another parsupd, 'parsupd:/run/other'"):
            tree_at(world.path, TOKEN)
        return
    with sleeping() as pid:
        (leaf / "cgroup.procs").write_text(str(pid))
        with pytest.raises(NotDelegatedError, match="another parsupd, 'parsupd:/run/other'"):
            tree_at(world.path, TOKEN)
    tree_at(world.path, TOKEN)


def test_controllers_that_there_are_are_enabled_and_taken_back(world: World) -> None:
    """Each once, and only when somebody wants it; where there is none, nothing happens."""
    tree = tree_at(world.path, TOKEN)
    there = set((world.path / "cgroup.controllers").read_text().split()) & {"memory", "pids"}
    shared = world.path / "cgroup.subtree_control"
    assert tree.enable([]) == frozenset()
    assert shared.read_text() == ""
    assert tree.enable(["memory"]) == there & {"memory"}
    assert tree.enable(["memory", "pids"]) == there
    if isinstance(world, Fake):
        assert shared.read_text() == "+pids"
        shared.write_text("memory pids\n")  # what the kernel tells then
        assert tree_at(world.path, TOKEN).enabled == there
    tree.release()
    assert tree.enabled == frozenset()
    assert shared.read_text() in ({"-memory", "-pids"} if isinstance(world, Fake) else {""})


def test_limits(world: World) -> None:
    """A limit for which there is no file raises; what the kernel has counted is known when the group has gone."""
    tree = tree_at(world.path, TOKEN)
    group = world.make(tree, WEB)
    with pytest.raises((FileNotFoundError, PermissionError)):
        group.limit({"io.max": "1"})
    if isinstance(world, Fake):
        group.limit({"memory.max": "1048576", "pids.max": "max"})
        folder = world.path / str(WEB)
        assert (folder / "memory.max").read_text() == "1048576"
        (folder / "memory.events").write_text("max 3\noom_kill 2\n")
        (folder / "pids.events").write_text("max 5\n")
        assert group.counts() == (2, 5)
    before = group.counts()
    world.clear(group)
    tree.drop(group)
    assert not group.exists()
    assert group.counts() == before
