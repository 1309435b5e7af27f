"""Which functions are there in C: all of `workerlib/_speedups.c`, or none where that was not built.

Everything is there in Python as well, and does the same.
"""

from typing import TypeVar

F = TypeVar("F")

INTERFACE = 2
"""What the two languages know of each other; counted up with every change to it. What was built from an older checkout
is as good as nothing.
"""

try:
    import workerlib._speedups as built  # type: ignore[import-not-found]
except ImportError:
    built = None


def compiled(name: str, otherwise: F) -> F:
    """The function of that name in C; `otherwise`, its twin in Python, where there is none."""
    if built is None or getattr(built, "INTERFACE", None) != INTERFACE:
        return otherwise
    found: F = getattr(built, name)
    return found
