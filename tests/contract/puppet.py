"""A process that does what a test tells it over a Unix socket: `puppet.py SOCKET`. It says its pid first.

`fork` · `setsid` · `exit CODE` · `ignore SIGNAL` · `thread` (says the number of one) · `start NAME=VALUE…` (another
puppet with just that environment, in a session of its own) · `take PID NAME=VALUE…` (the same with that pid) · `reap`
(takes the exit of a child). All but `exit` answer with one line.
"""

import ctypes
import os
import signal
import socket
import sys
import threading

CLONE3 = 435  # of all architectures
ME = [sys.executable, "-S", "-E", *sys.argv]


class CloneArgs(ctypes.Structure):
    """See clone3(2)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal"),
            *("stack", "stack_size", "tls", "set_tid", "set_tid_size"),
        )
    ]


def connect() -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    found.connect(sys.argv[1])
    found.sendall(f"{os.getpid()}\n".encode())
    return found


def start(pid: int, environment: list[str]) -> str:
    wanted = ctypes.c_int(pid)
    args = CloneArgs(exit_signal=signal.SIGCHLD)
    if pid:
        args.set_tid, args.set_tid_size = ctypes.addressof(wanted), 1
    libc = ctypes.CDLL(None, use_errno=True)
    child = libc.syscall(CLONE3, ctypes.byref(args), ctypes.sizeof(args))
    if child == 0:
        os.setsid()
        os.execve(ME[0], ME, dict(each.split("=", 1) for each in environment))
    return "ok" if child > 0 else os.strerror(ctypes.get_errno())


def do(line: str) -> str:
    global connection
    word, *rest = line.split()
    match word:
        case "fork":
            child = os.fork()
            if child == 0:
                connection.close()
                connection = connect()
                return ""
        case "setsid":
            os.setsid()
        case "exit":
            os._exit(int(rest[0]))
        case "ignore":
            signal.signal(int(rest[0]), signal.SIG_IGN)
        case "thread":
            thread = threading.Thread(target=signal.pause, daemon=True)
            thread.start()
            return str(thread.native_id)
        case "start":
            return start(0, rest)
        case "take":
            return start(int(rest[0]), rest[1:])
        case "reap":
            os.wait()
    return "ok"


connection = connect()
while line := connection.recv(4096).decode():
    if answer := do(line):
        connection.sendall(f"{answer}\n".encode())
