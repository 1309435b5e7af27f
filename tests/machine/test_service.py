"""`parsupd install`, and the service that it installs, in a real systemd."""

import json
from collections.abc import Iterator

import pytest
from machine_process import INSTALLED, Machine
from support import wait_until

SERVICE = "system.slice/parsupd.service"
WORKER = """
import workerlib

class Tally(workerlib.Worker):
    async def init(self, start: int = 0) -> None:
        self.total = start

    @workerlib.rpc
    async def add(self, n: int) -> int:
        self.total += n
        return self.total
"""
UNITS = """
[unit.tally]
type = "worker"
worker = "tally:Tally"
working_directory = "/srv/jobs"
init = { start = 10 }
instances = 2

[unit.idle]
type = "simple"
exec = ["sleep", "1000"]
"""
STOCK_CLIENT = """
import sys, Pyro5.api
names = Pyro5.api.Proxy("PYRO:Pyro.NameServer@./u:" + sys.argv[1])
print(Pyro5.api.Proxy(names.lookup("tally@1")).add(5))
"""


def files(machine: Machine) -> set[str]:
    """Every file and link that an installation could touch; account files have backups, and Python has caches."""
    found = machine.run(
        "find", "/etc", "/usr", "/home", "/var/lib", "/run/systemd/system", "-xdev", "!", "-type", "d"
    ).stdout
    passing = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/.pwd", "/etc/subuid", "/etc/subgid")
    return {
        path
        for path in found.splitlines()
        if "__pycache__" not in path and not path.startswith((*passing, "/var/lib/systemd/", "/var/lib/dbus"))
    }


@pytest.fixture
def installed(machine: Machine) -> Iterator[Machine]:
    """The machine with parsupd installed for the system and jobs in place, but not started; clean afterwards."""
    machine.write("/srv/jobs/tally.py", WORKER)
    machine.run("parsupd", "install")
    yield machine
    machine.run("systemctl", "disable", "--now", "parsupd.service", "parsupd.socket", check=False)
    machine.run("systemctl", "reset-failed", "parsupd.service", check=False)
    machine.run("parsupd", "uninstall")
    machine.run(
        "rm",
        "-rf",
        "/etc/parsupd",
        "/etc/systemd/system/parsupd.service.d",
        "/var/lib/parsupd",
        "/run/parsupd",
        "/srv/jobs",
    )
    machine.run("systemctl", "daemon-reload")


def start(machine: Machine, units: str) -> None:
    machine.write("/etc/parsupd/units.d/test.toml", units)
    machine.run("systemctl", "start", "parsupd")


def test_from_install_to_uninstall(machine: Machine) -> None:
    """Install, enable, see it run, call a worker with a stock client, stop, uninstall: and nothing is left of it."""
    before = files(machine)
    machine.write("/srv/jobs/tally.py", WORKER)
    done = machine.run("parsupd", "install").stdout.splitlines()
    assert done[-1] == "next: systemctl enable --now parsupd"
    assert machine.run("stat", "-c", "%a %U", "/etc/parsupd/units.d").stdout == "755 root\n"  # by tmpfiles.d
    assert machine.run("getent", "passwd", "parsupd").stdout.endswith("/usr/sbin/nologin\n")  # by sysusers.d
    machine.write("/etc/parsupd/units.d/test.toml", UNITS)
    machine.run("systemctl", "enable", "--now", "parsupd")

    assert machine.run("systemctl", "is-active", "parsupd").stdout == "active\n"
    state = machine.show("parsupd", "StatusText", "ExecMainStatus", "NRestarts", "MainPID")
    assert state["NRestarts"] == "0"
    machine.run("parsupctl", "wait", "tally", "idle", "--timeout", "20")
    assert {unit["name"] for unit in json.loads(machine.run("parsupctl", "list", "--json").stdout)} == {
        "tally@1",
        "tally@2",
        "idle@1",
    }
    wait_until(lambda: "3 ready" in machine.show("parsupd", "StatusText")["StatusText"], what="the status text")
    assert "3 ready" in machine.run("systemctl", "status", "parsupd").stdout
    called = machine.run(f"{INSTALLED}/bin/python", "-c", STOCK_CLIENT, "/run/parsupd/parsupd.sock")
    assert called.stdout == "15\n"
    assert (
        machine.run("stat", "-c", "%a %U", "/run/parsupd", "/run/parsupd/parsupd.sock").stdout == "700 root\n600 root\n"
    )

    again = machine.run("parsupd", "install").stdout.splitlines()
    assert {line.split()[0] for line in again} == {"unchanged", "run", "next:"}
    assert again[-1] == "next: systemctl restart parsupd"

    assert len(machine.cgroup_processes(SERVICE)) >= 4
    machine.run("systemctl", "stop", "parsupd")
    assert machine.cgroup_processes(SERVICE) == []
    assert machine.show("parsupd", "Result")["Result"] == "success"
    refused = machine.run("parsupd", "uninstall", check=False)
    assert refused.returncode == 2
    assert "first: systemctl disable --now parsupd.service" in refused.stderr
    machine.run("systemctl", "disable", "--now", "parsupd")
    machine.run("rm", "/etc/parsupd/units.d/test.toml")
    machine.run("parsupd", "uninstall")
    machine.run("rm", "-rf", "/srv/jobs")
    left = {path for path in files(machine) - before if not path.startswith("/var/lib/parsupd/")}
    assert left == set()
    assert machine.show("parsupd", "LoadState")["LoadState"] == "not-found"
    machine.run("rm", "-rf", "/var/lib/parsupd", "/run/parsupd")


