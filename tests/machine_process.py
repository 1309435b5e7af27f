"""A throw-away machine: a real systemd with its journald in namespaces, over a writable layer above this system's root.

Nothing that happens in it changes the system outside: files go to memory, it has its own processes, network (the loopback
interface only), host name and control groups. It needs root. The checkout is there at the same path, read-only and live; a
parsupd that was built and installed from it as a wheel is in `INSTALLED`. What the tests write outside after the boot may or
may not be seen inside: use `Machine.write`.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from support import children, wait_until

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
BOOT = Path(__file__).parent / "machine" / "boot.sh"
SYSTEMD = Path("/lib/systemd/systemd")
INSTALLED = "/opt/parsupd"
"""The virtual environment inside, made from the checkout's wheel and copies of what it depends on."""

CGROUP_PREFIX = "parsupd-machine-"
BOOT_WITHIN_S = 40.0
PROBE = """
mount --make-rprivate /
mount -t tmpfs probe /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
mount -t proc proc /mnt/root/proc
mount -t cgroup2 cgroup2 /mnt/root/mnt
"""
"""What a boot needs to be allowed to do."""
PATH = f"{INSTALLED}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def cgroup_mount() -> Path | None:
    """Where the cgroup v2 tree is mounted for writing, if it is."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(where)
    return None


def why_not() -> str | None:
    """Why no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "only root can boot a systemd in namespaces"
    if not SYSTEMD.exists():
        return f"there is no {SYSTEMD}"
    if missing := [tool for tool in ("unshare", "nsenter", "setpriv", "pivot_root") if shutil.which(tool) is None]:
        return f"missing programs: {', '.join(missing)}"
    if (mount := cgroup_mount()) is None or not os.access(mount, os.W_OK):
        return "no cgroup v2 tree is mounted for writing"
    probe = subprocess.run(
        ["unshare", "-m", "-u", "-i", "-n", "-p", "-f", "-C", "sh", "-ec", PROBE],
        check=False,
        capture_output=True,
        text=True,
    )
    return f"no systemd can be booted in namespaces: {probe.stderr.strip()}" if probe.returncode else None


@dataclass(frozen=True)
class Machine:
    """One that runs."""

    pid: int
    """Of its systemd, as seen from outside."""
    cgroup: Path
    """The root of its control groups, as seen from outside."""

    def run(
        self,
        *argv: str,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - as subprocess.run
        timeout: float = 60,
        user: str | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as root or `user`, in a small fixed environment plus `env`.

        Raises AssertionError with the output when it fails (unless `check` is false) or takes longer than `timeout` seconds.
        """
        command = [*self.enter(timeout=timeout, user=user, env=env), *argv]
        began_at = time.monotonic()
        given = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=timeout + 10, **given
        )
        output = f"\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
        assert time.monotonic() - began_at < timeout, f"not done within {timeout} s: {' '.join(argv)}{output}"
        assert not check or done.returncode == 0, f"exit status {done.returncode}: {' '.join(argv)}{output}"
        return done

    def enter(self, *, timeout: float = 60, user: str | None = None, env: dict[str, str] | None = None) -> list[str]:
        """The beginning of a command line, for outside, whose rest is run inside and killed after `timeout` seconds.

        The limit is kept by a process inside: killing what runs outside would leave the command behind.
        """
        variables = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", "SYSTEMD_PAGER": "", **(env or {})}
        become: list[str] = []
        if user is not None:
            uid = self.run("id", "-u", user).stdout.strip()
            home = self.run("getent", "passwd", user).stdout.split(":")[5]
            variables |= {"HOME": home, "XDG_RUNTIME_DIR": f"/run/user/{uid}", "USER": user, "LOGNAME": user}
            become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        return [
            *("nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C"),
            *("env", "-i", *(f"{name}={value}" for name, value in variables.items())),
            *("timeout", "--kill-after=2", str(timeout), *become),
        ]

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Writes a file inside, with the directories above it."""
        self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, input=text)

    def read(self, path: str) -> str:
        return self.run("cat", path).stdout

    def exists(self, path: str) -> bool:
        return self.run("test", "-e", path, check=False).returncode == 0

    def wait_until(self, condition: Callable[[], T], within_s: float = 10.0, what: str = "") -> T:
        """As support.wait_until."""
        return wait_until(condition, within_s=within_s, what=what)

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries of its journal: `matches` are options of journalctl or FIELD=VALUE. Waits until journald has written."""
        self.run("journalctl", "--sync")
        out = self.run("journalctl", "--output=json", "--all", "--no-pager", *matches, timeout=120).stdout
        return [json.loads(line) for line in out.splitlines()]

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as `systemctl show` gives them."""
        out = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).stdout
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)

    def cgroup_processes(self, path: str) -> list[int]:
        """Pids, as seen from outside, of a control group such as `system.slice/parsupd.service`, and of those below it."""
        found: list[int] = []
        for procs in (self.cgroup / path).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in procs.read_text().split()]
        return found

    def processes(self) -> dict[int, str]:
        """Pid, as seen from outside, and command line of every living process inside but kernel-like ones and zombies."""
        found = {}
        space = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(entry / "ns/pid").st_ino == space:
                        line = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
                        if line:
                            found[int(entry.name)] = line
        return found


