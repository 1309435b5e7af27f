"""Under a real systemd: `systemctl reload`, and kills and restarts in the middle of a start, a stop and a reload."""

import json
from collections.abc import Iterator

import pytest
from machine_process import Machine
from machine_service import SERVICE, Service, installed

JOB = """
from workerlib import Worker, rpc

class Counter(Worker):
    async def init(self) -> None:
        self.count = 0

    @rpc
    async def add(self, n: int) -> int:
        self.count += n
        return self.count
"""
KEPT = """
[unit.counter]
type = "worker"
worker = "counter:Counter"
working_directory = "/srv/jobs"
instances = 2

[unit.kept]
type = "simple"
exec = ["sleep", "100000"]
"""
CHANGED = '\n[unit.changed]\ntype = "simple"\nexec = ["sleep", "{}"]\nrequires = ["counter"]\n'
UNITS = KEPT + CHANGED.format(100001)
AFTER = KEPT + CHANGED.format(100002) + '\n[unit.new]\ntype = "simple"\nexec = ["sleep", "100003"]\n'
GROUP = "system.slice/parsupd.service"


@pytest.fixture(scope="module")
def base(machine: Machine) -> Iterator[Service]:
    with installed(machine, UNITS, {"counter": JOB}) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_inside() -> None:
    """In place of the folder's: the service is the module's."""


@pytest.fixture
def service(base: Service) -> Service:
    """The service with these units, running."""
    base.configure(UNITS)
    base.systemctl("start", SERVICE)
    base.systemctl("reload", SERVICE)
    base.wait_active("4 units: 4 ready")
    return base


def test_a_reload_changes_what_differs(service: Service) -> None:
    """`systemctl reload` rereads the files: a changed unit is restarted, a new one started, the others keep their lives."""
    before, daemon = service.lives(), service.show("MainPID")
    service.configure(AFTER)
    service.systemctl("reload", SERVICE)
    after = service.lives()
    assert after.pop("new@1")[1] == 1
    assert after.pop("changed@1")[1] == before.pop("changed@1")[1] + 1
    assert after == before
    assert (service.show("MainPID"), service.show("ActiveState")) == (daemon, "active")
    service.wait_active("5 units: 5 ready")
    service.configure(UNITS)
    service.systemctl("reload", SERVICE)
    assert "new@1" not in service.lives()


def test_a_broken_file_changes_nothing_and_says_so(service: Service) -> None:
    """The reload fails with file, line and key in the journal; the service goes on as it was; a corrected file is taken."""
    before = service.lives()
    service.configure(AFTER + "restrat = 'no'\n")
    assert service.machine.run("systemctl", "reload", SERVICE, check=False).returncode != 0
    assert service.lives() == before
    assert service.show("ActiveState") == "active"
    service.wait_active("4 units: 4 ready")
    (failed,) = service.machine.journal(
        "--unit=parsupd", "PARSUP_EVENT=reload_failed", f"_PID={service.show('MainPID')}"
    )
    assert failed["PRIORITY"] == "3"
    for part in ("test.toml", "new", "restrat", "restart", "nothing was changed"):
        assert part in failed["PARSUP_REASON"]
    said = service.machine.journal("--unit=parsupd", "_COMM=parsupctl")
    assert any("restrat" in str(entry["MESSAGE"]) for entry in said)
    service.configure(AFTER)
    service.systemctl("reload", SERVICE)
    assert "new@1" in service.lives()


MOMENTS = [(moment, disturbance) for moment in ("start", "stop", "reload") for disturbance in ("restart", "kill -9")]


@pytest.mark.parametrize(("moment", "disturbance"), [*MOMENTS, ("start", "kill -9 and restart")])
def test_in_the_middle(moment: str, disturbance: str, service: Service) -> None:
    """A restart and kill -9 during a start, a stop and a reload: the targets are met afterwards, nothing runs twice."""
    machine = service.machine
    slow = '\n[unit.slow]\ntype = "oneshot"\nexec = ["sleep", "0.7"]\n'
    units = 5
    if moment == "start":
        service.systemctl("stop", SERVICE)
        service.configure(UNITS + slow)
    elif moment == "stop":
        late = '\n[unit.slow]\ntype = "simple"\nexec = ["sh", "-c", "trap \'sleep 0.7; exit\' TERM; while :; do sleep 0.1; done"]\n'
        service.configure(UNITS + late)
        service.systemctl("reload", SERVICE)
    else:
        service.configure(AFTER + slow)
        units = 6
    service.systemctl("--no-block", moment, SERVICE)
    busy = {"start": "activating", "stop": "deactivating", "reload": "reloading"}[moment]
    machine.wait_until(lambda: service.show("ActiveState") == busy and service.show("MainPID") != "0", what=busy)
    if moment != "stop":
        machine.wait_until(lambda: any("slow" in name for name in lives(service)), what="it has begun")
    if "kill" in disturbance:
        service.systemctl("kill", "--kill-who=main", "-s", "KILL", SERVICE, check=False)
    if "restart" in disturbance:
        service.systemctl("--no-block", "restart", SERVICE)
    elif moment == "stop":  # a stop that was killed is a stop all the same
        machine.wait_until(lambda: service.show("ActiveState") in {"inactive", "failed"}, within_s=30)
        assert machine.cgroup_processes(GROUP) == []
        return
    done = 0 if moment == "stop" else 1
    service.wait_active(f"{units} units: {units - done} ready" + (", 1 done" if done else ""))
    wanted = {"counter:Counter": 2, "sleep 100000": 1, "sleep 100003": int(moment == "reload")}
    wanted |= {"sleep 100001": int(moment != "reload"), "sleep 100002": int(moment == "reload")}
    inside = set(machine.cgroup_processes(GROUP))
    running = [line for pid, line in machine.processes().items() if pid in inside]
    assert {part: sum(part in line for line in running) for part in wanted} == wanted


def lives(service: Service) -> dict[str, object]:
    """Instances that have been started, as far as anybody answers."""
    done = service.machine.run("parsupctl", "list", "--json", check=False)
    found = json.loads(done.stdout) if done.returncode == 0 else []
    return {one["name"]: one["pid"] for one in found if one["generation"]}
