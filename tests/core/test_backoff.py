"""Backoff: systemd's geometric steps, and the reset that systemd lacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsupd.core.backoff import delay_s, restarts_after_run


def test_delays_grow_geometrically_to_the_maximum() -> None:
    """With steps n, the i-th delay is r_0 * (r_n / r_0) ** (i / n)."""
    delays = [delay_s(i, first_s=0.1, steps=5, max_s=30) for i in range(8)]
    assert delays == pytest.approx([0.1, 0.31296, 0.97942, 3.06516, 9.59269, 30, 30, 30], rel=1e-3)


@pytest.mark.parametrize(
    ("first_s", "steps", "max_s"), [(2.0, 0, 30.0), (0.0, 5, 30.0), (30.0, 5, 30.0), (60.0, 5, 30.0)]
)
def test_without_room_to_grow_the_delay_is_constant(first_s: float, steps: int, max_s: float) -> None:
    """No steps, no first delay, or a maximum that is not above it."""
    assert {delay_s(i, first_s=first_s, steps=steps, max_s=max_s) for i in range(10)} == {first_s}


@given(st.integers(0, 10_000), st.floats(0, 100), st.integers(0, 1000), st.floats(0, 1000))
def test_a_delay_is_between_first_and_maximum(in_row: int, first_s: float, steps: int, max_s: float) -> None:
    """Never below the first delay, never above the larger of both, never shrinking."""
    delay = delay_s(in_row, first_s=first_s, steps=steps, max_s=max_s)
    assert first_s * 0.999 <= delay <= max(first_s, max_s) * 1.001
    assert delay <= delay_s(in_row + 1, first_s=first_s, steps=steps, max_s=max_s) * 1.001


def test_a_stable_run_is_forgiven() -> None:
    """Exactly at the limit counts as stable."""
    assert restarts_after_run(4, ran_s=59.9, reset_after_s=60) == 4
    assert restarts_after_run(4, ran_s=60, reset_after_s=60) == 0
