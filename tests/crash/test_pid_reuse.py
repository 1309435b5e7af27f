"""Pids that somebody else has got while parsupd was down, in a pid namespace in which the next one can be chosen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PID_NAMESPACE

PROBE = subprocess.run(
    [*PID_NAMESPACE, "sh", "-c", "echo 1000 > /proc/sys/kernel/ns_last_pid"],
    check=False,
    capture_output=True,
    text=True,
)
pytestmark = pytest.mark.skipif(
    PROBE.returncode != 0, reason=f"no pid namespace with pids of one's choice can be made: {PROBE.stderr.strip()}"
)
SCRIPT = Path(__file__).parent / "reusing_pids.py"


@pytest.mark.parametrize("kind", ["leader", "thread"])
def test_a_stranger_with_the_pid_of_a_unit_is_left_alone(kind: str, tmp_path: Path) -> None:
    """The unit has ended, nobody knows how, and is started anew; who has its pid now is neither adopted nor signalled,
    be it a process that leads a group of that number or somebody's thread.
    """
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [*PID_NAMESPACE, sys.executable, str(SCRIPT), str(tmp_path), kind]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, f"{done.stderr}\n{(tmp_path / 'log').read_text()}"
    seen = json.loads(done.stdout)
    assert seen["stranger"] == "S"
    assert seen["second"] != seen["first"]
    assert seen["causes"] == ["ended in an unknown way: while no parsupd was there to see it"]
    assert seen["stopped"] == 0