def test_commands_that_others_can_change_are_warned_of(machine: Machine) -> None:
    """Who could replace what root runs is named; where nobody could, nothing is said."""
    assert machine.run("parsupd", "install", "--dry-run").stderr == ""
    machine.run("chown", "nobody", f"{INSTALLED}/bin/parsupctl")
    nobody = machine.run("id", "-u", "nobody").stdout.strip()
    warned = machine.run("parsupd", "install", "--dry-run").stderr
    machine.run("chown", "root", f"{INSTALLED}/bin/parsupctl")
    assert f"user {nobody} owns '{INSTALLED}/bin/parsupctl', and so can become root through the service" in warned


def test_systemd_finds_nothing_to_complain_about(installed: Machine) -> None:
    """The units are valid as they are installed, their manuals are found, and so are the examples for drop-ins."""
    units = [f"/usr/local/lib/systemd/system/parsupd.{kind}" for kind in ("service", "socket")]
    verified = installed.run("systemd-analyze", "verify", *units, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    example = "/usr/local/share/doc/parsupd/examples/units-need-more.conf"
    installed.run("install", "-Dm644", example, "/etc/systemd/system/parsupd.service.d/more.conf")
    verified = installed.run("systemd-analyze", "verify", *units, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("page", ["parsupctl(1)", "parsupd.toml(5)", "workerlib(7)", "parsupd(8)"])
def test_manuals_are_found_and_well_formed(installed: Machine, page: str) -> None:
    """man shows each page without a warning of the formatter, with all its parts."""
    name, section = page.rstrip(")").split("(")
    shown = installed.run("man", "--warnings=w", section, name, env={"MANWIDTH": "100"})
    assert shown.stderr == ""
    text = shown.stdout
    assert text.startswith(page)
    assert [part for part in ("NAME", "DESCRIPTION", "SEE ALSO") if f"\n{part}\n" not in text] == []
    assert "{{" not in text


def test_the_service_exposes_little(installed: Machine) -> None:
    """systemd's own score of the service, with every restriction that it takes, is at most 4.0 (of 10, less is better)."""
    scored = installed.run(
        "systemd-analyze", "security", "--threshold=40", "--no-pager", "parsupd.service", check=False
    )
    assert scored.returncode == 0, scored.stdout.splitlines()[-1]


# What ordinary programs do. Each line is tried, and its outcome printed under its number.
ORDINARY = [
    "open('/srv/parsupd-test', 'w')",
    "open('/var/lib/parsupd-test', 'w')",
    "open('/home/parsupd-test', 'w')",
    "open('/tmp/parsupd-test', 'w'), open('/dev/shm/parsupd-test', 'w')",
    "socket.create_server(('127.0.0.1', 80)).close()",
    "socket.socket(socket.AF_INET6).close(), socket.if_nameindex()",
    "ctypes.CFUNCTYPE(None)(print)",
    "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "subprocess.run(['true'], user='nobody', group='nogroup', check=True)",
    "os.chown('/srv/parsupd-test', 65534, 65534)",
    "os.nice(-5)",
    "os.kill(os.getpid(), 0)",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)",
    "multiprocessing.Lock()",
    "os.sched_setaffinity(0, os.sched_getaffinity(0))",
    "open('/etc/hostname').read(), open('/proc/cpuinfo').read(), os.listdir('/sys/class')",
]
REFUSED = [
    "open('/usr/parsupd-test', 'w')",
    "open('/etc/parsupd-test', 'w')",
    "open('/proc/sys/kernel/domainname', 'w').write('x')",
    "os.mknod('/srv/parsupd-node', 0o660 | stat.S_IFCHR, os.makedev(1, 11))",
    "subprocess.run(['unshare', '--user', 'true'], check=True, capture_output=True)",
    "subprocess.run(['mount', '-t', 'tmpfs', 'x', '/srv'], check=True, capture_output=True)",
    "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "socket.sethostname('x')",
    "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
]
ALLOWED_BY_THE_EXAMPLE = [
    "open('/usr/parsupd-test', 'w').close(), os.unlink('/usr/parsupd-test')",
    "os.mknod('/srv/parsupd-node', 0o660 | stat.S_IFCHR, os.makedev(1, 11)), os.unlink('/srv/parsupd-node')",
    "subprocess.run(['unshare', '--user', 'true'], check=True, capture_output=True)",
    "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
]


def outcomes(machine: Machine, attempts: list[str]) -> list[str]:
    """Runs each line in a unit of the service; returns those that failed, with why."""
    machine.write("/srv/jobs/attempts.json", json.dumps(attempts))
    machine.write(
        "/srv/jobs/attempts.py",
        "import ctypes, json, mmap, multiprocessing, os, resource, socket, stat, subprocess, sys\n"
        "failed = []\n"
        "for line in json.load(open('/srv/jobs/attempts.json')):\n"
        "    try:\n"
        "        eval(line)\n"
        "    except Exception as error:\n"
        "        failed.append(f'{line}: {error!r}')\n"
        "json.dump(failed, open('/srv/outcomes', 'w'))\n",
    )
    start(machine, '[unit.attempts]\ntype = "oneshot"\nexec = ["python3", "/srv/jobs/attempts.py"]\n')
    machine.run("parsupctl", "wait", "attempts", "--for", "active", "--timeout", "20", check=False)
    wait_until(lambda: machine.exists("/srv/outcomes"), what="the attempts")
    machine.run("systemctl", "stop", "parsupd")
    failed: list[str] = json.loads(machine.read("/srv/outcomes"))
    machine.run(
        "sh",
        "-c",
        "rm -f /srv/outcomes /srv/parsupd-* /var/lib/parsupd-test /home/parsupd-test /tmp/parsupd-test /dev/shm/parsupd-test",
    )
    return failed


def test_ordinary_programs_run_in_the_sandbox(installed: Machine) -> None:
    """Data directories, ports, other users, executable memory, limits: what programs usually do works."""
    assert outcomes(installed, ORDINARY) == []


def test_the_system_is_out_of_the_units_reach(installed: Machine) -> None:
    """System files, kernel settings, devices, namespaces, mounts and raw sockets are refused."""
    failed = outcomes(installed, REFUSED)
    assert [line.split(": ")[0] for line in failed] == REFUSED, failed


def test_the_example_gives_units_more(installed: Machine) -> None:
    """The drop-in that the manual names gives units what the service refuses."""
    example = "/usr/local/share/doc/parsupd/examples/units-need-more.conf"
    installed.run("install", "-Dm644", example, "/etc/systemd/system/parsupd.service.d/more.conf")
    installed.run("systemctl", "daemon-reload")
    assert outcomes(installed, ALLOWED_BY_THE_EXAMPLE) == []


def test_a_restart_ends_the_old_daemon_cleanly(installed: Machine) -> None:
    """What hands over to the next daemon exits with 0: the journal has neither a failure nor a traceback."""
    start(installed, UNITS)
    began = installed.run("date", "+%F %T.%N").stdout.strip()
    for _ in range(2):
        installed.run("parsupctl", "wait", "tally", "idle", "--timeout", "20")
        installed.run("systemctl", "restart", "parsupd")
    said = [str(entry["MESSAGE"]) for entry in installed.journal("--unit=parsupd", f"--since={began}")]
    assert said
    assert [line for line in said if "Traceback" in line or "FAILURE" in line or "Failed with" in line] == []


RUNAWAY = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    os.setgid(65534)
    os.setuid(65534)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
time.sleep(1000)
"""


def test_what_became_another_user_is_ended_too(installed: Machine) -> None:
    """A process that left its unit's session and became nobody is gone after a stop, though it ignores SIGTERM."""
    installed.write("/srv/jobs/runaway.py", RUNAWAY)
    start(installed, '[unit.runaway]\ntype = "simple"\nexec = ["python3", "/srv/jobs/runaway.py"]\n')
    wait_until(lambda: installed.run("pgrep", "-u", "nobody", check=False).returncode == 0, what="the runaway")
    installed.run("systemctl", "stop", "parsupd")
    assert installed.cgroup_processes(SERVICE) == []


def test_a_bad_configuration_fails_once_and_says_why(installed: Machine) -> None:
    """The service is not tried again and again; the message is in the journal; a corrected file is enough."""
    installed.write("/etc/parsupd/units.d/test.toml", '[unit.x]\ntype = "simpel"\nexec = ["true"]\n')
    assert installed.run("systemctl", "start", "parsupd", check=False).returncode != 0
    state = installed.show("parsupd", "ActiveState", "NRestarts", "ExecMainStatus")
    assert state == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "2"}
    said = [entry["MESSAGE"] for entry in installed.journal("--unit=parsupd", "--boot")]
    assert any("simpel" in line and "test.toml" in line for line in said), said
    installed.write("/etc/parsupd/units.d/test.toml", UNITS)
    installed.run("systemctl", "start", "parsupd")
    installed.run("parsupctl", "wait", "tally", "--timeout", "20")


