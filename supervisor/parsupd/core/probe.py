"""One probe of one run: when to ask, and what the answers come to. Layer 1.

    step(state, event, now) -> (state, effects); next_deadline(state) tells when Due is due.

A question is asked `interval_s` after the one before was, never while that is open, and counts as failed when its
answer does not come within `timeout_s`. The verdict changes after `failure_threshold` failures in a row, or
`success_threshold` successes; the first one is told as soon as either is reached. Who waits for a probe to pass for the
first time is eager: the questions come in quick succession at first.
"""

from dataclasses import dataclass, replace

from parsupd.core.probe_keys import Probe

EAGER_S = 0.05
"""After the first question of an eager one; twice as long after each further one, up to the probe's own interval."""


@dataclass(frozen=True, slots=True)
class Probing:
    """What is known of one probe. Instants are of the clock that `now` comes from."""

    probe: Probe
    next_at: float | None  # when the next question is asked; None while one is open
    attempt: int = 0  # the last question
    asked_at: float = 0.0
    deadline_at: float | None = None  # of the open question
    successes: int = 0  # in a row
    failures: int = 0
    passes: bool | None = None  # the verdict; None while there is none
    answer: str = ""  # the last failure that was told of
    eager: bool = False  # waits for the first success


@dataclass(frozen=True, slots=True)
class Due:
    """The instant that `next_deadline` named has come."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The question `attempt` was answered well."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Failed:
    """It was not; `reason` says how."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask now; answered by Passed or Failed, unless GiveUp comes first."""

    attempt: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The answer comes too late: end whatever waits for it."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """It passes, or fails, from now on."""

    passes: bool
    reason: str


@dataclass(frozen=True, slots=True)
class StillFails:
    """It does not pass any more, or, if eager, not yet; and the last answer was bad in another way than before."""

    reason: str


Event = Due | Passed | Failed
Effect = Ask | GiveUp | Verdict | StillFails


def begin(probe: Probe, since: float, *, passes: bool | None = None, eager: bool = False) -> Probing:
    """A probe of a run that began `since`, or of one that has the verdict `passes` already."""
    delay_s = probe.initial_delay_s if passes is None else 0.0
    return Probing(probe, since + delay_s, passes=passes, eager=eager and passes is None)


def next_deadline(state: Probing) -> float | None:
    """The instant at which Due is to be given."""
    return state.next_at if state.deadline_at is None else state.deadline_at


def step(state: Probing, event: Event, now: float) -> tuple[Probing, tuple[Effect, ...]]:
    """Gives one event to the machine. Answers to questions that are not open any more are ignored."""
    match event:
        case Due():
            if state.deadline_at is not None and now >= state.deadline_at:
                after, effects = _failed(state, f"no answer within {state.probe.timeout_s:g} s", now)
                return after, (GiveUp(state.attempt), *effects)
            if state.next_at is not None and now >= state.next_at:
                return _ask(state, now)
        case Passed(attempt) if _is_open(state, attempt):
            return _passed(state, now)
        case Failed(attempt, reason) if _is_open(state, attempt):
            return _failed(state, reason, now)
        case _:
            pass
    return state, ()


def _is_open(state: Probing, attempt: int) -> bool:
    return state.deadline_at is not None and state.attempt == attempt


def _ask(state: Probing, now: float) -> tuple[Probing, tuple[Effect, ...]]:
    attempt = state.attempt + 1
    deadline_at = now + state.probe.timeout_s
    return replace(state, next_at=None, attempt=attempt, asked_at=now, deadline_at=deadline_at), (Ask(attempt),)


def _answered(state: Probing, now: float) -> Probing:
    # Not before `now`: what was missed while the machine slept is not made up for.
    interval_s = state.probe.interval_s
    if state.eager:
        interval_s = min(interval_s, EAGER_S * 2.0 ** min(state.attempt - 1, 30))
    return replace(state, next_at=max(now, state.asked_at + interval_s), deadline_at=None)


def _passed(state: Probing, now: float) -> tuple[Probing, tuple[Effect, ...]]:
    state = replace(state, successes=state.successes + 1, failures=0)
    if state.passes is True or state.successes < state.probe.success_threshold:
        return _answered(state, now), ()
    state = replace(state, passes=True, eager=False)
    return _answered(state, now), (Verdict(passes=True, reason=f"its {state.probe.question} probe passes"),)


def _failed(state: Probing, reason: str, now: float) -> tuple[Probing, tuple[Effect, ...]]:
    after = replace(_answered(state, now), failures=state.failures + 1, successes=0)
    times = "" if after.failures == 1 else f" {after.failures} times in a row"
    why = f"its {state.probe.question} probe failed{times}: {reason}"
    if after.passes is not False and after.failures >= state.probe.failure_threshold:
        return replace(after, passes=False, answer=reason), (Verdict(passes=False, reason=why),)
    if (after.passes is False or after.eager) and reason != after.answer:
        return replace(after, answer=reason), (StillFails(why),)
    return after, ()
