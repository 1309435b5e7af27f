"""When to look at the memory of a unit next, and whether it takes too much. Layer 1.

Nobody tells when a process takes more memory, so that it must be looked at: rarely while it is far from its limit, and
often when it is near. A unit that doubles its memory between two looks is found late by one interval.
"""

NEAR_S, FAR_S = 0.5, 10.0
"""Between two looks: at the limit, and far below it."""


def interval_s(rss: int, limit: int) -> float:
    """How long to wait until the next look at a unit that takes `rss` bytes and may take `limit`."""
    free = max(0.0, 1 - rss / limit) if limit else 0.0
    return NEAR_S + (FAR_S - NEAR_S) * min(1.0, 2 * free * free)


def complaint(rss: int, limit: int) -> str:
    """Why a unit takes too much; empty when it does not."""
    if rss <= limit:
        return ""
    return f"it takes {rss >> 20} MiB of memory, and max_rss is {limit >> 20} MiB"
