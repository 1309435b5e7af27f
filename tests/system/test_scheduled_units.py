"""Units that their schedule starts, with real programs."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live_daemon import daemon, simple
from support import wait_until


def unit(script: str, **keys: Any) -> str:
    return "[unit.job]\n" + simple(script, type="oneshot", **keys)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_it_runs_every_so_often_and_not_before(tmp_path: Path) -> None:
    """A scheduled unit is not started with the others, runs again and again, and says when it comes next."""
    out = tmp_path / "out"
    with daemon(tmp_path, unit(f"echo run >>{out}", schedule_every_sec=0.3)) as parsupd:
        status = parsupd.status("job@1")
        assert status["next_run_at"] is not None
        assert abs(status["next_run_at"] - time.time()) < 60
        wait_until(lambda: len(lines(out)) >= 3, what="three runs")
        first = parsupd.records("unit_changed")[0]
        assert "its schedule: every 0.3 s" in first["reason"]


def test_a_cron_time_is_shown(tmp_path: Path) -> None:
    """In status, why and the reason; nothing has run so far."""
    with daemon(tmp_path, unit("true", schedule="0 0 1 1 *")) as parsupd:
        (status,) = parsupd.call("why", "job")
        assert status["sub_state"] == "dead"
        assert time.localtime(status["next_run_at"])[1:6] == (1, 1, 0, 0, 0)
        assert "next run at" in status["reason"]


def test_units_with_jitter_do_not_start_together(tmp_path: Path) -> None:
    """Those of one cron time are due at times of their own, each after it and within the jitter."""
    names = [f"job{number}" for number in range(10)]
    keys = "type = 'oneshot'\nexec = ['/bin/true']\nschedule = '0 0 1 1 *'\nschedule_jitter_sec = 3600\n"
    with daemon(tmp_path, "".join(f"[unit.{name}]\n{keys}" for name in names)) as parsupd:
        due = [parsupd.status(f"{name}@1")["next_run_at"] for name in names]
    assert len(set(due)) == len(names)
    assert {time.localtime(at)[1:4] for at in due} == {(1, 1, 0)}


@pytest.mark.parametrize(("overlap", "most"), [("skip", 1), ("queue", 1), ("kill", 1)])
def test_two_runs_never_overlap(tmp_path: Path, overlap: str, most: int) -> None:
    """Whatever the policy, one process of the instance lives at a time; with `kill` the older one makes room."""
    out = tmp_path / "out"
    script = f"echo begin >>{out}; trap 'echo end >>{out}; exit 0' TERM; sleep 0.7 & wait $!; echo end >>{out}"
    text = unit(script, schedule_every_sec=0.25, schedule_overlap=overlap)
    with daemon(tmp_path, text) as parsupd:
        wait_until(lambda: lines(out).count("begin") >= 3, what="three runs")
    balance, highest = 0, 0
    for word in lines(out):
        balance += 1 if word == "begin" else -1
        highest = max(highest, balance)
    assert highest <= most
    skipped = [record["reason"] for record in parsupd.records("schedule_skipped")]
    assert bool(skipped) == (overlap != "kill")


def test_bad_schedules_are_refused(tmp_path: Path) -> None:
    """Both at once, a time that never comes, and a unit that is no oneshot."""
    cases = {
        unit("true", schedule="0 0 30 2 *"): "unit.job.schedule: never comes",
        unit("true", schedule="* * * * *", schedule_every_sec=5): "schedule_every_sec",
        unit("true", schedule_every_sec=0): "unit.job.schedule_every_sec",
        unit("true", schedule_overlap="skip"): "needs schedule or schedule_every_sec",
        "[unit.job]\n" + simple("true", schedule="* * * * *"): "oneshot only",
    }
    for text, words in cases.items():
        path = tmp_path / "parsupd.toml"
        path.write_text(text)
        command = [sys.executable, "-m", "parsupd", "--config", str(path), "--check"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert words in done.stderr
