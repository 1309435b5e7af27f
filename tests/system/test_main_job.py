"""`make run`: parsupd with etc/parsupd.toml counts the standard library, whatever happens to its workers."""

import json
import keyword
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from parsupd_process import PARSUPD, ROOT, Daemon, assert_nothing_left, parsupd
from support import wait_until

ETC = ROOT / "etc"
STDLIB = Path(sysconfig.get_path("stdlib"))


@dataclass
class Plain:
    """A plain count in this process, by code that shares nothing with etc/jobs."""

    files: int = 0
    lines: int = 0
    bytes: int = 0
    names: Counter[str] = field(default_factory=Counter)

    def ranked(self) -> dict[str, int]:
        by_name = sorted(self.names.items())
        return dict(sorted(by_name, key=lambda item: item[1], reverse=True)[:20])


def plain_count(paths: Iterable[Path]) -> Plain:
    found = Plain()
    for path in paths:
        found.files += 1
        found.bytes += path.stat().st_size
        with path.open(encoding="latin-1", newline=None) as text:
            found.lines += sum(1 for _ in text)
        with path.open("rb") as file, suppress(SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            for kind, text, *_ in tokenize.tokenize(file.readline):
                if kind == tokenize.NAME and text not in keyword.kwlist:
                    found.names[text] += 1
    return found


def standard_library() -> list[Path]:
    found = []
    for folder, folders, files in os.walk(STDLIB):
        folders[:] = [name for name in folders if name not in {"site-packages", "dist-packages"}]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return found


def figures(table: str) -> dict[str, int]:
    """The lines "label  1,234" of the printed report."""
    lines = re.findall(
        r"^  (files|lines|bytes|files by \S+|files given to another worker) +([\d,]+)\s*$", table, re.MULTILINE
    )
    return {label: int(number.replace(",", "")) for label, number in lines}


def identifiers(table: str) -> dict[str, int]:
    """The identifiers of the printed report: two columns of pairs, read downwards."""
    rows = re.findall(r"^ +(\w+) +([\d,]+) +(\w+) +([\d,]+) *$", table, re.MULTILINE)
    pairs = [(row[0], row[1]) for row in rows] + [(row[2], row[3]) for row in rows]
    return {name: int(count.replace(",", "")) for name, count in pairs}


def check_the_readmes_sample(stdout: str, records: list[dict[str, object]]) -> None:
    """The README shows the same table, and only transitions that this run had too."""
    sample = (ROOT / "README.md").read_text().partition("<!-- output of make run -->")[2].partition("\n```\n")[0]
    assert figures(sample).keys() == figures(stdout).keys()
    assert (
        list(identifiers(sample))[:1] == list(identifiers(stdout))[:1]
    )  # distributions leave out parts of the library
    happened = {(record["unit"], record["new"], record["reason"]) for record in records if "new" in record}
    shown = re.findall(r"^[\d:]+ (\w+@\d) +(\w+) +(.+)$", sample, re.MULTILINE)
    assert {line for line in shown if line[1] != "ended"} <= happened


@pytest.mark.timeout(400)
def test_the_main_job_counts_the_standard_library() -> None:
    """The real command on the real configuration: counts as in one process, by both workers; status 0; nothing left."""
    with parsupd(ETC / "parsupd.toml") as daemon:
        expected = plain_count(standard_library())
        status, stdout, stderr = daemon.finish(within_s=300)
        assert_nothing_left(daemon.runtime)
    assert status == 0, stderr
    found = figures(stdout)
    assert (found["files"], found["lines"], found["bytes"]) == (expected.files, expected.lines, expected.bytes)
    assert identifiers(stdout) == expected.ranked()
    assert list(identifiers(stdout)) == list(expected.ranked())
    by_worker = [found["files by corpus@1"], found["files by corpus@2"]]
    assert min(by_worker) > 0
    assert sum(by_worker) == expected.files
    assert "files given to another worker" not in found
    records = [json.loads(line) for line in stderr.splitlines()]
    changes = [(record["unit"], record["new"]) for record in records if record["event"] == "unit_changed"]
    assert changes.index(("report@1", "starting")) > changes.index(("corpus@1", "running"))
    assert changes.index(("report@1", "starting")) > changes.index(("corpus@2", "running"))
    assert changes.index(("corpus@1", "stopping")) > changes.index(("report@1", "exited"))
    assert {("corpus@1", "dead"), ("corpus@2", "dead")} <= set(changes)
    assert [record for record in records if record["level"] != "info"] == []
    check_the_readmes_sample(stdout, records)


# On files of its own, and with --json

LOAD = 100


@pytest.fixture
def some_files(tmp_path: Path) -> Path:
    """Enough to count for a few seconds, with every kind of file that cannot be read to its end."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(LOAD):
        shutil.copy(STDLIB / "argparse.py", folder / f"copy{number}.py")
    (folder / "empty.py").write_bytes(b"")
    (folder / "no_newline_at_the_end.py").write_bytes(b"first = 1\r\nsecond = first")
    (folder / "syntax.py").write_bytes(b"before = 1\nx = (\n")
    (folder / "encoding.py").write_bytes(b"# coding: no-such\nname = 1\n")
    (folder / "bytes.py").write_bytes(b"before = 1\n\xff\xfe = 2\n")
    return folder


def configuration(folder: Path, *arguments: str, stdout: str = "inherit") -> Path:
    """The configuration of etc/ with other arguments for the report."""
    text = (ETC / "units.d" / "report.toml").read_text()
    text = text.replace('"report.py"', json.dumps(["report.py", *arguments])[1:-1])
    text = text.replace('"../jobs"', json.dumps(str(ETC / "jobs"))).replace('"inherit"', json.dumps(stdout))
    main = folder / "main.toml"
    main.write_text(f"[parsupd]\ninclude = [{json.dumps(str(ETC / 'units.d' / 'corpus.toml'))}]\n{text}")
    return main


def cpu_s(pid: int) -> float:
    """Seconds of processor time of a process so far."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def workers_that_count(daemon: Daemon, *names: str) -> list[int]:
    """The pids of workers, as soon as all of them are in the middle of their work."""
    pids = [int(worker["pid"]) for worker in daemon.wait_active(*names)]
    idle_s = {pid: cpu_s(pid) for pid in pids}
    wait_until(lambda: all(cpu_s(pid) > idle_s[pid] + 0.3 for pid in pids), within_s=30, what=f"{names} at work")
    return pids


def check_json(output: str, folder: Path) -> dict[str, object]:
    expected = plain_count(folder.iterdir())
    found = json.loads(output)
    assert (found["files"], found["lines"], found["bytes"]) == (expected.files, expected.lines, expected.bytes)
    assert found["identifiers"] == expected.ranked()
    assert sum(found["by_worker"].values()) == expected.files
    assert {Path(path).name for path in found["problems"]} == {"syntax.py", "encoding.py", "bytes.py"}
    return dict(found)


@pytest.mark.timeout(200)
def test_a_worker_killed_in_the_middle_costs_a_retry(tmp_path: Path, some_files: Path) -> None:
    """kill -9 of one worker while it counts: no file is lost or counted twice, its successor works too, nothing is left."""
    with parsupd(configuration(tmp_path, "--json", str(some_files))) as daemon:
        [pid] = workers_that_count(daemon, "corpus@1")
        os.kill(pid, signal.SIGKILL)
        status, stdout, stderr = daemon.finish(within_s=120)
        assert_nothing_left(daemon.runtime)
    assert status == 0, stderr
    found = check_json(stdout, some_files)
    assert found["retried"] != 0
    endings = [json.loads(line) for line in stderr.splitlines() if '"unit_ended"' in line]
    assert [(end["unit"], end["cause"]) for end in endings if end["restart"]] == [("corpus@1", "was killed by SIGKILL")]


@pytest.mark.timeout(200)
def test_all_workers_killed_in_the_middle(tmp_path: Path, some_files: Path) -> None:
    """kill -9 of both workers at once: the report waits for their successors, and the counts are right."""
    with parsupd(configuration(tmp_path, "--json", str(some_files))) as daemon:
        for pid in workers_that_count(daemon, "corpus@1", "corpus@2"):
            os.kill(pid, signal.SIGKILL)
        status, stdout, stderr = daemon.finish(within_s=120)
        assert_nothing_left(daemon.runtime)
    assert status == 0, stderr
    check_json(stdout, some_files)


def test_the_exit_status_is_the_reports(tmp_path: Path) -> None:
    """A report that fails gives parsupd its exit status, and says why; the workers are stopped all the same."""
    (tmp_path / "nothing").mkdir()
    with parsupd(configuration(tmp_path, str(tmp_path / "nothing"))) as daemon:
        status, stdout, stderr = daemon.finish()
        assert_nothing_left(daemon.runtime)
    assert (status, stdout) == (1, "")
    assert "there is no Python file in" in stderr


def test_ctrl_c_stops_everything(tmp_path: Path, some_files: Path) -> None:
    """SIGINT in the middle: the report is stopped before its workers, the status says it did not finish, nothing is left."""
    with parsupd(configuration(tmp_path, "--json", str(some_files))) as daemon:
        workers_that_count(daemon, "corpus@1")
        daemon.process.send_signal(signal.SIGINT)
        status, stdout, stderr = daemon.finish()
        assert_nothing_left(daemon.runtime)
    assert stdout == ""
    assert "Traceback" not in stderr
    changes = [json.loads(line) for line in stderr.splitlines() if '"unit_changed"' in line]
    order = [(change["unit"], change["new"]) for change in changes]
    assert order.index(("corpus@1", "stopping")) > order.index(("report@1", "dead"))
    assert status == 0


# The configuration


@pytest.mark.parametrize("path", sorted(ETC.glob("*.toml")), ids=lambda path: path.name)
def test_the_configuration_is_valid(path: Path) -> None:
    """Each main file in etc/, with the unit files that it includes, passes `parsupd --check`."""
    done = subprocess.run([PARSUPD, "--check", "--config", str(path)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    units = sum(len(tomllib.loads(file.read_text())["unit"]) for file in (ETC / "units.d").glob("*.toml"))
    assert f"{units} units, no problem found" in done.stdout


# Other clients


@pytest.fixture
def corpus(tmp_path: Path) -> Iterable[Daemon]:
    """A parsupd with the corpus unit only."""
    with parsupd(ETC / "units.d" / "corpus.toml") as daemon:
        daemon.wait_active("corpus")
        yield daemon
        status, _, stderr = daemon.stop()
        assert status == 0, stderr
        assert_nothing_left(daemon.runtime)


@pytest.mark.parametrize("serializer", ["serpent", "json", "marshal", "msgpack"])
def test_a_stock_client_works_unmodified(corpus: Daemon, tmp_path: Path, serializer: str) -> None:
    """Pyro5's own Proxy finds the workers in the name server and calls their functions, with each of its serializers."""
    file = tmp_path / "short.py"
    file.write_text("one = two = one\n")
    counts = {"path": str(file), "lines": 1, "bytes": 16, "identifiers": {"one": 2, "two": 1}, "problem": ""}
    program = Path(__file__).parent / "programs" / "stock_client.py"
    command = [sys.executable, str(program), corpus.socket, serializer, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["names"]) == {"Pyro.NameServer", "parsup.Supervisor", "corpus@1", "corpus@2"}
    assert found["by_tag"] == ["corpus@1", "corpus@2"]
    assert found["uri_type"] == "Pyro5.core.URI"
    assert found["uri"] == found["names"]["corpus@1"]
    assert found["count"] == counts
    assert found["count_all"]["identifiers"] == {"one": 4, "two": 2}
    assert found["count_each"] == [counts, counts]
    assert found.get("batch", [counts, counts]) == [counts, counts]
    assert found["wrong_argument"][0] == "TypeError"
    assert "Corpus.count" in found["wrong_argument"][1]
    assert found["wrong_argument"][2]  # the remote traceback
    assert found["no_such_function"] == "AttributeError"
    assert found["no_such_name"] == "Pyro5.errors.NamingError"


def test_a_name_lives_and_dies_with_readiness(corpus: Daemon) -> None:
    """A killed worker's name goes away at once and comes back, with a new URI, when its successor is ready."""
    before = corpus.ask("list", "corpus@", of="Pyro.NameServer")
    [worker] = corpus.ask("status", ["corpus@1"])
    os.kill(worker["pid"], signal.SIGKILL)
    after = wait_until(
        lambda: (
            (now := corpus.ask("list", "corpus@", of="Pyro.NameServer")).get("corpus@1") != before["corpus@1"] and now
        )
    )
    assert after["corpus@2"] == before["corpus@2"]
    corpus.wait_active("corpus@1")
    [again] = corpus.ask("status", ["corpus@1"])
    assert again["generation"] == 2
    assert again["uri"] == corpus.ask("list", "corpus@", of="Pyro.NameServer")["corpus@1"]
