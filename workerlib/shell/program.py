"""How this process was started, and so how another one like it is."""

import os
import re
import sys

from workerlib.core.config import WorkerCommand
from workerlib.errors import UsageError

_OPTIONS = re.compile(r"-(?=.)([^XWmc-]*)(?:([XWmc])(.*))?", re.DOTALL)
"""One argument with options of the interpreter: flags, and at its end perhaps an option with a value."""


def interpreter_command() -> list[str]:
    """This process's interpreter with its options: what `python -X dev -W error script.py` had before the script."""
    options: list[str] = []
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument == "--check-hash-based-pycs":
            options += [argument, next(arguments, "")]
        elif argument.startswith("--") and argument != "--":
            options.append(argument)
        elif (cluster := _OPTIONS.fullmatch(argument)) is not None:
            flags, last, value = cluster.groups(default="")
            if last in {"X", "W"}:  # what follows in the same argument is the value, else the next argument is
                options += [argument] if value else [argument, next(arguments, "")]
                continue
            if flags := flags.replace("i", ""):  # a worker has nobody to be interactive with
                options.append(f"-{flags}")
            if last:  # -m or -c: the program
                break
        else:
            break
    return [sys.executable, *options]


def absolute_sys_path() -> list[str]:
    """Where this process imports from, for a worker that works in another directory."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed: nothing can be imported from it
        return [entry for entry in sys.path if os.path.isabs(entry)]
    return [os.path.join(here, entry) if entry else here for entry in sys.path]


def program_command(*words: str, pass_name: bool = True) -> WorkerCommand:
    """How this process was started, up to and including its script or `-m module`, with `words` in the place of the
    program's arguments.

    Raises UsageError for a program that came from stdin or a keyboard: nobody can start it again.
    """
    if sys.argv[:1] in ([], [""], ["-"]):
        raise UsageError("this program was read from stdin, so it cannot be started again as its worker: use a file")
    own = len(sys.argv) - 1
    try:
        here = os.getcwd()
    except FileNotFoundError:
        here = None
    argv = (sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - own], *words)
    return WorkerCommand(argv, here, pass_name)
