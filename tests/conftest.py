"""Every test is checked for what it leaves by workerlib's own plugin: see `workerlib_no_leaks` in pyproject.toml."""

import os
import sys

pytest_plugins = ["pytester"]

# Each of the many programs that tests start would compile all of our modules again: a third of the time of all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
