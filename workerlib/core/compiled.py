"""The C part of workerlib: all of it, or none where it was not built. Everything is there in Python as well."""

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
    """The function of that name in C; `otherwise`, what serves in its place, where there is no C part."""
    if not is_there():
        return otherwise
    found: F = getattr(built, name)
    return found


def is_there() -> bool:
    """Whether there is a C part, and it is that of this checkout."""
    return built is not None and getattr(built, "INTERFACE", None) == INTERFACE