def test_the_first_caller_starts_it_on_demand(installed: Machine) -> None:
    """With parsupd.socket, whoever asks starts the service, and again after a stop; without it, nobody is there."""
    assert installed.run("parsupctl", "list", check=False).returncode == 69
    installed.write("/etc/parsupd/units.d/test.toml", UNITS)
    installed.run("systemctl", "start", "parsupd.socket")
    for _ in range(2):
        assert installed.run("systemctl", "is-active", "parsupd", check=False).stdout == "inactive\n"
        installed.run("parsupctl", "--timeout", "20", "wait", "tally", "--timeout", "20")
        assert installed.run("systemctl", "is-active", "parsupd").stdout == "active\n"
        installed.run("systemctl", "stop", "parsupd")
    installed.run("systemctl", "stop", "parsupd.socket")
    assert not installed.exists("/run/parsupd/parsupd.sock")
    assert installed.run("parsupctl", "list", check=False).returncode == 69


def test_a_user_has_a_parsupd_of_their_own(machine: Machine) -> None:
    """install --user, the user's own systemd, a worker, stop, uninstall: all without root, and nothing is left."""
    machine.run("useradd", "--create-home", "--shell", "/bin/sh", "ann")
    uid = machine.run("id", "-u", "ann").stdout.strip()
    try:
        machine.run("loginctl", "enable-linger", "ann")
        wait_until(
            lambda: (
                machine.run("systemctl", "--user", "is-system-running", user="ann", check=False).stdout == "running\n"
            )
        )
        before = files(machine)
        machine.write("/home/ann/jobs/tally.py", WORKER)
        done = machine.run("parsupd", "install", "--user", user="ann").stdout.splitlines()
        assert done[-1] == "next: systemctl --user enable --now parsupd"
        units = [f"/home/ann/.local/share/systemd/user/parsupd.{kind}" for kind in ("service", "socket")]
        manuals = {"MANPATH": "/home/ann/.local/share/man"}  # as man finds it by ~/.local/bin in PATH
        assert machine.run("systemd-analyze", "--user", "verify", *units, user="ann", env=manuals).stderr == ""
        machine.run("install", "-o", "ann", "-d", "/home/ann/.config/parsupd/units.d")
        machine.write("/home/ann/.config/parsupd/units.d/test.toml", UNITS.replace("/srv/jobs", "/home/ann/jobs"))
        machine.run("systemctl", "--user", "enable", "--now", "parsupd", user="ann")
        machine.run("parsupctl", "wait", "tally", "idle", "--timeout", "20", user="ann")
        runtime = machine.run("sh", "-c", "echo $XDG_RUNTIME_DIR", user="ann").stdout.strip()
        called = machine.run(
            f"{INSTALLED}/bin/python", "-c", STOCK_CLIENT, f"{runtime}/parsupd/parsupd.sock", user="ann"
        )
        assert called.stdout == "15\n"
        machine.run("systemctl", "--user", "disable", "--now", "parsupd", user="ann")
        assert not [line for line in machine.processes().values() if "workerlib" in line or "sleep 1000" in line]
        machine.run("rm", "-r", "/home/ann/jobs", "/home/ann/.config/parsupd/units.d")
        machine.run("parsupd", "uninstall", "--user", user="ann")
        left = {path for path in files(machine) - before if not path.startswith("/home/ann/.local/state/parsupd/")}
        assert left == set()
    finally:
        machine.run("loginctl", "disable-linger", "ann", check=False)
        machine.run("loginctl", "terminate-user", "ann", check=False)
        machine.run("systemctl", "stop", f"user@{uid}.service", check=False)
        machine.run("userdel", "--remove", "ann", check=False)
