"""A worker whose module starts others while it is imported, and then spoils the spawn."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from workerlib import Worker

if note := os.environ.get("NOTE"):
    forked = os.fork()
    if forked == 0:
        os.setsid()
        signal.pause()
    started = subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    Path(note).write_text(f"{forked} {started}")
    if os.environ["SPOIL"] == "exit":
        os._exit(3)
    if os.environ["SPOIL"] == "hang":
        signal.pause()
    sys.stderr.write("going on\n")


class Early(Worker):
    async def init(self) -> None:
        raise ValueError("not today")
