"""What the daemon tells a real systemd, in which order, and that it waits until it was taken."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine_process import INSTALLED, Machine
from machine_service import SERVICE, Service, installed
from support import open_fds, wait_until

UNITS = """
[unit.slow]
type = "oneshot"
exec = ["sleep", "1.5"]

[unit.program]
type = "simple"
exec = ["sleep", "100000"]
"""


@pytest.fixture(scope="module")
def service(machine: Machine) -> Iterator[Service]:
    with installed(machine, UNITS, {}) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_inside() -> None:
    """In place of the folder's: the service is the module's."""


@contextmanager
def frozen(machine: Machine) -> Iterator[None]:
    """A systemd that does nothing, as one that is overwhelmed; it goes on afterwards."""
    os.kill(machine.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(machine.pid, signal.SIGCONT)


def test_all_that_is_told_in_its_order(service: Service) -> None:
    """A start asks for time, then is ready; a reload says when it began; a stop is announced; signs of life all along."""
    machine = service.machine
    service.systemctl("stop", SERVICE)
    machine.write("/etc/systemd/system/parsupd.service.d/watchdog.conf", "[Service]\nWatchdogSec=1\n")
    service.systemctl("daemon-reload")
    since = machine.run("date", "+%F %T.%N").stdout.strip()
    machine.run("systemd-analyze", "log-level", "debug")  # it then writes down each message that it gets
    try:
        service.systemctl("start", SERVICE)
        daemon = service.show("MainPID")
        began = int(float(machine.read("/proc/uptime").split()[0]) * 1e6)
        service.systemctl("reload", SERVICE)
        service.systemctl("stop", SERVICE)
    finally:
        machine.run("systemd-analyze", "log-level", "info")
        machine.run("rm", "/etc/systemd/system/parsupd.service.d/watchdog.conf")
        service.systemctl("daemon-reload")
    pattern = re.compile(rf"parsupd\.service: Got notification message from PID {daemon} \((.*)\)")
    found = (pattern.fullmatch(str(entry["MESSAGE"])) for entry in machine.journal(f"--since={since}", "_PID=1"))
    told = [match[1] for match in found if match]  # the lines of each message, joined by commas

    def first(beginning: str, after: int = -1) -> int:
        return next(i for i, message in enumerate(told) if i > after and message.startswith(beginning))

    extended, ready, reloading = (first(each) for each in ("EXTEND_TIMEOUT_USEC=30000000", "READY=1", "RELOADING=1"))
    again = first("READY=1", reloading)
    stopping = first("STOPPING=1", again)
    assert extended < ready < reloading < again < stopping
    assert told[ready] == "READY=1, STATUS=2 units: 1 ready, 1 done"
    assert any(message == "STATUS=2 units: 1 ready, 1 starting (slow@1)" for message in told[:ready])
    when = told[reloading].partition("RELOADING=1, MONOTONIC_USEC=")[2]
    assert 0 <= int(when) - began < 60e6
    assert told.count("WATCHDOG=1") >= 3
    assert any(message.startswith("FDSTORE=1, FDNAME=process-") for message in told[:ready])
    assert [message for message in told[stopping:] if not message.startswith(("WATCHDOG", "FDSTORE"))] == [
        "STOPPING=1, STATUS=2 units: 1 done, 1 stopping (program@1)",
        "STATUS=2 units: 1 done, 1 down",
    ]


BARRIER = """
import os, sys
from parsupd.shell.notify_socket import Notifier
notifier = Notifier(os.environ)
notifier.send("READY=1")
for _ in range(2):
    open("/run/go").read()
    print(notifier.barrier(float(sys.argv[1])), flush=True)
"""


def test_a_barrier_waits_until_all_was_taken(machine: Machine) -> None:
    """It is passed when systemd has come to it; one that does not is given up in time."""
    machine.run("mkfifo", "/run/go")
    machine.write("/srv/barrier.py", BARRIER)
    run = ["systemd-run", "--quiet", "--collect", "--unit=barrier", "-p", "Type=notify", "-p", "NotifyAccess=main"]
    machine.run(*run, "-p", "StandardOutput=file:/run/passed", f"{INSTALLED}/bin/python", "/srv/barrier.py", "0.3")
    with frozen(machine):
        machine.run("sh", "-c", "echo >/run/go")
        machine.wait_until(lambda: machine.read("/run/passed") == "False\n", what="the barrier is given up")
    machine.run("sh", "-c", "echo >/run/go")
    machine.wait_until(lambda: machine.read("/run/passed") == "False\nTrue\n", what="the barrier is passed")
    machine.run("rm", "/run/go", "/run/passed", "/srv/barrier.py")


def test_the_last_words_are_waited_for(service: Service) -> None:
    """A daemon whose systemd is busy stays until its last message was taken, so that it is not lost with it."""
    machine = service.machine
    service.systemctl("start", SERVICE)
    service.wait_active("2 units: 1 ready, 1 done")
    group = "system.slice/parsupd.service"
    (daemon,) = (pid for pid, line in machine.processes().items() if "bin/parsupd" in line)

    def pipes() -> set[str]:
        return {where for where in open_fds(daemon).values() if where.startswith("pipe:")}

    before = pipes()
    with frozen(machine):
        os.kill(daemon, signal.SIGTERM)
        wait_until(lambda: machine.cgroup_processes(group) == [daemon], what="its units have ended")
        wait_until(lambda: pipes() - before, within_s=4, what="it waits at the barrier")
    wait_until(lambda: not Path(f"/proc/{daemon}").exists(), what="it ends when systemd has come to its last words")
    machine.wait_until(lambda: service.show("ActiveState") == "inactive")
    assert service.show("Result") == "success"
    service.systemctl("start", SERVICE)
