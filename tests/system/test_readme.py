"""README.md says nothing that was not run: its files, its commands with their output, its tables."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from parsupd_process import ROOT, assert_nothing_left, processes_of
from support import wait_until

from parsupd.core.unit_keys import DAEMON_KEYS, UNIT_KEYS
from parsupd.core.units import UnitSpec

README = (ROOT / "README.md").read_text()

# A fenced block with the HTML comment before it that says what the test does with it.
MARKED = re.compile(r"<!-- (?P<mark>[^>]+) -->\n```\w+\n(?P<text>.*?)```\n", re.DOTALL)


def blocks(mark: str) -> Iterator[tuple[str, str]]:
    """(rest of the mark, text) of the blocks whose mark begins with that word."""
    for found in MARKED.finditer(README):
        if found["mark"].startswith(mark):
            yield found["mark"].removeprefix(mark).strip(), found["text"]


@dataclass
class Command:
    """A line after a `$`, and what it prints."""

    line: str
    output: str


def commands() -> list[Command]:
    found: list[Command] = []
    for _, text in blocks("run"):
        for line in text.splitlines():
            if line.startswith("$ "):
                found.append(Command(line.removeprefix("$ "), ""))
            else:
                found[-1].output += line + "\n"
    return found


def shape(output: str) -> str:
    """The output without what differs from run to run: numbers that are pids, times or ids, and runs of blanks."""
    text = re.sub(r"\d{1,2}:\d\d:\d\d|\b\d+(\.\d+)? ?m?s\b", "TIME", output)
    text = re.sub(r"\b[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"\b\d{3,}\b", "N", text)
    return "\n".join(re.sub(r"[ \t]+", " ", line).rstrip() for line in text.strip().splitlines())


def same_shape(output: str, shown: str) -> bool:
    """Whether the README shows what came; `...` stands for any text."""
    pattern = re.escape(shape(shown)).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, shape(output), re.DOTALL) is not None


class Shell:
    """One bash that runs command after command, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {
            "PATH": path,
            "HOME": str(folder),
            "PARSUP_STATE_DIR": str(folder / "state"),
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, line: str) -> str:
        """The output of a command, stderr included; fails when its status is not 0."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\nprintf '\\n\\036%s\\n' $?\n")
        self.process.stdin.flush()
        output = ""
        for text in self.process.stdout:
            if text.startswith("\x1e"):
                assert text == "\x1e0\n", f"{line}: exit status {text[1:-1]}\n{output}"
                break
            output += text
        return output.removesuffix("\n")


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A shell in a folder whose path is short enough for sockets; parsupd must have ended when the test is over."""
    with tempfile.TemporaryDirectory(prefix="readme-") as name:
        folder = Path(name).resolve()
        shell = Shell(folder)
        try:
            yield shell
        finally:
            runtime = folder / "run"
            for pid in processes_of(runtime) + daemon_of(runtime):
                os.kill(pid, signal.SIGKILL)
            shell.process.communicate("", timeout=10)


def daemon_of(runtime: Path) -> list[int]:
    """The parsupd that has the lock of the directory, when there is one."""
    try:
        with (runtime / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return []
    except BlockingIOError:
        return [int((runtime / "lock").read_text())]
    return []


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_the_tour(shell: Shell, tmp_path: Path) -> None:
    """The README's programs, type-checked and run by its commands in their order, print what it shows; nothing is left."""
    folder = Path(shell.run("pwd").strip())
    for name, text in blocks("file:"):
        (folder / name).write_text(text)
    for command in commands():
        output = shell.run(command.line)
        if command.line.endswith("&"):  # a reader has taken a moment to read on
            wait_until(lambda: accepts(folder / "run" / "parsupd.sock"), what="the daemon's socket")
        assert same_shape(output, command.output), f"$ {command.line}\n{output}"
    wait_until(lambda: not daemon_of(folder / "run"), what="the end of parsupd")
    assert_nothing_left(folder / "run")


def test_the_programs_pass_the_type_checker(tmp_path: Path) -> None:
    """The README's programs are typed as mypy's strict mode wants it, but for the one argument that is wrong on purpose."""
    names = [name for name, text in blocks("file:") if name.endswith(".py") and name != "stock.py"]
    for name, text in blocks("file:"):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-color-output", *names]
    environment = {**os.environ, "MYPYPATH": f"{ROOT}{os.pathsep}{ROOT / 'supervisor'}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stdout
    assert '"Tally"' not in errors[0]
    assert '"str"' in errors[0]


def table(heading: str) -> dict[str, str]:
    """Keys and defaults of the first table after that text."""
    rows: dict[str, str] = {}
    for line in README.partition(heading)[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            rows[cells[0].strip("`")] = cells[1]
        elif rows:
            break
    return rows


def test_the_table_of_unit_keys_is_complete() -> None:
    """Every key of a unit file stands in the README, in the order of the code, and no other."""
    keys = {"limit_*" if key.startswith("limit_") else key for key in UNIT_KEYS}
    assert list(table("`[unit.NAME]`:")) == sorted(keys, key=list(table("`[unit.NAME]`:")).index)
    assert list(table("`[parsupd]`, in the main file only:")) == list(DAEMON_KEYS)


def test_the_defaults_of_unit_keys_are_the_codes() -> None:
    """A default that the README writes as a TOML value is the one that a unit gets."""
    spec = {field.name: field.default for field in fields(UnitSpec)}
    checked = set()
    for key, default in table("`[unit.NAME]`:").items():
        found = re.match(r"`([^`]+)`", default)
        if found is None:
            continue  # said in words
        name = re.sub("_sec$", "_s", key)
        value = spec[name]
        text = getattr(value, "value", None) or getattr(getattr(value, "kind", None), "value", None) or value
        if key == "kill_signal":
            text = signal.Signals(value).name
        if key == "environment":
            text = {}
        given = tomllib.loads(f"value = {found[1]}")["value"]
        assert (tuple(given) if isinstance(given, list) else given) == text, key
        checked.add(key)
    assert len(checked) > 18
