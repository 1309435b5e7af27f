"""A program that daemonizes itself, in the way that its first argument names.

    daemonize_program.py SCENARIO FOLDER [ARGUMENT...]

It reports through stderr and through files in FOLDER; it stops where a test wants it at a FIFO of that folder. Nothing
here sleeps.
"""

import asyncio
import atexit
import contextlib
import gc
import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

SCENARIO, FOLDER, ARGUMENTS = sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3:]

if SCENARIO == "high_descriptor":
    # python-daemon takes the hard limit when it is imported; a descriptor may be above it.
    os.dup2(os.open("/dev/zero", os.O_RDONLY), 900)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

from workerlib.core.daemonizing import DaemonizeError  # noqa: E402
from workerlib.redirects import Redirect  # noqa: E402
from workerlib.shell import detach  # noqa: E402
from workerlib.shell.detach import daemonize_wait  # noqa: E402

OUT, ERR = Redirect.append(str(FOLDER / "out")), Redirect.append(str(FOLDER / "err"))


def say(text):
    os.write(2, f"{text}\n".encode())


def write(name, value):
    """Writes a file in one step, so that who sees it sees all of it."""
    (FOLDER / f"{name}.part").write_text(json.dumps(value))
    (FOLDER / f"{name}.part").rename(FOLDER / name)


def stop_at(gate):
    """Reports the pid in the file `gate`, then blocks until the test opens the gate.

    A signal that Python handles wakes it up: one that comes just before a blocking read would wait for the read's end.
    """
    fifo = FOLDER / f"{gate}.fifo"
    if not fifo.exists():
        os.mkfifo(fifo)
    fds = [os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), *os.pipe2(os.O_NONBLOCK)]
    before = signal.set_wakeup_fd(fds[2])
    write(gate, os.getpid())
    while fds[0] not in select.select(fds[:2], [], [])[0]:
        os.read(fds[1], 100)
    signal.set_wakeup_fd(before)
    for fd in fds:
        os.close(fd)


def facts():
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "terminal": int(stat[4]),
        "cwd": str(Path.cwd()),
        "umask": int(status["Umask"], 8),
        "blocked": int(status["SigBlk"], 16),
        "ignored": int(status["SigIgn"], 16),
        "handlers": {
            name: str(signal.getsignal(getattr(signal, name)))
            for name in ("SIGTERM", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGINT", "SIGHUP", "SIGCHLD")
        },
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "users": os.getresuid(),
        "groups": os.getresgid(),
        "supplementary": os.getgroups(),
        "contexts": sum(isinstance(thing, detach.daemon.DaemonContext) for thing in gc.get_objects()),
        "fds": {int(fd.name): str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists()},
    }


def report_and_release(**arguments):
    """The plainest daemon: its facts before and after, and a release in between."""
    write("before", facts())
    release = daemonize_wait(**arguments)
    write("facts", facts())
    release(OUT, ERR)
    print("printed", flush=True)
    print("complained", file=sys.stderr, flush=True)
    write("after", facts())


def facts_only():
    report_and_release()


def held():
    """Stops before it releases."""
    arguments = {"parent_pid": int(ARGUMENTS[0])} if ARGUMENTS else {}
    release = daemonize_wait(**arguments)
    say("held")
    stop_at("announced")
    release(OUT, ERR)
    say("late")


def launch():
    """Starts another program of this kind and stays alive; the test kills it."""
    subprocess.Popen([sys.executable, __file__, *(ARGUMENTS or ["held"]), str(FOLDER), str(os.getpid())])
    stop_at("launcher")


def live():
    release = daemonize_wait()
    for number in range(3):
        print(f"line {number}", file=sys.stderr)
        stop_at(f"line{number}")
    release(OUT, ERR)
    print("late", file=sys.stderr)


def output():
    print("from before")
    release = daemonize_wait()
    print("unheard")
    os.write(1, b"unheard, unbuffered\n")
    print("buffered when released", end="")
    release(OUT, ERR)
    print("heard")
    os.write(2, b"error\n")


def redirect():
    kinds = {"append": Redirect.append, "truncate": Redirect.truncate}
    name_out, name_err = "out", ARGUMENTS[1]
    release = daemonize_wait()
    release(kinds[ARGUMENTS[0]](str(FOLDER / name_out)), kinds[ARGUMENTS[0]](str(FOLDER / name_err)))
    for number in range(3):
        os.write(1, b"out %d\n" % number)
        os.write(2, b"err %d\n" % number)


def relative_redirect():
    release = daemonize_wait(cd=str(FOLDER))
    release(Redirect.append("out"), Redirect.dev_null())
    print("heard")
    print("unheard", file=sys.stderr)


