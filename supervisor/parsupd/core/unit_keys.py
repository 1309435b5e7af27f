"""The keys of a unit file: one table, from the name of a key to what reads its value. Layer 0.

To add a key: a field in `UnitSpec` (its name, with `_sec` as `_s`), a line in UNIT_KEYS, and a line in ONLY_FOR when it
concerns some types only. A reader takes the value that TOML gave and returns the value that the spec holds, or raises
BadValueError. `Live` around the reader says that a reload changes the key without restarting what runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from parsupd.core.attributes import ATTRIBUTE_KEYS
from parsupd.core.cron import cron
from parsupd.core.log_settings import FULL_POLICIES, LEAST_FILE, LOG_FORMATS
from parsupd.core.probe_keys import more_than_nothing, probe
from parsupd.core.readers import (
    BadValueError,
    Reader,
    boolean,
    choice,
    did_you_mean,
    filled,
    one_of,
    seconds,
    several,
    size,
    text,
    whole,
)
from parsupd.core.units import (
    SIGNAL_NAMES,
    SIGNALS,
    Dependency,
    Escalation,
    ExitStatus,
    GroupStrategy,
    Hook,
    KillMode,
    ListenAddress,
    LogFormat,
    MaxRssAction,
    NotifyAccess,
    Output,
    OutputKind,
    Overlap,
    RestartPolicy,
    StartLimitAction,
    UnitSpec,
    UnitType,
)

UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
WORKER_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
MIN_WATCHDOG_S = 0.1
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@cache
def field_of(key: str) -> str:
    """The name of a key's field in `UnitSpec` or `DaemonSettings`."""
    return key.removesuffix("_sec") + "_s" if key.endswith("_sec") else key


@dataclass(frozen=True, slots=True)
class Live:
    """The reader of a key that only parsupd itself looks at: a change needs no restart, what runs goes on with it.

    Every other key has gone into the process, so a change restarts it. That is the rule, so that a key which nobody has
    thought about is safe.
    """

    read: Reader

    def __call__(self, value: Any) -> Any:
        return self.read(value)


def worker_class(value: Any) -> str:
    if not WORKER_CLASS.fullmatch(text(value)):
        raise BadValueError(f'must be "module:Class", not {value!r}')
    return str(value)


def command(value: Any) -> tuple[str, ...]:
    words: tuple[str, ...] = several(text, at_least=1)(value)
    if not words[0]:
        raise BadValueError("must not be empty", "[0]")
    return words


