"""A process and its child, which both note in a file which signals they get: `signals_noted.py FILE [stay]`.

They end at the first one, unless they are to stay.
"""

import os
import signal
import sys
from pathlib import Path

NOTED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def note(who: str, what: str) -> None:
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{who} {what}\n")


def on_signal(signum: int, _frame: object) -> None:
    note(me, signal.Signals(signum).name)
    if "stay" not in sys.argv:
        os._exit(0)


signal.pthread_sigmask(signal.SIG_BLOCK, NOTED)
me = "main" if os.fork() else "child"
for each in NOTED:
    signal.signal(each, on_signal)
note(me, "up")
signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTED)
while True:
    signal.pause()
