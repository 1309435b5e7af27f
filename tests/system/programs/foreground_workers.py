"""Workers that are spawned in the foreground."""

import asyncio
import os
import signal
import subprocess
import sys
import time

from workerlib import Worker, rpc

if os.environ.get("SPOIL") == "import":
    print("this module is broken on purpose", file=sys.stderr, flush=True)
    sys.exit(3)
if os.environ.get("SPOIL") == "hang at import":
    print("it is imported", flush=True)
    time.sleep(600)


class Talker(Worker):
    async def init(self, chatter: int = 0) -> None:
        if os.environ.get("SPOIL") == "init":
            os.kill(os.getpid(), signal.SIGKILL)
        for n in range(chatter):
            print(f"{n:07} {'x' * 100}", flush=True)
        if os.environ.get("SPOIL") == "hang":
            print("init runs", flush=True)
            await asyncio.Event().wait()

    @rpc
    async def say(self, text: str) -> None:
        print(text)
        print(text.upper(), file=sys.stderr)

    @rpc
    async def facts(self) -> dict[str, str]:
        umask = os.umask(0)
        os.umask(umask)
        return {
            "pid": str(os.getpid()),
            "ppid": str(os.getppid()),
            "session": str(os.getsid(0)),
            "group": str(os.getpgid(0)),
            "cwd": os.getcwd(),
            "umask": oct(umask),
            "colour": os.environ.get("COLOUR", ""),
            "marker": os.environ.get("WORKERLIB_WORKER", "cleared"),
            "stdin": os.readlink("/proc/self/fd/0"),
        }

    @rpc
    async def leave_a_child(self) -> int:
        """A grandchild that holds the pipes and outlives the worker."""
        return subprocess.Popen(["sleep", "600"]).pid