def init(value: Any) -> Mapping[str, Any] | tuple[Any, ...]:
    """A table is given by keyword, an array by position."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return tuple(value)
    raise BadValueError(f"must be a table (arguments by name) or an array (by position), not {value!r}")


def dependency(value: Any) -> Dependency:
    name, colon, condition = text(value).partition(":")
    if colon and condition != "completed":
        raise BadValueError(f"{value!r}: the only condition is {name + ':completed'!r}")
    return Dependency(name, bool(colon))


def signal(value: Any) -> int:
    """Reads SIGTERM, or TERM."""
    name = text(value) if text(value).startswith("SIG") else f"SIG{value}"
    if name not in SIGNALS:
        raise BadValueError(f"must be the name of a signal, not {value!r}{did_you_mean(name, SIGNALS)}")
    return SIGNALS[name]


def exit_status(value: Any) -> ExitStatus:
    """Reads an exit code, or the name of a signal as `signal` does."""
    if isinstance(value, str):
        return SIGNAL_NAMES[signal(value)]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise BadValueError(f"must be an exit code from 0 to 255, or the name of a signal, not {value!r}")
    return value


HOOK_KEYS: dict[str, Reader] = {"exec": command, "timeout_sec": seconds(endless=True), "ignore_failure": boolean}


def hooks(value: Any) -> tuple[Hook, ...]:
    """Reads one command, an array of strings; or several, an array of tables with `exec` and perhaps more keys."""
    if not isinstance(value, list):
        raise BadValueError(f"must be an array of strings (a command) or of tables (commands), not {value!r}")
    if not any(isinstance(element, dict) for element in value):
        return (Hook(command(value)),)
    return tuple(_hook(element, f"[{index}]") for index, element in enumerate(value))


def _hook(table: Any, place: str) -> Hook:
    if not isinstance(table, dict):
        raise BadValueError(f"must be a table with `exec`, as its neighbours are, not {table!r}", place)
    values = {}
    for key, value in table.items():
        reader = HOOK_KEYS.get(key)
        if reader is None:
            raise BadValueError(f"has an unknown key {key!r}{did_you_mean(key, HOOK_KEYS)}", place)
        try:
            values[field_of(key)] = reader(value)
        except BadValueError as error:
            raise BadValueError(str(error), f"{place}.{key}{error.below}") from None
    if "exec" not in values:
        raise BadValueError("needs the key 'exec'", place)
    return Hook(**values)


def watchdog(value: Any) -> float:
    """Reads a time that cannot be 0, since nobody gives a sign of life within no time at all."""
    found: float = seconds(endless=True)(value)
    if found < MIN_WATCHDOG_S:
        raise BadValueError(f"must be {MIN_WATCHDOG_S:g} or more, or inf, not {value!r}")
    return found


def output(value: Any) -> Output:
    text(value)
    try:
        return Output.parse(value)
    except ValueError:
        kinds = [kind.value for kind in OutputKind if kind is not OutputKind.APPEND] + ["append:/path"]
        raise BadValueError(f"must be one of {', '.join(kinds)}, not {value!r}{did_you_mean(value, kinds)}") from None


_IPV4 = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


def listen_address(value: Any) -> ListenAddress:
    """Reads `/path`, `127.0.0.1:80` or `[::1]:80`; no names, which would have to be looked up."""
    if text(value).startswith("/"):
        return ListenAddress(path=value)
    host, _, port = value.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    v4 = _IPV4.fullmatch(host)
    good = v4 is not None and all(int(part) < 256 for part in v4.groups())
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        good = _IPV6.fullmatch(host) is not None
    if not good or not 0 < number < 65536:
        raise BadValueError(f'must be an absolute path, "IPv4:port" or "[IPv6]:port", not {value!r}')
    return ListenAddress(host, number)


def environment(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise BadValueError(f"must be a table of strings, not {value!r}")
    for name, content in value.items():
        if not VARIABLE.fullmatch(name):
            raise BadValueError("is not the name of a variable", f".{name}")
        try:
            text(content)
        except BadValueError as error:
            raise BadValueError(str(error), f".{name}") from None
    return value


def umask(value: Any) -> int:
    """Only as a string: TOML's 22 and 0o22 both arrive as numbers, and one of them is a mistake."""
    if not isinstance(value, str) or not re.fullmatch("[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise BadValueError(f'must be a string of octal digits such as "022", not {value!r}')
    return int(value, 8)


UNIT_KEYS: dict[str, Reader] = {
    "type": choice(UnitType),
    "description": Live(text),
    "worker": worker_class,
    "python": filled,
    "exec": command,
    "init": init,
    "instances": Live(whole(0, 10_000)),
    "enabled": Live(boolean),
    "exit_with": Live(boolean),
    "requires": Live(several(dependency)),
    "wants": Live(several(dependency)),
    "after": Live(several(dependency)),
    "binds_to": Live(several(dependency)),
    "part_of": Live(several(filled)),
    "conflicts": Live(several(filled)),
    "on_failure": Live(several(filled)),
    "restart": Live(choice(RestartPolicy)),
    "restart_sec": Live(seconds()),
    "restart_steps": Live(whole(0, 1000)),
    "restart_max_delay_sec": Live(seconds()),
    "restart_reset_after_sec": Live(seconds()),
    "start_limit_burst": Live(whole(0, 10_000)),
    "start_limit_interval_sec": Live(seconds()),
    "start_limit_action": Live(choice(StartLimitAction)),
    "success_exit_status": Live(several(exit_status)),
    "restart_prevent_exit_status": Live(several(exit_status)),
    "restart_force_exit_status": Live(several(exit_status)),
    "remain_after_exit": Live(boolean),
    "runtime_max_sec": Live(seconds(endless=True)),
    "runtime_max_spread_sec": Live(seconds()),
    "watchdog_sec": watchdog,
    "notify_access": Live(choice(NotifyAccess)),
    "pid_file": filled,
    "exec_start_pre": Live(hooks),
    "exec_start_post": Live(hooks),
    "exec_reload": Live(hooks),
    "exec_stop": Live(hooks),
    "exec_stop_post": Live(hooks),
    "timeout_start_sec": Live(seconds(endless=True)),
    "timeout_stop_sec": Live(seconds(endless=True)),
    "kill_signal": Live(signal),
    "kill_mode": Live(choice(KillMode)),
    "send_sigkill": Live(boolean),
    "stdout": output,
    "stderr": output,
    "log_format": Live(one_of(*LOG_FORMATS)),
    "log_rotate_size": Live(size(LEAST_FILE)),
    "log_rotate_sec": Live(seconds(endless=True)),
    "log_total_size": Live(size(2 * LEAST_FILE)),
    "log_compress": Live(boolean),
    "log_full_policy": Live(one_of(*FULL_POLICIES)),
    "log_block_sec": Live(seconds(endless=True)),
    "environment": environment,
    "environment_file": several(filled),
    "sockets": several(listen_address),
    "working_directory": filled,
    "umask": umask,
    **ATTRIBUTE_KEYS,
    "memory_max": Live(size(1 << 20)),
    "tasks_max": Live(whole(1, 1 << 22)),
    "readiness": Live(probe),
    "liveness": Live(probe),
    "max_rss": size(1 << 20),
    "max_rss_action": choice(MaxRssAction),
    "schedule": Live(cron),
    "schedule_every_sec": Live(more_than_nothing),
    "schedule_jitter_sec": Live(seconds()),
    "schedule_overlap": Live(choice(Overlap)),
}

GROUP_KEYS: dict[str, Reader] = {
    "units": several(filled, at_least=1),
    "strategy": choice(GroupStrategy),
    "intensity": whole(0, 10_000),
    "period_sec": seconds(),
    "escalation": choice(Escalation),
}

DAEMON_KEYS: dict[str, Reader] = {
    "runtime_dir": filled,
    "state_dir": filled,
    "log": choice(LogFormat),
    "include": Live(several(filled)),
    "all_logs_size": size(2 * LEAST_FILE),
    "lease_sec": seconds(),
    "restart_storm_burst": Live(whole(0, 1_000_000)),
    "restart_storm_interval_sec": Live(seconds()),
}

# Keys that only some types have, and of those the one that each type must have.
ONLY_FOR = {
    "worker": {UnitType.WORKER},
    "python": {UnitType.WORKER},
    "init": {UnitType.WORKER},
    "exec": set(UnitType) - {UnitType.WORKER},
    "sockets": {UnitType.SIMPLE, UnitType.NOTIFY},
    "remain_after_exit": {UnitType.ONESHOT},
    "runtime_max_sec": set(UnitType) - {UnitType.ONESHOT},
    "runtime_max_spread_sec": set(UnitType) - {UnitType.ONESHOT},
    "watchdog_sec": set(UnitType) - {UnitType.ONESHOT},
    "notify_access": {UnitType.SIMPLE, UnitType.NOTIFY, UnitType.FORKING},
    "pid_file": {UnitType.FORKING},
    "exec_reload": set(UnitType) - {UnitType.ONESHOT},
    "readiness": set(UnitType) - {UnitType.ONESHOT},
    "liveness": set(UnitType) - {UnitType.ONESHOT},
    "max_rss": set(UnitType) - {UnitType.ONESHOT},
    "schedule": {UnitType.ONESHOT},
    "schedule_every_sec": {UnitType.ONESHOT},
}
NEEDED = {each: "worker" if each is UnitType.WORKER else "exec" for each in UnitType}


def live_part(old: UnitSpec, new: UnitSpec) -> UnitSpec:
    """What a running instance of `old` takes over of `new`: the keys that need no restart."""
    fields = [field_of(key) for key, reader in UNIT_KEYS.items() if isinstance(reader, Live)]
    return replace(old, source=new.source, **{name: getattr(new, name) for name in fields})