def end():
    how = ARGUMENTS[0]
    daemonize_wait()
    if how.startswith("SIG"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.raise_signal(getattr(signal, how))
    if how == "raise":
        raise LookupError("nothing found")
    sys.exit(int(how))


def grandchild():
    """Leaves a child, forked without exec, that holds the pipe and stderr open, and ends with 7."""
    daemonize_wait(parent_pid=int(ARGUMENTS[0]) if ARGUMENTS else None)
    if os.fork() == 0:
        stop_at("grandchild")
        os._exit(0)
    stop_at("daemon")
    os._exit(7)


def orphans():
    """Children of the daemon, re-parented to the foreground process, end in their own ways before the release."""
    release = daemonize_wait()
    pids = []
    for status in (0, 9):
        reading, writing = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.close(reading)
                os.write(writing, b"%d" % os.getpid())
                os._exit(status)
            os._exit(0)
        os.waitpid(middle, 0)
        pids.append(int(os.read(reading, 20)))
    write("orphans", pids)
    stop_at("daemon")
    release(OUT, ERR)


def bystander():
    """A child from before daemonize_wait ends, with a status of its own, while the daemon is held."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(9)
    release = daemonize_wait(preserve_fds=[writing])
    os.write(writing, b"x")
    stop_at("daemon")
    release(OUT, ERR)


def late_exit():
    """A child of the foreground process ends right after the foreground process has looked for such."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    reading, writing = os.pipe()
    bystander = os.fork()
    if bystander == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(9)
    reap = detach.process.reap

    def interrupted():
        nonlocal writing
        exits = reap()
        if writing and (FOLDER / "daemon").exists():
            os.close(writing)
            writing = 0
            os.waitid(os.P_PID, bystander, os.WEXITED | os.WNOWAIT)
        return exits

    detach.process.reap = interrupted
    release = daemonize_wait()
    stop_at("daemon")
    release(OUT, ERR)


def all_at_once():
    """The foreground process finds a signal, the announcement, the release and the exit in one look."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    reap, catch_signals = detach.process.reap, detach._catch_signals

    def late():
        while not (FOLDER / "daemon").exists():
            select.select([], [], [], 0.005)
        os.waitid(os.P_PID, json.loads((FOLDER / "daemon").read_text()), os.WEXITED | os.WNOWAIT)
        return reap()

    def catch_one():
        reading = catch_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        return reading

    detach.process.reap, detach._catch_signals = late, catch_one
    release = daemonize_wait()
    write("daemon", os.getpid())
    release(OUT, ERR)
    os._exit(3)


def release_and_exit():
    """The daemon releases and ends just before the foreground process looks for exits."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    reading, writing = os.pipe()
    reap = detach.process.reap

    def late():
        if (FOLDER / "daemon").exists():
            os.write(writing, b"x")
            os.waitid(os.P_PID, json.loads((FOLDER / "daemon").read_text()), os.WEXITED | os.WNOWAIT)
        return reap()

    detach.process.reap = late
    release = daemonize_wait(preserve_fds=[reading])
    write("daemon", os.getpid())
    os.read(reading, 1)
    release(OUT, ERR)
    os._exit(3)


def much():
    release = daemonize_wait()
    for _ in range(10 * 16):
        sys.stderr.write("x" * 65535 + "\n")
    release(OUT, ERR)


def arguments():
    report_and_release(**json.loads(ARGUMENTS[0]))


def umask():
    os.umask(0o151)
    report_and_release()


def terminal():
    """Starts with a controlling terminal."""
    os.setsid()
    _, slave = os.openpty()
    os.close(os.open(os.ttyname(slave), os.O_RDWR))
    write("terminal", facts()["terminal"])
    report_and_release()


def refuse(attempt):
    try:
        attempt()
    except DaemonizeError as error:
        say(f"refused: {error}")
    except OSError as error:
        say(f"failed: {error}")


def threads():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="other")
    thread.start()
    refuse(daemonize_wait)
    stop.set()
    thread.join()


def loop():
    async def main():
        refuse(daemonize_wait)

    asyncio.run(main())
    os.close(os.open("/dev/null", os.O_RDONLY))


def after_a_loop():
    async def main():
        pass

    asyncio.run(main())
    report_and_release()


def closed_descriptor():
    refuse(lambda: daemonize_wait(preserve_fds=[77]))


def no_fork():
    """The system refuses the fork: an error like any other, after which the process is as before."""
    fork, os.fork = os.fork, lambda: (_ for _ in ()).throw(BlockingIOError(11, "no more processes"))
    before = facts()
    refuse(daemonize_wait)
    os.fork = fork
    write("same", {key: (before[key], value) for key, value in facts().items() if before[key] != value})


def twice():
    release = daemonize_wait()
    release(Redirect.append(str(FOLDER / "first")), Redirect.append(str(FOLDER / "first")))
    refuse(lambda: release(OUT, ERR))


def other_thread():
    release = daemonize_wait()
    thread = threading.Thread(target=refuse, args=(lambda: release(OUT, ERR),))
    thread.start()
    thread.join()
    if os.fork() == 0:
        refuse(lambda: release(OUT, ERR))
        os._exit(0)
    os.wait()
    release(OUT, ERR)
    write("after", facts())


