"""The first process of a pid namespace, in which a unit's pid becomes a stranger's while parsupd is down.

`reusing_pids.py FOLDER leader|thread`: starts parsupd there, kills it and its unit, gives the pid away, starts
parsupd again, stops it, and prints what it saw as JSON.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from live_daemon import Daemon, simple
from support import process_state, wait_until

from workerlib.shell import process

folder, kind = Path(sys.argv[1]), sys.argv[2]


def stranger(pid: int) -> None:
    """Leads a session and a group of its own, as a daemon does."""
    if (child := os.fork()) == 0:
        os.setsid()
        while True:
            signal.pause()
    assert child == pid, f"{child} is not {pid}"
    wait_until(lambda: os.getpgid(pid) == pid, what="it leads a group")


def thread(pid: int) -> None:
    found = threading.Thread(target=threading.Event().wait, daemon=True)
    found.start()
    assert found.native_id == pid, f"{found.native_id} is not {pid}"


def ticks_since_boot() -> int:
    return round(float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK"))


running = Daemon(folder, f"[unit.a]\n{simple('exec sleep 600', restart_sec=0)}")
first = running.wait_for("a@1", lambda status: status["sub_state"] == "running")
started = process.start_time(first["pid"])
running.kill()
os.kill(first["pid"], signal.SIGKILL)
os.waitpid(first["pid"], 0)  # it has become ours
# A process is known by its pid and the tick of the clock in which it was started: the next one must be of a later tick,
# which any is that comes when all other numbers have been used.
wait_until(lambda: ticks_since_boot() > started, what="the clock has ticked")
# The next process or thread gets that number: nobody else is here to take it.
Path("/proc/sys/kernel/ns_last_pid").write_text(str(first["pid"] - 1))
(stranger if kind == "leader" else thread)(first["pid"])
running.start()
second = running.wait_for("a@1", lambda status: status["sub_state"] == "running" and status["generation"] == 2)
why = running.call("why", "a")[0]["incarnations"]
stopped = running.stop()
seen = {
    "first": first["pid"],
    "second": second["pid"],
    "stopped": stopped,
    "stranger": process_state(first["pid"]),
    "causes": [life["cause"] for life in why],
}
print(json.dumps(seen), flush=True)
os._exit(0)  # at which the kernel ends whoever is left here
