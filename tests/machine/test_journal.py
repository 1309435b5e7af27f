"""Under a real systemd and journald: records with fields, output of units, and what becomes of both without journald."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
from machine_process import INSTALLED, Machine
from machine_service import SERVICE, Service, installed

from parsupd.core.messages import MESSAGE_IDS

JOB = """
import logging, os, sys, time
import workerlib
from workerlib import Worker, rpc

log = workerlib.get_logger(desk="rates")

class Talker(Worker):
    @rpc
    async def speak(self) -> int:
        print("plain")
        sys.stdout.flush()
        print("urgent", file=sys.stderr)
        print("<2>critical", file=sys.stderr)
        log.info("filled", order=5, note="two\\nlines", blob=b"\\0\\n\\xff")
        logging.getLogger("job").warning("from the %s library", "standard")
        try:
            raise KeyError("gone")
        except KeyError:
            log.exception("oops")
        return os.getpid()

    @rpc
    async def log_levels(self) -> None:
        for level in ("info", "warning", "error"):
            for number in range(3):
                getattr(log, level)(f"{level}-{number}")

    @rpc
    async def log_long(self, size: int) -> None:
        log.info("long", text="x" * size)

    @rpc
    async def log_many(self, first: int, count: int) -> float:
        began = time.monotonic()
        for number in range(first, first + count):
            log.info("many", seq=number, filler="x" * 200)
        return time.monotonic() - began
"""

UNITS = """
[unit.talker]
type = "worker"
worker = "talker:Talker"
working_directory = "/srv/jobs"

[unit.counter]
type = "simple"
exec = ["/bin/sh", "-c", "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.01; done"]

[unit.filer]
type = "simple"
stdout = "file"
exec = ["/bin/sh", "-c", "echo to a file; exec sleep 100000"]
"""

JOURNALD = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")


@pytest.fixture(scope="module")
def talker(machine: Machine) -> Iterator[Service]:
    """One service for the tests of this module: each looks only at what it has brought about."""
    with installed(machine, UNITS, {"talker": JOB}) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_inside() -> None:
    """In place of the folder's: the service is the module's."""


@pytest.fixture
def since(machine: Machine, talker: Service) -> str:
    """Where the journal ends when a test begins, as an option for journalctl.

    Not --after-cursor: together with matches it leaves out the first entry that matches.
    """
    last = int(machine.journal("--lines=1")[0]["__REALTIME_TIMESTAMP"])
    return f"--since=@{(last + 1) / 1e6:.6f}"


def journald_pid(machine: Machine) -> str:
    return machine.show("systemd-journald.service", "MainPID")["MainPID"]


def numbers(machine: Machine, since: str) -> list[int]:
    """What the program `counter` has printed since."""
    return [int(entry["MESSAGE"].split()[1]) for entry in machine.journal(since, "SYSLOG_IDENTIFIER=counter@1")]


def grows(machine: Machine, since: str, by: int = 20) -> None:
    """Waits until that many more lines of it have arrived."""
    so_far = len(numbers(machine, since))
    machine.wait_until(lambda: len(numbers(machine, since)) >= so_far + by, what="more lines of the counter")


def test_the_daemons_records_have_real_fields(talker: Service, since: str) -> None:
    """A unit's story is found by its name, with instance, life, event, reason, id, place in the code, and trusted pid."""
    talker.ctl("restart", "talker")
    entries = talker.machine.journal(since, "PARSUP_UNIT=talker", "SYSLOG_IDENTIFIER=parsupd")
    (ready,) = (entry for entry in entries if entry.get("MESSAGE_ID") == MESSAGE_IDS["unit_ready"])
    generation = talker.lives()["talker@1"][1]
    assert (
        ready.items()
        >= {
            "PARSUP_INSTANCE": "talker@1",
            "PARSUP_GENERATION": str(generation),
            "PARSUP_EVENT": "unit_changed",
            "PARSUP_OLD": "starting",
            "PARSUP_NEW": "running",
            "PARSUP_REASON": "it is ready",
            "PRIORITY": "6",
            "_TRANSPORT": "journal",
            "_SYSTEMD_UNIT": SERVICE,
            "_PID": talker.show("MainPID"),
        }.items()
    )
    assert ready["CODE_FILE"].endswith("chronicle.py")
    assert int(ready["CODE_LINE"]) > 1
    assert [entry["PARSUP_EVENT"] for entry in entries].count("unit_ended") == 1


