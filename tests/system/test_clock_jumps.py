"""Somebody sets the wall clock, by a day to and fro: nothing happens but what cron's times say."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from live_daemon import PROGRAMS, Daemon, assert_nothing_left, simple

from parsupd import scheduling
from parsupd.core import effects as do
from parsupd.core import events as told
from parsupd.core.cron import cron
from parsupd.core.fleet import Fleet
from parsupd.core.units import Configuration, DaemonSettings, ExitCause, UnitSpec, UnitType
from parsupd.scheduling import Schedules
from workerlib.testing import FakeClock

DAY = 86400
NOON = datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC).timestamp()
JUMPING = str(PROGRAMS / "jumping_parsupd.py")
UNITS = f"""
[unit.steady]
{simple("exec sleep 600", runtime_max_sec=3600)}
liveness = {{ exec = ["true"], interval_sec = 0.05 }}
[unit.late]
{simple("exec sleep 600", type="notify", timeout_start_sec=3600)}
[unit.backoff]
{simple("exit 1", restart_sec=3600, restart_max_delay_sec=3600)}
[unit.often]
{simple("exit 1", restart_sec=0, restart_steps=0, start_limit_burst=2, start_limit_interval_sec=3600, start_limit_action="slow-retry")}
[unit.planned]
{simple("true", type="oneshot", schedule_every_sec=3600)}
"""


def seen(running: Daemon) -> list[tuple[Any, ...]]:
    names = ("name", "sub_state", "pid", "generation", "restarts")
    return [tuple(info[name] for name in names) for info in running.call("status")]


def test_nothing_happens(tmp_path: Path) -> None:
    """Restart delays, start limits, timeouts, intervals and probes are of another clock: no unit starts, ends or waits
    longer; instants are shown by the new time, and a parsupd that comes after a kill -9 agrees.
    """
    offset = tmp_path / "offset"
    offset.write_text("0")
    running = Daemon(tmp_path, UNITS, start=False)
    running.start(sys.executable, JUMPING, str(offset))
    try:
        running.wait_for("steady@1", lambda status: status["sub_state"] == "running")
        running.wait_for("backoff@1", lambda status: status["sub_state"] == "backoff")
        running.wait_for("often@1", lambda status: status["sub_state"] == "backoff" and status["generation"] == 2)
        before = seen(running)
        assert {name: state for name, state, *_ in before} == {
            "steady@1": "running", "late@1": "starting", "backoff@1": "backoff", "often@1": "backoff", "planned@1": "dead",
        }  # fmt: skip
        for jump in (DAY, -DAY, 0):
            offset.write_text(str(jump))
            for _ in range(3):
                running.call("reload")
                running.call("restart", ["planned"])
            assert [each for each in seen(running) if each[0] != "planned@1"] == before[:4]
            for shown in (running.call("info")["started"], running.status("steady@1")["since"]):
                assert abs(shown - time.time() - jump) < 60
            due = running.call("why", "backoff")[0]["next_attempt_at"], running.status("planned@1")["next_run_at"]
            assert all(0 < at - time.time() - jump <= 3600 for at in due)
        events = [event["event"] for event in running.records() if event["event"].startswith("unit_")]
        assert "unit_unkillable" not in events
        offset.write_text(str(DAY))
        running.kill()
        running.start(sys.executable, JUMPING, str(offset))
        assert [each for each in seen(running) if each[0] != "planned@1"] == before[:4]
    finally:
        assert running.stop() == 0
    assert_nothing_left(running)


class Sky:
    """A fleet with one scheduled unit whose runs end at once, under a wall clock that somebody sets."""

    def __init__(self, clock: FakeClock, spec: UnitSpec) -> None:
        self.clock, self.set_by = clock, 0.0
        self.runs: list[float] = []
        self.fleet = Fleet(Configuration(DaemonSettings(), {spec.name: spec}))

    def wall(self) -> float:
        return NOON + self.clock.now + self.set_by

    def feed(self, event: Any) -> None:
        for effect in self.fleet.handle(event, self.clock.now):
            if isinstance(effect, do.Spawn):
                self.runs.append(self.clock.now)
                names = effect.instance, effect.generation
                self.feed(told.Spawned(*names, 100))
                self.feed(told.Exited(*names, ExitCause.exited(0)))
                self.feed(told.GroupEmpty(*names))


class Silent:
    def info(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize(("jump", "at_once"), [(DAY, 1), (-DAY, 0), (400 * DAY, 1), (-400 * DAY, 0)])
def test_a_schedule_by_the_wall_clock(jump: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set forward, what was missed is made up for once, within the minute; set back, nothing runs at once, and the next
    full hour is the next one.
    """
    clock = FakeClock()

    async def scenario() -> None:
        sky = Sky(clock, UnitSpec(name="job", type=UnitType.ONESHOT, exec=("true",), schedule=cron("0 * * * *")))
        monkeypatch.setattr(scheduling.time, "time", sky.wall)
        schedules = Schedules(sky.fleet, sky.feed, Silent())
        schedules.follow()
        await clock.advance(2 * 3600)
        assert len(sky.runs) == 2
        sky.set_by = jump
        await clock.advance(61)
        assert len(sky.runs) == 2 + at_once
        await clock.advance(3600 - 61)
        assert len(sky.runs) == 3 + at_once
        sky.set_by = 0.0
        await clock.advance(24 * 3600)
        made_up = 0 if jump > 0 else 1  # to set it right again is a jump the other way
        assert len(sky.runs) == 3 + at_once + made_up + 24
        schedules.close()

    clock.run(scenario())


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_schedule_by_an_interval(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not look at the wall."""
    clock = FakeClock()

    async def scenario() -> None:
        sky = Sky(clock, UnitSpec(name="job", type=UnitType.ONESHOT, exec=("true",), schedule_every_s=100.0))
        monkeypatch.setattr(scheduling.time, "time", sky.wall)
        schedules = Schedules(sky.fleet, sky.feed, Silent())
        schedules.follow()
        for set_by in (0.0, jump, 0.0, -jump):
            sky.set_by = set_by
            await clock.advance(250)
        assert sky.runs == [100.0 * number for number in range(1, 11)]
        schedules.close()

    clock.run(scenario())
