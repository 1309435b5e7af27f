"""Configurations that nobody meant to write: each is refused with place, value and way out, and nothing changes by it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_daemon import daemon, simple

from parsupd.core.fleet import Fleet
from parsupd.core.unitfile import ConfigurationError
from parsupd.shell.config_files import load
from workerlib import UsageError, WorkerlibError

UNIT = simple("exec sleep 600")
Make = Callable[[Path], object]


def text(content: str | bytes) -> Make:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda path: path.write_bytes(data)


def unit(lines: str) -> Make:
    return text(f"[unit.b]\n{UNIT}\n{lines}\n")


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


HOSTILE: dict[str, tuple[Make, str]] = {
    "a directory": (lambda path: path.mkdir(), "is not a regular file"),
    "a loop of links": (loop, "cannot be read: Too many levels of symbolic links"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file or directory"),
    "a FIFO": (os.mkfifo, "is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "UTF-16": (text(f"[unit.b]\n{UNIT}".encode("utf-16")), "is not UTF-8"),
    "latin 1": (text(b"[unit.b]\ndescription = 'caf\xe9'"), "is not UTF-8: 'utf-8' codec can't decode byte 0xe9"),
    "a NUL": (text("[unit.b]\n\0"), "b.toml:2: not TOML: "),
    "a NUL in a value": (unit('description = "\\u0000"'), "unit.b.description: must not hold a NUL character"),
    "half a character": (unit('description = "\\ud800"'), "not TOML: "),
    "a name in Greek": (text(f"[unit.'μ']\n{UNIT}"), "unit.μ: a unit's name has letters, digits, dots"),
    "a name with a slash": (text(f"[unit.'../x']\n{UNIT}"), "unit.../x: a unit's name has letters, digits, dots"),
    "a long name": (text(f"[unit.{'n' * 100_000}]\n{UNIT}"), "a unit's name has letters, digits, dots, dashes"),
    "a long value": (unit(f"type = '{'x' * 1_000_000}'".replace("type", "restart")), "must be one of no, on-success"),
    "a long key": (unit(f"{'k' * 1_000_000} = 1"), "unknown key"),
    "an endless number": (unit(f"nice = {'9' * 5000}"), "a whole number has 64 bits at most"),
    "an endless hexadecimal number": (unit(f"nice = 0x{'f' * 5000}"), "unit.b.nice: a whole number has 64 bits at most"),
    "an endless octal number in an array": (unit(f"cpu_affinity = [0, 0o{'7' * 30}]"), "unit.b.cpu_affinity[1]: a whole"),
    "arrays in arrays": (unit(f"exec_stop = {'[' * 5000}{']' * 5000}"), "nested too deeply: 50 levels at most"),
    "a hundred arrays": (unit(f"exec_stop = {'[' * 100}{']' * 100}"), "unit.b.exec_stop: tables and arrays are nested too"),
    "tables in tables": (text(f"[unit.b.{'.'.join('a' * 500)}]"), "nested too deeply: 50 levels at most"),
    "numbers that are none": (unit("timeout_stop_sec = nan\nrestart_sec = -inf"), "must be a number of seconds, 0 or more"),
    "a date": (unit("description = 2026-01-01"), "unit.b.description: must be a string, not datetime.date"),
    "a table for a word": (unit("restart = { a = 1 }"), "unit.b.restart: must be a string, not {'a': 1}"),
    "a list for a table": (text("unit = [1, 2]"), "unit: must be tables [unit.NAME], not [1, 2]"),
    "half of it": (text(f"[unit.b]\n{UNIT}\ndescription = 'no end"), "b.toml:4: not TOML: "),
}  # fmt: skip
HARMLESS: dict[str, Make] = {
    "nothing": text(""),
    "a byte order mark": text(f"\ufeff[unit.b]\n{UNIT}"),
    "lines of another system": text(f"[unit.b]\n{UNIT}\n".replace("\n", "\r\n")),
    "an argument that is as long as may be": unit(f"environment = {{ LONG = '{'x' * 130_000}' }}"),
}


@pytest.fixture
def main(tmp_path: Path) -> Path:
    (tmp_path / "units.d").mkdir()
    path = tmp_path / "parsupd.toml"
    path.write_text(f"[unit.a]\n{UNIT}\n")
    return path


@pytest.mark.parametrize(("make", "says"), HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused(make: Make, says: str, main: Path) -> None:
    """The message names the file, what is wrong, and what would be right, and is short."""
    make(main.parent / "units.d" / "b.toml")
    with pytest.raises((UsageError, ConfigurationError)) as refused:
        load(main)
    message = str(refused.value)
    assert says in message
    assert "units.d/b.toml" in message
    assert len(message) < 5000


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
def test_it_is_accepted(make: Make, main: Path) -> None:
    """Whatever it looks like in an editor."""
    make(main.parent / "units.d" / "b.toml")
    assert set(load(main).units) in ({"a"}, {"a", "b"})


def test_names_of_files_that_are_not_utf_8(main: Path) -> None:
    """They could be shown to nobody: a file, or a directory above it."""
    odd = main.parent / os.fsdecode(b"units.d/\xff.toml")
    odd.write_text(f"[unit.b]\n{UNIT}")
    with pytest.raises(UsageError, match=r"units\.d/\\udcff\.toml' is not UTF-8: give it another name"):
        load(main)
    folder = main.parent / os.fsdecode(b"\xff")
    folder.mkdir()
    (folder / "parsupd.toml").write_text("")
    with pytest.raises(UsageError, match="is not UTF-8: give it another name"):
        load(folder / "parsupd.toml")


def test_a_running_parsupd_refuses_each_and_goes_on(main: Path) -> None:
    """Whatever a reload finds, it says what is wrong, changes nothing, and the next good one is as if nothing had been."""
    with daemon(main.parent, main.read_text()) as running:
        pid = running.wait_for("a@1", lambda status: status["sub_state"] == "running")["pid"]
        for name, (make, says) in HOSTILE.items():
            folder = main.parent / "units.d"
            make(folder / "b.toml")
            with pytest.raises((WorkerlibError, RuntimeError, ValueError)) as refused:
                running.call("reload")
            assert says in str(refused.value), name
            for each in folder.iterdir():
                each.rmdir() if each.is_dir() and not each.is_symlink() else each.unlink()
        assert running.status("a@1")["pid"] == pid
        text(f"[unit.b]\n{UNIT}")(main.parent / "units.d" / "b.toml")
        running.call("reload")
        running.wait_for("b@1", lambda status: status["sub_state"] == "running")
        assert running.status("a@1")["pid"] == pid
        assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize("option", ["--runtime-dir", "--state-dir"])
def test_directories_that_are_not_utf_8(option: str, main: Path) -> None:
    """They are named, with the way out, before anything is made there."""
    odd = os.fsencode(main.parent) + b"/\xff"
    command = [sys.executable, "-m", "parsupd", "--config", main, "--runtime-dir", main.parent / "run", option, odd]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"parsupd: the ")
    assert b": choose another " in done.stderr
    assert not os.path.exists(odd)


FAILING = {
    "long": (f"environment = {{ LONG = '{'x' * 140_000}' }}", "Argument list too long"),
    "odd": ("environment_file = ['odd.env']", "odd.env' is not UTF-8"),
    "nul": ("environment_file = ['nul.env']", "nul.env:1: must not hold a NUL character: 'A=1\\x002'"),
    "folder": ("environment_file = ['.']", "is not a regular file"),
    "place": ("working_directory = 'odd.env'", "Not a directory"),
}


def test_what_only_a_start_can_find_out(tmp_path: Path) -> None:
    """The unit fails with the reason, and parsupd goes on."""
    (tmp_path / "odd.env").write_bytes(b"A=\xff\n")
    (tmp_path / "nul.env").write_bytes(b"A=1\x002\n")
    units = [f"[unit.{name}]\n{UNIT}\nrestart = 'no'\n{lines}\n" for name, (lines, _) in FAILING.items()]
    with daemon(tmp_path, "\n".join(units)) as running:
        for name, (_, says) in FAILING.items():
            status = running.wait_for(f"{name}@1", lambda status: status["sub_state"] == "failed")
            assert says in status["reason"]
        assert "Traceback" not in running.log.read_text()


AS_NOBODY = """
import importlib, json, os, pickle, pkgutil, sys
import parsupd, parsupd.app, parsupd.ctl.main, workerlib
for package in (parsupd, workerlib):  # before nobody is asked, who may not read it
    for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not each.name.endswith("__main__"):
            importlib.import_module(each.name)
