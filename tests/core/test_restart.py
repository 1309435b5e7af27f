"""Restart policy: the whole matrix of policy and cause."""

import signal
from typing import Any

import pytest

from parsupd.core import restart
from parsupd.core.restart import RESTARTS_ON
from parsupd.core.units import SIGNALS, ExitCause, ExitKind, RestartDecision, RestartPolicy, UnitSpec, UnitType


def decide(policy: RestartPolicy, cause: ExitCause, *, stop_requested: bool = False, **keys: Any) -> RestartDecision:
    spec = UnitSpec(name="u", restart=policy, **keys)
    return restart.decide(spec, cause, stop_requested=stop_requested)


CAUSES = {
    "clean code": ExitCause.exited(0),
    "unclean code": ExitCause.exited(1),
    "clean signal": ExitCause.signaled(SIGNALS["SIGTERM"]),
    "unclean signal": ExitCause.signaled(SIGNALS["SIGSEGV"]),
    "timeout": ExitCause.timed_out("not ready within 30 s"),
    "watchdog": ExitCause.watchdog("no heartbeat for 20 s"),
    "unhealthy": ExitCause.unhealthy("its probe failed"),
    "spawn failed": ExitCause.spawn_failed("no such program"),
    "unknown": ExitCause.unknown(),
}

# systemd.service(5), Restart=, one row a policy; a cause that is not named is not restarted.
EXPECTED = {
    RestartPolicy.NO: set(),
    RestartPolicy.ALWAYS: set(CAUSES),
    RestartPolicy.ON_SUCCESS: {"clean code", "clean signal"},
    RestartPolicy.ON_FAILURE: {
        "unclean code",
        "unclean signal",
        "timeout",
        "watchdog",
        "unhealthy",
        "spawn failed",
        "unknown",
    },
    RestartPolicy.ON_ABNORMAL: {"unclean signal", "timeout", "watchdog", "unhealthy", "unknown"},
    RestartPolicy.ON_WATCHDOG: {"watchdog", "unhealthy"},
}


def test_the_matrix_has_every_cell() -> None:
    """Every policy has a row here and in the code, and every kind of cause is among the columns."""
    assert set(EXPECTED) == set(RestartPolicy) == set(RESTARTS_ON)
    assert {cause.kind for cause in CAUSES.values()} == set(ExitKind)


@pytest.mark.parametrize("policy", RestartPolicy)
@pytest.mark.parametrize("name", CAUSES)
def test_policy_and_cause_decide_as_in_systemd(policy: RestartPolicy, name: str) -> None:
    """Each cell of the table, and the reason names both the policy and the cause."""
    decision = decide(policy, CAUSES[name])
    assert decision.restart == (name in EXPECTED[policy])
    assert decision.reason == f"restart={policy.value} and it {CAUSES[name]}"


@pytest.mark.parametrize("policy", RestartPolicy)
@pytest.mark.parametrize("name", CAUSES)
def test_a_stop_by_request_never_restarts(policy: RestartPolicy, name: str) -> None:
    """Whatever the policy and the cause are."""
    decision = decide(policy, CAUSES[name], stop_requested=True)
    assert not decision.restart
    assert "a stop was requested" in decision.reason


def test_a_signal_is_clean_for_a_daemon_and_unclean_for_a_oneshot() -> None:
    """A oneshot has done its work only when it exited with 0."""
    term = ExitCause.signaled(SIGNALS["SIGTERM"])
    assert not decide(RestartPolicy.ON_FAILURE, term).restart
    assert decide(RestartPolicy.ON_FAILURE, term, type=UnitType.ONESHOT).restart


LISTS: dict[str, tuple[dict[str, Any], RestartPolicy, ExitCause, bool, str]] = {
    "a code that counts as success": (
        {"success_exit_status": (75,)},
        RestartPolicy.ON_FAILURE,
        ExitCause.exited(75),
        False,
        "restart=on-failure",
    ),
    "a signal that counts as success, of a oneshot too": (
        {"success_exit_status": ("SIGKILL",), "type": UnitType.ONESHOT},
        RestartPolicy.ON_FAILURE,
        ExitCause.signaled(9),
        False,
        "restart=on-failure",
    ),
    "never after this": (
        {"restart_prevent_exit_status": (1, "SIGSEGV")},
        RestartPolicy.ALWAYS,
        ExitCause.signaled(11),
        False,
        "restart_prevent_exit_status",
    ),
    "always after this": (
        {"restart_force_exit_status": (7,)},
        RestartPolicy.NO,
        ExitCause.exited(7),
        True,
        "restart_force_exit_status",
    ),
    "never outranks always": (
        {"restart_force_exit_status": (7,), "restart_prevent_exit_status": (7,)},
        RestartPolicy.ALWAYS,
        ExitCause.exited(7),
        False,
        "restart_prevent_exit_status",
    ),
    "a signal's number is not a code": (
        {"restart_force_exit_status": (9,)},
        RestartPolicy.NO,
        ExitCause.signaled(9),
        False,
        "restart=no",
    ),
    "what parsupd ended has no exit status": (
        {"restart_prevent_exit_status": (0,)},
        RestartPolicy.ON_WATCHDOG,
        ExitCause.watchdog("silent"),
        True,
        "restart=on-watchdog",
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_exit_statuses(name: str) -> None:
    """Codes and names of signals that the unit's file lists, and which key has decided."""
    keys, policy, cause, expected, reason = LISTS[name]
    decision = decide(policy, cause, **keys)
    assert decision.restart == expected
    assert decision.reason.startswith(reason)
    assert not decide(policy, cause, stop_requested=True, **keys).restart


def test_reasons_read_as_sentences() -> None:
    """The reason completes "restarted because ..."."""
    assert decide(RestartPolicy.ON_FAILURE, ExitCause.exited(1)).reason == "restart=on-failure and it exited with 1"
    killed = decide(RestartPolicy.NO, ExitCause.signaled(9)).reason
    assert killed == "restart=no and it was killed by SIGKILL"
    assert str(ExitCause.signaled(40)) == "was killed by signal 40"
    assert str(ExitCause.unknown()) == "ended in an unknown way"


@pytest.mark.parametrize(
    ("cause", "status"),
    [(ExitCause.exited(3), 3), (ExitCause.signaled(9), 137), (ExitCause.timed_out(""), 1), (ExitCause.unknown(), 1)],
)
def test_exit_status_for_others(cause: ExitCause, status: int) -> None:
    """A unit's own code, 128 + signal, otherwise 1."""
    assert cause.exit_status == status


def test_signal_numbers_are_those_of_this_system() -> None:
    """The table in `units` agrees with the `signal` module, which a pure module may not import."""
    ours = {name: signal.Signals[name].value for name in SIGNALS}
    assert ours == SIGNALS