def test_a_workers_records_are_its_own(talker: Service, since: str) -> None:
    """Job code logs fields of any form under the worker's pid, unit, instance, life and id; also by the standard library."""
    pid = int(talker.ctl("call", "talker@1", "speak"))
    entries = {entry.get("PARSUP_EVENT", entry["MESSAGE"]): entry
               for entry in talker.machine.journal(since, "PARSUP_INSTANCE=talker@1", "_TRANSPORT=journal")}  # fmt: skip
    filled, standard, oops = entries["filled"], entries["from the standard library"], entries["oops"]
    for entry in (filled, standard, oops):
        assert (
            entry.items()
            >= {
                "_PID": str(pid),
                "PARSUP_UNIT": "talker",
                "PARSUP_GENERATION": str(talker.lives()["talker@1"][1]),
                "SYSLOG_IDENTIFIER": "talker@1",
                "CODE_FILE": "/srv/jobs/talker.py",
                "CODE_FUNC": "speak",
            }.items()
        )
        assert entry["PARSUP_WORKER_ID"].startswith("talker-1-")
    assert (
        filled.items()
        >= {"DESK": "rates", "ORDER": "5", "NOTE": "two\nlines", "BLOB": [0, 10, 255], "PRIORITY": "6"}.items()
    )
    assert (standard["PRIORITY"], standard["LOGGER"]) == ("4", "job")
    assert oops["PRIORITY"] == "3"
    assert oops["MESSAGE"].endswith("KeyError: 'gone'")
    lines = oops["CODE_LINE"], filled["CODE_LINE"]
    assert int(lines[0]) > int(lines[1])


def test_a_record_of_any_length_arrives(talker: Service, since: str) -> None:
    """What no datagram holds goes through a sealed memory file."""
    talker.ctl("call", "talker@1", "log_long", "9000000")
    (entry,) = talker.machine.journal(since, "PARSUP_EVENT=long")
    assert entry["TEXT"] == "x" * 9_000_000
    assert entry["_PID"] == str(talker.lives()["talker@1"][0]) or entry["_PID"].isdigit()


def test_output_is_kept_by_the_name_of_the_instance(talker: Service, since: str) -> None:
    """stdout is info, stderr a warning, a prefix decides itself; the pid is that of who wrote."""
    pid = talker.ctl("call", "talker@1", "speak").strip()
    lines = talker.machine.journal(since, "SYSLOG_IDENTIFIER=talker@1", "_TRANSPORT=stdout")
    assert {(entry["MESSAGE"], entry["PRIORITY"], entry["_PID"]) for entry in lines} == {
        ("plain", "6", pid),
        ("urgent", "4", pid),
        ("critical", "2", pid),
    }


def test_output_neither_waits_for_nor_dies_with_the_daemon(talker: Service, since: str) -> None:
    """While parsupd is stopped, killed and restarted, every line of a program arrives, in order."""
    machine = talker.machine
    machine.run("systemctl", "kill", "--kill-who=main", "-s", "STOP", SERVICE)
    grows(machine, since)
    machine.run("systemctl", "kill", "--kill-who=main", "-s", "KILL", SERVICE)
    grows(machine, since)
    talker.wait_active()
    talker.systemctl("restart", SERVICE)
    grows(machine, since)
    got = numbers(machine, since)
    assert got == list(range(got[0], got[0] + len(got)))