for words in map(json.loads, sys.argv[1:]):
    if (child := os.fork()) == 0:
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        os.dup2(1, 2)
        sys.argv[:] = words
        (parsupd.ctl.main if "parsupctl" in words[0] else parsupd.app).main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "", sep="\\n", flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_files_and_homes_that_one_may_not_use(tmp_path: Path) -> None:
    """An unreadable file, a home that is read-only: said with the path, the reason and what else could be named."""
    for folder in (tmp_path, *tmp_path.parents[: len(tmp_path.parents) - 2]):
        folder.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    for name, mode in (("closed.toml", 0o600), ("open.toml", 0o644)):
        (home / name).write_text(f"[unit.a]\n{UNIT}\n")
        (home / name).chmod(mode)
    commands = [
        ["parsupd", "--config", f"{home}/closed.toml", "--check"],
        ["parsupd", "--config", f"{home}/open.toml"],
        ["parsupctl", "status"],
    ]
    env = {"HOME": str(home), "PATH": os.defpath}
    argv = [sys.executable, "-c", AS_NOBODY, *map(json.dumps, commands)]
    done = subprocess.run(argv, env=env, cwd=home, capture_output=True, text=True, timeout=30, check=True)
    unread, unmade, unreached = done.stdout.split("\n\n")[:3]
    assert unread == f"parsupd: the configuration '{home}/closed.toml' cannot be read: Permission denied\n2"
    assert (
        unmade == f"parsupd: the directory '{home}/.parsupd' cannot be made: Permission denied; choose another one\n2"
    )
    assert unreached.endswith("\n69")
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("words", [[b"status", b"\xff"], [b"start", b"a\xed\xa0\x80"], [b"why", b"\xff@1"], [b"logs", b"\xff"],
                                   [b"run", b"--", b"echo", b"\xff"], [b"call", b"a", b"\xff"], [b"scale", b"\xff=2"],
                                   [b"wait", b"\xff"], [b"kill", b"a", b"-s", b"\xff"], [b"show", b"n" * 1000]])  # fmt: skip
