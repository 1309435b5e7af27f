"""The Debian package that `make deb` builds, installed and purged in a real systemd without a network."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_process import ROOT, Machine

SERVICE = "system.slice/parsupd.service"
PACKAGE = "/run/parsupd.deb"


pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg here")


@pytest.fixture(scope="module")
def package(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine with the package in a file."""
    dist = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "debian.py"), str(dist)], check=False, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    with Path(built.stdout.strip()).open("rb") as content:
        subprocess.run([*machine.enter(), "sh", "-c", f"cat >{PACKAGE}"], stdin=content, check=True)
    yield machine
    machine.run("dpkg", "--purge", "parsupd", check=False)
    machine.run("rm", PACKAGE)


@pytest.mark.timeout(180)
def test_installed_upgraded_and_purged(package: Machine) -> None:
    """dpkg installs and starts it without a network, an upgrade keeps the worker, and purging leaves no file of it."""
    machine = package

    def files() -> set[str]:
        found = machine.run("find", "/etc", "/usr", "/var/lib", "-xdev").stdout.splitlines()
        return {path for path in found if "parsupd" in path and "/opt/" not in path}

    assert files() == set()
    machine.run("dpkg", "--install", PACKAGE, timeout=100)
    assert machine.run("systemctl", "is-active", "parsupd").stdout == "active\n"
    assert machine.run("systemctl", "is-enabled", "parsupd").stdout == "enabled\n"
    usual = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    assert machine.run("which", "parsupd", "parsupctl", env=usual).stdout == "/usr/bin/parsupd\n/usr/bin/parsupctl\n"
    machine.write(
        "/srv/jobs/job.py",
        "import workerlib\nclass Job(workerlib.Worker):\n    @workerlib.rpc\n    async def twice(self, n: int) -> int:\n        return 2 * n\n",
    )
    unit = '[unit.job]\ntype = "worker"\nworker = "job:Job"\nworking_directory = "/srv/jobs"\n'
    machine.write("/etc/parsupd/units.d/job.toml", unit)
    machine.run("systemctl", "restart", "parsupd")
    machine.run("parsupctl", "wait", "job", "--timeout", "20", env=usual)
    assert machine.run("parsupctl", "call", "job", "twice", "21", env=usual).stdout == "42\n"
    assert (
        machine.run("man", "--where", "5", "parsupd.toml", env=usual).stdout
        == "/usr/share/man/man5/parsupd.toml.5.gz\n"
    )

    def worker() -> tuple[int, int]:
        (job,) = json.loads(machine.run("parsupctl", "list", "--json", env=usual).stdout)
        return job["pid"], job["generation"]

    before = worker()
    machine.run("dpkg", "--install", PACKAGE, timeout=100)
    machine.run("parsupctl", "wait", "job", "--timeout", "20", env=usual)
    assert worker() == before

    machine.run("rm", "/etc/parsupd/units.d/job.toml")
    machine.run("dpkg", "--remove", "parsupd")
    assert machine.cgroup_processes(SERVICE) == []
    assert machine.exists("/etc/parsupd/parsupd.toml")
    machine.run("dpkg", "--purge", "parsupd")
    assert files() == set()
    assert not machine.exists("/run/parsupd")
    assert machine.show("parsupd", "LoadState")["LoadState"] == "not-found"
    machine.run("rm", "-r", "/srv/jobs")
