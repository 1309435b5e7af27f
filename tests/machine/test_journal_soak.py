"""Many workers, many records, restarts in between: what the journal has is what was said, once, in order.

A twentieth of the full number in `make test`; PARSUP_SOAK=1 (`make soak`) takes all: a million of each kind.
"""

import json
import os
import subprocess
import time
from array import array
from collections import defaultdict
from pathlib import Path

import pytest
from machine_process import Machine
from machine_service import SERVICE, Service, installed

WORKERS = 20
PER_WORKER = 50_000 if os.environ.get("PARSUP_SOAK") else 2_500
"""Structured records of each, and as many raw lines."""
AT_ONCE = 25
"""Records of each kind, before a worker lets journald catch up. One that did not would not wait, but lose, and say so, when
journald is slower than 20 workers; test_journal.py shows that.
"""

DISTURBANCES = 5
WITHIN_S = 600
"""Bounds a million records on a machine that has other things to do; a quiet one with two cores needs five and a half minutes."""

JOB = f"""
import os, threading
import workerlib

log = workerlib.get_logger()

class Writer(workerlib.Worker):
    async def init(self) -> None:
        threading.Thread(target=write, daemon=True).start()

def write() -> None:
    for number in range({PER_WORKER}):
        if number % {PER_WORKER // DISTURBANCES} == 0:
            open(f"at-{{number}}", "w").close()
        log.info("numbered", seq=number)
        os.write(1, b"raw %d\\n" % number)
        if number % {AT_ONCE} == 0:
            for thread in threading.enumerate():
                if thread.name == "journald":  # sends what journald did not take at once, and ends
                    thread.join()
    open(f"written-{{os.getpid()}}", "w").close()
"""

UNITS = f"""
[unit.writer]
type = "worker"
worker = "writer:Writer"
working_directory = "/srv/jobs"
instances = {WORKERS}
"""

FIELDS = "PARSUP_INSTANCE,PARSUP_EVENT,SYSLOG_IDENTIFIER,SEQ,MESSAGE,_PID"


def entries(machine: Machine) -> dict[tuple[str, str], "array[int]"]:
    """The numbers in the journal by instance and kind, in its order; read once, as it comes."""
    found: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("q"))
    command = ["journalctl", "--quiet", "--no-pager", "--output=json", f"--output-fields={FIELDS}"]
    machine.run("journalctl", "--sync")
    with subprocess.Popen([*machine.enter(timeout=500), *command], stdout=subprocess.PIPE) as reading:
        assert reading.stdout is not None
        for line in reading.stdout:
            entry = json.loads(line)
            event, name = entry.get("PARSUP_EVENT"), entry.get("SYSLOG_IDENTIFIER", "")
            if not name.startswith("writer@"):
                continue
            if event == "numbered":
                found[name, "structured"].append(int(entry["SEQ"]))
            elif event is None and entry["MESSAGE"].startswith("raw "):
                found[name, "raw"].append(int(entry["MESSAGE"][4:]))
            elif event == "records_lost":
                found[name, "lost"].append(1)
    return found


@pytest.mark.timeout(1200)
def test_nothing_is_lost_or_doubled_and_the_order_is_kept(machine: Machine) -> None:
    """Each record and each line of 20 workers is in the journal once and in order, over restarts and a kill of parsupd."""
    with installed(machine, UNITS, {"writer": JOB}) as service:
        began = time.monotonic()
        lives = service.lives()
        disturb(service, machine)
        assert service.lives() == lives, "a worker was replaced: its successor would begin again"
        wrote = time.monotonic() - began
        found = entries(machine)
        read = time.monotonic() - began - wrote
        expected = array("q", range(PER_WORKER))
        wrong = {
            key: (len(numbers), sorted(set(expected) - set(numbers))[:3])
            for number in range(1, WORKERS + 1)
            for kind in ("structured", "raw")
            if (numbers := found[key := (f"writer@{number}", kind)]) != expected
        }
        assert wrong == {}
        assert not [key for key in found if key[1] == "lost"]
        total = WORKERS * PER_WORKER
        print(f"{total} records and {total} lines in {wrote:.0f} s with {DISTURBANCES} restarts; read in {read:.0f} s")
    machine.run("journalctl", "--rotate", "--vacuum-size=1M")


def disturb(service: Service, machine: Machine) -> None:
    """Replaces parsupd, by restart and by kill -9 in turn, whenever the first worker has said so much more, until all have
    said all. What they did is told by files: a `journalctl --follow` would take of journald's time, and would
    wait in vain for a record that was lost.

    Not without a pause: parsupd's own starts would then take the time that journald needs.
    """
    folder = Path(f"/proc/{machine.pid}/root/srv/jobs")
    for times in range(DISTURBANCES):
        machine.wait_until((folder / f"at-{times * PER_WORKER // DISTURBANCES}").exists, within_s=WITHIN_S)
        before = service.show("MainPID")
        if times % 2:
            service.systemctl("kill", "--kill-who=main", "-s", "KILL", SERVICE)
        else:
            service.systemctl("restart", SERVICE)
        machine.wait_until(lambda old=before: service.show("MainPID") not in {old, "0"}, within_s=30)
        service.wait_active(f"{WORKERS} units: {WORKERS} ready")
    machine.wait_until(lambda: len(list(folder.glob("written-*"))) == WORKERS, within_s=WITHIN_S, what="all to be said")
