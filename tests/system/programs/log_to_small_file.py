"""Logs to a file that may have 100 bytes, and then to the same file when it may have more."""

import os
import resource
import signal
import sys

from parsupd.core.units import LogFormat
from parsupd.shell import journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
log = journal.configure(LogFormat.JSON, os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
log.info("x" * 200)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.info("last")
