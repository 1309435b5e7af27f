"""The machine itself: what the other tests of this folder rely on."""

import subprocess
import sys
from pathlib import Path

from machine_process import CGROUP_PREFIX, INSTALLED, ROOT, Machine, cgroup_mount, remove_cgroup
from support import wait_until

from workerlib import __version__


def test_systemd_runs_as_pid_1_and_nothing_failed(machine: Machine) -> None:
    """A real systemd is the machine's first process, and it has started everything."""
    assert machine.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert machine.run("systemctl", "is-system-running").stdout == "running\n"
    assert int(machine.run("systemctl", "--version").stdout.split()[1]) >= 252


def test_a_killed_service_comes_back(machine: Machine) -> None:
    """systemd supervises inside: it sees the death of a process and starts it again."""
    machine.run("systemd-run", "--unit=phoenix", "-p", "Restart=always", "-p", "RestartSec=0", "sleep", "1000")
    first = machine.show("phoenix", "MainPID")["MainPID"]
    machine.run("systemctl", "kill", "--signal=KILL", "phoenix")
    wait_until(lambda: machine.show("phoenix", "MainPID")["MainPID"] not in {first, "0"})
    assert len(machine.cgroup_processes("system.slice/phoenix.service")) == 1
    machine.run("systemctl", "stop", "phoenix")


def test_the_journal_is_read_with_its_fields(machine: Machine) -> None:
    """journald takes entries and gives them back with the fields that it trusts."""
    machine.run("systemd-run", "--unit=speaker", "--wait", "echo", "spoken inside")
    (entry,) = machine.journal("_SYSTEMD_UNIT=speaker.service", "_TRANSPORT=stdout")
    assert entry["MESSAGE"] == "spoken inside"


def test_files_stay_inside(machine: Machine) -> None:
    """What is written inside is not seen outside, with its mode and its directories."""
    machine.write("/srv/deep/below/file", "text\n", mode=0o600)
    assert machine.read("/srv/deep/below/file") == "text\n"
    assert machine.run("stat", "-c", "%a", "/srv/deep/below/file").stdout == "600\n"
    assert not Path("/srv/deep").exists()
    machine.run("rm", "-r", "/srv/deep")


def test_parsupd_is_installed_from_the_wheel(machine: Machine) -> None:
    """The commands inside are those of the checkout's wheel, not of the checkout."""
    assert machine.run("parsupd", "--version").stdout.split()[-1] == __version__
    where = machine.run(f"{INSTALLED}/bin/python", "-c", "import parsupd, workerlib; print(parsupd.__file__)").stdout
    assert where.startswith(INSTALLED)
    assert machine.run("test", "-w", str(ROOT), check=False).returncode == 1


def test_a_killed_test_run_leaves_no_machine() -> None:
    """When the tests are killed, the machine ends with them, by the parent-death signal."""
    mount = cgroup_mount()
    assert mount is not None
    code = """
import sys, machine_process, time
machine_process.install_inside = lambda machine: None
with machine_process.boot() as machine:
    print(machine.pid, flush=True)
    time.sleep(1000)
"""
    env = {"PYTHONPATH": f"{ROOT}/tests:{ROOT}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    with process:
        systemd = int(process.stdout.readline())
        assert Path(f"/proc/{systemd}").exists()
        process.kill()
        wait_until(lambda: not Path(f"/proc/{systemd}/exe").exists(), what="the end of the machine's systemd")
    left = mount / f"{CGROUP_PREFIX}{process.pid}"
    wait_until(lambda: "populated 0" in (left / "cgroup.events").read_text())
    remove_cgroup(left)
    assert not left.exists()
