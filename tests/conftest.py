"""Every test is checked for what it leaves by workerlib's own plugin: see `workerlib_no_leaks` in pyproject.toml."""

import os
import signal
import sys

pytest_plugins = ["pytester"]

# Each of the many programs that tests start would compile all of our modules again: a third of the time of all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# In the background of a shell, this process ignores Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