def test_words_that_are_no_text(words: list[bytes], odd_daemon: str) -> None:
    """parsupctl refuses them as it refuses other names that nothing has."""
    command = [sys.executable, "-c", "from parsupd.ctl.main import main; main()", "--socket", odd_daemon, *words]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    said = done.stderr.decode()
    assert done.returncode in {1, 2, 4}, said
    assert "Traceback" not in said
    assert said
    assert len(said) < 5000


@pytest.fixture(scope="module")
def odd_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a parsupd that inherits a variable which is no text."""
    folder = tmp_path_factory.mktemp("odd")
    os.environb[b"ODD"] = b"\xff"
    try:
        with daemon(folder, f"[unit.a]\n{UNIT}\n") as running:
            running.wait_for("a@1", lambda status: status["sub_state"] == "running")
            yield str(running.socket)
    finally:
        del os.environ["ODD"]


def test_thousands_of_units_in_one_file(main: Path) -> None:
    """5000 are read, and planned when half of them have gone and the others have changed, in seconds."""
    lines = [f"[unit.u{number}]\n{UNIT}\nenabled = false\n" for number in range(5000)]
    main.write_text("\n".join(lines))
    begun = time.monotonic()
    fleet = Fleet(load(main))
    assert len(fleet.status()) == 5000
    main.write_text("\n".join(lines[:2500]).replace("sleep 600", "sleep 601"))
    plan = fleet.plan(load(main))
    assert len(plan.touched) == 5000
    assert time.monotonic() - begun < 30
