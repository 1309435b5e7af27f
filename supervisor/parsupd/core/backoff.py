"""How long to wait before a restart. Layer 1.

The delays grow geometrically from `first_s` to `max_s`, as RestartSec=, RestartSteps= and RestartMaxDelaySec= do in
systemd (v254 and later, `service_restart_usec_next` in src/core/service.c): with r_0 = first_s, r_n = max_s, n = steps,

    r_i = r_0 * (r_n / r_0) ** (i / n)    for i = 0 .. n, and r_n from then on

where i counts the restarts in a row before this one. Unlike systemd (systemd#43813), a stable run resets i.
"""


def delay_s(restarts_in_row: int, *, first_s: float, steps: int, max_s: float) -> float:
    """Seconds to wait before the next restart, after `restarts_in_row` restarts without a stable run.

    The delay is constantly `first_s` when there are no steps, when it is 0, or when it is not below `max_s`.
    """
    if steps == 0 or first_s == 0 or first_s >= max_s:
        return first_s
    if restarts_in_row >= steps:
        return max_s
    return min(max_s, float(first_s * (max_s / first_s) ** (restarts_in_row / steps)))


def restarts_after_run(restarts_in_row: int, *, ran_s: float, reset_after_s: float) -> int:
    """The number of restarts in a row that still counts, after the unit was ready for `ran_s` seconds."""
    return 0 if ran_s >= reset_after_s else restarts_in_row
