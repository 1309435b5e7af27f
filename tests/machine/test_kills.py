"""Under a real systemd: kills of everything, by systemctl and by the kernel for want of memory; targets are met after."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_process import Machine
from machine_service import SERVICE, Service, installed
from support import wait_until

JOB = """
from workerlib import Worker, rpc

class Hungry(Worker):
    async def init(self) -> None:
        self.eaten = []

    @rpc
    async def eat(self, mib: int) -> int:
        self.eaten.append(b"x" * (mib << 20))
        return len(self.eaten)
"""
UNITS = """
[unit.hungry]
type = "worker"
worker = "hungry:Hungry"
working_directory = "/srv/jobs"

[unit.program]
type = "simple"
exec = ["sleep", "100000"]
restart = "always"
"""
MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    with installed(machine, UNITS, {"hungry": JOB}) as running:
        yield running


def outside(service: Service, command: str) -> int:
    """The pid, as seen from here, of the process in the service with that in its command line."""
    inside = set(service.machine.cgroup_processes("system.slice/parsupd.service"))
    return next(pid for pid, line in service.machine.processes().items() if pid in inside and command in line)


@contextlib.contextmanager
def memory_limit(pid: int, limit: int) -> Iterator[None]:
    """A process in a control group of its own in which the kernel kills what takes more memory than that."""
    if not (MEMORY / "memory.limit_in_bytes").exists():
        pytest.skip("no memory controller of cgroup v1 is mounted here, by which a process can be starved")
    group = MEMORY / f"parsupd-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (MEMORY / "cgroup.procs").write_text(left)
        wait_until(lambda: not (group / "cgroup.procs").read_text(), what="the group is empty")
        group.rmdir()


def killed_for_memory(service: Service, pid: int) -> int:
    """How often the kernel has killed in the group of that process."""
    control = (MEMORY / f"parsupd-test-{os.getpid()}" / "memory.oom_control").read_text()
    return int(dict(line.split() for line in control.splitlines()).get("oom_kill", 0))


def test_systemctl_kill_of_everything(service: Service) -> None:
    """`systemctl kill -s KILL` ends the daemon and all its units; all of them come back, each once."""
    before = service.lives()
    service.systemctl("kill", "-s", "KILL", SERVICE)
    service.machine.wait_until(
        lambda: service.show("ActiveState") == "active" and service.lives().keys() == before.keys(), within_s=30
    )
    service.wait_active("2 units: 2 ready")
    after = service.lives()
    assert {name: generation for name, (_, generation) in after.items()} == {
        name: generation + 1 for name, (_, generation) in before.items()
    }
    assert len(service.machine.cgroup_processes("system.slice/parsupd.service")) == 3


def test_a_worker_without_memory(service: Service) -> None:
    """The kernel kills a worker that takes too much: its policy starts it again, and nothing else is touched."""
    before = service.lives()
    pid = outside(service, "hungry:Hungry")
    with memory_limit(pid, 64 << 20):
        service.ctl("call", "hungry@1", "eat", "200", check=False)
        assert killed_for_memory(service, pid) >= 1
    service.machine.wait_until(lambda: service.lives()["hungry@1"][1] > before["hungry@1"][1], what="its next life")
    service.wait_active("2 units: 2 ready")
    after = service.lives()
    assert after["hungry@1"][1] == before["hungry@1"][1] + 1
    assert after["program@1"] == before["program@1"]
    assert "SIGKILL" in service.ctl("why", "hungry")
    assert service.show("NRestarts") == "0"


def test_a_daemon_without_memory(service: Service) -> None:
    """The kernel kills the daemon: it comes back by itself, and its units have not noticed."""
    assert service.show("OOMPolicy") == "continue"
    before, daemon = service.lives(), service.show("MainPID")
    pid = outside(service, "bin/parsupd")
    with memory_limit(pid, 4096):
        service.machine.wait_until(
            lambda: bool(service.ctl("list", check=False)) and service.show("MainPID") not in {"0", daemon},
            within_s=30,
            what="the kernel kills the daemon, and another one comes",
        )
        assert killed_for_memory(service, pid) >= 1
    service.wait_active("2 units: 2 ready")
    assert service.lives() == before
