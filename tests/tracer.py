"""A process that traces another one, as strace and debuggers do, and is in no hurry."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

TRACER = """
import ctypes, os, sys
SEIZE = 0x4206
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
done = libc.ptrace(SEIZE, pid, None, None)
print(os.strerror(ctypes.get_errno()) if done else "seized", flush=True)
sys.stdin.read()
os.waitpid(pid, 0)
"""


@contextlib.contextmanager
def tracing(pid: int) -> Iterator["subprocess.Popen[str]"]:
    """A tracer that looks at what has become of the process when its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", TRACER, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stdout is not None
        said = tracer.stdout.readline().strip()
        if said != "seized":
            pytest.skip(f"no process can be traced here: {said}")
        yield tracer