def test_a_restart_of_journald_loses_nothing(talker: Service, since: str) -> None:
    """systemd keeps the streams and the socket for it: no line and no record is missing, and nobody is told of a loss."""
    machine = talker.machine
    talker.ctl("call", "talker@1", "log_many", "0", "100")
    grows(machine, since)
    machine.run("systemctl", "restart", "systemd-journald")
    talker.ctl("call", "talker@1", "log_many", "100", "100")
    grows(machine, since)
    got = numbers(machine, since)
    assert got == list(range(got[0], got[0] + len(got)))
    assert [int(entry["SEQ"]) for entry in machine.journal(since, "PARSUP_EVENT=many")] == list(range(200))
    assert machine.journal(since, "PARSUP_EVENT=records_lost") == []
    assert machine.journal(since, "PARSUP_EVENT=unit_output_lost") == []


def test_a_journald_that_hangs_stops_no_worker(talker: Service, since: str) -> None:
    """Records are kept, then counted; when journald goes on, what was kept and the number of the others arrive."""
    machine, count = talker.machine, 40_000
    machine.run("kill", "-STOP", journald_pid(machine))
    try:
        took = float(talker.ctl("call", "talker@1", "log_many", "0", str(count)))
        assert talker.ctl("call", "talker@1", "log_many", "0", "0").strip()  # it answers: its loop is free
    finally:
        machine.run("kill", "-CONT", journald_pid(machine))
    assert took < 20

    def told() -> int:
        return sum(int(entry["PARSUP_COUNT"]) for entry in machine.journal(since, "PARSUP_EVENT=records_lost"))

    machine.wait_until(told, within_s=30, what="the number of lost records")
    kept = [int(entry["SEQ"]) for entry in machine.journal(since, "PARSUP_EVENT=many")]
    assert kept == list(range(len(kept)))
    assert len(kept) + told() == count
    assert len(kept) > 1000


def test_a_journald_that_was_stopped_is_found_again(talker: Service, since: str) -> None:
    """Records without a journald are counted before the next one; lost streams are told of, and made anew by a restart."""
    machine = talker.machine
    talker.ctl("restart", "counter", "talker")  # a daemon holds only the streams that it has opened itself
    machine.run("systemctl", "stop", *JOURNALD)
    try:
        assert float(talker.ctl("call", "talker@1", "log_many", "0", "7")) < 5
    finally:
        machine.run("systemctl", "start", *JOURNALD)
    talker.ctl("call", "talker@1", "log_many", "7", "1")
    (lost,) = machine.journal(since, "PARSUP_EVENT=records_lost", "SYSLOG_IDENTIFIER=talker@1")
    assert (lost["PARSUP_COUNT"], lost["PRIORITY"], lost["MESSAGE_ID"]) == ("7", "4", MESSAGE_IDS["records_lost"])
    assert [entry["SEQ"] for entry in machine.journal(since, "PARSUP_EVENT=many")] == ["7"]
    talker.ctl("restart", "counter", "talker")
    grows(machine, since)

    # The record of the loss itself may have been in the socket that was closed with journald: it is told again.
    def told_again() -> bool:
        told = machine.journal(since, "PARSUP_EVENT=unit_output_again")
        return {(entry["PARSUP_INSTANCE"], entry["PARSUP_STREAM"]) for entry in told} >= {("counter@1", "stdout")}

    machine.wait_until(told_again, within_s=20, what="the stream that was made anew is told of")