def bad_redirect():
    """One file can be opened and would be truncated, the other cannot."""
    release = daemonize_wait()
    try:
        release(Redirect.truncate(str(FOLDER / "out")), Redirect.append(str(FOLDER / "missing" / "err")))
    except OSError as error:
        say(f"failed: {error}")
        say(f"stdout is {Path('/proc/self/fd/1').readlink()}")
    if ARGUMENTS == ["again"]:
        release(OUT, ERR)
    elif ARGUMENTS != ["caught"]:
        release(Redirect.truncate(str(FOLDER / "out")), Redirect.append(str(FOLDER / "missing" / "err")))


def handles():
    """Ends with 5 on any of the signals, by a handler from before."""

    def handler(signum, _frame):
        say(f"got {signal.Signals(signum).name}")
        os._exit(5)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, handler)
    daemonize_wait()
    stop_at("announced")


def signals():
    """Starts with a mask and dispositions of its own, all of which the daemon must find again."""
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1, signal.SIGHUP})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report_and_release()


def child_signal_ignored():
    """The foreground process begins to look only after its first child has exited."""
    follow = detach._follow

    def late(state, pipe, parent_pid):
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, state.first_child, os.WEXITED | os.WNOWAIT)
        return follow(state, pipe, parent_pid)

    detach._follow = late
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    release = daemonize_wait()
    release(OUT, ERR)


STAGES = {
    "first_child": (detach, "_detach", "before"),
    "leader_before_setsid": (os, "setsid", "before"),
    "leader": (os, "setsid", "after"),
    "daemon": (detach, "_wait_for_adoption", "before"),
    "adopted": (detach, "_wait_for_adoption", "after"),
    "protected": (detach.process, "set_parent_death_signal", "after"),
    "cleared": (detach.process, "clear_parent_death_signal", "after"),
}


def stage():
    """Stops at the stage of detaching that the argument names."""
    where, name, when = STAGES[ARGUMENTS[0]]
    real = getattr(where, name)

    def hooked(*arguments):
        if when == "before":
            stop_at(ARGUMENTS[0])
        result = real(*arguments)
        if when == "after":
            stop_at(ARGUMENTS[0])
        return result

    setattr(where, name, hooked)
    release = daemonize_wait()
    if ARGUMENTS[1:] == ["hold"]:
        stop_at("hold")
    release(OUT, ERR)
    write("escaped", os.getpid())
    stop_at("for_ever")


def failing():
    """One of the helpers dies in its own way; a child from before has died of something else."""
    who, how = ARGUMENTS
    bystander = os.fork()
    if bystander == 0:
        os._exit(9)
    os.waitid(os.P_PID, bystander, os.WEXITED | os.WNOWAIT)

    def fail(*_arguments):
        if how == "kill":
            signal.raise_signal(signal.SIGKILL)
        raise OSError(1, "as the test wanted")

    if who == "first_child":
        detach.daemon.daemon.change_file_creation_mask = fail
    elif who == "leader":
        os.setsid = fail
    else:
        detach.daemon.daemon.set_signal_handlers = fail
    daemonize_wait()


def exits():
    """Notes each process that runs an atexit function, and leaves text in the buffers."""
    atexit.register(lambda: (FOLDER / f"atexit.{os.getpid()}").touch())
    print("once")
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)))
    sys.stderr.write("twice?\n")
    report_and_release()


def preserve():
    reading, writing = os.pipe()
    other = os.open("/dev/zero", os.O_RDONLY)
    release = daemonize_wait(preserve_fds=[writing])
    write("facts", {**facts(), "reading": reading, "writing": writing, "other": other})
    release(OUT, ERR)


def high_descriptor():
    report_and_release()


def dropped():
    """Has given up root for a while; user 0 is still the real one."""
    os.setgroups([7, 8])
    os.setresgid(0, 65534, 0)
    os.setresuid(0, 65534, 0)
    report_ids()


def raised():
    """Like a set-user-id program: the effective user is root, the real one is not."""
    os.setgroups([7, 8])
    os.setresgid(65534, 0, 0)
    os.setresuid(65534, 0, 0)
    report_ids()


def report_ids():
    """To stderr: the folder of the test may not be open to the user."""

    def ids():
        return [os.getresuid(), os.getresgid(), sorted(os.getgroups())]

    say(json.dumps(ids()))
    other = os.open("/dev/zero", os.O_RDONLY)
    release = daemonize_wait()
    say(json.dumps(ids()))
    refuse(lambda: os.fstat(other))
    release(Redirect.dev_null(), Redirect.dev_null())


def core():
    resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    report_and_release()


def no_stream_objects():
    """sys.stdout is an object of the program's own, without a descriptor."""
    sys.stdout = io.StringIO()
    report_and_release()


def other_stream_objects():
    """sys.stderr is a log file of the program's own: another descriptor than 2."""
    log = (FOLDER / "log").open("w")
    sys.stderr = log
    release = daemonize_wait(preserve_fds=[log.fileno()])
    say("on descriptor 2")
    print("in the log", file=sys.stderr, flush=True)
    release(OUT, ERR)


globals()[SCENARIO]()
