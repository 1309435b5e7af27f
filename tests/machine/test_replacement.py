"""Under a real systemd: readiness, status, watchdog, restarts and crashes that keep workers, stops that leave nothing."""

import json
import time
from collections.abc import Iterator

import pytest
from machine_process import INSTALLED, Machine
from machine_service import SERVICE, Service, installed

JOB = """
import asyncio, os, time
from workerlib import Worker, rpc

class Counter(Worker):
    async def init(self) -> None:
        self.count = 0

    @rpc
    async def add(self, n: int) -> int:
        self.count += n
        return self.count

    @rpc
    async def pid(self) -> int:
        return os.getpid()
"""

UNITS = """
[unit.counter]
type = "worker"
worker = "counter:Counter"
working_directory = "/srv/jobs"
instances = 2

[unit.program]
type = "simple"
exec = ["/bin/sh", "-c", "sleep 100000 & sleep 100000"]
requires = ["counter"]
"""


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """An installed service with these units, running; stopped and removed afterwards."""
    with installed(machine, UNITS, {"counter": JOB}) as running:
        yield running


ALL_READY = "3 units: 3 ready"


def test_start_is_over_when_the_units_are_up(service: Service) -> None:
    """READY comes when the default target has been started; STATUS says how many units are in which state."""
    assert service.machine.show(SERVICE, "ActiveState", "StatusText") == {
        "ActiveState": "active",
        "StatusText": ALL_READY,
    }
    service.ctl("stop", "program")
    service.wait_active("3 units: 2 ready, 1 down")


def test_a_unit_that_takes_its_time_extends_the_start(service: Service) -> None:
    """A start that lasts longer than TimeoutStartSec goes on as long as units are starting."""
    service.systemctl("stop", SERVICE)
    service.machine.write("/etc/systemd/system/parsupd.service.d/short.conf", "[Service]\nTimeoutStartSec=3\n")
    service.systemctl("daemon-reload")
    service.configure(f'{UNITS}\n[unit.slow]\ntype = "oneshot"\nexec = ["sleep", "6"]\n')
    began = time.monotonic()
    service.systemctl("start", SERVICE)
    assert time.monotonic() - began > 5
    service.wait_active("4 units: 3 ready, 1 done")


def test_a_configuration_that_cannot_be_used_is_told(service: Service) -> None:
    """ERRNO and STATUS say why a start failed, and systemd does not try again."""
    service.systemctl("stop", SERVICE)
    service.configure('[unit.a]\ntype = "simple"\nexec = ["sleep"]\nrestrat = "no"\n')
    service.systemctl("start", SERVICE, check=False)
    shown = service.machine.show(SERVICE, "ActiveState", "StatusText", "StatusErrno")
    assert shown["ActiveState"] == "failed"
    assert shown["StatusErrno"] == "22"
    assert "restart" in shown["StatusText"]
    assert "test.toml" in shown["StatusText"]


@pytest.mark.parametrize(
    "how",
    [("restart",), ("kill", "--kill-who=main", "-s", "KILL"), ("kill", "--kill-who=main", "-s", "ABRT")],
    ids=["restart", "kill -9", "abort"],
)
def test_units_outlive_a_restart_and_a_crash(how: tuple[str, ...], service: Service) -> None:
    """The daemon is another one afterwards; workers and programs are the same, and their state with them."""
    assert service.ctl("call", "counter@1", "add", "5").strip() == "5"
    before, daemon = service.lives(), service.show("MainPID")
    service.systemctl(*how, SERVICE)
    service.machine.wait_until(lambda: service.show("MainPID") not in {"0", daemon}, what="another daemon")
    service.wait_active(ALL_READY)
    assert service.lives() == before
    assert service.ctl("call", "counter@1", "add", "5").strip() == "10"
    assert {"counter@1", "counter@2"} <= {one["name"] for one in service.ctl("names", "--json")}


