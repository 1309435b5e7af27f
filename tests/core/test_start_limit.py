"""Start limit: a sliding window."""

from hypothesis import given
from hypothesis import strategies as st

from parsupd.core.start_limit import admit


def test_the_burst_is_admitted_and_one_more_is_not() -> None:
    """Five starts in ten seconds pass, the sixth is refused."""
    starts: tuple[float, ...] | None = ()
    for now in range(5):
        starts = admit(starts, float(now), burst=5, interval_s=10)
        assert starts is not None
    assert admit(starts, 5.0, burst=5, interval_s=10) is None


def test_the_window_slides() -> None:
    """A start is forgotten exactly `interval_s` after it, not when some fixed window ends."""
    starts = (0.0, 9.0)
    assert admit(starts, 9.999, burst=2, interval_s=10) is None
    assert admit(starts, 10.0, burst=2, interval_s=10) == (9.0, 10.0)


def test_zero_switches_the_limit_off() -> None:
    """Burst 0 or interval 0 admits everything and remembers nothing."""
    assert admit((), 1.0, burst=0, interval_s=10) == ()
    assert admit((), 1.0, burst=5, interval_s=0) == ()


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(1, 5), st.floats(0.1, 10))
def test_no_window_ever_holds_more_than_the_burst(gaps: list[float], burst: int, interval_s: float) -> None:
    """Whatever the instants: admitted starts keep the limit, and what is remembered is bounded."""
    now, starts, admitted = 0.0, (), []
    for gap in gaps:
        now += gap
        kept = admit(starts, now, burst=burst, interval_s=interval_s)
        if kept is not None:
            starts = kept
            admitted.append(now)
        assert len(starts) <= burst
    for at in admitted:
        assert sum(at <= other and other - at < interval_s for other in admitted) <= burst
