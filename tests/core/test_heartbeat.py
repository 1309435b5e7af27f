"""The heartbeat as histories: at each instant, whether something was heard, and the verdict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerlib.core.heartbeat import Heartbeat, Verdict

FINE, ASK, LOST = Verdict.FINE, Verdict.ASK, Verdict.LOST

# Interval 10, timeout 30, started at 0.
HISTORIES: dict[str, list[tuple[float, bool, Verdict]]] = {
    "asked at each interval": [
        (9.9, False, FINE),
        (10, False, ASK),
        (19.9, True, FINE),
        (20, True, ASK),
        (30, True, ASK),
    ],
    "lost one interval after the timeout": [
        (10, False, ASK),
        (20, False, ASK),
        (30, False, ASK),
        (39.9, False, FINE),
        (40, False, LOST),
    ],
    "saved by its last chance": [
        (10, False, ASK),
        (20, False, ASK),
        (30, False, ASK),
        (40, True, ASK),
        (50, False, ASK),
    ],
    "the timeout starts anew after a sign of life": [
        (10, False, ASK),
        (20, True, ASK),
        (30, False, ASK),
        (40, False, ASK),
        (50, False, ASK),
        (60, False, LOST),
    ],
    "this process was stopped for an hour: the peer still has its last chance": [
        (10, True, ASK),
        (3610, False, ASK),
        (3619, True, FINE),
        (3620, True, ASK),
    ],
    "stopped for an hour, and nobody answers": [(3610, False, ASK), (3620, False, LOST)],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories(name: str) -> None:
    """The verdict at each instant is as told."""
    beat = Heartbeat.start(10, 30, 0)
    for now, heard, expected in HISTORIES[name]:
        beat, verdict = beat.step(now, heard=heard)
        assert verdict is expected, f"at {now}"


@given(st.lists(st.tuples(st.floats(0.1, 50), st.booleans()), max_size=40))
def test_a_peer_is_lost_only_after_silence_for_the_timeout_and_a_question(steps: list[tuple[float, bool]]) -> None:
    """Never lost while it was heard within the timeout, and never without having been asked before."""
    beat, now, heard_at, asked, heard = Heartbeat.start(10, 30, 0), 0.0, 0.0, False, False
    for pause, something_came in steps:
        now += pause
        if something_came:
            heard, heard_at = True, now
        due = now >= beat.due_at
        beat, verdict = beat.step(now, heard=heard)
        if verdict is LOST:
            assert now - heard_at >= 30
            assert asked
            return
        assert (verdict is ASK) == due
        heard = heard and not due  # the session forgets what it has told
        asked = asked or verdict is ASK
