"""A worker's module whose import tells its pid on stderr and never ends."""

import os
import sys
import time

print(f"importing in {os.getpid()}", file=sys.stderr, flush=True)
time.sleep(600)