def test_a_rate_limit_drops_and_says_so(talker: Service, since: str) -> None:
    """Where the operator limits the service's rate, journald drops and reports; a worker is not slower for it."""
    machine = talker.machine
    machine.write("/etc/systemd/system/parsupd.service.d/rate.conf",
                  "[Service]\nLogRateLimitIntervalSec=5s\nLogRateLimitBurst=200\n")  # fmt: skip
    talker.systemctl("daemon-reload")
    talker.systemctl("restart", SERVICE)
    talker.wait_active()
    try:
        assert float(talker.ctl("call", "talker@1", "log_many", "0", "5000")) < 10
        machine.wait_until(
            lambda: [entry for entry in machine.journal(since, "SYSLOG_IDENTIFIER=systemd-journald")
                     if re.fullmatch(r"Suppressed \d+ messages from parsupd.service", entry["MESSAGE"])],
            within_s=20,
            what="journald's own report",
        )  # fmt: skip
        assert len(machine.journal(since, "PARSUP_EVENT=many")) < 5000
    finally:
        machine.run("rm", "/etc/systemd/system/parsupd.service.d/rate.conf")
        talker.systemctl("daemon-reload")
        talker.systemctl("restart", SERVICE)
        talker.wait_active()


def test_records_are_explained(talker: Service, since: str) -> None:
    """`journalctl -x` shows the installed catalog's text, with the record's own values in it."""
    talker.ctl("restart", "talker")
    shown = talker.machine.run(
        "journalctl", "-x", "--no-pager", since, f"MESSAGE_ID={MESSAGE_IDS['unit_ready']}"
    ).stdout
    assert "Subject: talker@1 is ready" in shown
    assert "It does its work: it is ready." in shown
    known = talker.machine.run("journalctl", "--list-catalog", *MESSAGE_IDS.values()).stdout
    assert known.count("parsupd: ") == len(MESSAGE_IDS)


# parsupctl logs


def test_logs_shows_records_and_lines_of_a_unit(talker: Service, since: str) -> None:
    """What the daemon, the worker's loggers and its output say, in order; options choose."""
    generation = talker.ctl("restart", "talker") and talker.lives()["talker@1"][1]
    talker.ctl("call", "talker@1", "speak")
    text = talker.ctl("logs", "talker", "--generation", str(generation))
    told = [line[29:] for line in text.splitlines() if line[16:24] == "talker@1"]
    assert told[0].startswith("parsupd: starting: ")
    assert {"plain", "urgent", "critical", "from the standard library"} <= set(told)
    assert "lines  blob=b'\\x00\\n\\xff'" in text
    errors = [entry["message"].split()[0] for entry in lines_of(talker, "talker", "-n", "2", "-p", "err")]
    assert sorted(errors) == ["critical", "oops"]
    assert lines_of(talker, "talker@1", "--since", "+1h") == []
    (last,) = lines_of(talker, "counter", "-n", "1")
    assert (last["name"], last["unit"], last["priority"]) == ("counter@1", "counter", 6)
    assert last["message"].startswith("line ")


def lines_of(service: Service, *argv: str) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for line in service.machine.run(f"{INSTALLED}/bin/parsupctl", "logs", "--json", *argv).stdout.splitlines()
    ]


def test_logs_reads_files_as_the_journal(talker: Service) -> None:
    """A unit with stdout=file has its lines there, and what parsupd says about it in the journal: one command for both."""
    found = [(entry["by"], entry["message"]) for entry in lines_of(talker, "filer")]
    assert ("filer@1", "to a file") in found
    assert any(by == "parsupd" and "running" in str(message) for by, message in found)


OPTIONS = [
    ("--lines", "2"),
    ("--priority", "warning"),
    ("--since", "+1h"),
    ("--until", "+1h"),
    ("--generation", "1"),
    ("--generation", "2", "-n", "1"),
    ("-p", "err", "--since", "yesterday", "-n", "4"),
]