def test_no_call_is_refused_while_the_daemon_is_replaced(service: Service) -> None:
    """Connections are never refused, and wait a little at most. A restart answers every call; a crash loses those in it."""
    script = """
import json, sys, time
from workerlib import ConnectionLost, blocking
uris = json.loads(sys.argv[1])
worst, calls, lost, until = 0.0, 0, 0, time.monotonic() + 3
while time.monotonic() < until:
    for uri in ("PYRO:parsup.Supervisor@./u:/run/parsupd/parsupd.sock", *uris.values()):
        began = time.monotonic()
        try:
            with blocking.connect(uri, within_s=5) as connection:
                connection.ping()
        except ConnectionLost:
            lost += 1
        worst, calls = max(worst, time.monotonic() - began), calls + 1
print(json.dumps([worst, calls, lost]))
"""
    uris = {one["name"]: one["uri"] for one in service.ctl("list", "--json") if one["uri"]}
    machine = service.machine
    argv = [f"{INSTALLED}/bin/python", "-c", script, json.dumps(uris)]
    for replace, may_lose in (("restart", 0), ("kill --kill-who=main -s KILL", 1)):
        script = f'"$@" & pid=$!; sleep 1; systemctl {replace} parsupd; wait $pid'
        worst, calls, lost = json.loads(machine.run("sh", "-c", script, "sh", *argv).stdout)
        assert calls > 100
        assert worst < 5
        assert lost <= may_lose


def test_a_units_socket_is_kept_over_crashes_of_both(service: Service) -> None:
    """The service manager keeps what a unit listens on while the daemon and the unit's process are both gone."""
    echo = "import socket; s = socket.socket(fileno=3)\nwhile True: s.accept()[0].sendall(b'here')"
    service.machine.write("/srv/jobs/echo.py", echo)
    service.configure(
        f'[unit.echo]\ntype = "simple"\nexec = ["{INSTALLED}/bin/python", "/srv/jobs/echo.py"]\nsockets = ["127.0.0.1:7001"]\n'
    )
    service.systemctl("stop", SERVICE)
    service.systemctl("start", SERVICE)
    ask = "import socket; print(socket.create_connection(('127.0.0.1', 7001), timeout=20).recv(9).decode())"
    assert service.machine.run("python3", "-c", ask).stdout.strip() == "here"
    pid, daemon = service.lives()["echo@1"][0], service.show("MainPID")
    service.machine.run("kill", "-KILL", daemon, str(pid))
    assert service.machine.run("python3", "-c", ask).stdout.strip() == "here"
    assert service.lives()["echo@1"][0] != pid


HANGS_ON_SIGWINCH = """
import signal, time
def hang(*_):
    while True:
        time.sleep(0.1)
signal.signal(signal.SIGWINCH, hang)
"""


@pytest.mark.parametrize("stuck", ["stopped", "busy"])
def test_a_stuck_loop_is_killed_and_comes_back_with_its_workers(stuck: str, service: Service) -> None:
    """A daemon that gives no sign of life is replaced after WatchdogSec; units do not notice; the journal says where."""
    service.machine.write("/srv/stuck/sitecustomize.py", HANGS_ON_SIGWINCH)
    hanging = "Environment=PYTHONPATH=/srv/stuck\n" if stuck == "busy" else ""
    service.machine.write("/etc/systemd/system/parsupd.service.d/watchdog.conf", f"[Service]\nWatchdogSec=2\n{hanging}")
    service.systemctl("daemon-reload")
    service.systemctl("restart", SERVICE)
    service.wait_active(ALL_READY)
    before, daemon = service.lives(), service.show("MainPID")
    service.machine.run("kill", "-STOP" if stuck == "stopped" else "-WINCH", daemon)
    service.machine.wait_until(lambda: service.show("MainPID") not in {"0", daemon}, within_s=30, what="another daemon")
    service.wait_active(ALL_READY)
    assert service.lives() == before
    assert service.show("NRestarts") == "1"
    said = [str(entry["MESSAGE"]) for entry in service.machine.journal("--unit=parsupd", f"_PID={daemon}")]
    assert "Fatal Python error: Aborted" in said
    if stuck == "busy":
        assert any('"/srv/stuck/sitecustomize.py", line 5 in hang' in line for line in said), said
    service.machine.run("rm", "-r", "/srv/stuck")


