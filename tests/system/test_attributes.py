"""What a unit's processes are before their program runs: limits, priority, user; and how each failure is told."""

import json
import os
import pwd
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_daemon import PROGRAMS, Info, daemon, simple
from support import wait_until

ROOT = Path(__file__).parents[2]
LOW = ("memlock", "msgqueue", "nice", "rss", "rtprio", "rttime", "sigpending")
"""Limits that a program does not notice."""
NOBODY = pwd.getpwnam("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

SHOW = """
import json, os, resource
names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
print(json.dumps({
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in names},
    "locks": next(line.split()[3:5] for line in open("/proc/self/limits") if line.startswith("Max file locks")),
    "nice": os.nice(0), "cpus": sorted(os.sched_getaffinity(0)), "umask": f"{os.umask(0):o}",
    "oom": int(open("/proc/self/oom_score_adj").read()), "ids": os.getresuid() + os.getresgid(),
    "groups": os.getgroups(), "cwd": os.getcwd(), "home": os.environ.get("HOME"), "user": os.environ.get("USER"),
}))
"""


def shown(folder: Path, **keys: Any) -> Info:
    """What a program with these keys finds itself to be."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    command = json.dumps(["/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable, "-c", SHOW])
    output = folder / "shown"
    text = "\n".join(["[unit.a]", "type = 'oneshot'", f"exec = {command}", f"stdout = 'append:{output}'", *lines])
    with daemon(folder, text) as parsupd:
        parsupd.wait_for("a@1", lambda status: status["sub_state"] == "exited")
    return dict(json.loads(output.read_text()))


def test_all_of_them_hold(tmp_path: Path) -> None:
    """Limits, priority, processors, score, umask and directory are as the file says, and the other limits as parsupd's."""
    limits = {
        "nofile": [100, 200],
        "core": 0,
        "as": "4G",
        "cpu": 500,
        "stack": "4M",
        "fsize": [1 << 20, 1 << 30],
        "data": "3G",
        "locks": [5, 6],
    }
    cpu = max(os.sched_getaffinity(0))
    keys = {"nice": 7, "cpu_affinity": [cpu], "oom_score_adj": 900, "umask": "027", "working_directory": "/usr"}
    limits |= dict.fromkeys(LOW, 0)
    found = shown(tmp_path, **{f"limit_{name}": value for name, value in limits.items()}, **keys)
    assert found["limits"]["RLIMIT_NOFILE"] == [100, 200]
    assert found["limits"]["RLIMIT_CORE"] == [0, 0]
    assert found["limits"]["RLIMIT_AS"] == [4 << 30, 4 << 30]
    assert found["limits"]["RLIMIT_CPU"] == [500, 500]
    assert found["limits"]["RLIMIT_STACK"] == [4 << 20, 4 << 20]
    assert found["limits"]["RLIMIT_DATA"] == [3 << 30, 3 << 30]
    assert found["limits"]["RLIMIT_FSIZE"] == [1 << 20, 1 << 30]
    assert {name: found["limits"][f"RLIMIT_{name.upper()}"] for name in LOW} == {name: [0, 0] for name in LOW}
    assert found["locks"] == ["5", "6"]  # Python has no name for it
    assert (found["nice"], found["cpus"], found["oom"], found["umask"]) == (7, [cpu], 900, "27")
    assert found["cwd"] == "/usr"
    assert found["ids"] == [*os.getresuid(), *os.getresgid()]


def test_without_them_a_unit_has_the_old_limit_of_files(tmp_path: Path) -> None:
    """parsupd's own limit, which it raises, does not reach a unit, whether it is prepared or not."""
    old = list(resource.getrlimit(resource.RLIMIT_NOFILE))
    (tmp_path / "plain").mkdir()
    (tmp_path / "prepared").mkdir()
    assert shown(tmp_path / "prepared", nice=1)["limits"]["RLIMIT_NOFILE"] == old


@as_root
def test_a_user_with_groups_and_home(tmp_path: Path) -> None:
    """All ids are the user's, with its groups and those that are added, and a login's variables; the old ones are gone."""
    tmp_path.chmod(0o755)
    found = shown(tmp_path, user="nobody", supplementary_groups=["daemon"], working_directory="/")
    assert found["ids"] == [NOBODY.pw_uid] * 3 + [NOBODY.pw_gid] * 3
    assert 0 not in found["groups"]
    assert 1 in found["groups"]
    assert (found["user"], found["home"]) == ("nobody", NOBODY.pw_dir)


@as_root
def test_a_group_alone(tmp_path: Path) -> None:
    """The user stays."""
    assert shown(tmp_path, group="daemon")["ids"] == [0, 0, 0, 1, 1, 1]


REFUSED = [
    ({"limit_nofile": 2**62}, "limit_nofile = 4611686018427387904: Operation not permitted", 1),
    ({"cpu_affinity": [8000]}, "cpu_affinity = [8000]: Invalid argument", 22),
    ({"user": "daemon", "working_directory": "/root"}, "working_directory = '/root': Permission denied", 13),
]


@as_root
@pytest.mark.parametrize(("keys", "message", "number"), REFUSED)
def test_a_step_that_fails_is_told(tmp_path: Path, keys: Info, message: str, number: int) -> None:
    """The program does not run, and the cause names step, value and errno."""
    if "/root" in message:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        keys, message = {**keys, "working_directory": str(closed)}, message.replace("/root", str(closed))
    text = "[unit.a]\n" + simple("touch ran", restart="no", **keys)
    with daemon(tmp_path, text) as parsupd:
        status = parsupd.wait_for("a@1", lambda status: status["sub_state"] == "failed")
        assert f"could not be started: [Errno {number}] {message}" in status["reason"]


def check(folder: Path, text: str, *prefix: str) -> tuple[int, str]:
    path = folder / "parsupd.toml"
    path.write_text(text)
    command = [*prefix, sys.executable, "-m", "parsupd", "--config", str(path), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_accounts_are_checked_before_anything_runs(tmp_path: Path) -> None:
    """`--check` refuses users and groups that the machine does not have, with the place and the nearest name."""
    unit = "[unit.a]\n" + simple("true")
    status, message = check(tmp_path, f"{unit}\nuser = 'nobod'")
    assert status == 2
    assert ":4: unit.a.user: there is no user 'nobod'; did you mean 'nobody'?" in message
    status, message = check(tmp_path, f"{unit}\nsupplementary_groups = ['daemon', 'dae_mon']")
    assert "unit.a.supplementary_groups[1]: there is no group 'dae_mon'; did you mean 'daemon'?" in message
    status, message = check(tmp_path, f"{unit}\nuser = 987654")
    assert "user 987654 is not in the list of users: say its group, too" in message


def test_without_root_one_is_only_oneself(tmp_path: Path) -> None:
    """Another user is refused with the way out; who one is already is accepted, and so is one's own group."""
    script = (
        "import sys\n"
        "from parsupd.core.attributes import Attributes\n"
        "from parsupd.shell.accounts import problems\n"
        "import os\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(1); os.setuid(1)\n"
        "me, mine = str(os.getuid()), str(os.getgid())\n"
        "print([list(map(str, problems(Attributes(**keys)))) for keys in ("
        "dict(user=me, group=mine), dict(user='root'), dict(group='0'), dict(supplementary_groups=('0',)))])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    own, user, group, extra = eval(done.stdout)
    assert own == []
    for each in (user, group, extra):
        assert "only root may" in each[0]
        assert "run parsupd as root, or leave the key out" in each[0]


def test_an_environment_file_may_be_missing_when_the_dash_says_so(tmp_path: Path) -> None:
    """With the dash nothing comes of it; without, the unit fails and says which file; one that is no text is told, too."""
    (tmp_path / "latin").write_bytes(b"A=\xe9")
    units = {
        "dash": {"environment_file": [f"-{tmp_path}/missing"]},
        "plain": {"environment_file": [f"{tmp_path}/missing"]},
        "latin": {"environment_file": [f"{tmp_path}/latin"]},
    }
    text = "\n".join(f"[unit.{name}]\n{simple('sleep 600', restart='no', **keys)}" for name, keys in units.items())
    with daemon(tmp_path, text) as parsupd:
        parsupd.wait_for("dash@1", lambda status: status["sub_state"] == "running")
        assert "missing" in parsupd.wait_for("plain@1", lambda status: status["sub_state"] == "failed")["reason"]
        assert "not UTF-8" in parsupd.wait_for("latin@1", lambda status: status["sub_state"] == "failed")["reason"]


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that other users may pass through; pytest closes its own whenever a session begins."""
    with tempfile.TemporaryDirectory(prefix="parsupd-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


def open_python() -> str:
    """An interpreter with this version that every user may run; skips the test where there is none."""
    for candidate in (sys.executable, "/usr/bin/python3", f"/usr/bin/python3.{sys.version_info[1]}"):
        ask = [candidate, "-c", "import sys; print(sys.version_info[:2])"]
        try:
            done = subprocess.run(ask, capture_output=True, text=True, check=False, user="nobody", cwd="/")
        except OSError:
            continue
        if done.stdout == f"{sys.version_info[:2]}\n":
            return candidate
    pytest.skip("no interpreter of this version can be run by another user")


@as_root
def test_a_worker_of_another_user(open_path: Path) -> None:
    """It registers, is called, is adopted and leaves nothing; its sockets are its user's alone, the daemon's root's."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {"PYTHONPATH": os.pathsep.join([site, str(ROOT), str(ROOT / "supervisor")])}
    text = (
        "[unit.w]\ntype = 'worker'\nworker = 'workers:Sum'\nuser = 'nobody'\nlimit_nofile = 300\n"
        f"stdout = 'append:{open_path}/out'\nworking_directory = {str(PROGRAMS)!r}\npython = {open_python()!r}\n"
        f"environment = {{ PYTHONPATH = {environment['PYTHONPATH']!r} }}"
    )
    with daemon(open_path, text) as parsupd:
        status = parsupd.wait_for("w@1", lambda status: status["sub_state"] == "running")
        users = parsupd.runtime / "users"
        assert (parsupd.runtime.stat().st_mode & 0o777, users.stat().st_mode & 0o777) == (0o711, 0o711)
        own = [users / str(NOBODY.pw_uid), users / f"{NOBODY.pw_uid}.sock", *(users / str(NOBODY.pw_uid)).iterdir()]
        assert {path.stat().st_uid for path in own} == {NOBODY.pw_uid}
        assert not any(path.stat().st_mode & 0o077 for path in own)
        for path in parsupd.runtime.iterdir():
            if path != users:
                assert (path.stat().st_uid, path.stat().st_mode & 0o077) == (0, 0), path
        proc = Path(f"/proc/{status['pid']}")
        assert proc.stat().st_uid == NOBODY.pw_uid
        assert "Max open files            300                  300" in (proc / "limits").read_text()
        assert str(users / str(NOBODY.pw_uid)) in status["uri"]
        parsupd.kill()
        parsupd.start()
        again = parsupd.wait_for("w@1", lambda status: status["sub_state"] == "running")
        assert (again["pid"], again["uri"]) == (status["pid"], status["uri"])
        wait_until(lambda: "w@1" in parsupd.names())
        assert parsupd.changes("w@1").count("starting") == 1
    assert Path(f"{open_path}/out").stat().st_uid == 0


INTRUDER = """
import asyncio, sys
import workerlib
async def main():
    for target, function in (("parsup.Supervisor", "info"), ("Pyro.NameServer", "list"), ("parsup.Master", "register")):
        try:
            async with await workerlib.connect(f"PYRO:{target}@./u:{sys.argv[1]}", within_s=5) as connection:
                await connection.call(function, *(["w-1", "x"] if function == "register" else []))
        except Exception as error:
            print(function, "refused", type(error).__name__)
        else:
            print(function, "ANSWERED")
asyncio.run(main())
"""


@as_root
def test_a_user_reaches_the_registry_and_nothing_else(open_path: Path) -> None:
    """Through its own socket no control object answers; another user's socket and the control socket stay closed."""
    python = open_python()
    site = next(path for path in sys.path if path.endswith("site-packages"))
    variables = {"PYTHONPATH": os.pathsep.join([site, str(ROOT), str(ROOT / "supervisor")])}
    worker = (
        f"type = 'worker'\nworker = 'workers:Sum'\nworking_directory = {str(PROGRAMS)!r}\npython = {python!r}\n"
        f"environment = {{ PYTHONPATH = {variables['PYTHONPATH']!r} }}\n"
    )
    with daemon(open_path, f"[unit.w]\n{worker}user = 'nobody'\n[unit.v]\n{worker}user = 'daemon'") as parsupd:
        for name in ("v@1", "w@1"):
            parsupd.wait_for(name, lambda status: status["sub_state"] == "running")
        sockets = [f"users/{NOBODY.pw_uid}.sock", "users/1.sock", "parsupd.sock"]
        for path in sockets:
            command = [python, "-c", INTRUDER, str(parsupd.runtime / path)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, user="nobody", group="nogroup", extra_groups=[],
                env=variables, cwd="/",
            )  # fmt: skip
            assert done.stdout.count("refused") == 3, (path, done.stdout)