@pytest.mark.timeout(120)
def test_options_mean_the_same_for_the_journal_and_files(talker: Service) -> None:
    """What each option chooses of a worker's records is the same wherever they are kept."""
    machine = talker.machine
    unit = 'type = "worker"\nworker = "talker:Talker"\nworking_directory = "/srv/jobs"\n'
    talker.configure(f'{UNITS}\n[unit.injournal]\n{unit}\n[unit.infile]\n{unit}stdout = "file"\nstderr = "file"\n')
    talker.systemctl("reload", SERVICE)
    talker.ctl("call", "injournal", "log_levels")
    talker.ctl("call", "infile", "log_levels")
    talker.ctl("restart", "injournal", "infile")
    talker.ctl("call", "injournal", "log_levels")
    talker.ctl("call", "infile", "log_levels")

    def said(name: str, *options: str) -> list[str]:
        lines = lines_of(talker, name, *options)
        return [str(line["message"]).split()[0] for line in lines if line["by"] != "parsupd"]

    try:
        everything = [f"{level}-{number}" for level in ("info", "warning", "error") for number in range(3)]
        assert said("injournal") == everything * 2
        assert machine.exists("/var/lib/parsupd/logs/infile@1.log")
        found = {options: (said("infile", *options), said("injournal", *options)) for options in OPTIONS}
        assert {options: both for options, both in found.items() if both[0] != both[1]} == {}
        assert len({tuple(both[0]) for both in found.values()}) == len(OPTIONS)  # they do choose
    finally:
        talker.configure(UNITS)
        talker.systemctl("reload", SERVICE)


@pytest.mark.parametrize("end", ["interrupt", "nobody reads"])
def test_following_ends_cleanly(end: str, talker: Service) -> None:
    """Ctrl-C, and a reader that goes away, end it and what it has started, without a traceback."""
    machine = talker.machine
    before = set(machine.processes())
    following = subprocess.Popen(
        [*machine.enter(), f"{INSTALLED}/bin/parsupctl", "logs", "-f", "counter", "filer"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert following.stdout is not None
    assert following.stderr is not None
    with following:
        first = [following.stdout.readline() for _ in range(8)]
        assert any("counter@1    line " in line for line in first)
        ours = {pid: line for pid, line in machine.processes().items() if pid not in before}
        if end == "interrupt":
            for pid, line in ours.items():
                if "parsupctl" in line and "timeout" not in line:
                    signal_inside(pid)
        else:
            following.stdout.close()
        said = following.stderr.read()
        assert following.wait(20) == (130 if end == "interrupt" else 0)
    assert said.strip() == ""
    machine.wait_until(lambda: not set(ours) & set(machine.processes()), what="the end of journalctl and tail")


def signal_inside(pid: int) -> None:
    os.kill(pid, signal.SIGINT)


def test_logs_tells_what_is_wrong(talker: Service) -> None:
    """An unknown unit, no permission, and no journalctl are each one line and a status; a gone daemon is no hindrance."""
    ctl = f"{INSTALLED}/bin/parsupctl"
    machine = talker.machine
    unknown = machine.run(ctl, "logs", "talkr", check=False)
    assert (unknown.returncode, unknown.stderr) == (
        4,
        "parsupctl: no unit or instance 'talkr'; did you mean 'talker'?\n",
    )
    without = machine.run("env", f"PATH={INSTALLED}/bin", ctl, "logs", "talker", check=False)
    assert (without.returncode, without.stderr) == (
        1,
        "parsupctl: journalctl is not installed, and the journal is read with it\n",
    )
    other = machine.run(ctl, "logs", "talker", check=False, user="nobody")
    assert other.returncode != 0
    assert "Traceback" not in other.stderr
    talker.systemctl("stop", "parsupd.socket", SERVICE)
    try:
        gone = machine.run(ctl, "logs", "talker", "-n", "3", check=False)
        assert (gone.returncode, gone.stderr) == (0, "parsupctl: parsupd is not there; only the journal is read\n")
        assert len(gone.stdout.splitlines()) == 3
        nobody_knows = machine.run(ctl, "logs", "talkr", check=False)
        assert nobody_knows.returncode == 4
        assert nobody_knows.stderr.endswith("parsupctl: the journal knows of no unit 'talkr'\n")
    finally:
        talker.systemctl("start", SERVICE)
        talker.wait_active()