def test_stop_leaves_nothing(service: Service) -> None:
    """`systemctl stop` stops the units, those that require others first, and leaves no process in the control group."""
    pids = [pid for pid, _ in service.lives().values()]
    assert len(service.machine.cgroup_processes("system.slice/parsupd.service")) >= 1 + len(pids)
    daemon = service.show("MainPID")
    service.systemctl("stop", SERVICE)
    assert service.machine.cgroup_processes("system.slice/parsupd.service") == []
    assert service.show("Result") == "success"
    entries = service.machine.journal(f"_PID={daemon}", "PARSUP_EVENT=unit_changed")
    told = [(entry["PARSUP_INSTANCE"], entry["PARSUP_NEW"]) for entry in entries]
    down = told.index(("program@1", "dead"))
    assert told.index(("program@1", "stopping")) < down
    assert {told.index((f"counter@{number}", "stopping")) > down for number in (1, 2)} == {True}


def test_a_stop_that_takes_too_long_leaves_nothing_either(service: Service) -> None:
    """When TimeoutStopSec kills the daemon in the middle of a stop, what is left of its units is ended all the same."""
    service.machine.write("/etc/systemd/system/parsupd.service.d/short.conf", "[Service]\nTimeoutStopSec=2\n")
    service.systemctl("daemon-reload")
    stubborn = "trap : TERM; while :; do sleep 1; done"
    service.configure(
        f'{UNITS}\n[unit.stubborn]\ntype = "simple"\nexec = ["/bin/sh", "-c", "{stubborn}"]\ntimeout_stop_sec = 60\n'
    )
    service.systemctl("restart", SERVICE)
    service.ctl("start", "stubborn")
    service.systemctl("stop", SERVICE, check=False)
    assert service.machine.cgroup_processes("system.slice/parsupd.service") == []


def test_how_a_process_ended_while_no_daemon_was_there(service: Service) -> None:
    """The service manager keeps a pidfd of each main process: the next daemon learns its exit status and goes by that."""
    machine = service.machine
    machine.write("/etc/systemd/system/parsupd.service.d/late.conf", "[Service]\nRestartSec=1500ms\n")
    service.systemctl("daemon-reload")
    ends = "[unit.{0}]\ntype = '{1}'\nrestart = 'on-failure'\nexec = ['sh', '-c', 'read line </run/go-{0}; exit {2}']\n"
    service.configure(ends.format("good", "oneshot", 0) + ends.format("bad", "simple", 7).replace("on-failure", "no"))
    machine.run("mkfifo", "/run/go-good", "/run/go-bad")
    service.systemctl("stop", SERVICE)
    service.systemctl("--no-block", "start", SERVICE)
    machine.wait_until(
        lambda: machine.run("pgrep", "-c", "-f", "[r]ead line", check=False).stdout == "2\n", what="both run"
    )
    service.systemctl("--no-block", "restart", SERVICE)  # what the second daemon has taken over is known to the third
    machine.wait_until(
        lambda: len(service.machine.journal("PARSUP_EVENT=unit_adopted", f"_PID={service.show('MainPID')}")) == 2
    )
    daemon = service.show("MainPID")
    service.systemctl("kill", "--kill-who=main", "-s", "KILL", SERVICE)
    machine.wait_until(lambda: service.show("MainPID") == "0", what="no daemon is there")
    machine.run("sh", "-c", "echo >/run/go-good; echo >/run/go-bad")
    machine.wait_until(
        lambda: machine.run("pgrep", "-f", "[r]ead line", check=False).returncode == 1, what="both ended"
    )
    assert service.show("MainPID") == "0"
    service.wait_active("2 units: 1 done, 1 failed (bad@1)")
    assert service.show("MainPID") != daemon
    assert "it exited with 7" in service.ctl("status", "bad", check=False)
    assert service.show("NFileDescriptorStore") == "2"  # the control socket and the state
    machine.run("rm", "/run/go-good", "/run/go-bad")
