"""The brake on restarts: the bucket, who waits, what is said; and the fleet with it."""

import math

from fleet_stage import Stage, unit, up
from hypothesis import given
from hypothesis import strategies as st

from parsupd.core.brake import Bucket
from parsupd.core.events import DeadlineReached, Reconfigure, Start, StartDefault, Stop
from parsupd.core.units import Configuration, DaemonSettings, ExitCause

CRASH = ExitCause.exited(1)


@given(st.integers(1, 50), st.floats(0.1, 100), st.lists(st.floats(0, 10), max_size=100))
def test_never_more_than_the_burst_and_what_has_come_back(burst: int, interval_s: float, waits: list[float]) -> None:
    """Whoever asks when: in all the time, burst and one for each burst-th part of the interval; and the promise holds."""
    bucket, now, taken = Bucket(burst, interval_s), 5.0, 0
    for wait in waits:
        now += wait
        taken += bucket.take(now)
        assert taken <= burst + (now - 5.0) * burst / interval_s + 1e-3
        at = bucket.has_at(1)
        assert at == now or Bucket.take(bucket, at)
        taken += at != now
        now = max(now, at)


def test_a_bucket_can_be_switched_off() -> None:
    """By no burst, or no interval."""
    assert Bucket(0, 10).whole(1.0) == Bucket(5, 0).whole(1.0) == math.inf


def crowd(count: int = 6, **settings: float) -> Stage:
    """So many units; 3 restarts within 30 s are allowed."""
    daemon = {"restart_storm_burst": 3, "restart_storm_interval_s": 30.0, **settings}
    return up(*(unit(f"u{n}") for n in range(count)), **daemon)


def crash_all(stage: Stage, count: int = 6) -> list[str]:
    for n in range(count):
        stage.down(f"u{n}@1", CRASH)
    return stage.do(DeadlineReached(), after_s=0.1)


def test_a_storm_is_held_back_and_told_once() -> None:
    """The burst goes at once, the others one by one in their order; when it is over, that is told, too."""
    stage = crowd()
    assert crash_all(stage) == ["spawn u0@1", "spawn u1@1", "spawn u2@1", "storm"]
    assert stage.fleet.status("u3")[0].reason == "its backoff is over; waits for the brake on restarts"
    assert stage.fleet.storm == "restart storm: 3 restarts within 30 s are reached, and 3 wait for their turn"
    said = []
    while stage.fleet.next_deadline() is not None:
        for n in range(6):
            if stage.states()[f"u{n}@1"] == "starting" and f"up {n}" not in said:
                stage.up(f"u{n}@1")
                said.append(f"up {n}")
        stage.now = stage.fleet.next_deadline()
        said += [f"{word} at {stage.now:g}" for word in stage.do(DeadlineReached())]
    assert [word for word in said if "up" not in word] == [
        "spawn u3@1 at 10.1", "spawn u4@1 at 20.1", "spawn u5@1 at 30.1", "calm at 45.1",
    ]  # fmt: skip
    assert stage.fleet.storm == ""
    (why,) = stage.fleet.why("u4")
    assert "its backoff is over; held back for 20 s by the brake on restarts" in [entry.reason for entry in why.story]


def test_starts_that_somebody_asks_for_are_not_held_back() -> None:
    """Neither the first ones nor those in a storm; and who is stopped does not wait any more."""
    stage = Stage(*(unit(f"u{n}") for n in range(6)), restart_storm_burst=1)
    assert len(stage.do(StartDefault())) == 6
    stage = crowd()
    crash_all(stage)
    assert stage.do(Start("u5")) == ["spawn u5@1"]
    stage.do(Stop("u3"))
    assert stage.fleet.storm.endswith("1 wait for their turn")
    assert stage.do(DeadlineReached(), after_s=10) == ["spawn u4@1"]


def test_a_unit_that_fails_alone_is_not_slowed_down() -> None:
    """With the defaults, and the quickest restarts that they give."""
    stage = up(unit("a", start_limit_burst=0, restart_steps=0))
    for _ in range(2000):
        stage.down("a@1", CRASH)
        assert stage.do(DeadlineReached(), after_s=0.1) == ["spawn a@1"]
        stage.up("a@1")


def test_other_settings_count_at_once() -> None:
    """A reload that switches the brake off lets everybody go."""
    stage = crowd()
    crash_all(stage)
    units = stage.fleet.configuration.units
    off = Reconfigure(Configuration(DaemonSettings(restart_storm_burst=0), units))
    assert stage.do(off) == ["spawn u3@1", "spawn u4@1", "spawn u5@1"]
    assert stage.fleet.next_deadline() <= stage.now
    assert stage.do(DeadlineReached()) == ["calm"]