def remove_cgroup(path: Path) -> None:
    """Removes an empty control group and those below it; what still has processes stays."""
    if not path.exists():
        return
    for folder in sorted((entry for entry in path.rglob("*") if entry.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        path.rmdir()


def _requirements(name: str, found: set[str]) -> set[str]:
    """Names of the distributions that one needs here, itself included."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name not in found:
        found.add(name)
        for requirement in importlib.metadata.requires(name) or []:
            needed = re.match(r"[\w.-]+", requirement)
            if "extra ==" in requirement or needed is None:
                continue
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # one for other Pythons or systems
                _requirements(needed[0], found)
    return found


def install_inside(machine: Machine) -> None:
    """Makes `INSTALLED` inside: the wheel of the checkout by pip, and what it needs as it is installed outside.

    An editable installation would not do: what the wheel holds is part of what is tested, and a service that has a private
    /tmp cannot see a checkout there.
    """
    with tempfile.TemporaryDirectory(prefix="parsupd-wheel-") as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(wheel, check=True, stdout=subprocess.DEVNULL, timeout=60)
        packed = subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE)
        assert packed.stdout is not None
        unpack = [*machine.enter(), "sh", "-c", "mkdir /run/wheel && tar -C /run/wheel -x"]
        with packed:
            subprocess.run(unpack, stdin=packed.stdout, check=True)
    python = Path(sys.executable).resolve()
    # An interpreter below a closed home directory, as pyenv's in /root, shall serve other users inside, too.
    machine.run("chmod", "a+x", *(str(folder) for folder in python.parents[:-1]))
    machine.run(str(python), "-m", "venv", "--without-pip", INSTALLED)
    outside = Path(importlib.metadata.distribution("click").locate_file(""))
    inside = machine.run(
        f"{INSTALLED}/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    ).stdout.strip()
    tops = set()
    for name in _requirements("parsupd", set()) - {"parsupd"}:
        for file in importlib.metadata.files(name) or []:
            if file.parts[0] not in {"..", "__pycache__"}:
                tops.add(file.parts[0])
    machine.run(
        "sh", "-c", 'to=$1; shift; cp -r "$@" "$to"', "copy", inside, *(str(outside / top) for top in sorted(tops))
    )
    install = f"{' '.join([str(Path(sys.executable)), '-m', 'pip'])} --python {INSTALLED}/bin/python"
    options = "--disable-pip-version-check --quiet install --root-user-action=ignore --no-index --no-deps"
    machine.run("sh", "-c", f"{install} {options} /run/wheel/*.whl && rm -r /run/wheel")


@contextmanager
def boot() -> Iterator[Machine]:
    """Boots a machine and ends it with everything in it. Also when the tests are killed, by the parent-death signal; only
    an empty control group is left then, which the next boot removes.
    """
    mount = cgroup_mount()
    assert mount is not None
    for stale in mount.glob(f"{CGROUP_PREFIX}*"):
        if not Path(f"/proc/{stale.name.removeprefix(CGROUP_PREFIX)}").exists():
            remove_cgroup(stale)
    cgroup = mount / f"{CGROUP_PREFIX}{os.getpid()}"
    cgroup.mkdir()
    with tempfile.TemporaryFile("w+") as said:
        namespaces = "unshare -m -u -i -n -p -f -C --kill-child"
        outer = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c",
             f'echo $$ >"$1/cgroup.procs" && exec {namespaces} sh "$2" "$3"', "boot", str(cgroup), str(BOOT), str(ROOT)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )  # fmt: skip
        try:
            machine = _wait_booted(outer, cgroup, said)
            install_inside(machine)
            yield machine
        finally:
            for pid in children(outer.pid):
                os.kill(pid, 9)  # its pid 1: the kernel kills all others with it before it is gone
            outer.wait()
            wait_until(lambda: remove_cgroup(cgroup) or not cgroup.exists(), what=f"the removal of {cgroup}")


def _wait_booted(outer: subprocess.Popen[bytes], cgroup: Path, said: Any) -> Machine:
    """Waits until systemd has started everything; fails with what was said and the journal's end."""

    def output() -> str:
        said.seek(0)
        return said.read()

    def systemd() -> int | None:
        assert outer.poll() is None, f"the machine ended while it booted: {output()}"
        for pid in children(outer.pid):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe").endswith("systemd") and os.path.exists(
                    f"/proc/{pid}/root/run/systemd/private"
                ):
                    return pid
        return None

    pid = wait_until(systemd, within_s=BOOT_WITHIN_S, what="systemd as the machine's first process")
    machine = Machine(pid, cgroup)
    state = machine.run("systemctl", "is-system-running", "--wait", check=False, timeout=BOOT_WITHIN_S).stdout.strip()
    if state != "running":
        failed = machine.run("systemctl", "list-units", "--failed", "--no-legend", check=False).stdout
        log = machine.run("journalctl", "--no-pager", "-n", "40", check=False).stdout
        raise AssertionError(f"the machine is {state}: {output()}\n{failed}\n{log}")
    return machine
