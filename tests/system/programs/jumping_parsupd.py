"""A parsupd whose wall clock differs from the machine's by the seconds in a file: `jumping_parsupd.py FILE ...`.

What it reads at another time is another time, as if somebody had set the machine's clock, which a test may not do.
"""

import sys
import time
from pathlib import Path

from parsupd import app

offset = Path(sys.argv.pop(1))
real, real_ns = time.time, time.time_ns


def wall() -> float:
    return real() + float(offset.read_text())


def wall_ns() -> int:
    return real_ns() + int(offset.read_text()) * 10**9


time.time, time.time_ns = wall, wall_ns
app.main()
