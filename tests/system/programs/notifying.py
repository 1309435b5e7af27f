"""A program that does what its arguments say, one after the other, and says on NOTIFY_SOCKET what they tell it to.

`send:TEXT` · `child-send:TEXT` (from a child that is gone then) · `main` (a child goes on as the main process; this one
ends) · `barrier` · `touch:PATH` · `append:PATH:TEXT` · `wait:PATH` (until it is there) · `pid:PATH` · `daemon` (forks
twice, and the first process ends) · `ignore:SIGNAL` · `on-hup:TEXT;TEXT` · `beat:SECONDS` (WATCHDOG=1 for ever) ·
`exit:CODE` · at the end it sleeps.
"""

import os
import select
import signal
import socket
import sys
import time
from pathlib import Path


def send(text: str, *, fd: int | None = None) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        data = text.replace("%p", str(os.getpid())).replace(",", "\n").encode()
        if fd is None:
            sock.send(data)
        else:
            socket.send_fds(sock, [data], [fd])


def barrier() -> None:
    out, into = os.pipe()
    send("BARRIER=1", fd=into)
    os.close(into)
    if not select.select([out], [], [], 10)[0]:
        sys.exit("nobody has come to the barrier")
    os.close(out)


def in_child(text: str) -> None:
    pid = os.fork()
    if pid == 0:
        send(text)
        barrier()
        os._exit(0)
    os.waitpid(pid, 0)


def become_daemon() -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)


def wait_for(path: str) -> None:
    give_up_at = time.monotonic() + 30
    while not Path(path).exists() and time.monotonic() < give_up_at:
        time.sleep(0.01)


def reload(texts: str) -> None:
    for text in texts.split(";"):
        send(text)


def do(step: str) -> None:
    word, _, rest = step.partition(":")
    match word:
        case "send":
            send(rest)
        case "child-send":
            in_child(rest)
        case "barrier":
            barrier()
        case "main":
            parent, child = os.getpid(), os.fork()
            if child:
                send(f"MAINPID={child}")
                os._exit(0)
            while os.getppid() == parent:
                time.sleep(0.01)
        case "touch":
            Path(rest).touch()
        case "append":
            path, _, text = rest.partition(":")
            with Path(path).open("a") as file:
                file.write(text.replace("%p", str(os.getpid())) + "\n")
        case "wait":
            wait_for(rest)
        case "pid":
            Path(rest).write_text(f"{os.getpid()}\n")
        case "daemon":
            become_daemon()
        case "ignore":
            signal.signal(getattr(signal, rest), signal.SIG_IGN)
        case "on-hup":
            signal.signal(signal.SIGHUP, lambda *_: reload(rest))
        case "beat":
            while True:
                send("WATCHDOG=1")
                time.sleep(float(rest))
        case "exit":
            os._exit(int(rest))
        case _:
            sys.exit(f"what is {step!r}?")


for argument in sys.argv[1:]:
    do(argument)
while True:
    signal.pause()
