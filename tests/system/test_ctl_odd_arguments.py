"""Arguments of parsupctl that nobody meant: each is refused in one line that names it, never with a traceback.

Others are with their commands: `call` in test_parsupctl.py, `run` in test_ctl_run.py, words that are no text in
test_hostile_files.py.
"""

import pytest
from parsupctl_process import Controlled, StartDaemon

CONFIG = '[unit.web]\ntype = "simple"\nexec = ["sleep", "1000"]\nstdout = "file"\n'
HUGE = "9" * 30

CASES = {
    "kill web -s 0": (2, "'0' is no signal: such as TERM, SIGKILL or 9"),
    f"kill web -s {HUGE}": (2, "is no signal: such as TERM, SIGKILL or 9"),
    "scale web@1=2": (4, "no unit 'web@1'; did you mean 'web'?"),
    "scale web=1 web=2": (2, "web=2: web has been given a number already, 1"),
    f"scale web={HUGE}": (1, "web: instances must be a whole number from 0 to 10000, not 999999999999999999"),
    "restart --rolling web@1": (1, "web@1 is not a unit of the configuration: instances are not restarted in turn"),
    f"events --since {HUGE}": (2, "is not in the range 0<=x<="),
    f"why web --lines {HUGE}": (2, "is not in the range 0<=x<="),
    f"logs web --lines {HUGE}": (2, "is not in the range 0<=x<="),
    "logs web --since @nan": (2, "'@nan' is no time"),
    "logs web --generation 0": (2, "0 is not in the range x>=1"),
    "logs web --timeout x": (2, "'x' is no number of seconds, more than 0 and 1e+09 at most: such as 0.5 or 30"),
    "info --timeout nan": (2, "'nan' is no number of seconds"),
    "wait web --timeout inf": (2, "'inf' is no number of seconds"),
    "stop web --timeout 0": (2, "'0' is no number of seconds"),
    "top --delay 0.05": (2, "'0.05' is no number of seconds, 0.1 or more and 1e+09 at most"),
    "import /bin/sh": (1, "parsupctl: /bin/sh: is no text in UTF-8: byte "),
}


@pytest.fixture(scope="module")
def running(daemon: StartDaemon) -> Controlled:
    return daemon(CONFIG)


@pytest.mark.parametrize("words", CASES)
def test_it_is_refused(running: Controlled, words: str) -> None:
    """With an exit status that says which kind of mistake it is, and a message that says what would be right."""
    status, said = CASES[words]
    done = running.ctl(*words.split())
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_nothing_of_that_was_done(running: Controlled) -> None:
    """The unit is as it was."""
    (info,) = running.daemon.ask("status")
    assert (info["name"], info["generation"], info["sub_state"]) == ("web@1", 1, "running")
