"""Programs whose workers are the programs themselves: who is what, with which settings, and what is refused."""

import asyncio
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from workerlib import State, UsageError, start_app
from workerlib.shell.environment import SETTINGS_VARIABLE

PROGRAMS = Path(__file__).parent / "programs"


def run_app(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def said(*arguments: str, **options: object) -> list[str]:
    """The lines that a program printed, which must have gone well."""
    done = run_app(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["script", "module"])
def test_the_program_is_its_own_worker(how: str) -> None:
    """The same file is the master's main and, with who started whom behind it, the worker and the worker's worker; each
    knows which it is, and each runs on uvloop; what main returns, start_app does."""
    program = [str(PROGRAMS / "app_program.py")] if how == "script" else ["-m", "app_program"]
    lines = said(*program, "began", cwd=PROGRAMS)
    lineage = r"child-of-\d+@\S+"
    assert lines[0] == "master None State.MASTER uvloop"
    assert re.fullmatch(rf"worker __main__ State\.WORKER State\.WORKER {lineage} job uvloop", lines[1])
    assert re.fullmatch(rf"nested __main__ State\.WORKER State\.WORKER {lineage} inner uvloop", lines[2])
    assert lines[3:] == ["returned the result of main"]


@pytest.mark.parametrize("how", ["directory", "zip file", "package"])
def test_a_program_in_a_directory_or_archive_is_not_loaded_twice(how: str, tmp_path: Path) -> None:
    """Its `__main__.py` is the worker's main module, too: start_app is reached once, with or without a guard."""
    text = (PROGRAMS / "app_program.py").read_text()
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(text.replace('if __name__ == "__main__":', "if True:"))
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.write(tmp_path / "app" / "__main__.py", "__main__.py")
    program = {"directory": ["app"], "zip file": ["app.zip"], "package": ["-m", "app"]}[how]
    lines = said(*program, "began", cwd=tmp_path)
    assert [line.split()[:2] for line in lines[1:3]] == [["worker", "__main__"], ["nested", "__main__"]]


@pytest.mark.parametrize(
    ("variable", "timeout", "size"), [("", "1.5", 1 << 20), ("handshake_timeout_s=2.5", "2.5", 1 << 20)]
)
def test_settings_of_the_program_are_those_of_all_its_connections(variable: str, timeout: str, size: int) -> None:
    """At both ends, of workers that are spawned, served, and served by a spawned one; the environment has the last word,
    and settings given to one spawn are its own."""
    environment = {**os.environ, SETTINGS_VARIABLE: variable}
    lines = said(str(PROGRAMS / "app_program.py"), "settings", env=environment)
    places = ["spawned, here", "spawned, there", "served, here", "served, there", "served by the spawned"]
    assert lines[:5] == [f"{place} {timeout} {size}" for place in places]
    own = timeout if variable else "9.0"
    assert lines[5] == f"of its own, there {own} {64 << 20}"


def test_maps_run_on_workers_that_are_the_program() -> None:
    """A function of the program's own file is found in it."""
    assert said(str(PROGRAMS / "app_program.py"), "mapping") == ["[0, 1, 4, 9, 16]", "returned None"]


def test_an_error_of_main_is_the_programs() -> None:
    """It comes out of start_app."""
    done = run_app(str(PROGRAMS / "app_program.py"), "failing")
    assert done.returncode == 1
    assert done.stderr.endswith("LookupError: main raises\n")


def test_an_app_is_started_once_and_has_one_way_to_start_workers() -> None:
    """A second start_app, and an explicit start_master_server, are refused with the reason."""
    once, again, explicit, _ = said(str(PROGRAMS / "app_program.py"), "refusals")
    assert once == again
    assert once.startswith("start_app in a process that is a master already: call it once")
    assert explicit.startswith("this program calls start_app: its workers are started as that says")


def test_main_is_given_without_a_call() -> None:
    """A worker, which is not to run it, would have made its coroutine in vain."""

    async def main() -> None: ...

    with pytest.raises(UsageError, match=r"give <coroutine object .*main.* without a call"):
        start_app(main())  # type: ignore[arg-type]


def test_a_program_from_stdin_is_no_app() -> None:
    """Nobody could start it again."""
    program = "import workerlib\nasync def main(): ...\nworkerlib.start_app(main)\n"
    done = run_app("-", input=program)
    assert done.returncode == 1
    assert "this program was read from stdin, so it cannot be started again as its worker: use a file" in done.stderr


def test_start_app_in_a_running_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would need a loop of its own."""
    monkeypatch.setattr("workerlib.role._Process.state", None)

    async def main() -> None: ...

    async def inside() -> None:
        with pytest.raises(UsageError, match="call it where none is running"):
            start_app(main)

    asyncio.run(inside())
    assert State.get() is None
