"""parsupd as the first process of a pid namespace, as in a container, and the file that builds one."""

import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from parsupd_process import PARSUPD, ROOT
from support import PID_NAMESPACE, children, process_state, wait_until

from parsupd.app import cli

PROBE = subprocess.run([*PID_NAMESPACE, "true"], check=False, capture_output=True, text=True)
pytestmark = pytest.mark.skipif(PROBE.returncode != 0, reason=f"no pid namespace can be made: {PROBE.stderr.strip()}")


@contextmanager
def first_process(units: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Runs parsupd as pid 1 of a namespace; gives what started it, and parsupd's pid outside."""
    with tempfile.TemporaryDirectory(prefix="parsupd-") as folder:
        Path(f"{folder}/parsupd.toml").write_text(units)
        options = [
            "--config",
            f"{folder}/parsupd.toml",
            "--runtime-dir",
            f"{folder}/run",
            "--state-dir",
            f"{folder}/state",
        ]
        process = subprocess.Popen(
            [*PID_NAMESPACE, PARSUPD, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: children(process.pid) or process.poll() is not None)
            yield process, next(iter(children(process.pid)), 0)
        finally:
            process.kill()
            process.communicate()


ORPHANER = """
import os, time
if os.fork() == 0:
    if os.fork():
        os._exit(0)
    while os.getppid() != 1:
        time.sleep(0.001)
    print("adopted", flush=True)
    os._exit(7)
os.wait()
time.sleep(600)
"""


def test_orphans_are_reaped() -> None:
    """A process whose parent has gone becomes parsupd's child, and does not stay as a zombie when it ends."""
    units = f"[unit.orphaner]\ntype = 'simple'\nexec = ['python3', '-c', '''{ORPHANER}''']\nstdout = 'inherit'\n"
    with first_process(units) as (process, parsupd):
        assert process.stdout is not None
        assert process.stdout.readline() == "adopted\n"
        wait_until(lambda: len(children(parsupd)) == 1, what="the unit as parsupd's only child")
        assert "Z" not in {process_state(pid) for pid in children(parsupd)}
        os.kill(parsupd, signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_sigterm_reaches_the_units() -> None:
    """Stopping the container stops the units with their own signal, and it ends with 0: pid 1 has no default actions."""
    script = "trap 'echo stopped; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    units = f"[unit.polite]\ntype = 'simple'\nexec = ['sh', '-c', \"\"\"{script}\"\"\"]\nstdout = 'inherit'\n"
    with first_process(units) as (process, parsupd):
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.kill(parsupd, signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
        assert out == "stopped\n"
        assert process.returncode == 0


@pytest.mark.parametrize(("ends", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_the_container_ends_with_the_status_of_exit_with(ends: str, status: int) -> None:
    """The end of the unit that it is there for is the end of the container, with its status."""
    units = f"[unit.job]\ntype = 'oneshot'\nexec = ['sh', '-c', '{ends}']\nexit_with = true\nrestart = 'no'\n"
    with first_process(units) as (process, _):
        process.communicate(timeout=20)
        assert process.returncode == status


def test_the_container_file_runs_what_there_is() -> None:
    """Every file that it copies is in the checkout, its first process is parsupd, and parsupd knows the options."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "deploy" / "Containerfile").read_text())
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {"FROM", "COPY", "RUN", "ENV", "USER", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} == known
    for name, rest in steps:
        if name == "COPY" and not rest.startswith("--from=build"):
            source, target = shlex.split(rest)
            assert (ROOT / source).exists()
            assert target.startswith("/")
    last = dict(steps)  # the last of each name counts
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert last["USER"] != "root"
    entry, options = (json.loads(last[name]) for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["/opt/parsupd/bin/parsupd"]
    with click.Context(cli) as context:
        cli.parse_args(context, options)
