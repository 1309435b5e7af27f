"""The machine of this folder's tests: booted once, and free of everything of parsupd's between two tests."""

import os
from collections.abc import Iterator

import pytest
from machine_process import Machine, boot, why_not
from support import wait_until


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A real systemd and journald. Skips, with the reason, where none can be booted; where CI runs, that is a failure."""
    if reason := why_not():
        (pytest.fail if "PARSUPD_NEEDS_MACHINE" in os.environ else pytest.skip)(reason)
    with boot() as booted:
        yield booted


@pytest.fixture(autouse=True)
def nothing_left_inside(machine: Machine) -> Iterator[None]:
    """A test ends what it started inside: afterwards there are the processes that were there before.

    Left out: systemd's own, which come and go as they are asked for.
    """
    before = machine.processes()
    yield

    def gone() -> bool:
        left.clear()
        for pid, line in machine.processes().items():
            if pid not in before and "systemd" not in line and "dbus-daemon" not in line and line != "(sd-pam)":
                left[pid] = line
        return not left

    left: dict[int, str] = {}
    try:
        wait_until(gone, within_s=5)
    except AssertionError:
        pytest.fail(f"left behind in the machine: {left}", pytrace=False)
