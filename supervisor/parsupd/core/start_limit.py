"""How many starts are allowed in a window of time. Layer 1.

A sliding window over the instants of the last starts, as `add_restart` of OTP's supervisor.erl has it (systemd's own
ratelimit has a fixed window, which lets twice the burst pass around its border). At most `burst` instants are kept.
"""


def admit(starts: tuple[float, ...], now: float, *, burst: int, interval_s: float) -> tuple[float, ...] | None:
    """Admits one more start at `now`.

    Args:
        starts: Instants of earlier starts, as this function returned them.
        now: The instant of this start.
        burst: Starts allowed in any `interval_s` seconds; 0 switches the limit off, as does an interval of 0.
        interval_s: Length of the window in seconds.

    Returns:
        The instants to keep, or None when the limit is hit.
    """
    if burst == 0 or interval_s == 0:
        return ()
    recent = tuple(at for at in starts if now - at < interval_s)
    return None if len(recent) >= burst else (*recent, now)


def retry_at(starts: tuple[float, ...], now: float, *, interval_s: float, not_within_s: float) -> float:
    """When a start may be tried again after one was not admitted: as soon as one would be, but not too soon."""
    return max(now + not_within_s, min(starts, default=now) + interval_s)
