"""Probes: when a question is asked, what the answers come to, and which values of their keys are refused."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsupd.core.probe import (
    Ask,
    Due,
    Effect,
    Event,
    Failed,
    GiveUp,
    Passed,
    StillFails,
    Verdict,
    begin,
    next_deadline,
    step,
)
from parsupd.core.probe_keys import Probe, probe, split_address, split_url
from parsupd.core.readers import BadValueError

TCP = Probe(tcp="127.0.0.1:80", interval_s=10, timeout_s=2, failure_threshold=2, success_threshold=2)
YES = Verdict(passes=True, reason="its tcp probe passes")
NO = Verdict(passes=False, reason="its tcp probe failed 2 times in a row: refused")

# name -> [(event, now, effects, next deadline)]
HISTORIES: dict[str, list[tuple[Event, float, tuple[Effect, ...], float]]] = {
    "it passes after two successes, and says so once": [
        (Due(), 0, (Ask(1),), 2),
        (Passed(1), 0.5, (), 10),
        (Due(), 10, (Ask(2),), 12),
        (Passed(2), 10.1, (YES,), 20),
        (Due(), 20, (Ask(3),), 22),
        (Passed(3), 20, (), 30),
    ],
    "a success between two failures starts the count anew": [
        (Due(), 0, (Ask(1),), 2),
        (Failed(1, "refused"), 0, (), 10),
        (Due(), 10, (Ask(2),), 12),
        (Passed(2), 10, (), 20),
        (Due(), 20, (Ask(3),), 22),
        (Failed(3, "refused"), 20, (), 30),
        (Due(), 30, (Ask(4),), 32),
        (Failed(4, "refused"), 30, (NO,), 40),
    ],
    "no answer is a failure, and comes too late afterwards": [
        (Due(), 0, (Ask(1),), 2),
        (Due(), 1.9, (), 2),
        (Due(), 2, (GiveUp(1),), 10),
        (Passed(1), 2.1, (), 10),
        (Due(), 10, (Ask(2),), 12),
        (
            Due(),
            12,
            (GiveUp(2), Verdict(passes=False, reason="its tcp probe failed 2 times in a row: no answer within 2 s")),
            20,
        ),
    ],
    "what was missed is not made up for": [
        (Due(), 0, (Ask(1),), 2),
        (Passed(1), 0, (), 10),
        (Due(), 86400, (Ask(2),), 86402),
        (Passed(2), 86401, (YES,), 86410),
    ],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories(name: str) -> None:
    """Each event gives exactly these effects."""
    state = begin(TCP, 0)
    for event, now, effects, deadline in HISTORIES[name]:
        state, found = step(state, event, now)
        assert found == effects, (event, now)
        assert next_deadline(state) == deadline, (event, now)


def test_it_waits_before_the_first_question() -> None:
    """`initial_delay_sec` counts for a new run, not for one that was taken over."""
    slow = Probe(tcp="/x", initial_delay_s=30)
    assert next_deadline(begin(slow, 100)) == 130
    assert next_deadline(begin(slow, 100, passes=True)) == 100


def test_a_run_that_was_taken_over_keeps_its_verdict() -> None:
    """Nothing is said while it goes on to pass."""
    state, _ = step(begin(TCP, 0, passes=True), Due(), 0)
    for attempt in (1, 2, 3):
        state, effects = step(state, Passed(attempt), 10.0 * attempt)
        assert effects == ()
        state, _ = step(state, Due(), 10.0 * attempt + 10)


def test_who_waits_for_it_asks_often_and_hears_each_new_answer() -> None:
    """Until it has passed once; then at its own pace."""
    state = begin(TCP, 0, eager=True)
    told, asked_at = [], []
    for answer in ("refused", "refused", "reset", "reset"):
        now = next_deadline(state) or 0.0
        asked_at.append(now)
        state, (ask,) = step(state, Due(), now)
        assert isinstance(ask, Ask)
        state, effects = step(state, Failed(ask.attempt, answer), now)
        told += [(type(effect), effect.reason) for effect in effects if isinstance(effect, StillFails | Verdict)]
    assert asked_at == [0, 0.05, pytest.approx(0.15), pytest.approx(0.35)]
    assert told == [
        (StillFails, "its tcp probe failed: refused"),
        (Verdict, "its tcp probe failed 2 times in a row: refused"),
        (StillFails, "its tcp probe failed 3 times in a row: reset"),
    ]
    for _ in range(2):
        at = next_deadline(state) or 0.0
        state, _ = step(state, Due(), at)
        state, effects = step(state, Passed(state.attempt), at)
    assert effects == (YES,)
    assert next_deadline(state) == at + 10


def test_a_verdict_that_was_taken_over_is_told_of_again_when_it_is_bad() -> None:
    """Whoever took it over learns of the answer, which may be another one by now."""
    state, _ = step(begin(TCP, 0, passes=False, eager=True), Due(), 0)
    assert step(state, Failed(1, "reset"), 1)[1] == (StillFails("its tcp probe failed: reset"),)


@given(st.lists(st.tuples(st.sampled_from(["due", "passed", "failed", "late"]), st.floats(0, 30)), max_size=60))
def test_whatever_happens_one_question_is_open_at_most(events: list[tuple[str, float]]) -> None:
    """Questions do not overlap, verdicts alternate, and there is always a next deadline."""
    state, now, opened, verdicts = begin(TCP, 0), 0.0, 0, []
    for kind, passed_s in events:
        now += passed_s
        event: Event = Due()
        if kind != "due":
            attempt = state.attempt - (kind == "late")
            event = Passed(attempt) if kind == "passed" else Failed(attempt, "x")
        before = state
        state, effects = step(state, event, now)
        if isinstance(event, Passed | Failed) and state != before:
            opened -= 1
        for effect in effects:
            match effect:
                case Ask():
                    opened += 1
                case GiveUp():
                    opened -= 1
                case Verdict(passes):
                    verdicts.append(passes)
        assert opened in {0, 1}
        assert next_deadline(state) is not None
    assert all(one != other for one, other in pairwise(verdicts))


GOOD: list[tuple[dict[str, Any], Probe]] = [
    ({"exec": ["/bin/true"]}, Probe(exec=("/bin/true",))),
    ({"tcp": "[::1]:80", "interval_sec": 1}, Probe(tcp="[::1]:80", interval_s=1)),
    ({"tcp": "/run/x.sock", "failure_threshold": 1}, Probe(tcp="/run/x.sock", failure_threshold=1)),
    ({"http": "http://127.0.0.1:8080/a?b=c"}, Probe(http="http://127.0.0.1:8080/a?b=c")),
    ({"rpc": "ping", "initial_delay_sec": 3}, Probe(rpc="ping", initial_delay_s=3)),
]
BAD: list[tuple[Any, str, str]] = [
    ([], "", "must be a table"),
    ({}, "", "exactly one of exec, tcp, http, rpc, and has none"),
    ({"tcp": "/x", "rpc": "ping"}, "", "and has tcp, rpc"),
    ({"tpc": "/x"}, ".tpc", "did you mean 'tcp'"),
    ({"exec": []}, ".exec", "empty"),
    ({"exec": ["x", 1]}, ".exec[1]", "string"),
    ({"tcp": "localhost:80"}, ".tcp", "IPv4:port"),
    ({"tcp": "127.0.0.1:65536"}, ".tcp", "IPv4:port"),
    ({"http": "https://127.0.0.1:80/"}, ".http", "must be"),
    ({"http": "http://127.0.0.1:80/ HTTP/1.1\r\nX: y"}, ".http", "must be"),
    ({"http": "http://example.org:80/"}, ".http", "looked up"),
    ({"rpc": "_private"}, ".rpc", "public function"),
    ({"tcp": "/x", "interval_sec": 0}, ".interval_sec", "more than 0"),
    ({"tcp": "/x", "timeout_sec": "1"}, ".timeout_sec", "number of seconds"),
    ({"tcp": "/x", "failure_threshold": 0}, ".failure_threshold", "whole number"),
]


@pytest.mark.parametrize(("value", "expected"), GOOD)
def test_good_tables_arrive(value: dict[str, Any], expected: Probe) -> None:
    """Each of the four questions, with its keys."""
    assert probe(value) == expected


@pytest.mark.parametrize(("value", "below", "words"), BAD)
def test_bad_tables_are_refused(value: Any, below: str, words: str) -> None:
    """With the key inside the table."""
    with pytest.raises(BadValueError) as caught:
        probe(value)
    assert caught.value.below == below
    assert words in str(caught.value)


def test_addresses_are_taken_apart() -> None:
    """As they are connected to."""
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert split_url("http://127.0.0.1:80") == ("127.0.0.1:80", "/")
    assert split_url("http://[::1]:80/a/b?c") == ("[::1]:80", "/a/b?c")
