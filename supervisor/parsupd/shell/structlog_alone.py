"""structlog, without rich: it would load that to draw tracebacks, which the daemon never has drawn.

With rich come 3.3 MiB of the daemon's own memory and 90 ms of its start. structlog does without it where it is not
installed, and so it is told here. Only the daemon does so: a worker's program may want what it finds.
"""

import sys

_is_there = "rich" in sys.modules
if not _is_there:
    sys.modules["rich"] = None  # type: ignore[assignment]  # what is None there cannot be imported
try:
    import structlog
    from structlog.processors import CallsiteParameter, CallsiteParameterAdder
finally:
    if not _is_there:
        del sys.modules["rich"]

__all__ = ["CallsiteParameter", "CallsiteParameterAdder", "structlog"]
