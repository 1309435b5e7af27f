"""Under a real systemd: control groups of runs in the service's delegated one, over restarts and crashes, to the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_process import Machine
from machine_service import SERVICE, Service, installed
from support import wait_until

from parsupd.core.cgroups import LEAF

# Leaves session, parent and environment behind, and ignores the stop signal.
UNITS = """
[unit.escaping]
type = "simple"
exec = ["/bin/sh", "-c", "(setsid env -i /bin/sh -c 'trap \\"\\" TERM; sleep 1000; :' &) ; exec sleep 1000"]
timeout_stop_sec = 0.5
memory_max = "1G"

[unit.tally]
type = "worker"
worker = "tally:Tally"
working_directory = "/srv/jobs"
user = "games"
"""
JOB = """
from workerlib import Worker, rpc

class Tally(Worker):
    @rpc
    async def add(self, n: int) -> int:
        return n
"""
GROUP = f"system.slice/{SERVICE}"


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    with installed(machine, UNITS, {"tally": JOB}) as running:
        yield running


def members(service: Service, name: str) -> set[int]:
    return set(service.machine.cgroup_processes(f"{GROUP}/{name}"))


def groups(service: Service) -> set[str]:
    root: Path = service.machine.cgroup / GROUP
    return {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def test_each_run_has_a_group_that_nobody_leaves(service: Service) -> None:
    """The daemon is beside the runs; a restart and a crash change nothing for them, and a stop leaves nobody."""
    service.wait_active("2 units: 2 ready")
    assert groups(service) == {LEAF, "escaping@1.1", "tally@1.1"}
    wait_until(lambda: len(members(service, "escaping@1.1")) == 3, what="main process, shell and sleep")
    before, lives = members(service, "escaping@1.1") | members(service, "tally@1.1"), service.lives()
    assert len(members(service, "tally@1.1")) == 1
    (shown,) = service.ctl("status", "escaping@1", "--json")
    assert shown["limits"] == {"memory_max": "watched"}
    for command in (("restart", SERVICE), ("kill", "--kill-who=main", "-s", "KILL", SERVICE)):
        daemon = service.show("MainPID")
        service.systemctl(*command)
        wait_until(lambda daemon=daemon: service.show("MainPID") not in {"0", daemon}, within_s=20)
        service.wait_active("2 units: 2 ready")
        assert members(service, "escaping@1.1") | members(service, "tally@1.1") == before
        assert service.lives() == lives
        assert len(members(service, "")) == len(before) + len(members(service, LEAF))
    service.ctl("restart", "escaping")
    assert groups(service) == {LEAF, "escaping@1.2", "tally@1.1"}
    assert not before - members(service, "tally@1.1") & set(service.machine.processes())
    service.systemctl("stop", SERVICE)
    assert service.machine.cgroup_processes(GROUP) == []
