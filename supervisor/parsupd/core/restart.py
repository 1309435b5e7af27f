"""Whether a unit that has ended is started again, with the reason. Layer 1.

The table is that of systemd.service(5), Restart=. Where systemd has no word of its own for a cause:

* UNHEALTHY counts as watchdog: whoever watches it has found it of no use, by a probe or a limit.
* SPAWN_FAILED counts as an unclean exit code: systemd sees a failed exec as exit status 203. A missing program or an
  exception in the worker's init is a mistake in the unit, not an abnormal end, so on-abnormal does not restart it.
* UNKNOWN counts as abnormal: nobody saw how it ended, and whoever asks for on-abnormal wants it up after accidents.
"""

import enum

from parsupd.core.units import SIGNALS, ExitCause, ExitKind, RestartDecision, RestartPolicy

# Signals by which a daemon may end cleanly; a oneshot must exit with 0 (systemd.service(5), SuccessExitStatus=).
CLEAN_SIGNALS = frozenset(SIGNALS[name] for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGPIPE"))


class Outcome(enum.Enum):
    """The rows of systemd's table."""

    CLEAN = "clean exit code or signal"
    UNCLEAN_CODE = "unclean exit code"
    UNCLEAN_SIGNAL = "unclean signal"
    TIMEOUT = "timeout"
    WATCHDOG = "watchdog"
    LOST = "unknown"


# THE table: which outcomes each policy restarts on.
RESTARTS_ON = {
    RestartPolicy.NO: frozenset[Outcome](),
    RestartPolicy.ON_SUCCESS: frozenset({Outcome.CLEAN}),
    RestartPolicy.ON_FAILURE: frozenset(Outcome) - {Outcome.CLEAN},
    RestartPolicy.ON_ABNORMAL: frozenset(Outcome) - {Outcome.CLEAN, Outcome.UNCLEAN_CODE},
    RestartPolicy.ON_WATCHDOG: frozenset({Outcome.WATCHDOG}),
    RestartPolicy.ALWAYS: frozenset(Outcome),
}


def outcome(cause: ExitCause, *, oneshot: bool = False) -> Outcome:
    """The row of the table that a cause belongs to."""
    match cause.kind:
        case ExitKind.EXITED:
            return Outcome.CLEAN if cause.number == 0 else Outcome.UNCLEAN_CODE
        case ExitKind.SIGNALED:
            return Outcome.CLEAN if cause.number in CLEAN_SIGNALS and not oneshot else Outcome.UNCLEAN_SIGNAL
        case ExitKind.SPAWN_FAILED:
            return Outcome.UNCLEAN_CODE
        case ExitKind.TIMED_OUT:
            return Outcome.TIMEOUT
        case ExitKind.WATCHDOG | ExitKind.UNHEALTHY:
            return Outcome.WATCHDOG
        case ExitKind.UNKNOWN:
            return Outcome.LOST


def decide(
    policy: RestartPolicy, cause: ExitCause, *, oneshot: bool = False, stop_requested: bool = False
) -> RestartDecision:
    """Decides, and says why, whether a unit is started again.

    Args:
        policy: What its file says.
        cause: How it ended.
        oneshot: Whether only exit code 0 counts as clean.
        stop_requested: Whether somebody asked for its end; that never restarts.
    """
    if stop_requested:
        return RestartDecision(restart=False, reason=f"a stop was requested and it {cause}")
    restart = outcome(cause, oneshot=oneshot) in RESTARTS_ON[policy]
    return RestartDecision(restart=restart, reason=f"restart={policy.value} and it {cause}")
