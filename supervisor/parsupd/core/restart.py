"""Whether a unit that has ended is started again, with the reason. Layer 1.

The table is that of systemd.service(5), Restart=. Where systemd has no word of its own for a cause:

* UNHEALTHY counts as watchdog: whoever watches it has found it of no use, by a probe or a limit.
* SPAWN_FAILED counts as an unclean exit code: systemd sees a failed exec as exit status 203. A missing program or an
  exception in the worker's init is a mistake in the unit, not an abnormal end, so on-abnormal does not restart it.
* success_exit_status adds clean codes and signals; restart_prevent_exit_status and restart_force_exit_status outrank
  the policy, in this order.
* UNKNOWN counts as abnormal: nobody saw how it ended, and whoever asks for on-abnormal wants it up after accidents.
"""

import enum
from collections.abc import Collection

from parsupd.core.units import (
    SIGNAL_NAMES,
    SIGNALS,
    ExitCause,
    ExitKind,
    ExitStatus,
    RestartDecision,
    RestartPolicy,
    UnitSpec,
    UnitType,
)

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


def listed(cause: ExitCause, statuses: Collection[ExitStatus]) -> bool:
    """Whether it exited with one of these codes, or was ended by one of these signals."""
    match cause.kind:
        case ExitKind.EXITED:
            return cause.number in statuses
        case ExitKind.SIGNALED:
            return SIGNAL_NAMES.get(cause.number) in statuses
        case _:
            return False


def outcome(cause: ExitCause, *, oneshot: bool = False, success: Collection[ExitStatus] = ()) -> Outcome:
    """The row of the table that a cause belongs to; `success` lists what is clean besides the usual."""
    if listed(cause, success):
        return Outcome.CLEAN
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


def decide(spec: UnitSpec, cause: ExitCause, *, stop_requested: bool = False) -> RestartDecision:
    """Decides, and says why, whether a unit is started again.

    Args:
        spec: What its file says.
        cause: How it ended.
        stop_requested: Whether somebody asked for its end; that never restarts.
    """
    if stop_requested:
        return RestartDecision(restart=False, reason=f"a stop was requested and it {cause}")
    if listed(cause, spec.restart_prevent_exit_status):
        return RestartDecision(restart=False, reason=f"restart_prevent_exit_status has it and it {cause}")
    if listed(cause, spec.restart_force_exit_status):
        return RestartDecision(restart=True, reason=f"restart_force_exit_status has it and it {cause}")
    restart = outcome_of(spec, cause) in RESTARTS_ON[spec.restart]
    return RestartDecision(restart=restart, reason=f"restart={spec.restart.value} and it {cause}")


def outcome_of(spec: UnitSpec, cause: ExitCause) -> Outcome:
    """The row of the table that a cause belongs to, for a unit of this description."""
    return outcome(cause, oneshot=spec.type is UnitType.ONESHOT, success=spec.success_exit_status)
