"""A parsupd whose control groups are plain files, with all controllers, below PARSUPD_TEST_TREE. Takes its arguments."""

import os
import shutil
from pathlib import Path

from parsupd import app
from parsupd.core.cgroups import GroupName
from parsupd.shell import cgroup


class Group(cgroup.Group):
    def remove(self) -> bool:
        self.counts()
        shutil.rmtree(self._path, ignore_errors=True)
        return True


class Tree(cgroup.Tree):
    def settle(self, token: str) -> None:
        # Whose tree it is cannot be noted: files of some file systems have no attributes.
        fill(self._leaf)

    def group(self, name: GroupName) -> Group:
        return Group(name, self.path / str(name))

    def make(self, name: GroupName) -> cgroup.Group:
        fill(self.path / str(name))
        return super().make(name)


def fill(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for file in ("cgroup.procs", "cgroup.kill", "memory.max", "pids.max"):
        (folder / file).touch()


def delegated(token: str) -> Tree:
    return Tree(Path(os.environ["PARSUPD_TEST_TREE"]))


cgroup.delegated = delegated
app.main()
