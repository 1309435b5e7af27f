"""Groups of the real control group tree, version 2, that look to parsupd as if systemd had delegated them."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_daemon import PARSUPD
from machine_process import cgroup_mount, remove_cgroup
from support import wait_until

PREFIX = "parsupd-test-"
_numbers = itertools.count(1)


@contextmanager
def control_group(*, delegated: bool = True) -> Iterator[Path]:
    """A group for the time of a test, which must be empty at its end. Skips, with the reason, where none can be made."""
    mount = cgroup_mount()
    if mount is None or not os.access(mount, os.W_OK):
        pytest.skip("no control group tree of version 2 is mounted here for writing, which needs root")
    for stale in mount.glob(f"{PREFIX}*"):
        if not Path(f"/proc/{stale.name.removeprefix(PREFIX).partition('-')[0]}").exists():
            remove_cgroup(stale)
    group = mount / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    group.mkdir()
    try:
        if delegated:
            os.setxattr(group, "user.delegate", b"1")
        yield group
        wait_until(lambda: not any(members(folder) for folder in folders(group)), what=f"{group} is empty")
    finally:
        for folder in folders(group):
            (folder / "cgroup.kill").write_text("1")
        wait_until(lambda: remove_cgroup(group) or not group.exists(), what=f"the removal of {group}")


def folders(group: Path) -> list[Path]:
    return [group, *(entry for entry in group.rglob("*") if entry.is_dir())]


def members(group: Path) -> list[int]:
    """Pids of those in a group itself; of none when it has gone."""
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def parsupd_in(group: Path) -> list[str]:
    """The command of a parsupd that is started in a group."""
    return ["/bin/sh", "-c", f'echo 0 >{group}/cgroup.procs && exec "$@"', "sh", *PARSUPD]
